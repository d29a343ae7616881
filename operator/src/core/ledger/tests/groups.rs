//! VIP groups.

use super::*;

fn pool(groups: u8) -> Value {
    json!({
        "addresses": ["203.0.113.0/24", "2001:db8::/64"], "sharing": "Cluster",
        "announce": {"l2": {"groups": groups}},
    })
}

fn both() -> Value {
    json!([{"family": "IPv4"}, {"family": "IPv6"}])
}

fn exactly(address: &str) -> Value {
    json!([{"ip": address}])
}

impl World {
    /// The groups of a virtual server's addresses.
    fn in_groups(&self, name: &str) -> String {
        let assignment = self.ledger.assignment(&key(name)).expect("it asked");
        let groups = assignment.groups(&assignment.addresses);
        let groups: Vec<String> = groups.into_iter().map(|group| group.group).collect();
        groups.join(" ")
    }

    /// Another operator that finds nothing written but the decisions.
    pub(super) fn lose_the_ledger(&mut self) {
        self.ledger = Ledger::default();
        self.ledger.tick(self.now_ms);
        self.tell_pools();
    }
}

#[test]
fn who_is_new_gets_the_group_with_the_fewest_addresses() {
    let mut world = World::new();
    world.pool("edge", &pool(2));
    world.apply("shop/a", &both());
    world.apply("shop/b", &by_family());
    world.apply("shop/c", &by_family());
    world.apply("shop/d", &both());
    assert_eq!(world.in_groups("shop/a"), "edge-0 edge-0");
    assert_eq!(world.in_groups("shop/b"), "edge-1");
    assert_eq!(world.in_groups("shop/c"), "edge-1");
    assert_eq!(world.in_groups("shop/d"), "edge-0 edge-0");
    world.apply("shop/b", &both());
    assert_eq!(
        world.in_groups("shop/b"),
        "edge-1 edge-1",
        "as its other one"
    );
    world.check();
}

#[test]
fn a_group_is_kept_over_restarts_and_by_who_is_made_anew() {
    let mut world = World::new();
    world.pool("edge", &pool(4));
    for name in ["shop/a", "shop/b", "shop/c"] {
        world.apply(name, &by_family());
    }
    world.delete("shop/a");
    world.restart();
    world.apply("shop/c", &both());
    world.apply("shop/a", &both());
    let all = |world: &World| ["shop/a", "shop/b", "shop/c"].map(|name| world.in_groups(name));
    let as_before = ["edge-0 edge-0", "edge-1", "edge-2 edge-2"];
    assert_eq!(all(&world), as_before);
    world.lose_the_ledger();
    assert_eq!(all(&world), as_before, "the decisions say so");
    world.restart();
    assert_eq!(all(&world), as_before);
    world.check();
}

#[test]
fn a_decision_knows_better_than_what_was_written_before() {
    let mut world = World::new();
    world.pool("edge", &pool(4));
    world.apply("shop/a", &by_family());
    let stale = world.ledger.text(None);
    world.delete("shop/a");
    world.after(REST_MS);
    world.apply("shop/b", &exactly("203.0.113.9"));
    world.apply("shop/c", &exactly("203.0.113.1"));
    assert_eq!(world.in_groups("shop/c"), "edge-1");
    world.ledger = Ledger::default();
    world.ledger.load(&stale).expect("it was written so");
    world.tell_pools();
    assert_eq!(world.in_groups("shop/b"), "edge-0");
    assert_eq!(world.in_groups("shop/c"), "edge-1");
}

#[test]
fn virtual_servers_that_share_an_address_share_its_group() {
    let mut world = World::new();
    world.pool("edge", &pool(4));
    world.apply("shop/a", &by_family());
    world.apply("shop/b", &both());
    world.apply(
        "bank/c",
        &json!([{"ip": "203.0.113.2"}, {"family": "IPv6"}]),
    );
    assert_eq!(world.in_groups("shop/b"), "edge-1 edge-1");
    assert_eq!(world.in_groups("bank/c"), "edge-1 edge-1");
    world.delete("shop/b");
    world.after(REST_MS);
    assert_eq!(world.in_groups("bank/c"), "edge-1 edge-1");
    // Each was in use before, so neither moves.
    world.apply(
        "shop/a",
        &json!([{"ip": "203.0.113.1"}, {"ip": "2001:db8::2"}]),
    );
    assert_eq!(world.in_groups("shop/a"), "edge-0 edge-1");
    world.check();
}

