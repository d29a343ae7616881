//! Addresses from pools of the directory.

use std::fs;

use sluice_api::{AddressPoolStatus, ConditionType, Kind, ObjectKey, find_condition, parse_ip};

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
