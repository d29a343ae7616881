//! The agent's core: inputs in, map operations out.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use sluice_agent::core::{AnnounceOptions, Core, Effect, Input, Now, Wanted};
use sluice_agent::health::Memory;
use sluice_agent::maps::{Attached, Mode};
use sluice_agent::netlink::{Route, Table};
use sluice_agent::source::{Changes, Event, Mark};
use sluice_api::jiff::Timestamp;
use sluice_api::{
    DecidedEndpoints, DecidedPool, DecidedPort, DecidedRealServerPool, DecidedVirtualServer,
    Decision, EndpointSource, ExternalTrafficPolicy, ForwardingMode, LoadBalancerNode,
    LoadBalancerNodeSpec, LoadBalancerNodeStatus, NodeRole, ObjectKey, PoolDecision, PoolSelection,
    Protocol, ServerSelection, WhenAllDown, XdpMode,
};
use sluice_planner::{Image, Limits, MapOp, Slice, SliceEndpoint, SliceOwner};

use crate::figure::{Figure, Figures, memory_mb, processor_ms};

const SERVERS_OF_POOL: u32 = 10;
/// Servers on the link of the uplink; the others are behind a router.
const ON_LINK: u32 = 1_000;
/// Changes that a median is taken of.
const CHANGES: u32 = 21;
const UPLINK: u32 = 2;
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);

const LIMITS: Limits = Limits {
    vips: 32_768,
    replies: 262_144,
    locals: 4_096,
    peers: 1_024,
    peer_nets: 8_192,
    sources: 65_536,
    announced: 32_768,
    heads: 65_536,
    rings: 65_536,
    ring_slots: 1 << 26,
    servers: 1 << 18,
    records: 1 << 18,
    servers_each: 1 << 16,
    ring_slots_each: 1 << 24,
    sources_each: Limits::quota(65_536),
};

/// Measures the agent's core among so many virtual servers.
pub(crate) fn figures(virtual_servers: u32) -> Vec<Figure> {
    let mut figures = Figures::among(virtual_servers);
    let mut agent = Agent::new(virtual_servers);
    let ms = agent.begin();
    let memory = |field| memory_mb(process::id(), field);
    figures.add("agent: all planned from nothing", ms, "ms");
    figures.add("agent: memory", memory("VmRSS"), "MB");
    figures.add("agent: most memory", memory("VmHWM"), "MB");
    let servers = (virtual_servers * SERVERS_OF_POOL) as usize;
    assert_eq!(agent.servers(), servers, "all servers are in the maps");
    let mut measure = |case, change: fn(&mut Agent, u32) -> (f64, usize), writes: bool| {
        let cost = |number| {
            let (ms, operations) = change(&mut agent, number);
            assert_eq!(operations > 0, writes, "{case}: {operations} operations");
            ms
        };
        figures.add_median(case, (0..CHANGES).map(cost).collect(), "ms");
    };
    measure("agent: one endpoint changes", Agent::change_endpoint, true);
    measure(
        "agent: one neighbour changes",
        Agent::change_neighbour,
        true,
    );
    let route = Agent::change_route;
    measure("agent: a route that serves no server", route, false);
    figures.add("agent: memory after the changes", memory("VmRSS"), "MB");
    figures.list()
}

/// A core whose effects succeed.
struct Agent {
    /// Virtual servers, and as many pools.
    virtual_servers: u32,
    core: Core,
    now: Now,
    table: Table,
    questions: usize,
}

impl Agent {
    fn new(virtual_servers: u32) -> Self {
        let before = LoadBalancerNodeStatus::default();
        let mut table = Table::default();
        table.apply(&uplink());
        for server in 0..ON_LINK {
            table.apply(&neighbour(address(server), 1));
        }
        table.apply(&neighbour(ROUTER, 1));
        Self {
            virtual_servers,
            core: Core::new(
                "node",
                "6.18".to_owned(),
                LIMITS,
                before,
                AnnounceOptions::default(),
                Memory::default(),
            ),
            now: Now {
                instant: Instant::now(),
                time: Timestamp::UNIX_EPOCH,
            },
            table,
            questions: 0,
        }
    }

