//! What the announcer is told.

mod reported;

use std::net::Ipv4Addr;

use sluice_abi::AnnouncedWord;
use sluice_api::{
    AddressGroup, Authority, DecidedL2, ExternalTrafficPolicy, GroupRole, GroupStatus, MacAddress,
    Peer, PeerInterface, UnheldReason,
};
use sluice_election::{Candidate, Health, Obstacle};
use sluice_planner::Mac;

use super::*;
use crate::announce::{Cause, Group, GroupState, Told, Unheld};
use crate::source::Announcing;

const MINUTE: Duration = Duration::from_mins(1);

/// A virtual server whose VIP is in a group of the pool `edge`.
fn announced(revision: u64, servers: &[&str]) -> Event {
    grouped(revision, servers, "edge-1", ExternalTrafficPolicy::Cluster)
}

fn grouped(revision: u64, servers: &[&str], group: &str, policy: ExternalTrafficPolicy) -> Event {
    let mut content = virtual_server();
    content.external_traffic_policy = policy;
    content.groups = vec![AddressGroup {
        address: content.addresses[0],
        group: group.to_owned(),
    }];
    let Event::Decided(mut changes) = decisions(revision, servers) else {
        unreachable!("decisions are decided")
    };
    let web = Some(Arc::new(decision(revision, content)));
    changes.virtual_servers = [(ObjectKey::new("shop", "web"), web)].into();
    Event::Decided(changes)
}

fn pool(change: impl FnOnce(&mut DecidedL2)) -> Input {
    let mut l2 = DecidedL2 {
        interfaces: Vec::new(),
        nodes: None,
        groups: 2,
        gateways: BTreeSet::new(),
    };
    change(&mut l2);
    Input::Source(Event::Announcing(Announcing {
        pools: [("edge".to_owned(), l2)].into(),
        all_on_link: false,
    }))
}

/// Other directors: d2 is steady, d3 is not, d4 may hold nothing.
fn directors() -> Input {
    let peer = |number: u8, steady, candidate| {
        let interface = PeerInterface {
            mac: MacAddress([2, 0, 0, 0, 0, number]),
            steady,
        };
        let peer = Peer {
            interfaces: [(UPLINK.to_owned(), interface)].into(),
            candidate,
            ..Peer::default()
        };
        (format!("d{number}"), peer)
    };
    let peers = [
        peer(2, true, true),
        peer(3, false, true),
        peer(4, true, false),
    ];
    Input::Source(Event::Peers(peers.into()))
}

/// A world that announces.
fn world() -> World {
    world_with(AnnounceOptions {
        stable_time: MINUTE,
        ..AnnounceOptions::default()
    })
}

fn world_with(options: AnnounceOptions) -> World {
    let mut world = World::with(options, Memory::default());
    world.tell(Input::SourceSynced(true));
    world.tell(Input::Source(node(1, XdpMode::Auto)));
    world.tell(directors());
    world.tell(Input::Source(Event::MayHold(true)));
    world.tell(pool(|_| ()));
    world.tell(Input::Source(announced(7, &[SERVER])));
    world.turn();
    world
}

fn group(world: &World) -> Option<&Group> {
    group_of(world, "edge-1")
}

fn group_of<'a>(world: &'a World, name: &str) -> Option<&'a Group> {
    let plan = world.plan.as_ref().expect("a plan");
    plan.groups.get(name)
}

/// The candidates, with a star if they are steady.
fn candidates(world: &World) -> String {
    candidates_of(world, "edge-1")
}

fn candidates_of(world: &World, group: &str) -> String {
    let candidates = group_of(world, group).expect("the group").candidates.iter();
    let text = |Candidate { name, steady }: &Candidate| {
        format!("{name}{}", if *steady { "*" } else { "" })
    };
    candidates.map(text).collect::<Vec<_>>().join(" ")
}

/// Turns once a second.
fn wait(world: &mut World, time: Duration) {
    for _ in 0..time.as_secs() {
        world.after(Duration::from_secs(1));
    }
}

