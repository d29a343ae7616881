//! The index, without an API server.

mod address_pools;
mod addresses;
mod apply_pools;
mod departures;
mod detach;
mod server;
mod slices;

use std::sync::Arc;

use serde_json::{Value, json};
use sluice_api::jiff::Timestamp;
use sluice_api::{
    DRAINED_SERVERS_ANNOTATION, Kind, LoadBalancerNode, ObjectKey, RealServerPool, Time,
    VirtualServer,
};
use sluice_kube::error::RequestError;
use sluice_kube::lease::LeaseFacts;
use sluice_kube::watched::{Watched, take};
use sluice_kube::{Event, Item, Stamp};

use super::endpoints::of_pool;
use super::events::Events;
use super::facts::{PodFacts, SliceFacts};
use super::flight::{Ground, fly};
use super::index::Index;
use super::watch::{
    AddressPools, KubeNodes, Leases, Namespaces, Nodes, PeersList, Pods, Policies, Pools,
    ServiceCidrs, Services, Slices, VipGroups, VirtualServers,
};
use super::writer::Writer;
use crate::core::{Dirty, Node, Standing, Trust};
use crate::metrics::Metrics;
use crate::order::{Next, Schedule};

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

/// A slice that the operator wrote for the pool `v1`.
fn own_slice(name: &str) -> SliceFacts {
    let slice = json!({
        "metadata": {
            "name": name, "namespace": "shop",
            "labels": {
                "sluice.dev/pool": "v1", "endpointslice.kubernetes.io/managed-by": "operator.sluice.dev",
            },
            "ownerReferences": [{
                "apiVersion": "sluice.dev/v1alpha1", "kind": "RealServerPool", "name": "v1", "uid": "u", "controller": true,
            }],
        },
        "addressType": "IPv4", "endpoints": [],
    });
    SliceFacts::of(serde_json::from_value(slice).expect("a slice"))
}

fn list<W: Watched<Index = Index>>(index: &mut Index, items: Vec<Item<W::Kept>>) {
    take::<W>(index, Event::Begin);
    take::<W>(index, Event::List(items, ()));
}

fn apply<W: Watched<Index = Index>>(index: &mut Index, item: Item<W::Kept>) {
    take::<W>(index, Event::Apply(item));
}

fn delete<W: Watched<Index = Index>>(index: &mut Index, key: ObjectKey, stamp: Stamp) {
    take::<W>(index, Event::Delete(key, stamp));
}

/// An index that has read everything, with these two objects, and any address for everybody.
fn index(virtual_server: VirtualServer, pool: RealServerPool) -> Index {
    let mut index = index_without_address_pools(virtual_server, pool);
    let spec =
        json!({"addresses": ["0.0.0.0/0", "::/0"], "autoAssign": false, "sharing": "Cluster"});
    apply::<AddressPools>(&mut index, address_pools::address_pool("every", 1, &spec));
    index
}

fn index_without_address_pools(virtual_server: VirtualServer, pool: RealServerPool) -> Index {
    let mut index = Index::new("sluice-system");
    let web = item("web", "u", 1, Ok(virtual_server));
    list::<VirtualServers>(&mut index, vec![web]);
    list::<Pools>(&mut index, vec![item("v1", "u", 1, Ok(pool))]);
    list::<Policies>(&mut index, Vec::new());
    list::<Nodes>(&mut index, Vec::new());
    list::<Leases>(&mut index, Vec::new());
    list::<VipGroups>(&mut index, Vec::new());
    list::<Pods>(&mut index, Vec::new());
    list::<Services>(&mut index, Vec::new());
    list::<PeersList>(&mut index, Vec::new());
    list::<KubeNodes>(&mut index, Vec::new());
    list::<ServiceCidrs>(&mut index, Vec::new());
    list::<Namespaces>(&mut index, Vec::new());
    list::<AddressPools>(&mut index, Vec::new());
    assert_eq!(index.awaited(), [(Slices::NAME, None)]);
    list::<Slices>(&mut index, Vec::new());
    assert!(index.awaited().is_empty());
    index.ledger_read([]);
    index
}

