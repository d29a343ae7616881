//! The decisions that a source told, kept up by changes. The cost of a change is that of the pools that it concerns.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use sluice_api::{DecidedVirtualServer, ObjectKey, PoolDecision};
use sluice_planner::{Server, Slice, SliceOwner, Slices};

use super::checked::Checked;
use super::drained::Drained;
use crate::source::{Changes, Mark, SliceKey};

/// The newest decisions, and the servers that follow from them.
#[derive(Debug, Default)]
pub(super) struct Decided {
    mark: Mark,
    pools: BTreeMap<ObjectKey, Arc<PoolDecision>>,
    /// Their servers.
    servers: BTreeMap<ObjectKey, Arc<[Server]>>,
    slices: BTreeMap<SliceKey, Arc<Slice>>,
    slices_of: BTreeMap<SliceOwner, BTreeSet<SliceKey>>,
    /// The pools whose servers are in the slices of an owner.
    pools_of: BTreeMap<SliceOwner, BTreeSet<ObjectKey>>,
    /// How many servers have an address.
    addresses: BTreeMap<IpAddr, usize>,
    /// Those that take no new flows, and how long they stay.
    drained: Drained,
    /// Which servers are checked.
    pub(super) checked: Checked,
}

/// Decisions that differ from before, by key; `None`: the object has no decision any more.
#[derive(Debug, Default)]
pub(super) struct Changed {
    pub(super) virtual_servers: BTreeMap<ObjectKey, Option<Arc<DecidedVirtualServer>>>,
    /// The servers of pools.
    pub(super) servers: BTreeMap<ObjectKey, Option<Arc<[Server]>>>,
}

/// Addresses of servers that came and went.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Addresses {
    pub(super) added: BTreeSet<IpAddr>,
    pub(super) removed: BTreeSet<IpAddr>,
}

impl Decided {
    /// Takes in changes. `news` gets what the planner is to be told of them, and `addresses` what follows for the
    /// addresses of servers. Returns whether anything is decided otherwise than before.
    pub(super) fn apply(
        &mut self,
        changes: Changes,
        news: &mut Changed,
        addresses: &mut Addresses,
        now: Instant,
    ) -> bool {
        let differs = self.mark != changes.mark || !changes.virtual_servers.is_empty();
        self.mark = changes.mark;
        for (key, decision) in changes.virtual_servers {
            let content = decision.map(|decision| Arc::new(decision.content.clone()));
            self.checked.set_virtual_server(&key, content.as_deref());
            news.virtual_servers.insert(key, content);
        }
        let mut pools = BTreeSet::new();
        for (key, decision) in changes.pools {
            self.set_pool(&key, decision);
            pools.insert(key);
        }
        for (key, slice) in changes.slices {
            self.set_slice(key, slice, &mut pools);
        }
        differs | self.set_all_servers(pools, news, addresses, now)
    }