#[test]
fn a_group_is_announced_on_the_uplinks_by_whoever_may() {
    let world = world();
    let group = group(&world).expect("the group");
    assert_eq!(group.uplinks, [UPLINK_INDEX].into());
    assert_eq!(group.vips.iter().collect::<Vec<_>>(), [&ip("203.0.113.1")]);
    assert_eq!(group.health, Health::Whole);
    assert_eq!(candidates(&world), "d2* d3 d1");
    let plan = world.plan.as_ref().expect("a plan");
    assert_eq!(plan.peers.len(), 3, "also who may hold nothing may answer");
    assert_eq!(plan.uplinks[&UPLINK_INDEX].sender.mac.0, [2, 0, 0, 0, 0, 1]);
}

#[test]
fn the_announcer_is_told_of_changes_only() {
    let mut world = world();
    let told = |effects: Vec<String>| effects.iter().any(|effect| effect == "Announce");
    assert!(!told(world.after(Duration::from_secs(1))));
    world.tell(directors());
    assert!(!told(world.turn()), "they are the same");
    world.tell(Input::Source(decisions(8, &[SERVER])));
    assert!(told(world.turn()));
    assert_eq!(group(&world), None, "its only VIP has no group any more");
}

#[test]
fn a_node_is_steady_when_its_uplinks_were_whole_for_a_minute() {
    let mut world = world();
    wait(&mut world, Duration::from_secs(59));
    assert_eq!(candidates(&world), "d2* d3 d1");
    wait(&mut world, Duration::from_secs(1));
    assert_eq!(candidates(&world), "d2* d3 d1*");
    wait(&mut world, Duration::from_secs(2));
    let status = world.status.clone().expect("a status");
    assert!(status.interfaces.iter().all(|uplink| uplink.steady));
    world.hear(link(UPLINK_INDEX, UPLINK, false));
    assert_eq!(
        group(&world).map(|group| group.health),
        Some(Health::Broken)
    );
    world.hear(link(UPLINK_INDEX, UPLINK, true));
    assert_eq!(group(&world).map(|group| group.health), Some(Health::Whole));
    assert_eq!(candidates(&world), "d2* d3 d1");
}

#[test]
fn an_uplink_that_is_back_is_whole_when_its_servers_are_resolved() {
    let mut world = world();
    let health = |world: &World| group(world).map(|group| group.health);
    let lose = |world: &mut World| {
        world.notice(super::neighbour(SERVER, Nud::None));
        world.hear(link(UPLINK_INDEX, UPLINK, false));
        assert_eq!(health(world), Some(Health::Broken));
    };
    lose(&mut world);
    world.hear(link(UPLINK_INDEX, UPLINK, true));
    assert_eq!(health(&world), Some(Health::Broken));
    world.hear(super::neighbour(SERVER, Nud::Reachable));
    assert_eq!(health(&world), Some(Health::Whole));
    world.hear(super::neighbour(SERVER, Nud::Failed));
    assert_eq!(health(&world), Some(Health::Whole), "servers may die");
    // A server that does not answer is not waited for any longer.
    lose(&mut world);
    world.hear(link(UPLINK_INDEX, UPLINK, true));
    world.after(Duration::from_millis(900));
    assert_eq!(health(&world), Some(Health::Broken));
    assert!(world.pause() <= Some(Duration::from_millis(100)));
    world.after(Duration::from_millis(100));
    assert_eq!(health(&world), Some(Health::Whole));
}

#[test]
fn who_is_drained_or_not_allowed_is_no_candidate() {
    let mut world = world();
    world.tell(Input::Source(Event::MayHold(false)));
    world.turn();
    assert_eq!(candidates(&world), "d2* d3");
    world.tell(Input::Source(Event::MayHold(true)));
    let Event::Node(mut drained) = node(2, XdpMode::Auto) else {
        unreachable!("it is a node")
    };
    drained.spec.drain = true;
    world.tell(Input::Source(Event::Node(drained)));
    world.turn();
    assert_eq!(candidates(&world), "d2* d3");
    world.tell(Input::Source(node(3, XdpMode::Auto)));
    world.turn();
    assert_eq!(candidates(&world), "d2* d3 d1");
}

