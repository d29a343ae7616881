//! The store and the index, without an API server.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sluice_api::{LoadBalancerNode, ObjectKey, RealServerPool, Time, VirtualServer};
use sluice_kube::lease::LeaseFacts;
use sluice_kube::{Item, Stamp};

use super::endpoints::of_pool;
use super::facts::{PodFacts, SliceFacts};
use super::index::Index;
use super::store::{Change, Delta, Store};
use super::watch::{Message, Watched};
use crate::core::{Node, reconcile};

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

fn item<T>(name: &str, uid: &str, version: u64, content: Result<T, &str>) -> Item<T> {
    Item {
        key: key(name),
        stamp: Stamp {
            uid: uid.to_owned(),
            version,
        },
        content: content.map_err(str::to_owned),
    }
}

fn stamp(uid: &str, version: u64) -> Stamp {
    item::<()>("", uid, version, Ok(())).stamp
}

fn listed(items: &[(&str, u64, i32)]) -> Store<i32> {
    let mut store = Store::default();
    store.apply(Delta::Init);
    for (name, version, value) in items {
        store.apply(Delta::InitApply(item(name, "u", *version, Ok(*value))));
    }
    store.apply(Delta::InitDone);
    store
}

fn values(store: &Store<i32>) -> BTreeMap<&str, i32> {
    store
        .objects
        .iter()
        .map(|(key, value)| (key.name.as_str(), *value))
        .collect()
}

#[test]
fn a_partial_list_changes_nothing() {
    let mut store = listed(&[("a", 1, 1), ("b", 2, 2)]);
    assert!(store.apply(Delta::Init).is_empty());
    assert!(
        store
            .apply(Delta::InitApply(item("a", "u", 9, Ok(9))))
            .is_empty()
    );
    assert_eq!(values(&store), [("a", 1), ("b", 2)].into());
    store.apply(Delta::Init);
    store.apply(Delta::InitApply(item("c", "u", 10, Ok(3))));
    assert_eq!(values(&store), [("a", 1), ("b", 2)].into());
    let changes = store.apply(Delta::InitDone);
    assert_eq!(values(&store), [("c", 3)].into());
    assert_eq!(changes.len(), 3);
}

#[test]
fn nothing_is_complete_before_the_first_list() {
    let mut store = Store::default();
    store.apply(Delta::Init);
    store.apply(Delta::InitApply(item("a", "u", 1, Ok(1))));
    assert!(!store.is_complete() && store.objects.is_empty());
    store.apply(Delta::InitDone);
    assert!(store.is_complete());
}

#[test]
fn what_is_older_is_ignored_and_versions_are_numbers() {
    let mut store = listed(&[("a", 9, 1)]);
    let change = store.written(item("a", "u", 10, Ok(2)));
    let expected = Change {
        key: key("a"),
        before: Some(1),
        replaced: false,
    };
    assert_eq!(change, Some(expected));
    assert!(
        store
            .apply(Delta::Apply(item("a", "u", 9, Ok(1))))
            .is_empty()
    );
    assert!(
        store
            .apply(Delta::Apply(item("a", "u", 10, Ok(1))))
            .is_empty()
    );
    assert_eq!(values(&store), [("a", 2)].into());
    store.apply(Delta::Apply(item("a", "u", 100, Ok(3))));
    assert!(
        store
            .apply(Delta::Delete(key("a"), stamp("u", 99)))
            .is_empty()
    );
    assert_eq!(values(&store), [("a", 3)].into());
    assert_eq!(
        store.apply(Delta::Delete(key("a"), stamp("u", 101))).len(),
        1
    );
    assert!(
        store.written(item("a", "u", 102, Ok(4))).is_none(),
        "is gone"
    );
}

