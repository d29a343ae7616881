//! Splitting a share between two pools.

use sluice_api::{DecidedPool, WEIGHT_SCALE};

/// Splits the specs' weights of `stable` and `candidate` so that the candidate gets `percent` of their sum; the others keep theirs.
/// The result is exact: where a percentage is no whole number, all weights are scaled by [`WEIGHT_SCALE`].
///
/// `None` if either pool is not among `base` or the two have no weight.
pub fn split(
    base: &[DecidedPool],
    stable: &str,
    candidate: &str,
    percent: u8,
) -> Option<Vec<DecidedPool>> {
    let weight = |name: &str| {
        let pool = base.iter().find(|pool| pool.name == name);
        pool.map(|pool| pool.spec_weight)
    };
    let share = weight(stable)? + weight(candidate)?;
    if share == 0 {
        return None;
    }
    let percent = u32::from(percent.min(100));
    let scale = if share * percent % 100 == 0 {
        1
    } else {
        WEIGHT_SCALE
    };
    let taken = share * scale / 100 * percent + share * scale % 100 * percent / 100;
    let pools = base.iter().map(|pool| DecidedPool {
        weight: if pool.name == candidate {
            taken
        } else if pool.name == stable {
            share * scale - taken
        } else {
            pool.spec_weight * scale
        },
        ..pool.clone()
    });
    Some(pools.collect())
}
