//! Which servers are checked, and what the maps make of what checks say.

use std::net::SocketAddr;

use serde_json::json;
use sluice_api::{ConditionType, DownServer, Drain, DrainEnd, HealthCheck, Warmup, find_condition};

use super::*;
use crate::health::{Told, Verdicts};

const OTHER: &str = "10.0.0.3";

fn check(more: &serde_json::Value) -> HealthCheck {
    let mut check = json!({"tcp": {}});
    let fields = check.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    serde_json::from_value(check).unwrap()
}

fn checked(revision: u64, servers: &[&str], check: Option<HealthCheck>) -> Input {
    let mut decision = pool_decision(revision, servers);
    decision.content.health_check = check.map(Box::new);
    decided(revision, decision)
}

fn decided(revision: u64, decision: PoolDecision) -> Input {
    let mut changes = Changes {
        mark: Mark {
            revision: 7,
            pool_revision: revision,
            missed: Vec::new(),
        },
        ..Changes::default()
    };
    let key = ObjectKey::new("shop", "v1");
    changes.pools.insert(key, Some(Arc::new(decision)));
    Input::Source(Event::Decided(changes))
}

fn world(memory: Memory) -> World {
    let mut world = World::with(AnnounceOptions::default(), memory);
    world.tell(Input::SourceSynced(true));
    world.tell(Input::Source(node(1, XdpMode::Auto)));
    world.notice(neighbour(OTHER, Nud::Reachable));
    world.routes.insert(ip(OTHER), out(UPLINK_INDEX));
    world.tell(Input::Source(decisions(7, &[])));
    world
}

/// Slots of the only ring by the server that has them.
fn slots(world: &World) -> BTreeMap<String, u32> {
    let Phase::Working(working) = &world.core.0 else {
        unreachable!("a detached node has no maps")
    };
    let planner = working.program.tables.planner().read();
    let servers = planner.servers();
    let names: BTreeMap<u32, String> = servers.map(|it| (it.id, it.address.to_string())).collect();
    let ring = planner.image().rings.values().next().expect("a ring");
    let parts = ring.content.parts().iter();
    parts
        .map(|(id, slots)| (names[id].clone(), *slots))
        .collect()
}

fn socket(server: &str) -> SocketAddr {
    SocketAddr::new(ip(server), 80)
}

/// Says that these servers are down.
fn down(servers: &[SocketAddr], has_passed: bool) -> Input {
    let verdicts = Verdicts {
        up: 2 - servers.len(),
        unknown: 0,
        warming: BTreeMap::new(),
        down: servers
            .iter()
            .map(|it| (*it, "refused".to_owned()))
            .collect(),
        by_address: false,
        has_passed,
    };
    let told: Told = [(ObjectKey::new("shop", "v1"), Some(verdicts))].into();
    Input::Checker(Box::new(told))
}

fn asked(done: &[String]) -> Vec<&String> {
    done.iter().filter(|it| it.starts_with("Check ")).collect()
}

#[test]
fn the_checker_is_told_which_servers_there_are() {
    let mut world = world(Memory::default());
    world.tell(checked(8, &[SERVER, OTHER], Some(check(&json!({})))));
    let done = world.turn();
    assert_eq!(asked(&done), ["Check shop/v1 at 10.0.0.2:80,10.0.0.3:80"]);
    let done = world.after(Duration::from_secs(1));
    assert!(asked(&done).is_empty(), "{done:?}");
    world.tell(checked(9, &[SERVER], Some(check(&json!({"port": 9000})))));
    let done = world.turn();
    assert_eq!(asked(&done), ["Check shop/v1 at 10.0.0.2:9000"]);
    world.tell(checked(10, &[SERVER], None));
    let done = world.turn();
    assert_eq!(asked(&done), ["Check shop/v1 not"]);
}

#[test]
fn who_is_down_has_no_slots() {
    let mut world = world(Memory::default());
    world.tell(checked(8, &[SERVER, OTHER], Some(check(&json!({})))));
    world.turn();
    assert_eq!(slots(&world)[SERVER], 2_048);
    world.tell(down(&[socket(SERVER)], true));
    assert!(world.turn().contains(&"Apply".to_owned()));
    assert_eq!(slots(&world), [(OTHER.to_owned(), 4_096)].into());
    world.after(Duration::from_secs(1));
    let status = world.status.clone().expect("a status");
    let condition = find_condition(&status.conditions, ConditionType::ServersDown);
    let condition = condition.expect("the condition");
    assert_eq!(condition.reason, "ChecksFailed");
    assert_eq!(
        condition.message,
        "pool shop/v1: down: 10.0.0.2:80 (refused)"
    );
    let expected = DownServer {
        namespace: "shop".to_owned(),
        pool: "v1".to_owned(),
        address: ip(SERVER),
        port: Some(80),
        reason: "refused".to_owned(),
    };
    assert_eq!(status.down_servers, [expected]);
    world.tell(down(&[], true));
    world.turn();
    assert_eq!(slots(&world)[SERVER], 2_048);
    world.after(Duration::from_secs(1));
    let status = world.status.clone().expect("a status");
    assert!(find_condition(&status.conditions, ConditionType::ServersDown).is_none());
}

