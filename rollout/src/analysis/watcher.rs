//! Watching for a fault of one size that may begin at any time.
//!
//! A fault shows by failing clients, so evidence begins with one: it is only counted from the next client on, and so is no worse than a
//! bet that is made in advance. It begins anew where a new beginning has more to say than what is left of the last one. The
//! n-th beginning gets the part 1/n(n+1) of the error budget: those parts add up to one, however long the run lasts.

use super::bets::{Trials, against_limit, against_stable, milli_nats, real};
use sluice_api::{AnalysisSuspicion, AnalysisWatcher, SampleCount};

/// Kinds of failures that are counted apart.
pub(super) const KINDS: usize = 5;
/// Failing clients without which nothing is judged.
const MIN_FAILING: u64 = 4;
/// Evidence at which the stable pool has no part in a fault: 1 in 100.
const CONFIRMED: i64 = 4_605;
/// It does not fall lower, so that a fault of the candidate after a common one is found too.
const EXCULPATED: i64 = -5_000;
/// Passing clients in a row that take away enough evidence, however much there was.
const RECOVERY: u64 = 10;
/// The most evidence that is kept beyond what is enough.
const MAX_SURPLUS: i64 = 20_000;
/// Clients that count for the stable pool's usual rate when its rate of now is estimated.
const PRIOR_ASKED: f64 = 10.0;
/// Where the stable pool serves too few to be compared with, the candidate is judged alone after so many seconds of enough evidence …
const LAPSE_SECONDS: u32 = 6;
/// … and so many of its clients, of which the stable pool had its share …
const LAPSE_ASKED: u64 = 50;
/// … as long as that is below so many clients. From there on they can be compared.
const LAPSE_STABLE_ASKED: u64 = 30;

/// What is watched for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    /// The candidate may fail so often.
    pub(super) limit: f64,
    /// So often it fails if it has the fault.
    pub(super) rate: f64,
    /// So often the stable pool fails usually.
    pub(super) stable_rate: f64,
    /// Evidence that is enough, in thousandths of a nat.
    pub(super) enough: i64,
}

/// What was seen of both pools since the last time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct News {
    pub(super) candidate: Trials,
    pub(super) stable: Trials,
    pub(super) kinds: [u64; KINDS],
    pub(super) seconds: u32,
}

/// How the stable pool serves beside the candidate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Beside {
    /// It has at least half of their share.
    Half,
    /// It has less.
    Less,
    /// It has none.
    Nobody,
}

/// Watches for a fault of one size.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Watcher {
    pub(super) starts: u32,
    pub(super) suspicion: Option<Suspicion>,
}

/// What speaks for the fault since it may have begun.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Suspicion {
    /// Thousandths of a nat, with the beginning's part of the budget in it.
    pub(super) evidence: i64,
    against_stable: i64,
    held_seconds: u32,
    pub(super) candidate: Trials,
    pub(super) stable: Trials,
    /// What is not compared yet, since clients of one pool only have come since.
    open: (Trials, Trials),
    pub(super) kinds: [u64; KINDS],
}

impl Beside {
    /// Where the candidate has this percentage of their share.
    pub(super) const fn of(candidate_weight: u8) -> Self {
        match candidate_weight {
            0..=50 => Self::Half,
            51..100 => Self::Less,
            100.. => Self::Nobody,
        }
    }
}

impl Watcher {
    pub(super) fn take(&mut self, fault: &Fault, news: &News) {
        let held = self.suspicion.take();
        let held = held.and_then(|suspicion| suspicion.after(fault, news));
        let begun = Suspicion::begin(fault, news, self.starts.saturating_add(1));
        self.suspicion = match (held, begun) {
            (Some(held), Some(begun)) if held.evidence >= begun.evidence => Some(held),
            (held, None) => held,
            (_, begun) => {
                self.starts = self.starts.saturating_add(1);
                begun
            }
        };
    }

    pub(super) fn stored(&self) -> AnalysisWatcher {
        AnalysisWatcher {
            starts: self.starts,
            suspicion: self.suspicion.as_ref().map(Suspicion::stored),
        }
    }

    pub(super) fn restored(stored: &AnalysisWatcher) -> Self {
        Self {
            starts: stored.starts,
            suspicion: stored.suspicion.as_ref().map(Suspicion::restored),
        }
    }
}

impl Suspicion {
    /// What there is after a client who fared badly.
    fn begin(fault: &Fault, news: &News, number: u32) -> Option<Self> {
        let rest = Trials {
            asked: news.candidate.asked.checked_sub(1)?,
            failing: news.candidate.failing.checked_sub(1)?,
        };
        let number = f64::from(number);
        let part = -(number * (number + 1.0)).ln();
        let evidence = part + against_limit(rest, fault.limit, fault.rate);
        let mut begun = Self {
            evidence: milli_nats(evidence).min(most(fault)),
            candidate: news.candidate,
            stable: news.stable,
            kinds: news.kinds,
            open: (rest, news.stable),
            ..Self::default()
        };
        begun.compare(fault);
        Some(begun)
    }

