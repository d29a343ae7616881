//! On which uplinks the addresses of a group are announced.

use std::collections::BTreeSet;
use std::net::IpAddr;

use sluice_abi::AnnouncedWord;
use sluice_api::{DecidedL2, parse_vip_group};
use sluice_planner::{Announced, Mac};

use crate::netlink::{Prefix, is_within};

/// How a group is announced here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Way {
    pub(super) index: u16,
    pub(super) uplinks: Vec<WayOut>,
    pub(super) gateways: BTreeSet<IpAddr>,
}

/// An uplink on which a group is announced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct WayOut {
    pub(super) ifindex: u32,
    pub(super) mac: Mac,
    pub(super) vips: Carries,
    /// The gateways that are announced there.
    pub(super) gateways: BTreeSet<IpAddr>,
}

/// The VIPs that are announced on an uplink.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Carries {
    All,
    /// Those in its subnets.
    Within(Vec<Prefix>),
    None,
}

impl Way {
    /// Whether a VIP or gateway of the group is announced on an uplink.
    fn announces(&self, address: IpAddr, on: &WayOut) -> bool {
        if self.gateways.contains(&address) {
            return on.gateways.contains(&address);
        }
        match &on.vips {
            Carries::All => true,
            Carries::Within(subnets) => is_within(address, subnets),
            Carries::None => false,
        }
    }

    /// Whether some VIP or gateway may be announced on no uplink.
    pub(super) fn is_choosy(&self) -> bool {
        let mut uplinks = self.uplinks.iter();
        !self.gateways.is_empty() || uplinks.any(|uplink| uplink.vips != Carries::All)
    }

    /// Whether a VIP or gateway of the group is announced on any.
    pub(super) fn is_here(&self, address: IpAddr) -> bool {
        let mut uplinks = self.uplinks.iter();
        uplinks.any(|uplink| self.announces(address, uplink))
    }

    /// How a VIP of the group is announced, which this node may answer for, or may not yet; `None`: not at all.
    pub(super) fn announced(&self, vip: IpAddr, is_answered: bool) -> Option<Announced> {
        let uplinks = self.uplinks.iter();
        let on = uplinks.filter(|uplink| self.announces(vip, uplink));
        let on: Vec<(u32, Mac)> = on.map(|uplink| (uplink.ifindex, uplink.mac)).collect();
        (!on.is_empty()).then_some(Announced {
            group: if is_answered {
                self.index
            } else {
                AnnouncedWord::NO_GROUP
            },
            on,
            router: self.gateways.contains(&vip),
        })
    }
}

/// How the addresses of a pool are announced, or those that no pool has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pool<'a> {
    pub(super) name: &'a str,
    pub(super) l2: Option<&'a DecidedL2>,
    /// Whether each address is announced only on uplinks in whose subnets it is.
    pub(super) on_link: bool,
}

impl Pool<'_> {
    /// Whether its addresses are announced on uplinks of this name.
    pub(super) fn announces_on(&self, uplink: &str) -> bool {
        self.l2.is_none_or(|l2| {
            l2.interfaces.is_empty() || l2.interfaces.iter().any(|name| name == uplink)
        })
    }

    /// The gateways of NAT servers that move with its VIPs.
    pub(super) fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        self.l2.into_iter().flat_map(|l2| &l2.gateways).copied()
    }

    /// Those that move with a group of it.
    pub(super) fn gateways_of(&self, group: &str) -> BTreeSet<IpAddr> {
        let is_first = parse_vip_group(group).is_some_and(|(_, number)| number == 0);
        self.gateways().filter(|_| is_first).collect()
    }

    /// Whether a node may announce its addresses.
    pub(super) fn names(&self, node: &str) -> bool {
        let nodes = self.l2.and_then(|l2| l2.nodes.as_ref());
        nodes.is_none_or(|nodes| nodes.iter().any(|name| name == node))
    }
}