#[test]
fn a_list_does_not_undo_what_was_written_meanwhile() {
    let mut store = listed(&[("a", 5, 1)]);
    store.apply(Delta::Init);
    store.apply(Delta::InitApply(item("a", "u", 5, Ok(1))));
    store.written(item("a", "u", 6, Ok(2)));
    store.made(item("b", "u", 7, Ok(3)));
    store.apply(Delta::InitDone);
    assert_eq!(values(&store), [("a", 2), ("b", 3)].into());
}

#[test]
fn what_was_made_is_ahead_until_the_watch_tells_of_it() {
    let mut store = listed(&[("c-1", 5, 1)]);
    assert!(!store.is_ahead("shop", "a-"));
    store.made(item("a-1", "u", 8, Ok(2)));
    store.made(item("b-1", "u", 9, Ok(3)));
    store.made(item("c-1", "u", 10, Ok(3)));
    assert!(store.is_ahead("shop", "a-") && store.is_ahead("shop", "b-"));
    assert!(!store.is_ahead("shop", "c-") && !store.is_ahead("other", "a-"));
    store.apply(Delta::Apply(item("a-1", "u", 7, Ok(1))));
    assert!(store.is_ahead("shop", "a-"), "that was an older one");
    store.apply(Delta::Apply(item("a-1", "u", 8, Ok(2))));
    assert!(!store.is_ahead("shop", "a-"));
    store.apply(Delta::Delete(key("b-1"), stamp("u", 11)));
    assert!(!store.is_ahead("shop", "b-"));
    store.apply(Delta::Apply(item("d-1", "u", 12, Ok(2))));
    store.made(item("d-1", "u", 12, Ok(2)));
    assert!(!store.is_ahead("shop", "d-"), "the watch was faster");
}

/// A cluster restored from a backup counts from an earlier number.
#[test]
fn a_new_list_is_taken_even_if_it_is_older() {
    let mut store = listed(&[("a", 500, 1)]);
    store.apply(Delta::Init);
    store.apply(Delta::InitApply(item("a", "u", 30, Ok(7))));
    store.apply(Delta::InitDone);
    assert_eq!(values(&store), [("a", 7)].into());
    store.apply(Delta::Apply(item("a", "u", 31, Ok(8))));
    assert_eq!(values(&store), [("a", 8)].into());
}

#[test]
fn what_cannot_be_read_keeps_its_last_good_state_and_is_told_once() {
    let mut store = listed(&[("a", 1, 1)]);
    store.apply(Delta::Apply(item("a", "u", 2, Err("bad"))));
    store.apply(Delta::Apply(item("a", "u", 3, Err("bad"))));
    store.apply(Delta::Apply(item("b", "u", 4, Err("bad"))));
    assert_eq!(values(&store), [("a", 1)].into());
    assert_eq!(store.take_unreadable().len(), 2);
    store.apply(Delta::Init);
    store.apply(Delta::InitApply(item("a", "u", 5, Err("bad"))));
    store.apply(Delta::InitDone);
    assert_eq!(values(&store), [("a", 1)].into());
    assert!(store.take_unreadable().is_empty());
    store.apply(Delta::Apply(item("a", "u", 6, Ok(2))));
    assert_eq!(values(&store), [("a", 2)].into());
    store.apply(Delta::Apply(item("a", "u", 7, Err("bad"))));
    assert_eq!(store.take_unreadable().len(), 1, "broken anew");
}

fn object<T: serde::de::DeserializeOwned>(kind: &str, name: &str, spec: &Value) -> T {
    let object = json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name, "namespace": "shop", "uid": "u", "generation": 1},
        "spec": spec,
    });
    serde_json::from_value(object).expect("an object")
}

fn virtual_server(pool: &str) -> VirtualServer {
    let spec = json!({
        "addresses": [{"ip": "203.0.113.10"}],
        "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
        "forwarding": {"mode": "FullNAT"},
        "pools": [{"name": pool, "weight": 1}],
    });
    object("VirtualServer", "web", &spec)
}

fn pool(servers: &Value) -> RealServerPool {
    object("RealServerPool", "v1", &json!({"servers": servers}))
}

