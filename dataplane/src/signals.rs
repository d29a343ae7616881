//! Signals: how the servers of pools meet connections, from samples of these.
//!
//! A thread of its own takes samples out of the maps once a second and adds them up by pool. Only pools are told of that the operator asks
//! for: their connections alone are sampled.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use sluice_api::ObjectKey;
use sluice_signals::{Outcome, Recorder, Report, Tally, Voice};
use tracing::warn;

use crate::maps::Sample;
use crate::state::{Histogram, State};

/// Time between two looks at the samples.
const PAUSE: Duration = Duration::from_secs(1);

/// How the servers of a pool have met connections since this agent began to sample them.
#[derive(Debug, Default)]
pub struct PoolSignals {
    outcomes: [AtomicU64; Outcome::COUNT],
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
#[derive(Debug)]
pub struct Signals {
    pools: RwLock<BTreeMap<ObjectKey, Arc<PoolSignals>>>,
    recorder: RwLock<Recorder>,
}

impl Signals {
    /// Nothing was seen yet. `session` tells this agent from the one before it.
    pub fn new(session: u64) -> Self {
        Self {
            pools: RwLock::default(),
            recorder: RwLock::new(Recorder::new(session)),
        }
    }

    /// The pools that are sampled, with their signals.
    pub fn read(&self) -> BTreeMap<ObjectKey, Arc<PoolSignals>> {
        self.pools
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What was seen in the last seconds.
    pub fn report(&self) -> Report {
        self.recorder
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .report()
    }

    /// Takes in a second's samples, and by id and epoch whose servers are sampled. A pool that is not sampled any more is forgotten, and
    /// samples of servers that are gone say nothing.
    fn take(&self, servers: &BTreeMap<(u32, u8), ObjectKey>, samples: &[Sample]) {
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        let named: BTreeSet<&ObjectKey> = servers.values().collect();
        pools.retain(|pool, _| named.contains(pool));
        for pool in &named {
            pools.entry((*pool).clone()).or_default();
        }
        let mut voices: HashMap<(&ObjectKey, IpAddr), &Sample> = HashMap::new();
        for sample in samples {
            let Some(pool) = servers.get(&sample.server) else {
                continue;
            };
            if let Some(signals) = pools.get(pool) {
                signals.add(sample);
            }
            let voice = voices.entry((pool, sample.client)).or_insert(sample);
            if sample.hash < voice.hash {
                *voice = sample;
            }
        }
        let tallies = named
            .into_iter()
            .map(|pool| (pool.clone(), Tally::default()));
        let mut tallies: BTreeMap<ObjectKey, Tally> = tallies.collect();
        for ((pool, _), sample) in voices {
            let voice = Voice {
                outcome: sample.outcome,
                first_byte: sample.first_byte,
            };
            tallies.entry(pool.clone()).or_default().add(voice);
        }
        self.recorder
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .record(tallies);
    }
}

/// Takes samples for as long as the process lives and has maps. Each second with a pool that is sampled is told to `tell`, and so is the
/// first one without.
pub fn run<E: fmt::Display>(
    state: Arc<State>,
    mut tell: impl FnMut(&Signals) -> Result<(), E> + Send + 'static,
) {
    thread::spawn(move || {
        let mut complaints = [Complaint::default(), Complaint::default()];
        let [taking, telling] = &mut complaints;
        // What an earlier agent left is taken out in any case.
        let mut was_sampled = true;
        while let Some(maps) = state.maps() {
            let servers = sampled(&state);
            if was_sampled || !servers.is_empty() {
                let taken = maps.take_samples();
                if let Some(samples) = taking.of("take samples of connections", taken) {
                    state.signals.take(&servers, &samples);
                    telling.of("tell what was sampled", tell(&state.signals));
                }
            }
            was_sampled = !servers.is_empty();
            drop(maps);
            thread::sleep(PAUSE);
        }
    });
}

/// Complains of what fails, once until it has succeeded again.
#[derive(Default)]
struct Complaint(bool);

impl Complaint {
    fn of<T, E: fmt::Display>(&mut self, what: &str, result: Result<T, E>) -> Option<T> {
        if let Err(error) = &result
            && !self.0
        {
            warn!("cannot {what}: {error}");
        }
        self.0 = result.is_err();
        result.ok()
    }
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
    use sluice_signals::PoolTally;

    use super::*;

    fn sample(server: (u32, u8), outcome: Outcome) -> Sample {
        Sample {
            server,
            client: [198, 51, 100, 7].into(),
            hash: 0,
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
        let signals = Signals::new(7);
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
        let pools = signals.report().seconds.pop().expect("a second").pools;
        let keys: Vec<ObjectKey> = pools.iter().map(PoolTally::key).collect();
        assert_eq!(keys, [green]);
    }

    #[test]
    fn a_client_with_many_connections_is_one_voice() {
        let blue = ObjectKey::new("shop", "blue");
        let servers = BTreeMap::from([((1, 0), blue.clone())]);
        let signals = Signals::new(7);
        let mut samples: Vec<Sample> = (0..100)
            .map(|port| Sample {
                hash: 1000 - port,
                ..sample((1, 0), Outcome::Reset)
            })
            .collect();
        samples.push(sample((1, 0), Outcome::Replied));
        samples.push(Sample {
            client: [198, 51, 100, 8].into(),
            ..sample((1, 0), Outcome::Silent)
        });
        signals.take(&servers, &samples);
        signals.take(&servers, &samples[..10]);
        let report = signals.report();
        let voices = |second: usize| {
            let tally = &report.seconds[second].pools[0].tally;
            (
                tally.of(Outcome::Replied),
                tally.of(Outcome::Silent),
                tally.asked(),
            )
        };
        assert_eq!(voices(0), (1, 1, 2), "the least hash speaks for a client");
        assert_eq!(voices(1), (0, 0, 1));
        assert_eq!(signals.read()[&blue].count(Outcome::Reset), 110);
    }
}