    /// When a drained server's time is over.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.drained.deadline()
    }

    /// Lets servers go whose time is over. Returns whether any went.
    pub(super) fn expire(
        &mut self,
        news: &mut Changed,
        addresses: &mut Addresses,
        now: Instant,
    ) -> bool {
        let pools = self.drained.due(now);
        self.set_all_servers(pools, news, addresses, now)
    }

    /// Works out the servers of these pools. Returns whether any are others.
    fn set_all_servers(
        &mut self,
        pools: BTreeSet<ObjectKey>,
        news: &mut Changed,
        addresses: &mut Addresses,
        now: Instant,
    ) -> bool {
        let mut differs = false;
        for key in pools {
            let changed = self.set_servers(&key, addresses, now);
            let decided = self.pools.get(&key).map(|pool| &pool.content);
            self.checked
                .set_pool(&key, decided.zip(self.servers.get(&key)));
            if changed {
                let servers = self.servers.get(&key).cloned();
                news.servers.insert(key, servers);
                differs = true;
            }
        }
        differs
    }

    fn set_pool(&mut self, key: &ObjectKey, decision: Option<Arc<PoolDecision>>) {
        let owner = |decision: &PoolDecision| {
            let endpoints = decision.content.endpoints.as_ref()?;
            Some(SliceOwner::of_decision(&key.namespace, endpoints))
        };
        let after = decision.as_deref().and_then(owner);
        let before = match decision {
            Some(decision) => self.pools.insert(key.clone(), decision),
            None => self.pools.remove(key),
        };
        let before = before.as_deref().and_then(owner);
        if before == after {
            return;
        }
        if let Some(owner) = before {
            take_from(&mut self.pools_of, &owner, key);
        }
        if let Some(owner) = after {
            self.pools_of.entry(owner).or_default().insert(key.clone());
        }
    }

    /// `pools` gets the pools whose servers may be others now.
    fn set_slice(
        &mut self,
        key: SliceKey,
        slice: Option<Arc<Slice>>,
        pools: &mut BTreeSet<ObjectKey>,
    ) {
        let owner = slice.as_ref().map(|slice| slice.owner.clone());
        let before = match slice {
            Some(slice) => self.slices.insert(key.clone(), slice),
            None => self.slices.remove(&key),
        };
        if let Some(before) = before {
            take_from(&mut self.slices_of, &before.owner, &key);
            pools.extend(
                self.pools_of
                    .get(&before.owner)
                    .into_iter()
                    .flatten()
                    .cloned(),
            );
        }
        if let Some(owner) = owner {
            pools.extend(self.pools_of.get(&owner).into_iter().flatten().cloned());
            self.slices_of.entry(owner).or_default().insert(key);
        }
    }

    /// Works out a pool's servers. Returns whether they are others.
    fn set_servers(&mut self, key: &ObjectKey, addresses: &mut Addresses, now: Instant) -> bool {
        let decided = self.pools.get(key).map(|pool| self.servers(key, pool));
        let before = self.servers.remove(key);
        let drain = self.pools.get(key).and_then(|pool| pool.content.drain);
        let known = before.as_deref().unwrap_or_default();
        if decided.is_none() {
            self.drained.forget(key);
        }
        let after = decided.map(|decided| self.drained.keep(key, drain, known, decided, now));
        if before.as_deref() == after.as_deref() {
            self.servers
                .extend(before.map(|servers| (key.clone(), servers)));
            return false;
        }
        for server in after.iter().flatten() {
            let uses = self.addresses.entry(server.address).or_default();
            *uses += 1;
            if *uses == 1 && !addresses.removed.remove(&server.address) {
                addresses.added.insert(server.address);
            }
        }
        for server in before.iter().flat_map(|servers| &**servers) {
            let uses = self.addresses.entry(server.address).or_default();
            *uses = uses.saturating_sub(1);
            if *uses == 0 {
                self.addresses.remove(&server.address);
                if !addresses.added.remove(&server.address) {
                    addresses.removed.insert(server.address);
                }
            }
        }
        if let Some(servers) = after {
            self.servers.insert(key.clone(), servers.into());
        }
        true
    }

    fn servers(&self, key: &ObjectKey, decision: &PoolDecision) -> Vec<Server> {
        let endpoints = decision.content.endpoints.as_ref();
        let owner = endpoints.map(|decided| SliceOwner::of_decision(&key.namespace, decided));
        let keys = owner.and_then(|owner| self.slices_of.get(&owner));
        let slices = keys.into_iter().flatten();
        let slices = slices.filter_map(|key| self.slices.get(key).map(Arc::as_ref));
        Slices::new(slices).servers(&key.namespace, &decision.content)
    }

    /// The servers of a pool; none if it has no decision.
    pub(super) fn servers_of(&self, pool: &ObjectKey) -> &[Server] {
        self.servers.get(pool).map_or(&[], |servers| servers)
    }

    /// How far it goes.
    pub(super) fn mark(&self) -> &Mark {
        &self.mark
    }
}

