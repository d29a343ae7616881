//! Addresses from pools of the directory.

use std::collections::BTreeSet;
use std::fs;

use sluice_api::{
    AddressPoolDecision, AddressPoolStatus, ConditionType, DecidedL2, Kind, ObjectKey,
    find_condition, parse_ip,
};

use crate::harness::{POOLS, Standalone, WEB, assert_parts};

const EDGE: &str = "\
apiVersion: sluice.dev/v1alpha1
kind: AddressPool
metadata: {name: edge}
spec: {addresses: [203.0.113.0/29]}
";

fn by_family(name: &str) -> String {
    let text = WEB.replace("{ip: 203.0.113.10}", "{family: IPv4}");
    text.replace("name: web}", &format!("name: {name}}}"))
}

fn wait_address(s: &mut Standalone, name: &str, address: &str) {
    s.wait(&format!("{address} for {name}"), |s| {
        let decision = s.virtual_server(name)?.status.decision?;
        (decision.content.addresses == [parse_ip(address)?]).then_some(())
    });
    s.wait_live(name);
}

fn wait_pool(s: &mut Standalone, name: &str, kind: ConditionType, status: &str) -> String {
    let key = ObjectKey::new("", name);
    s.wait(&format!("{name} {} {status}", kind.name()), |s| {
        let file = s
            .directory
            .read_status::<AddressPoolStatus>(Kind::AddressPool, &key);
        let conditions = file.expect("no torn file")?.status.conditions;
        let condition = find_condition(&conditions, kind)?;
        (condition.status == status).then(|| condition.message.clone())
    })
}

#[test]
fn addresses_of_a_pool_are_given_and_kept() {
    let mut s = Standalone::started(&[
        ("edge.yaml", EDGE),
        ("pools.yaml", POOLS),
        ("a.yaml", &by_family("a")),
        ("b.yaml", &by_family("b")),
    ]);
    // The first address is the network's, the second one this node's.
    s.agent("d1", &["203.0.113.1"]);
    wait_address(&mut s, "a", "203.0.113.2");
    wait_address(&mut s, "b", "203.0.113.3");
    wait_pool(&mut s, "edge", ConditionType::Ready, "True");
    s.write("c.yaml", WEB);
    let message = s.wait_refused("web", "AddressNotAllowed");
    assert_parts(
        &message,
        &["spec.addresses[0].ip", "no AddressPool has 203.0.113.10"],
    );
    assert!(s.stop().success());
    fs::remove_file(
        s.directory
            .status_path(Kind::AddressPool, &ObjectKey::new("", "edge")),
    )
    .expect("a status");
    s.start();
    wait_pool(&mut s, "edge", ConditionType::Ready, "True");
    wait_address(&mut s, "b", "203.0.113.3");
    // Without the ledger the decisions say who has what.
    s.kill();
    fs::write(s.directory.ledger_path(), "no ledger").expect("written");
    s.write("d.yaml", &by_family("d"));
    s.start();
    wait_address(&mut s, "d", "203.0.113.4");
    wait_address(&mut s, "a", "203.0.113.2");
    s.wait("a ledger that can be read", |s| {
        let text = fs::read_to_string(s.directory.ledger_path()).ok()?;
        text.contains("203.0.113.3").then_some(())
    });
}

/// A pool, and a virtual server with its first address.
fn with_a() -> Standalone {
    let mut s = Standalone::started(&[
        ("edge.yaml", EDGE),
        ("pools.yaml", POOLS),
        ("a.yaml", &by_family("a")),
    ]);
    s.agent("d1", &["10.0.0.250"]);
    wait_address(&mut s, "a", "203.0.113.1");
    s
}

#[test]
fn a_virtual_server_that_comes_back_gets_its_address_back() {
    let mut s = with_a();
    fs::remove_file(s.path.join("a.yaml")).expect("it is there");
    s.wait("a to go", |s| s.virtual_server("a").is_none().then_some(()));
    s.write("b.yaml", &by_family("b"));
    wait_address(&mut s, "b", "203.0.113.2");
    s.write("a.yaml", &by_family("a"));
    wait_address(&mut s, "a", "203.0.113.1");
}

