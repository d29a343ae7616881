//! What is judged, and against which limit.

use std::fmt;

use super::baseline::{Baseline, rate, upper_rate};
use super::bets::{Trials, real};
use super::watcher::{Beside, Fault, KINDS, News, Watcher};
use sluice_signals::{Outcome, Tally};

/// The error budget of a metric in a run: 0.1 %. The two have 0.2 % together.
const BUDGET: f64 = 0.001;
/// The margin: the candidate may fail so many times as often as the stable pool usually does …
const MARGIN: f64 = 1.5;
/// … and so many times where that has no share.
const MARGIN_ALONE: f64 = 2.0;
/// A fault that is looked for is at least so many times the limit.
const FAULT_FACTOR: f64 = 2.5;
/// What the candidate may have where the stable pool is not known well enough.
const UNKNOWN_LIMIT: f64 = 0.05;
/// A limit is at most this. A pool that fails more often than that is broken itself.
const MAX_LIMIT: f64 = 0.9;

/// The kinds of failures, in the order in which a suspicion counts them.
pub(super) const FAILURES: [Outcome; KINDS] = [
    Outcome::Refused,
    Outcome::Unanswered,
    Outcome::Reset,
    Outcome::Closed,
    Outcome::Silent,
];

/// A metric that is there without being asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Metric {
    /// Clients that a server failed, of those that asked.
    Failures,
    /// Clients that waited too long for the first byte, of those that got one.
    FirstByte,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Failures, Self::FirstByte];

    /// As status names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Failures => "failures",
            Self::FirstByte => "firstByte",
        }
    }

    /// The sizes of faults that are looked for: the share of clients that fare badly.
    const fn faults(self) -> &'static [f64] {
        match self {
            Self::Failures => &[0.0, 0.06, 0.2, 0.8],
            Self::FirstByte => &[0.35, 0.6, 0.9],
        }
    }

    /// What the candidate may have at least, beside the stable pool and alone.
    const fn floor(self, beside: Beside) -> f64 {
        match (self, beside) {
            (Self::Failures, Beside::Nobody) => 0.01,
            (Self::Failures, _) => 0.002,
            (Self::FirstByte, Beside::Nobody) => 0.25,
            (Self::FirstByte, _) => 0.15,
        }
    }

    /// What a tally says. `None`: nothing can be said yet.
    fn trials(self, tally: &Tally, baseline: &Baseline) -> Option<Trials> {
        match self {
            Self::Failures => Some(Trials::new(tally.asked(), tally.failed())),
            Self::FirstByte => {
                let class = baseline.slow_class()?;
                let times = &tally.first_bytes;
                Some(Trials::new(times.count(), times.above(class)))
            }
        }
    }

    /// What the baseline says.
    pub(super) fn usual(self, baseline: &Baseline) -> Option<Trials> {
        match self {
            Self::Failures => (baseline.failures.asked > 0).then_some(baseline.failures),
            Self::FirstByte => Some(baseline.slow(baseline.slow_class()?)),
        }
    }

    /// The share of clients that may fare badly. `None`: it is not judged yet.
    pub(super) fn limit(self, baseline: &Baseline, beside: Beside) -> Option<f64> {
        let usual = self.usual(baseline);
        if self == Self::FirstByte {
            usual?;
        }
        let margin = if beside == Beside::Nobody {
            MARGIN_ALONE
        } else {
            MARGIN
        };
        let limit = usual.and_then(|usual| {
            let seen = margin * real(usual.failing) / real(usual.asked);
            let unsure = UNKNOWN_LIMIT.max(2.0 * seen);
            Some(seen.max(upper_rate(usual)?.min(unsure)))
        });
        let limit = limit.unwrap_or(UNKNOWN_LIMIT);
        Some(limit.clamp(self.floor(beside), MAX_LIMIT))
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// What is known by one metric in a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Judge {
    pub(super) metric: Metric,
    pub(super) candidate: Trials,
    pub(super) stable: Trials,
    pub(super) watchers: Vec<Watcher>,
}

impl Judge {
    pub(super) fn new(metric: Metric) -> Self {
        Self {
            metric,
            candidate: Trials::default(),
            stable: Trials::default(),
            watchers: vec![Watcher::default(); metric.faults().len()],
        }
    }

