//! Everything that is known, kept up by the watches and by the answers to our own writes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kube::Resource;
use sluice_api::{
    DecidedEndpoints, EndpointSource, LoadBalancerNode, ObjectKey, POOL_LABEL, RealServerPool,
    RealServerPoolStatus, RolloutPolicy, VirtualServer, pool_label,
};
use sluice_kube::Item;
use sluice_kube::error::RequestError;
use sluice_kube::lease::LeaseFacts;
use sluice_kube::store::{Change, Missed, Store};
use sluice_kube::watched;
use sluice_planner::Slice;
use tracing::{info, warn};

use super::facts::{PodFacts, SliceFacts};
use super::memory::Memory;
use super::watch::KINDS;
use crate::core::{Cluster, Liveness, Node, Outcome, World};
use crate::managed::Managed;

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) virtual_servers: Store<VirtualServer>,
    pub(super) pools: Store<RealServerPool>,
    pub(super) policies: Store<RolloutPolicy>,
    pub(super) nodes: Store<LoadBalancerNode>,
    pub(super) leases: Store<LeaseFacts>,
    pub(super) pods: Store<PodFacts>,
    pub(super) services: Store<BTreeSet<IpAddr>>,
    pub(super) slices: Store<SliceFacts>,
    /// Where the nodes' Leases are.
    pub(super) namespace: String,
    cluster: Cluster,
    pub(super) known_nodes: BTreeMap<String, Node>,
    pub(super) liveness: Liveness,
    /// Runs while the Leases are heard of: a lost watch makes no node silent.
    pub(super) heard_ms: u64,
    pub(super) looked_ms: u64,
    /// [`Self::heard_ms`] before the last look.
    pub(super) heard_before_ms: u64,
    /// The kinds whose watch is lost, and why.
    pub(super) lost: BTreeMap<&'static str, String>,
    orphans: BTreeMap<ObjectKey, RealServerPoolStatus>,
    /// The pools of pods, as the core last decided; `None` before it did.
    pub(super) selecting: Option<BTreeMap<ObjectKey, DecidedEndpoints>>,
    pub(super) wrote_servers: Memory<VirtualServer>,
    pub(super) wrote_pools: Memory<RealServerPool>,
    /// The highest revision that was tried to be given, or is gone.
    revision_floor: u64,
    /// Whether the core may say something else now.
    pub(super) dirty: bool,
    /// Pools whose slices may have to change.
    pub(super) dirty_pools: BTreeSet<ObjectKey>,
    missed: Vec<(&'static str, Missed)>,
}

