//! Which addresses a node may answer for, and where: the entries of `ANNOUNCED*`.
//!
//! An address is announced only where the maps balance what clients send to it: an entry is written after the word of a VIP
//! port that has a director's head, and removed before the last of these goes. Where one port takes the place of another, it is
//! removed and the next plan writes it again. Gateways of NAT's servers are no VIPs and have no heads.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sluice_abi::{AnnouncedKey, AnnouncedWord, MapName};
use sluice_api::ObjectKey;

use crate::problem::{ObjectKind, Problem, Reason};
use crate::tables::{Keyed, Planned, Tables};
use crate::{ByFamily, Image, Mac, Socket};

/// How a node announces an address while it holds the address's VIP group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announced {
    /// Index of the VIP group, below [`sluice_abi::MAX_GROUPS`]; [`AnnouncedWord::NO_GROUP`]: the node is not to answer yet.
    pub group: u16,
    /// Indices of the interfaces on which it is announced, with the Ethernet address that answers name.
    pub on: Vec<(u32, Mac)>,
    /// It is a gateway of NAT's servers and not a VIP: it needs no virtual server, and advertisements say that a router has it.
    pub router: bool,
}

/// Key of `ANNOUNCED*`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AnnouncedAt {
    /// The address.
    pub address: IpAddr,
    /// Index of the interface.
    pub ifindex: u32,
}

impl AnnouncedAt {
    /// The map key.
    pub fn key(&self) -> ByFamily<AnnouncedKey<4>, AnnouncedKey<16>> {
        let ifindex = self.ifindex;
        match self.address {
            IpAddr::V4(a) => ByFamily::V4(AnnouncedKey {
                addr: a.octets(),
                ifindex,
            }),
            IpAddr::V6(a) => ByFamily::V6(AnnouncedKey {
                addr: a.octets(),
                ifindex,
            }),
        }
    }
}

impl From<AnnouncedKey<4>> for AnnouncedAt {
    fn from(key: AnnouncedKey<4>) -> Self {
        Self {
            address: Ipv4Addr::from(key.addr).into(),
            ifindex: key.ifindex,
        }
    }
}

impl From<AnnouncedKey<16>> for AnnouncedAt {
    fn from(key: AnnouncedKey<16>) -> Self {
        Self {
            address: Ipv6Addr::from(key.addr).into(),
            ifindex: key.ifindex,
        }
    }
}

impl fmt::Display for AnnouncedAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at interface {}", self.address, self.ifindex)
    }
}

/// The addresses to announce, and which of them are to be planned anew.
#[derive(Debug, Default)]
pub(crate) struct Announcements {
    wanted: BTreeMap<IpAddr, Announced>,
    dirty: BTreeSet<IpAddr>,
    /// Addresses that lack an entry for lack of room.
    full: BTreeSet<IpAddr>,
}

impl Announcements {
    /// The maps are these: every address is planned anew.
    pub(crate) fn adopt(&mut self, owned: &Image) {
        self.dirty = self.wanted.keys().copied().collect();
        let present = owned.announced.keys();
        self.dirty.extend(present.map(|at| at.address));
        self.full.clear();
    }

    /// Takes in how an address is announced; `None`: not at all.
    pub(crate) fn set(&mut self, address: IpAddr, announced: Option<Announced>) {
        if self.wanted.get(&address) == announced.as_ref() {
            return;
        }
        self.dirty.insert(address);
        match announced {
            Some(announced) => drop(self.wanted.insert(address, announced)),
            None => drop(self.wanted.remove(&address)),
        }
    }

    /// Whether there is something to plan.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Addresses without room are tried again.
    pub(crate) fn try_full(&mut self) {
        self.dirty.extend(&self.full);
    }

