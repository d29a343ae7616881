//! The content of a node's maps, as values: read back from them, or wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use sluice_abi::{
    AnnouncedWord, Head, LocalKey, MacKey, PortKey, PrefixKey, RingWord, ServerRecord, ServerWord,
    VipWord,
};
use sluice_api::{Protocol, VipPort};

use crate::{AnnouncedAt, Blocks, Mac, Prefix, hash};

/// The part of the maps that the planner decides: everything but flows, counters, `CONFIG` and `GROUPS`.
///
/// To read one back: all entries of `VIPS*`, `REPLIES*`, `LOCALS*`, `PEERS`, `PEER_NETS*`, `SOURCES*` and `ANNOUNCED*`; every word of `MACS` that is not 0; the `HEADS` slots that VIP words name;
/// every present word of `RINGS` that lies within `RING_SLOTS`, with the slots it covers; every word of `SERVERS` that is
/// not 0 (an absent one keeps its epoch); the `RECORDS` slots that present server words name. Slots that no word names
/// are free and not part of the image.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Image {
    /// `VIPS4` and `VIPS6`.
    pub vips: BTreeMap<Socket, VipWord>,
    /// `REPLIES4` and `REPLIES6`: the reply indices of real servers' sockets.
    pub replies: BTreeMap<Socket, u32>,
    /// `LOCALS4` and `LOCALS6`: server ids.
    pub locals: BTreeMap<Local, u32>,
    /// `PEERS`.
    pub peers: BTreeSet<Mac>,
    /// `MACS`, words other than 0.
    pub macs: BTreeMap<u32, u64>,
    /// `PEER_NETS4` and `PEER_NETS6`.
    pub peer_nets: BTreeMap<Prefix, u32>,
    /// `SOURCES4` and `SOURCES6`: the source sets that have blocks.
    pub sources: BTreeMap<u32, Blocks>,
    /// `ANNOUNCED4` and `ANNOUNCED6`.
    pub announced: BTreeMap<AnnouncedAt, AnnouncedWord>,
    /// `HEADS`, the slots in use.
    pub heads: BTreeMap<u32, Head>,
    /// `RINGS`, the present words with their slots.
    pub rings: BTreeMap<u32, Ring>,
    /// `SERVERS`, words other than 0.
    pub servers: BTreeMap<u32, ServerWord>,
    /// `RECORDS`, the slots in use.
    pub records: BTreeMap<u32, ServerRecord>,
}

impl Image {
    /// The addresses that the node answers for while it holds their VIP groups.
    pub fn answered(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let is_answered = |word: &AnnouncedWord| word.group() != u32::from(AnnouncedWord::NO_GROUP);
        let entries = self.announced.iter();
        let answered = entries.filter(move |(_, word)| is_answered(word));
        answered.map(|(at, _)| at.address)
    }
}

/// A ring in place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ring {
    /// Where it lies.
    pub word: RingWord,
    /// The content of its slots.
    pub content: Arc<RingContent>,
}

/// A digest of a ring's slots, and each server's part of them: the slots, 16 KB and more a ring, are too much to keep.
///
/// Rings are the same if their contents are equal: that two that differ have one digest of 64 bits does not happen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RingContent {
    digest: u64,
    parts: Box<[(u32, u32)]>,
}

impl RingContent {
    /// The content of slots with these server ids.
    pub fn of(slots: &[u32]) -> Self {
        let mut sorted = slots.to_vec();
        sorted.sort_unstable();
        let part = |same: &[u32]| (same[0], u32::try_from(same.len()).unwrap_or(u32::MAX));
        Self {
            digest: hash::of_words(slots),
            parts: sorted.chunk_by(|a, b| a == b).map(part).collect(),
        }
    }

    /// Each server id in the ring and how many slots it has, in the order of ids.
    pub fn parts(&self) -> &[(u32, u32)] {
        &self.parts
    }
}

/// Key of `VIPS*` and `REPLIES*`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Socket {
    /// The address.
    pub address: IpAddr,
    /// The port; 0 in an address marker.
    pub port: u16,
    /// The protocol's number; 0 in an address marker.
    pub protocol: u8,
}

/// Key of `LOCALS*`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Local {
    /// The server's own address.
    pub address: IpAddr,
    /// Service index.
    pub index: u32,
}

/// A map key of one address family or the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ByFamily<V4, V6> {
    /// For the map that ends in 4.
    V4(V4),
    /// For the map that ends in 6.
    V6(V6),
}

