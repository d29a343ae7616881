//! What the core tells the announcer: everything that may be announced here, by whom else, and whether this node is fit to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use sluice_election::{Candidate, Health, Witness};
use sluice_planner::Mac;

use super::frame::Sender;
use crate::netlink::Prefix;

/// All there is to announce. The core sends another one whenever something in it has changed; parts that have not are shared.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    /// The uplinks that are there, by index.
    pub uplinks: BTreeMap<u32, Uplink>,
    /// The other directors.
    pub peers: Arc<Peers>,
    /// The VIP groups that this node may hold, or that it held when they were last planned, by name.
    pub groups: BTreeMap<String, Group>,
}

/// The other directors, by name.
pub type Peers = BTreeMap<String, Peer>;

/// Another director.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Peer {
    /// Its uplinks' Ethernet addresses, by the uplinks' names.
    pub macs: BTreeMap<String, Mac>,
    /// Its own addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// An uplink of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// What frames that leave by it say of their sender.
    pub sender: Sender,
    /// Whether it is up and has a carrier.
    pub up: bool,
    /// The gateways of the default routes through it.
    pub gateways: BTreeSet<IpAddr>,
    /// The subnets of its addresses.
    pub subnets: Vec<Prefix>,
}

/// A VIP group.
#[derive(Clone, PartialEq, Debug)]
pub struct Group {
    /// Its index in the map of deadlines.
    pub index: u16,
    /// The uplinks on which it is announced.
    pub uplinks: BTreeSet<u32>,
    /// Whether each VIP is announced on those uplinks only in whose subnets it is.
    pub on_link: bool,
    /// Its VIPs that were decided and that an uplink of this node may announce.
    pub vips: Arc<BTreeSet<IpAddr>>,
    /// The directors that may hold it, this one included if it may.
    pub candidates: Arc<Vec<Candidate>>,
    /// Whether this node's own data path is whole.
    pub health: Health,
}

/// A way on which a VIP group is asked for: an uplink and a family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path {
    /// The uplink's index.
    pub ifindex: u32,
    /// The VIP that is asked for: the lowest of the family.
    pub vip: IpAddr,
}

impl Group {
    /// Whether a VIP of this group is announced on an uplink of this group.
    pub fn announces(&self, vip: IpAddr, uplink: &Uplink) -> bool {
        let mut subnets = uplink.subnets.iter();
        !self.on_link || subnets.any(|subnet| subnet.contains(vip))
    }
}

impl Plan {
    /// Whether there is somebody to ask beside a group's holder: a gateway, or a third director.
    pub fn witness(&self) -> Witness {
        let mut uplinks = self.uplinks.values();
        if uplinks.any(|uplink| !uplink.gateways.is_empty()) || self.peers.len() > 1 {
            return Witness::Asked;
        }
        Witness::Absent
    }

    /// The ways on which a group is asked for. Each uplink's are together, IPv4 first.
    pub fn paths(&self, group: &Group) -> Vec<Path> {
        let uplinks = group.uplinks.iter();
        let uplinks = uplinks.filter_map(|ifindex| Some((*ifindex, self.uplinks.get(ifindex)?)));
        let paths = uplinks.flat_map(|(ifindex, uplink)| {
            let vips = || group.vips.iter().copied();
            let vips = move || vips().filter(|vip| group.announces(*vip, uplink));
            let lowest = [IpAddr::is_ipv4, IpAddr::is_ipv6].map(|of| vips().find(of));
            let lowest = lowest.into_iter().flatten();
            lowest.map(move |vip| Path { ifindex, vip })
        });
        paths.collect()
    }
}
