//! The core's inputs and outputs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use netlink_packet_route::RouteNetlinkMessage;
use sluice_api::jiff::Timestamp;
use sluice_api::{LoadBalancerNodeStatus, ObjectKey};
use sluice_planner::{Image, MapOp};

use crate::announce::{Plan, Told};
use crate::health;
use crate::maps::{self, Attached, Hook, Mode, XdpChoice};
use crate::netlink::{self, Route, Settings, Table};
use crate::source::Event;
use crate::state::Published;

/// The present, by both clocks of this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// By the monotonic clock: decides.
    pub instant: Instant,
    /// By the wall clock: stands in status, for people.
    pub time: Timestamp,
}

/// An input of the core: news, or the outcome of an effect.
#[derive(Debug)]
pub enum Input {
    /// News of a source.
    Source(Event),
    /// Whether the source knows the newest of everything.
    SourceSynced(bool),
    /// Why the admin endpoint cannot listen where it should; empty: it does.
    DoorsClosed(Vec<String>),
    /// News of the kernel's network.
    Netlink(Box<RouteNetlinkMessage>),
    /// News of the kernel's network was lost.
    NetlinkLost,
    /// News of the announcer.
    Announcer(Box<Told>),
    /// News of the checker.
    Checker(Box<health::Told>),
    /// News ends for now, or a deadline has passed: whatever is due is to be done.
    Turn,
    /// Of [`Effect::ReadTable`].
    TableRead(Result<Table, netlink::Error>),
    /// Of [`Effect::ReadGateways`].
    GatewaysRead(Result<Vec<(u32, IpAddr)>, netlink::Error>),
    /// Of [`Effect::FindRoutes`].
    RoutesFound(Vec<(IpAddr, Result<Route, netlink::Error>)>),
    /// Of [`Effect::ReadSettings`], by interface.
    SettingsRead(BTreeMap<String, Settings>),
    /// Of [`Effect::ReadImage`].
    ImageRead(Result<Image, maps::Error>),
    /// Of [`Effect::Apply`].
    Applied(Result<(), maps::Error>),
    /// Of [`Effect::LookForPrograms`]: those that are gone from interfaces that are there.
    ProgramsGone(Vec<Place>),
    /// Of [`Effect::Attach`].
    Attached {
        /// The programs that were to be attached, and the interface.
        attachment: Attachment,
        /// The way they were attached, or the error.
        outcome: Result<Attached, maps::Error>,
    },
    /// Of [`Effect::ListAttached`].
    AttachedListed(Result<Vec<(Hook, String)>, maps::Error>),
    /// Of [`Effect::Detach`].
    Detached(Result<(), maps::Error>),
    /// Of [`Effect::LeaveNode`]: what was removed, in words.
    NodeLeft(Result<Vec<String>, LeaveError>),
}

/// An action that the core wants done. Effects are carried out in order, and each that has an outcome is followed by it.
#[derive(Debug)]
pub enum Effect {
    /// Read all links, addresses and neighbours.
    ReadTable,
    /// Read the gateways of the default routes.
    ReadGateways,
    /// Look up the routes to these addresses.
    FindRoutes(Vec<IpAddr>),
    /// Read settings of these interfaces.
    ReadSettings(Vec<String>),
    /// Have the kernel resolve a neighbour now and keep it fresh. Has no outcome.
    KeepNeighbour(u32, IpAddr),
    /// Let a neighbour go that an agent registered. Has no outcome.
    ReleaseNeighbour(u32, IpAddr),
    /// Read the maps back, once no packet holds what they held before.
    ReadImage,
    /// Write the maps.
    Apply(Vec<MapOp>),
    /// Look whether what was attached still is.
    LookForPrograms(Vec<Place>),
    /// Attach programs to an interface.
    Attach(Attachment),
    /// List what is attached, by this process or an earlier one.
    ListAttached,
    /// Take programs off interfaces.
    Detach(Vec<(Hook, String)>),
    /// Have VIPs announced by this plan. Has no outcome.
    Announce(Box<Plan>),
    /// Have the servers of these pools checked; `None`: no more. Has no outcome.
    Check(Vec<(ObjectKey, Option<health::PoolChecks>)>),
    /// Hand VIP groups over, and take programs, maps, pins, registered neighbours and multicast groups off the node.
    LeaveNode,
    /// Show what is. Has no outcome.
    Publish(Box<Published>),
    /// Write this node's status. Has no outcome.
    WriteStatus(Box<LoadBalancerNodeStatus>),
}

/// Where a program is attached.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    /// The hook.
    pub hook: Hook,
    /// Name of the interface.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
}

/// Programs that an interface shall have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    /// Name of the interface.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// Which programs.
    pub programs: Wanted,
}

/// Which programs an interface shall have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// All of them.
    Uplink {
        /// Where XDP shall run.
        choice: XdpChoice,
        /// Where it ran before this process attached it.
        found: Option<Mode>,
    },
    /// Those that take replies of servers behind it.
    Bridge,
}

/// Why a node could not be left clean.
#[derive(thiserror::Error, Debug)]
pub enum LeaveError {
    /// Programs, maps or pins are there still.
    #[error(transparent)]
    Maps(#[from] maps::Error),
    /// Neighbours are registered still.
    #[error("cannot release neighbours: {0}")]
    Neighbours(#[from] netlink::Error),
}
