//! The decisions that this process wrote. Should somebody else change or remove one, it stands until it is written again:
//! a foreign edit is no decision, and the core must not take it for one.

use std::collections::BTreeMap;

use sluice_api::{
    Decision, ObjectKey, PoolDecision, RealServerPool, RealServerPoolStatus, VirtualServer,
    VirtualServerStatus,
};

/// A kind that has decisions.
pub(super) trait Decided {
    type Decision: Clone + PartialEq;
    /// The decision.
    fn current(&self) -> Option<&Self::Decision>;
    /// Its place.
    fn decision(&mut self) -> &mut Option<Self::Decision>;
    fn uid(&self) -> &str;
    fn revision(decision: &Self::Decision) -> u64;
    /// Whether this is the other decision with a higher complete revision: another operator closed the kind with it.
    fn closes(decision: &Self::Decision, other: &Self::Decision) -> bool;
}

impl Decided for VirtualServer {
    type Decision = Decision;
    fn current(&self) -> Option<&Decision> {
        self.status.as_ref()?.decision.as_ref()
    }
    fn decision(&mut self) -> &mut Option<Decision> {
        let status = self.status.get_or_insert_with(VirtualServerStatus::default);
        &mut status.decision
    }
    fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }
    fn revision(decision: &Decision) -> u64 {
        decision.revision
    }
    fn closes(decision: &Decision, other: &Decision) -> bool {
        decision.complete_revision > other.complete_revision
            && (decision.revision, decision.generation) == (other.revision, other.generation)
            && decision.content == other.content
    }
}

impl Decided for RealServerPool {
    type Decision = PoolDecision;
    fn current(&self) -> Option<&PoolDecision> {
        self.status.as_ref()?.decision.as_ref()
    }
    fn decision(&mut self) -> &mut Option<PoolDecision> {
        let status = self
            .status
            .get_or_insert_with(RealServerPoolStatus::default);
        &mut status.decision
    }
    fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }
    fn revision(decision: &PoolDecision) -> u64 {
        decision.revision
    }
    fn closes(decision: &PoolDecision, other: &PoolDecision) -> bool {
        decision.complete_revision > other.complete_revision
            && (decision.revision, decision.generation) == (other.revision, other.generation)
            && decision.content == other.content
    }
}

/// The decision that this process wrote last for each object, with the object's uid.
#[derive(Debug)]
pub(super) struct Memory<K: Decided>(BTreeMap<ObjectKey, (String, K::Decision)>);

impl<K: Decided> Default for Memory<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

/// Objects as they were before [`Memory::restore`].
pub(super) type Foreign<K> = Vec<(ObjectKey, K)>;

impl<K: Decided + Clone> Memory<K> {
    /// Notes the answer to a write of ours.
    pub(super) fn wrote(&mut self, key: &ObjectKey, object: &K) {
        match object.current() {
            Some(decision) => {
                let note = (object.uid().to_owned(), decision.clone());
                self.0.insert(key.clone(), note);
            }
            None => {
                self.0.remove(key);
            }
        }
    }

    /// The decision that this process wrote for an object.
    pub(super) fn decision(&self, key: &ObjectKey) -> Option<&K::Decision> {
        self.0.get(key).map(|(_, decision)| decision)
    }

    /// Forgets what was written for an object that is gone, or is another one now, or was decided later or completed by
    /// somebody else.
    pub(super) fn check(&mut self, key: &ObjectKey, object: Option<&K>) {
        let stays = |(uid, ours): &(String, K::Decision)| {
            let object = object.filter(|object| object.uid() == uid);
            object.is_some_and(|object| {
                object.current().is_none_or(|theirs| {
                    K::revision(theirs) <= K::revision(ours) && !K::closes(theirs, ours)
                })
            })
        };
        if !self.0.get(key).is_some_and(stays) {
            self.0.remove(key);
        }
    }

    /// Puts our decisions for these objects in the place of foreign ones.
    pub(super) fn restore<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a ObjectKey>,
        objects: &mut BTreeMap<ObjectKey, K>,
    ) -> Foreign<K> {
        let mut foreign = Vec::new();
        for key in keys {
            let (Some((_, ours)), Some(object)) = (self.0.get(key), objects.get_mut(key)) else {
                continue;
            };
            if object.current() != Some(ours) {
                let mut changed = object.clone();
                *changed.decision() = Some(ours.clone());
                foreign.push((key.clone(), std::mem::replace(object, changed)));
            }
        }
        foreign
    }
}
