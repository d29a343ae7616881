//! All that is known of the API server's objects, and what follows for the core. Nothing in here waits or asks.
//!
//! A list replaces what was known of its kind, and comes with what the API server says of this node at that time: the
//! *world* it belongs to. One that does not know this node's object any more, or knows another one of that name, may be a
//! wiped server or another cluster's. Then everything is listed again, and believed only if there are decisions in it;
//! until then the core goes on by what it was told.
//!
//! A decision that cannot be read, because the operator is newer than this agent, stays as it was, and is *missed*: the node
//! names it as an exception. An agent that has just started does not know how it was. If it took over maps that serve
//! something, the core is told no decision until every one can be read or is gone.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_api::{
    AddressPoolDecision, Decision, EndpointSource, Kind, LoadBalancerNode, ObjectKey,
    PEERS_CONFIG_MAP, Peers, PoolDecision, Validate,
};
use sluice_kube::error::RequestError;
use sluice_kube::store::{Change, Missed, Store};
use sluice_kube::watched;
use sluice_planner::{ObjectKind, Problem, Reason, Slice};

use super::own_node::Node;
use crate::source::{Announcing, Changes, Event, Mark, SliceKey};

/// Objects of a kind that are kept.
pub(super) const MAX_OBJECTS: usize = 100_000;

/// Facts of this node's own object by which an API server is recognised.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Own {
    /// Its `metadata.uid`.
    pub(super) uid: String,
    /// Whether its status acknowledges anything: an agent of this node has worked by this server.
    pub(super) acknowledged: bool,
}

/// All that is known.
#[derive(Debug)]
pub(super) struct Index {
    node: String,
    pub(super) virtual_servers: Store<Option<Arc<Decision>>>,
    pub(super) pools: Store<Option<Arc<PoolDecision>>>,
    pub(super) nodes: Store<Node>,
    pub(super) peers: Store<Peers>,
    pub(super) pool_slices: Store<Option<Arc<Slice>>>,
    pub(super) service_slices: Store<Option<Arc<Slice>>>,
    pub(super) address_pools: Store<Option<Arc<AddressPoolDecision>>>,
    /// Whether every kind has been listed in the world that is read.
    complete: bool,
    /// Whether a configuration is in force that must not get lost.
    served: bool,
    /// The uid of this node's object in the world that is believed.
    trusted: Option<String>,
    doubted: bool,
    /// This node's object as the server had it with the list that is being taken in.
    own: Option<Own>,
    revision: u64,
    pool_revision: u64,
    pending: Pending,
    told: Told,
    findings: Findings,
}

/// Objects that have changed since the core was told of them, each as the core knows it.
#[derive(Debug, Default)]
struct Pending {
    virtual_servers: BTreeMap<ObjectKey, Option<Arc<Decision>>>,
    pools: BTreeMap<ObjectKey, Option<Arc<PoolDecision>>>,
    slices: BTreeMap<SliceKey, Option<Arc<Slice>>>,
}

/// Results of reading that concern the driver and not the core.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// A list was of another world than what is known: everything is to be listed anew.
    pub(super) other_world: bool,
    /// Objects that are not taken over, and why.
    pub(super) complaints: Vec<String>,
    /// Requests that failed: the kind, the verb and the error.
    pub(super) failures: Vec<(&'static str, &'static str, RequestError)>,
}

#[derive(Debug, Default)]
struct Told {
    /// Up to where decisions were told, once some were.
    mark: Option<Mark>,
    node: Option<Box<LoadBalancerNode>>,
    refused: Option<String>,
    peers: Option<Peers>,
    may_hold: bool,
    announcing: Announcing,
    held: Option<String>,
    detach: bool,
}

impl Index {
    /// `served`: the maps were adopted and serve something.
    pub(super) fn new(node: &str, served: bool) -> Self {
        Self {
            node: node.to_owned(),
            virtual_servers: Store::limited(MAX_OBJECTS),
            pools: Store::limited(MAX_OBJECTS),
            nodes: Store::limited(MAX_OBJECTS),
            peers: Store::limited(MAX_OBJECTS),
            pool_slices: Store::limited(MAX_OBJECTS),
            service_slices: Store::limited(MAX_OBJECTS),
            address_pools: Store::limited(MAX_OBJECTS),
            complete: false,
            served,
            trusted: None,
            doubted: false,
            own: None,
            revision: 0,
            pool_revision: 0,
            pending: Pending::default(),
            told: Told::default(),
            findings: Findings::default(),
        }
    }

