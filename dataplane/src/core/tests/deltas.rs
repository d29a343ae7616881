//! A core that hears of one change after another does what one does that hears of the outcome alone.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::NeighbourState as Nud;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use sluice_api::{
    DecidedEndpoints, DecidedPool, DecidedRealServerPool, DecidedVirtualServer, EndpointSource,
    ForwardingMode, LoadBalancerNodeStatus, NodeRole, ObjectKey, PoolDecision, XdpMode,
};
use sluice_planner::{Slice, SliceEndpoint, SliceOwner};

use super::network::{address, route};
use super::{
    BRIDGE_INDEX, Input, UPLINK_INDEX, World, decision, ip, neighbour, node, out, pool_decision,
};
use crate::fixtures::virtual_server;
use crate::netlink::Route;
use crate::source::{Changes, Event, Mark};

const SERVERS: [&str; 4] = ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.244.0.2"];
const POOLS: [&str; 2] = ["v1", "v2"];

/// One piece of news.
#[derive(Clone, Debug)]
enum News {
    VirtualServer(&'static str, Option<DecidedVirtualServer>),
    /// Static servers.
    Pool(&'static str, Option<Vec<&'static str>>),
    /// A pool of pods, whose name is its own.
    PoolOfPods(&'static str),
    /// The pods of a pool that are ready.
    Pods(&'static str, Option<Vec<&'static str>>),
    Neighbour(&'static str, Nud),
    Route(&'static str, Route),
    OwnAddress(&'static str, bool),
    Role(NodeRole),
    /// Whether maps can be written from now on.
    Writable(bool),
}

fn virtual_servers() -> impl Strategy<Value = DecidedVirtualServer> {
    use ForwardingMode::{Dr, FullNat, Nat, Tun};
    let vips = subsequence(vec!["203.0.113.1", "203.0.113.2", "10.0.0.4"], 1..=2);
    let pools = subsequence(POOLS.to_vec(), 1..=2);
    (vips, select(vec![Nat, FullNat, Dr, Tun]), pools, 0_u32..3).prop_map(
        |(vips, mode, pools, weight)| DecidedVirtualServer {
            addresses: vips.into_iter().map(ip).collect(),
            mode,
            pools: pools
                .into_iter()
                .zip([1, weight])
                .map(|(name, weight)| DecidedPool {
                    name: name.to_owned(),
                    weight,
                    spec_weight: weight,
                })
                .collect(),
            ..virtual_server()
        },
    )
}

fn news() -> impl Strategy<Value = News> {
    let pool = || select(POOLS.to_vec());
    let server = || select(SERVERS.to_vec());
    let servers = || prop::option::weighted(0.8, subsequence(SERVERS.to_vec(), 0..=3));
    let routes = vec![
        out(UPLINK_INDEX),
        out(BRIDGE_INDEX),
        Route::None,
        Route::Local,
    ];
    let states = vec![Nud::Reachable, Nud::Failed, Nud::Incomplete];
    let decided = prop::option::weighted(0.8, virtual_servers());
    prop_oneof![
        4 => (select(vec!["web", "api"]), decided).prop_map(|(key, d)| News::VirtualServer(key, d)),
        4 => (pool(), servers()).prop_map(|(key, servers)| News::Pool(key, servers)),
        2 => pool().prop_map(News::PoolOfPods),
        3 => (pool(), servers()).prop_map(|(key, pods)| News::Pods(key, pods)),
        3 => (server(), select(states)).prop_map(|(to, state)| News::Neighbour(to, state)),
        3 => (server(), select(routes)).prop_map(|(to, route)| News::Route(to, route)),
        2 => (server(), any::<bool>()).prop_map(|(own, there)| News::OwnAddress(own, there)),
        1 => select(vec![NodeRole::Director, NodeRole::RealServer]).prop_map(News::Role),
        1 => any::<bool>().prop_map(News::Writable),
    ]
}

/// All that was decided.
#[derive(Default)]
struct Everything {
    changes: Changes,
    role: Option<NodeRole>,
}

impl Everything {
    /// Tells a world a piece of news.
    fn tell(&mut self, world: &mut World, news: News, revision: u64) {
        let mut changes = Changes::default();
        match news {
            News::VirtualServer(name, content) => {
                let decision = content.map(|content| Arc::new(decision(revision, content)));
                changes.virtual_servers.insert(key(name), decision);
            }
            News::Pool(name, servers) => {
                let decision = servers.map(|servers| Arc::new(pool_decision(revision, &servers)));
                changes.pools.insert(key(name), decision);
            }
            News::PoolOfPods(name) => {
                let decision = pool_of_pods(revision, name);
                changes.pools.insert(key(name), Some(Arc::new(decision)));
            }
            News::Pods(name, pods) => {
                let slice = pods.map(|pods| Arc::new(slice(name, &pods)));
                let key = (EndpointSource::Pods, key(name));
                changes.slices.insert(key, slice);
            }
            News::Neighbour(to, state) => return world.notice(neighbour(to, state)),
            News::Route(to, way) => {
                world.routes.insert(ip(to), way);
                return world.notice(route(to, 32));
            }
            News::OwnAddress(own, there) => return world.notice(own_address(own, there)),
            News::Role(role) => {
                self.role = Some(role);
                return world.tell(Input::Source(of_role(role)));
            }
            News::Writable(true) => return world.failing.clear(),
            News::Writable(false) => {
                world.failing.insert("Apply");
                return;
            }
        }
        changes.mark = mark(revision);
        self.changes.extend(changes.clone());
        world.tell(Input::Source(Event::Decided(changes)));
    }

    /// Another world in which nothing else has happened, with the same maps.
    fn anew(&self, world: &World) -> World {
        let mut anew = World::new(LoadBalancerNodeStatus::default());
        anew.now = world.now;
        anew.table.clone_from(&world.table);
        anew.routes.clone_from(&world.routes);
        anew.maps = world.maps.clone();
        anew.tell(Input::SourceSynced(true));
        let role = self.role.unwrap_or(NodeRole::Director);
        anew.tell(Input::Source(of_role(role)));
        anew.tell(Input::Source(Event::Decided(self.changes.clone())));
        anew
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

fn mark(revision: u64) -> Mark {
    Mark {
        revision,
        pool_revision: revision,
        missed: Vec::new(),
    }
}

pub(super) fn of_role(role: NodeRole) -> Event {
    let Event::Node(mut node) = node(1, XdpMode::Auto) else {
        unreachable!()
    };
    node.spec.role = role;
    Event::Node(node)
}

fn own_address(own: &str, there: bool) -> RouteNetlinkMessage {
    let own: Ipv4Addr = own.parse().unwrap();
    match (address(UPLINK_INDEX, own), there) {
        (RouteNetlinkMessage::NewAddress(message), false) => {
            RouteNetlinkMessage::DelAddress(message)
        }
        (message, _) => message,
    }
}

fn pool_of_pods(revision: u64, name: &str) -> PoolDecision {
    PoolDecision {
        content: DecidedRealServerPool {
            endpoints: Some(DecidedEndpoints {
                source: EndpointSource::Pods,
                name: name.to_owned(),
                selector: None,
                target_ports: Vec::new(),
            }),
            ..DecidedRealServerPool::default()
        },
        ..pool_decision(revision, &[])
    }
}

fn slice(name: &str, pods: &[&str]) -> Slice {
    let endpoint = |pod: &&str| SliceEndpoint {
        name: (*pod).to_owned(),
        address: ip(pod),
        pod_uid: None,
        node: None,
        ready: true,
        serving: true,
        terminating: false,
    };
    Slice {
        owner: SliceOwner {
            namespace: "shop".to_owned(),
            source: EndpointSource::Pods,
            name: name.to_owned(),
        },
        ports: Vec::new(),
        endpoints: pods.iter().map(endpoint).collect(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_by_one_and_at_once_come_to_the_same(
        turns in prop::collection::vec((prop::collection::vec(news(), 1..4), 0_u64..3000), 1..12),
    ) {
        let mut world = World::of_director();
        let mut everything = Everything::default();
        let mut revision = 7;
        for (news, pause_ms) in turns {
            for news in news {
                revision += 1;
                everything.tell(&mut world, news, revision);
            }
            world.after(Duration::from_millis(pause_ms));
        }
        world.failing.clear();
        revision += 1;
        everything.tell(&mut world, News::Pool("v3", None), revision);
        // Long enough for every failure to be tried again, and for what is pending to become overdue.
        for _ in 0..4 {
            world.after(Duration::from_secs(20));
        }
        let mut anew = everything.anew(&world);
        let mut done = anew.turn();
        for _ in 0..3 {
            done.extend(anew.after(Duration::from_secs(2)));
        }
        prop_assert!(!done.contains(&"Apply".to_owned()), "{done:?}");
        prop_assert!(anew.maps == world.maps);
        prop_assert_eq!(&anew.published.exceptions, &world.published.exceptions);
        prop_assert_eq!(anew.published.acknowledged_revision, revision);
        prop_assert_eq!(world.published.acknowledged_revision, revision);
        prop_assert_eq!(anew.published.neighbours, world.published.neighbours);
        let ready = |world: &World| {
            let conditions = &world.status.as_ref().expect("it is written").conditions;
            let told = conditions.iter().map(|c| (c.type_.clone(), c.message.clone()));
            told.collect::<BTreeMap<_, _>>()
        };
        prop_assert_eq!(ready(&anew), ready(&world));
    }
}
