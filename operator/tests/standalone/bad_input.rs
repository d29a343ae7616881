//! Users' mistakes: each is told with field and remedy, while everything else goes on.

use crate::harness::{OTHER, POLICY, POOLS, Standalone, WEB, assert_parts};

fn served() -> Standalone {
    let mut s = Standalone::started(&[
        ("web.yaml", WEB),
        ("pools.yaml", POOLS),
        ("other.yaml", OTHER),
    ]);
    s.agent("d1", &["10.0.0.250"]);
    s.wait_live("web");
    s.wait_live("other");
    s
}

/// Edits one file, waits for the refusal, and checks that all decisions are what they were; then takes the edit back.
fn edited(file: &str, text: &str, refused: impl Fn(&mut Standalone) -> String, parts: &[&str]) {
    let mut s = served();
    let before = s.decisions();
    let good = std::fs::read_to_string(s.path.join(file)).expect("manifest");
    assert_ne!(good, text, "the edit changes nothing");
    s.write(file, text);
    let message = refused(&mut s);
    assert_parts(&message, parts);
    assert_parts(&message, &["stays in force"]);
    assert_eq!(s.decisions(), before);
    s.wait_live("other");
    s.kill();
    s.start();
    s.pass(std::time::Duration::from_millis(800));
    assert_eq!(s.decisions(), before, "after a restart");
    s.write(file, &good);
    s.wait_live("web");
    s.wait("pool accepted", |s| {
        let conditions = s.pool("v1")?.status.conditions;
        conditions
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True")
            .then_some(())
    });
}

fn web(from: &str, to: &str, reason: &str, parts: &[&str]) {
    edited(
        "web.yaml",
        &WEB.replace(from, to),
        |s| s.wait_refused("web", reason),
        parts,
    );
}

fn pool(from: &str, to: &str, reason: &str, parts: &[&str]) {
    edited(
        "pools.yaml",
        &POOLS.replace(from, to),
        |s| s.wait_pool_refused("v1", reason),
        parts,
    );
}

#[test]
fn a_pool_that_does_not_exist() {
    web(
        "name: v2, weight: 0",
        "name: v3, weight: 0",
        "PoolNotFound",
        &["spec.pools[1].name", "default/v3", "create it or correct"],
    );
}

#[test]
fn an_address_family_mismatch() {
    web(
        "203.0.113.10",
        "\"2001:db8::1\"",
        "AddressFamilyMismatch",
        &["spec.pools[0].name", "no IPv6 server", "add one"],
    );
}

#[test]
fn weights_that_sum_up_to_nothing() {
    web(
        "weight: 100",
        "weight: 0",
        "InvalidSpec",
        &["spec.pools[*].weight", "above 0"],
    );
}

#[test]
fn a_static_server_equal_to_the_vip() {
    web(
        "203.0.113.10",
        "10.0.0.1",
        "ServerIsVip",
        &["spec.servers.static[].address", "server's own address"],
    );
    pool(
        "10.0.0.1",
        "203.0.113.10",
        "ServerIsVip",
        &["spec.servers.static", "VirtualServer default/web"],
    );
}

#[test]
fn a_vip_that_is_a_nodes_own() {
    web(
        "203.0.113.10",
        "10.0.0.250",
        "VipIsNodeAddress",
        &[
            "spec.addresses[0].ip",
            "node d1",
            "give one that no node has",
        ],
    );
}

#[test]
fn a_vip_is_checked_against_nodes_that_are_still_starting() {
    let node = "\
apiVersion: sluice.dev/v1alpha1
kind: LoadBalancerNode
metadata: {name: d1}
spec: {interfaces: [eth0]}
";
    let own = WEB.replace("203.0.113.10", "10.0.0.250");
    let mut s = Standalone::started(&[
        ("node.yaml", node),
        ("web.yaml", &own),
        ("pools.yaml", POOLS),
        ("other.yaml", OTHER),
        ("policy.yaml", POLICY),
    ]);
    s.wait("status", |s| s.virtual_server("web"));
    s.pass(std::time::Duration::from_millis(600));
    s.agent("d1", &["10.0.0.250"]);
    s.wait_refused("web", "VipIsNodeAddress");
    assert!(
        s.virtual_server("web")
            .expect("there")
            .status
            .decision
            .is_none()
    );
    s.wait_live("other");
    assert!(!s.log().contains("AddressConflict"));
}

#[test]
fn a_node_that_does_not_report_delays_admission_only_shortly() {
    let node = "{apiVersion: sluice.dev/v1alpha1, kind: LoadBalancerNode, metadata: {name: d1}, spec: {interfaces: [eth0]}}";
    let mut s = Standalone::started(&[
        ("node.yaml", node),
        ("web.yaml", WEB),
        ("pools.yaml", POOLS),
        ("policy.yaml", POLICY),
    ]);
    s.wait("decision", |s| {
        (s.weights("web")? == [90, 10]).then_some(())
    });
    s.assert_quiet_log();
}

#[test]
fn a_vip_that_nobody_can_reach() {
    for (ip, what) in [
        ("127.0.0.1", "loopback"),
        ("\"::1\"", "loopback"),
        ("239.1.1.1", "multicast"),
        ("\"ff02::1\"", "multicast"),
    ] {
        web(
            "203.0.113.10",
            ip,
            "AddressNotUsable",
            &["spec.addresses[0].ip", what, "give an address"],
        );
    }
}

