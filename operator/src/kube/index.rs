//! Everything that is known, kept up by the watches and by the answers to our own writes.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Resource;
use sluice_api::{
    AddressPool, DecidedEndpoints, Kind, LabelSelector, LoadBalancerNode, ObjectKey, POOL_LABEL,
    RealServerPool, RealServerPoolStatus, RolloutPhase, RolloutPolicy, Time, VirtualServer,
    pool_label,
};
use sluice_kube::Item;
use sluice_kube::error::RequestError;
use sluice_kube::lease::LeaseFacts;
use sluice_kube::store::{Change, Missed, Store};
use sluice_kube::watched::{self, Watched as _};
use sluice_rollout::is_baking;
use sluice_signals::Tally;
use tracing::{info, warn};

use super::departures::Departures;
use super::events::News;
use super::facts::{NAME_MARK, NodeFacts, PodFacts, ServiceFacts, SliceFacts};
use super::labels::ByLabel;
use super::memory::{Decided, Memory};
use super::peers::Cordoned;
use super::services::Concerns;
use super::slices::name_prefix;
use super::vip_groups::GroupLeaseFacts;
use super::watch::ServiceCidrs;
use crate::core::{
    Addresses, Analyses, Cluster, Dirty, Ledger, Links, Liveness, Node, Object, Outcome, Stood,
    Timers, WithoutPools, World, reconcile_parts,
};
use crate::managed::Managed;
use crate::settings::Settings;

/// The operator's view of the API server's objects.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) virtual_servers: Store<VirtualServer>,
    pub(super) pools: Store<RealServerPool>,
    pub(super) policies: Store<RolloutPolicy>,
    pub(super) nodes: Store<LoadBalancerNode>,
    pub(super) leases: Store<LeaseFacts>,
    pub(super) pods: Store<PodFacts>,
    pub(super) services: Store<ServiceFacts>,
    pub(super) slices: Store<SliceFacts>,
    pub(super) kube_nodes: Store<NodeFacts>,
    pub(super) service_cidrs: Store<BTreeSet<IpNet>>,
    pub(super) peers: Store<String>,
    pub(super) address_pools: Store<AddressPool>,
    pub(super) namespaces: Store<BTreeMap<String, String>>,
    pub(super) group_leases: Store<GroupLeaseFacts>,
    /// Where the nodes' Leases are.
    pub(super) namespace: String,
    pub(super) cluster: Cluster,
    pub(super) addresses: Addresses,
    pub(super) ledger: Ledger,
    /// Whether the ledger as it stood written has been taken in.
    pub(super) is_ledger_read: bool,
    /// Shards of the ledger that are to be written.
    pub(super) shards: BTreeSet<u8>,
    /// Whether something else may have to be said of the address pools.
    pub(super) are_pools_stale: bool,
    pub(super) cordoned: Cordoned,
    /// Whether Leases of VIP groups may have to be made or deleted.
    pub(super) are_groups_stale: bool,
    pub(super) known_nodes: BTreeMap<String, Node>,
    pub(super) liveness: Liveness,
    pub(super) departures: Departures,
    timers: Timers,
    /// What nodes see of the pools of policies.
    analyses: Analyses,
    /// Runs while the Leases are heard of: a lost watch makes no node silent.
    pub(super) heard_ms: u64,
    pub(super) looked_ms: u64,
    /// [`Self::heard_ms`] before the last look.
    pub(super) heard_before_ms: u64,
    /// The kinds whose watch is lost, and why.
    pub(super) lost: BTreeMap<&'static str, String>,
    /// The kinds that the API server does not have.
    absent: BTreeSet<&'static str>,
    orphans: BTreeMap<ObjectKey, RealServerPoolStatus>,
    /// The pools of pods, as the core last decided; `None` before it did.
    pub(super) selecting: Option<BTreeMap<ObjectKey, DecidedEndpoints>>,
    /// Pods, and the selectors of these pools.
    pub(super) by_label: ByLabel,
    pub(super) links: Links,
    pub(super) wrote_servers: Memory<VirtualServer>,
    pub(super) wrote_pools: Memory<RealServerPool>,
    /// The highest revision that was tried to be given, or is gone.
    pub(super) revision_floor: u64,
    /// For which objects the core may say something else now.
    pub(super) dirty: Dirty,
    /// Kinds of which decisions went away, or were changed by others.
    reopened: BTreeSet<Kind>,
    /// What Services of type LoadBalancer are concerned with.
    pub(super) concerns: Concerns,
    /// Pools of which servers are drained by hand.
    drained: BTreeSet<ObjectKey>,
    /// Pools whose slices may have to change.
    pub(super) dirty_pools: BTreeSet<ObjectKey>,
    missed: Vec<(&'static str, Missed)>,
    /// Events that are to be told.
    pub(super) news: Vec<News>,
}

