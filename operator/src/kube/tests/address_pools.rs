//! Addresses from pools.

use sluice_api::AddressPool;

use super::*;
use crate::core::{REST_MS, SHARDS};

pub(super) fn address_pool(name: &str, version: u64, spec: &Value) -> Item<AddressPool> {
    Item {
        key: ObjectKey::new("", name),
        ..item(name, "u", version, Ok(object("AddressPool", name, spec)))
    }
}

fn by_family() -> VirtualServer {
    let mut object = virtual_server("v1");
    object.spec.addresses = serde_json::from_value(json!([{"family": "IPv4"}])).expect("addresses");
    object
}

fn labels(team: &str) -> std::collections::BTreeMap<String, String> {
    [("team".to_owned(), team.to_owned())].into()
}

fn addresses(index: &Index) -> Vec<String> {
    let decision = decision(index).into_iter();
    let addresses = decision.flat_map(|decision| &decision.content.addresses);
    addresses.map(ToString::to_string).collect()
}

fn stalled(index: &Index) -> String {
    let status = index.virtual_servers.objects[&key("web")].status.as_ref();
    let conditions = &status.expect("a status").conditions;
    let stalled = conditions.iter().find(|it| it.type_ == "Stalled");
    stalled.expect("told").message.clone()
}

#[test]
fn a_namespace_gets_addresses_once_its_labels_say_so() {
    let mut index = index_without_address_pools(by_family(), pool(&fixed()));
    decide(&mut index, 10);
    assert!(stalled(&index).contains("no AddressPool assigns IPv4 addresses to namespace shop"));
    let spec = json!({
        "addresses": ["203.0.113.0/28"], "allow": {"namespaceSelector": {"matchLabels": {"team": "web"}}},
    });
    apply::<AddressPools>(&mut index, address_pool("edge", 11, &spec));
    decide(&mut index, 12);
    assert_eq!(addresses(&index), [""; 0]);
    let namespace = |version, team| Item {
        key: ObjectKey::new("", "shop"),
        ..item("shop", "u", version, Ok(labels(team)))
    };
    apply::<Namespaces>(&mut index, namespace(13, "other"));
    decide(&mut index, 14);
    assert_eq!(addresses(&index), [""; 0]);
    apply::<Namespaces>(&mut index, namespace(15, "web"));
    decide(&mut index, 16);
    assert_eq!(addresses(&index), ["203.0.113.1"]);
    apply::<Namespaces>(&mut index, namespace(17, "other"));
    decide(&mut index, 18);
    assert_eq!(addresses(&index), ["203.0.113.1"], "it stays");
}

/// A virtual server of a time without pools keeps its address. What comes new gets none before there is a pool.
#[test]
fn without_a_pool_nobody_gets_an_address() {
    let mut index = index(virtual_server("v1"), pool(&fixed()));
    decide(&mut index, 10);
    assert_eq!(addresses(&index), ["203.0.113.10"]);
    delete::<AddressPools>(&mut index, ObjectKey::new("", "every"), stamp("u", 11));
    let mut named = virtual_server("v1");
    named.spec.addresses =
        serde_json::from_value(json!([{"ip": "203.0.113.20"}])).expect("addresses");
    apply::<VirtualServers>(&mut index, item("other", "u2", 12, Ok(named)));
    assert!(index.lacks_referents(), "a pool may be on its way");
    decide(&mut index, 13);
    assert_eq!(addresses(&index), ["203.0.113.10"], "it stays");
    let has = |index: &Index| {
        index
            .ledger
            .assignment(&key("other"))
            .expect("it asked")
            .addresses()
            .to_vec()
    };
    assert!(has(&index).is_empty());
    let spec = json!({"addresses": ["203.0.113.20"]});
    apply::<AddressPools>(&mut index, address_pool("edge", 14, &spec));
    decide(&mut index, 15);
    assert_eq!(has(&index).len(), 1);
}

#[test]
fn an_operator_that_starts_anew_knows_who_has_which_address() {
    let edge = || address_pool("edge", 2, &json!({"addresses": ["203.0.113.0/28"]}));
    let mut first = index_without_address_pools(by_family(), pool(&fixed()));
    apply::<AddressPools>(&mut first, edge());
    decide(&mut first, 10);
    assert_eq!(addresses(&first), ["203.0.113.1"]);
    first.look_at_ledger(1);
    let written = std::mem::take(&mut first.shards);
    assert_eq!(written.len(), 1, "one address is in one shard");
    // Somebody deletes the virtual server while no operator runs, and another one comes.
    let texts: Vec<(u8, String)> = (0..SHARDS)
        .map(|shard| (shard, first.ledger.text(Some(shard))))
        .collect();
    let mut second = index_without_address_pools(by_family(), pool(&fixed()));
    delete::<VirtualServers>(&mut second, key("web"), stamp("u", 20));
    apply::<AddressPools>(&mut second, edge());
    second.ledger_read(texts);
    let other = item("other", "u2", 21, Ok(by_family()));
    apply::<VirtualServers>(&mut second, other);
    decide(&mut second, 22);
    let has = |index: &Index, name: &str| {
        let assignment = index.ledger.assignment(&key(name)).expect("it asked");
        assignment.addresses()[0].to_string()
    };
    assert_eq!(has(&second, "other"), "203.0.113.2", "the first one rests");
    apply::<VirtualServers>(&mut second, item("web", "u3", 23, Ok(by_family())));
    decide(&mut second, 24);
    assert_eq!(has(&second, "web"), "203.0.113.1");
}

#[test]
fn what_was_let_go_is_given_to_whoever_waits() {
    let mut index = index_without_address_pools(by_family(), pool(&fixed()));
    let spec = json!({"addresses": ["203.0.113.1"]});
    apply::<AddressPools>(&mut index, address_pool("edge", 2, &spec));
    decide(&mut index, 10);
    apply::<VirtualServers>(&mut index, item("other", "u2", 11, Ok(by_family())));
    decide(&mut index, 12);
    let now = Time(sluice_api::jiff::Timestamp::UNIX_EPOCH);
    let told = |index: &Index, kind: &str| {
        let news = index.address_pool_news(&now);
        let conditions = news[0].1.conditions.clone();
        let condition = conditions.into_iter().find(|it| it.type_ == kind);
        condition.expect("told").status
    };
    assert_eq!(told(&index, "Exhausted"), "True");
    delete::<VirtualServers>(&mut index, key("web"), stamp("u", 13));
    // A node that comes makes all dirty.
    index.dirty = Dirty::All;
    decide(&mut index, 14);
    index.look_at_ledger(REST_MS - 1);
    decide(&mut index, 15);
    assert_eq!(told(&index, "Exhausted"), "True", "it rests");
    index.look_at_ledger(REST_MS);
    decide(&mut index, 16);
    let assignment = index.ledger.assignment(&key("other")).expect("it asked");
    assert_eq!(assignment.addresses()[0].to_string(), "203.0.113.1");
    assert_eq!(told(&index, "Exhausted"), "False");
}
