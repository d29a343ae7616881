//! Whether a rollout's candidate serves clients worse than the stable pool: statistics over signals. Pure.
//!
//! The operator tells each second what nodes saw of both pools ([`Analysis::take`]) and asks for the [`Verdict`]. Two things are
//! judged: clients that a server failed, and clients that waited too long for the first byte ([`Metric`]).
//!
//! Two questions are asked of each. *Is the candidate above its limit?* The limit comes from the stable pool's usual rate, with a margin. A
//! [`watcher`] for each size of fault collects evidence for that, beginning anew with each client that may be the first of a fault. *Is it the candidate
//! alone?* As long as the stable pool has a share, the candidate must also be worse than it in the same seconds; where it is not,
//! both may have a common cause and the verdict is inconclusive.
//!
//! Both are bets on counts of clients ([`bets`]). They may be looked at after each second, and their errors stay within the budget
//! for a whole run, however long. docs/analysis.md has the assumptions and the measured power.

use sluice_api::RolloutAnalysis;
use sluice_signals::Tally;

use baseline::Baseline;
use metric::Judge;
use watcher::Beside;

mod baseline;
mod bets;
mod message;
mod metric;
mod store;
#[cfg(test)]
mod tests;
mod watcher;

pub use metric::Metric;

/// First bytes of a candidate are not judged for so many seconds after its first client …
const WARM_SECONDS: u32 = 10;
/// … nor for so many clients: its servers may be cold.
const WARM_SAMPLES: u64 = 20;
/// The baseline learns nothing while the candidate is under suspicion, since the stable pool may be out of order too. After so many seconds that is
/// how things are.
const MAX_UNLEARNT_SECONDS: u32 = 600;

/// What an analysis says of a candidate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing speaks against it; also where nothing is known.
    Pass,
    /// It fares badly, but so may the stable pool: it would be wrong to go on, and to roll back.
    Inconclusive {
        /// What was seen, for people.
        message: String,
    },
    /// It is worse than the stable pool. This stays until [`Analysis::candidate_changed`].
    Fail {
        /// What shows it.
        metric: Metric,
        /// What was seen, for people.
        message: String,
    },
}

/// What is known of the pools of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Analysis {
    baseline: Baseline,
    judges: Vec<Judge>,
    /// The candidate's percentage of the share, as of the last time.
    candidate_weight: u8,
    /// What is known of how warm the candidate is: seconds since its first client, and its clients.
    warm_seconds: u32,
    warm_samples: u64,
    unlearnt_seconds: u32,
    verdict: Verdict,
}

impl Default for Analysis {
    fn default() -> Self {
        Self::begin()
    }
}

impl Analysis {
    /// A run begins; nothing is known of either pool.
    pub fn begin() -> Self {
        Self {
            baseline: Baseline::default(),
            judges: Metric::ALL.map(Judge::new).into(),
            candidate_weight: 0,
            warm_seconds: 0,
            warm_samples: 0,
            unlearnt_seconds: 0,
            verdict: Verdict::Pass,
        }
    }

    /// Goes on from what was stored: with the same evidence and the same error budget.
    pub fn restored(stored: &RolloutAnalysis) -> Self {
        store::restored(stored)
    }

    /// What [`Self::restored`] needs, and people may want to read.
    pub fn stored(&self) -> RolloutAnalysis {
        store::stored(self)
    }

    /// Takes what all nodes told of both pools since the last call. `None`: they told nothing of it, which changes nothing.
    /// `elapsed_seconds` is the time since the last call, and `candidate_weight` the candidate's percentage of their share in it.
    pub fn take(
        &mut self,
        candidate: Option<&Tally>,
        stable: Option<&Tally>,
        elapsed_seconds: u32,
        candidate_weight: u8,
    ) {
        self.stand_beside(candidate_weight);
        if let Some(candidate) = candidate {
            let nothing = Tally::default();
            let both = (candidate, stable.unwrap_or(&nothing));
            let (is_warm, beside) = (self.is_warm(), self.beside());
            for judge in &mut self.judges {
                if is_warm || judge.metric != Metric::FirstByte {
                    judge.take(both, &self.baseline, beside, elapsed_seconds);
                }
            }
            self.warm_up(candidate, elapsed_seconds);
        }
        if let Some(stable) = stable {
            self.learn(stable, elapsed_seconds);
        }
        self.judge();
    }

    /// What there is to say of the candidate.
    pub fn verdict(&self) -> Verdict {
        self.verdict.clone()
    }

    /// Another candidate, or the same one again in a new run: what was seen of the last one is void, and the error budget is a new one. The
    /// stable pool's baseline stays.
    pub fn candidate_changed(&mut self) {
        let baseline = std::mem::take(&mut self.baseline);
        *self = Self {
            baseline,
            ..Self::begin()
        };
    }

    /// What was seen beside the stable pool was to be compared with it. It cannot be any more once that has no share, so it is void.
    fn stand_beside(&mut self, candidate_weight: u8) {
        let before = self.beside();
        self.candidate_weight = candidate_weight.min(100);
        if self.beside() == Beside::Nobody && before != Beside::Nobody {
            for judge in &mut self.judges {
                judge.acquit();
            }
        }
    }

    const fn beside(&self) -> Beside {
        Beside::of(self.candidate_weight)
    }

    const fn is_warm(&self) -> bool {
        self.warm_seconds >= WARM_SECONDS && self.warm_samples >= WARM_SAMPLES
    }

    fn warm_up(&mut self, candidate: &Tally, elapsed_seconds: u32) {
        let samples = candidate.first_bytes.count();
        if self.warm_samples > 0 || samples > 0 {
            self.warm_seconds = self.warm_seconds.saturating_add(elapsed_seconds);
            self.warm_samples = self.warm_samples.saturating_add(samples);
        }
    }

    fn learn(&mut self, stable: &Tally, elapsed_seconds: u32) {
        if self.beside() == Beside::Nobody {
            return;
        }
        if self.judges.iter().any(Judge::is_suspicious) {
            self.unlearnt_seconds = self.unlearnt_seconds.saturating_add(elapsed_seconds);
            if self.unlearnt_seconds <= MAX_UNLEARNT_SECONDS {
                return;
            }
        } else {
            self.unlearnt_seconds = 0;
        }
        self.baseline.learn(stable, elapsed_seconds);
    }

    fn judge(&mut self) {
        if matches!(self.verdict, Verdict::Fail { .. }) {
            return;
        }
        let verdicts = self.judges.iter();
        let verdicts = verdicts.map(|judge| judge.verdict(&self.baseline, self.beside()));
        self.verdict = verdicts.fold(Verdict::Pass, worse);
    }
}

/// The worse one of two, the first where they are alike.
fn worse(one: Verdict, other: Verdict) -> Verdict {
    let rank = |verdict: &Verdict| match verdict {
        Verdict::Pass => 0,
        Verdict::Inconclusive { .. } => 1,
        Verdict::Fail { .. } => 2,
    };
    if rank(&other) > rank(&one) {
        other
    } else {
        one
    }
}
