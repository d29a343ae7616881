//! What the operator decided and the users described: the input that is the same on every node.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

pub use sluice_abi::ForwardingMode;

/// Namespace and name of an object; the namespace is empty for kinds without. References stay in the namespace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl ObjectName {
    /// `namespace/name`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            return f.write_str(&self.name);
        }
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Everything that is known of the cluster's virtual servers and pools at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// Virtual servers with a decision. One without is not programmed and does not belong here.
    pub virtual_servers: BTreeMap<ObjectName, VirtualServer>,
    /// Pools with a decision.
    pub pools: BTreeMap<ObjectName, Pool>,
}

/// A virtual server as decided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VirtualServer {
    /// The VIPs, at most one a family.
    pub addresses: Vec<IpAddr>,
    /// The ports that clients connect to.
    pub ports: Vec<Port>,
    /// How packets reach the servers.
    pub mode: ForwardingMode,
    /// What is hashed to choose the pool.
    pub pool_selection: PoolSelection,
    /// The pools, in the order in which their shares are laid out.
    pub pools: Vec<PoolShare>,
}

/// A port of a virtual server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// Name by which pools and servers refer to it; empty where it is the only one.
    pub name: String,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port number.
    pub port: u16,
}

/// A transport protocol that virtual servers serve.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Protocol {
    /// TCP.
    Tcp = sluice_abi::TCP,
    /// UDP.
    Udp = sluice_abi::UDP,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// What is hashed to choose the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PoolSelection {
    /// The flow.
    #[default]
    Flow,
    /// The client's address alone: a client stays with one pool.
    ClientAddress,
}

/// A pool's part of a virtual server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolShare {
    /// Name of a pool in the virtual server's namespace.
    pub name: String,
    /// Its share, relative to the sum over the pools; 0 = takes no new flows.
    pub weight: u32,
}

/// A pool of real servers as decided.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pool {
    /// The servers.
    pub servers: Vec<Server>,
}

/// A real server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Server {
    /// Name, for messages.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its weight among the servers of the pool; 0 = drained.
    pub weight: u32,
    /// Its target ports: those of its own and the pool's.
    pub target_ports: Vec<TargetPort>,
    /// The port behind ports without an entry there; `None`: the virtual server's own.
    pub default_port: Option<u16>,
}

/// The port of a server behind a port of the virtual server.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TargetPort {
    /// Name of the virtual server's port.
    pub name: String,
    /// The port number on the server; `None`: the server has no port of the name that was asked for.
    pub port: Option<u16>,
}