/// Decides, and takes the statuses as if they had been written.
fn decide(index: &mut Index, version: u64) {
    let now = Time(sluice_api::jiff::Timestamp::UNIX_EPOCH);
    let outcome = index.decide(&now);
    for (key, status) in outcome.virtual_servers {
        let mut object = index.virtual_servers.objects[&key].clone();
        object.status = Some(status);
        index.wrote_servers.wrote(&key, &object);
        let uid = object.metadata.uid.clone().unwrap_or_default();
        index
            .virtual_servers
            .written(item(&key.name, &uid, version, Ok(object)));
        index.changed((Kind::VirtualServer, key));
    }
    for (key, status) in outcome.pools {
        let Some(mut object) = index.pools.objects.get(&key).cloned() else {
            continue;
        };
        object.status = Some(status);
        index
            .pools
            .written(item(&key.name, "u", version, Ok(object)));
        index.changed((Kind::RealServerPool, key));
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
    delete::<Pools>(&mut index, key("v1"), stamp("u", 11));
    decide(&mut index, 12);
    assert_eq!(decision(&index), Some(&before));
    apply::<Pools>(&mut index, item("v1", "u2", 13, Ok(pool(&fixed()))));
    let now = Time(sluice_api::jiff::Timestamp::UNIX_EPOCH);
    let outcome = index.decide(&now);
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
        let changed = item("web", "u", version, Ok(object.clone()));
        apply::<VirtualServers>(index, changed);
        let outcome = index.decide(&now);
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
        decision.content.pools[0].weight = 77;
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
fn a_decision_that_another_operator_completed_stays_complete() {
    let mut index = index(virtual_server("v1"), pool(&fixed()));
    decide(&mut index, 10);
    let complete = |index: &mut Index, version, revision| {
        let mut object = index.virtual_servers.objects[&key("web")].clone();
        let status = object.status.get_or_insert_default();
        let decision = status.decision.as_mut().expect("is decided");
        decision.complete_revision = revision;
        apply::<VirtualServers>(index, item("web", "u", version, Ok(object)));
        let now = Time(sluice_api::jiff::Timestamp::UNIX_EPOCH);
        let outcome = index.decide(&now);
        let decision = outcome.virtual_servers[&key("web")].decision.as_ref();
        decision.map(|decision| decision.complete_revision)
    };
    let ours = decision(&index).map_or(0, |decision| decision.complete_revision);
    assert_eq!(complete(&mut index, 20, ours + 3), Some(ours + 3));
}

/// The watch may have told of the other version before the answer comes that tells why a write was not taken.
#[tokio::test]
async fn a_write_that_came_too_late_is_followed_by_a_decision() {
    let mut index = index(virtual_server("v1"), pool(&fixed()));
    decide(&mut index, 10);
    let config = kube::Config::new("http://127.0.0.1:1".parse().expect("an address"));
    let client = kube::Client::try_from(config).expect("a client");
    let metrics = Arc::new(Metrics::default());
    let writer = Writer::new(client.clone(), Arc::clone(&metrics));
    let mut schedule = Schedule::new(1);
    schedule.raise(index.highest_revision());
    let now = Time(sluice_api::jiff::Timestamp::UNIX_EPOCH);
    let outcome = index.decide(&now);
    schedule.decide(&index, outcome);
    let Next::Write(write) = schedule.next(&index, 0) else {
        panic!("nothing is written");
    };
    let object = write.object.clone();
    // Nobody listens there.
    let landing = fly(&mut index, writer, *write).await;
    let outcome = index.decide(&now);
    schedule.decide(&index, outcome);
    assert!(index.dirty.is_empty());
    let events = Events::start(client, &metrics);
    let mut ground = Ground {
        index: &mut index,
        schedule: &mut schedule,
        events: &events,
        now_ms: 1,
    };
    ground.land(landing);
    assert_eq!(index.dirty, Dirty::Objects([object].into()));
}

#[test]
fn a_revision_is_never_given_again() {
    let mut index = index(virtual_server("v1"), pool(&fixed()));
    decide(&mut index, 10);
    let highest = index.highest_revision();
    delete::<VirtualServers>(&mut index, key("web"), stamp("u", 11));
    index.raise_floor(highest + 5);
    let mut anew = virtual_server("v1");
    anew.metadata.uid = Some("u2".to_owned());
    apply::<VirtualServers>(&mut index, item("web", "u2", 12, Ok(anew)));
    decide(&mut index, 13);
    assert_eq!(decision(&index).map(|d| d.revision), Some(highest + 6));
}

#[test]
fn pods_and_slices_wake_the_pools_that_they_concern() {
    let selecting = pool(&json!({"selector": {"matchLabels": {"app": "web"}}}));
    let mut index = index(virtual_server("v1"), selecting);
    decide(&mut index, 10);
    index.dirty_pools.clear();
    let pod = |app: &str| PodFacts {
        labels: [("app".to_owned(), app.to_owned())].into(),
        ..PodFacts::default()
    };
    let elsewhere = Item {
        key: ObjectKey::new("other", "p"),
        ..item("p", "u", 20, Ok(pod("web")))
    };
    apply::<Pods>(&mut index, elsewhere);
    assert!(index.dirty_pools.is_empty());
    apply::<Pods>(&mut index, item("q", "u", 20, Ok(pod("other"))));
    assert!(index.dirty_pools.is_empty(), "the pool does not select it");
    apply::<Pods>(&mut index, item("p", "u", 21, Ok(pod("web"))));
    assert!(index.dirty_pools.contains(&key("v1")));
    index.dirty_pools.clear();
    apply::<Pods>(&mut index, item("p", "u", 22, Ok(pod("web"))));
    assert!(
        index.dirty_pools.is_empty(),
        "nothing that counts has changed"
    );
    apply::<Pods>(&mut index, item("p", "u", 23, Ok(pod("other"))));
    assert!(index.dirty_pools.contains(&key("v1")), "it has lost a pod");
    index.dirty_pools.clear();

    index.dirty = Dirty::default();
    apply::<Slices>(&mut index, item("x", "u", 23, Ok(own_slice("x"))));
    assert!(!index.dirty.is_empty() && index.dirty_pools.contains(&key("v1")));
    index.dirty_pools.clear();
    delete::<Slices>(&mut index, key("x"), stamp("u", 24));
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
    apply::<Nodes>(&mut index, node);
    let look = |index: &mut Index, now_ms, answer: Option<Result<Vec<_>, String>>| {
        assert_eq!(index.is_in_doubt(now_ms), answer.is_some());
        if let Some(answer) = answer {
            index.leases_read(answer);
        }
        index.look_at_nodes();
        index.known_nodes["n1"].live
    };
    assert!(look(&mut index, 1_000, None));
    let error = RequestError::Silent;
    let verb = "watch";
    take::<Leases>(&mut index, Event::Failed { verb, error });
    assert!(look(&mut index, 100_000, None));
    take::<Leases>(&mut index, Event::Works);
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
            drain: false,
        },
    );
    node.status = Some(sluice_api::LoadBalancerNodeStatus::default());
    let tell = |index: &mut Index, version, node: &LoadBalancerNode| {
        let mut told = item("n1", "u", version, Ok(node.clone()));
        told.key = ObjectKey::new("", "n1");
        apply::<Nodes>(index, told);
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
    let slice = item("x", "u", 11, Ok(own_slice("x")));
    apply::<Slices>(&mut index, slice);
    let mut object = index.pools.objects[&key("v1")].clone();
    object.spec = pool(&fixed()).spec;
    let object = item("v1", "u", 12, Ok(object));
    apply::<Pools>(&mut index, object);
    let deleted = |index: &Index| of_pool(index, &key("v1")).map(|plan| plan.delete);
    let now = Time(sluice_api::jiff::Timestamp::UNIX_EPOCH);
    index.decide(&now);
    assert_eq!(deleted(&index), None, "the decision in force names them");

    index.dirty = Dirty::All;
    decide(&mut index, 13);
    let status = index.pools.objects[&key("v1")].status.clone();
    let revision = status.and_then(|status| status.decision).expect("decided");
    let mut node = Node {
        status: sluice_api::LoadBalancerNodeStatus::default(),
        live: true,
        wanted: true,
        starting: false,
        standing: Standing::Joined,
        trust: Trust::Believed,
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
        apply::<Pods>(index, item(name, "u", 20, Ok(pod)));
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
        apply::<Pools>(index, object);
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

/// Also where the answer to the write is here before the watch tells of it.
#[test]
fn a_pool_is_looked_at_when_a_drain_of_its_servers_is_over() {
    let mut drained = pool(&fixed());
    let text = json!([{"address": "10.0.0.1", "until": "1970-01-01T00:00:10Z"}]).to_string();
    let annotation = (DRAINED_SERVERS_ANNOTATION.to_owned(), text);
    drained.metadata.annotations = Some([annotation].into());
    let mut index = index(virtual_server("v1"), drained);
    decide(&mut index, 10);
    let after = |seconds| Time(Timestamp::from_second(seconds).expect("time"));
    index.decide(&after(0));
    assert!(index.dirty.is_empty());
    index.look_at_timers(&after(9));
    assert!(index.dirty.is_empty(), "it is not over");
    index.look_at_timers(&after(10));
    assert!(!index.dirty.is_empty());
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
