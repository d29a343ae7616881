//! Evidence, as the logarithm of what a bet has won.
//!
//! A bet is fair or worse for who bets as long as its hypothesis is true: its stake grows at most to one in the mean, whatever the
//! numbers of clients are. So a stake that reaches `1/α` at any time is evidence against the hypothesis at level `α` (Ville's inequality).

use std::ops::AddAssign;

/// Clients that were served, and those of them that fared badly.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Trials {
    pub(super) asked: u64,
    pub(super) failing: u64,
}

impl Trials {
    /// Of `asked`, never more fail than there are.
    pub(super) fn new(asked: u64, failing: u64) -> Self {
        Self {
            asked,
            failing: failing.min(asked),
        }
    }

    pub(super) const fn passing(self) -> u64 {
        self.asked.saturating_sub(self.failing)
    }

    /// Those that are not in `part`.
    pub(super) fn without(self, part: Self) -> Self {
        let asked = self.asked.saturating_sub(part.asked);
        Self::new(asked, self.failing.saturating_sub(part.failing))
    }
}

impl AddAssign for Trials {
    fn add_assign(&mut self, other: Self) {
        self.asked = self.asked.saturating_add(other.asked);
        self.failing = self.failing.saturating_add(other.failing);
    }
}

/// A count as a number to reckon with.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts are far below 2^52, and a rate bears it where they are not"
)]
pub(super) const fn real(count: u64) -> f64 {
    count as f64
}

/// Evidence in thousandths of a nat, rounded down: in favour of the hypothesis.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a cast from a float saturates"
)]
pub(super) fn milli_nats(nats: f64) -> i64 {
    (nats * 1000.0).floor() as i64
}

/// What a bet on the rate `alternative` wins, in nats. Its hypothesis: clients fail at most at the rate `reference`, which is lower.
///
/// A likelihood ratio of independent trials.
pub(super) fn against_limit(trials: Trials, reference: f64, alternative: f64) -> f64 {
    let failing = real(trials.failing) * (alternative / reference).ln();
    failing + real(trials.passing()) * ((1.0 - alternative) / (1.0 - reference)).ln()
}

/// What a bet on the rates `candidate_rate` and `stable_rate` wins, in nats. Its hypothesis: the candidate's clients failed no
/// more often than the stable pool's did. The candidate's rate must be the higher one.
///
/// The two-sample e-variable of Turner, Ly and Grünwald ("Generic E-variables for exact sequential k-sample tests that allow for
/// optional stopping", 2024), with their choice of the null's rate: the mean of both by the numbers of clients. Where the true rates
/// are equal, it is 1 in the mean at most; where the candidate's is lower, even less.
pub(super) fn against_stable(
    (candidate, stable): (Trials, Trials),
    candidate_rate: f64,
    stable_rate: f64,
) -> f64 {
    let asked = (real(candidate.asked), real(stable.asked));
    let all = asked.0 + asked.1;
    if all <= 0.0 {
        return 0.0;
    }
    let common = (asked.0 * candidate_rate + asked.1 * stable_rate) / all;
    against_limit(candidate, common, candidate_rate) + against_limit(stable, common, stable_rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chance of each number of failing ones among `asked`.
    pub(super) fn chances(asked: u32, rate: f64) -> Vec<f64> {
        let mut chances = vec![1.0];
        for _ in 0..asked {
            let mut next = vec![0.0; chances.len() + 1];
            for (failing, chance) in chances.iter().enumerate() {
                next[failing] += chance * (1.0 - rate);
                next[failing + 1] += chance * rate;
            }
            chances = next;
        }
        chances
    }

    fn trials(asked: u32, failing: usize) -> Trials {
        let failing = u64::try_from(failing).expect("a small number");
        Trials::new(u64::from(asked), failing)
    }

    proptest::proptest! {
        #[test]
        fn a_bet_against_the_limit_wins_nothing_while_the_limit_is_kept(
            asked in 0_u32..30, reference in 0.001_f64..0.5, part in 0.0_f64..=1.0, beyond in 0.01_f64..0.99,
        ) {
            let alternative = reference + (1.0 - reference) * beyond;
            let chances = chances(asked, reference * part);
            let mean: f64 = chances.iter().enumerate().map(|(failing, chance)| {
                chance * against_limit(trials(asked, failing), reference, alternative).exp()
            }).sum();
            proptest::prop_assert!(mean <= 1.0 + 1e-9, "{}", mean);
        }

        #[test]
        fn a_bet_against_the_stable_pool_wins_nothing_while_the_candidate_is_no_worse(
            asked in (1_u32..12, 1_u32..12), rate in 0.0_f64..=1.0, part in 0.0_f64..=1.0,
            stable_rate in 0.001_f64..0.5, beyond in 0.01_f64..0.99,
        ) {
            let candidate_rate = stable_rate + (1.0 - stable_rate) * beyond;
            let (candidate, stable) = (chances(asked.0, rate * part), chances(asked.1, rate));
            let mut mean = 0.0;
            for (failing, chance) in candidate.iter().enumerate() {
                for (stable_failing, stable_chance) in stable.iter().enumerate() {
                    let both = (trials(asked.0, failing), trials(asked.1, stable_failing));
                    mean += chance * stable_chance * against_stable(both, candidate_rate, stable_rate).exp();
                }
            }
            proptest::prop_assert!(mean <= 1.0 + 1e-9, "{}", mean);
        }
    }

    #[test]
    fn huge_counts_and_none_are_numbers_too() {
        let all = Trials::new(u64::MAX, u64::MAX);
        assert_eq!(milli_nats(against_limit(all, 0.001, 0.9)), i64::MAX);
        assert_eq!(milli_nats(against_limit(Trials::default(), 0.001, 0.9)), 0);
        let none = (Trials::default(), Trials::default());
        assert_eq!(milli_nats(against_stable(none, 0.9, 0.001)), 0);
        let alone = (Trials::new(5, 5), Trials::default());
        assert_eq!(
            milli_nats(against_stable(alone, 0.9, 0.001)),
            0,
            "nothing to compare with"
        );
    }
}
