//! The VIP ports that a node shall serve, in words of its own surroundings but without any node-local id.

use std::net::IpAddr;
use std::sync::Arc;

use sluice_api::{
    DecidedPool, DecidedVirtualServer, ExternalTrafficPolicy, ForwardingMode, ObjectKey,
};

use crate::ring::WHOLE;
use crate::{Blocks, Hop, Resets};

/// One VIP port of a virtual server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct VipPortConfig {
    /// The virtual server.
    pub(crate) virtual_server: ObjectKey,
    /// The decision on it: mode, pools and their shares among others.
    pub(crate) decided: Arc<DecidedVirtualServer>,
    /// Seed of the pool and ring hashes: from the virtual server's name, so that by client address a client gets the same
    /// pool on all its ports.
    pub(crate) seed: u32,
    /// The blocks of the VIP's family whose clients may begin flows; `None`: everybody may.
    pub(crate) sources: Option<Blocks>,
    /// Whether this node balances it. If not, it only serves what directors send to servers of its own.
    pub(crate) director: bool,
    /// The decided pools, in their order, at most [`sluice_abi::MAX_POOLS`].
    pub(crate) pools: Vec<PoolConfig>,
}

/// A pool of a VIP port as it is on this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PoolConfig {
    /// Hash of the name, unique within the VIP port.
    pub(crate) tag: u32,
    /// Whether the pool is known to this node.
    pub(crate) known: bool,
    /// Whether nobody takes new flows, though servers have weights: all are down, and the virtual server does not want them to be asked.
    pub(crate) is_down: bool,
    /// Whether connections to its servers are sampled as they begin.
    pub(crate) is_sampled: bool,
    /// The place of the pool whose servers take new flows instead, since this one has too few.
    pub(crate) stand_in: Option<usize>,
    /// The servers that can be served, in the order of address and port. A pool without a server that takes flows keeps its
    /// share: its packets are dropped by name ([`sluice_abi::DropReason::NoServer`]) rather than shifted to another version
    /// of the service.
    pub(crate) servers: Vec<ServerConfig>,
}

/// A server of a pool of a VIP port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ServerConfig {
    /// Its address, of the VIP's family.
    pub(crate) address: IpAddr,
    /// The port in its record: the server's own, or the virtual server's for DR and TUN to another node, where a frame
    /// names only the address.
    pub(crate) port: u16,
    /// Its weight in the ring; 0 = not in the ring.
    pub(crate) weight: u64,
    /// Whether it is meant to take flows, ready or not.
    pub(crate) is_meant: bool,
    /// The tenths of its slots that it has; 0: it is down.
    pub(crate) tenths: u8,
    /// It is down and has no id, so that its flows choose anew. Its slots are all lent.
    pub(crate) gives_flows_up: bool,
    /// The effective weight is 0: a connection attempt on an old flow chooses anew.
    pub(crate) draining: bool,
    /// When its TCP connections are reset.
    pub(crate) resets: Resets,
    /// The way to it.
    pub(crate) reach: Reach,
}

impl PoolConfig {
    /// Whether some server takes new flows.
    pub(crate) fn takes_flows(&self) -> bool {
        self.servers.iter().any(ServerConfig::takes_flows)
    }

    /// Whether fewer than this percentage of the servers take new flows, or none does.
    pub(crate) fn has_fewer(&self, percent: u8) -> bool {
        let count = |is: fn(&ServerConfig) -> bool| self.servers.iter().filter(|it| is(it)).count();
        let taking = count(ServerConfig::takes_flows);
        let all = count(|server| server.is_meant || server.takes_flows());
        taking == 0 || taking * 100 < all * usize::from(percent)
    }
}

impl ServerConfig {
    /// Whether it takes new flows: it has a weight, and is not down.
    pub(crate) const fn takes_flows(&self) -> bool {
        self.weight > 0 && self.tenths > 0
    }

    /// Adds a server at the same address, where a frame names nothing else.
    pub(crate) fn merge(&mut self, other: &Self) {
        let sum = self.weight + other.weight;
        let both = self.weight * u64::from(self.tenths) + other.weight * u64::from(other.tenths);
        let mean = if sum > 0 { both.div_ceil(sum) } else { 0 };
        self.tenths = u8::try_from(mean).unwrap_or(WHOLE);
        self.weight = sum;
        self.is_meant |= other.is_meant;
        self.draining &= other.draining;
        self.resets = self.resets.min(other.resets);
    }
}

/// How packets get to a server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Reach {
    /// Its address is the node's own.
    Local,
    /// By this way.
    Hop(Hop),
    /// The way is not known: packets are dropped by name.
    Unresolved,
    /// The way is not known yet: a server in the maps stays as it is there, another one waits.
    Pending,
}

impl VipPortConfig {
    /// Each pool as decided and as it is on this node.
    pub(crate) fn pools(&self) -> impl Iterator<Item = (&DecidedPool, &PoolConfig)> {
        self.decided.pools.iter().zip(&self.pools)
    }

    /// The pools' shares, in their order. Where only this node's servers count, a pool that has none here takes its share elsewhere.
    pub(crate) fn weights(&self) -> Vec<u32> {
        let is_local = self.decided.external_traffic_policy == ExternalTrafficPolicy::Local;
        let shares = self.pools().map(|(decided, pool)| {
            let mut servers = pool.servers.iter();
            if is_local && servers.all(|server| server.weight == 0) {
                0
            } else {
                decided.weight
            }
        });
        shares.collect()
    }

    /// The places of the pools whose servers take the new flows of each pool: its own, or its stand-in's.
    pub(crate) fn takers(&self) -> impl Iterator<Item = usize> {
        let pools = self.pools.iter().enumerate();
        pools.map(|(own, pool)| pool.stand_in.unwrap_or(own))
    }

    /// Whether a frame to a server names only the server's address: the port is chosen on the server's own node.
    pub(crate) fn by_address(&self) -> bool {
        matches!(self.decided.mode, ForwardingMode::Dr | ForwardingMode::Tun)
    }
}

/// The mode as records have it.
pub(crate) const fn abi_mode(mode: ForwardingMode) -> sluice_abi::ForwardingMode {
    match mode {
        ForwardingMode::Nat => sluice_abi::ForwardingMode::Nat,
        ForwardingMode::FullNat => sluice_abi::ForwardingMode::FullNat,
        ForwardingMode::Dr => sluice_abi::ForwardingMode::Dr,
        ForwardingMode::Tun => sluice_abi::ForwardingMode::Tun,
    }
}