fn fixed() -> Value {
    json!({"static": [{"name": "a", "address": "10.0.0.1"}]})
}

/// An index that has read everything, with these two objects.
fn index(virtual_server: VirtualServer, pool: RealServerPool) -> Index {
    let mut index = Index::new("sluice-system");
    index.apply(Message::VirtualServer(Delta::Init));
    index.apply(Message::VirtualServer(Delta::InitApply(item(
        "web",
        "u",
        1,
        Ok(virtual_server),
    ))));
    index.apply(Message::VirtualServer(Delta::InitDone));
    index.apply(Message::RealServerPool(Delta::Init));
    index.apply(Message::RealServerPool(Delta::InitApply(item(
        "v1",
        "u",
        1,
        Ok(pool),
    ))));
    index.apply(Message::RealServerPool(Delta::InitDone));
    index.apply(Message::RolloutPolicy(Delta::InitDone));
    index.apply(Message::LoadBalancerNode(Delta::InitDone));
    index.apply(Message::Lease(Delta::InitDone));
    index.apply(Message::Pod(Delta::InitDone));
    index.apply(Message::Service(Delta::InitDone));
    assert_eq!(index.awaited(), [(Watched::EndpointSlice, None)]);
    index.apply(Message::EndpointSlice(Delta::InitDone));
    assert!(index.awaited().is_empty());
    index
}

/// Decides, and takes the statuses as if they had been written.
fn decide(index: &mut Index, version: u64) {
    let now = Time(sluice_api::jiff::Timestamp::UNIX_EPOCH);
    let outcome = index.with_world(|world| reconcile(world, &now));
    index.select(&outcome);
    for (key, status) in outcome.virtual_servers {
        let mut object = index.virtual_servers.objects[&key].clone();
        object.status = Some(status);
        index.wrote_servers.wrote(&key, &object);
        let uid = object.metadata.uid.clone().unwrap_or_default();
        index
            .virtual_servers
            .written(item(&key.name, &uid, version, Ok(object)));
    }
    for (key, status) in outcome.pools {
        let Some(mut object) = index.pools.objects.get(&key).cloned() else {
            continue;
        };
        object.status = Some(status);
        index
            .pools
            .written(item(&key.name, "u", version, Ok(object)));
    }
}

fn decision(index: &Index) -> Option<&sluice_api::Decision> {
    index.virtual_servers.objects[&key("web")]
        .status
        .as_ref()?
        .decision
        .as_ref()
}

#[test]
fn a_pool_that_is_gone_does_not_take_the_virtual_server_along() {
    let mut index = index(virtual_server("v1"), pool(&fixed()));
    decide(&mut index, 10);
    let before = decision(&index).cloned().expect("is decided");
    index.apply(Message::RealServerPool(Delta::Delete(
        key("v1"),
        stamp("u", 11),
    )));
    decide(&mut index, 12);
    assert_eq!(decision(&index), Some(&before));
    index.apply(Message::RealServerPool(Delta::Apply(item(
        "v1",
        "u2",
        13,
        Ok(pool(&fixed())),
    ))));
    index.dirty = true;
    let now = Time(sluice_api::jiff::Timestamp::UNIX_EPOCH);
    let outcome = index.with_world(|world| reconcile(world, &now));
    let anew = outcome.pools[&key("v1")]
        .decision
        .clone()
        .expect("is decided anew");
    assert!(
        anew.revision > before.revision,
        "a new object has a new revision"
    );
}