    /// Adds to a plan the entries of the addresses that are to be planned anew, and of those whose VIP ports it plans.
    pub(crate) fn plan(
        &mut self,
        tables: &Tables,
        planned_ports: impl Iterator<Item = IpAddr>,
        planned: &mut Planned,
    ) {
        let mut addresses = std::mem::take(&mut self.dirty);
        addresses.extend(planned_ports);
        let mut room = tables.room(Keyed::Announced);
        let (mut stay, mut new) = (Vec::new(), Vec::new());
        for address in addresses {
            self.full.remove(&address);
            for (&at, &word) in tables.image.announced.range(of_address(address)) {
                planned.part.announced.insert(at, word);
                room.add(address);
            }
            let Some(announced) = self.wanted.get(&address) else {
                continue;
            };
            let live = Live::of(tables, planned, address);
            if !announced.router && !live.afterwards {
                continue;
            }
            // An interface that is named twice has one entry.
            let on: BTreeMap<u32, Mac> = announced.on.iter().copied().collect();
            for (ifindex, mac) in on {
                let at = AnnouncedAt { address, ifindex };
                let word = AnnouncedWord::new(mac.0, announced.group, announced.router);
                if !tables.image.announced.contains_key(&at) {
                    new.push((at, word));
                } else if announced.router || live.throughout {
                    stay.push((at, word));
                } else {
                    self.dirty.insert(address);
                }
            }
        }
        for (at, word) in stay.into_iter().chain(new) {
            if room.take(at.address, 1) {
                planned.desired.announced.insert(at, word);
            } else {
                self.full.insert(at.address);
            }
        }
    }

    /// Says what does not fit.
    pub(crate) fn left_out(&self, node: &str, limit: u32) -> BTreeSet<Problem> {
        let mut problems = BTreeSet::new();
        for (map, v4) in [(MapName::Announced4, true), (MapName::Announced6, false)] {
            let of_family = |address: &&IpAddr| address.is_ipv4() == v4;
            let Some(first) = self.full.iter().find(of_family) else {
                continue;
            };
            let count = self.full.iter().filter(of_family).count();
            problems.insert(Problem {
                kind: ObjectKind::LoadBalancerNode,
                object: ObjectKey::new("", node),
                reason: Reason::LimitExceeded,
                message: format!(
                    "{} is full ({limit} entries), so this node does not answer for {count} addresses such as {first} on all \
                     interfaces: give the agent larger maps",
                    map.as_str()
                ),
                exception: true,
            });
        }
        problems
    }
}

/// The keys of an address.
fn of_address(address: IpAddr) -> std::ops::RangeInclusive<AnnouncedAt> {
    let at = |ifindex| AnnouncedAt { address, ifindex };
    at(0)..=at(u32::MAX)
}

/// Whether an address has a VIP port with a director's head.
pub(crate) fn is_live(image: &Image, address: IpAddr) -> bool {
    heads(image, address).any(|(_, head)| head != 0)
}

/// Whether an address has a VIP port with a director's head, as a plan is carried out.
struct Live {
    /// All the time: a port keeps one.
    throughout: bool,
    /// In the end.
    afterwards: bool,
}

impl Live {
    fn of(tables: &Tables, planned: &Planned, address: IpAddr) -> Self {
        let (part, desired) = (&planned.part.vips, &planned.desired.vips);
        let keeps = |(socket, head): (&Socket, u32)| {
            let later = desired.get(socket).map_or(0, |word| word.head());
            head != 0 && (later != 0 || !part.contains_key(socket))
        };
        let throughout = heads(&tables.image, address).any(keeps);
        Self {
            throughout,
            afterwards: throughout || is_live(&planned.desired, address),
        }
    }
}

/// The VIP ports of an address, with the slots of their directors' heads.
fn heads(image: &Image, address: IpAddr) -> impl Iterator<Item = (&Socket, u32)> {
    let sockets = image.vips.range(Socket::marker(address)..);
    sockets
        .take_while(move |(socket, _)| socket.address == address)
        .map(|(socket, word)| (socket, word.head()))
}
