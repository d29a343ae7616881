mod groups;
mod properties;
mod services;

use std::cell::RefCell;

use serde_json::{Value, json};
use sluice_api::AddressPool;

use super::*;
use crate::core::addresses::Addresses;

/// Which addresses are somebody else's.
#[derive(Default)]
struct Others(RefCell<BTreeSet<IpAddr>>);

impl Usable for Others {
    fn is_free(&self, address: IpAddr) -> bool {
        !self.0.borrow().contains(&address)
    }

    fn may_stay(&self, address: IpAddr) -> bool {
        self.is_free(address)
    }
}

/// A ledger, and what is asked of it.
struct World {
    ledger: Ledger,
    pools: BTreeMap<String, AddressPool>,
    specs: BTreeMap<ObjectKey, VirtualServerSpec>,
    /// The addresses in the decisions: those of the last answer without a refusal.
    decided: BTreeMap<ObjectKey, Vec<IpAddr>>,
    /// The VIP groups in them.
    groups: BTreeMap<ObjectKey, Vec<AddressGroup>>,
    others: Others,
    now_ms: u64,
}

fn key(text: &str) -> ObjectKey {
    let (namespace, name) = text.split_once('/').expect("a namespace");
    ObjectKey::new(namespace, name)
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn spec(addresses: &Value) -> VirtualServerSpec {
    serde_json::from_value(json!({
        "addresses": addresses, "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
        "forwarding": {"mode": "NAT"}, "pools": [{"name": "v1", "weight": 1}],
    }))
    .expect("a spec")
}

impl World {
    fn new() -> Self {
        Self {
            ledger: Ledger::default(),
            pools: BTreeMap::new(),
            specs: BTreeMap::new(),
            decided: BTreeMap::new(),
            groups: BTreeMap::new(),
            others: Others::default(),
            now_ms: 0,
        }
    }

    /// Makes or edits a pool. Made later means a later time of creation.
    fn pool(&mut self, name: &str, spec: &Value) {
        let created = self.pools.get(name).map_or_else(
            || json!(format!("2026-01-01T00:00:{:02}Z", self.pools.len())),
            |pool| json!(pool.metadata.creation_timestamp),
        );
        let object = json!({
            "apiVersion": sluice_api::API_VERSION, "kind": "AddressPool",
            "metadata": {"name": name, "creationTimestamp": created}, "spec": spec,
        });
        let object = serde_json::from_value(object).expect("a pool");
        self.pools.insert(name.to_owned(), object);
        self.tell_pools();
    }

    fn tell_pools(&mut self) {
        let pools = self.pools.iter().map(|(name, pool)| (name.as_str(), pool));
        self.ledger.set_pools(pools, &mut Addresses::default());
        self.ask_all();
    }

    fn ask_all(&mut self) {
        let object = |(key, spec): (&ObjectKey, &VirtualServerSpec)| {
            (key.clone(), VirtualServer::new(&key.name, spec.clone()))
        };
        let objects: BTreeMap<ObjectKey, VirtualServer> = self.specs.iter().map(object).collect();
        let (decided, groups) = (&self.decided, &self.groups);
        let object = |key: &ObjectKey| {
            let named = Named {
                addresses: decided.get(key).cloned().unwrap_or_default(),
                groups: groups.get(key).cloned().unwrap_or_default(),
            };
            (objects.get(key), named)
        };
        let keys = objects.keys().cloned();
        self.ledger.ask_all(keys, object, &self.others);
        for key in objects.keys() {
            self.decide(key);
        }
    }

    fn ask(&mut self, key: &ObjectKey) {
        let spec = self.specs.get(key);
        let decided = self.decided.get(key).cloned().unwrap_or_default();
        self.ledger.ask(key, spec, &decided, &self.others);
        self.decide(key);
    }

    /// The decision follows the assignment, and the ledger hears of it.
    fn decide(&mut self, key: &ObjectKey) {
        let Some(assignment) = self.ledger.assignment(key) else {
            self.decided.remove(key);
            self.groups.remove(key);
            return;
        };
        let standing = self.decided.get(key).cloned().unwrap_or_default();
        let groups = assignment.groups(&standing);
        let now = assignment.groups(&assignment.addresses);
        if assignment.refusals.is_empty() {
            self.groups.insert(key.clone(), now);
            let now = assignment.addresses.clone();
            if self.decided.insert(key.clone(), now.clone()) != Some(now) {
                self.ask(key);
            }
        } else {
            self.groups.insert(key.clone(), groups);
        }
    }

    fn apply(&mut self, name: &str, addresses: &Value) {
        self.specs.insert(key(name), spec(addresses));
        self.ask(&key(name));
    }

    fn delete(&mut self, name: &str) {
        self.specs.remove(&key(name));
        self.ask(&key(name));
    }

    fn after(&mut self, ms: u64) {
        self.now_ms += ms;
        if self.ledger.tick(self.now_ms) {
            self.ask_all();
        }
    }

    /// The addresses of a virtual server, or the reason why it does not get what it asks for.
    fn has(&self, name: &str) -> String {
        let assignment = self.ledger.assignment(&key(name)).expect("it asked");
        let texts: Vec<String> = match assignment.refusals.first() {
            None => assignment
                .addresses
                .iter()
                .map(ToString::to_string)
                .collect(),
            Some(refusal) => vec![refusal.reason.to_string()],
        };
        texts.join(" ")
    }

    fn why(&self, name: &str) -> String {
        let assignment = self.ledger.assignment(&key(name)).expect("it asked");
        let why = assignment.refusals.iter();
        why.map(|refusal| refusal.error.to_string()).collect()
    }

    fn state(&self, name: &str) -> PoolState {
        let mut states = self.ledger.pool_states();
        states.find(|(other, _)| *other == name).expect("a pool").1
    }

    /// What has to be true at any time.
    fn check(&self) {
        let ledger = &self.ledger;
        let mut used = BTreeMap::<&str, usize>::new();
        let mut grouped = BTreeMap::<String, BTreeMap<u8, usize>>::new();
        for (address, entry) in &ledger.entries {
            *used.entry(&entry.pool).or_default() += 1;
            if let Some(group) = &entry.group {
                let groups = grouped.entry(group.pool.clone()).or_default();
                *groups.entry(group.number).or_default() += 1;
            }
            let rest = entry.rest.as_ref();
            assert_eq!(entry.owners.is_empty(), rest.is_some(), "{address}");
            let owners = entry.owners.iter().chain(rest.map(|(last, _)| last));
            for owner in owners {
                assert!(ledger.of_owner[owner].contains(address), "{address}");
            }
            if let Some((_, until_ms)) = rest {
                assert!(ledger.resting.contains(&(*until_ms, *address)));
                assert!((self.now_ms + 1..=self.now_ms + REST_MS).contains(until_ms));
            }
        }
        let rests = ledger.entries.values().filter(|entry| entry.rest.is_some());
        assert_eq!(rests.count(), ledger.resting.len());
        let owned: usize = ledger.of_owner.values().map(BTreeSet::len).sum();
        let owners = ledger.entries.values();
        let owners = owners.map(|entry| entry.owners.len().max(1));
        assert_eq!(owned, owners.sum::<usize>());
        for (name, state) in ledger.pool_states() {
            assert_eq!(state.used, used.get(name).copied().unwrap_or_default());
        }
        assert_eq!(ledger.pools.grouped, grouped);
        for (key, assignment) in &ledger.assignments {
            assert!(self.specs.contains_key(key), "{key} is gone");
            for address in &assignment.addresses {
                let entry = ledger.entries.get(address);
                let is_owner = entry.is_none_or(|entry| entry.owners.contains(key));
                assert!(is_owner, "{key} has {address}");
            }
        }
    }

    /// Another operator that finds what stands written.
    fn restart(&mut self) {
        let texts: Vec<String> = (0..SHARDS)
            .map(|shard| self.ledger.text(Some(shard)))
            .collect();
        self.ledger = Ledger::default();
        self.ledger.tick(self.now_ms);
        for text in texts {
            self.ledger.load(&text).expect("it was written so");
        }
        self.tell_pools();
        let specs = &self.specs;
        self.ledger.retain(|key| specs.contains_key(key));
    }
}

fn by_family() -> Value {
    json!([{"family": "IPv4"}])
}

fn from(pool: &str) -> Value {
    json!([{"family": "IPv4", "addressPoolName": pool}])
}

#[test]
fn without_a_pool_a_cluster_gives_nothing_and_a_directory_anything() {
    let named = json!([{"ip": "203.0.113.1"}]);
    let mut world = World::new();
    world.apply("shop/a", &named);
    assert_eq!(world.has("shop/a"), "203.0.113.1");
    world.ledger = Ledger::new(WithoutPools::NoAddress);
    world.apply("shop/b", &named);
    assert_eq!(world.has("shop/b"), "AddressNotAllowed");
    let why = world.why("shop/b");
    assert!(
        why.contains("there is no AddressPool") && why.contains("value addressPools"),
        "{why}"
    );
    // Its decision is from before.
    world.apply("shop/a", &named);
    assert_eq!(world.has("shop/a"), "203.0.113.1");
    let assignment = world.ledger.assignment(&key("shop/a")).expect("asked");
    assert_eq!(assignment.kept(), [ip("203.0.113.1")]);
    world.pool("edge", &json!({"addresses": ["203.0.113.1"]}));
    assert_eq!(world.has("shop/b"), "203.0.113.1");
    let assignment = world.ledger.assignment(&key("shop/a")).expect("asked");
    assert!(assignment.kept().is_empty());
}

#[test]
fn addresses_are_given_in_order_and_kept() {
    let mut world = World::new();
    world.pool(
        "edge",
        &json!({"addresses": ["203.0.113.0/29", "2001:db8::/64"]}),
    );
    world.apply("shop/a", &json!([{"family": "IPv4"}, {"family": "IPv6"}]));
    world.apply("shop/b", &by_family());
    assert_eq!(world.has("shop/a"), "203.0.113.1 2001:db8::1");
    assert_eq!(world.has("shop/b"), "203.0.113.2");
    world.ask_all();
    world.restart();
    assert_eq!(world.has("shop/a"), "203.0.113.1 2001:db8::1");
    assert_eq!(world.has("shop/b"), "203.0.113.2");
    let state = world.state("edge");
    assert_eq!((state.used, state.is_exhausted), (3, false));
    assert_eq!(state.size, 6 + u128::from(u64::MAX));
}

#[test]
fn who_is_made_anew_gets_its_address_back() {
    let mut world = World::new();
    world.pool("edge", &json!({"addresses": ["203.0.113.1-203.0.113.9"]}));
    world.apply("shop/a", &by_family());
    world.apply("shop/b", &by_family());
    world.delete("shop/a");
    world.restart();
    world.apply("shop/c", &by_family());
    assert_eq!(world.has("shop/c"), "203.0.113.3", "the first one rests");
    world.apply("shop/a", &by_family());
    assert_eq!(world.has("shop/a"), "203.0.113.1");
    world.delete("shop/b");
    world.after(REST_MS - 1);
    world.apply("shop/d", &by_family());
    assert_eq!(world.has("shop/d"), "203.0.113.4");
    world.after(1);
    world.apply("shop/e", &by_family());
    assert_eq!(world.has("shop/e"), "203.0.113.2", "it has rested");
}

#[test]
fn what_rests_is_given_to_no_other_namespace() {
    let mut world = World::new();
    world.pool("edge", &json!({"addresses": ["203.0.113.1"]}));
    world.apply("shop/a", &json!([{"ip": "203.0.113.1"}]));
    world.delete("shop/a");
    world.apply("bank/b", &json!([{"ip": "203.0.113.1"}]));
    assert_eq!(world.has("bank/b"), "AddressConflict");
    assert!(world.why("bank/b").contains("shop/a until a moment ago"));
    world.after(REST_MS);
    assert_eq!(world.has("bank/b"), "203.0.113.1");
}

#[test]
fn an_address_that_no_pool_gives_is_refused() {
    let mut world = World::new();
    world.pool(
        "other",
        &json!({"addresses": ["192.0.2.0/24"], "autoAssign": false}),
    );
    world.apply("shop/a", &json!([{"ip": "203.0.113.1"}]));
    assert_eq!(world.has("shop/a"), "AddressNotAllowed");
    assert!(
        world
            .why("shop/a")
            .contains("no AddressPool has 203.0.113.1")
    );
    world.pool(
        "edge",
        &json!({"addresses": ["203.0.113.0/24"], "allow": {"namespaces": ["bank"]}}),
    );
    assert!(
        world
            .why("shop/a")
            .contains("does not allow namespace shop")
    );
    world.apply("shop/b", &by_family());
    assert!(
        world
            .why("shop/b")
            .contains("no AddressPool assigns IPv4 addresses to namespace shop")
    );
    world.apply("shop/c", &from("edge"));
    assert!(world.why("shop/c").contains("does not allow namespace "));
    world.apply("shop/d", &from("core"));
    assert!(
        world
            .why("shop/d")
            .contains("AddressPool core does not exist")
    );
    let labels = json!({"allow": {"namespaceSelector": {"matchLabels": {"team": "web"}}}, "addresses": ["203.0.113.0/24"]});
    world.pool("edge", &labels);
    assert_eq!(world.has("shop/a"), "AddressNotAllowed");
    let labels = BTreeMap::from([("team".to_owned(), "web".to_owned())]);
    world.ledger.set_namespace("shop", Some(labels));
    world.ask_all();
    assert_eq!(world.has("shop/a"), "203.0.113.1");
    assert_eq!(world.has("shop/b"), "203.0.113.2");
    assert_eq!(world.has("shop/c"), "203.0.113.3");
}

#[test]
fn without_pools_everybody_may_have_every_address() {
    let mut world = World::new();
    world.apply("shop/a", &json!([{"ip": "203.0.113.1"}]));
    assert_eq!(world.has("shop/a"), "203.0.113.1");
    world.pool("edge", &json!({"addresses": ["198.51.100.0/24"]}));
    let kept = &world.ledger.assignment(&key("shop/a")).expect("asked").kept;
    assert_eq!(
        kept,
        &[ip("203.0.113.1")],
        "what is in use stays, and is named"
    );
    world.apply("shop/b", &json!([{"ip": "203.0.113.2"}]));
    assert_eq!(world.has("shop/b"), "AddressNotAllowed");
}

#[test]
fn a_pool_without_a_free_address_says_so() {
    let mut world = World::new();
    world.pool("edge", &json!({"addresses": ["203.0.113.0/30"]}));
    for name in ["shop/a", "shop/b", "shop/c"] {
        world.apply(name, &by_family());
    }
    assert_eq!(world.has("shop/b"), "203.0.113.2");
    assert_eq!(world.has("shop/c"), "NoFreeAddress");
    assert!(world.state("edge").is_exhausted);
    world.delete("shop/a");
    world.ask_all();
    assert_eq!(world.has("shop/c"), "NoFreeAddress", "it rests");
    world.after(REST_MS);
    assert_eq!(world.has("shop/c"), "203.0.113.1");
    assert!(!world.state("edge").is_exhausted);
}

#[test]
fn priority_and_name_say_which_pool_comes_first() {
    let mut world = World::new();
    world.pool("b", &json!({"addresses": ["203.0.113.2"]}));
    world.pool("a", &json!({"addresses": ["203.0.113.1"]}));
    world.pool("c", &json!({"addresses": ["203.0.113.3"], "priority": 9}));
    world.pool(
        "d",
        &json!({"addresses": ["203.0.113.4"], "priority": 99, "autoAssign": false}),
    );
    for (name, address) in [
        ("shop/1", "203.0.113.3"),
        ("shop/2", "203.0.113.1"),
        ("shop/3", "203.0.113.2"),
        ("shop/4", "NoFreeAddress"),
    ] {
        world.apply(name, &by_family());
        assert_eq!(world.has(name), address);
    }
    world.apply("shop/4", &from("d"));
    assert_eq!(world.has("shop/4"), "203.0.113.4");
}

#[test]
fn a_gateway_is_one_pools() {
    let pool = |block: &str, gateways: &[&str]| {
        let announce = json!({"l2": {"groups": 1, "gateways": gateways}});
        json!({"addresses": [block, "2001:db8::/64"], "announce": announce})
    };
    let mut world = World::new();
    world.pool("old", &pool("203.0.113.0/28", &["10.0.0.1"]));
    world.pool("new", &json!({"addresses": ["198.51.100.0/28"], "announce": {"l2": {"groups": 1, "gateways": ["10.0.1.1", "10.0.0.1"]}}}));
    let refusals = world.state("new").refusals;
    assert_eq!(refusals[0].reason, Reason::AddressPoolOverlap);
    let text = refusals[0].error.to_string();
    let said = "spec.announce.l2.gateways[1]: 10.0.0.1 is a gateway of the older AddressPool old";
    assert!(text.starts_with(said), "{text}");
    // A gateway of IPv4 moves with no VIP of IPv6.
    world.apply("shop/a", &json!([{"family": "IPv4"}, {"family": "IPv6"}]));
    let fixed = |world: &World| {
        let assignment = world.ledger.assignment(&key("shop/a"));
        assignment.expect("it asked").without_gateway().to_vec()
    };
    assert_eq!(fixed(&world), [(ip("2001:db8::1"), "old".to_owned())]);
    world.pool("old", &pool("203.0.113.0/28", &["10.0.0.1", "fd00::1"]));
    assert_eq!(fixed(&world), []);
    world.pool(
        "old",
        &json!({"addresses": ["203.0.113.0/28", "2001:db8::/64"], "announce": {"none": {}}}),
    );
    assert_eq!(fixed(&world), [], "nobody announces them");
}

#[test]
fn of_pools_that_overlap_the_newer_is_refused() {
    let mut world = World::new();
    world.pool("old", &json!({"addresses": ["203.0.113.0/28"]}));
    world.pool(
        "new",
        &json!({"addresses": ["198.51.100.0/28", "203.0.113.8-203.0.113.40"]}),
    );
    let refusals = world.state("new").refusals;
    assert_eq!(refusals[0].reason, Reason::AddressPoolOverlap);
    let text = refusals[0].error.to_string();
    assert!(
        text.starts_with("spec.addresses[1]: 203.0.113.8-203.0.113.40 overlaps")
            && text.contains("AddressPool old")
    );
    assert!(world.state("old").refusals.is_empty());
    world.apply("shop/a", &from("new"));
    assert!(world.why("shop/a").contains("AddressPool new is refused"));
    world.pool("old", &json!({"addresses": ["203.0.113.0/29"]}));
    assert_eq!(world.has("shop/a"), "198.51.100.1");
    // Ranges of one pool may lie within each other.
    world.pool(
        "old",
        &json!({"addresses": ["10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/24"]}),
    );
    world.apply("shop/b", &json!([{"ip": "10.200.0.1"}]));
    assert_eq!(world.has("shop/b"), "10.200.0.1");
}

#[test]
fn what_a_pool_loses_stays_with_whoever_has_it() {
    let mut world = World::new();
    world.pool("edge", &json!({"addresses": ["203.0.113.0/28"]}));
    world.apply("shop/a", &from("edge"));
    world.apply("shop/b", &by_family());
    world.pool("edge", &json!({"addresses": ["198.51.100.0/28"]}));
    assert_eq!(
        (world.has("shop/a"), world.has("shop/b")),
        ("203.0.113.1".into(), "203.0.113.2".into())
    );
    let outside = world.state("edge").outside.expect("they are named");
    assert_eq!(
        outside,
        "203.0.113.1 (VirtualServer shop/a), 203.0.113.2 (VirtualServer shop/b)"
    );
    world.restart();
    assert_eq!(world.has("shop/a"), "203.0.113.1");
    world.pools.clear();
    world.pool(
        "other",
        &json!({"addresses": ["198.51.100.128/28"], "autoAssign": false}),
    );
    assert_eq!(world.has("shop/a"), "203.0.113.1");
    let kept = &world.ledger.assignment(&key("shop/a")).expect("asked").kept;
    assert_eq!(kept, &[ip("203.0.113.1")]);
    // Another pool is another wish.
    world.pool("core", &json!({"addresses": ["192.0.2.0/28"]}));
    world.apply("shop/a", &from("core"));
    assert_eq!(world.has("shop/a"), "192.0.2.1");
    world.apply("shop/c", &json!([{"ip": "203.0.113.1"}]));
    assert_eq!(world.has("shop/c"), "AddressNotAllowed");
}

#[test]
fn one_address_serves_one_namespace_unless_the_pool_says_otherwise() {
    let mut world = World::new();
    world.pool("edge", &json!({"addresses": ["203.0.113.1"]}));
    let one = json!([{"ip": "203.0.113.1"}]);
    for name in ["shop/a", "shop/b", "bank/c"] {
        world.apply(name, &one);
    }
    assert_eq!(
        (world.has("shop/b"), world.has("bank/c")),
        ("203.0.113.1".into(), "AddressConflict".into())
    );
    assert!(
        world
            .why("bank/c")
            .contains("held by VirtualServer shop/a of another namespace")
    );
    world.pool(
        "edge",
        &json!({"addresses": ["203.0.113.1"], "sharing": "Cluster"}),
    );
    assert_eq!(world.has("bank/c"), "203.0.113.1");
    world.delete("shop/a");
    world.delete("shop/b");
    world.after(REST_MS);
    assert_eq!(world.state("edge").used, 1, "the last one has it still");
}

#[test]
fn what_is_somebody_elses_is_left_out_and_left() {
    let mut world = World::new();
    world.others.0.borrow_mut().insert(ip("203.0.113.1"));
    world.pool("edge", &json!({"addresses": ["203.0.113.0/28"]}));
    world.apply("shop/a", &by_family());
    assert_eq!(world.has("shop/a"), "203.0.113.2");
    world.others.0.borrow_mut().insert(ip("203.0.113.2"));
    world.ask_all();
    assert_eq!(world.has("shop/a"), "203.0.113.3", "a node got it");
    world.others.0.borrow_mut().clear();
    world.apply("shop/b", &by_family());
    assert_eq!(world.has("shop/b"), "203.0.113.1", "the node is gone");
}

#[test]
fn texts_that_are_no_ledger_are_refused() {
    for text in [
        "",
        "[]",
        r#"{"203.0.113.1": 1}"#,
        r#"{"nobody": {}}"#,
        r#"{"203.0.113.1": {"owner": "a/b"}}"#,
    ] {
        assert!(Ledger::default().load(text).is_err(), "{text}");
    }
    let mut ledger = Ledger::default();
    ledger
        .load(r#"{"203.0.113.1": {"owners": ["no key"]}}"#)
        .expect("an owner that is none");
    assert!(ledger.entries.is_empty());
}

/// A directory is read once more when another one is in its place.
#[test]
fn what_is_known_counts_before_what_is_written() {
    let mut world = World::new();
    world.pool("edge", &json!({"addresses": ["203.0.113.1-203.0.113.9"]}));
    world.apply("shop/a", &by_family());
    world.apply("shop/b", &by_family());
    world.delete("shop/b");
    let text = world.ledger.text(None);
    world.apply("shop/b", &by_family());
    world.delete("shop/a");
    world.ledger.load(&text).expect("it was written so");
    world.check();
    assert_eq!(world.has("shop/b"), "203.0.113.2");
}
