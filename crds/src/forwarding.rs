//! How packets are forwarded, in words that specs and decisions share.

use std::fmt;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An address family.
#[derive(
    JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug,
)]
pub enum IpFamily {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
}

impl IpFamily {
    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::IPv4,
            IpAddr::V6(_) => Self::IPv6,
        }
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Transport protocol.
#[derive(
    JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug,
)]
pub enum Protocol {
    /// RFC 9293.
    #[serde(rename = "TCP")]
    Tcp,
    /// RFC 768.
    #[serde(rename = "UDP")]
    Udp,
}

impl Protocol {
    /// The name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }

    /// The number in IP headers.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// The protocol with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }
}

/// In lower case, as messages and metrics have it.
impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Forwarding mode.
#[derive(
    JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug,
)]
pub enum ForwardingMode {
    /// The director rewrites the destination; replies return through it.
    #[serde(rename = "NAT")]
    Nat,
    /// The director rewrites source and destination; replies return through it.
    #[serde(rename = "FullNAT")]
    FullNat,
    /// The director rewrites MAC addresses; servers on its link answer clients directly.
    #[serde(rename = "DR")]
    Dr,
    /// The director wraps packets in IP; servers answer clients directly.
    #[serde(rename = "TUN")]
    Tun,
}

impl ForwardingMode {
    /// The name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nat => "NAT",
            Self::FullNat => "FullNAT",
            Self::Dr => "DR",
            Self::Tun => "TUN",
        }
    }
}

/// Which directors take a virtual server's packets, and for which servers: Kubernetes' `externalTrafficPolicy`.
#[derive(
    JsonSchema,
    Serialize,
    Deserialize,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
)]
pub enum ExternalTrafficPolicy {
    /// Every director, for all servers.
    #[default]
    Cluster,
    /// Directors on whose own node a server runs, for the servers there. Only they announce the addresses.
    Local,
}

/// What becomes of new flows to a pool whose servers are all down.
#[derive(
    JsonSchema,
    Serialize,
    Deserialize,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
)]
pub enum WhenAllDown {
    /// They go to the servers as though none were down.
    #[default]
    LastKnown,
    /// Clients are told: by a reset of TCP, or the error of ICMP that says port unreachable. So they are where a pool has no
    /// server that takes flows.
    Reject,
    /// They are dropped.
    Drop,
}

/// The fields that are hashed to choose the pool.
#[derive(
    JsonSchema,
    Serialize,
    Deserialize,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
)]
pub enum PoolSelection {
    /// The flow: a client's connections spread over all pools.
    #[default]
    Flow,
    /// The client's address: a client stays with one pool.
    ClientAddress,
}

/// The fields that are hashed to choose a server of the pool.
#[derive(
    JsonSchema,
    Serialize,
    Deserialize,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
)]
pub enum ServerSelection {
    /// The flow: a client's connections spread over the pool's servers.
    #[default]
    Flow,
    /// The client's address: all connections of a client go to one server as long as the pool has the same servers and weights.
    ClientAddress,
}