/// The pool is announced on eth0, and servers are behind br0 too.
#[test]
fn who_lost_an_uplink_that_others_have_is_no_candidate() {
    let mut world = world();
    let Event::Node(mut two) = node(2, XdpMode::Auto) else {
        unreachable!("it is a node")
    };
    two.spec.interfaces.push(BRIDGE.to_owned());
    world.tell(Input::Source(Event::Node(two)));
    world.tell(pool(|l2| l2.interfaces = vec![UPLINK.to_owned()]));
    let peer = |number: u8, steady| {
        let interface = |steady| PeerInterface {
            mac: MacAddress([2, 0, 0, 0, 0, number]),
            steady,
        };
        let interfaces = [(UPLINK, true), (BRIDGE, steady)];
        let interfaces = interfaces.map(|(name, steady)| (name.to_owned(), interface(steady)));
        let peer = Peer {
            interfaces: interfaces.into(),
            candidate: true,
            ..Peer::default()
        };
        (format!("d{number}"), peer)
    };
    let tell = |world: &mut World, steady: [bool; 2]| {
        let peers = [peer(2, steady[0]), peer(3, steady[1])];
        world.tell(Input::Source(Event::Peers(peers.into())));
        world.turn();
    };
    tell(&mut world, [true, false]);
    wait(&mut world, MINUTE + Duration::from_secs(1));
    assert_eq!(candidates(&world), "d2* d3 d1*");
    world.hear(link(BRIDGE_INDEX, BRIDGE, false));
    world.turn();
    assert_eq!(candidates(&world), "d2* d3");
    // What nobody has is no reason to hand over.
    tell(&mut world, [false, false]);
    assert_eq!(candidates(&world), "d2* d3* d1*");
    tell(&mut world, [true, true]);
    assert_eq!(candidates(&world), "d2* d3*");
    world.hear(link(BRIDGE_INDEX, BRIDGE, true));
    world.turn();
    assert_eq!(candidates(&world), "d2* d3* d1");
}

/// d2 and d3 have servers at their own addresses, and so has this node.
#[test]
fn with_the_policy_local_those_with_servers_are_candidates() {
    let mut world = world();
    let group = "edge-128";
    let servers = [("d2", "10.0.0.22"), ("d3", "10.0.0.33")];
    let peer = |(name, address): &(&str, &str)| {
        let interface = PeerInterface {
            mac: MacAddress([2, 0, 0, 0, 0, 9]),
            steady: true,
        };
        let peer = Peer {
            interfaces: [(UPLINK.to_owned(), interface)].into(),
            candidate: true,
            addresses: [ip(address)].into(),
            ..Peer::default()
        };
        ((*name).to_owned(), peer)
    };
    let peers = servers.iter().map(peer).collect();
    world.tell(Input::Source(Event::Peers(peers)));
    wait(&mut world, MINUTE);
    let mut revision = 8;
    let mut ask = |world: &mut World, servers: &[&str]| {
        revision += 1;
        let policy = ExternalTrafficPolicy::Local;
        world.tell(Input::Source(grouped(revision, servers, group, policy)));
        world.turn();
        candidates_of(world, group)
    };
    // None is steady: who has the group keeps it.
    assert_eq!(
        ask(&mut world, &["10.0.0.22", "10.0.0.33", OWN]),
        "d2 d3 d1"
    );
    assert_eq!(ask(&mut world, &["10.0.0.33", SERVER]), "d3");
    assert_eq!(ask(&mut world, &[OWN]), "d1");
    assert_eq!(ask(&mut world, &[SERVER]), "", "nobody's");
    world.tell(Input::Announcer(Box::new(Told {
        unheld: [(
            group.to_owned(),
            Unheld {
                since: Timestamp::UNIX_EPOCH,
                cause: Some(Cause::Obstacle(Obstacle::NoCandidate)),
            },
        )]
        .into(),
        ..Told::default()
    })));
    wait(&mut world, Duration::from_secs(2));
    let status = world.status.expect("a status");
    let reason = status.unheld_groups[0].reason;
    assert_eq!(reason, Some(UnheldReason::NoLocalServer));
}