    /// Takes what was seen of both pools. The baseline is that from before.
    pub(super) fn take(
        &mut self,
        (candidate, stable): (&Tally, &Tally),
        baseline: &Baseline,
        beside: Beside,
        seconds: u32,
    ) {
        let limit = self.metric.limit(baseline, beside);
        let both = self.metric.trials(candidate, baseline);
        let both = both.zip(self.metric.trials(stable, baseline));
        let Some((limit, (candidate_trials, stable_trials))) = limit.zip(both) else {
            return;
        };
        let stable_trials = if beside == Beside::Nobody {
            Trials::default()
        } else {
            stable_trials
        };
        self.candidate += candidate_trials;
        self.stable += stable_trials;
        let mut news = News {
            candidate: candidate_trials,
            stable: stable_trials,
            kinds: [0; KINDS],
            seconds,
        };
        if self.metric == Metric::Failures {
            news.kinds = FAILURES.map(|outcome| candidate.of(outcome));
        }
        let stable_rate = self.metric.usual(baseline).map_or(0.01, rate);
        for (watcher, &fault) in self.watchers.iter_mut().zip(self.metric.faults()) {
            let fault = Fault {
                limit,
                rate: fault_rate(fault, limit),
                stable_rate,
                enough: enough(self.metric),
            };
            watcher.take(&fault, &news);
        }
    }

    /// Forgets what speaks against the candidate. What was spent of the budget stays spent.
    pub(super) fn acquit(&mut self) {
        for watcher in &mut self.watchers {
            watcher.suspicion = None;
        }
    }

    /// Whether so much speaks against the candidate that the stable pool may be out of order too.
    pub(super) fn is_suspicious(&self) -> bool {
        let suspicions = self
            .watchers
            .iter()
            .filter_map(|each| each.suspicion.as_ref());
        let half = enough(self.metric) / 2;
        suspicions.into_iter().any(|each| each.evidence >= half)
    }
}

/// Evidence that is enough for one of a metric's watchers, in thousandths of a nat.
pub(super) fn enough(metric: Metric) -> i64 {
    let watchers = u32::try_from(metric.faults().len()).unwrap_or(u32::MAX);
    -super::bets::milli_nats((BUDGET / f64::from(watchers)).ln())
}

/// The rate of a fault: well above the limit.
fn fault_rate(fault: f64, limit: f64) -> f64 {
    fault.max((FAULT_FACTOR * limit).min(f64::midpoint(1.0, limit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_well_above_any_limit() {
        let is = |rate: f64, expected: f64| (rate - expected).abs() < 1e-9;
        assert!(is(fault_rate(0.8, 0.002), 0.8));
        assert!(is(fault_rate(0.0, 0.002), 0.005));
        assert!(is(fault_rate(0.2, 0.2), 0.5));
        for percent in 1..=90 {
            let limit = f64::from(percent) / 100.0;
            for metric in Metric::ALL {
                for &fault in metric.faults() {
                    let rate = fault_rate(fault, limit);
                    assert!(rate >= 1.05 * limit && rate < 1.0, "{fault} above {limit}");
                }
            }
        }
    }

    #[test]
    fn limits_follow_what_is_known() {
        let limit = |asked, failing, beside| {
            let failures = Trials::new(asked, failing);
            let baseline = Baseline {
                failures,
                ..Baseline::default()
            };
            let limit = Metric::Failures.limit(&baseline, beside);
            (limit.expect("a limit") * 10_000.0).round() / 10_000.0
        };
        let is = |limit: f64, expected: f64| assert!((limit - expected).abs() < 1e-9, "{limit}");
        is(limit(0, 0, Beside::Half), 0.05);
        is(limit(10, 0, Beside::Half), 0.05);
        is(limit(100_000, 0, Beside::Half), 0.002);
        is(limit(100_000, 0, Beside::Nobody), 0.01);
        is(limit(1_000_000, 10_000, Beside::Half), 0.015);
        is(limit(1_000_000, 10_000, Beside::Nobody), 0.02);
        is(limit(1_000_000, 1_000_000, Beside::Half), 0.9);
        assert_eq!(
            Metric::FirstByte.limit(&Baseline::default(), Beside::Half),
            None
        );
    }
}
