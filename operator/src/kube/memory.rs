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
}

/// What this process wrote last, by object.
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

    /// Puts our decisions in the place of foreign ones. A later revision is another operator's and stays.
    pub(super) fn restore(&mut self, objects: &mut BTreeMap<ObjectKey, K>) -> Foreign<K> {
        let mut foreign = Vec::new();
        self.0.retain(|key, (uid, ours)| {
            let Some(object) = objects.get_mut(key).filter(|object| object.uid() == uid) else {
                return false;
            };
            let there = object.current();
            if there == Some(ours) {
                return true;
            }
            if there.map_or(0, K::revision) > K::revision(ours) {
                return false;
            }
            let mut changed = object.clone();
            *changed.decision() = Some(ours.clone());
            foreign.push((key.clone(), std::mem::replace(object, changed)));
            true
        });
        foreign
    }
}
