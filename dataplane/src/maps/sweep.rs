//! Sweeping the flow tables: forgetting what has expired, and counting what lives, FullNAT's claims too.
//!
//! Programs use the tables at the same time. An entry is freed in their own way: its first key word is exchanged for the
//! marker of a slot being written, the data is read once more, and only then the slot becomes free.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use sluice_abi::{
    BUCKET_ENTRIES, ClaimData, ClaimKey, ClaimState, ConfigWord, FlowClock, FlowData, FlowState,
    MapName, SAMPLE_WORDS, SLOT_BUSY, SLOT_FREE, Timeouts, claim_words, entry_words,
};

use super::table::Shared;
use super::{Bucket, Error, Maps, clock};

/// Live flows of a sweep.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FlowCensus {
    /// By state; the key orders like the stored number.
    pub states: BTreeMap<u8, u64>,
    /// Established and half-open flows by id and epoch of their server.
    pub servers: BTreeMap<(u32, u8), u64>,
    /// Entries in use by table.
    pub tables: BTreeMap<&'static str, Usage>,
    /// Entries that expired and were freed.
    pub expired: u64,
}

/// How full a table is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Entries in use.
    pub used: u64,
    /// The most there can be.
    pub limit: u64,
}

/// Claimed ports that are in use.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FullNatCensus {
    /// Claims by table.
    pub tables: BTreeMap<&'static str, Usage>,
    /// Claims of half-open flows.
    pub half_open: u64,
}

/// When an entry has expired, during one sweep: as programs see it.
#[derive(Clone, Copy, Debug)]
struct Rules {
    now: FlowClock,
    half_open: Timeouts,
    established: Timeouts,
}

impl Rules {
    /// The state of an entry; `None` if it has expired, or is none of this version's.
    fn live(self, data: FlowData) -> Option<FlowState> {
        let state = data.state()?;
        let timeouts = if state.is_half_open() {
            self.half_open
        } else {
            self.established
        };
        data.is_live(state, self.now, timeouts).then_some(state)
    }

    /// The state of the claim in a slot; `None` if there is none, or one that gives way.
    fn held(self, slot: &[AtomicU64]) -> Option<ClaimState> {
        let [key, data, ..] = slot else {
            return None;
        };
        if !ClaimKey::is_claimed(key.load(Ordering::Acquire)) {
            return None;
        }
        let data = ClaimData(data.load(Ordering::Acquire));
        let is_held = data.worth(self.now, self.established) == ClaimData::HELD;
        data.state().filter(|_| is_held)
    }
}

impl Maps {
    fn rules(&self) -> Result<Rules, Error> {
        Ok(Rules {
            now: FlowClock::from_ns(clock::now()?),
            half_open: Timeouts(self.config(ConfigWord::HalfOpenTimeouts)?),
            established: Timeouts(self.config(ConfigWord::EstablishedTimeouts)?),
        })
    }

    /// Frees expired flows and counts the others.
    pub fn sweep_flows(&self) -> Result<FlowCensus, Error> {
        let mut sweep = Sweep {
            rules: self.rules()?,
            census: FlowCensus::default(),
        };
        sweep.table(MapName::Flows4, &self.flows4, entry_words::<4>());
        sweep.table(MapName::Flows6, &self.flows6, entry_words::<16>());
        sweep.table(MapName::Half4, &self.half4, entry_words::<4>());
        sweep.table(MapName::Half6, &self.half6, entry_words::<16>());
        Ok(sweep.census)
    }

