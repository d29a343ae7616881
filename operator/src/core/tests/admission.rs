use super::*;

/// An edit of a good spec, the reason for which it is refused, and parts of the message.
type Refused = (
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
);

const REFUSED: &[Refused] = &[
    (
        "name: v2, weight: 0",
        "name: v3, weight: 0",
        "PoolNotFound",
        &["spec.pools[1].name", "default/v3", "create it"],
    ),
    (
        "203.0.113.10",
        "2001:db8::10",
        "AddressFamilyMismatch",
        &["spec.pools[0].name", "no IPv6 server", "add one"],
    ),
    (
        "weight: 100",
        "weight: 0",
        "InvalidSpec",
        &["spec.pools[*].weight", "above 0"],
    ),
    (
        "203.0.113.10",
        "10.0.0.1",
        "ServerIsVip",
        &["spec.pools[0].name", "server a", "server's own address"],
    ),
    (
        "203.0.113.10",
        "10.0.0.250",
        "VipIsNodeAddress",
        &["spec.addresses[0].ip", "node d1"],
    ),
    (
        "203.0.113.10",
        "127.0.0.1",
        "AddressNotUsable",
        &["spec.addresses[0].ip", "loopback", "give an address"],
    ),
    (
        "203.0.113.10",
        "169.254.1.1",
        "AddressNotUsable",
        &["link-local"],
    ),
    (
        "203.0.113.10",
        "224.0.0.9",
        "AddressNotUsable",
        &["multicast"],
    ),
    (
        "203.0.113.10",
        "0.0.0.0",
        "AddressNotUsable",
        &["unspecified"],
    ),
    (
        "203.0.113.10",
        "fe80::1",
        "AddressNotUsable",
        &["link-local"],
    ),
    (
        "203.0.113.10",
        "1.2.3",
        "InvalidSpec",
        &["spec.addresses[0].ip"],
    ),
    (
        "mode: NAT",
        "mode: DR",
        "TargetPortMismatch",
        &["server a (10.0.0.1)", "8080", "port 80", "NAT or FullNAT"],
    ),
    (
        "mode: NAT",
        "mode: TUN",
        "TargetPortMismatch",
        &["targetPorts"],
    ),
];

#[test]
fn bad_specs_are_refused_and_the_last_good_one_stays() {
    for (from, to, reason, parts) in REFUSED {
        let mut sim = served();
        sim.edit(from, to);
        sim.assert_refused(reason, parts);
        sim.apply(MANIFESTS);
        sim.settle();
        assert_eq!(sim.ready("web").1, "Live", "after {to}");
    }
}

#[test]
fn a_refused_spec_without_a_predecessor_is_not_served() {
    let mut sim = Sim::new(&MANIFESTS.replace("203.0.113.10", "127.0.0.1"));
    sim.assert_refused("AddressNotUsable", &["nothing is in force"]);
    assert!(sim.world.decision(&key("web")).is_none());
}

#[test]
fn an_agent_at_the_server_translates_ports() {
    let mut sim = Sim::new(&MANIFESTS.replace("mode: NAT", "mode: DR"));
    sim.assert_refused("TargetPortMismatch", &[]);
    sim.node("s1", &["10.0.0.1"]);
    sim.settle();
    assert_eq!(sim.ready("web").1, "Live");
}

#[test]
fn servers_of_nodes_pods_and_services_are_refused_if_the_operator_is_told() {
    let holders = [
        (
            RefusedServers::Nodes,
            HolderKind::Node,
            "is an address of node",
        ),
        (
            RefusedServers::Pods,
            HolderKind::PodCidr,
            "in the range of the pods of node",
        ),
        (
            RefusedServers::Services,
            HolderKind::ClusterIp,
            "is the cluster IP of Service",
        ),
        (
            RefusedServers::Services,
            HolderKind::ServiceCidr,
            "in the range of ServiceCIDR",
        ),
    ];
    for (whose, kind, part) in holders {
        for refused in [true, false] {
            let mut sim = served();
            sim.hold(kind, "x", &["10.9.0.0/24", "10.0.0.1/32"]);
            if refused {
                sim.world.addresses.refuse_servers(&[whose].into());
            }
            // A server in force stays, and nothing that tenants write counts.
            sim.hold(HolderKind::Service, "theirs", &["10.8.0.1/32"]);
            sim.edit("address: 10.0.0.1", "address: 10.8.0.1");
            sim.settle();
            sim.edit("address: 10.0.0.1", "address: 10.9.0.7");
            sim.settle();
            let (status, reason, message) = sim.pool_ready("v1");
            if refused {
                assert_eq!((&*status, &*reason), ("False", "AddressNotUsable"));
                for part in [part, "spec.servers.static[0].address", "--refused-servers"] {
                    assert!(message.contains(part), "{part} in {message}");
                }
            } else {
                assert_eq!(status, "True", "{message}");
            }
        }
    }
}