    /// Tells the core everything. Returns milliseconds of processor time.
    fn begin(&mut self) -> f64 {
        let spec = LoadBalancerNodeSpec {
            role: NodeRole::Director,
            interfaces: vec!["eth0".to_owned()],
            xdp_mode: XdpMode::Auto,
            drain: false,
        };
        let node = Event::Node(Box::new(LoadBalancerNode::new("node", spec)));
        let decided = Event::Decided(changes(self.virtual_servers));
        let inputs = [
            Input::SourceSynced(true),
            Input::Source(node),
            Input::Source(decided),
        ];
        let (ms, _) = self.tell(inputs);
        ms
    }

    /// One server of a pool begins to drain, or takes flows again.
    fn change_endpoint(&mut self, number: u32) -> (f64, usize) {
        let pool = number * 337 % self.virtual_servers;
        let mut slice = slice(pool);
        slice.endpoints[3].ready = false;
        let slice = (slice_key(pool), Some(Arc::new(slice)));
        let event = Event::Decided(Changes {
            slices: [slice].into(),
            mark: mark(),
            ..Changes::default()
        });
        self.tell([Input::Source(event)])
    }

    /// A server has another Ethernet address.
    fn change_neighbour(&mut self, number: u32) -> (f64, usize) {
        let message = neighbour(address(number * 37 % ON_LINK), 2);
        self.table.apply(&message);
        self.tell([Input::Netlink(Box::new(message))])
    }

    /// A route to where no server is comes.
    fn change_route(&mut self, number: u32) -> (f64, usize) {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = 24;
        let destination = Ipv4Addr::from(0xac10_0000 + (number << 8));
        message.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(destination))];
        let message = RouteNetlinkMessage::NewRoute(message);
        let before = self.questions;
        let cost = self.tell([Input::Netlink(Box::new(message))]);
        assert_eq!(self.questions, before, "the kernel is asked for nothing");
        cost
    }

    /// Gives the core inputs and a turn, and answers its effects. Returns milliseconds of processor time that the core took
    /// until it knew the last map operations, and how many there are.
    fn tell(&mut self, inputs: impl IntoIterator<Item = Input>) -> (f64, usize) {
        self.now.instant += Duration::from_millis(300);
        let mut inputs: VecDeque<Input> = inputs.into_iter().collect();
        inputs.push_back(Input::Turn);
        let (mut ms, mut operations) = (0.0, 0);
        while let Some(input) = inputs.pop_front() {
            let start = processor_ms();
            let effects = self.core.on(input, self.now);
            ms += processor_ms() - start;
            for effect in effects {
                if let Effect::Apply(writes) = &effect {
                    operations += writes.iter().filter(|w| **w != MapOp::Grace).count();
                }
                inputs.extend(self.answer(effect));
            }
        }
        (ms, operations)
    }

    fn answer(&mut self, effect: Effect) -> Option<Input> {
        Some(match effect {
            Effect::ReadTable => Input::TableRead(Ok(self.table.clone())),
            Effect::ReadGateways => Input::GatewaysRead(Ok(vec![(UPLINK, ROUTER.into())])),
            Effect::FindRoutes(addresses) => {
                self.questions += addresses.len();
                let found = addresses.into_iter().map(|to| (to, Ok(route(to))));
                Input::RoutesFound(found.collect())
            }
            Effect::ReadSettings(_) => Input::SettingsRead(std::collections::BTreeMap::new()),
            Effect::ReadImage => Input::ImageRead(Ok(Image::default())),
            Effect::Apply(_) => Input::Applied(Ok(())),
            Effect::LookForPrograms(_) => Input::ProgramsGone(Vec::new()),
            Effect::Attach(attachment) => {
                let uplink = matches!(attachment.programs, Wanted::Uplink { .. });
                let attached = Attached {
                    mode: uplink.then_some(Mode::Native),
                    reason: None,
                    tc_by_link: true,
                };
                Input::Attached {
                    attachment,
                    outcome: Ok(attached),
                }
            }
            Effect::ListAttached => Input::AttachedListed(Ok(Vec::new())),
            Effect::Detach(_) => Input::Detached(Ok(())),
            Effect::LeaveNode => Input::NodeLeft(Ok(Vec::new())),
            Effect::KeepNeighbour(..)
            | Effect::ReleaseNeighbour(..)
            | Effect::WriteStatus(_)
            | Effect::Announce(_)
            | Effect::Check(_)
            | Effect::Publish(_) => return None,
        })
    }

    /// How many servers are in the maps.
    fn servers(&mut self) -> usize {
        let effects = self.core.on(Input::Turn, self.now);
        let published = effects.into_iter().find_map(|effect| match effect {
            Effect::Publish(published) => Some(published),
            _ => None,
        });
        let planner = published.and_then(|published| published.planner);
        planner.map_or(0, |planner| planner.read().usage().servers)
    }
}

