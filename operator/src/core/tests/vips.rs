//! Which addresses may be VIPs, and for how long.

use std::collections::BTreeSet;

use super::*;

const VIP: &str = "203.0.113.10";

fn vip() -> IpAddr {
    VIP.parse().expect("address")
}

/// `web` is served, in a cluster.
fn in_cluster() -> Sim {
    let mut sim = Sim::new(MANIFESTS);
    sim.world.cluster = Some(Cluster::default());
    sim.settle();
    assert_eq!(sim.ready("web").1, "Live");
    sim
}

fn cluster_ip(sim: &mut Sim, addresses: BTreeSet<IpAddr>) {
    let cluster = sim.world.cluster.as_mut().expect("in a cluster");
    cluster.services.insert(key("dns"), addresses);
}

/// `web` is refused for this reason, and nothing of it is in force.
fn assert_withdrawn(sim: &Sim, reason: &str, part: &str) {
    let (status, found, message) = sim.ready("web");
    assert_eq!((status.as_str(), found.as_str()), ("False", reason));
    let told = message.contains(part) && message.ends_with("nothing is in force");
    assert!(told, "{message}");
    assert!(sim.world.decision(&key("web")).is_none());
}

#[test]
fn a_vip_that_became_an_address_of_a_node_is_withdrawn() {
    let mut sim = served();
    let revision = sim.revision("web");
    sim.node("d2", &[VIP]);
    sim.settle();
    assert_withdrawn(&sim, "VipIsNodeAddress", "address of node d2");
    sim.node("d2", &["10.0.0.251"]);
    sim.settle();
    assert_eq!(sim.ready("web").1, "Live");
    assert!(sim.revision("web") > revision, "no revision is given twice");
}

#[test]
fn a_vip_that_became_a_cluster_ip_is_withdrawn() {
    let mut sim = in_cluster();
    cluster_ip(&mut sim, BTreeSet::from([vip()]));
    sim.settle();
    assert_withdrawn(&sim, "AddressNotUsable", "cluster IP of Service default/dns");
    cluster_ip(&mut sim, BTreeSet::new());
    sim.settle();
    assert_eq!(sim.ready("web").1, "Live");
}

/// The newest spec is refused for something else; then both are told.
#[test]
fn the_withdrawal_is_told_beside_the_refusal_of_another_spec() {
    let mut sim = served();
    sim.edit(VIP, "127.0.0.1");
    sim.settle();
    assert!(sim.world.decision(&key("web")).is_some());
    sim.node("d2", &[VIP]);
    sim.tick();
    assert_withdrawn(&sim, "AddressNotUsable", "loopback");
    let message = sim.ready("web").2;
    let cause = "status.decision.addresses: 203.0.113.10 is an address of node d2";
    assert!(message.contains(cause), "{message}");
}

/// What cannot stay keeps no pool from its new servers either.
#[test]
fn a_withdrawn_decision_holds_no_pool_back() {
    let mut sim = served();
    sim.node("d2", &[VIP]);
    sim.edit("address: 10.0.0.1", "address: \"2001:db8::1\"");
    sim.settle();
    assert_withdrawn(&sim, "VipIsNodeAddress", "node d2");
    assert_eq!(sim.pool_ready("v1").1, "Unused");
}