impl Socket {
    /// A port of a VIP or of a server.
    pub const fn new(address: IpAddr, protocol: Protocol, port: u16) -> Self {
        Self {
            address,
            port,
            protocol: protocol.number(),
        }
    }

    /// As a VIP port; `None` for an address marker.
    pub fn vip_port(&self) -> Option<VipPort> {
        Some(VipPort {
            address: self.address,
            port: self.port,
            protocol: Protocol::from_number(self.protocol)?,
        })
    }

    /// The entry that marks an address as a VIP whatever the port, so that packets to its other ports and fragments are
    /// dropped by name.
    pub const fn marker(address: IpAddr) -> Self {
        Self {
            address,
            port: 0,
            protocol: 0,
        }
    }

    /// Whether this is an address marker.
    pub const fn is_marker(&self) -> bool {
        self.protocol == 0
    }

    /// The map key.
    pub fn key(&self) -> ByFamily<PortKey<4>, PortKey<16>> {
        let port = self.port.to_be_bytes();
        let protocol = self.protocol;
        match self.address {
            IpAddr::V4(a) => ByFamily::V4(PortKey {
                addr: a.octets(),
                port,
                protocol,
                pad: 0,
            }),
            IpAddr::V6(a) => ByFamily::V6(PortKey {
                addr: a.octets(),
                port,
                protocol,
                pad: 0,
            }),
        }
    }
}

impl From<VipPort> for Socket {
    fn from(vip_port: VipPort) -> Self {
        Self::new(vip_port.address, vip_port.protocol, vip_port.port)
    }
}

impl From<PortKey<4>> for Socket {
    fn from(key: PortKey<4>) -> Self {
        Self {
            address: Ipv4Addr::from(key.addr).into(),
            port: u16::from_be_bytes(key.port),
            protocol: key.protocol,
        }
    }
}

impl From<PortKey<16>> for Socket {
    fn from(key: PortKey<16>) -> Self {
        Self {
            address: Ipv6Addr::from(key.addr).into(),
            port: u16::from_be_bytes(key.port),
            protocol: key.protocol,
        }
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            sluice_abi::TCP => "tcp",
            sluice_abi::UDP => "udp",
            0 => return write!(f, "{} any", self.address),
            other => return write!(f, "{} {other} {}", self.address, self.port),
        };
        write!(f, "{} {protocol} {}", self.address, self.port)
    }
}

impl Local {
    /// The map key.
    pub fn key(&self) -> ByFamily<LocalKey<4>, LocalKey<16>> {
        let index = self.index;
        match self.address {
            IpAddr::V4(a) => ByFamily::V4(LocalKey {
                addr: a.octets(),
                index,
            }),
            IpAddr::V6(a) => ByFamily::V6(LocalKey {
                addr: a.octets(),
                index,
            }),
        }
    }
}

impl From<LocalKey<4>> for Local {
    fn from(key: LocalKey<4>) -> Self {
        Self {
            address: Ipv4Addr::from(key.addr).into(),
            index: key.index,
        }
    }
}

impl From<LocalKey<16>> for Local {
    fn from(key: LocalKey<16>) -> Self {
        Self {
            address: Ipv6Addr::from(key.addr).into(),
            index: key.index,
        }
    }
}

impl Prefix {
    /// The map key.
    pub fn key(&self) -> ByFamily<PrefixKey<4>, PrefixKey<16>> {
        let length = u32::from(self.length);
        match self.address {
            IpAddr::V4(a) => ByFamily::V4(PrefixKey {
                length,
                addr: a.octets(),
            }),
            IpAddr::V6(a) => ByFamily::V6(PrefixKey {
                length,
                addr: a.octets(),
            }),
        }
    }
}

impl From<PrefixKey<4>> for Prefix {
    fn from(key: PrefixKey<4>) -> Self {
        Self {
            address: Ipv4Addr::from(key.addr).into(),
            length: u8::try_from(key.length).unwrap_or(32),
        }
    }
}

impl From<PrefixKey<16>> for Prefix {
    fn from(key: PrefixKey<16>) -> Self {
        Self {
            address: Ipv6Addr::from(key.addr).into(),
            length: u8::try_from(key.length).unwrap_or(128),
        }
    }
}

impl From<Mac> for MacKey {
    fn from(mac: Mac) -> Self {
        Self {
            mac: mac.0,
            pad: [0; 2],
        }
    }
}