#[test]
fn a_pool_says_which_nodes_and_uplinks_announce_it() {
    let mut world = world();
    world.tell(pool(|l2| {
        l2.nodes = Some(vec!["d1".to_owned(), "d3".to_owned()]);
    }));
    world.turn();
    assert_eq!(candidates(&world), "d3 d1");
    world.tell(pool(|l2| l2.nodes = Some(vec!["d2".to_owned()])));
    world.turn();
    assert_eq!(group(&world), None, "others announce it");
    world.tell(pool(|l2| l2.interfaces = vec!["eth9".to_owned()]));
    world.turn();
    let unfit = group(&world).expect("the group");
    assert_eq!(unfit.health, Health::Broken, "it has no such uplink");
    assert!(unfit.uplinks.is_empty());
    world.tell(pool(|l2| l2.groups = 1));
    world.turn();
    assert_eq!(group(&world), None, "the pool has no such group any more");
}

#[test]
fn a_gateway_of_nat_servers_moves_with_the_first_group() {
    let gateway = ip("10.0.0.254");
    let mut world = world();
    world.hear(network::address(UPLINK_INDEX, Ipv4Addr::new(10, 0, 0, 9)));
    let with_gateway = |interface: &str, gateway: IpAddr| {
        pool(|l2| {
            l2.groups = 1;
            l2.interfaces = vec![interface.to_owned()];
            l2.gateways = [gateway].into();
        })
    };
    world.tell(with_gateway(UPLINK, gateway));
    world.turn();
    let first = group_of(&world, "edge-0").expect("the group, though it has no VIP");
    assert_eq!(*first.vips, [gateway].into());
    assert_eq!(first.health, Health::Whole);
    assert_eq!(
        candidates_of(&world, "edge-0"),
        "d1",
        "others have no address in its network"
    );
    let words: Vec<_> = world.maps.announced.values().collect();
    assert!(words.len() == 1 && words[0].is_router(), "{words:?}");

    // The VIPs are on another uplink, which is not there.
    world.tell(with_gateway("eth9", gateway));
    world.turn();
    let only = group_of(&world, "edge-0").expect("the group");
    assert_eq!(only.only_gateways, [UPLINK_INDEX].into());
    assert_eq!(only.health, Health::Broken);

    world.tell(with_gateway(UPLINK, ip("10.9.0.254")));
    wait(&mut world, Duration::from_secs(2));
    assert_eq!(
        candidates_of(&world, "edge-0"),
        "d2* d3",
        "others know where they are"
    );
    assert!(world.maps.announced.is_empty());
    let status = world.status.as_ref().expect("a status");
    let message = &status.conditions[0].message;
    assert!(message.contains("the gateway 10.9.0.254"), "{message}");
    world.tell(pool(|_| ()));
    world.turn();
    assert_eq!(group_of(&world, "edge-0"), None);
}

#[test]
fn what_an_earlier_agent_remembered_stands_until_everything_is_in_place() {
    let options = AnnounceOptions {
        is_remembered: true,
        ..AnnounceOptions::default()
    };
    assert!(world_with(options.clone()).plan.is_some());

    let mut world = World::with(options, Memory::default());
    world.failing = ["Apply", "Attach"].into();
    world.tell(Input::SourceSynced(true));
    world.tell(Input::Source(node(1, XdpMode::Auto)));
    world.tell(Input::Source(Event::MayHold(true)));
    world.tell(pool(|_| ()));
    world.tell(Input::Source(announced(7, &[SERVER])));
    wait(&mut world, MINUTE);
    assert_eq!(world.plan, None, "the decisions are not in force");
    world.failing = ["Attach"].into();
    wait(&mut world, Duration::from_secs(1));
    assert_eq!(world.plan, None, "nor are programs attached");
    wait(&mut world, Duration::from_secs(6));
    let health = group(&world).expect("a plan in the end").health;
    assert_eq!(health, Health::Broken);
}