fn key(name: String) -> ObjectKey {
    ObjectKey {
        namespace: "scale".to_owned(),
        name,
    }
}

fn address(server: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + server)
}

fn mark() -> Mark {
    Mark {
        revision: 1,
        pool_revision: 1,
        missed: Vec::new(),
    }
}

/// Everything that is decided.
fn changes(virtual_servers: u32) -> Changes {
    let mut changes = Changes {
        mark: mark(),
        ..Changes::default()
    };
    for number in 0..virtual_servers {
        let decision = Decision {
            revision: 1,
            complete_revision: 1,
            generation: 1,
            content: virtual_server(number),
        };
        let name = key(format!("web-{number}"));
        changes
            .virtual_servers
            .insert(name, Some(Arc::new(decision)));
        let decision = PoolDecision {
            revision: 1,
            complete_revision: 1,
            generation: 1,
            content: DecidedRealServerPool {
                endpoints: Some(DecidedEndpoints {
                    source: EndpointSource::Service,
                    name: format!("pool-{number}"),
                    selector: None,
                    target_ports: Vec::new(),
                }),
                ..DecidedRealServerPool::default()
            },
        };
        let name = key(format!("pool-{number}"));
        changes.pools.insert(name, Some(Arc::new(decision)));
        let slice = Arc::new(slice(number));
        changes.slices.insert(slice_key(number), Some(slice));
    }
    changes
}

fn virtual_server(number: u32) -> DecidedVirtualServer {
    DecidedVirtualServer {
        addresses: vec![Ipv4Addr::from(0xcb00_0000 + number).into()],
        ports: vec![DecidedPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
        }],
        mode: ForwardingMode::FullNat,
        pool_selection: PoolSelection::Flow,
        server_selection: ServerSelection::Flow,
        external_traffic_policy: ExternalTrafficPolicy::Cluster,
        when_all_down: WhenAllDown::LastKnown,
        fallback: None,
        sources: None,
        pools: vec![DecidedPool {
            name: format!("pool-{number}"),
            weight: 1,
            spec_weight: 1,
        }],
        groups: Vec::new(),
    }
}

fn slice_key(pool: u32) -> (EndpointSource, ObjectKey) {
    (EndpointSource::Service, key(format!("pool-{pool}-abcde")))
}

fn slice(pool: u32) -> Slice {
    let endpoint = |i| SliceEndpoint {
        name: format!("pool-{pool}-5d4f8c7b9-{i}"),
        address: address(pool * SERVERS_OF_POOL + i).into(),
        pod_uid: None,
        node: None,
        ready: true,
        serving: true,
        terminating: false,
    };
    Slice {
        owner: SliceOwner {
            namespace: "scale".to_owned(),
            source: EndpointSource::Service,
            name: format!("pool-{pool}"),
        },
        ports: vec![("http".to_owned(), 8080)],
        endpoints: (0..SERVERS_OF_POOL).map(endpoint).collect(),
    }
}

fn route(to: IpAddr) -> Route {
    let on_link = to < IpAddr::from(address(ON_LINK));
    Route::Out {
        ifindex: UPLINK,
        gateway: (!on_link).then_some(ROUTER.into()),
        source: Some(Ipv4Addr::new(192, 168, 0, 2).into()),
        mtu: None,
    }
}

fn uplink() -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = UPLINK;
    message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
    message.attributes = vec![
        LinkAttribute::IfName("eth0".to_owned()),
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
        LinkAttribute::Mtu(1500),
    ];
    RouteNetlinkMessage::NewLink(message)
}

fn neighbour(address: Ipv4Addr, mac: u8) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = UPLINK;
    message.header.state = NeighbourState::Reachable;
    let octets = address.octets();
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
        NeighbourAttribute::LinkLayerAddress(vec![
            2, mac, octets[0], octets[1], octets[2], octets[3],
        ]),
    ];
    RouteNetlinkMessage::NewNeighbour(message)
}