    /// What is left of it. Once there was enough and is no more, and the stable pool took part in it, there is nothing.
    fn after(mut self, fault: &Fault, news: &News) -> Option<Self> {
        let was_enough = self.evidence >= fault.enough;
        let won = milli_nats(against_limit(news.candidate, fault.limit, fault.rate));
        self.evidence = self.evidence.saturating_add(won).min(most(fault));
        self.candidate += news.candidate;
        self.stable += news.stable;
        for (kind, more) in self.kinds.iter_mut().zip(news.kinds) {
            *kind = kind.saturating_add(more);
        }
        self.open.0 += news.candidate;
        self.open.1 += news.stable;
        self.compare(fault);
        let is_enough = self.evidence >= fault.enough;
        if was_enough && is_enough {
            self.held_seconds = self.held_seconds.saturating_add(news.seconds);
        }
        let is_over = was_enough && !is_enough && self.against_stable < 0;
        (!is_over && self.evidence > -MAX_SURPLUS).then_some(self)
    }

    /// Compares what is open, if both pools had clients.
    fn compare(&mut self, fault: &Fault) {
        let (candidate, stable) = self.open;
        if candidate.asked == 0 || stable.asked == 0 {
            return;
        }
        let known = self.stable.without(stable);
        let usual = fault.stable_rate.clamp(0.000_5, 0.9);
        let failing = real(known.failing) + PRIOR_ASKED * usual;
        let stable_rate = failing / (real(known.asked) + PRIOR_ASKED);
        if stable_rate < fault.rate {
            let won = milli_nats(against_stable(self.open, fault.rate, stable_rate));
            let sum = self.against_stable.saturating_add(won);
            self.against_stable = sum.clamp(EXCULPATED, CONFIRMED + MAX_SURPLUS);
        }
        self.open = (Trials::default(), Trials::default());
    }

    /// Whether there is enough evidence that the candidate is above its limit.
    pub(super) fn is_enough(&self, enough: i64) -> bool {
        self.evidence >= enough && self.candidate.failing >= MIN_FAILING
    }

    /// Whether the stable pool has no part in it.
    pub(super) fn is_candidates(&self, beside: Beside) -> bool {
        let may_lapse = match beside {
            Beside::Less => self.stable.asked < LAPSE_STABLE_ASKED,
            Beside::Half | Beside::Nobody => self.stable.asked == 0,
        };
        let is_long = self.held_seconds >= LAPSE_SECONDS && self.candidate.asked >= LAPSE_ASKED;
        let has_lapsed = may_lapse && is_long && self.against_stable >= 0;
        beside == Beside::Nobody || self.against_stable >= CONFIRMED || has_lapsed
    }

    fn stored(&self) -> AnalysisSuspicion {
        AnalysisSuspicion {
            evidence: whole(self.evidence),
            against_stable: whole(self.against_stable),
            held_seconds: self.held_seconds,
            candidate: count(self.candidate),
            stable: count(self.stable),
            open_candidate: count(self.open.0),
            open_stable: count(self.open.1),
            kinds: self.kinds.to_vec(),
        }
    }

    fn restored(stored: &AnalysisSuspicion) -> Self {
        let mut kinds = [0; KINDS];
        for (kind, &count) in kinds.iter_mut().zip(&stored.kinds) {
            *kind = count;
        }
        Self {
            evidence: i64::from(stored.evidence),
            against_stable: i64::from(stored.against_stable),
            held_seconds: stored.held_seconds,
            candidate: trials(stored.candidate),
            stable: trials(stored.stable),
            open: (trials(stored.open_candidate), trials(stored.open_stable)),
            kinds,
        }
    }
}

/// The most evidence that is kept: a few passing clients show that a fault is over.
fn most(fault: &Fault) -> i64 {
    let passing = Trials::new(RECOVERY, 0);
    let lost = -milli_nats(against_limit(passing, fault.limit, fault.rate));
    fault.enough + lost.min(MAX_SURPLUS)
}

fn whole(evidence: i64) -> i32 {
    i32::try_from(evidence).unwrap_or(if evidence < 0 { i32::MIN } else { i32::MAX })
}

/// As status has it.
pub(super) fn count(trials: Trials) -> SampleCount {
    SampleCount {
        samples: trials.asked,
        failing: trials.failing,
    }
}

/// As status had it.
pub(super) fn trials(count: SampleCount) -> Trials {
    Trials::new(count.samples, count.failing)
}