#[test]
fn programs_and_maps_must_be_there() {
    let mut world = world();
    world.failing.insert("Apply");
    world.tell(Input::Source(announced(8, &[SERVER, POD])));
    world.turn();
    assert_eq!(
        group(&world).map(|group| group.health),
        Some(Health::Broken)
    );
    world.failing.clear();
    world.after(Duration::from_secs(1));
    assert_eq!(group(&world).map(|group| group.health), Some(Health::Whole));
}

#[test]
fn status_tells_this_nodes_part() {
    let mut world = world();
    let held = GroupState::Holder(sluice_election::Authority::Lease);
    let groups = [
        ("edge-0".to_owned(), GroupState::Candidate),
        ("edge-1".to_owned(), held),
    ];
    world.tell(Input::Announcer(Box::new(Told {
        groups: groups.into(),
        ..Told::default()
    })));
    let gateway = ip("10.0.0.1");
    world.tell(Input::GatewaysRead(Ok(vec![(UPLINK_INDEX, gateway)])));
    wait(&mut world, Duration::from_secs(2));
    let status = world.status.expect("a status");
    let entry = |name: &str, role, authority| GroupStatus {
        name: name.to_owned(),
        role,
        authority,
    };
    assert_eq!(
        status.groups,
        [
            entry("edge-0", GroupRole::Candidate, None),
            entry("edge-1", GroupRole::Holder, Some(Authority::Lease)),
        ]
    );
    let mac = Some(MacAddress([2, 0, 0, 0, 0, 1]));
    assert_eq!(status.interfaces[0].mac_address, mac);
    assert_eq!(status.interfaces[0].gateways, [gateway]);
}

/// The groups under which the maps know the VIP.
fn groups_in_maps(world: &World) -> Vec<u32> {
    let words = world.maps.announced.values();
    words.map(|word| word.group()).collect()
}

fn told_free(vips: &[IpAddr]) -> Input {
    Input::Announcer(Box::new(Told {
        free: vips.iter().copied().collect(),
        ..Told::default()
    }))
}

#[test]
fn a_new_vip_is_answered_for_when_nobody_else_has_it() {
    let vip = ip("203.0.113.1");
    let no_group = vec![u32::from(AnnouncedWord::NO_GROUP)];
    let mut world = world();
    let held = GroupState::Holder(sluice_election::Authority::Lease);
    let holds = |free: &[IpAddr]| {
        Input::Announcer(Box::new(Told {
            groups: [("edge-1".to_owned(), held)].into(),
            free: free.iter().copied().collect(),
            ..Told::default()
        }))
    };
    world.tell(holds(&[]));
    wait(&mut world, Duration::from_secs(2));
    let reported = |world: &World| world.status.clone().expect("a status").new_addresses;
    assert_eq!(reported(&world), [vip]);
    assert_eq!(groups_in_maps(&world), no_group);
    assert_eq!(group(&world).expect("the group").new, [vip].into());
    world.tell(told_free(&[ip("203.0.113.9")]));
    world.turn();
    assert_eq!(groups_in_maps(&world), no_group);
    world.tell(holds(&[vip]));
    world.turn();
    assert_eq!(groups_in_maps(&world), [0]);
    wait(&mut world, Duration::from_secs(2));
    assert_eq!(reported(&world), [IpAddr::V4(Ipv4Addr::UNSPECIFIED); 0]);
    let of_group = group(&world).expect("the group");
    assert!(of_group.new.is_empty());
    assert_eq!(*of_group.answered(), [vip].into());
    // What the announcer found long ago says nothing of a VIP that comes back.
    world.tell(Input::Source(decisions(8, &[SERVER])));
    world.turn();
    assert!(groups_in_maps(&world).is_empty());
    world.tell(Input::Source(announced(9, &[SERVER])));
    world.turn();
    assert_eq!(groups_in_maps(&world), no_group);
}

#[test]
fn a_vip_that_an_earlier_agent_answered_for_is_not_new() {
    let vip = ip("203.0.113.1");
    let options = AnnounceOptions {
        answered: [vip].into(),
        ..AnnounceOptions::default()
    };
    let world = world_with(options);
    assert_eq!(groups_in_maps(&world), [0]);
    assert!(group(&world).expect("the group").new.is_empty());
}
