//! Random histories.

use proptest::prelude::*;

use super::*;

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    /// A pool has these addresses, or is gone.
    Pool(usize, Option<(Vec<&'static str>, bool, bool, u8)>),
    /// A virtual server asks for this, or is gone.
    Server(usize, Option<usize>),
    /// An address is somebody else's, or no longer.
    Taken(&'static str, bool),
    After(u64),
    Restart,
    /// What stands written of the ledger is gone, and the operator restarts.
    Loss,
}

const SERVERS: [&str; 6] = ["shop/a", "shop/b", "shop/c", "bank/a", "bank/b", "bank/c"];
const RANGES: [&str; 6] = [
    "203.0.113.0/30",
    "203.0.113.2-203.0.113.4",
    "203.0.113.3",
    "198.51.100.0/31",
    "203.0.113.0/24",
    "2001:db8::/120",
];

fn wish(number: usize) -> Value {
    match number {
        0 | 1 => by_family(),
        2 => from("p0"),
        6 => json!([{"family": "IPv4"}, {"family": "IPv6"}]),
        3 => from("p1"),
        4 => json!([{"ip": "203.0.113.2"}]),
        _ => json!([{"ip": "198.51.100.1"}]),
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ranges = prop::sample::subsequence(RANGES.to_vec(), 1..=3);
    let pool = (
        0..3_usize,
        prop::option::weighted(0.8, (ranges, any::<bool>(), any::<bool>(), 0..4_u8)),
    );
    let server = (0..SERVERS.len(), prop::option::weighted(0.7, 0..7_usize));
    let address = prop::sample::select(vec!["203.0.113.1", "203.0.113.2", "198.51.100.0"]);
    let step = prop_oneof![
        2 => pool.prop_map(|(number, spec)| Step::Pool(number, spec)),
        6 => server.prop_map(|(number, wish)| Step::Server(number, wish)),
        1 => (address, any::<bool>()).prop_map(|(address, taken)| Step::Taken(address, taken)),
        2 => (1..=REST_MS).prop_map(Step::After),
        1 => Just(Step::Restart),
        1 => Just(Step::Loss),
    ];
    prop::collection::vec(step, 1..60)
}

/// The pools that announce addresses, with the numbers of their groups.
fn announced(world: &World) -> BTreeMap<String, u8> {
    let states = world.ledger.pool_states();
    let states = states.filter_map(|(name, state)| Some((name.to_owned(), state.groups?)));
    states.collect()
}

/// No address that is in use has changed its group, but one whose pool is gone or not announced; those that share an address
/// agree; and addresses of a virtual server from one pool that the ledger did not know before are in one group.
fn expect_groups(
    world: &World,
    before: &BTreeMap<ObjectKey, Vec<AddressGroup>>,
    placed: &BTreeSet<IpAddr>,
) -> Result<(), TestCaseError> {
    let announced = announced(world);
    let before: BTreeMap<IpAddr, &str> = before.values().flatten().map(as_pair).collect();
    let mut now = BTreeMap::new();
    for (key, addresses) in &world.decided {
        let groups = &world.groups[key];
        for (address, group) in groups.iter().map(as_pair) {
            let (pool, number) = sluice_api::parse_vip_group(group).expect("a group");
            prop_assert!(
                announced.get(pool).is_some_and(|groups| number < *groups),
                "{}",
                group
            );
            let same = *now.entry(address).or_insert(group);
            prop_assert_eq!(same, group, "of {}", address);
            if let Some(last) = before.get(&address) {
                let (pool, _) = sluice_api::parse_vip_group(last).expect("a group");
                prop_assert!(
                    *last == group || !announced.contains_key(pool),
                    "{}: {} to {}",
                    address,
                    last,
                    group
                );
            }
            let of_pool = |other: &(IpAddr, &str)| {
                let (other_pool, _) = sluice_api::parse_vip_group(other.1).expect("a group");
                other_pool == pool && !placed.contains(&other.0)
            };
            let mut new = groups.iter().map(as_pair).filter(of_pool);
            let is_alone = |address: IpAddr| world.ledger.entries[&address].owners.len() == 1;
            prop_assert!(
                new.all(|(other, other_group)| other_group == group
                    || !is_alone(other)
                    || !is_alone(address)),
                "{} has {:?}",
                key,
                groups
            );
        }
        for address in addresses {
            let entry = world.ledger.entries.get(address);
            let pool = entry.and_then(|entry| {
                let pools = entry.group.iter().map(|group| group.pool.as_str());
                let mut pools = pools.chain([entry.pool.as_str()]);
                let known = pools.find(|pool| world.pools.contains_key(*pool));
                known.or_else(|| world.ledger.pools.of(*address))
            });
            let is_announced = pool.is_some_and(|pool| announced.contains_key(pool));
            prop_assert_eq!(is_announced, now.contains_key(address), "{}", address);
        }
    }
    Ok(())
}

fn as_pair(group: &AddressGroup) -> (IpAddr, &str) {
    (group.address, &group.group)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens: the books agree, no address changes its group, nobody loses an address that it still asks for and that is nobody else's, and none is
    /// shared between namespaces without leave.
    #[test]
    fn the_ledger_keeps_its_promises(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            let decided = world.decided.iter();
            let content = decided.filter_map(|(key, addresses)| {
                let assignment = world.ledger.assignment(key)?;
                let spec = world.specs.get(key)?;
                let is_content = assignment.refusals.is_empty();
                is_content.then(|| (key.clone(), spec.clone(), addresses.clone()))
            });
            let before: Vec<_> = content.collect();
            let known = world.decided.clone();
            let held = world.ledger.of_owner.clone();
            let grouped = world.groups.clone();
            let entries = world.ledger.entries.iter();
            let placed = entries.filter(|(_, entry)| entry.group.is_some());
            let placed: BTreeSet<IpAddr> = placed.map(|(address, _)| *address).collect();
            let is_loss = matches!(step, Step::Loss);
            match step {
                Step::Pool(number, Some((ranges, auto, shared, groups))) => {
                    let sharing = if shared { "Cluster" } else { "Namespace" };
                    let announce = match groups {
                        0 => json!({"none": {}}),
                        groups => json!({"l2": {"groups": groups}}),
                    };
                    let spec = json!({
                        "addresses": ranges, "autoAssign": auto, "sharing": sharing, "announce": announce,
                    });
                    world.pool(&format!("p{number}"), &spec);
                }
                Step::Pool(number, None) => {
                    world.pools.remove(&format!("p{number}"));
                    world.tell_pools();
                }
                Step::Server(number, Some(number_of_wish)) => {
                    world.apply(SERVERS[number], &wish(number_of_wish));
                }
                Step::Server(number, None) => world.delete(SERVERS[number]),
                Step::Taken(address, true) => {
                    world.others.0.borrow_mut().insert(ip(address));
                    world.ask_all();
                }
                Step::Taken(address, false) => {
                    world.others.0.borrow_mut().remove(&ip(address));
                    world.ask_all();
                }
                Step::After(ms) => world.after(ms),
                Step::Restart => world.restart(),
                Step::Loss => world.lose_the_ledger(),
            }
            world.check();
            expect_groups(&world, &grouped, &placed)?;
            for (key, addresses) in &world.decided {
                let is_new = |address: &&IpAddr| {
                    let known = known.get(key).into_iter().flatten();
                    // It may have had it, and waited for another one.
                    let held = held.get(key).into_iter().flatten();
                    !known.chain(held).any(|known| known == *address)
                };
                for address in addresses.iter().filter(is_new) {
                    let entry = world.ledger.entries.get(address);
                    let mut owners = entry.into_iter().flat_map(|entry| &entry.owners);
                    let is_alone = owners.all(|owner| owner.namespace == key.namespace);
                    let is_shared = world.ledger.pools.is_shared(*address);
                    prop_assert!(is_alone || is_shared, "{} got {}", key, address);
                }
            }
            if is_loss {
                // Nothing tells any more from which pool an address was taken that is not announced.
                continue;
            }
            for (key, spec, addresses) in before {
                let same = world.specs.get(&key) == Some(&spec);
                let free = addresses.iter().all(|address| world.others.may_stay(*address));
                if same && free {
                    prop_assert_eq!(&world.decided[&key], &addresses, "{} lost its address", key);
                }
            }
        }
    }
}
