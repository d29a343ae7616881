//! From samples to figures.

use std::fmt;

/// Share of the encapsulation floor that the XDP_TX floor may take. Beyond it the wrapper's own time hides the differences
/// between programs, and the run is void.
pub const HEAVIEST_WRAPPER: f64 = 0.7;

/// Fewest rounds of a run whose figures count.
pub const FEWEST_ROUNDS: usize = 15;

/// Summary of the samples of one case, in nanoseconds per packet.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Summary {
    /// The median.
    pub ns: f64,
    /// The interquartile range.
    pub spread: f64,
}

impl Summary {
    /// Of at least one sample; `None` of none or of one that is no number.
    pub fn of(samples: &[f64]) -> Option<Self> {
        if samples.is_empty() || samples.iter().any(|sample| !sample.is_finite()) {
            return None;
        }
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            ns: quantile(&sorted, 0.5),
            spread: quantile(&sorted, 0.75) - quantile(&sorted, 0.25),
        })
    }
}

/// Linear interpolation between the two nearest of `sorted`, which is not empty.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index into a few samples"
)]
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let position = share * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}

/// The two floors of one address family.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Floors {
    /// Median of the program that only sends the frame back.
    pub tx_ns: f64,
    /// Median of the program that adds a constant outer header.
    pub encapsulation_ns: f64,
}

/// Why the figures of a run say nothing.
#[derive(Clone, Copy, PartialEq, Debug, thiserror::Error)]
pub enum Void {
    /// See [`HEAVIEST_WRAPPER`].
    HeavyWrapper(Floors),
    /// See [`FEWEST_ROUNDS`].
    FewRounds(usize),
}

impl fmt::Display for Void {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeavyWrapper(floors) => write!(
                f,
                "the XDP_TX floor ({:.1} ns) is above {HEAVIEST_WRAPPER} of the encapsulation floor ({:.1} ns): \
                 the wrapper hides the differences",
                floors.tx_ns, floors.encapsulation_ns
            ),
            Self::FewRounds(rounds) => {
                write!(f, "{rounds} rounds are fewer than {FEWEST_ROUNDS}")
            }
        }
    }
}

impl Floors {
    /// Whether ratios to these floors mean something.
    pub fn check(self) -> Result<(), Void> {
        let light = self.tx_ns > 0.0 && self.tx_ns <= HEAVIEST_WRAPPER * self.encapsulation_ns;
        if light {
            Ok(())
        } else {
            Err(Void::HeavyWrapper(self))
        }
    }

    /// Cost of a case above XDP_TX, in constant encapsulations.
    pub fn net_ratio(self, ns: f64) -> f64 {
        (ns - self.tx_ns) / (self.encapsulation_ns - self.tx_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_interquartile_range() {
        let summary = Summary::of(&[5.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!(
            summary,
            Some(Summary {
                ns: 3.0,
                spread: 2.0
            })
        );
        let even = Summary::of(&[4.0, 1.0, 2.0, 3.0]);
        assert_eq!(
            even,
            Some(Summary {
                ns: 2.5,
                spread: 1.5
            })
        );
        let one = Summary::of(&[7.0]);
        assert_eq!(
            one,
            Some(Summary {
                ns: 7.0,
                spread: 0.0
            })
        );
    }

    #[test]
    fn one_outlier_moves_nothing() {
        let mut samples = vec![10.0; 15];
        samples[7] = 1e9;
        assert_eq!(
            Summary::of(&samples),
            Some(Summary {
                ns: 10.0,
                spread: 0.0
            })
        );
    }

    #[test]
    fn no_samples_no_figure() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn ratio_is_net_of_the_tx_floor() {
        let floors = Floors {
            tx_ns: 38.0,
            encapsulation_ns: 61.0,
        };
        assert!((floors.net_ratio(38.0) - 0.0).abs() < 1e-9);
        assert!((floors.net_ratio(61.0) - 1.0).abs() < 1e-9);
        assert!((floors.net_ratio(38.0 + 6.0 * 23.0) - 6.0).abs() < 1e-9);
    }

    #[test]
    fn a_heavy_wrapper_voids_the_run() {
        let floors = |tx_ns, encapsulation_ns| Floors {
            tx_ns,
            encapsulation_ns,
        };
        assert!(floors(38.0, 61.0).check().is_ok());
        assert!(floors(70.0, 100.0).check().is_ok());
        assert!(floors(70.1, 100.0).check().is_err());
        assert!(floors(61.0, 61.0).check().is_err());
        assert!(floors(f64::NAN, 61.0).check().is_err());
        assert!(floors(0.0, 0.0).check().is_err());
    }
}