fn take_from<K: Ord, V: Ord>(sets: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sluice_api::EndpointSource;
    use sluice_planner::SliceEndpoint;

    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("shop", name)
    }

    /// A pool whose servers are the pods of a name.
    fn pool(changes: &mut Changes, name: &str, pods: &str) {
        let decision = json!({
            "revision": 1, "generation": 1, "endpoints": {"source": "Pods", "name": pods},
        });
        let decision = serde_json::from_value(decision).unwrap();
        changes.pools.insert(key(name), Some(Arc::new(decision)));
    }

    fn slice(changes: &mut Changes, name: &str, pods: &str, addresses: &[&str]) {
        let endpoint = |address: &&str| SliceEndpoint {
            name: (*address).to_owned(),
            address: address.parse().unwrap(),
            pod_uid: None,
            node: None,
            ready: true,
            serving: true,
            terminating: false,
        };
        let slice = Slice {
            owner: SliceOwner {
                namespace: "shop".to_owned(),
                source: EndpointSource::Pods,
                name: pods.to_owned(),
            },
            ports: Vec::new(),
            endpoints: addresses.iter().map(endpoint).collect(),
        };
        let key = (EndpointSource::Pods, key(name));
        changes.slices.insert(key, Some(Arc::new(slice)));
    }

    /// Applies changes. Returns whether something changed, and the addresses that came and went.
    fn apply(
        decided: &mut Decided,
        change: impl FnOnce(&mut Changes),
    ) -> (bool, Vec<String>, Vec<String>) {
        let mut changes = Changes::default();
        change(&mut changes);
        let (mut news, mut addresses) = (Changed::default(), Addresses::default());
        let differs = decided.apply(changes, &mut news, &mut addresses, Instant::now());
        assert_eq!(differs, !news.servers.is_empty());
        let text = |set: BTreeSet<IpAddr>| set.iter().map(ToString::to_string).collect();
        (differs, text(addresses.added), text(addresses.removed))
    }

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn a_slice_counts_for_the_pools_of_its_owner() {
        let mut decided = Decided::default();
        let first = apply(&mut decided, |changes| {
            pool(changes, "v1", "a");
            slice(changes, "s1", "a", &["10.0.0.1", "10.0.0.2"]);
            slice(changes, "s2", "b", &["10.0.0.3"]);
        });
        assert_eq!(first, (true, owned(&["10.0.0.1", "10.0.0.2"]), Vec::new()));
        let moved = apply(&mut decided, |changes| pool(changes, "v1", "b"));
        assert_eq!(moved.1, ["10.0.0.3"], "the slice was known");
        assert_eq!(moved.2, ["10.0.0.1", "10.0.0.2"]);
        let nobodys = apply(&mut decided, |changes| {
            slice(changes, "s1", "a", &["10.0.0.9"]);
        });
        assert_eq!(nobodys, (false, Vec::new(), Vec::new()));
        let relabelled = apply(&mut decided, |changes| {
            slice(changes, "s1", "b", &["10.0.0.9"]);
        });
        assert_eq!(relabelled, (true, owned(&["10.0.0.9"]), Vec::new()));
        let gone = apply(&mut decided, |changes| {
            let key = (EndpointSource::Pods, key("s1"));
            changes.slices.insert(key, None);
        });
        assert_eq!(gone, (true, Vec::new(), owned(&["10.0.0.9"])));
    }

    #[test]
    fn an_address_goes_with_its_last_server() {
        let mut decided = Decided::default();
        apply(&mut decided, |changes| {
            pool(changes, "v1", "a");
            pool(changes, "v2", "a");
            slice(changes, "s1", "a", &["10.0.0.1"]);
        });
        let first = apply(&mut decided, |changes| {
            changes.pools.insert(key("v1"), None);
        });
        assert_eq!(first, (true, Vec::new(), Vec::new()));
        let last = apply(&mut decided, |changes| {
            changes.pools.insert(key("v2"), None);
        });
        assert_eq!(last, (true, Vec::new(), owned(&["10.0.0.1"])));
        assert!(decided.servers.is_empty());
        let nothing = apply(&mut decided, |_| {});
        assert_eq!(nothing, (false, Vec::new(), Vec::new()));
    }
}
