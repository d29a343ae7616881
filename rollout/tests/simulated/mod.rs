//! Simulated rollouts: shared by the test and by `make simulate-rollouts`.

pub(crate) mod faulty;
pub(crate) mod healthy;
pub(crate) mod random;
pub(crate) mod world;

/// The upper end of the one-sided 95 % interval of a share (Clopper and Pearson, 1934).
pub(crate) fn upper_bound(hits: u32, trials: u32) -> f64 {
    if hits >= trials {
        return 1.0;
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if at_most(hits, trials, middle) > 0.05 {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// The chance of at most so many hits.
fn at_most(hits: u32, trials: u32, chance: f64) -> f64 {
    let mut log = f64::from(trials) * (1.0 - chance).ln();
    let mut sum = log.exp();
    for hit in 1..=hits {
        let (hit, left) = (f64::from(hit), f64::from(trials - hit + 1));
        log += (left / hit).ln() + (chance / (1.0 - chance)).ln();
        sum += log.exp();
    }
    sum
}

/// The value that this part of all does not exceed.
pub(crate) fn quantile(sorted: &[u32], percent: usize) -> Option<u32> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last * percent).div_ceil(100)).copied()
}