    /// Takes in changed decisions on virtual servers.
    pub(super) fn virtual_servers_changed(&mut self, changes: Vec<Change<Option<Arc<Decision>>>>) {
        for Change { key, before, .. } in changes {
            if let Some(Some(decision)) = self.virtual_servers.objects.get(&key) {
                self.revision = self.revision.max(decision.complete_revision);
            }
            let pending = &mut self.pending.virtual_servers;
            pending.entry(key).or_insert(before.flatten());
        }
        self.settle();
    }

    /// Takes in changed decisions on pools.
    pub(super) fn pools_changed(&mut self, changes: Vec<Change<Option<Arc<PoolDecision>>>>) {
        for Change { key, before, .. } in changes {
            if let Some(Some(decision)) = self.pools.objects.get(&key) {
                self.pool_revision = self.pool_revision.max(decision.complete_revision);
            }
            let pending = &mut self.pending.pools;
            pending.entry(key).or_insert(before.flatten());
        }
        self.settle();
    }

    /// Takes in changed slices.
    pub(super) fn slices_changed(
        &mut self,
        source: EndpointSource,
        changes: Vec<Change<Option<Arc<Slice>>>>,
    ) {
        for Change { key, before, .. } in changes {
            let pending = &mut self.pending.slices;
            pending.entry((source, key)).or_insert(before.flatten());
        }
        self.settle();
    }

    /// Whether this node's object is known not to be there.
    pub(super) fn own_is_missing(&self) -> bool {
        self.nodes.is_complete() && self.own().is_none()
    }

    /// The uid of this node's object.
    pub(super) fn own_uid(&self) -> Option<&str> {
        let stamp = self.nodes.stamp(&self.own_key())?;
        Some(&stamp.uid)
    }