#[test]
fn a_foreign_edit_is_no_decision() {
    let mut index = index(virtual_server("v1"), pool(&fixed()));
    decide(&mut index, 10);
    let ours = decision(&index).cloned().expect("is decided");
    let now = Time(sluice_api::jiff::Timestamp::UNIX_EPOCH);
    let again = |index: &mut Index, version, edit: &dyn Fn(&mut VirtualServer)| {
        let mut object = index.virtual_servers.objects[&key("web")].clone();
        edit(&mut object);
        let delta = Delta::Apply(item("web", "u", version, Ok(object.clone())));
        index.apply(Message::VirtualServer(delta));
        let outcome = index.with_world(|world| reconcile(world, &now));
        assert_eq!(
            index.virtual_servers.objects[&key("web")],
            object,
            "is known as it is"
        );
        outcome.virtual_servers[&key("web")].decision.clone()
    };
    let wiped = again(&mut index, 20, &|object| object.status = None);
    assert_eq!(wiped.as_ref(), Some(&ours));
    let edited = again(&mut index, 21, &|object| {
        let status = object.status.get_or_insert_default();
        let mut decision = ours.clone();
        decision.pools[0].weight = 77;
        status.decision = Some(decision);
    });
    assert_eq!(edited.as_ref(), Some(&ours));
    let other = again(&mut index, 22, &|object| {
        let status = object.status.get_or_insert_default();
        let mut decision = ours.clone();
        decision.revision += 5;
        status.decision = Some(decision);
    });
    assert_eq!(
        other.map(|d| d.revision),
        Some(ours.revision + 5),
        "another operator decided"
    );
}

#[test]
fn a_revision_is_never_given_again() {
    let mut index = index(virtual_server("v1"), pool(&fixed()));
    decide(&mut index, 10);
    let highest = index.highest_revision();
    index.apply(Message::VirtualServer(Delta::Delete(
        key("web"),
        stamp("u", 11),
    )));
    index.raise_floor(highest + 5);
    let mut anew = virtual_server("v1");
    anew.metadata.uid = Some("u2".to_owned());
    let delta = Delta::Apply(item("web", "u2", 12, Ok(anew)));
    index.apply(Message::VirtualServer(delta));
    decide(&mut index, 13);
    assert_eq!(decision(&index).map(|d| d.revision), Some(highest + 6));
}

#[test]
fn pods_and_slices_wake_the_pools_that_they_concern() {
    let selecting = pool(&json!({"selector": {"matchLabels": {"app": "web"}}}));
    let mut index = index(virtual_server("v1"), selecting);
    decide(&mut index, 10);
    index.dirty_pools.clear();
    let elsewhere = Item {
        key: ObjectKey::new("other", "p"),
        ..item("p", "u", 20, Ok(PodFacts::default()))
    };
    index.apply(Message::Pod(Delta::Apply(elsewhere)));
    assert!(index.dirty_pools.is_empty());
    index.apply(Message::Pod(Delta::Apply(item(
        "p",
        "u",
        21,
        Ok(PodFacts::default()),
    ))));
    assert!(index.dirty_pools.contains(&key("v1")));
    index.dirty_pools.clear();
    index.apply(Message::Pod(Delta::Apply(item(
        "p",
        "u",
        22,
        Ok(PodFacts::default()),
    ))));
    assert!(
        index.dirty_pools.is_empty(),
        "nothing that counts has changed"
    );

    let slice = json!({
        "metadata": {"name": "x", "namespace": "shop", "labels": {
            "sluice.dev/pool": "v1", "endpointslice.kubernetes.io/managed-by": "operator.sluice.dev",
        }},
        "addressType": "IPv4", "endpoints": [],
    });
    let slice = SliceFacts::of(serde_json::from_value(slice).expect("a slice"));
    index.dirty = false;
    index.apply(Message::EndpointSlice(Delta::Apply(item(
        "x",
        "u",
        23,
        Ok(slice),
    ))));
    assert!(index.dirty && index.dirty_pools.contains(&key("v1")));
    index.dirty_pools.clear();
    index.apply(Message::EndpointSlice(Delta::Delete(
        key("x"),
        stamp("u", 24),
    )));
    assert!(index.dirty_pools.contains(&key("v1")));
}

