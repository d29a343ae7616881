//! What the stable pool is like.

use std::time::Duration;

use sluice_signals::{TIME_CLASSES, Tally, class_bound};

use super::bets::{Trials, real};

/// After so many seconds in which the stable pool was seen, all counts are halved: what is older weighs less and less.
const HALF_LIFE_SECONDS: u32 = 45 * 60;
/// Normal quantile of the upper bound of a rate: 99.9 %.
const BOUND_QUANTILE: f64 = 3.09;
/// Times that must be known before the candidate's are judged.
const MIN_TIMES: u64 = 100;
/// One in so many of the stable pool's clients waits longer than the quantile from which the threshold is made: two percent.
const SLOWEST: u64 = 50;
/// The threshold is above that quantile's class, and at least so far above the beginning of it.
const SLOWER: Duration = Duration::from_millis(100);
/// From here on classes are wide: then the threshold is a class more.
const WIDE: Duration = Duration::from_millis(512);

/// Counts of the stable pool's clients. Nothing is added while it has no share, so then it is frozen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Baseline {
    pub(super) failures: Trials,
    pub(super) first_bytes: [u64; TIME_CLASSES],
    pub(super) seconds: u32,
}

impl Baseline {
    pub(super) fn learn(&mut self, stable: &Tally, elapsed_seconds: u32) {
        self.failures += Trials::new(stable.asked(), stable.failed());
        for (count, more) in self.first_bytes.iter_mut().zip(stable.first_bytes.0) {
            *count = count.saturating_add(u64::from(more));
        }
        self.seconds = self.seconds.saturating_add(elapsed_seconds);
        if self.seconds >= HALF_LIFE_SECONDS {
            self.seconds = 0;
            let half = |count: u64| count.div_ceil(2);
            self.failures = Trials::new(half(self.failures.asked), half(self.failures.failing));
            self.first_bytes = self.first_bytes.map(half);
        }
    }

    fn times(&self) -> u64 {
        self.first_bytes
            .iter()
            .fold(0, |sum, &count| sum.saturating_add(count))
    }

    /// The stable pool's times in classes after this one, of all.
    pub(super) fn slow(&self, class: usize) -> Trials {
        let above = self.first_bytes.iter().skip(class.saturating_add(1));
        let above = above.fold(0_u64, |sum, &count| sum.saturating_add(count));
        Trials::new(self.times(), above)
    }

    /// The class after which a first byte comes too late. `None`: too few times are known, or they are longer than can be told apart.
    pub(super) fn slow_class(&self) -> Option<usize> {
        let class = self.slowest_class()?;
        let from = class.checked_sub(1).map_or(Duration::ZERO, class_bound);
        let least = if from < WIDE { class } else { class + 1 };
        (least..TIME_CLASSES - 1).find(|&class| class_bound(class) >= from + SLOWER)
    }

    /// The class whose bound 98 % of the stable pool's clients do not exceed.
    fn slowest_class(&self) -> Option<usize> {
        let times = self.times();
        if times < MIN_TIMES {
            return None;
        }
        let mut beyond = times / SLOWEST;
        let classes = self.first_bytes.iter().enumerate().rev();
        for (class, &count) in classes {
            if count > beyond {
                return Some(class);
            }
            beyond -= count;
        }
        None
    }
}

/// The rate of failing ones, near to what was seen and never quite nothing.
pub(super) fn rate(trials: Trials) -> f64 {
    (real(trials.failing) + 0.5) / (real(trials.asked) + 50.0)
}

/// What the rate of failing ones does not exceed at 99.9 %: Wilson's score bound for counts that are small beside all. `None`: nothing
/// was seen.
pub(super) fn upper_rate(trials: Trials) -> Option<f64> {
    if trials.asked == 0 {
        return None;
    }
    let half = BOUND_QUANTILE * BOUND_QUANTILE / 2.0;
    let failing = real(trials.failing);
    let spread = BOUND_QUANTILE * (failing + half / 2.0).sqrt();
    Some(((failing + half + spread) / real(trials.asked)).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_signals::{Outcome, Voice};

    fn times(all: &[(u64, u32)]) -> Baseline {
        let mut tally = Tally::default();
        for &(milliseconds, count) in all {
            for _ in 0..count {
                tally.add(Voice {
                    outcome: Outcome::Replied,
                    first_byte: Some(Duration::from_millis(milliseconds)),
                });
            }
        }
        let mut baseline = Baseline::default();
        baseline.learn(&tally, 1);
        baseline
    }

    fn threshold(baseline: &Baseline) -> Option<u128> {
        let class = baseline.slow_class()?;
        Some(class_bound(class).as_millis())
    }

    #[test]
    fn the_threshold_is_above_the_slowest_of_the_stable_pool() {
        assert_eq!(threshold(&times(&[])), None);
        assert_eq!(threshold(&times(&[(3, 99)])), None);
        assert_eq!(threshold(&times(&[(3, 100)])), Some(128));
        assert_eq!(threshold(&times(&[(3, 990), (300, 10)])), Some(128));
        assert_eq!(threshold(&times(&[(3, 900), (300, 100)])), Some(362));
        assert_eq!(threshold(&times(&[(3, 900), (2000, 100)])), Some(2896));
        assert_eq!(threshold(&times(&[(100_000, 300)])), None);
    }

    #[test]
    fn half_a_second_more_is_above_it_up_to_four_hundred_milliseconds() {
        for slowest in 1..=400 {
            for usual in [20, slowest] {
                let baseline = times(&[(usual.min(slowest), 920), (slowest, 80)]);
                let class = baseline.slow_class().expect("enough times");
                let slow = Duration::from_millis(usual.min(slowest) + 500);
                assert!(slow > class_bound(class), "{slowest} {usual}");
            }
        }
    }

    #[test]
    fn what_is_old_weighs_less() {
        let mut baseline = Baseline {
            failures: Trials::new(1000, 1),
            seconds: HALF_LIFE_SECONDS - 1,
            ..Baseline::default()
        };
        baseline.learn(&Tally::default(), 1);
        assert_eq!(baseline.failures, Trials::new(500, 1));
        assert_eq!(baseline.seconds, 0);
    }

    #[test]
    fn the_bound_of_a_rate_nears_it() {
        assert_eq!(upper_rate(Trials::default()), None);
        let bound =
            |asked, failing| upper_rate(Trials::new(asked, failing)).expect("some were seen");
        assert!((bound(1000, 0) - 0.0095).abs() < 0.0001);
        assert!((bound(1_000_000, 10_000) - 0.0103).abs() < 0.0001);
        assert!((bound(2, 2) - 1.0).abs() < 1e-9);
    }
}
