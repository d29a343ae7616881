//! Properties of rings: exact weights, the same ring everywhere, few slots moved by a change.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use sluice_planner::ring::{RingKey, WHOLE, fill, lend, lenders, log2_slots, quotas};

type Servers = BTreeMap<RingKey, u64>;

fn key(number: u32) -> RingKey {
    RingKey {
        address: IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number)),
        port: 80,
    }
}

/// Distinct servers out of a large set, with weights.
fn servers(
    count: std::ops::RangeInclusive<usize>,
    weights: std::ops::RangeInclusive<u64>,
) -> impl Strategy<Value = Servers> {
    proptest::collection::btree_map((0_u32..100_000).prop_map(key), weights, count)
}

fn owners(servers: &Servers, log2_slots: u8) -> Vec<RingKey> {
    let keys: Vec<RingKey> = servers.keys().copied().collect();
    let ring = fill(7, servers, log2_slots);
    ring.into_iter().map(|i| keys[i as usize]).collect()
}

fn parts(owners: &[RingKey]) -> BTreeMap<RingKey, u64> {
    let mut parts = BTreeMap::new();
    for key in owners {
        *parts.entry(*key).or_default() += 1;
    }
    parts
}

/// Slots that changed their owner, and how many had to: those that some server gained.
fn moved(before: &[RingKey], after: &[RingKey]) -> (u64, u64) {
    let moved = before.iter().zip(after).filter(|(a, b)| a != b).count() as u64;
    let (old, new) = (parts(before), parts(after));
    let gain =
        |(key, &part): (&RingKey, &u64)| part.saturating_sub(old.get(key).copied().unwrap_or(0));
    (moved, new.iter().map(gain).sum())
}