impl Index {
    /// `namespace` has the nodes' Leases.
    pub(super) fn new(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            dirty: Dirty::All,
            ledger: Ledger::new(WithoutPools::NoAddress),
            ..Self::default()
        }
    }

    /// Takes what the operator's options say.
    pub(super) fn set(&mut self, settings: &Settings) {
        self.addresses.reserve(&settings.reserved);
        self.addresses.refuse_servers(&settings.refused_servers);
        self.departures.forget_after(settings.forget_silent_seconds);
        self.concerns.without_class = settings.services_without_class;
        if settings.drains_cordoned {
            self.cordoned = Cordoned::Drained;
        }
    }

    /// Whether the API server does not have this kind. It is not waited for.
    pub(super) fn is_absent(&self, kind: &str) -> bool {
        self.absent.contains(kind)
    }

    fn note_absence(&mut self, kind: &'static str, error: &str) {
        if self.absent.insert(kind) {
            info!(kind, error, "goes on without it");
        }
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
        self.revision_floor
    }

    /// The kinds of which decisions went away, or were changed by others, since the last call.
    pub(super) fn take_reopened(&mut self) -> BTreeSet<Kind> {
        std::mem::take(&mut self.reopened)
    }

    /// Decides what is dirty, and all that is linked to it.
    pub(super) fn decide(&mut self, now: &Time) -> Outcome {
        self.assign();
        let roots = match std::mem::take(&mut self.dirty) {
            Dirty::Objects(objects) => objects,
            Dirty::All => self.links.all(),
        };
        let parts = self.links.parts(&roots);
        let outcome = self.decide_parts(&parts, now);
        let pools = parts.into_iter().flatten();
        let pools = pools.filter(|(kind, _)| *kind == Kind::RealServerPool);
        let gone = pools.filter(|(_, key)| !outcome.pools.contains_key(key));
        let gone: Vec<ObjectKey> = gone.map(|(_, key)| key).collect();
        for key in &gone {
            self.orphans.remove(key);
            self.relink(&(Kind::RealServerPool, key.clone()));
        }
        self.select(&gone, &outcome);
        outcome
    }

    /// Lends everything to the core, as it is to see it.
    fn decide_parts(&mut self, parts: &[BTreeSet<Object>], now: &Time) -> Outcome {
        let keys = |of: Kind| {
            let objects = parts.iter().flatten().filter(move |(kind, _)| *kind == of);
            objects.map(|(_, key)| key)
        };
        let servers = &mut self.virtual_servers.objects;
        let servers = self
            .wrote_servers
            .restore(keys(Kind::VirtualServer), servers);
        let pools = &mut self.pools.objects;
        let pools = self.wrote_pools.restore(keys(Kind::RealServerPool), pools);
        let stood = self.stood(keys(Kind::RolloutPolicy));
        let analysed = keys(Kind::RolloutPolicy).filter_map(|key| {
            let policy = self.policies.objects.get(key)?;
            Some((key.clone(), self.analyses.look(key, policy)?))
        });
        let analysed = analysed.collect();
        let mut world = World {
            virtual_servers: std::mem::take(&mut self.virtual_servers.objects),
            pools: std::mem::take(&mut self.pools.objects),
            policies: std::mem::take(&mut self.policies.objects),
            nodes: std::mem::take(&mut self.known_nodes),
            orphans: std::mem::take(&mut self.orphans),
            revision_floor: self.revision_floor,
            cluster: Some(std::mem::take(&mut self.cluster)),
            addresses: std::mem::take(&mut self.addresses),
            stood,
            analysed,
            assigned: self.assigned(keys(Kind::VirtualServer)),
        };
        let outcome = reconcile_parts(&mut world, &self.links, parts, now);
        self.virtual_servers.objects = world.virtual_servers;
        self.pools.objects = world.pools;
        self.virtual_servers.objects.extend(servers);
        self.pools.objects.extend(pools);
        self.policies.objects = world.policies;
        self.known_nodes = world.nodes;
        self.orphans = world.orphans;
        self.cluster = world.cluster.unwrap_or_default();
        self.addresses = world.addresses;
        outcome
    }

    /// How long the steps of these policies have stood as they do.
    fn stood<'a>(
        &mut self,
        policies: impl Iterator<Item = &'a ObjectKey>,
    ) -> BTreeMap<ObjectKey, Stood> {
        let (timers, now_ms) = (&mut self.timers, self.looked_ms);
        let stood = policies.map(|key| {
            let policy = self.policies.objects.get(key);
            let status = policy.and_then(|policy| policy.status.as_ref());
            (key.clone(), timers.look(key, status, now_ms))
        });
        stood.collect()
    }

    /// Takes which pods the pools have by what the core decided. A spec that it refused does not count: the pool goes on with
    /// the pods that it had.
    fn select(&mut self, gone: &[ObjectKey], outcome: &Outcome) {
        let selecting = self.selecting.get_or_insert_default();
        let gone = gone.iter().map(|key| (key, None));
        let decided = outcome.pools.iter().map(|(key, status)| {
            let decision = status.decision.as_ref();
            let content = decision.map(|decision| &decision.content);
            let of_pods = content.filter(|content| content.selector().is_some());
            (key, of_pods.and_then(|content| content.endpoints.clone()))
        });
        for (key, endpoints) in gone.chain(decided) {
            if selecting.get(key) == endpoints.as_ref() {
                continue;
            }
            self.dirty_pools.insert(key.clone());
            let before = selector_of(selecting.get(key));
            let now = selector_of(endpoints.as_ref());
            self.by_label.pool(key, before, now);
            match endpoints {
                Some(endpoints) => selecting.insert(key.clone(), endpoints),
                None => selecting.remove(key),
            };
        }
    }

    /// The policies whose time may have come.
    pub(super) fn look_at_timers(&mut self, now: &Time) {
        let running = self.policies.objects.iter().filter(|(_, policy)| {
            let status = policy.status.as_ref();
            let phase = status.and_then(|status| status.phase);
            phase != Some(RolloutPhase::Completed) || status.is_some_and(is_baking)
        });
        let running = running.map(|(key, _)| (Kind::RolloutPolicy, key.clone()));
        self.dirty.extend(running);
        let over = self.drained.iter().filter(|key| {
            let pool = self.pools.objects.get(key);
            pool.and_then(Decided::current)
                .is_some_and(|decision| decision.content.is_drain_over(now.0))
        });
        let over = over.map(|key| (Kind::RealServerPool, key.clone()));
        self.dirty.extend(over);
    }

    /// The pools that rollouts are to know of.
    pub(super) fn pools_of_rollouts(&self) -> BTreeSet<ObjectKey> {
        Analyses::pools(&self.policies.objects)
    }

    /// Takes what nodes saw of the pools of policies.
    pub(super) fn hear(&mut self, news: &BTreeMap<ObjectKey, Tally>, now_ms: u64) {
        let policies = &self.policies.objects;
        let changed = self.analyses.hear(policies, news, now_ms);
        let changed = changed.into_iter().map(|key| (Kind::RolloutPolicy, key));
        self.dirty.extend(changed);
    }

    /// Notes that an object changed.
    pub(super) fn changed(&mut self, object: Object) {
        self.relink(&object);
        self.owned_changed(&object);
        self.dirty.extend([object]);
    }

    /// Takes what an object is linked to. What it no longer is may have to be decided anew.
    fn relink(&mut self, object: &Object) {
        let (kind, key) = object;
        let concerned = match kind {
            Kind::VirtualServer => {
                let object = self.virtual_servers.objects.get(key);
                let there = object.and_then(Decided::current);
                let ours = self.wrote_servers.decision(key);
                let decisions: Vec<_> = there.into_iter().chain(ours).collect();
                let highest = decisions.iter().map(|decision| decision.revision).max();
                self.revision_floor = self.revision_floor.max(highest.unwrap_or_default());
                let addresses = self.addresses_of(key);
                self.links
                    .virtual_server(key, object, addresses, &decisions)
            }
            Kind::RealServerPool => {
                let object = self.pools.objects.get(key);
                let there = object.and_then(Decided::current);
                if there.is_some_and(|decision| !decision.content.drained.is_empty()) {
                    self.drained.insert(key.clone());
                } else {
                    self.drained.remove(key);
                }
                let ours = self.wrote_pools.decision(key);
                let orphan = self
                    .orphans
                    .get(key)
                    .and_then(|orphan| orphan.decision.as_ref());
                let decisions: Vec<_> = there.into_iter().chain(ours).chain(orphan).collect();
                let highest = decisions.iter().map(|decision| decision.revision).max();
                self.revision_floor = self.revision_floor.max(highest.unwrap_or_default());
                self.links.pool(key, object, &decisions)
            }
            Kind::RolloutPolicy => {
                let object = self.policies.objects.get(key);
                self.links.policy(key, object)
            }
            Kind::LoadBalancerNode | Kind::AddressPool => return,
        };
        self.dirty.extend(concerned);
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
    fn revised<K: Managed>(&mut self, before: Option<&K>) {
        let revision = before.and_then(Managed::status).map_or(0, K::revision);
        self.raise_floor(revision);
        if revision > 0 {
            self.reopened.insert(K::KIND);
        }
    }

    pub(super) fn virtual_servers_changed(&mut self, changes: Vec<Change<VirtualServer>>) {
        for change in changes {
            let Change { key, before, .. } = change;
            self.revised::<VirtualServer>(before.as_ref());
            let now = self.virtual_servers.objects.get(&key);
            self.wrote_servers.check(&key, now);
            self.changed((Kind::VirtualServer, key));
        }
    }

    pub(super) fn policies_changed(&mut self, changes: Vec<Change<RolloutPolicy>>) {
        for change in changes {
            self.changed((Kind::RolloutPolicy, change.key));
        }
    }

    pub(super) fn pools_changed(&mut self, changes: Vec<Change<RealServerPool>>) {
        for change in changes {
            let Change { key, before, .. } = change;
            self.revised::<RealServerPool>(before.as_ref());
            let now = self.pools.objects.get(&key);
            self.wrote_pools.check(&key, now);
            if now.is_some() {
                self.orphans.remove(&key);
            } else if let Some(status) = before.and_then(|pool| pool.status)
                && status.decision.is_some()
            {
                self.orphans.insert(key.clone(), status);
            }
            self.dirty_pools.insert(key.clone());
            self.changed((Kind::RealServerPool, key));
        }
    }

    pub(super) fn pods_changed(&mut self, changes: &[Change<PodFacts>]) {
        for Change { key, before, .. } in changes {
            let now = self.pods.objects.get(key);
            let old = before.as_ref().map(|pod| &pod.labels);
            let new = now.map(|pod| &pod.labels);
            self.by_label.pod(key, old, new);
            let Some(selecting) = &self.selecting else {
                continue;
            };
            let other = new.filter(|new| old != Some(*new));
            for labels in old.into_iter().chain(other) {
                let pools = self.by_label.pools(&key.namespace, labels);
                let pools = pools.filter(|pool| {
                    let selector = selector_of(selecting.get(pool));
                    selector.is_some_and(|selector| selector.matches(labels))
                });
                self.dirty_pools.extend(pools.cloned());
            }
        }
    }

    /// The pods that a selector selects, with their names.
    pub(super) fn selected<'a>(
        &'a self,
        namespace: &'a str,
        selector: &'a LabelSelector,
    ) -> impl Iterator<Item = (&'a str, &'a PodFacts)> {
        let named = self.by_label.pods(namespace, selector);
        let all = named
            .is_none()
            .then(|| of_namespace(&self.pods.objects, namespace));
        let some = named.into_iter().flatten().filter_map(move |name| {
            let key = ObjectKey::new(namespace, name);
            self.pods.objects.get_key_value(&key)
        });
        let pods = some.chain(all.into_iter().flatten());
        let pods = pods.filter(|(_, pod)| selector.matches(&pod.labels));
        pods.map(|(pod, facts)| (pod.name.as_str(), facts))
    }

    /// The slices that are or were this pool's, by name or by label.
    pub(super) fn slices_of_pool<'a>(
        &'a self,
        pool: &'a ObjectKey,
    ) -> BTreeMap<&'a str, &'a EndpointSlice> {
        let prefix = name_prefix(&pool.name);
        let named = of_namespace_from(&self.slices.objects, &pool.namespace, &prefix);
        let named = named.take_while(|(slice, _)| slice.name.starts_with(&prefix));
        let labelled = self.links.slices_of_pods(pool);
        let labelled = labelled.filter_map(|slice| self.slices.objects.get_key_value(slice));
        let all = named.chain(labelled);
        all.filter_map(|(slice, facts)| Some((slice.name.as_str(), facts.own.as_deref()?)))
            .collect()
    }

    /// Whether a dirty object that was never visited names one that nobody has heard of.
    pub(super) fn lacks_referents(&self) -> bool {
        let all;
        let objects = match &self.dirty {
            Dirty::Objects(objects) => objects,
            Dirty::All => {
                all = self.links.all();
                &all
            }
        };
        objects.iter().any(|(kind, key)| match kind {
            Kind::VirtualServer => {
                let object = self.virtual_servers.objects.get(key);
                let new = object.filter(|object| object.status.is_none());
                let pools = new.into_iter().flat_map(|object| &object.spec.pools);
                let mut pools = pools.map(|pool| key.sibling(&pool.name));
                let has_address_pool = !self.address_pools.objects.is_empty();
                new.is_some() && !has_address_pool
                    || pools.any(|pool| !self.pools.objects.contains_key(&pool))
            }
            Kind::RolloutPolicy => {
                let object = self.policies.objects.get(key);
                let new = object.filter(|object| object.status.is_none());
                let target = new.map(|object| key.sibling(&object.spec.virtual_server_name));
                target.is_some_and(|target| !self.virtual_servers.objects.contains_key(&target))
            }
            Kind::RealServerPool | Kind::LoadBalancerNode | Kind::AddressPool => false,
        })
    }

    pub(super) fn slices_changed(&mut self, changes: &[Change<SliceFacts>]) {
        for Change { key, before, .. } in changes {
            self.endpoints_changed(key, before.as_ref());
            let now = self.slices.objects.get(key);
            let slice = |facts: Option<&'_ SliceFacts>| facts.and_then(|facts| facts.slice.clone());
            let (old, new) = (slice(before.as_ref()), slice(now));
            let concerned = self.links.slice(key, old.as_ref(), new.as_ref());
            self.dirty.extend(concerned);
            let facts: Vec<&SliceFacts> = before.iter().chain(now).collect();
            if facts.iter().any(|facts| facts.own.is_some()) {
                let owners = old.iter().chain(&new).map(|slice| &slice.owner);
                let labelled = owners.flat_map(|owner| self.links.pools_of(owner));
                let labelled = labelled.filter(|pool| belongs(key, &facts, pool));
                let named = self.named(key).filter(|pool| belongs(key, &facts, pool));
                let pools: Vec<ObjectKey> = labelled.chain(named).cloned().collect();
                self.dirty_pools.extend(pools);
            }
            match new {
                Some(slice) => self.cluster.slices.insert(key.clone(), slice),
                None => self.cluster.slices.remove(key),
            };
        }
    }

    /// The pools that a slice may have its name from.
    fn named<'a>(&'a self, slice: &'a ObjectKey) -> impl Iterator<Item = &'a ObjectKey> {
        let part = slice.name.rsplit_once(NAME_MARK).map(|(part, _)| part);
        part.into_iter().flat_map(move |part| {
            let pools = of_namespace_from(&self.pools.objects, &slice.namespace, part);
            let pools = pools.map(|(key, _)| key);
            pools.take_while(move |key| key.name.starts_with(part))
        })
    }
}

