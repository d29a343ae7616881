//! Random histories.

use proptest::prelude::*;

use super::*;

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    /// A pool has these addresses, or is gone.
    Pool(usize, Option<(Vec<&'static str>, bool, bool)>),
    /// A virtual server asks for this, or is gone.
    Server(usize, Option<usize>),
    /// An address is somebody else's, or no longer.
    Taken(&'static str, bool),
    After(u64),
    Restart,
}

const SERVERS: [&str; 6] = ["shop/a", "shop/b", "shop/c", "bank/a", "bank/b", "bank/c"];
const RANGES: [&str; 5] = [
    "203.0.113.0/30",
    "203.0.113.2-203.0.113.4",
    "203.0.113.3",
    "198.51.100.0/31",
    "203.0.113.0/24",
];

fn wish(number: usize) -> Value {
    match number {
        0 | 1 => by_family(),
        2 => from("p0"),
        3 => from("p1"),
        4 => json!([{"ip": "203.0.113.2"}]),
        _ => json!([{"ip": "198.51.100.1"}]),
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ranges = prop::sample::subsequence(RANGES.to_vec(), 1..=2);
    let pool = (
        0..3_usize,
        prop::option::weighted(0.8, (ranges, any::<bool>(), any::<bool>())),
    );
    let server = (0..SERVERS.len(), prop::option::weighted(0.7, 0..6_usize));
    let address = prop::sample::select(vec!["203.0.113.1", "203.0.113.2", "198.51.100.0"]);
    let step = prop_oneof![
        2 => pool.prop_map(|(number, spec)| Step::Pool(number, spec)),
        6 => server.prop_map(|(number, wish)| Step::Server(number, wish)),
        1 => (address, any::<bool>()).prop_map(|(address, taken)| Step::Taken(address, taken)),
        2 => (1..=REST_MS).prop_map(Step::After),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens: the books agree, nobody loses an address that it still asks for and that is nobody else's, and none is
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
            match step {
                Step::Pool(number, Some((ranges, auto, shared))) => {
                    let sharing = if shared { "Cluster" } else { "Namespace" };
                    let spec = json!({"addresses": ranges, "autoAssign": auto, "sharing": sharing});
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
            }
            world.check();
            for (key, addresses) in &world.decided {
                let is_new = |address: &&IpAddr| {
                    let known = known.get(key);
                    known.is_none_or(|known| !known.contains(*address))
                };
                for address in addresses.iter().filter(is_new) {
                    let entry = world.ledger.entries.get(address);
                    let mut owners = entry.into_iter().flat_map(|entry| &entry.owners);
                    let is_alone = owners.all(|owner| owner.namespace == key.namespace);
                    let is_shared = world.ledger.pools.is_shared(*address);
                    prop_assert!(is_alone || is_shared, "{} got {}", key, address);
                }
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