    /// Frees slots of flows and samples that an agent, killed in the middle of a sweep, left marked as being written. To be called
    /// before anything else of this process writes them.
    pub fn free_abandoned_slots(&self) {
        let keys = || {
            let tables = [
                (&self.flows4, entry_words::<4>()),
                (&self.flows6, entry_words::<16>()),
                (&self.half4, entry_words::<4>()),
                (&self.half6, entry_words::<16>()),
            ];
            let samples = self.samples.words().iter().step_by(SAMPLE_WORDS);
            tables
                .into_iter()
                .flat_map(|(table, words)| table.words().iter().step_by(words))
                .chain(samples)
                .enumerate()
        };
        let busy: BTreeSet<usize> = keys()
            .filter(|(_, key)| key.load(Ordering::Acquire) == SLOT_BUSY)
            .map(|(index, _)| index)
            .collect();
        if busy.is_empty() {
            return;
        }
        // Programs have finished theirs then. One that has begun anew meanwhile loses an entry, which is no more than an
        // eviction.
        self.grace();
        for (_, key) in keys().filter(|(index, _)| busy.contains(index)) {
            let _ = key.compare_exchange(SLOT_BUSY, SLOT_FREE, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// Counts the claims that go on.
    pub fn count_claims(&self) -> Result<FullNatCensus, Error> {
        let rules = self.rules()?;
        let mut census = FullNatCensus::default();
        for (name, table, words) in [
            (MapName::FullNat4, &self.fullnat4, claim_words::<4>()),
            (MapName::FullNat6, &self.fullnat6, claim_words::<16>()),
        ] {
            let mut used = 0;
            for state in table
                .words()
                .chunks_exact(words)
                .filter_map(|slot| rules.held(slot))
            {
                used += 1;
                census.half_open += u64::from(state == ClaimState::HalfOpen);
            }
            let limit = u64::from(table.max_entries());
            census.tables.insert(name.as_str(), Usage { used, limit });
        }
        Ok(census)
    }
}

struct Sweep {
    rules: Rules,
    census: FlowCensus,
}

impl Sweep {
    fn table(&mut self, name: MapName, table: &Shared<Bucket>, entry_words: usize) {
        let limit = u64::from(table.max_entries()) * BUCKET_ENTRIES as u64;
        let mut used = 0;
        for entry in table.words().chunks_exact(entry_words) {
            let (Some(key), Some(data)) = (entry.first(), entry.last()) else {
                continue;
            };
            if self.entry(key, data) {
                used += 1;
            }
        }
        let usage = Usage { used, limit };
        self.census.tables.insert(name.as_str(), usage);
    }

    /// Whether the entry lives.
    fn entry(&mut self, key_word: &AtomicU64, data_word: &AtomicU64) -> bool {
        let key = key_word.load(Ordering::Acquire);
        if key <= SLOT_BUSY {
            return false;
        }
        let data = FlowData(data_word.load(Ordering::Acquire));
        let Some(state) = self.rules.live(data) else {
            self.census.expired += u64::from(self.free(key_word, key, data_word));
            return false;
        };
        *self.census.states.entry(state as u8).or_default() += 1;
        let server = (data.server(), data.epoch());
        *self.census.servers.entry(server).or_default() += 1;
        true
    }

    fn free(&self, key_word: &AtomicU64, key: u64, data_word: &AtomicU64) -> bool {
        let claimed =
            key_word.compare_exchange(key, SLOT_BUSY, Ordering::AcqRel, Ordering::Acquire);
        if claimed.is_err() {
            return false;
        }
        let data = FlowData(data_word.load(Ordering::Acquire));
        let expired = self.rules.live(data).is_none();
        key_word.store(if expired { SLOT_FREE } else { key }, Ordering::Release);
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweep(now: u32) -> Sweep {
        Sweep {
            rules: Rules {
                now: FlowClock(now),
                half_open: Timeouts::HALF_OPEN,
                established: Timeouts::ESTABLISHED,
            },
            census: FlowCensus::default(),
        }
    }

    fn data(epoch: u8, state: FlowState, seen: u32) -> FlowData {
        FlowData::new(3, epoch, state, FlowClock(seen), 0)
    }

    #[test]
    fn live_flows_are_counted_by_state_and_server() {
        let mut sweep = sweep(100);
        let key = AtomicU64::new(1 << 48);
        for epoch in [7, 6, 7] {
            let data = data(epoch, FlowState::Established, 90);
            assert!(sweep.entry(&key, &AtomicU64::new(data.0)));
        }
        let expected = BTreeMap::from([((3, 6), 1), ((3, 7), 2)]);
        assert_eq!(sweep.census.servers, expected);
        let established = FlowState::Established as u8;
        assert_eq!(sweep.census.states, BTreeMap::from([(established, 3)]));
    }

    /// Times of half-open flows come again after 9.8 hours, those of established ones after 6.5 days.
    #[test]
    fn expired_flows_are_freed_across_the_wrap_of_their_times() {
        for (state, shift, timeouts) in [
            (FlowState::Syn, 0, Timeouts::HALF_OPEN),
            (FlowState::Closed, 4, Timeouts::ESTABLISHED),
            (FlowState::Established, 4, Timeouts::ESTABLISHED),
        ] {
            let unit = 1 << shift;
            let seen = (0x1_0000 - 1) * unit;
            let timeout = u32::from(timeouts.of(state)) * unit;
            let entry = AtomicU64::new(data(0, state, seen).0);
            let key = AtomicU64::new(1 << 48);
            let last = seen + timeout + unit - 1;
            assert!(sweep(last).entry(&key, &entry), "{state:?}");
            assert!(!sweep(last + 1).entry(&key, &entry), "{state:?}");
            assert_eq!(key.load(Ordering::Relaxed), SLOT_FREE);
        }
    }

    #[test]
    fn an_established_flow_stays_expired_for_days_without_a_sweep() {
        let entry = data(0, FlowState::Established, 1 << 20);
        for hours in [2, 24, 100, 150] {
            let now = (1 << 20) + hours * 3600 * 2 - hours * 500;
            let key = AtomicU64::new(1 << 48);
            let found = sweep(now).entry(&key, &AtomicU64::new(entry.0));
            assert!(!found, "alive after {hours} hours");
        }
    }

    #[test]
    fn slots_that_are_free_or_being_written_are_left_alone() {
        let mut sweep = sweep(100);
        for key in [SLOT_FREE, SLOT_BUSY] {
            let word = AtomicU64::new(key);
            assert!(!sweep.entry(&word, &AtomicU64::new(0)));
            assert_eq!(word.load(Ordering::Relaxed), key);
        }
        assert_eq!(sweep.census.expired, 0);
    }

    #[test]
    fn an_entry_younger_than_now_lives() {
        let key = AtomicU64::new(9 << 48);
        let entry = AtomicU64::new(data(0, FlowState::Syn, 101).0);
        assert!(sweep(100).entry(&key, &entry));
    }
}
