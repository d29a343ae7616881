//! Rank of candidates: rendezvous hashing, so that a candidate that comes or goes moves only its own groups.

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// The candidates of a group, best first. All directors rank alike, whatever the order of `names`.
pub fn ranked<'a>(group: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut ranked: Vec<(u64, &str)> = names
        .into_iter()
        .map(|name| (weight(group, name), name))
        .collect();
    ranked.sort_by(|(a_weight, a), (b_weight, b)| b_weight.cmp(a_weight).then_with(|| a.cmp(b)));
    ranked.dedup();
    ranked.into_iter().map(|(_, name)| name).collect()
}

/// FNV-1a over group and name, with a byte between them that neither can hold, then MurmurHash3's finalizer: FNV alone
/// leaves the high bits of similar names alike, and comparison looks at these first.
fn weight(group: &str, name: &str) -> u64 {
    let bytes = group.bytes().chain([0xff]).chain(name.bytes());
    let mut hash = bytes.fold(FNV_OFFSET, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME)
    });
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
    }
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_names_does_not_matter_and_groups_are_shared_out() {
        let names = ["d1", "d2", "d3"];
        assert_eq!(ranked("p-0", names), ranked("p-0", ["d3", "d1", "d2"]));
        let mut firsts = [0; 3];
        for group in 0..300 {
            let first = ranked(&format!("pool-{group}"), names)[0];
            firsts[names.iter().position(|name| *name == first).unwrap()] += 1;
        }
        assert!(
            firsts.iter().all(|count| (70..130).contains(count)),
            "{firsts:?}"
        );
    }

    #[test]
    fn who_leaves_moves_only_its_own_groups() {
        for group in 0..100 {
            let group = format!("pool-{group}");
            let all = ranked(&group, ["d1", "d2", "d3", "d4"]);
            let without: Vec<&str> = all.iter().copied().filter(|name| *name != "d2").collect();
            assert_eq!(ranked(&group, ["d1", "d3", "d4"]), without);
        }
    }
}