#[test]
fn of_pools_that_overlap_the_first_one_counts() {
    let mut s = with_a();
    // By its name it would be the first.
    s.write("core.yaml", &EDGE.replace("edge", "core"));
    let message = wait_pool(&mut s, "core", ConditionType::Stalled, "True");
    assert_parts(&message, &["spec.addresses[0]", "AddressPool edge"]);
    s.kill();
    s.start();
    let moved = EDGE.replace("203.0.113.0/29", "198.51.100.0/29");
    s.write("edge.yaml", &moved);
    let message = wait_pool(&mut s, "edge", ConditionType::InUseOutside, "True");
    assert_parts(&message, &["203.0.113.1 (VirtualServer default/a)"]);
    wait_pool(&mut s, "core", ConditionType::Ready, "True");
    wait_address(&mut s, "a", "203.0.113.1");
}

fn wait_decision(s: &mut Standalone, l2: Option<&DecidedL2>) {
    let key = ObjectKey::new("", "edge");
    s.wait(&format!("{l2:?}"), |s| {
        let file = s
            .directory
            .read_status::<AddressPoolStatus>(Kind::AddressPool, &key);
        let AddressPoolDecision { l2: decided, .. } =
            file.expect("no torn file")?.status.decision?;
        (decided.as_ref() == l2).then_some(())
    });
}

fn wait_group(s: &mut Standalone, name: &str, group: Option<&str>) {
    s.wait(&format!("{group:?} of {name}"), |s| {
        let decision = s.virtual_server(name)?.status.decision?;
        let mut groups = decision.content.groups.iter();
        (groups.next().map(|group| group.group.as_str()) == group).then_some(())
    });
}

#[test]
fn addresses_of_a_pool_are_in_groups_that_its_nodes_announce() {
    let of_rack = "spec: {announce: {l2: {groups: 2, nodeSelector: {matchLabels: {rack: a}}}}, ";
    let edge = EDGE.replace("spec: {", of_rack);
    let node = |name: &str, rack: &str| {
        format!(
            "apiVersion: sluice.dev/v1alpha1\nkind: LoadBalancerNode\n\
             metadata: {{name: {name}, labels: {{rack: {rack}}}}}\nspec: {{interfaces: [eth0]}}\n"
        )
    };
    let mut s = Standalone::started(&[
        ("edge.yaml", &edge),
        ("pools.yaml", POOLS),
        ("a.yaml", &by_family("a")),
        ("b.yaml", &by_family("b")),
        ("d1.yaml", &node("d1", "a")),
        ("d2.yaml", &node("d2", "b")),
    ]);
    for agent in ["d1", "d2"] {
        s.agent(agent, &["10.0.0.250"]);
    }
    let decided = |nodes: Option<&[&str]>| DecidedL2 {
        gateways: BTreeSet::new(),
        interfaces: Vec::new(),
        nodes: nodes.map(|nodes| nodes.iter().map(|node| (*node).to_owned()).collect()),
        groups: 2,
    };
    wait_decision(&mut s, Some(&decided(Some(&["d1"]))));
    wait_group(&mut s, "a", Some("edge-0"));
    wait_group(&mut s, "b", Some("edge-1"));
    s.write("d2.yaml", &node("d2", "a"));
    wait_decision(&mut s, Some(&decided(Some(&["d1", "d2"]))));
    // The group is kept without the ledger, and by who comes back.
    s.kill();
    fs::remove_file(s.path.join("a.yaml")).expect("it is there");
    fs::remove_file(s.directory.ledger_path()).expect("it is there");
    s.start();
    s.wait("a to go", |s| s.virtual_server("a").is_none().then_some(()));
    s.write("c.yaml", &by_family("c"));
    wait_group(&mut s, "b", Some("edge-1"));
    wait_group(&mut s, "c", Some("edge-0"));
    s.write(
        "edge.yaml",
        &EDGE.replace("spec: {", "spec: {announce: {none: {}}, "),
    );
    wait_decision(&mut s, None);
    wait_group(&mut s, "b", None);
    s.write("edge.yaml", &edge);
    wait_group(&mut s, "b", Some("edge-1"));
    fs::remove_file(s.path.join("edge.yaml")).expect("it is there");
    wait_group(&mut s, "b", None);
}