#[test]
fn only_addresses_of_pools_that_are_announced_are_in_groups() {
    let mut world = World::new();
    world.apply("shop/a", &exactly("192.0.2.1"));
    assert_eq!(world.in_groups("shop/a"), "", "of no pool");
    let routed = json!({"addresses": ["203.0.113.0/24"], "announce": {"none": {}}});
    world.pool("edge", &routed);
    world.apply("shop/b", &by_family());
    assert_eq!(world.in_groups("shop/b"), "");
    assert_eq!(world.state("edge").groups, None);
    world.pool("edge", &json!({"addresses": ["203.0.113.0/24"]}));
    assert_eq!(world.in_groups("shop/b"), "edge-0", "from now on");
    assert_eq!(world.state("edge").groups, Some(4));
    world.apply("shop/c", &by_family());
    world.pool("edge", &routed);
    assert_eq!(world.in_groups("shop/c"), "");
    world.restart();
    world.pool("edge", &pool(2));
    assert_eq!(world.in_groups("shop/c"), "edge-1", "as before");
    world.check();
}

#[test]
fn fewer_groups_are_for_new_addresses() {
    let mut world = World::new();
    world.pool("edge", &pool(3));
    for name in ["shop/a", "shop/b", "shop/c"] {
        world.apply(name, &by_family());
    }
    world.pool("edge", &pool(1));
    world.apply("shop/d", &by_family());
    assert_eq!(world.in_groups("shop/c"), "edge-2");
    assert_eq!(world.in_groups("shop/d"), "edge-0");
    assert_eq!(world.state("edge").groups, Some(3));
    world.apply("shop/c", &both());
    assert_eq!(world.in_groups("shop/c"), "edge-2 edge-2");
    world.delete("shop/c");
    assert_eq!(world.state("edge").groups, Some(3), "it could come back");
    world.after(REST_MS);
    assert_eq!(world.state("edge").groups, Some(2));
    world.check();
}

#[test]
fn without_its_pool_an_address_is_in_no_group() {
    let mut world = World::new();
    world.pool("edge", &pool(2));
    world.apply("shop/a", &by_family());
    world.apply("shop/b", &by_family());
    let edge = world.pools.remove("edge").expect("a pool");
    world.tell_pools();
    assert_eq!(world.in_groups("shop/b"), "");
    assert_eq!(world.has("shop/b"), "203.0.113.2", "which stays");
    world.pools.insert("edge".to_owned(), edge);
    world.tell_pools();
    assert_eq!(world.in_groups("shop/b"), "edge-1", "it is back");
    world.pools.remove("edge");
    world.pool("core", &pool(2));
    assert_eq!(world.in_groups("shop/a"), "core-0");
    assert_eq!(
        world.in_groups("shop/b"),
        "core-1",
        "of the pool that has it"
    );
    world.pool("edge", &json!({"addresses": ["192.0.2.0/24"]}));
    assert_eq!(world.in_groups("shop/b"), "core-1", "it is in use");
    assert_eq!(world.has("shop/b"), "203.0.113.2");
    world.check();
}

#[test]
fn what_a_pool_no_longer_has_stays_in_its_group() {
    let mut world = World::new();
    world.pool("edge", &pool(2));
    world.apply("shop/a", &by_family());
    world.apply("shop/b", &by_family());
    let less = json!({"addresses": ["198.51.100.0/24"]});
    world.pool("edge", &less);
    world.pool("core", &json!({"addresses": ["203.0.113.0/24"]}));
    assert_eq!(world.in_groups("shop/b"), "edge-1");
    world.restart();
    assert_eq!(world.in_groups("shop/b"), "edge-1");
    assert!(world.state("edge").outside.is_some());
    world.lose_the_ledger();
    assert_eq!(world.in_groups("shop/b"), "edge-1");
    world.check();
}

