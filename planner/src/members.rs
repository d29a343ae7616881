//! The servers behind a ring's positions.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ring::{self, RingKey};

/// The servers of a ring, by what the ring tells apart.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Members {
    /// Ids and weights by key.
    by_key: BTreeMap<RingKey, Vec<(u32, u64)>>,
}

impl Members {
    pub(crate) fn add(&mut self, key: RingKey, id: u32, weight: u64) {
        if weight > 0 {
            self.by_key.entry(key).or_default().push((id, weight));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// The server ids of the ring's slots.
    fn slots(&self, seed: u32) -> Arc<[u32]> {
        let sum = |ids: &Vec<(u32, u64)>| ids.iter().map(|(_, weight)| weight).sum::<u64>();
        let servers: BTreeMap<RingKey, u64> = self
            .by_key
            .iter()
            .map(|(key, ids)| (*key, sum(ids)))
            .collect();
        let log2_slots = ring::log2_slots(servers.values().copied());
        let layout = ring::fill(seed, &servers, log2_slots);
        let groups: Vec<&[(u32, u64)]> = self.by_key.values().map(Vec::as_slice).collect();
        let mut slots_of_group = vec![0; groups.len()];
        for &group in &layout {
            slots_of_group[group as usize] += 1;
        }
        let mut turns: Vec<_> = groups
            .iter()
            .zip(slots_of_group)
            .map(|(ids, slots)| split(ids, slots))
            .collect();
        layout
            .into_iter()
            .map(|group| turns[group as usize].next().unwrap_or(0))
            .collect()
    }
}

/// The ids of one key, each as often as its part of the key's slots.
fn split(ids: &[(u32, u64)], slots: u32) -> impl Iterator<Item = u32> + use<> {
    let weights: Vec<u64> = ids.iter().map(|(_, weight)| *weight).collect();
    let ties: Vec<u64> = (0..ids.len() as u64).collect();
    let parts = ring::quotas(&weights, &ties, slots);
    let ids: Vec<u32> = ids.iter().map(|(id, _)| *id).collect();
    ids.into_iter()
        .zip(parts)
        .flat_map(|(id, part)| std::iter::repeat_n(id, part as usize))
}

/// The rings of the last plan. It saves computing those anew of which nothing has changed, and changes no result.
#[derive(Clone, Debug, Default)]
pub struct RingCache {
    last: BTreeMap<(u32, Members), Arc<[u32]>>,
    this: BTreeMap<(u32, Members), Arc<[u32]>>,
}

impl RingCache {
    /// Begins a plan: what the last one did not use is forgotten.
    pub(crate) fn begin(&mut self) {
        self.last = std::mem::take(&mut self.this);
    }

    pub(crate) fn slots(&mut self, seed: u32, members: Members) -> Arc<[u32]> {
        let key = (seed, members);
        if let Some(slots) = self.this.get(&key) {
            return Arc::clone(slots);
        }
        let slots = self.last.remove(&key).unwrap_or_else(|| key.1.slots(seed));
        self.this.insert(key, Arc::clone(&slots));
        slots
    }
}
