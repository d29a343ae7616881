//! The core against a world of values: every effect is noted and answered at once, in words.

mod announce;
mod deltas;
mod health;
mod network;
mod program;
mod report;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState as Nud,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use sluice_api::jiff::Timestamp;
use sluice_api::{
    DecidedRealServerPool, DecidedServer, DecidedVirtualServer, Decision, LoadBalancerNode,
    LoadBalancerNodeSpec, LoadBalancerNodeStatus, NodeRole, ObjectKey, PoolDecision, XdpMode,
};
use sluice_planner::Image;

use super::{
    AnnounceOptions, Attachment, Core, Effect, Input, LeaveError, Now, Phase, Place, Wanted,
};
use crate::announce::Plan;
use crate::fixtures::{LIMITS, virtual_server};
use crate::health::Memory;
use crate::maps::{self, Attached, Hook, Mode};
use crate::netlink::{self, Route, Settings, Table};
use crate::source::{Changes, Event, Mark};
use crate::state::Published;

const UPLINK: &str = "eth0";
const UPLINK_INDEX: u32 = 2;
const BRIDGE: &str = "br0";
const BRIDGE_INDEX: u32 = 3;
/// Beyond the uplink.
const SERVER: &str = "10.0.0.2";
/// The node's own.
const OWN: &str = "10.0.0.9";
/// Behind the bridge.
const POD: &str = "10.244.0.2";

/// All that is around a core.
struct World {
    core: Core,
    now: Now,
    /// Effects that were carried out, in words, those of [`Effect::Publish`] and [`Effect::ReadSettings`] aside.
    done: Vec<String>,
    table: Table,
    routes: BTreeMap<IpAddr, Route>,
    /// Effects that fail, by their first word.
    failing: BTreeSet<&'static str>,
    /// Index of the interface through which the default route leads.
    gateway: u32,
    /// Settings of every interface.
    settings: Settings,
    attached: BTreeSet<(Hook, String)>,
    /// The content of the maps.
    maps: Image,
    published: Published,
    plan: Option<Plan>,
    status: Option<LoadBalancerNodeStatus>,
}

impl World {
    /// A node with an uplink and a bridge.
    fn new(before: LoadBalancerNodeStatus) -> Self {
        Self::of(before, AnnounceOptions::default(), Memory::default())
    }

    /// The same where no agent ran before, or where one did that knew servers to be down.
    fn with(options: AnnounceOptions, health: Memory) -> Self {
        Self::of(LoadBalancerNodeStatus::default(), options, health)
    }

    fn of(before: LoadBalancerNodeStatus, options: AnnounceOptions, health: Memory) -> Self {
        let release = "6.1".to_owned();
        Self::around(Core::new("d1", release, LIMITS, before, options, health))
    }

    fn around(core: Core) -> Self {
        let mut table = Table::default();
        for (ifindex, name) in [(UPLINK_INDEX, UPLINK), (BRIDGE_INDEX, BRIDGE)] {
            table.apply(&link(ifindex, name, true));
        }
        table.apply(&neighbour(SERVER, Nud::Reachable));
        let routes = [(SERVER, UPLINK_INDEX), (POD, BRIDGE_INDEX)];
        let mut routes: BTreeMap<_, _> = routes.map(|(to, through)| (ip(to), out(through))).into();
        routes.insert(ip(OWN), Route::Local);
        Self {
            core,
            now: Now {
                instant: Instant::now(),
                time: Timestamp::UNIX_EPOCH,
            },
            done: Vec::new(),
            table,
            routes,
            failing: BTreeSet::new(),
            settings: Settings::default(),
            gateway: BRIDGE_INDEX,
            attached: BTreeSet::new(),
            maps: Image::default(),
            published: Published::default(),
            plan: None,
            status: None,
        }
    }

    /// A world whose core knows that it is a director.
    fn of_director() -> Self {
        let mut world = Self::new(LoadBalancerNodeStatus::default());
        world.tell(Input::SourceSynced(true));
        world.tell(Input::Source(node(1, XdpMode::Auto)));
        world
    }

    /// A world whose core has brought about what was decided for `servers`, by revision 7, and has reported it.
    fn settled(servers: &[&str]) -> Self {
        let mut world = Self::of_director();
        world.tell(Input::Source(decisions(7, servers)));
        world.turn();
        world.after(Duration::from_millis(200));
        world
    }