#[test]
fn a_node_is_not_silent_while_leases_cannot_be_heard() {
    let mut index = index(virtual_server("v1"), pool(&fixed()));
    let mut node: sluice_api::LoadBalancerNode =
        object("LoadBalancerNode", "n1", &json!({"interfaces": ["eth0"]}));
    node.status = Some(sluice_api::LoadBalancerNodeStatus::default());
    let node = Item {
        key: ObjectKey::new("", "n1"),
        ..item("n1", "u", 30, Ok(node))
    };
    index.apply(Message::LoadBalancerNode(Delta::Apply(node)));
    let live = |index: &mut Index| {
        let mut live = false;
        index.with_world(|world| {
            live = world.nodes["n1"].live;
            crate::core::Outcome::default()
        });
        live
    };
    let look = |index: &mut Index, now_ms, answer: Option<Result<Vec<_>, String>>| {
        assert_eq!(index.is_in_doubt(now_ms), answer.is_some());
        if let Some(answer) = answer {
            index.leases_read(answer);
        }
        index.look_at_nodes();
        live(index)
    };
    assert!(look(&mut index, 1_000, None));
    index.apply(Message::Lost(Watched::Lease, "gone".to_owned()));
    assert!(look(&mut index, 100_000, None));
    index.apply(Message::Lease(Delta::Init));
    assert!(look(&mut index, 101_000, None));
    assert!(
        look(&mut index, 142_000, Some(Err("hangs".to_owned()))),
        "the watch hangs"
    );
    assert!(
        look(&mut index, 200_000, Some(Err("hangs".to_owned()))),
        "no time passes without an answer, and it is asked for again"
    );
    let renewed = Time(sluice_api::jiff::Timestamp::UNIX_EPOCH);
    let lease = Item {
        key: ObjectKey::new("sluice-system", "sluice-node-n1"),
        ..item(
            "",
            "u",
            40,
            Ok(LeaseFacts {
                renewed: Some(renewed),
                written: None,
            }),
        )
    };
    let answer = Some(Ok(vec![lease.clone()]));
    assert!(look(&mut index, 245_000, answer), "the watch had not told");
    assert!(look(&mut index, 285_000, None));
    assert!(!look(&mut index, 286_000, Some(Ok(vec![lease]))));
}

#[test]
fn a_detached_node_is_neither_waited_for_nor_missed() {
    let mut index = index(virtual_server("v1"), pool(&fixed()));
    let mut node = LoadBalancerNode::new(
        "n1",
        sluice_api::LoadBalancerNodeSpec {
            role: sluice_api::NodeRole::Director,
            interfaces: vec!["eth0".to_owned()],
            xdp_mode: sluice_api::XdpMode::Auto,
        },
    );
    node.status = Some(sluice_api::LoadBalancerNodeStatus::default());
    let tell = |index: &mut Index, version, node: &LoadBalancerNode| {
        let mut told = item("n1", "u", version, Ok(node.clone()));
        told.key = ObjectKey::new("", "n1");
        index.apply(Message::LoadBalancerNode(Delta::Apply(told)));
        index.look_at_nodes();
        index.known_nodes.contains_key("n1")
    };
    assert!(tell(&mut index, 20, &node));
    sluice_api::set_condition(
        &mut node.status.get_or_insert_default().conditions,
        sluice_api::ConditionType::Detached,
        true,
        sluice_api::Reason::DetachRequested,
        "",
        1,
        &Time(sluice_api::jiff::Timestamp::UNIX_EPOCH),
    );
    assert!(!tell(&mut index, 21, &node));
}