#[test]
fn nobody_is_taken_out_by_a_check_that_nobody_passes() {
    let mut world = world(Memory::default());
    world.tell(checked(8, &[SERVER, OTHER], Some(check(&json!({})))));
    world.turn();
    world.tell(down(&[socket(SERVER)], false));
    let done = world.turn();
    assert!(!done.contains(&"Apply".to_owned()), "{done:?}");
    world.after(Duration::from_secs(1));
    let status = world.status.clone().expect("a status");
    let condition = find_condition(&status.conditions, ConditionType::ServersDown);
    assert_eq!(condition.expect("the condition").reason, "CheckNeverPassed");
}

#[test]
fn what_an_earlier_agent_knew_is_in_the_first_plan() {
    let memory = json!({"shop/v1": {"hasPassed": true, "down": ["10.0.0.2:80"]}});
    let memory: Memory = serde_json::from_value(memory).unwrap();
    let mut world = world(memory);
    world.tell(checked(8, &[SERVER, OTHER], Some(check(&json!({})))));
    world.turn();
    assert_eq!(slots(&world), [(OTHER.to_owned(), 4_096)].into());
}

#[test]
fn who_begins_has_a_part_of_its_slots() {
    let mut world = world(Memory::default());
    let mut decision = pool_decision(8, &[SERVER, OTHER]);
    decision.content.warmup = Some(Warmup { seconds: 10 });
    world.tell(decided(8, decision));
    let done = world.turn();
    assert_eq!(asked(&done), ["Check shop/v1 at 10.0.0.2:0,10.0.0.3:0"]);
    let verdicts = Verdicts {
        warming: [(SocketAddr::new(ip(OTHER), 0), 3)].into(),
        by_address: true,
        ..Verdicts::default()
    };
    let told: Told = [(ObjectKey::new("shop", "v1"), Some(verdicts))].into();
    world.tell(Input::Checker(Box::new(told)));
    world.turn();
    let slots = slots(&world);
    assert_eq!(
        (slots[SERVER], slots[OTHER]),
        (4_096 - 615, 615),
        "three tenths of 2,048"
    );
}

#[test]
fn a_check_that_has_no_port_to_ask_is_told() {
    let mut world = world(Memory::default());
    let by_udp: HealthCheck = serde_json::from_value(json!({"udp": {"send": "x"}})).unwrap();
    world.tell(checked(8, &[SERVER], Some(by_udp)));
    let done = world.turn();
    assert_eq!(
        asked(&done),
        ["Check shop/v1 at "],
        "the virtual server forwards TCP"
    );
    world.after(Duration::from_secs(1));
    let status = world.status.clone().expect("a status");
    let condition = find_condition(&status.conditions, ConditionType::ServersDown);
    let message = &condition.expect("the condition").message;
    assert!(message.contains("give spec.healthCheck.port"), "{message}");
}

/// The addresses of the servers in the maps.
fn in_maps(world: &World) -> BTreeSet<String> {
    let Phase::Working(working) = &world.core.0 else {
        unreachable!("a detached node has no maps")
    };
    let planner = working.program.tables.planner().read();
    let servers = planner.servers();
    servers.map(|server| server.address.to_string()).collect()
}

#[test]
fn who_was_removed_keeps_its_flows_for_its_time() {
    let mut world = world(Memory::default());
    let drained = |revision, servers: &[&str]| {
        let mut decision = pool_decision(revision, servers);
        decision.content.drain = Some(Drain {
            timeout_seconds: 30,
            then: DrainEnd::Forget,
        });
        decided(revision, decision)
    };
    world.tell(drained(8, &[SERVER, OTHER]));
    world.turn();
    let both = [SERVER, OTHER].map(str::to_owned).into();
    assert_eq!(in_maps(&world), both);
    world.tell(drained(9, &[OTHER]));
    world.turn();
    assert_eq!(
        slots(&world),
        [(OTHER.to_owned(), 1)].into(),
        "it takes no new flows"
    );
    assert_eq!(in_maps(&world), both);
    world.after(Duration::from_secs(29));
    assert_eq!(in_maps(&world), both);
    world.after(Duration::from_secs(2));
    assert_eq!(in_maps(&world), [OTHER.to_owned()].into());
}