    /// Whether it is not known yet what to make of the server.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.doubted && !self.complete
    }

    /// The findings since the last call.
    pub(super) fn take_findings(&mut self) -> Findings {
        std::mem::take(&mut self.findings)
    }

    /// Events that tell the core what it does not know yet.
    pub(super) fn news(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        if self.told.detach {
            return events;
        }
        if let Some(generation) = self.detach_requested() {
            self.told.detach = true;
            return vec![Event::Detach { generation }];
        }
        let held = self.held();
        if held != self.told.held {
            self.told.held.clone_from(&held);
            events.push(Event::Held(held));
        }
        if self.doubted || !self.complete {
            return events;
        }
        events.extend(self.node_news());
        events.extend(self.peer_news());
        events.extend(self.address_pool_news());
        if self.told.held.is_none() {
            events.extend(self.decision_news());
        }
        events
    }

    /// Why decisions are withheld; `None` while they are not, or are being read.
    fn held(&self) -> Option<String> {
        if !self.complete {
            return None;
        }
        let doubt = self.doubted.then(|| {
            format!(
                "the API server has no decisions and does not know this node's LoadBalancerNode {} as it was before; it may \
                 have been wiped, or be another cluster's: going on by what was decided before until a VirtualServer is decided",
                self.node
            )
        });
        let unknown = self.unknown().map(|(kind, key)| {
            format!(
                "{kind} {key} cannot be read, and the maps that were taken over may serve it: going on by what was decided before \
                 until it can be read or is gone; run an agent as new as the operator"
            )
        });
        let reasons: Vec<String> = doubt.into_iter().chain(unknown).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// An object of which nobody knows any more what the maps hold: it cannot be read, and never could by this process.
    fn unknown(&self) -> Option<(&'static str, &ObjectKey)> {
        if !self.served || self.told.mark.is_some() {
            return None;
        }
        let server = never_read(&self.virtual_servers).map(|key| (Kind::VirtualServer.name(), key));
        server.or_else(|| never_read(&self.pools).map(|key| (Kind::RealServerPool.name(), key)))
    }

    fn detach_requested(&self) -> Option<i64> {
        let node = self.own()?;
        (self.nodes.is_complete() && node.detach).then_some(node.generation)
    }

    /// Whether the server that this was listed from may be believed to the last object.
    fn judge(&mut self, own: Option<&Own>) {
        match (&self.trusted, own) {
            (Some(trusted), Some(own)) if *trusted == own.uid => self.doubted = false,
            _ if self.doubted => {}
            // There is nothing to lose.
            _ if !self.served => self.trusted = own.map(|own| own.uid.clone()),
            (None, Some(own)) if own.acknowledged => self.trusted = Some(own.uid.clone()),
            _ => self.doubted = true,
        }
    }

    /// Draws the conclusions from a change. Believes a doubtful world once everything was listed and something is decided there.
    pub(super) fn settle(&mut self) {
        self.complete = self.are_all_listed();
        let own = self.own.take();
        if self.doubted && self.complete && self.has_decisions() {
            self.doubted = false;
            self.trusted = own.map(|own| own.uid);
            // Another world has a counter of its own.
            let servers = self.virtual_servers.objects.values().flatten();
            self.revision = servers
                .map(|d| d.complete_revision)
                .max()
                .unwrap_or_default();
            let pools = self.pools.objects.values().flatten();
            self.pool_revision = pools.map(|d| d.complete_revision).max().unwrap_or_default();
        }
        if !self.doubted && self.trusted.is_none() {
            self.trusted = self.own_uid().map(str::to_owned);
        }
    }

    fn node_news(&mut self) -> Option<Event> {
        let node = self.own()?;
        let (spec, generation) = (node.spec.clone(), node.generation);
        let errors: Vec<String> = match &spec {
            Ok(spec) => spec.validate().iter().map(ToString::to_string).collect(),
            Err(error) => vec![error.clone()],
        };
        let Some(spec) = spec.ok().filter(|_| errors.is_empty()) else {
            let message = format!("LoadBalancerNode {}: {}", self.node, errors.join("; "));
            if self.told.refused.as_ref() == Some(&message) {
                return None;
            }
            self.told.refused = Some(message.clone());
            return Some(Event::NodeRefused(message));
        };
        // A valid spec ends an earlier refusal, so it is told then even if it is the one told last.
        let was_refused = self.told.refused.take().is_some();
        let mut node = Box::new(LoadBalancerNode::new(&self.node, spec));
        node.metadata.generation = Some(generation);
        if self.told.node.as_ref() == Some(&node) && !was_refused {
            return None;
        }
        self.told.node = Some(node.clone());
        Some(Event::Node(node))
    }

    /// While there is no list, or none that can be read, the last one stands.
    fn peer_news(&mut self) -> Vec<Event> {
        let Some(list) = self.peers.objects.values().next() else {
            return Vec::new();
        };
        let mut peers = list.clone();
        let own = peers.remove(&self.node);
        let may_hold = own.is_some_and(|own| own.candidate);
        let mut events = Vec::new();
        if self.told.peers.as_ref() != Some(&peers) {
            self.told.peers = Some(peers.clone());
            events.push(Event::Peers(peers));
        }
        if self.told.may_hold != may_hold {
            self.told.may_hold = may_hold;
            events.push(Event::MayHold(may_hold));
        }
        events
    }

    fn address_pool_news(&mut self) -> Option<Event> {
        let pools = self.address_pools.objects.iter();
        let pools = pools.filter_map(|(key, decision)| {
            let l2 = decision.as_ref()?.l2.clone()?;
            Some((key.name.clone(), l2))
        });
        let announcing = Announcing {
            pools: pools.collect(),
            all_on_link: false,
        };
        if self.told.announcing == announcing {
            return None;
        }
        self.told.announcing.clone_from(&announcing);
        Some(Event::Announcing(announcing))
    }

    fn decision_news(&mut self) -> Option<Event> {
        let Pending {
            virtual_servers,
            pools,
            slices,
        } = std::mem::take(&mut self.pending);
        let slice = |(source, key): &SliceKey| {
            let store = match source {
                EndpointSource::Pods => &self.pool_slices,
                EndpointSource::Service => &self.service_slices,
            };
            store.objects.get(key).cloned().flatten()
        };
        let changes = Changes {
            virtual_servers: changed(virtual_servers, |key| {
                self.virtual_servers.objects.get(key).cloned().flatten()
            }),
            pools: changed(pools, |key| self.pools.objects.get(key).cloned().flatten()),
            slices: changed(slices, slice),
            mark: Mark {
                revision: self.revision,
                pool_revision: self.pool_revision,
                missed: self.problems(),
            },
        };
        if changes.is_empty() && self.told.mark.as_ref() == Some(&changes.mark) {
            return None;
        }
        self.served = self.has_decisions();
        self.told.mark = Some(changes.mark.clone());
        Some(Event::Decided(changes))
    }

    /// Problems with decisions that could not be taken over, and with the list of directors.
    fn problems(&self) -> Vec<Problem> {
        let servers = problems(ObjectKind::VirtualServer, &self.virtual_servers);
        let pools = problems(ObjectKind::RealServerPool, &self.pools);
        let of_peers = self.peers_problem();
        servers.into_iter().chain(pools).chain(of_peers).collect()
    }

    /// Why the other directors are not known as they are now.
    fn peers_problem(&self) -> Option<Problem> {
        let message = match self.peers.unreadable().next() {
            Some((_, error)) => format!("cannot be read: {error}"),
            None if self.peers.objects.is_empty() => "is not there".to_owned(),
            None => return None,
        };
        Some(Problem {
            kind: ObjectKind::LoadBalancerNode,
            object: self.own_key(),
            reason: Reason::Unreadable,
            message: format!(
                "the ConfigMap {PEERS_CONFIG_MAP}, from which the other directors are known, {message}: those that were known \
                 stay; the operator writes it, see that it is running and as new as this agent"
            ),
            exception: false,
        })
    }

    fn has_decisions(&self) -> bool {
        self.virtual_servers.objects.values().any(Option::is_some)
    }

    fn own_key(&self) -> ObjectKey {
        ObjectKey::new("", &self.node)
    }

    fn own(&self) -> Option<&Node> {
        self.nodes.objects.get(&self.own_key())
    }
}

