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

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_api::{Decision, ObjectKey, PoolDecision, Validate};
use sluice_planner::{ObjectKind, Problem, Reason, Slice, SliceOwner, Slices, Snapshot};

use super::object::{Content, Item, Kind, Node};
use crate::source::{Decisions, Event, NodeSpec};

/// Objects of a kind that are kept.
pub(super) const MAX_OBJECTS: usize = 100_000;

/// What an API server says of this node's own object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Own {
    /// Its `metadata.uid`.
    pub(super) uid: String,
    /// Whether its status acknowledges anything: an agent of this node has worked by this server.
    pub(super) acknowledged: bool,
}

/// What came of a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Listed {
    /// It was taken in.
    Taken,
    /// It is of another world than what is known: everything is to be listed anew.
    OtherWorld,
}

#[derive(Debug, Default)]
struct Objects {
    complete: bool,
    entries: BTreeMap<ObjectKey, Entry>,
}

#[derive(Debug)]
struct Entry {
    uid: String,
    version: String,
    content: Content,
}

/// Why what an object says is not taken over.
#[derive(Debug)]
enum Miss {
    /// It cannot be read, and why.
    Unreadable(String),
    /// There are too many of its kind.
    NoRoom,
}

/// All that is known.
#[derive(Debug)]
pub(super) struct Index {
    node: String,
    objects: BTreeMap<Kind, Objects>,
    /// Whether a configuration is in force that must not get lost.
    served: bool,
    /// The uid of this node's object in the world that is believed.
    trusted: Option<String>,
    doubted: bool,
    revision: u64,
    pool_revision: u64,
    /// Objects whose newest content is not taken over.
    missed: BTreeMap<(Kind, ObjectKey), Miss>,
    /// Kinds of which there are too many.
    full: BTreeSet<Kind>,
    decisions_changed: bool,
    told: Told,
}

#[derive(Debug, Default)]
struct Told {
    decisions: Option<Decisions>,
    node: Option<NodeSpec>,
    refused: Option<String>,
    peers: Option<BTreeMap<String, BTreeSet<IpAddr>>>,
    held: Option<String>,
    detach: bool,
}

impl Index {
    /// `served`: the maps were adopted and serve something.
    pub(super) fn new(node: &str, served: bool) -> Self {
        Self {
            node: node.to_owned(),
            objects: Kind::ALL
                .into_iter()
                .map(|kind| (kind, Objects::default()))
                .collect(),
            served,
            trusted: None,
            doubted: false,
            revision: 0,
            pool_revision: 0,
            missed: BTreeMap::new(),
            full: BTreeSet::new(),
            decisions_changed: false,
            told: Told::default(),
        }
    }

    /// Takes in a complete list of a kind. Returns a complaint for each object that has become unreadable.
    pub(super) fn list(
        &mut self,
        kind: Kind,
        items: Vec<Item>,
        own: Option<&Own>,
    ) -> (Listed, Vec<String>) {
        let was_doubted = self.doubted;
        self.judge(own);
        if self.doubted != was_doubted {
            for objects in self.objects.values_mut() {
                objects.complete = false;
            }
            return (Listed::OtherWorld, Vec::new());
        }
        let mut before = std::mem::take(&mut self.entries(kind).entries);
        let unreadable: BTreeSet<&ObjectKey> = items
            .iter()
            .filter(|item| item.content.is_err())
            .map(|item| &item.key)
            .collect();
        self.missed
            .retain(|(of, key), _| *of != kind || unreadable.contains(key));
        self.full.remove(&kind);
        let mut complaints = Vec::new();
        for item in items {
            let old = before.remove(&item.key);
            self.put(kind, item, old, &mut complaints);
        }
        self.entries(kind).complete = true;
        self.changed(kind);
        self.settle(own);
        (Listed::Taken, complaints)
    }