#[test]
fn a_bad_pool_keeps_its_last_servers() {
    let cases = [
        (
            "address: 10.0.0.1",
            "address: 127.0.0.1",
            "AddressNotUsable",
            "spec.servers.static[0].address",
        ),
        (
            "address: 10.0.0.1",
            "address: 169.254.0.1",
            "AddressNotUsable",
            "link-local",
        ),
        (
            "address: 10.0.0.1",
            "address: \"::1\"",
            "AddressNotUsable",
            "loopback",
        ),
        (
            "address: 10.0.0.1",
            "address: 168.63.129.16",
            "AddressNotUsable",
            "metadata",
        ),
        (
            "address: 10.0.0.1",
            "address: \"fd00:ec2::254\"",
            "AddressNotUsable",
            "metadata",
        ),
        (
            "address: 10.0.0.1",
            "address: 10.0.0.1.1",
            "InvalidSpec",
            "spec.servers.static[0].address",
        ),
    ];
    for (from, to, reason, part) in cases {
        let mut sim = served();
        let (web, v1) = (
            sim.world.decision(&key("web")).cloned(),
            sim.world.pool_decision(&key("v1")).cloned(),
        );
        sim.edit(from, to);
        sim.settle();
        let (status, found, message) = sim.pool_ready("v1");
        assert_eq!(
            (status.as_str(), found.as_str()),
            ("False", reason),
            "{message}"
        );
        assert!(
            message.contains(part) && message.contains("stays in force"),
            "{message}"
        );
        assert_eq!(sim.world.decision(&key("web")).cloned(), web);
        assert_eq!(sim.world.pool_decision(&key("v1")).cloned(), v1);
        assert_eq!(sim.ready("web").1, "Live");
    }
}

#[test]
fn a_pool_that_would_break_what_is_served_keeps_its_last_servers() {
    for (to, reason) in [
        ("203.0.113.10", "ServerIsVip"),
        ("\"2001:db8::1\"", "AddressFamilyMismatch"),
    ] {
        let mut sim = served();
        let v1 = sim.world.pool_decision(&key("v1")).cloned();
        sim.edit("address: 10.0.0.1", &format!("address: {to}"));
        sim.settle();
        let (_, found, message) = sim.pool_ready("v1");
        assert_eq!(found, reason, "{message}");
        assert!(
            message.contains("VirtualServer default/web uses this pool"),
            "{message}"
        );
        assert_eq!(sim.world.pool_decision(&key("v1")).cloned(), v1);
    }
}

#[test]
fn a_virtual_server_and_its_pools_may_change_family_together() {
    let mut sim = served();
    let text = MANIFESTS
        .replace("203.0.113.10", "2001:db8::10")
        .replace("10.0.0.1", "2001:db8::1")
        .replace("10.0.0.2", "2001:db8::2");
    sim.apply(&text);
    sim.settle();
    assert_eq!(sim.ready("web").1, "Live");
    assert_eq!(sim.pool_ready("v1").1, "Live");
    assert!(
        sim.world
            .decision(&key("web"))
            .expect("decided")
            .content
            .addresses[0]
            .is_ipv6()
    );
}

#[test]
fn a_pool_that_is_gone_stays_while_it_is_used() {
    let mut sim = served();
    let v1 = sim.world.pool_decision(&key("v1")).cloned();
    let status = sim
        .world
        .pools
        .remove(&key("v1"))
        .expect("v1")
        .status
        .expect("status");
    sim.world.orphans.insert(key("v1"), status);
    sim.assert_refused("PoolNotFound", &["default/v1"]);
    assert_eq!(sim.world.pool_decision(&key("v1")).cloned(), v1);
    sim.edit(
        "name: v1, weight: 100}, {name: v2, weight: 0",
        "name: v2, weight: 1",
    );
    sim.world.pools.remove(&key("v1"));
    sim.settle();
    assert_eq!(sim.ready("web").1, "Live");
    assert!(sim.world.orphans.is_empty());
}
