//! Two builds side by side: which cases became slower.

use super::{
    case::Case,
    report::{self, Line},
    stats::{Summary, Void},
    worker::Worker,
};
use anyhow::Result;
use std::fmt::Write as _;

/// A case is worse if its ratios are above this.
pub const WORSE: f64 = 1.03;

/// One case of both builds.
#[derive(Clone, PartialEq, Debug)]
pub struct Pair {
    /// The name of the case.
    pub name: String,
    /// Figures of the earlier build.
    pub base: Line,
    /// Figures of this one.
    pub new: Line,
    /// New / base of runs that are neighbours in time, so that a slow disturbance of the machine disturbs both: the geometric
    /// mean over the starts of their rounds' medians.
    pub neighbours: f64,
    /// The fastest run of the new build / the fastest one of the base: other load only ever adds time, so these are the runs
    /// that it disturbed least.
    pub fastest: f64,
}

impl Pair {
    /// Whether this case is slower than before: both ratios say so. Chance rarely moves both.
    pub fn is_worse(&self) -> bool {
        self.neighbours.min(self.fastest) > WORSE
    }
}

/// Rounds between two starts of the workers. Where the kernel puts a worker's tables decides on some per cent of what cases
/// with many flows cost, for as long as the worker runs, and it favours the one that starts last.
pub const ROUNDS_PER_START: usize = 4;

/// Samples of both builds, by case in the order of the cases.
pub type Samples = Vec<[Vec<f64>; 2]>;

/// All cases of both builds, `rounds` times. `start` starts and prepares the workers, that of the side it is given first.
/// Which side is first alternates, with starts as with runs.
pub fn rounds(
    mut start: impl FnMut(usize) -> Result<[Worker; 2]>,
    cases: &[Case],
    rounds: usize,
    mut progress: impl FnMut(usize),
) -> Result<Samples> {
    let mut samples: Samples = vec![Default::default(); cases.len()];
    let mut workers = None;
    for round in 0..rounds {
        if round % ROUNDS_PER_START == 0 {
            // The tables of the last ones are gone before there are new ones.
            drop(workers.take());
            workers = Some(start(round / ROUNDS_PER_START % 2)?);
        }
        let Some(workers) = &mut workers else {
            break;
        };
        progress(round);
        for (index, (case, samples)) in cases.iter().zip(&mut samples).enumerate() {
            let first = (round + index) % 2;
            for side in [first, 1 - first] {
                samples[side].push(workers[side].sample(*case)?);
            }
        }
    }
    Ok(samples)
}

fn figures(cases: &[Case], samples: &Samples, side: usize) -> Vec<(Case, Summary)> {
    let both = cases.iter().zip(samples);
    both.filter_map(|(case, samples)| Some((*case, Summary::of(&samples[side])?)))
        .collect()
}

/// Whether the figures of a run of so many rounds say something.
pub fn check(cases: &[Case], samples: &Samples, rounds: usize) -> Result<(), Void> {
    [0, 1]
        .into_iter()
        .try_for_each(|side| report::check(&figures(cases, samples, side), rounds))
}

/// The figures of both builds, case by case.
pub fn pairs(cases: &[Case], samples: &Samples) -> Vec<Pair> {
    let lines = |side| report::lines(&figures(cases, samples, side));
    let both = cases.iter().zip(samples);
    let pairs = both.zip(lines(0).into_iter().zip(lines(1)));
    pairs
        .filter_map(|((case, [old, now]), (base, new))| {
            let ratios: Vec<f64> = old.iter().zip(now).map(|(old, now)| now / old).collect();
            Some(Pair {
                name: case.to_string(),
                base,
                new,
                neighbours: neighbours(&ratios)?,
                fastest: fastest(now) / fastest(old),
            })
        })
        .collect()
}

#[expect(clippy::cast_precision_loss, reason = "a few starts")]
fn neighbours(ratios: &[f64]) -> Option<f64> {
    let starts = ratios.chunks(ROUNDS_PER_START);
    let count = starts.len() as f64;
    let logarithms: Option<Vec<f64>> = starts
        .map(|ratios| Some(Summary::of(ratios)?.ns.ln()))
        .collect();
    Some((logarithms?.iter().sum::<f64>() / count).exp())
}

fn fastest(samples: &[f64]) -> f64 {
    samples.iter().copied().fold(f64::INFINITY, f64::min)
}

/// The pairs as a table, and in its last line whether anything became worse.
pub fn table(pairs: &[Pair]) -> String {
    let mut text = format!(
        "{:<36} {:>9} {:>9} {:>9} {:>9} {:>10} {:>8}\n",
        "case", "base ns", "new ns", "base net", "new net", "neighbours", "fastest"
    );
    for pair in pairs {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<36} {:>9.1} {:>9.1} {:>9.2} {:>9.2} {:>10.3} {:>8.3}{}",
            pair.name,
            pair.base.ns,
            pair.new.ns,
            pair.base.net_ratio,
            pair.new.net_ratio,
            pair.neighbours,
            pair.fastest,
            if pair.is_worse() { " worse" } else { "" }
        );
    }
    let worse = pairs.iter().filter(|pair| pair.is_worse()).count();
    let _ = writeln!(
        text,
        "{worse} of {} cases are worse by more than {:.0} %",
        pairs.len(),
        (WORSE - 1.0) * 100.0
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::case::{Family, Traffic, VirtualServer};

    fn cases() -> Vec<Case> {
        vec![
            Case::FloorTx(Family::Ipv4),
            Case::FloorEncapsulation(Family::Ipv4),
            Case::Sluice(VirtualServer::all()[0], Traffic::Hit(1)),
        ]
    }

    #[test]
    fn a_case_is_worse_by_its_rounds_and_not_by_the_drift_of_the_machine() {
        let drifting = |factor: f64| [100.0, 150.0, 120.0].map(|ns| ns * factor).to_vec();
        let floors = |ns: f64| [vec![ns; 3], vec![ns; 3]];
        let samples = |factor| {
            vec![
                floors(40.0),
                floors(80.0),
                [drifting(1.0), drifting(factor)],
            ]
        };
        let same = pairs(&cases(), &samples(1.02));
        assert!(!same.iter().any(Pair::is_worse));
        assert!(table(&same).ends_with("0 of 3 cases are worse by more than 3 %\n"));
        let worse = pairs(&cases(), &samples(1.04));
        assert!(worse[2].is_worse());
        assert!(table(&worse).ends_with("1 of 3 cases are worse by more than 3 %\n"));
    }

    #[test]
    fn a_side_that_is_favoured_at_half_the_starts_is_not_faster() {
        let favoured = |one: f64, other: f64| {
            let both = [[one; ROUNDS_PER_START], [other; ROUNDS_PER_START]];
            both.concat()
        };
        let samples = vec![
            [vec![40.0; 8], vec![40.0; 8]],
            [vec![80.0; 8], vec![80.0; 8]],
            [favoured(100.0, 90.0), favoured(90.0, 100.0)],
        ];
        let pairs = pairs(&cases(), &samples);
        assert!((pairs[2].neighbours - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_case_is_not_worse_when_other_load_hit_most_of_its_runs() {
        let samples = vec![
            [vec![40.0; 3], vec![40.0; 3]],
            [vec![80.0; 3], vec![80.0; 3]],
            [vec![100.0; 3], vec![101.0, 150.0, 130.0]],
        ];
        let pairs = pairs(&cases(), &samples);
        assert!(pairs[2].neighbours > WORSE);
        assert!(!pairs[2].is_worse());
    }
}