    /// Takes in an object that was added or changed. Returns a complaint if it has become unreadable.
    pub(super) fn apply(&mut self, kind: Kind, item: Item) -> Vec<String> {
        let mut complaints = Vec::new();
        let entries = &mut self.entries(kind).entries;
        let old = entries.get(&item.key);
        if old.is_some_and(|old| old.uid == item.uid && is_older(&item.version, &old.version)) {
            return complaints;
        }
        let relevant = self.is_relevant(kind, Some(&item), &item.key);
        let old = self.entries(kind).entries.remove(&item.key);
        self.put(kind, item, old, &mut complaints);
        if relevant {
            self.changed(kind);
        }
        self.settle(None);
        complaints
    }

    /// Takes in that an object is gone.
    pub(super) fn delete(&mut self, kind: Kind, item: &Item) {
        let entries = &self.entries(kind).entries;
        if entries
            .get(&item.key)
            .is_some_and(|old| old.uid != item.uid)
        {
            return;
        }
        let relevant = self.is_relevant(kind, None, &item.key);
        self.entries(kind).entries.remove(&item.key);
        self.missed.remove(&(kind, item.key.clone()));
        if relevant {
            self.changed(kind);
        }
    }

    /// Whether this node's object is known not to be there.
    pub(super) fn own_is_missing(&self) -> bool {
        self.objects
            .get(&Kind::Nodes)
            .is_some_and(|nodes| nodes.complete && !nodes.entries.contains_key(&self.own_key()))
    }

    /// The uid of this node's object.
    pub(super) fn own_uid(&self) -> Option<&str> {
        let nodes = self.objects.get(&Kind::Nodes)?;
        let entry = nodes.entries.get(&self.own_key())?;
        Some(&entry.uid)
    }

