//! The shares of pools as thresholds of a 31-bit hash.

use sluice_abi::SHARE_WHOLE;

/// Cumulative shares of [`SHARE_WHOLE`], rounded down; the last pool with a share ends at the whole. Without any share all
/// are 0: no hash is below.
pub(crate) fn thresholds(weights: &[u32]) -> Vec<u32> {
    let total: u128 = weights.iter().copied().map(u128::from).sum();
    let mut sum = 0;
    weights
        .iter()
        .map(|&weight| {
            sum += u128::from(weight);
            let share = u128::from(SHARE_WHOLE) * sum;
            u32::try_from(share.checked_div(total).unwrap_or(0)).unwrap_or(SHARE_WHOLE)
        })
        .collect()
}

/// The thresholds of those pools of which this node has servers (`here`), for packets that a director sent here.
///
/// The same hash leads to the same pool as on the director as long as that pool has a server here. What does not,
/// because the director is a step ahead or behind, goes to the next pool that has: the packet is here and needs a server.
pub(crate) fn local_thresholds(weights: &[u32], here: &[bool]) -> Vec<u32> {
    let all = thresholds(weights);
    let shared: Vec<bool> = weights
        .iter()
        .zip(here)
        .map(|(&w, &here)| here && w > 0)
        .collect();
    let Some(last) = shared.iter().rposition(|&shared| shared) else {
        let equal: Vec<u32> = here.iter().map(|&here| u32::from(here)).collect();
        let equal = thresholds(&equal);
        return equal
            .into_iter()
            .zip(here)
            .filter(|(_, here)| **here)
            .map(|(t, _)| t)
            .collect();
    };
    let mut reached = 0;
    let mut result = Vec::new();
    for pool in 0..weights.len() {
        if shared[pool] {
            reached = if pool == last { SHARE_WHOLE } else { all[pool] };
        }
        if here[pool] {
            result.push(reached);
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: u32 = SHARE_WHOLE / 2;

    #[test]
    fn shares_add_up_to_the_whole() {
        assert_eq!(thresholds(&[1, 1]), [HALF, SHARE_WHOLE]);
        assert_eq!(thresholds(&[0, 3, 0]), [0, SHARE_WHOLE, SHARE_WHOLE]);
        assert_eq!(thresholds(&[1, 1, 1])[2], SHARE_WHOLE);
        assert_eq!(thresholds(&[u32::MAX; 8])[7], SHARE_WHOLE);
        assert_eq!(thresholds(&[0, 0]), [0, 0]);
        assert!(thresholds(&[]).is_empty());
    }

    #[test]
    fn a_hash_leads_to_the_pool_that_the_director_chose_if_it_is_here() {
        assert_eq!(
            local_thresholds(&[1, 1], &[true, true]),
            thresholds(&[1, 1])
        );
        assert_eq!(local_thresholds(&[1, 1], &[false, true]), [SHARE_WHOLE]);
        assert_eq!(local_thresholds(&[1, 1], &[true, false]), [SHARE_WHOLE]);
        let quarters = [1, 1, 1, 1];
        assert_eq!(
            local_thresholds(&quarters, &[true, false, true, false]),
            [HALF / 2, SHARE_WHOLE]
        );
    }

    #[test]
    fn a_pool_without_share_takes_what_comes_only_when_no_other_is_here() {
        assert_eq!(
            local_thresholds(&[1, 0], &[true, true]),
            [SHARE_WHOLE, SHARE_WHOLE]
        );
        assert_eq!(
            local_thresholds(&[1, 0, 1], &[true, true, false]),
            [SHARE_WHOLE, SHARE_WHOLE]
        );
        assert_eq!(local_thresholds(&[1, 0], &[false, true]), [SHARE_WHOLE]);
        assert_eq!(
            local_thresholds(&[1, 0, 0], &[false, true, true]),
            [HALF, SHARE_WHOLE]
        );
    }
}
