//! Rollouts in which the candidate is as good as the stable pool.

use sluice_rollout::{Analysis, Verdict};

use super::random::Random;
use super::world::{Pool, Service};

/// The candidate's percentages.
const WEIGHTS: [u8; 6] = [1, 5, 10, 25, 50, 100];
/// Those of a rollout in which the stable pool has little for long.
const LATE_WEIGHTS: [u8; 6] = [50, 75, 90, 95, 99, 100];
/// How long the candidate is judged after the last step.
const BAKE_SECONDS: u32 = 300;
/// Servers of a pool.
const SERVERS: u32 = 10;
/// A step that cannot be left because of an inconclusive verdict is at most so long.
const MAX_STEP_SECONDS: u32 = 2_000;

/// What happens in a rollout besides.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Scenario {
    /// Nothing.
    Quiet,
    /// Both pools fail or are slow alike for a while, when both have a share.
    CommonOutage,
    /// The same in steps of 50 to 99 %, where few clients of the stable pool are there to compare with.
    LateCommonOutage,
    /// All of the candidate's answers are slow for up to ten seconds, or the first one of each server.
    ColdStart,
    /// One server of each pool is slow.
    SlowServerInBoth,
    /// One server of the stable pool is slow.
    SlowServerInStable,
    /// One server of the candidate is slow: within the margin.
    SlowServerInCandidate,
    /// One client makes half of the connections.
    DominantClient,
}

impl Scenario {
    /// Those of which false rollbacks are bounded: not what comes late.
    pub(crate) const ALL: [Self; 7] = [
        Self::Quiet,
        Self::CommonOutage,
        Self::ColdStart,
        Self::SlowServerInBoth,
        Self::SlowServerInStable,
        Self::SlowServerInCandidate,
        Self::DominantClient,
    ];
}

/// What became of a rollout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fate {
    pub(crate) rolled_back: bool,
    /// Whether a verdict was inconclusive at any time.
    pub(crate) was_inconclusive: bool,
    /// Seconds that were judged.
    pub(crate) seconds: u32,
}

/// A healthy rollout that a seed decides.
#[derive(Debug)]
pub(crate) struct Healthy {
    random: Random,
    scenario: Scenario,
    /// Connections in a second.
    load: f64,
    base: f64,
    outage: (u32, u32),
    outage_service: Service,
    cold_seconds: u32,
    cold_servers: u32,
    slower_ms: u64,
    pauses: [u32; WEIGHTS.len()],
}

impl Healthy {
    /// With pauses of a minute to `longest_pause` seconds.
    pub(crate) fn new(scenario: Scenario, seed: u64, longest_pause: u32) -> Self {
        let mut random = Random::new(seed);
        let load = random.log_between(0.2, 10_000.0);
        let base = random.one_of(&[0.0, 0.001, 0.01]);
        let pauses = WEIGHTS.map(|_| random.whole(60, longest_pause));
        let shared: u32 = pauses.iter().take(WEIGHTS.len() - 1).sum();
        let length = random.whole(5, 120);
        let begin = random.whole(0, shared - length - 10);
        let slower_ms = u64::from(random.whole(500, 2_000));
        let part = random.between(0.3, 1.0);
        let is_slow = random.unit() < 0.33;
        let is_cold_by_time = random.unit() < 0.5;
        let cold_seconds = random.whole(0, 10);
        let outage_service = Service {
            failing: if is_slow { base } else { part },
            is_silent: random.unit() < 0.5,
            slow: if is_slow { part } else { 0.0 },
            slower_ms,
        };
        Self {
            random,
            scenario,
            load,
            base,
            outage: (begin, begin + length),
            outage_service,
            cold_seconds: if is_cold_by_time { cold_seconds } else { 0 },
            cold_servers: if is_cold_by_time { 0 } else { SERVERS },
            slower_ms,
            pauses,
        }
    }

    /// Judges each second of it.
    pub(crate) fn run(mut self) -> Fate {
        let mut analysis = Analysis::begin();
        let (mut candidate, mut stable) = (Pool::default(), Pool::default());
        let mut fate = Fate {
            rolled_back: false,
            was_inconclusive: false,
            seconds: 0,
        };
        let weights = match self.scenario {
            Scenario::LateCommonOutage => LATE_WEIGHTS,
            _ => WEIGHTS,
        };
        for (weight, pause) in weights.into_iter().zip(self.pauses) {
            let least = if weight == 100 {
                pause + BAKE_SECONDS
            } else {
                pause
            };
            for second in 0..MAX_STEP_SECONDS {
                let share = f64::from(weight) / 100.0;
                let ours = self.clients(share);
                let theirs = self.clients(1.0 - share);
                let services = self.services(fate.seconds, ours);
                let ours = candidate.serve(&mut self.random, ours, services.0);
                let theirs = stable.serve(&mut self.random, theirs, services.1);
                analysis.take(Some(&ours), Some(&theirs), 1, weight);
                fate.seconds += 1;
                match analysis.verdict() {
                    Verdict::Pass if second + 1 >= least => break,
                    Verdict::Pass => {}
                    Verdict::Inconclusive { .. } => fate.was_inconclusive = true,
                    Verdict::Fail { .. } => {
                        fate.rolled_back = true;
                        return fate;
                    }
                }
            }
        }
        fate
    }

    fn clients(&mut self, share: f64) -> u32 {
        if self.scenario != Scenario::DominantClient {
            return self.random.poisson(self.load * share);
        }
        // The loud one is heard once.
        let loud = self.random.poisson(self.load / 2.0 * share).min(1);
        self.random.poisson(self.load / 2.0 * share) + loud
    }

    /// How the candidate and the stable pool serve.
    fn services(&mut self, second: u32, candidate_clients: u32) -> (Service, Service) {
        let usual = Service {
            failing: self.base,
            is_silent: self.outage_service.is_silent,
            slow: 0.0,
            slower_ms: self.slower_ms,
        };
        let one_slow = Service {
            slow: 1.0 / f64::from(SERVERS),
            ..usual
        };
        match self.scenario {
            Scenario::CommonOutage | Scenario::LateCommonOutage
                if (self.outage.0..self.outage.1).contains(&second) =>
            {
                (self.outage_service, self.outage_service)
            }
            Scenario::Quiet
            | Scenario::CommonOutage
            | Scenario::LateCommonOutage
            | Scenario::DominantClient => (usual, usual),
            Scenario::ColdStart => {
                let slow = self.cold(second, candidate_clients);
                (Service { slow, ..usual }, usual)
            }
            Scenario::SlowServerInBoth => (one_slow, one_slow),
            Scenario::SlowServerInStable => (usual, one_slow),
            Scenario::SlowServerInCandidate => (one_slow, usual),
        }
    }

    /// The share of the candidate's clients that meet a cold server.
    fn cold(&mut self, second: u32, clients: u32) -> f64 {
        if second < self.cold_seconds {
            return 1.0;
        }
        let before = self.cold_servers;
        for _ in 0..clients.min(1_000) {
            if self.random.whole(1, SERVERS) <= self.cold_servers {
                self.cold_servers -= 1;
            }
        }
        f64::from(before - self.cold_servers) / f64::from(clients.max(1))
    }
}