/// Up to 100 servers with 500 slots or more each, and the ring's size.
fn well_provided() -> impl Strategy<Value = (Servers, u8)> {
    let size = (2_usize..=100).prop_flat_map(|count| {
        let least = u8::try_from((count * 500).next_power_of_two().ilog2()).expect("small");
        (Just(count), least..=16)
    });
    size.prop_flat_map(|(count, log2_slots)| {
        let heaviest = 1000 * (1_u64 << log2_slots) / (500 * count as u64);
        (servers(count..=count, 1000..=heaviest), Just(log2_slots))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_server_has_its_exact_share_within_a_slot(
        servers in servers(1..=200, 0..=1000),
        log2_slots in 0_u8..=16,
    ) {
        let sum: u64 = servers.values().sum();
        let owners = owners(&servers, log2_slots);
        prop_assert_eq!(owners.len(), if sum == 0 { 0 } else { 1 << log2_slots });
        let parts = parts(&owners);
        for (key, weight) in servers.iter().filter(|_| sum > 0) {
            let part = parts.get(key).copied().unwrap_or(0);
            let exact = weight << log2_slots;
            prop_assert!((part * sum).abs_diff(exact) < sum, "{part} slots for {exact}/{sum}");
        }
    }

    #[test]
    fn a_removed_server_moves_at_most_twice_what_it_must(
        (servers, log2_slots) in well_provided(),
        which in any::<prop::sample::Index>(),
    ) {
        let before = owners(&servers, log2_slots);
        let mut fewer = servers.clone();
        fewer.remove(which.get(&servers.keys().copied().collect::<Vec<_>>()));
        let (moved, least) = moved(&before, &owners(&fewer, log2_slots));
        prop_assert!(moved <= 2 * least, "{moved} moved, {least} had to");
    }

    #[test]
    fn a_doubled_weight_moves_at_most_twice_what_it_must(
        (servers, log2_slots) in well_provided(),
        which in any::<prop::sample::Index>(),
    ) {
        let before = owners(&servers, log2_slots);
        let mut doubled = servers.clone();
        if let Some(weight) = doubled.get_mut(which.get(&servers.keys().copied().collect::<Vec<_>>())) {
            *weight *= 2;
        }
        let (moved, least) = moved(&before, &owners(&doubled, log2_slots));
        prop_assert!(moved <= 2 * least, "{moved} moved, {least} had to");
    }

    /// Weights are ratios: the same ratios give the same ring.
    #[test]
    fn a_common_factor_changes_nothing(servers in servers(1..=20, 0..=100), factor in 1_u64..=1000) {
        let scaled: Servers = servers.iter().map(|(key, weight)| (*key, weight * factor)).collect();
        let size = log2_slots(servers.values().copied());
        prop_assert_eq!(size, log2_slots(scaled.values().copied()));
        prop_assert!(fill(1, &servers, size) == fill(1, &scaled, size));
    }

    #[test]
    fn quotas_use_every_slot(weights in prop::collection::vec(any::<u64>(), 1..50), slots in 1_u32..=65_536) {
        let ties: Vec<u64> = (0..weights.len() as u64).collect();
        let sum: u32 = quotas(&weights, &ties, slots).iter().sum();
        prop_assert_eq!(sum, if weights.iter().all(|&w| w == 0) { 0 } else { slots });
    }
}

type Tenths = BTreeMap<RingKey, u8>;

/// The ring in which servers lend.
fn lent(servers: &Servers, tenths: &Tenths, log2_slots: u8) -> Vec<RingKey> {
    let keys: Vec<RingKey> = servers.keys().copied().collect();
    let ring = fill(7, servers, log2_slots);
    let mut owners: Vec<RingKey> = ring.iter().map(|&i| keys[i as usize]).collect();
    let before = owners.clone();
    for (slot, of) in lend(7, &ring, servers, &lenders(servers, tenths)) {
        owners[slot as usize] = before[of as usize];
    }
    owners
}

/// Servers of which the first ones, by a hash, have so many tenths.
fn some(servers: &Servers, tenths: &[u8]) -> Tenths {
    let keys = servers.keys().copied();
    keys.zip(tenths.iter().copied()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn who_lends_nothing_keeps_its_slots(
        (servers, size) in well_provided(),
        tenths in proptest::collection::vec(0_u8..=WHOLE, 1..100),
    ) {
        let tenths = some(&servers, &tenths);
        let lending = lenders(&servers, &tenths);
        let (before, after) = (owners(&servers, size), lent(&servers, &tenths, size));
        for (before, after) in before.iter().zip(&after) {
            prop_assert!(before == after || lending.contains_key(before), "{before:?} lost a slot to {after:?}");
        }
        let (had, has) = (parts(&before), parts(&after));
        for (key, kept) in &lending {
            let wanted = (had[key] * u64::from(*kept)).div_ceil(10);
            prop_assert_eq!(has.get(key).copied().unwrap_or(0), wanted);
        }
    }

    /// A server that comes back gets its slots step by step, and loses none of them on the way.
    #[test]
    fn more_tenths_are_more_of_the_same_slots((servers, size) in well_provided(), which in 0_usize..100) {
        let keys: Vec<RingKey> = servers.keys().copied().collect();
        let key = keys[which % keys.len()];
        let mut before = lent(&servers, &[(key, 0)].into(), size);
        prop_assert!(!before.contains(&key));
        for kept in 1..=WHOLE {
            let after = lent(&servers, &[(key, kept)].into(), size);
            for (before, after) in before.iter().zip(&after) {
                prop_assert!(before == after || *after == key);
            }
            before = after;
        }
        prop_assert!(before == owners(&servers, size));
    }

    /// Whatever two directors think of servers, they agree on the slots of those that both think well of.
    #[test]
    fn directors_disagree_on_no_other_servers_slots(
        (servers, size) in well_provided(),
        opinions in [
            proptest::collection::vec(prop_oneof![Just(0), Just(WHOLE)], 100),
            proptest::collection::vec(prop_oneof![Just(0), Just(WHOLE)], 100),
        ],
    ) {
        let opinions = opinions.map(|tenths| some(&servers, &tenths));
        let [one, other] = opinions.each_ref().map(|tenths| lent(&servers, tenths, size));
        let lending = opinions.each_ref().map(|tenths| lenders(&servers, tenths));
        let own = owners(&servers, size);
        for slot in 0..own.len() {
            if lending.iter().all(|lending| !lending.contains_key(&own[slot])) {
                prop_assert_eq!(one[slot], own[slot]);
                prop_assert_eq!(other[slot], own[slot]);
            }
        }
    }
}

#[test]
fn what_is_lent_goes_to_the_others_by_their_weights() {
    let servers: Servers = [(key(1), 1), (key(2), 2), (key(3), 3), (key(4), 2)].into();
    let parts = parts(&lent(&servers, &[(key(4), 0)].into(), 16));
    let lent = 65_536 / 4;
    for (number, weight) in [(1, 1), (2, 2), (3, 3)] {
        let expected = 65_536 * weight / 8 + lent * weight / 6;
        let part = parts[&key(number)];
        assert!(
            part.abs_diff(expected) < expected / 20,
            "{number}: {part}, {expected} expected"
        );
    }
}

#[test]
fn nobody_lends_where_nobody_is_left_to_borrow() {
    let servers: Servers = [(key(1), 1), (key(2), 1), (key(3), 0)].into();
    let of = |tenths: &[(u32, u8)]| {
        let tenths = tenths.iter().map(|&(number, tenths)| (key(number), tenths));
        lenders(&servers, &tenths.collect())
    };
    assert_eq!(of(&[(1, 0)]), [(key(1), 0)].into());
    assert_eq!(of(&[(1, 0), (2, 0)]), Tenths::new(), "all are down");
    assert_eq!(of(&[(1, 3), (2, 5)]), Tenths::new(), "all begin");
    assert_eq!(
        of(&[(1, 0), (2, 5)]),
        [(key(1), 0)].into(),
        "the other begins"
    );
}

/// Directors of two versions must agree during an upgrade: this ring may not change without a plan for that.
#[test]
fn the_ring_is_fixed() {
    let servers: Servers = [(key(1), 1), (key(2), 2), (key(3), 5)].into();
    let expected = [2, 1, 2, 1, 0, 2, 2, 2];
    assert_eq!(fill(7, &servers, 3), expected);
}

#[test]
fn sizes_are_few_and_follow_the_lightest_server() {
    let equal = |count: usize| log2_slots(std::iter::repeat_n(5, count));
    assert_eq!((equal(0), equal(1)), (0, 0));
    assert_eq!((equal(2), equal(16)), (12, 12));
    assert_eq!((equal(17), equal(64)), (14, 14));
    assert_eq!((equal(65), equal(10_000)), (16, 16));
    assert_eq!(log2_slots([0, 0, 7]), 0);
    assert_eq!(log2_slots([1, 100]), 16);
    assert_eq!(log2_slots([u64::MAX, u64::MAX, 1]), 16);
}

#[test]
fn any_weights_will_do() {
    let servers: Servers = [(key(1), u64::MAX), (key(2), 1), (key(3), u64::MAX - 2)].into();
    let parts = parts(&owners(&servers, 16));
    assert_eq!(
        parts.values().copied().collect::<Vec<_>>(),
        [32_768, 32_768]
    );
}

#[test]
fn the_seed_and_the_port_count() {
    let servers: Servers = (0..5).map(|i| (key(i), 1)).collect();
    assert_ne!(fill(1, &servers, 12), fill(2, &servers, 12));
    let other_port = |key: RingKey| RingKey { port: 81, ..key };
    let moved: Servers = (0..5).map(|i| (other_port(key(i)), 1)).collect();
    assert_ne!(fill(1, &servers, 12), fill(1, &moved, 12));
}
