//! What the core tells the announcer: everything that may be announced here, by whom else, and whether this node is fit to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use sluice_election::{Candidate, Health, Witness};
use sluice_planner::Mac;

use super::frame::Sender;
use crate::netlink::{Prefix, Table, is_within};

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
    /// Those of its VIPs that are none, but gateways of NAT servers: each is announced on those uplinks only in whose subnets it is.
    pub gateways: BTreeSet<IpAddr>,
    /// Those of the uplinks on which nothing but gateways is announced.
    pub only_gateways: BTreeSet<u32>,
    /// Its VIPs that were decided and that an uplink of this node may announce.
    pub vips: Arc<BTreeSet<IpAddr>>,
    /// Those of its VIPs that are new: this node answers for them when it has found that nobody else has them.
    pub new: BTreeSet<IpAddr>,
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
    /// The VIP that is asked for.
    pub vip: IpAddr,
}

impl Uplink {
    /// The interface of this name, with its index, if it is there and has an Ethernet address. `gateways` are all of the default
    /// routes, with the indices of the interfaces that lead there.
    pub fn find(
        name: &str,
        table: &Table,
        gateways: &BTreeSet<(u32, IpAddr)>,
    ) -> Option<(u32, Self)> {
        let (ifindex, link) = table.link_by_name(name)?;
        let stacked = table.stacked_on([ifindex]);
        let addresses = table.addresses(&stacked);
        let ipv4 = addresses.iter().find_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        });
        let link_local = addresses.iter().find_map(|address| match address {
            IpAddr::V6(address) => Some(*address).filter(Ipv6Addr::is_unicast_link_local),
            IpAddr::V4(_) => None,
        });
        let through = gateways.iter().filter(|(through, _)| *through == ifindex);
        let uplink = Self {
            name: name.to_owned(),
            sender: Sender {
                mac: link.mac?,
                ipv4,
                link_local,
            },
            up: link.up,
            gateways: through.map(|(_, gateway)| *gateway).collect(),
            subnets: table.subnets(&stacked),
        };
        Some((ifindex, uplink))
    }
}

impl Group {
    /// The VIPs that this node answers for while it holds the group.
    pub fn answered(&self) -> Arc<BTreeSet<IpAddr>> {
        if self.new.is_empty() {
            return Arc::clone(&self.vips);
        }
        Arc::new(self.vips.difference(&self.new).copied().collect())
    }

    /// Whether a VIP of this group is announced on an uplink of this group.
    pub fn announces(&self, vip: IpAddr, (ifindex, uplink): (u32, &Uplink)) -> bool {
        let is_gateway = self.gateways.contains(&vip);
        if !is_gateway && self.only_gateways.contains(&ifindex) {
            return false;
        }
        !self.on_link && !is_gateway || is_within(vip, &uplink.subnets)
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

    /// The links on which a VIP of a group is announced now, with the uplinks' indices.
    pub fn links(&self, group: &str, vip: IpAddr) -> impl Iterator<Item = (u32, &Uplink)> {
        let group = self.groups.get(group);
        let uplinks = group.into_iter().flat_map(|group| &group.uplinks);
        let uplinks = uplinks.filter_map(|ifindex| Some((*ifindex, self.uplinks.get(ifindex)?)));
        uplinks.filter(move |(ifindex, uplink)| {
            uplink.up && group.is_some_and(|group| group.announces(vip, (*ifindex, uplink)))
        })
    }

    /// The ways on which a group is asked for. Each uplink's are together, IPv4 first. A VIP that was asked for before stays the one
    /// that is, since its holder is known to answer for it; else it is the lowest. New VIPs, which nobody answers for, are none.
    pub fn paths(&self, group: &Group, before: &[Path]) -> Vec<Path> {
        let answered = group.answered();
        let uplinks = group.uplinks.iter();
        let uplinks = uplinks.filter_map(|ifindex| Some((*ifindex, self.uplinks.get(ifindex)?)));
        let paths = uplinks.flat_map(|(ifindex, uplink)| {
            let is_here = |vip: &IpAddr| group.announces(*vip, (ifindex, uplink));
            let asked = [IpAddr::is_ipv4, IpAddr::is_ipv6].map(|of| {
                let mut before = before.iter().filter(|path| path.ifindex == ifindex);
                let before = before.find(|path| of(&path.vip) && answered.contains(&path.vip));
                let before = before.map(|path| path.vip).filter(is_here);
                let mut vips = answered.iter().copied();
                before.or_else(|| vips.find(|vip| of(vip) && is_here(vip)))
            });
            let asked = asked.into_iter().flatten();
            asked.map(move |vip| Path { ifindex, vip })
        });
        paths.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn plan() -> Plan {
        let uplink = Uplink {
            name: "eth0".to_owned(),
            sender: Sender {
                mac: Mac::default(),
                ipv4: None,
                link_local: None,
            },
            up: true,
            gateways: BTreeSet::new(),
            subnets: Vec::new(),
        };
        Plan {
            uplinks: [(2, uplink)].into(),
            ..Plan::default()
        }
    }

    fn vips(numbers: &[u8]) -> BTreeSet<IpAddr> {
        let vips = numbers.iter().map(|n| Ipv4Addr::new(192, 0, 2, *n).into());
        vips.collect()
    }

    fn asked(all: &[u8], new: &[u8], before: &[Path]) -> Vec<Path> {
        let group = Group {
            index: 0,
            uplinks: [2].into(),
            on_link: false,
            gateways: BTreeSet::new(),
            only_gateways: BTreeSet::new(),
            vips: Arc::new(vips(all)),
            new: vips(new),
            candidates: Arc::default(),
            health: Health::Whole,
        };
        plan().paths(&group, before)
    }

    fn path(number: u8) -> Vec<Path> {
        let vip = Ipv4Addr::new(192, 0, 2, number).into();
        vec![Path { ifindex: 2, vip }]
    }

    #[test]
    fn the_lowest_vip_that_is_answered_for_is_asked_for() {
        assert_eq!(asked(&[1, 2], &[], &[]), path(1));
        assert_eq!(asked(&[1, 2], &[1], &[]), path(2));
        assert_eq!(asked(&[1, 2], &[1, 2], &[]), []);
    }

    #[test]
    fn a_vip_that_comes_later_is_not_asked_for_while_another_is() {
        assert_eq!(asked(&[1, 2], &[], &path(2)), path(2));
        assert_eq!(asked(&[1, 3], &[], &path(2)), path(1));
        assert_eq!(asked(&[1, 2, 3], &[2], &path(2)), path(1));
    }
}