    /// Gives the core an input and answers what it wants done.
    fn tell(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for effect in self.core.on(input, self.now) {
                if !matches!(effect, Effect::Publish(_) | Effect::ReadSettings(_)) {
                    self.done.push(name(&effect));
                }
                inputs.extend(self.answer(effect));
            }
        }
    }

    /// Gives the core one turn and returns the effects.
    fn turn(&mut self) -> Vec<String> {
        self.done.clear();
        self.tell(Input::Turn);
        std::mem::take(&mut self.done)
    }

    /// Gives the core one turn at a later time and returns the effects.
    fn after(&mut self, time: Duration) -> Vec<String> {
        self.now.instant += time;
        self.now.time += time;
        self.turn()
    }

    /// Tells the core of a change of the network, gives it one turn and returns the effects of that turn.
    fn hear(&mut self, message: RouteNetlinkMessage) -> Vec<String> {
        self.notice(message);
        self.turn()
    }

    /// The core hears of a change of the network.
    fn notice(&mut self, message: RouteNetlinkMessage) {
        self.table.apply(&message);
        self.tell(Input::Netlink(Box::new(message)));
    }

    /// Time until the next turn is due.
    fn pause(&self) -> Option<Duration> {
        let deadline = self.core.next_deadline(self.now.instant);
        deadline.map(|at| at.saturating_duration_since(self.now.instant))
    }

    /// The content of the maps by the last plan.
    fn planned(&self) -> Image {
        let Phase::Working(working) = &self.core.0 else {
            unreachable!("a detached node has no maps")
        };
        let planner = working.program.tables.planner().read();
        planner.image().clone()
    }

    fn not_ready(&self) -> String {
        self.published.not_ready.join("; ")
    }

    fn attach(&mut self, attachment: Attachment) -> Input {
        let (hooks, mode) = match attachment.programs {
            Wanted::Uplink { .. } => (&Hook::ALL[..], Some(Mode::Native)),
            Wanted::Bridge => (&[Hook::Ingress][..], None),
        };
        let is_bridge = matches!(attachment.programs, Wanted::Bridge);
        let fails =
            self.failing.contains("Attach") || is_bridge && self.failing.contains("AttachBridge");
        let outcome = if fails {
            Err(map_error())
        } else {
            let programs = hooks.iter().map(|h| (*h, attachment.interface.clone()));
            self.attached.extend(programs);
            Ok(Attached {
                mode,
                reason: None,
                tc_by_link: true,
            })
        };
        Input::Attached {
            attachment,
            outcome,
        }
    }

    fn answer(&mut self, effect: Effect) -> Option<Input> {
        let failing = |what: &str| self.failing.contains(what);
        Some(match effect {
            Effect::ReadTable if failing("ReadTable") => Input::TableRead(Err(netlink_error())),
            Effect::ReadTable => Input::TableRead(Ok(self.table.clone())),
            Effect::ReadGateways => {
                Input::GatewaysRead(Ok(vec![(self.gateway, ip("10.244.0.254"))]))
            }
            Effect::FindRoutes(addresses) => {
                let find = |to: IpAddr| {
                    if failing("FindRoutes") {
                        return (to, Err(netlink_error()));
                    }
                    (to, Ok(self.routes.get(&to).copied().unwrap_or(Route::None)))
                };
                Input::RoutesFound(addresses.into_iter().map(find).collect())
            }
            Effect::ReadSettings(uplinks) => {
                let settings = uplinks.into_iter().map(|name| (name, self.settings));
                Input::SettingsRead(settings.collect())
            }
            Effect::ReadImage if failing("ReadImage") => Input::ImageRead(Err(map_error())),
            Effect::ReadImage => Input::ImageRead(Ok(self.maps.clone())),
            Effect::Apply(_) if failing("Apply") => Input::Applied(Err(map_error())),
            Effect::Apply(_) => {
                self.maps = self.planned();
                Input::Applied(Ok(()))
            }
            Effect::LookForPrograms(places) => {
                let gone = |place: &Place| {
                    let program = (place.hook, place.interface.clone());
                    !self.attached.contains(&program)
                };
                Input::ProgramsGone(places.into_iter().filter(gone).collect())
            }
            Effect::Attach(attachment) => self.attach(attachment),
            Effect::ListAttached => {
                Input::AttachedListed(Ok(self.attached.iter().cloned().collect()))
            }
            Effect::Detach(programs) => {
                self.attached.retain(|program| !programs.contains(program));
                Input::Detached(Ok(()))
            }
            Effect::LeaveNode if failing("LeaveNode") => {
                Input::NodeLeft(Err(LeaveError::Maps(map_error())))
            }
            Effect::LeaveNode => Input::NodeLeft(Ok(vec!["xdp of eth0".to_owned()])),
            Effect::Publish(published) => {
                self.published = *published;
                return None;
            }
            Effect::Announce(plan) => {
                self.plan = Some(*plan);
                return None;
            }
            Effect::WriteStatus(status) => {
                self.status = Some(*status);
                return None;
            }
            Effect::KeepNeighbour(..) | Effect::ReleaseNeighbour(..) | Effect::Check(_) => {
                return None;
            }
        })
    }
}

