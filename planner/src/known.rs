//! All that is known: what was decided, and what the node sees.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use sluice_api::{DecidedVirtualServer, ObjectKey};

use crate::ring::WHOLE;
use crate::{NextHop, NodeView, Server, Tenths};

/// The planner's inputs, and which of them lead to which.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Virtual servers with a decision.
    pub(crate) virtual_servers: BTreeMap<ObjectKey, Arc<DecidedVirtualServer>>,
    /// The servers of pools with a decision.
    pub(crate) pools: BTreeMap<ObjectKey, Arc<[Server]>>,
    /// What checks say of servers of pools.
    pub(crate) tenths: BTreeMap<ObjectKey, Arc<Tenths>>,
    pub(crate) view: NodeView,
    pub(crate) next_hops: BTreeMap<IpAddr, NextHop>,
    /// Pools and the virtual servers that name them.
    users: BTreeSet<(ObjectKey, ObjectKey)>,
    /// VIPs and the virtual servers that have them.
    vips: BTreeSet<(IpAddr, ObjectKey)>,
    /// Addresses and the pools that have a server there.
    addresses: BTreeSet<(IpAddr, ObjectKey)>,
}

impl Known {
    pub(crate) fn set_virtual_server(
        &mut self,
        key: &ObjectKey,
        decided: Option<Arc<DecidedVirtualServer>>,
    ) {
        if let Some(old) = self.virtual_servers.get(key) {
            for pool in &old.pools {
                self.users.remove(&(key.sibling(&pool.name), key.clone()));
            }
            for &vip in &old.addresses {
                self.vips.remove(&(vip, key.clone()));
            }
        }
        let Some(decided) = decided else {
            self.virtual_servers.remove(key);
            return;
        };
        for pool in &decided.pools {
            self.users.insert((key.sibling(&pool.name), key.clone()));
        }
        for &vip in &decided.addresses {
            self.vips.insert((vip, key.clone()));
        }
        self.virtual_servers.insert(key.clone(), decided);
    }

    pub(crate) fn set_servers(&mut self, pool: &ObjectKey, servers: Option<Arc<[Server]>>) {
        for server in self.pools.get(pool).into_iter().flat_map(|old| &**old) {
            self.addresses.remove(&(server.address, pool.clone()));
        }
        let Some(servers) = servers else {
            self.pools.remove(pool);
            return;
        };
        for server in &*servers {
            self.addresses.insert((server.address, pool.clone()));
        }
        self.pools.insert(pool.clone(), servers);
    }

    /// The tenths of its slots that a server of a pool has at a port.
    pub(crate) fn tenths_of(&self, pool: &ObjectKey, address: IpAddr, port: u16) -> u8 {
        let tenths = self.tenths.get(pool);
        let of = |port| tenths?.get(&SocketAddr::new(address, port)).copied();
        of(port).or_else(|| of(0)).unwrap_or(WHOLE)
    }

    /// The virtual servers that name a pool.
    pub(crate) fn users<'a>(&'a self, pool: &'a ObjectKey) -> impl Iterator<Item = &'a ObjectKey> {
        beside(&self.users, pool)
    }

    /// The virtual servers that have a VIP.
    pub(crate) fn with_vip(&self, vip: IpAddr) -> Vec<ObjectKey> {
        beside(&self.vips, &vip).cloned().collect()
    }

    /// The pools that have a server at an address.
    pub(crate) fn pools_at(&self, address: IpAddr) -> Vec<ObjectKey> {
        beside(&self.addresses, &address).cloned().collect()
    }
}

/// The objects beside `first` in a set of pairs.
fn beside<'a, T: Ord + Clone>(
    pairs: &'a BTreeSet<(T, ObjectKey)>,
    first: &T,
) -> impl Iterator<Item = &'a ObjectKey> {
    let first = first.clone();
    let from = (first.clone(), ObjectKey::new("", ""));
    let pairs = pairs.range(from..);
    pairs
        .take_while(move |(other, _)| *other == first)
        .map(|(_, key)| key)
}
