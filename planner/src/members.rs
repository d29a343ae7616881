//! The servers behind a ring's positions.

use std::collections::BTreeMap;

use crate::ring::{self, RingKey, WHOLE};

/// The servers of a ring, by what the ring tells apart.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Members {
    /// Ids and weights by key.
    by_key: BTreeMap<RingKey, Vec<(u32, u64)>>,
    /// The tenths of their slots that they have, of those that have less than all.
    tenths: BTreeMap<RingKey, u8>,
}

impl Members {
    pub(crate) fn add(&mut self, key: RingKey, id: u32, weight: u64, tenths: u8) {
        if weight == 0 {
            return;
        }
        self.by_key.entry(key).or_default().push((id, weight));
        if tenths < WHOLE {
            self.tenths.insert(key, tenths);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// The weights by what the ring tells apart.
    fn weights(&self) -> BTreeMap<RingKey, u64> {
        let sum = |ids: &Vec<(u32, u64)>| ids.iter().map(|(_, weight)| weight).sum();
        self.by_key
            .iter()
            .map(|(key, ids)| (*key, sum(ids)))
            .collect()
    }

    /// The size of their ring, as log2 of its slots.
    pub(crate) fn log2_slots(&self) -> u8 {
        ring::log2_slots(self.weights().into_values())
    }

    /// The server ids of the slots of the ring with this seed.
    fn slots(&self, seed: u32, log2_slots: u8) -> Vec<u32> {
        let weights = self.weights();
        let layout = ring::fill(seed, &weights, log2_slots);
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
        let own = layout
            .iter()
            .map(|&group| turns[group as usize].next().unwrap_or(0));
        let own: Vec<u32> = own.collect();
        let mut slots = own.clone();
        let lenders = ring::lenders(&weights, &self.tenths);
        for (lent, to) in ring::lend(seed, &layout, &weights, &lenders) {
            slots[lent as usize] = own[to as usize];
        }
        slots
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

/// The seed, the members and the size of a ring, from which its slots follow.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RingLayout {
    seed: u32,
    members: Members,
    log2_slots: u8,
}

impl RingLayout {
    pub(crate) fn new(seed: u32, members: Members, log2_slots: u8) -> Self {
        Self {
            seed,
            members,
            log2_slots,
        }
    }

    /// Computes the server ids of the slots.
    pub fn slots(&self) -> Vec<u32> {
        self.members.slots(self.seed, self.log2_slots)
    }
}