impl Index {
    /// `namespace` has the nodes' Leases.
    pub(super) fn new(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            dirty: true,
            ..Self::default()
        }
    }

    /// The kinds whose first list is waited for, with what keeps it. Nothing is decided before.
    pub(super) fn awaited(&mut self) -> Vec<(&'static str, Option<String>)> {
        let mut awaited = Vec::new();
        for kind in KINDS {
            if !kind.is_complete(self) {
                awaited.push((kind.name, self.lost.get(kind.name).cloned()));
            }
        }
        awaited
    }

    /// The objects that turned out not to be taken in since the last call.
    pub(super) fn take_missed(&mut self) -> Vec<(&'static str, Missed)> {
        std::mem::take(&mut self.missed)
    }

    /// No revision up to this one is given again.
    pub(super) fn raise_floor(&mut self, revision: u64) {
        self.revision_floor = self.revision_floor.max(revision);
    }

    /// The highest revision that is known.
    pub(super) fn highest_revision(&self) -> u64 {
        let of_servers = self.virtual_servers.objects.values();
        let of_servers = of_servers.filter_map(|o| o.status.as_ref().map(VirtualServer::revision));
        let of_pools = self.pools.objects.values();
        let of_pools = of_pools.filter_map(|o| o.status.as_ref().map(RealServerPool::revision));
        let highest = of_servers.chain(of_pools).max();
        highest.unwrap_or_default().max(self.revision_floor)
    }

    /// Lends everything to `look` as the core sees it.
    pub(super) fn with_world(&mut self, look: impl FnOnce(&World) -> Outcome) -> Outcome {
        let servers = self
            .wrote_servers
            .restore(&mut self.virtual_servers.objects);
        let pools = self.wrote_pools.restore(&mut self.pools.objects);
        let world = World {
            virtual_servers: std::mem::take(&mut self.virtual_servers.objects),
            pools: std::mem::take(&mut self.pools.objects),
            policies: std::mem::take(&mut self.policies.objects),
            nodes: std::mem::take(&mut self.known_nodes),
            orphans: std::mem::take(&mut self.orphans),
            revision_floor: self.revision_floor,
            cluster: Some(std::mem::take(&mut self.cluster)),
        };
        let outcome = look(&world);
        self.virtual_servers.objects = world.virtual_servers;
        self.pools.objects = world.pools;
        self.virtual_servers.objects.extend(servers);
        self.pools.objects.extend(pools);
        self.policies.objects = world.policies;
        self.known_nodes = world.nodes;
        self.orphans = world.orphans;
        self.orphans
            .retain(|key, _| outcome.pools.contains_key(key));
        self.cluster = world.cluster.unwrap_or_default();
        outcome
    }

    /// Takes which pods the pools have by what the core decided. A spec that it refused does not count: the pool goes on with
    /// the pods that it had.
    pub(super) fn select(&mut self, outcome: &Outcome) {
        let decided = outcome.pools.iter().filter_map(|(key, status)| {
            let content = &status.decision.as_ref()?.content;
            content.selector()?;
            Some((key.clone(), content.endpoints.clone()?))
        });
        let now: BTreeMap<ObjectKey, DecidedEndpoints> = decided.collect();
        let before = self.selecting.take().unwrap_or_default();
        let changed = |(key, endpoints): &(&ObjectKey, &DecidedEndpoints)| {
            before.get(*key) != Some(*endpoints)
        };
        let changed = now.iter().filter(changed).map(|(key, _)| key);
        let gone = before.keys().filter(|key| !now.contains_key(*key));
        self.dirty_pools.extend(changed.chain(gone).cloned());
        self.selecting = Some(now);
    }

    /// Takes a slice that we have just written.
    pub(super) fn slice_written(&mut self, item: Item<SliceFacts>) {
        let changes: Vec<_> = self.slices.made(item).into_iter().collect();
        self.slices_changed(&changes);
    }

    /// Forgets a slice that we have just deleted.
    pub(super) fn slice_deleted(&mut self, key: &ObjectKey) {
        let changes: Vec<_> = self.slices.remove(key).into_iter().collect();
        self.slices_changed(&changes);
    }

    /// A decision that is gone leaves its revision behind: it is never given again.
    pub(super) fn own_changed<K: Managed>(&mut self, changes: &[Change<K>]) {
        self.dirty |= !changes.is_empty();
        for change in changes {
            let status = change.before.as_ref().and_then(Managed::status);
            self.raise_floor(status.map_or(0, K::revision));
        }
    }

    pub(super) fn pools_changed(&mut self, changes: Vec<Change<RealServerPool>>) {
        self.own_changed(&changes);
        for change in changes {
            let Change { key, before, .. } = change;
            if self.pools.objects.contains_key(&key) {
                self.orphans.remove(&key);
            } else if let Some(status) = before.and_then(|pool| pool.status)
                && status.decision.is_some()
            {
                self.orphans.insert(key.clone(), status);
            }
            self.dirty_pools.insert(key);
        }
    }

    pub(super) fn pods_changed(&mut self, changes: &[Change<PodFacts>]) {
        let namespaces: BTreeSet<&str> = changes
            .iter()
            .map(|change| change.key.namespace.as_str())
            .collect();
        let Some(selecting) = &self.selecting else {
            return;
        };
        for namespace in namespaces {
            let pools = of_namespace(selecting, namespace);
            self.dirty_pools.extend(pools.map(|(key, _)| key.clone()));
        }
    }

    /// Whether an object that was never visited names one that nobody has heard of.
    pub(super) fn lacks_referents(&self) -> bool {
        let lacks_pool = |(key, object): (&ObjectKey, &VirtualServer)| {
            let mut pools = object.spec.pools.iter();
            object.status.is_none()
                && pools.any(|pool| !self.pools.objects.contains_key(&key.sibling(&pool.name)))
        };
        let lacks_target = |(key, object): (&ObjectKey, &RolloutPolicy)| {
            let target = key.sibling(&object.spec.virtual_server_name);
            object.status.is_none() && !self.virtual_servers.objects.contains_key(&target)
        };
        self.virtual_servers.objects.iter().any(lacks_pool)
            || self.policies.objects.iter().any(lacks_target)
    }

    pub(super) fn services_changed(&mut self, changes: Vec<Change<BTreeSet<IpAddr>>>) {
        for Change { key, .. } in changes {
            match self.services.objects.get(&key) {
                Some(addresses) => self.cluster.services.insert(key, addresses.clone()),
                None => self.cluster.services.remove(&key),
            };
            self.dirty = true;
        }
    }

    pub(super) fn slices_changed(&mut self, changes: &[Change<SliceFacts>]) {
        for Change { key, before, .. } in changes {
            let now = self.slices.objects.get(key);
            let facts: Vec<&SliceFacts> = before.iter().chain(now).collect();
            let own = facts.iter().any(|facts| facts.own.is_some());
            let mut concerned = BTreeSet::new();
            for (pool, object) in of_namespace(&self.pools.objects, &key.namespace) {
                let status = object.status.as_ref();
                let decision = status.and_then(|status| status.decision.as_ref());
                let decided = decision.and_then(|decision| decision.content.endpoints.as_ref());
                let wanted = &object.spec.servers;
                let reads = |slice: &Slice| {
                    let by_spec = match slice.owner.source {
                        EndpointSource::Pods => slice.owner.name == pool_label(&pool.name),
                        EndpointSource::Service => {
                            wanted.service_name.as_ref() == Some(&slice.owner.name)
                        }
                    };
                    let owner = &slice.owner;
                    let is_owner =
                        |e: &DecidedEndpoints| (e.source, &e.name) == (owner.source, &owner.name);
                    by_spec || decided.is_some_and(is_owner)
                };
                let slices = facts.iter().filter_map(|facts| facts.slice.as_ref());
                if slices.into_iter().any(reads) {
                    self.dirty = true;
                }
                if own && belongs(key, &facts, pool) {
                    concerned.insert(pool.clone());
                }
            }
            match now.and_then(|facts| facts.slice.clone()) {
                Some(slice) => self.cluster.slices.insert(key.clone(), slice),
                None => self.cluster.slices.remove(key),
            };
            self.dirty_pools.extend(concerned);
        }
    }
}

