//! Signals: how the servers of pools meet connections, from samples of these.
//!
//! A thread of its own takes samples out of the maps once a second and adds them up by pool. Only pools are told of that the operator asks
//! for: their connections alone are sampled.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use sluice_api::ObjectKey;
use tracing::warn;

use crate::maps::{Outcome, Sample};
use crate::state::{Histogram, State};

/// Time between two looks at the samples.
const PAUSE: Duration = Duration::from_secs(1);

/// How the servers of a pool have met connections since this agent began to sample them.
#[derive(Debug, Default)]
pub struct PoolSignals {
    outcomes: [AtomicU64; Outcome::ALL.len()],
    /// Times until servers answered clients' SYNs.
    pub handshake: Histogram,
    /// Times until servers answered clients' first data.
    pub first_byte: Histogram,
}

impl PoolSignals {
    /// How many connections ended so.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize].load(Ordering::Relaxed)
    }

    fn add(&self, sample: &Sample) {
        self.outcomes[sample.outcome as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(time) = sample.handshake {
            self.handshake.observe(time);
        }
        if let Some(time) = sample.first_byte {
            self.first_byte.observe(time);
        }
    }
}

/// The signals of all pools that are sampled.
#[derive(Debug, Default)]
pub struct Signals(RwLock<BTreeMap<ObjectKey, Arc<PoolSignals>>>);

impl Signals {
    /// The pools that are sampled, with their signals.
    pub fn read(&self) -> BTreeMap<ObjectKey, Arc<PoolSignals>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Takes in samples, and by id and epoch whose servers are sampled. A pool that is not sampled any more is forgotten, and samples of
    /// servers that are gone say nothing.
    fn take(&self, servers: &BTreeMap<(u32, u8), ObjectKey>, samples: &[Sample]) {
        let mut pools = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let named: BTreeSet<&ObjectKey> = servers.values().collect();
        pools.retain(|pool, _| named.contains(pool));
        for pool in named {
            pools.entry(pool.clone()).or_default();
        }
        for sample in samples {
            let pool = servers.get(&sample.server);
            if let Some(signals) = pool.and_then(|pool| pools.get(pool)) {
                signals.add(sample);
            }
        }
    }
}

/// Takes samples for as long as the process lives and has maps.
pub fn run(state: Arc<State>) {
    thread::spawn(move || {
        let mut is_failing = false;
        // What an earlier agent left is taken out in any case.
        let mut was_sampled = true;
        while let Some(maps) = state.maps() {
            let servers = sampled(&state);
            if was_sampled || !servers.is_empty() {
                match maps.take_samples() {
                    Ok(samples) => {
                        state.signals.take(&servers, &samples);
                        is_failing = false;
                    }
                    Err(error) if !is_failing => {
                        warn!("cannot take samples of connections: {error}");
                        is_failing = true;
                    }
                    Err(_) => {}
                }
            }
            was_sampled = !servers.is_empty();
            drop(maps);
            thread::sleep(PAUSE);
        }
    });
}

/// The pools of the servers that are sampled, by the servers' ids and epochs.
fn sampled(state: &State) -> BTreeMap<(u32, u8), ObjectKey> {
    let Some(planner) = state.published().planner else {
        return BTreeMap::new();
    };
    let planner = planner.read();
    let servers = planner.sampled().map(|server| {
        let pool = server.virtual_server.sibling(server.pool);
        ((server.id, server.epoch), pool)
    });
    servers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(server: (u32, u8), outcome: Outcome) -> Sample {
        Sample {
            server,
            client: [198, 51, 100, 7].into(),
            outcome,
            handshake: Some(Duration::from_millis(3)),
            first_byte: (outcome == Outcome::Replied).then(|| Duration::from_millis(40)),
        }
    }

    #[test]
    fn samples_are_added_up_by_pool() {
        let (blue, green) = (
            ObjectKey::new("shop", "blue"),
            ObjectKey::new("shop", "green"),
        );
        let servers = BTreeMap::from([
            ((1, 0), blue.clone()),
            ((2, 5), blue.clone()),
            ((3, 0), green.clone()),
        ]);
        let signals = Signals::default();
        let samples = [
            sample((1, 0), Outcome::Replied),
            sample((2, 5), Outcome::Reset),
            // The id was another server's.
            sample((2, 4), Outcome::Reset),
            sample((9, 0), Outcome::Silent),
        ];
        signals.take(&servers, &samples);
        signals.take(&servers, &samples[..1]);
        let read = signals.read();
        assert_eq!(read.keys().collect::<Vec<_>>(), [&blue, &green]);
        let counts = |pool: &ObjectKey| Outcome::ALL.map(|outcome| read[pool].count(outcome));
        assert_eq!(counts(&blue), [2, 0, 0, 1, 0, 0, 0]);
        assert_eq!(counts(&green), [0; 7]);
        assert_eq!(read[&blue].handshake.read().1, 3);
        assert_eq!(read[&blue].first_byte.read().1, 2);

        signals.take(&BTreeMap::from([((3, 0), green.clone())]), &[]);
        assert_eq!(signals.read().keys().collect::<Vec<_>>(), [&green]);
    }
}