#[test]
fn a_static_server_that_nobody_can_reach() {
    for (ip, what) in [
        ("127.0.0.1", "loopback"),
        ("169.254.0.9", "link-local"),
        ("\"fe80::1\"", "link-local"),
    ] {
        pool(
            "10.0.0.1",
            ip,
            "AddressNotUsable",
            &["spec.servers.static[0].address", what, "give an address"],
        );
    }
}

#[test]
fn a_target_port_that_nothing_translates() {
    for mode in ["DR", "TUN"] {
        web(
            "mode: NAT",
            &format!("mode: {mode}"),
            "TargetPortMismatch",
            &["8080", "port 80", "targetPorts", "run an agent", "NAT"],
        );
    }
}

#[test]
fn a_target_port_is_fine_where_an_agent_translates() {
    let mut s = Standalone::started(&[
        ("web.yaml", &WEB.replace("mode: NAT", "mode: DR")),
        ("pools.yaml", POOLS),
    ]);
    s.agent("d1", &["10.0.0.250"]);
    s.wait_refused("web", "TargetPortMismatch");
    s.agent("s1", &["10.0.0.1"]);
    s.wait_live("web");
}

#[test]
fn two_virtual_servers_on_one_vip_and_port() {
    let mut s = served();
    let before = s.decisions();
    // By name and by file it would come first; what is served wins.
    s.write("a.yaml", &WEB.replace("name: web", "name: a"));
    let message = s.wait_refused("a", "AddressConflict");
    assert_parts(
        &message,
        &[
            "spec.addresses[0].ip",
            "spec.ports[0].port",
            "203.0.113.10 port 80",
            "default/web",
            "choose another",
        ],
    );
    assert_eq!(s.decisions(), before);
    s.kill();
    s.start();
    s.pass(std::time::Duration::from_millis(800));
    assert_eq!(s.decisions(), before, "after a restart");
    std::fs::remove_file(s.path.join("web.yaml")).expect("remove");
    s.wait_live("a");
    assert!(s.virtual_server("web").is_none());
}

#[test]
fn two_policies_on_one_virtual_server() {
    let mut s = served();
    s.write("policy.yaml", POLICY);
    s.wait("first step", |s| {
        (s.weights("web")? == [90, 10]).then_some(())
    });
    s.write(
        "a-policy.yaml",
        &POLICY.replace("name: roll", "name: a-second"),
    );
    let message = s.wait_policy_refused("a-second", "PolicyConflict");
    assert_parts(
        &message,
        &["spec.virtualServerName", "default/roll", "remove one"],
    );
    assert_eq!(s.weights("web"), Some(vec![90, 10]));
    assert!(s.policy("roll").expect("there").status.run.is_some());
}

#[test]
fn broken_yaml() {
    let mut s = served();
    let before = s.decisions();
    for (text, parts) in [
        (WEB.replace("spec:", "spec: ["), ["line ", "not valid YAML"]),
        (
            WEB.replace("addresses:", "adresses:"),
            [
                "line 5: document 1: VirtualServer default/web: spec.adresses",
                "unknown field",
            ],
        ),
        (
            WEB.replace("port: 80", "port: eighty"),
            ["spec.ports[0].port", "must be a whole number"],
        ),
        (
            WEB.replace("  forwarding: {mode: NAT}\n", ""),
            ["spec.forwarding", "is missing: add it"],
        ),
        (
            WEB.replace("kind: VirtualServer", "kind: VirtualService"),
            ["line 2", "kind: must be one of"],
        ),
    ] {
        s.write("web.yaml", &text);
        let report = s.wait("report", |s| {
            s.report("web.yaml")
                .filter(|r| r.errors.iter().any(|e| e.contains(parts[1])))
        });
        assert_parts(&report.errors.join("\n"), &parts);
        assert_parts(&report.serving, &["last version"]);
        s.wait("log", |s| {
            parts
                .iter()
                .all(|part| s.log().contains(part))
                .then_some(())
        });
        assert_eq!(s.decisions(), before);
    }
    s.kill();
    s.start();
    s.pass(std::time::Duration::from_millis(800));
    assert_eq!(s.decisions(), before, "after a restart with a broken file");
    s.write("web.yaml", &WEB.replace("weight: 100", "weight: 50"));
    s.wait("new weights", |s| {
        (s.weights("web")? == [50, 0]).then_some(())
    });
    s.wait("report removed", |s| {
        s.report("web.yaml").is_none().then_some(())
    });
}

#[test]
fn one_object_in_two_files() {
    let mut s = served();
    let before = s.decisions();
    s.write("zzz.yaml", &WEB.replace("weight: 100", "weight: 1"));
    let report = s.wait("report", |s| s.report("zzz.yaml"));
    assert_parts(
        &report.errors.join("\n"),
        &[
            "VirtualServer default/web is already given in web.yaml",
            "remove it from one",
        ],
    );
    s.pass(std::time::Duration::from_millis(600));
    assert_eq!(s.decisions(), before);
}