impl watched::Index for Index {
    type Answer = ();

    /// What is of another state of the API server does not come so far.
    fn believes(&mut self, (): ()) -> bool {
        true
    }

    fn works(&mut self, kind: &'static str) {
        if self.lost.remove(kind).is_some() {
            info!(kind, "is watched again");
        }
    }

    fn failed(&mut self, kind: &'static str, verb: &'static str, error: RequestError) {
        let error = format!("cannot {verb} {kind}: {error}");
        if self.lost.get(kind) != Some(&error) {
            warn!(kind, error, "the watch is lost; tries again");
        }
        self.lost.insert(kind, error);
    }

    fn missed(&mut self, kind: &'static str, object: Missed) {
        warn!(kind, object = %object.key, "{}", object.why);
        self.missed.push((kind, object));
    }
}

/// Whether a slice of ours is or was this pool's.
fn belongs(key: &ObjectKey, facts: &[&SliceFacts], pool: &ObjectKey) -> bool {
    key.name
        .starts_with(&super::slices::name_prefix(&pool.name))
        || facts.iter().any(|facts| {
            let labels = facts
                .own
                .as_ref()
                .and_then(|own| own.metadata.labels.as_ref());
            labels.and_then(|labels| labels.get(POOL_LABEL)) == Some(&pool_label(&pool.name))
        })
}

/// The objects of a namespace.
pub(super) fn of_namespace<'a, T>(
    objects: &'a BTreeMap<ObjectKey, T>,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a ObjectKey, &'a T)> {
    objects
        .range(ObjectKey::new(namespace, "")..)
        .take_while(move |(key, _)| key.namespace == namespace)
}

/// An object that the API server answered with.
pub(super) fn answered<K: Resource<DynamicType = ()>>(mut object: K) -> Item<K> {
    object.meta_mut().managed_fields = None;
    Item::of(object, Ok)
}