impl watched::Index for Index {
    type Answer = Option<Own>;

    fn believes(&mut self, own: Option<Own>) -> bool {
        let was_doubted = self.doubted;
        self.judge(own.as_ref());
        if self.doubted == was_doubted {
            self.own = own;
            return true;
        }
        self.expect_lists();
        self.complete = false;
        self.findings.other_world = true;
        false
    }

    /// The driver, which sees all messages, tells of it.
    fn works(&mut self, _: &'static str) {}

    fn failed(&mut self, kind: &'static str, verb: &'static str, error: RequestError) {
        self.findings.failures.push((kind, verb, error));
    }

    fn missed(&mut self, kind: &'static str, object: Missed) {
        let complaint = format!("{kind} {} {}", object.key, object.why);
        self.findings.complaints.push(complaint);
    }
}

/// The objects that differ from before, as they are now.
fn changed<K: Ord, T: PartialEq>(
    before: BTreeMap<K, Option<Arc<T>>>,
    now: impl Fn(&K) -> Option<Arc<T>>,
) -> BTreeMap<K, Option<Arc<T>>> {
    let changed = before.into_iter().filter_map(|(key, before)| {
        let now = now(&key);
        (now != before).then_some((key, now))
    });
    changed.collect()
}

/// An object of a store that cannot be read, and of which nothing was known before.
fn never_read<T: PartialEq>(store: &Store<T>) -> Option<&ObjectKey> {
    let mut unreadable = store.unreadable().map(|(key, _)| key);
    unreadable.find(|key| !store.objects.contains_key(*key))
}

/// Problems with the objects of a kind that cannot be read or are left out.
fn problems<T: PartialEq>(kind: ObjectKind, store: &Store<T>) -> Vec<Problem> {
    let problem = |key: &ObjectKey, reason, message| Problem {
        kind,
        object: key.clone(),
        reason,
        message,
        exception: true,
    };
    let unreadable = store.unreadable().map(|(key, error)| {
        let message = format!(
            "this node's agent cannot read it, what was known of it stays: run an agent as new as the operator: {error}"
        );
        problem(key, Reason::Unreadable, message)
    });
    let left_out = store.left_out().map(|key| {
        let message = format!(
            "this node's agent leaves it out, it keeps {MAX_OBJECTS} of a kind: remove others"
        );
        problem(key, Reason::LimitExceeded, message)
    });
    unreadable.chain(left_out).collect()
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
