//! Which addresses may be VIPs, and for how long.

use super::*;

const VIP: &str = "203.0.113.10";

const BLOCK: &str = "203.0.113.10/32";

/// Whoever may have the VIP, in blocks of these sizes, what a newcomer is told, and whether an incumbent loses it.
const HOLDERS: [(HolderKind, &str, &str, &str, bool); 9] = [
    (
        HolderKind::Node,
        BLOCK,
        "VipIsNodeAddress",
        "is an address of node default/x",
        true,
    ),
    (
        HolderKind::ClusterIp,
        BLOCK,
        "AddressNotUsable",
        "is the cluster IP of Service default/x",
        true,
    ),
    (
        HolderKind::ServiceCidr,
        "203.0.112.0/20",
        "AddressNotUsable",
        "is in the range of ServiceCIDR default/x",
        false,
    ),
    (
        HolderKind::PodCidr,
        "203.0.113.0/24",
        "AddressNotUsable",
        "is in the range of the pods of node default/x",
        false,
    ),
    (
        HolderKind::Gateway,
        BLOCK,
        "AddressNotUsable",
        "is a gateway of AddressPool default/x",
        false,
    ),
    (
        HolderKind::Reserved,
        "203.0.0.0/16",
        "AddressNotUsable",
        "is in the reserved range x",
        false,
    ),
    (
        HolderKind::Service,
        BLOCK,
        "AddressNotUsable",
        "is an external IP of Service default/x",
        false,
    ),
    (
        HolderKind::LoadBalancer,
        BLOCK,
        "AddressNotUsable",
        "is a load balancer address of Service default/x",
        false,
    ),
    (
        HolderKind::EndpointSlice,
        BLOCK,
        "AddressNotUsable",
        "is an endpoint of EndpointSlice default/x",
        false,
    ),
];

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
fn a_newcomer_is_refused_what_is_somebody_elses() {
    for (kind, block, reason, part, _) in HOLDERS {
        let mut sim = Sim::new(MANIFESTS);
        sim.hold(kind, "x", &[block]);
        sim.settle();
        assert_withdrawn(&sim, reason, part);
        sim.hold(kind, "x", &["203.0.113.11/32", "198.51.100.0/24"]);
        sim.settle();
        assert_eq!(sim.ready("web").1, "Live", "{kind:?}");
    }
}

#[test]
fn a_newcomer_is_refused_what_is_a_gateway_and_an_incumbent_stays() {
    let gateway = |sim: &mut Sim, gateway: &str| {
        let status = serde_json::json!({"acknowledgedRevision": 0, "interfaces": [
            {"name": "eth0", "attachMode": "Native", "gateways": [gateway]},
        ]});
        sim.node("d2", &["10.0.0.251"]);
        let node = sim.world.nodes.get_mut("d2").expect("a node");
        let read: LoadBalancerNodeStatus = serde_json::from_value(status).expect("a status");
        node.status.interfaces = read.interfaces;
    };
    let mut sim = Sim::new(MANIFESTS);
    gateway(&mut sim, VIP);
    sim.settle();
    assert_withdrawn(&sim, "AddressNotUsable", "is the gateway of node d2");
    gateway(&mut sim, "10.0.0.1");
    sim.settle();
    assert_eq!(sim.ready("web").1, "Live");
    gateway(&mut sim, VIP);
    sim.settle();
    assert_eq!(sim.ready("web").1, "Live");
}

/// Whoever may write a Service or an EndpointSlice takes nobody's VIP. Not even its owner notices: nothing is written.
#[test]
fn what_others_claim_later_withdraws_no_incumbent() {
    for (kind, block, reason, part, withdraws) in HOLDERS {
        let mut sim = served();
        let before = sim.world.virtual_servers[&key("web")].clone();
        sim.hold(kind, "x", &[block]);
        sim.settle();
        if withdraws {
            assert_withdrawn(&sim, reason, part);
            sim.hold(kind, "x", &[]);
            sim.settle();
            assert_eq!(sim.ready("web").1, "Live");
            continue;
        }
        let web = &sim.world.virtual_servers[&key("web")];
        assert_eq!(web.status, before.status, "{kind:?}");
        // Nor may it do without a change of its own.
        sim.edit("port: 80}", "port: 81}");
        sim.settle();
        assert_eq!(sim.ready("web").1, "Live", "{kind:?}");
        // A second VIP is new, the first is not.
        sim.hold(kind, "y", &["198.51.100.9/32"]);
        sim.edit(VIP, "198.51.100.9");
        sim.assert_refused(reason, &["198.51.100.9", "spec.addresses[0].ip"]);
    }
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