#[test]
fn a_pool_that_is_edited_wrongly_is_announced_as_decided_before() {
    let mut world = World::new();
    world.pool("edge", &pool(2));
    world.apply("shop/a", &by_family());
    let object = world.pools.get_mut("edge").expect("a pool");
    let decision = json!({"decision": {"generation": 1, "l2": {"groups": 2}}});
    object.status = serde_json::from_value(decision).expect("a status");
    object.spec.addresses.push("everything".to_owned());
    world.tell_pools();
    assert!(!world.state("edge").refusals.is_empty());
    assert_eq!(world.in_groups("shop/a"), "edge-0");
    assert_eq!(world.state("edge").groups, Some(2));
    world.pools.get_mut("edge").expect("a pool").status = None;
    world.tell_pools();
    assert_eq!(world.in_groups("shop/a"), "", "nobody announces it");
}

impl World {
    fn apply_local(&mut self, name: &str, addresses: &Value) {
        self.specs.insert(key(name), local(addresses));
        self.ask(&key(name));
    }
}

fn local(addresses: &Value) -> VirtualServerSpec {
    VirtualServerSpec {
        external_traffic_policy: ExternalTrafficPolicy::Local,
        ..spec(addresses)
    }
}

#[test]
fn with_the_policy_local_a_virtual_server_has_a_group_of_its_own() {
    let mut world = World::new();
    world.pool("edge", &pool(2));
    world.apply("shop/a", &both());
    world.apply_local("shop/b", &both());
    world.apply_local("shop/c", &both());
    assert_eq!(world.in_groups("shop/b"), "edge-128 edge-128");
    assert_eq!(world.in_groups("shop/c"), "edge-129 edge-129");
    assert_eq!(world.state("edge").groups, Some(2), "not one more");
    let local = |world: &World| world.ledger.local_groups().collect::<Vec<_>>().join(" ");
    assert_eq!(local(&world), "edge-128 edge-129");
    assert!(world.ledger.take_local_changed() && !world.ledger.take_local_changed());
    world.lose_the_ledger();
    assert_eq!(world.in_groups("shop/c"), "edge-129 edge-129");
    world.restart();
    assert_eq!(world.in_groups("shop/c"), "edge-129 edge-129");

    world.apply("shop/b", &both());
    assert_eq!(world.in_groups("shop/b"), "edge-1 edge-1");
    world.apply_local("shop/a", &both());
    assert_eq!(world.in_groups("shop/a"), "edge-128 edge-128");
    world.delete("shop/c");
    world.after(REST_MS);
    assert_eq!(local(&world), "edge-128");
    world.check();
}

#[test]
fn an_address_of_a_group_of_its_own_is_not_shared() {
    let mut world = World::new();
    world.pool("edge", &pool(2));
    world.apply("shop/a", &exactly("203.0.113.1"));
    world.apply("shop/b", &exactly("203.0.113.1"));
    world.apply_local("shop/a", &exactly("203.0.113.1"));
    assert_eq!(world.has("shop/a"), "AddressConflict");
    assert!(
        world.why("shop/a").contains("shop/b"),
        "{}",
        world.why("shop/a")
    );
    assert_eq!(world.in_groups("shop/b"), "edge-0");
    // It may have another one, though its decision still names the first.
    world.apply_local("shop/a", &exactly("203.0.113.2"));
    assert_eq!(world.in_groups("shop/a"), "edge-128");
    for (name, spec) in [
        ("shop/c", spec(&exactly("203.0.113.2"))),
        ("shop/d", local(&exactly("203.0.113.1"))),
    ] {
        world.specs.insert(key(name), spec);
        world.ask(&key(name));
        assert_eq!(world.has(name), "AddressConflict");
        assert!(
            world.why(name).contains("Local is not shared"),
            "{}",
            world.why(name)
        );
    }
    world.check();
}

#[test]
fn a_pool_has_so_many_groups_of_one_virtual_server() {
    let mut world = World::new();
    world.pool("edge", &pool(2));
    for number in 0..64 {
        world.apply_local(&format!("shop/l{number}"), &both());
    }
    assert_eq!(world.in_groups("shop/l63"), "edge-191 edge-191");
    world.apply_local("shop/more", &both());
    assert_eq!(world.has("shop/more"), "NoFreeGroup");
    world.delete("shop/l7");
    world.after(REST_MS);
    assert_eq!(world.in_groups("shop/more"), "edge-135 edge-135");
    world.apply_local("shop/late", &both());
    assert!(!world.ledger.tick(world.now_ms));
    world.apply("shop/l8", &both());
    assert!(
        world.ledger.tick(world.now_ms),
        "who waits is to ask again at once"
    );
    assert!(!world.ledger.tick(world.now_ms));
    world.check();
}