#[test]
fn slices_stay_until_no_node_forwards_by_them() {
    let selecting = json!({"selector": {"matchLabels": {"app": "web"}}});
    let mut index = index(virtual_server("v1"), pool(&selecting));
    decide(&mut index, 10);
    let slice = json!({
        "metadata": {"name": "x", "namespace": "shop", "labels": {
            "sluice.dev/pool": "v1", "endpointslice.kubernetes.io/managed-by": "operator.sluice.dev",
        }},
        "addressType": "IPv4", "endpoints": [],
    });
    let slice = SliceFacts::of(serde_json::from_value(slice).expect("a slice"));
    let slice = item("x", "u", 11, Ok(slice));
    index.apply(Message::EndpointSlice(Delta::Apply(slice)));
    let mut object = index.pools.objects[&key("v1")].clone();
    object.spec = pool(&fixed()).spec;
    let object = item("v1", "u", 12, Ok(object));
    index.apply(Message::RealServerPool(Delta::Apply(object)));
    let deleted = |index: &Index| of_pool(index, &key("v1")).map(|plan| plan.delete);
    let now = Time(sluice_api::jiff::Timestamp::UNIX_EPOCH);
    let outcome = index.with_world(|world| reconcile(world, &now));
    index.select(&outcome);
    assert_eq!(deleted(&index), None, "the decision in force names them");

    decide(&mut index, 13);
    let status = index.pools.objects[&key("v1")].status.clone();
    let revision = status.and_then(|status| status.decision).expect("decided");
    let mut node = Node {
        status: sluice_api::LoadBalancerNodeStatus::default(),
        live: true,
        wanted: true,
        starting: false,
    };
    index.known_nodes.insert("n1".to_owned(), node.clone());
    assert_eq!(deleted(&index), None, "a node has not heard of the new one");
    node.status.acknowledged_pool_revision = revision.revision;
    index.known_nodes.insert("n1".to_owned(), node);
    assert_eq!(deleted(&index), Some(vec!["x".to_owned()]));
}

#[test]
fn a_refused_pool_goes_on_with_the_pods_that_it_had() {
    let selecting = json!({"selector": {"matchLabels": {"app": "web"}}});
    let mut index = index(virtual_server("v1"), pool(&selecting));
    assert_eq!(of_pool(&index, &key("v1")), None, "nothing is decided yet");
    decide(&mut index, 10);
    let apply_pod = |index: &mut Index, name: &str, app: &str, address: &str| {
        let pod = PodFacts {
            labels: [("app".to_owned(), app.to_owned())].into(),
            addresses: vec![address.parse().expect("an address")],
            ready: true,
            ..PodFacts::default()
        };
        index.apply(Message::Pod(Delta::Apply(item(name, "u", 20, Ok(pod)))));
    };
    let addresses = |index: &Index| -> Vec<String> {
        let plan = of_pool(index, &key("v1")).expect("a plan");
        let endpoints = plan.gaining.into_iter().filter_map(|slice| slice.endpoints);
        endpoints.flatten().flat_map(|e| e.addresses).collect()
    };
    apply_pod(&mut index, "a", "web", "10.0.0.1");
    apply_pod(&mut index, "b", "other", "10.0.0.2");
    assert_eq!(addresses(&index), ["10.0.0.1"]);

    let edit = |index: &mut Index, version, spec: &Value| {
        let mut object = index.pools.objects[&key("v1")].clone();
        object.spec = pool(spec).spec;
        let object = item("v1", "u", version, Ok(object));
        index.apply(Message::RealServerPool(Delta::Apply(object)));
        decide(index, version + 1);
        index.dirty_pools.clear();
    };
    edit(&mut index, 30, &json!({"serviceName": "missing"}));
    apply_pod(&mut index, "c", "web", "10.0.0.3");
    assert!(index.dirty_pools.contains(&key("v1")));
    assert_eq!(addresses(&index), ["10.0.0.1", "10.0.0.3"]);

    let other = json!({"selector": {"matchLabels": {"app": "other"}}});
    edit(&mut index, 40, &other);
    assert_eq!(addresses(&index), ["10.0.0.2"], "is corrected");
}

#[test]
fn only_new_objects_lack_what_they_name() {
    let mut index = index(virtual_server("v2"), pool(&fixed()));
    assert!(index.lacks_referents());
    decide(&mut index, 10);
    assert!(!index.lacks_referents(), "it has been told so");
    let index = self::index(virtual_server("v1"), pool(&fixed()));
    assert!(!index.lacks_referents());
}
