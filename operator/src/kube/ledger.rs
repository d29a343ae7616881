//! The addresses of virtual servers: what is asked of the ledger, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_api::{
    AddressPool, AddressPoolStatus, Kind, LabelSelector, LoadBalancerNode, ObjectKey, Time,
};
use sluice_kube::store::Change;
use tracing::warn;

use super::claims;
use super::events::News;
use super::index::{Index, of_namespace};
use super::memory::Decided as _;
use crate::core::{Assignment, Dirty, Named, Taken, address_pool_status};

impl Index {
    pub(super) fn address_pools_changed(&mut self, changes: &[Change<AddressPool>]) {
        self.are_pools_stale = true;
        self.are_groups_stale = true;
        let spec_of = |pool: Option<&AddressPool>| pool.map(|pool| pool.spec.clone());
        let is_new = |change: &Change<AddressPool>| {
            let now = self.address_pools.objects.get(&change.key);
            spec_of(change.before.as_ref()) != spec_of(now)
        };
        if !changes.iter().any(is_new) {
            return;
        }
        let pools = self.address_pools.objects.iter();
        let pools = pools.map(|(key, pool)| (key.name.as_str(), pool));
        self.ledger.set_pools(pools, &mut self.addresses);
        self.dirty = Dirty::All;
        self.offers_changed(None);
    }

    /// Labels of a namespace may open a pool to it, or close one.
    pub(super) fn namespaces_changed(&mut self, changes: &[Change<BTreeMap<String, String>>]) {
        for Change { key, before, .. } in changes {
            let labels = self.namespaces.objects.get(key);
            if before.as_ref() == labels {
                continue;
            }
            self.ledger.set_namespace(&key.name, labels.cloned());
            self.offers_changed(Some(&key.name));
            let servers = of_namespace(&self.virtual_servers.objects, &key.name);
            let servers: Vec<_> = servers
                .map(|(server, _)| (Kind::VirtualServer, server.clone()))
                .collect();
            self.dirty.extend(servers);
        }
    }

    /// Takes the ledger as it stands written. What cannot be read is as good as none: the decisions say the same of the addresses
    /// in force.
    pub(super) fn ledger_read(&mut self, texts: impl IntoIterator<Item = (u8, String)>) {
        for (shard, text) in texts {
            if let Err(error) = self.ledger.load(&text) {
                warn!(
                    shard,
                    "{error}: goes on with the addresses in the decisions"
                );
                self.shards.insert(shard);
            }
        }
        self.is_ledger_read = true;
        let servers = &self.virtual_servers.objects;
        self.ledger.retain(|key| servers.contains_key(key));
    }

    /// What has rested is free again: those ask who did not get all that they ask for.
    pub(super) fn look_at_ledger(&mut self, now_ms: u64) {
        if self.ledger.tick(now_ms) {
            self.are_pools_stale = true;
            let waiting = self.ledger.waiting();
            let waiting: Vec<_> = waiting
                .map(|key| (Kind::VirtualServer, key.clone()))
                .collect();
            self.dirty.extend(waiting);
        }
        self.ledger_changed();
    }

    /// Takes in that the ledger may say something else.
    fn ledger_changed(&mut self) {
        self.shards.extend(self.ledger.take_changed());
        self.are_groups_stale |= self.ledger.take_local_changed();
    }

    /// Asks for the addresses of the virtual servers that are dirty.
    pub(super) fn assign(&mut self) {
        let keys: BTreeSet<ObjectKey> = match &self.dirty {
            Dirty::All => {
                self.are_groups_stale = true;
                let servers = &self.virtual_servers.objects;
                self.ledger.retain(|key| servers.contains_key(key));
                servers.keys().cloned().collect()
            }
            Dirty::Objects(objects) => {
                let servers = objects.iter();
                let servers = servers.filter(|(kind, _)| *kind == Kind::VirtualServer);
                servers.map(|(_, key)| key.clone()).collect()
            }
        };
        if keys.is_empty() {
            return;
        }
        let taken = Taken {
            nodes: &self.known_nodes,
            addresses: &self.addresses,
        };
        let (servers, wrote) = (&self.virtual_servers.objects, &self.wrote_servers);
        let object = |key: &ObjectKey| {
            let object = servers.get(key);
            let there = object.and_then(|object| object.current());
            let decisions = there.into_iter().chain(wrote.decision(key));
            (object, Named::by(decisions))
        };
        for key in self.ledger.ask_all(keys, object, &taken) {
            self.changed((Kind::VirtualServer, key));
        }
        self.ledger_changed();
        self.are_pools_stale = true;
    }

    /// What these virtual servers have.
    pub(super) fn assigned<'a>(
        &self,
        keys: impl Iterator<Item = &'a ObjectKey>,
    ) -> BTreeMap<ObjectKey, Assignment> {
        let assigned = keys.filter_map(|key| {
            let assignment = self.ledger.assignment(key)?;
            Some((key.clone(), assignment.clone()))
        });
        assigned.collect()
    }

    /// The addresses of a virtual server; while it was not asked for, those that it names.
    pub(super) fn addresses_of(&self, key: &ObjectKey) -> Vec<IpAddr> {
        if let Some(assignment) = self.ledger.assignment(key) {
            return assignment.addresses().to_vec();
        }
        let object = self.virtual_servers.objects.get(key);
        object.map_or_else(Vec::new, |object| object.spec.certain_addresses())
    }

    /// The nodes with a LoadBalancerNode whose Nodes a selector means.
    fn directors(&self, selector: &LabelSelector) -> BTreeSet<String> {
        let names = self.nodes.objects.keys();
        let names = names.filter(|key| {
            let node = self.kube_nodes.objects.get(key);
            node.is_some_and(|node| selector.matches(&node.labels))
        });
        names.map(|key| key.name.clone()).collect()
    }

    /// Nodes that came, went or have other labels may be those that a pool's selector means.
    pub(super) fn selectable_nodes_changed(&mut self) {
        let mut pools = self.address_pools.objects.values();
        self.are_pools_stale |= pools.any(|pool| {
            let l2 = pool.spec.l2();
            l2.is_some_and(|l2| l2.node_selector.is_some())
        });
    }

    /// Nodes that came or went.
    pub(super) fn nodes_changed(&mut self, changes: &[Change<LoadBalancerNode>]) {
        let news = changes
            .iter()
            .filter_map(|change| claims::news(self, change));
        let news: Vec<News> = news.collect();
        self.news.extend(news);
        let is_there = |key| self.nodes.objects.contains_key(key);
        let mut changes = changes.iter();
        if changes.any(|change| change.before.is_some() != is_there(&change.key)) {
            self.selectable_nodes_changed();
        }
    }

    /// The statuses of address pools that are to be written.
    pub(super) fn address_pool_news(&self, now: &Time) -> Vec<(ObjectKey, AddressPoolStatus)> {
        let pools = self.ledger.pool_states();
        let news = pools.filter_map(|(name, state)| {
            let key = ObjectKey::new("", name);
            let object = self.address_pools.objects.get(&key)?;
            let selected = |selector: &LabelSelector| self.directors(selector);
            let status = address_pool_status(object, &state, selected, now);
            (object.status.as_ref() != Some(&status)).then_some((key, status))
        });
        news.collect()
    }
}