/// An effect in words.
fn name(effect: &Effect) -> String {
    match effect {
        Effect::ReadTable => "ReadTable".to_owned(),
        Effect::ReadGateways => "ReadGateways".to_owned(),
        Effect::FindRoutes(to) => {
            let to: Vec<String> = to.iter().map(ToString::to_string).collect();
            format!("FindRoutes {}", to.join(","))
        }
        Effect::KeepNeighbour(_, address) => format!("KeepNeighbour {address}"),
        Effect::ReleaseNeighbour(_, address) => format!("ReleaseNeighbour {address}"),
        Effect::ReadSettings(uplinks) => format!("ReadSettings {}", uplinks.join(",")),
        Effect::ReadImage => "ReadImage".to_owned(),
        Effect::Apply(operations) if operations.is_empty() => "Apply nothing".to_owned(),
        Effect::Apply(_) => "Apply".to_owned(),
        Effect::LookForPrograms(places) => format!("LookForPrograms {}", places.len()),
        Effect::Attach(attachment) => format!("Attach {}", attachment.interface),
        Effect::ListAttached => "ListAttached".to_owned(),
        Effect::Detach(programs) => {
            let name =
                |(hook, interface): &(Hook, String)| format!("{} of {interface}", hook.name());
            let programs: Vec<String> = programs.iter().map(name).collect();
            format!("Detach {}", programs.join(","))
        }
        Effect::LeaveNode => "LeaveNode".to_owned(),
        Effect::Announce(_) => "Announce".to_owned(),
        Effect::Check(changes) => {
            let checks = changes.iter().map(|(pool, wanted)| match wanted {
                None => format!("{pool} not"),
                Some(wanted) => {
                    let servers: Vec<String> =
                        wanted.servers.iter().map(ToString::to_string).collect();
                    format!("{pool} at {}", servers.join(","))
                }
            });
            format!("Check {}", checks.collect::<Vec<_>>().join("; "))
        }
        Effect::Publish(_) => "Publish".to_owned(),
        Effect::WriteStatus(_) => "WriteStatus".to_owned(),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn out(ifindex: u32) -> Route {
    Route::Out {
        ifindex,
        gateway: None,
        source: Some(ip("10.0.0.1")),
        mtu: None,
    }
}

fn link(ifindex: u32, name: &str, up: bool) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.header.link_layer_type = LinkLayerType::Ether;
    if up {
        message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
    }
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
        LinkAttribute::Mtu(1500),
    ];
    RouteNetlinkMessage::NewLink(message)
}

fn neighbour(address: &str, state: Nud) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = UPLINK_INDEX;
    message.header.state = state;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address.parse().unwrap())),
        NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 7]),
    ];
    RouteNetlinkMessage::NewNeighbour(message)
}

fn netlink_error() -> netlink::Error {
    netlink::Error::Socket {
        action: "look",
        source: io::Error::other("no"),
    }
}

fn map_error() -> maps::Error {
    maps::Error::System {
        action: "do it".to_owned(),
        source: io::Error::other("no"),
    }
}

/// This node is a director over the uplink.
fn node(generation: i64, xdp_mode: XdpMode) -> Event {
    let spec = LoadBalancerNodeSpec {
        role: NodeRole::Director,
        interfaces: vec![UPLINK.to_owned()],
        xdp_mode,
        drain: false,
    };
    let mut node = LoadBalancerNode::new("d1", spec);
    node.metadata.generation = Some(generation);
    Event::Node(Box::new(node))
}

fn decision(revision: u64, content: DecidedVirtualServer) -> Decision {
    Decision {
        revision,
        complete_revision: revision,
        generation: 1,
        content,
    }
}

fn pool_decision(revision: u64, servers: &[&str]) -> PoolDecision {
    let server = |address: &&str| DecidedServer {
        name: (*address).to_owned(),
        address: ip(address),
        weight: 1,
        target_ports: Vec::new(),
    };
    PoolDecision {
        revision,
        complete_revision: revision,
        generation: 1,
        content: DecidedRealServerPool {
            servers: servers.iter().map(server).collect(),
            ..DecidedRealServerPool::default()
        },
    }
}

/// One virtual server over one pool of these servers.
fn decisions(revision: u64, servers: &[&str]) -> Event {
    let virtual_server = decision(revision, virtual_server());
    let pool = pool_decision(revision, servers);
    Event::Decided(Changes {
        virtual_servers: [(
            ObjectKey::new("shop", "web"),
            Some(Arc::new(virtual_server)),
        )]
        .into(),
        pools: [(ObjectKey::new("shop", "v1"), Some(Arc::new(pool)))].into(),
        slices: BTreeMap::new(),
        mark: Mark {
            revision,
            pool_revision: revision,
            missed: Vec::new(),
        },
    })
}