impl watched::Index for Index {
    type Answer = ();

    /// Always true: the loop drops messages of another state of the API server before they come here.
    fn believes(&mut self, (): ()) -> bool {
        true
    }

    fn works(&mut self, kind: &'static str) {
        if self.lost.remove(kind).is_some() {
            info!(kind, "is watched again");
        }
        self.absent.remove(kind);
    }

    fn failed(&mut self, kind: &'static str, verb: &'static str, error: RequestError) {
        let is_absent = error.code() == Some(404);
        let error = format!("cannot {verb} {kind}: {error}");
        if is_absent && kind == ServiceCidrs::NAME {
            self.note_absence(kind, &error);
            return;
        }
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

/// The selector that decided endpoints come by.
fn selector_of(endpoints: Option<&DecidedEndpoints>) -> Option<&LabelSelector> {
    endpoints?.selector.as_ref()
}

/// Whether a slice of ours is or was this pool's.
fn belongs(key: &ObjectKey, facts: &[&SliceFacts], pool: &ObjectKey) -> bool {
    key.name.starts_with(&name_prefix(&pool.name))
        || facts.iter().any(|facts| {
            let labels = facts
                .own
                .as_ref()
                .and_then(|own| own.metadata.labels.as_ref());
            labels.and_then(|labels| labels.get(POOL_LABEL)) == Some(&pool_label(&pool.name))
        })
}

/// The objects of a namespace whose names are not before this one.
fn of_namespace_from<'a, T>(
    objects: &'a BTreeMap<ObjectKey, T>,
    namespace: &'a str,
    name: &str,
) -> impl Iterator<Item = (&'a ObjectKey, &'a T)> {
    objects
        .range(ObjectKey::new(namespace, name)..)
        .take_while(move |(key, _)| key.namespace == namespace)
}

/// The objects of a namespace.
pub(super) fn of_namespace<'a, T>(
    objects: &'a BTreeMap<ObjectKey, T>,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a ObjectKey, &'a T)> {
    of_namespace_from(objects, namespace, "")
}

/// An object that the API server answered with.
pub(super) fn answered<K: Resource<DynamicType = ()>>(mut object: K) -> Item<K> {
    object.meta_mut().managed_fields = None;
    Item::of(object, Ok)
}
