//! Candidates with a fault: how often and how soon it is found.

use sluice_rollout::{Analysis, Metric, Verdict};

use super::random::Random;
use super::world::{Pool, Service};

/// A fault and the load under which it is to be found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    /// Connections to both pools in a second.
    pub(crate) load: f64,
    /// The candidate's percentage of them.
    pub(crate) weight: u8,
    /// The share of clients that both pools fail without a fault.
    pub(crate) base: f64,
    /// How the candidate serves with it.
    pub(crate) service: Service,
    /// For how many seconds both are seen without the fault, at half of the share each.
    pub(crate) learn_seconds: u32,
    /// For how long it lasts.
    pub(crate) seconds: u32,
}

/// After how many seconds the candidate was rolled back, and why.
pub(crate) type Found = Option<(u32, Metric)>;

impl Fault {
    /// What becomes of a candidate with it.
    pub(crate) fn run(&self, seed: u64) -> Found {
        self.run_steps(&[(self.weight, self.seconds)], seed)
    }

    /// The same over steps of a weight and a number of seconds each.
    pub(crate) fn run_steps(&self, steps: &[(u8, u32)], seed: u64) -> Found {
        let mut random = Random::new(seed);
        let mut analysis = Analysis::begin();
        let (mut candidate, mut stable) = (Pool::default(), Pool::default());
        let usual = Service {
            failing: self.base,
            ..Service::default()
        };
        let learn = [(self.weight.min(50), self.learn_seconds)];
        let learn = learn.into_iter().map(|step| (step, usual));
        let faulty = steps.iter().map(|&step| (step, self.service));
        let mut after = 0;
        for ((weight, seconds), service) in learn.chain(faulty) {
            let share = f64::from(weight) / 100.0;
            for _ in 0..seconds {
                let ours = random.poisson(self.load * share);
                let theirs = random.poisson(self.load * (1.0 - share));
                let ours = candidate.serve(&mut random, ours, service);
                let theirs = stable.serve(&mut random, theirs, usual);
                analysis.take(Some(&ours), Some(&theirs), 1, weight);
                after += 1;
                if let Verdict::Fail { metric, .. } = analysis.verdict() {
                    return Some((after - self.learn_seconds.min(after), metric));
                }
            }
        }
        None
    }
}
