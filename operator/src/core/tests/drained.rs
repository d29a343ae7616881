//! Servers that somebody drains.

use serde_json::json;

use super::*;

const NAMED: &str = "metadata: {name: v1}";

/// The manifests, where the first pool drains what this text says.
fn draining(text: &str) -> String {
    let annotations = json!({DRAINED_SERVERS_ANNOTATION: text});
    assert!(MANIFESTS.contains(NAMED));
    let metadata = format!("metadata: {{name: v1, annotations: {annotations}}}");
    MANIFESTS.replace(NAMED, &metadata)
}

/// An entry that ends so many seconds after the start.
fn until(seconds: i64) -> String {
    let until = Timestamp::from_second(1_700_000_000 + seconds).expect("time");
    json!([{"address": "10.0.0.1", "until": until}]).to_string()
}

fn drained(sim: &Sim) -> usize {
    let decision = sim.world.pool_decision(&key("v1")).expect("decided");
    decision.content.drained.len()
}

fn taking(sim: &Sim) -> u32 {
    let status = sim.world.pools[&key("v1")].status.as_ref();
    status.expect("status").ready_servers
}

#[test]
fn a_drained_server_takes_no_flows_until_its_time_is_over() {
    let mut sim = Sim::new(MANIFESTS);
    sim.settle();
    assert_eq!((drained(&sim), taking(&sim)), (0, 1));
    let before = sim
        .world
        .pool_decision(&key("v1"))
        .expect("decided")
        .revision;
    let end = sim.seconds + 20;
    sim.apply(&draining(&until(end)));
    sim.tick();
    let decision = sim.world.pool_decision(&key("v1")).expect("decided");
    assert!(decision.revision > before, "nodes are to hear of it");
    assert_eq!((drained(&sim), taking(&sim)), (1, 0));
    sim.settle();
    assert_eq!(sim.pool_ready("v1").1, "AwaitingServers");
    while sim.seconds < end - 1 {
        sim.tick();
    }
    assert_eq!(drained(&sim), 1);
    sim.settle();
    assert_eq!((drained(&sim), taking(&sim)), (0, 1), "its time is over");
    sim.apply(&draining("[]"));
    sim.settle();
    assert_eq!(drained(&sim), 0);
}

#[test]
fn a_pool_that_is_refused_drains_all_the_same() {
    let mut sim = Sim::new(MANIFESTS);
    sim.settle();
    let text = json!([{"address": "10.0.0.1"}]).to_string();
    let wrong = draining(&text).replace("address: 10.0.0.1}", "address: 127.0.0.1}");
    sim.apply(&wrong);
    sim.settle();
    let (_, reason, message) = sim.pool_ready("v1");
    assert_eq!(reason, "AddressNotUsable", "{message}");
    assert_eq!(drained(&sim), 1);
    sim.apply(&wrong.replace("10.0.0.1", "10.0.0.9"));
    sim.settle();
    let decision = sim.world.pool_decision(&key("v1")).expect("decided");
    assert_eq!(decision.content.drained[0].address.to_string(), "10.0.0.9");
}

#[test]
fn an_annotation_that_is_wrong_changes_nothing_and_is_told() {
    let mut sim = Sim::new(MANIFESTS);
    sim.apply(&draining(&until(1_000)));
    sim.settle();
    let before = sim.world.pool_decision(&key("v1")).cloned();
    sim.apply(&draining("10.0.0.1"));
    sim.settle();
    let (_, reason, message) = sim.pool_ready("v1");
    assert_eq!(reason, "InvalidSpec");
    assert!(
        message.contains("metadata.annotations[sluice.dev/drained-servers]"),
        "{message}"
    );
    assert_eq!(sim.world.pool_decision(&key("v1")), before.as_ref());
    sim.seconds += 1_000;
    sim.settle();
    assert_eq!(drained(&sim), 0, "the end that was read counts");
}