    /// Whether it is not known yet what to make of the server.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.doubted && !self.is_complete()
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
        if self.doubted || !self.is_complete() {
            return events;
        }
        events.extend(self.node_news());
        events.extend(self.peer_news());
        if self.told.held.is_none() {
            events.extend(self.decision_news());
        }
        events
    }

    /// Why decisions are withheld; `None` while they are not, or are being read.
    fn held(&self) -> Option<String> {
        if !self.is_complete() {
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
                "{} {key} cannot be read, and the maps that were taken over may serve it: going on by what was decided before \
                 until it can be read or is gone; run an agent as new as the operator",
                kind.name()
            )
        });
        let reasons: Vec<String> = doubt.into_iter().chain(unknown).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// An object of which nobody knows any more what the maps hold: it cannot be read, and never could by this process.
    fn unknown(&self) -> Option<&(Kind, ObjectKey)> {
        if !self.served || self.told.decisions.is_some() {
            return None;
        }
        let unreadable = self.missed.iter().filter(|((kind, key), miss)| {
            let known = self.objects.get(kind);
            matches!(kind, Kind::VirtualServers | Kind::Pools)
                && matches!(miss, Miss::Unreadable(_))
                && known.is_none_or(|objects| !objects.entries.contains_key(key))
        });
        unreadable.map(|(place, _)| place).next()
    }

    fn detach_requested(&self) -> Option<i64> {
        let node = self.own()?;
        let complete = self.objects.get(&Kind::Nodes).is_some_and(|o| o.complete);
        (complete && node.detach).then_some(node.generation)
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

    /// Believes a doubtful world once everything was listed and something is decided there.
    fn settle(&mut self, own: Option<&Own>) {
        if self.doubted && self.is_complete() && self.has_decisions() {
            self.doubted = false;
            self.trusted = own.map(|own| own.uid.clone());
            // Another world has a counter of its own.
            self.revision = 0;
            self.pool_revision = 0;
            for kind in [Kind::VirtualServers, Kind::Pools] {
                let contents: Vec<Content> = self.contents(kind).cloned().collect();
                for content in &contents {
                    self.raise_revision(content);
                }
            }
        }
        if !self.doubted && self.trusted.is_none() {
            self.trusted = self.own_uid().map(str::to_owned);
        }
    }

    fn put(&mut self, kind: Kind, item: Item, old: Option<Entry>, complaints: &mut Vec<String>) {
        let content = match item.content {
            Ok(content) => {
                self.missed.remove(&(kind, item.key.clone()));
                content
            }
            Err(error) => {
                if self.miss(kind, &item.key, Miss::Unreadable(error.clone())) {
                    complaints.push(format!(
                        "{} {} cannot be read, what was known of it stays: {error}",
                        kind.name(),
                        item.key
                    ));
                }
                match old {
                    Some(old) => old.content,
                    None => return,
                }
            }
        };
        self.raise_revision(&content);
        if self.entries(kind).entries.len() >= MAX_OBJECTS {
            self.miss(kind, &item.key, Miss::NoRoom);
            if self.full.insert(kind) {
                complaints.push(format!(
                    "{} {} is left out, and perhaps others: there are more than {MAX_OBJECTS}",
                    kind.name(),
                    item.key
                ));
            }
            return;
        }
        let entry = Entry {
            uid: item.uid,
            version: item.version,
            content,
        };
        self.entries(kind).entries.insert(item.key, entry);
    }

    /// Notes that an object is missed; `false` if it was before.
    fn miss(&mut self, kind: Kind, key: &ObjectKey, why: Miss) -> bool {
        let place = (kind, key.clone());
        // A status names fewer.
        let has_room = self.missed.len() < MAX_OBJECTS || self.missed.contains_key(&place);
        has_room && self.missed.insert(place, why).is_none()
    }

    fn raise_revision(&mut self, content: &Content) {
        match content {
            Content::VirtualServer(Some(decision)) => {
                self.revision = self.revision.max(decision.revision);
            }
            Content::Pool(Some(decision)) => {
                self.pool_revision = self.pool_revision.max(decision.revision);
            }
            _ => {}
        }
    }

    fn changed(&mut self, kind: Kind) {
        self.decisions_changed |= kind != Kind::Nodes;
    }

    /// Whether a change of this object can change what the core is told. Most slices of a cluster concern no pool.
    fn is_relevant(&self, kind: Kind, new: Option<&Item>, key: &ObjectKey) -> bool {
        if !matches!(kind, Kind::PoolSlices | Kind::ServiceSlices) {
            return true;
        }
        let old = self.objects.get(&kind).and_then(|o| o.entries.get(key));
        let old = old.map(|entry| &entry.content);
        let new = new.and_then(|item| item.content.as_ref().ok());
        if old == new {
            return false;
        }
        let owners = [old, new].into_iter().flatten().filter_map(|c| match c {
            Content::Slice(Some(slice)) => Some(&slice.owner),
            _ => None,
        });
        let owners: Vec<&SliceOwner> = owners.collect();
        self.pools().any(|(key, decision)| {
            decision.endpoints.as_ref().is_some_and(|endpoints| {
                let owner = SliceOwner::of_decision(&key.namespace, endpoints);
                owners.contains(&&owner)
            })
        })
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
        // What was refused is taken back by telling the spec again.
        let was_refused = self.told.refused.take().is_some();
        let news = NodeSpec { spec, generation };
        if self.told.node.as_ref() == Some(&news) && !was_refused {
            return None;
        }
        self.told.node = Some(news.clone());
        Some(Event::Node(news))
    }

    fn peer_news(&mut self) -> Option<Event> {
        let nodes = self.objects.get(&Kind::Nodes)?;
        let peers = nodes
            .entries
            .iter()
            .filter(|(key, _)| key.name != self.node)
            .filter_map(|(key, entry)| match &entry.content {
                Content::Node(node) => Some((key.name.clone(), node.peer.clone()?)),
                _ => None,
            });
        let peers: BTreeMap<String, BTreeSet<IpAddr>> = peers.collect();
        if self.told.peers.as_ref() == Some(&peers) {
            return None;
        }
        self.told.peers = Some(peers.clone());
        Some(Event::Peers(peers))
    }

    fn decision_news(&mut self) -> Option<Event> {
        if !self.decisions_changed && self.told.decisions.is_some() {
            return None;
        }
        self.decisions_changed = false;
        let decisions = self.decisions();
        if self.told.decisions.as_ref() == Some(&decisions) {
            return None;
        }
        self.served = !decisions.snapshot.virtual_servers.is_empty();
        self.told.decisions = Some(decisions.clone());
        Some(Event::Decisions(decisions))
    }

    fn decisions(&self) -> Decisions {
        let virtual_servers: BTreeMap<ObjectKey, Decision> = self
            .entries_of(Kind::VirtualServers)
            .filter_map(|(key, content)| match content {
                Content::VirtualServer(Some(decision)) => Some((key.clone(), decision.clone())),
                _ => None,
            })
            .collect();
        let pools: BTreeMap<ObjectKey, PoolDecision> = self
            .pools()
            .map(|(key, decision)| (key.clone(), decision.clone()))
            .collect();
        let kinds = [Kind::PoolSlices, Kind::ServiceSlices];
        let contents = kinds.into_iter().flat_map(|kind| self.contents(kind));
        let slices: Vec<&Slice> = contents
            .filter_map(|content| match content {
                Content::Slice(Some(slice)) => Some(slice),
                _ => None,
            })
            .collect();
        Decisions {
            snapshot: Snapshot::new(&virtual_servers, &pools, &Slices::new(slices)),
            revision: self.revision,
            pool_revision: self.pool_revision,
            missed: self.problems(),
        }
    }

    /// What is missed of the decisions.
    fn problems(&self) -> Vec<Problem> {
        let problem = |((kind, key), miss): (&(Kind, ObjectKey), &Miss)| {
            let kind = match kind {
                Kind::VirtualServers => ObjectKind::VirtualServer,
                Kind::Pools => ObjectKind::RealServerPool,
                _ => return None,
            };
            let (reason, message) = match miss {
                Miss::Unreadable(error) => (
                    Reason::Unreadable,
                    format!(
                        "this node's agent cannot read it, what was known of it stays: run an agent as new as the operator: {error}"
                    ),
                ),
                Miss::NoRoom => (
                    Reason::LimitExceeded,
                    format!(
                        "this node's agent leaves it out, it keeps {MAX_OBJECTS} of a kind: remove others"
                    ),
                ),
            };
            Some(Problem {
                kind,
                object: key.into(),
                reason,
                message,
                exception: true,
            })
        };
        self.missed.iter().filter_map(problem).collect()
    }

    fn has_decisions(&self) -> bool {
        self.contents(Kind::VirtualServers)
            .any(|content| matches!(content, Content::VirtualServer(Some(_))))
    }

    fn is_complete(&self) -> bool {
        self.objects.values().all(|objects| objects.complete)
    }

    fn own_key(&self) -> ObjectKey {
        ObjectKey::new("", &self.node)
    }

    fn own(&self) -> Option<&Node> {
        let nodes = self.objects.get(&Kind::Nodes)?;
        match &nodes.entries.get(&self.own_key())?.content {
            Content::Node(node) => Some(node),
            _ => None,
        }
    }

    fn pools(&self) -> impl Iterator<Item = (&ObjectKey, &PoolDecision)> {
        self.entries_of(Kind::Pools)
            .filter_map(|(key, content)| match content {
                Content::Pool(Some(decision)) => Some((key, decision)),
                _ => None,
            })
    }

    fn contents(&self, kind: Kind) -> impl Iterator<Item = &Content> {
        self.entries_of(kind).map(|(_, content)| content)
    }

    fn entries_of(&self, kind: Kind) -> impl Iterator<Item = (&ObjectKey, &Content)> {
        let objects = self.objects.get(&kind).into_iter();
        objects.flat_map(|objects| objects.entries.iter().map(|(key, e)| (key, &e.content)))
    }

    fn entries(&mut self, kind: Kind) -> &mut Objects {
        self.objects.entry(kind).or_default()
    }
}

/// Whether a resource version is older than another. Kubernetes promises that they are whole numbers (1.35); where they are
/// not, what comes later is taken for newer.
fn is_older(version: &str, than: &str) -> bool {
    match (version.parse::<u128>(), than.parse::<u128>()) {
        (Ok(version), Ok(than)) => version < than,
        _ => false,
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
