//! A node's knowledge of itself and its surroundings: the input that differs from node to node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use sluice_abi::{NET_SENDS, NET_TUNNELS};
use sluice_api::Peer;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, octet) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { ":" };
            write!(f, "{separator}{octet:02x}")?;
        }
        Ok(())
    }
}

/// The tasks of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Role {
    /// Balances packets to VIPs.
    pub director: bool,
    /// Unwraps and translates what directors send to servers of this node.
    pub real_server: bool,
}

/// A node's view of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeView {
    /// Name of the node's LoadBalancerNode.
    pub name: String,
    /// The node's tasks.
    pub role: Role,
    /// Every address of the node, loopback left out: a server at one of them is reached by way of the node's own stack.
    pub addresses: BTreeSet<IpAddr>,
    /// Own Ethernet addresses, with the index of the interface that frames to them come by.
    pub macs: BTreeSet<(u32, Mac)>,
    /// MAC addresses of the other directors.
    pub peers: BTreeSet<Mac>,
    /// The other directors' addresses and those of their pods: [`sluice_abi::NET_SENDS`], [`sluice_abi::NET_TUNNELS`].
    pub peer_nets: BTreeMap<Prefix, u32>,
    /// Nobody has said yet which other directors there are: those in the maps stay.
    pub keeps_peers: bool,
}

/// The addresses that begin with the same bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Prefix {
    /// One of them.
    pub address: IpAddr,
    /// How many bits count.
    pub length: u8,
}

impl Prefix {
    /// A director's own addresses and its pods', with the flags that they have in `PEER_NETS*`.
    pub fn of_peer(peer: &Peer) -> impl Iterator<Item = (Self, u32)> {
        let pods = peer.pod_cidrs.iter().map(|cidr| (cidr.into(), NET_SENDS));
        let own = peer.addresses.iter().copied();
        // The last counts where a range has one address.
        pods.chain(own.map(|address| (Self::host(address), NET_SENDS | NET_TUNNELS)))
    }

    /// All addresses of a family.
    pub const fn all(is_ipv4: bool) -> Self {
        let address = if is_ipv4 {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        } else {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        };
        Self { address, length: 0 }
    }

    /// Whether these are all addresses of a family.
    pub const fn is_all(self) -> bool {
        self.length == 0
    }

    /// An address alone.
    pub const fn host(address: IpAddr) -> Self {
        let length = if address.is_ipv4() { 32 } else { 128 };
        Self { address, length }
    }
}

impl From<&IpNet> for Prefix {
    fn from(block: &IpNet) -> Self {
        Self {
            address: block.network(),
            length: block.prefix_len(),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// The next hop towards an address, or how far its resolution has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NextHop {
    /// Known.
    Resolved(Hop),
    /// Being resolved, and for less than a second: a server that is not in a ring yet waits, one that is in stays as it
    /// is.
    Pending,
    /// Being resolved for a second or more: the server enters its ring, packets to it are dropped by name until the
    /// next hop is known.
    Overdue,
    /// There is no route, or the neighbour does not answer. As [`NextHop::Overdue`].
    Unreachable,
}

/// A way to an address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Hop {
    /// The device between the node and the address.
    pub via: Via,
    /// Interface that leads there.
    pub ifindex: u32,
    /// Its MAC address; not used for [`Via::Bridge`].
    pub source_mac: Mac,
    /// MAC address of the next hop; not used for [`Via::Bridge`].
    pub next_hop_mac: Mac,
    /// Largest IP packet, in bytes, that the way carries.
    pub mtu: u32,
    /// The address that the node's own packets to there have as their source: FullNAT's source and TUN's outer source.
    pub source: IpAddr,
}

/// The device between a node and a server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Via {
    /// Nothing: the next hop is the server, reached by an XDP-capable device.
    Link,
    /// A router, reached by an XDP-capable device.
    Router,
    /// A bridge or overlay device of this node: the tc hook delivers.
    Bridge,
}
