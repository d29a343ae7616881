//! What a node shall serve, in words of its own surroundings but without any node-local id.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::{Endpoint, ForwardingMode, Hop, Mac, ObjectName, PoolSelection, Problem};

/// What a node shall serve.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeConfig {
    /// Name of the node's LoadBalancerNode.
    pub node: String,
    /// By the endpoint that clients connect to.
    pub services: BTreeMap<Endpoint, Service>,
    /// MAC addresses of the other directors.
    pub peers: BTreeSet<Mac>,
    /// What cannot be served, or not as described.
    pub problems: Vec<Problem>,
}

/// One endpoint of a virtual server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// The virtual server.
    pub virtual_server: ObjectName,
    /// How packets reach the servers.
    pub mode: ForwardingMode,
    /// What is hashed to choose the pool.
    pub pool_selection: PoolSelection,
    /// Seed of the pool and ring hashes: from the virtual server's name, so that by client address a client gets the same
    /// pool on all its ports.
    pub seed: u32,
    /// Whether this node balances it. If not, it only serves what directors send to servers of its own.
    pub director: bool,
    /// The pools in the decision's order, at most [`sluice_abi::MAX_POOLS`].
    pub pools: Vec<PoolConfig>,
}

/// A pool of a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolConfig {
    /// The pool's name, in the virtual server's namespace.
    pub name: String,
    /// Hash of the name, unique within the service.
    pub tag: u32,
    /// The share. A pool without a server that takes flows keeps it: its packets are dropped by name
    /// ([`sluice_abi::DropReason::NoServer`]) rather than shifted to another version of the service.
    pub weight: u32,
    /// Whether the pool is known to this node.
    pub known: bool,
    /// The servers that can be served, in the order of address and port.
    pub servers: Vec<ServerConfig>,
}

/// A server of a pool of a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerConfig {
    /// Its address, of the VIP's family.
    pub address: IpAddr,
    /// The port in its record: the server's own, or the virtual server's for DR and TUN to another node, where a frame
    /// names only the address.
    pub port: u16,
    /// Its weight in the ring; 0 = not in the ring.
    pub weight: u64,
    /// The effective weight is 0: a connection attempt on an old flow chooses anew.
    pub draining: bool,
    /// The way to it.
    pub reach: Reach,
}

/// How packets get to a server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reach {
    /// Its address is the node's own.
    Local,
    /// By this way.
    Hop(Hop),
    /// The way is not known: packets are dropped by name.
    Unresolved,
    /// The way is not known yet: a server in the maps stays as it is there, another one waits.
    Pending,
}

impl Service {
    /// Whether a frame to a server names only the server's address: the port is chosen on the server's own node.
    pub(crate) fn by_address(&self) -> bool {
        matches!(self.mode, ForwardingMode::Dr | ForwardingMode::Tun)
    }
}
