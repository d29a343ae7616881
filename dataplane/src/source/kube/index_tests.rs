use kube::api::DynamicObject;
use serde_json::{Value, json};
use sluice_api::DETACH_ANNOTATION;
use sluice_kube::watched::{Watched, take};
use sluice_kube::{Event as Watch, Item};

use super::super::kinds::{
    AddressPools, Nodes, PeersList, PoolSlices, Pools, ServiceSlices, VirtualServers,
};
use super::*;

#[path = "index_tests_peers.rs"]
mod peers;

const NODE: &str = "d1";

fn item<W: Watched<Object = DynamicObject>>(value: Value) -> Item<W::Kept> {
    Item::of(serde_json::from_value(value).unwrap(), W::keep)
}

/// Whether the list was of another world, and the complaints.
fn list<W: Watched<Index = Index>>(
    index: &mut Index,
    items: Vec<Item<W::Kept>>,
    own: Option<&Own>,
) -> (bool, Vec<String>) {
    take::<W>(index, Watch::List(items, own.cloned()));
    let findings = index.take_findings();
    (findings.other_world, findings.complaints)
}

fn apply<W: Watched<Index = Index>>(index: &mut Index, item: Item<W::Kept>) -> Vec<String> {
    take::<W>(index, Watch::Apply(item));
    index.take_findings().complaints
}

fn delete<W: Watched<Index = Index>>(index: &mut Index, item: &Item<W::Kept>) {
    take::<W>(index, Watch::Delete(item.key.clone(), item.stamp.clone()));
}

type TakeList = dyn FnOnce(&mut Index, Option<&Own>) -> (bool, Vec<String>);

/// A list of some kind.
struct Listing {
    kind: &'static str,
    take: Box<TakeList>,
}

fn listing<W: Watched<Index = Index>>(items: Vec<Item<W::Kept>>) -> Listing {
    Listing {
        kind: W::NAME,
        take: Box::new(|index, own| list::<W>(index, items, own)),
    }
}

fn named(name: &str, version: u32) -> Value {
    json!({"metadata": {
        "namespace": "shop", "name": name, "uid": format!("uid-{name}"), "resourceVersion": version.to_string(),
    }})
}

fn web(version: u32, revision: u64) -> Item<Option<Arc<Decision>>> {
    let mut value = named("web", version);
    value["status"] = json!({"decision": {
        "revision": revision, "completeRevision": revision, "generation": 1, "addresses": ["203.0.113.1"],
        "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
        "mode": "NAT", "poolSelection": "Flow",
        "pools": [{"name": "v1", "weight": 1, "specWeight": 1}],
    }});
    item::<VirtualServers>(value)
}

fn pool(version: u32, revision: u64) -> Item<Option<Arc<PoolDecision>>> {
    let mut value = named("v1", version);
    value["status"] = json!({"decision": {
        "revision": revision, "completeRevision": revision, "generation": 1,
        "endpoints": {"source": "Pods", "name": "v1", "targetPorts": [{"name": "http", "port": 8080}]},
    }});
    item::<Pools>(value)
}

fn slice(pool: &str, version: u32, address: &str) -> Item<Option<Arc<Slice>>> {
    let mut value = named(&format!("{pool}-slice"), version);
    value["metadata"]["labels"] = json!({
        "sluice.dev/pool": pool,
        "endpointslice.kubernetes.io/managed-by": "operator.sluice.dev",
    });
    value["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "sluice.dev/v1alpha1", "kind": "RealServerPool", "name": pool, "uid": "u", "controller": true,
    }]);
    value["addressType"] = json!("IPv4");
    value["endpoints"] = json!([{"addresses": [address]}]);
    item::<PoolSlices>(value)
}

fn node(name: &str, uid: &str, version: u32, annotations: &Value) -> Item<Node> {
    item::<Nodes>(json!({
        "metadata": {
            "name": name, "uid": uid, "resourceVersion": version.to_string(), "generation": 2,
            "annotations": annotations,
        },
        "spec": {"interfaces": ["eth0"], "role": "Director"},
    }))
}

fn peers(version: u32, list: &str) -> Item<Peers> {
    let mut value = named(PEERS_CONFIG_MAP, version);
    value["data"] = json!({"peers.json": list});
    item::<PeersList>(value)
}

fn own(uid: &str, acknowledged: bool) -> Own {
    Own {
        uid: uid.to_owned(),
        acknowledged,
    }
}

/// The lists of a cluster that serves one virtual server, with this node's object under a uid.
fn cluster(uid: &str) -> Vec<Listing> {
    vec![
        listing::<ServiceSlices>(Vec::new()),
        listing::<AddressPools>(Vec::new()),
        listing::<Pools>(vec![pool(4, 6)]),
        listing::<PoolSlices>(vec![slice("v1", 3, "10.0.0.7")]),
        listing::<Nodes>(vec![node(NODE, uid, 2, &json!({}))]),
        listing::<PeersList>(vec![peers(2, "{}")]),
        listing::<VirtualServers>(vec![web(5, 7)]),
    ]
}

/// The lists of a server that was wiped, in which this node's object was made anew.
fn wiped(uid: &str) -> Vec<Listing> {
    vec![
        listing::<VirtualServers>(Vec::new()),
        listing::<Pools>(Vec::new()),
        listing::<Nodes>(vec![node(NODE, uid, 2, &json!({}))]),
        listing::<PeersList>(vec![peers(2, "{}")]),
        listing::<PoolSlices>(Vec::new()),
        listing::<ServiceSlices>(Vec::new()),
        listing::<AddressPools>(Vec::new()),
    ]
}

fn list_all(index: &mut Index, lists: Vec<Listing>, own: Option<&Own>) -> Vec<Event> {
    let mut events = Vec::new();
    for Listing { kind, take } in lists {
        assert_eq!(take(index, own), (false, Vec::new()), "{kind}");
        events.extend(index.news());
    }
    events
}

fn serving() -> Index {
    let mut index = Index::new(NODE, false);
    list_all(&mut index, cluster("a"), Some(&own("a", false)));
    index
}

fn decisions(events: &[Event]) -> Option<&Changes> {
    events.iter().find_map(|event| match event {
        Event::Decided(changes) => Some(changes),
        _ => None,
    })
}

/// The revisions up to which the core was told.
fn mark(events: &[Event]) -> Option<(u64, u64)> {
    decisions(events).map(|told| (told.mark.revision, told.mark.pool_revision))
}

/// Names of the virtual servers that the core was told of, with `-` before those that are gone.
fn virtual_servers(events: &[Event]) -> Vec<String> {
    let told = decisions(events).into_iter();
    let told = told.flat_map(|told| &told.virtual_servers);
    told.map(|(key, decision)| match decision {
        Some(_) => key.name.clone(),
        None => format!("-{}", key.name),
    })
    .collect()
}

/// The addresses in the slices that the core was told of.
fn addresses(events: &[Event]) -> Vec<String> {
    let slices = decisions(events)
        .into_iter()
        .flat_map(|told| told.slices.values());
    let endpoints = slices.flatten().flat_map(|slice| &slice.endpoints);
    endpoints
        .map(|endpoint| endpoint.address.to_string())
        .collect()
}

fn held(events: &[Event]) -> Option<bool> {
    events.iter().find_map(|event| match event {
        Event::Held(reason) => Some(reason.is_some()),
        _ => None,
    })
}

#[test]
fn nothing_is_told_until_every_list_is_complete() {
    let mut index = Index::new(NODE, false);
    let mut lists = cluster("a");
    let last = lists.pop().unwrap();
    assert_eq!(list_all(&mut index, lists, Some(&own("a", false))), []);
    let events = list_all(&mut index, vec![last], Some(&own("a", false)));
    assert_eq!(mark(&events), Some((7, 6)));
    assert_eq!(virtual_servers(&events), ["web"]);
    assert_eq!(addresses(&events), ["10.0.0.7"]);
    let spec = events.iter().find_map(|event| match event {
        Event::Node(node) => Some((node.metadata.generation, node.spec.interfaces.clone())),
        _ => None,
    });
    assert_eq!(spec, Some((Some(2), vec!["eth0".to_owned()])));
    assert_eq!(index.news(), [], "all is told once");
}

#[test]
fn revisions_are_the_highest_seen_of_their_kind() {
    let mut index = serving();
    apply::<VirtualServers>(&mut index, web(8, 12));
    let gone = web(8, 12);
    delete::<VirtualServers>(&mut index, &gone);
    let events = index.news();
    assert_eq!(virtual_servers(&events), ["-web"]);
    assert_eq!(mark(&events), Some((12, 6)));
}

/// Others may still be on their way to the API server.
#[test]
fn no_more_is_claimed_than_what_is_complete() {
    let mut index = serving();
    let mut later = web(8, 12);
    let Ok(Some(decision)) = &mut later.content else {
        panic!("no decision");
    };
    Arc::make_mut(decision).complete_revision = 9;
    apply::<VirtualServers>(&mut index, later);
    assert_eq!(decisions(&index.news()).map(|d| d.mark.revision), Some(9));
    apply::<VirtualServers>(&mut index, web(9, 12));
    assert_eq!(decisions(&index.news()).map(|d| d.mark.revision), Some(12));
}

#[test]
fn older_versions_of_an_object_are_no_news() {
    let mut index = serving();
    apply::<VirtualServers>(&mut index, web(10, 9));
    assert_eq!(mark(&index.news()), Some((9, 6)));
    apply::<VirtualServers>(&mut index, web(9, 8));
    assert_eq!(index.news(), []);
    // One of the same name that was made anew is another object.
    let mut anew = web(11, 10);
    anew.stamp.uid = "other".to_owned();
    apply::<VirtualServers>(&mut index, anew);
    assert_eq!(mark(&index.news()), Some((10, 6)));
}

#[test]
fn only_what_has_changed_is_told() {
    let mut index = serving();
    apply::<PoolSlices>(&mut index, slice("v1", 9, "10.0.0.8"));
    let events = index.news();
    assert_eq!(addresses(&events), ["10.0.0.8"]);
    assert_eq!(virtual_servers(&events), [""; 0]);
    // The same once more, and what has changed back meanwhile.
    apply::<PoolSlices>(&mut index, slice("v1", 10, "10.0.0.8"));
    apply::<VirtualServers>(&mut index, item::<VirtualServers>(named("web", 10)));
    apply::<VirtualServers>(&mut index, web(11, 7));
    assert_eq!(index.news(), []);
    let mut other = web(12, 12);
    other.key.name = "other".to_owned();
    let own = own("a", true);
    list::<VirtualServers>(&mut index, vec![web(11, 7), other], Some(&own));
    assert_eq!(virtual_servers(&index.news()), ["other"]);
    list::<VirtualServers>(&mut index, Vec::new(), Some(&own));
    assert_eq!(virtual_servers(&index.news()), ["-other", "-web"]);
}

/// An object with a decision that nobody can read.
fn broken<W: Watched<Object = DynamicObject>>(name: &str, version: u32) -> Item<W::Kept> {
    let mut value = named(name, version);
    value["status"] = json!({"decision": {"revision": "nonsense"}});
    item::<W>(value)
}

/// Kinds, names and reasons of the missed objects that the core was told of.
fn missed(events: &[Event]) -> Vec<String> {
    let problems = decisions(events)
        .into_iter()
        .flat_map(|told| &told.mark.missed);
    problems
        .map(|p| format!("{} {} {}", p.kind.as_str(), p.object, p.reason.as_str()))
        .collect()
}

#[test]
fn an_object_that_cannot_be_read_stays_as_it_was_and_hides_no_other() {
    let broken = |version| broken::<VirtualServers>("web", version);
    let mut index = serving();
    let complaints = apply::<VirtualServers>(&mut index, broken(8));
    assert_eq!(complaints.len(), 1);
    assert!(complaints[0].contains("shop/web"), "{}", complaints[0]);
    assert_eq!(
        apply::<VirtualServers>(&mut index, broken(9)),
        [""; 0],
        "once"
    );
    let events = index.news();
    assert_eq!(missed(&events), ["VirtualServer shop/web Unreadable"]);
    assert_eq!(virtual_servers(&events), [""; 0], "it stays");

    let mut other = web(11, 11);
    other.key.name = "other".to_owned();
    let own = own("a", true);
    let (_, complaints) = list::<VirtualServers>(&mut index, vec![broken(10), other], Some(&own));
    assert_eq!(complaints, [""; 0]);
    let events = index.news();
    assert_eq!(virtual_servers(&events), ["other"]);
    assert_eq!(missed(&events), ["VirtualServer shop/web Unreadable"]);
    apply::<VirtualServers>(&mut index, web(12, 12));
    assert_eq!(missed(&index.news()), [""; 0]);
    assert_eq!(
        apply::<VirtualServers>(&mut index, broken(13)).len(),
        1,
        "it was readable"
    );
}

#[test]
fn what_never_could_be_read_is_named_and_not_acknowledged() {
    let mut index = serving();
    apply::<VirtualServers>(&mut index, broken::<VirtualServers>("a", 8));
    apply::<Pools>(&mut index, broken::<Pools>("b", 9));
    let events = index.news();
    let expected = [
        "VirtualServer shop/a Unreadable",
        "RealServerPool shop/b Unreadable",
    ];
    assert_eq!(missed(&events), expected);
    assert_eq!(
        held(&events),
        None,
        "this process knows what is in the maps"
    );
    delete::<Pools>(&mut index, &broken::<Pools>("b", 10));
    assert_eq!(missed(&index.news()), expected[..1]);
}

#[test]
fn adopted_maps_stay_while_an_object_cannot_be_read() {
    let broken_server = || listing::<VirtualServers>(vec![broken::<VirtualServers>("web", 5)]);
    let broken_pool = || listing::<Pools>(vec![broken::<Pools>("v1", 5)]);
    for kind in [VirtualServers::NAME, Pools::NAME] {
        let own = own("a", true);
        // Where the maps are empty nothing gets lost.
        for (served, ending) in [(false, 0), (true, 1), (true, 2)] {
            let mut index = Index::new(NODE, served);
            let mut events = Vec::new();
            for list in cluster("a") {
                let list = match list.kind {
                    name if name != kind => list,
                    VirtualServers::NAME => broken_server(),
                    _ => broken_pool(),
                };
                (list.take)(&mut index, Some(&own));
                events.extend(index.news());
            }
            let node_is_told = events.iter().any(|event| matches!(event, Event::Node(_)));
            assert!(node_is_told, "its programs are attached");
            assert_eq!(decisions(&events).is_none(), served);
            assert_eq!(held(&events), served.then_some(true));
            let index = &mut index;
            match (ending, kind) {
                (0, _) => continue,
                (1, VirtualServers::NAME) => {
                    delete::<VirtualServers>(index, &broken::<VirtualServers>("web", 6));
                }
                (1, _) => delete::<Pools>(index, &broken::<Pools>("v1", 6)),
                (_, VirtualServers::NAME) => drop(apply::<VirtualServers>(index, web(7, 7))),
                _ => drop(apply::<Pools>(index, pool(7, 7))),
            }
            let events = index.news();
            assert_eq!(held(&events), Some(false));
            assert_eq!(missed(&events), [""; 0]);
            assert!(decisions(&events).is_some());
        }
    }
}

#[test]
fn what_there_is_no_room_for_is_named() {
    let mut index = Index::new(NODE, false);
    let mut pools: Vec<_> = (0..MAX_OBJECTS)
        .map(|i| {
            let mut other = pool(4, 6);
            other.key.name = format!("a{i}");
            other
        })
        .collect();
    pools.push(pool(4, 6));
    let mut events = Vec::new();
    for list in cluster("a") {
        if list.kind != Pools::NAME {
            (list.take)(&mut index, Some(&own("a", false)));
        }
    }
    let (_, complaints) = list::<Pools>(&mut index, pools, Some(&own("a", false)));
    assert_eq!(complaints.len(), 1, "{complaints:?}");
    events.extend(index.news());
    assert_eq!(missed(&events), ["RealServerPool shop/v1 LimitExceeded"]);
}

#[test]
fn an_empty_list_is_believed_where_this_node_is_known() {
    let mut index = serving();
    list::<VirtualServers>(&mut index, Vec::new(), Some(&own("a", true)));
    let events = index.news();
    assert_eq!(virtual_servers(&events), ["-web"]);
    assert_eq!(held(&events), None);
}

#[test]
fn a_wiped_server_changes_nothing_until_something_is_decided() {
    for new in [None, Some(own("b", false))] {
        let mut index = serving();
        // Whichever list comes first: pools without servers are no better.
        let (is_another, _) = list::<Pools>(&mut index, Vec::new(), new.as_ref());
        assert!(is_another);
        assert_eq!(index.news(), []);
        let events = list_all(&mut index, wiped("b"), new.as_ref());
        assert_eq!(held(&events), Some(true));
        assert_eq!(events.len(), 1, "{events:?}");
        // Another agent or a user works there; nothing is decided yet.
        apply::<VirtualServers>(&mut index, item::<VirtualServers>(named("web", 1)));
        apply::<Pools>(&mut index, pool(2, 2));
        assert_eq!(index.news(), []);

        apply::<VirtualServers>(&mut index, web(3, 3));
        let events = index.news();
        assert_eq!(held(&events), Some(false));
        assert_eq!(mark(&events), Some((3, 2)), "another counter");
        // From now on that is the world.
        list::<VirtualServers>(&mut index, Vec::new(), Some(&own("b", true)));
        assert_eq!(held(&index.news()), None);
    }
}

#[test]
fn a_server_that_comes_back_is_believed_again() {
    let mut index = serving();
    list::<VirtualServers>(&mut index, Vec::new(), None);
    assert_eq!(held(&list_all(&mut index, wiped("b"), None)), Some(true));
    let own = own("a", true);
    let (is_another, _) = list::<Nodes>(&mut index, Vec::new(), Some(&own));
    assert!(is_another);
    assert_eq!(held(&index.news()), Some(false), "it is being read");
    let events = list_all(&mut index, cluster("a"), Some(&own));
    assert_eq!(events, []);
    assert_eq!(index.news(), []);
}

#[test]
fn an_object_of_this_node_that_was_made_anew_is_no_harm() {
    let mut index = serving();
    delete::<Nodes>(&mut index, &node(NODE, "a", 9, &json!({})));
    assert!(index.own_is_missing());
    assert_eq!(index.news(), [], "its spec stays in force");
    apply::<Nodes>(&mut index, node(NODE, "b", 10, &json!({})));
    assert!(!index.own_is_missing());
    index.news();
    let new = own("b", true);
    let (is_another, _) = list::<VirtualServers>(&mut index, vec![web(11, 8)], Some(&new));
    assert!(is_another);
    let events = list_all(&mut index, cluster("b"), Some(&new));
    assert_eq!(held(&events), None, "{events:?}");
    assert!(!index.doubted);
}

#[test]
fn adopted_maps_are_not_emptied_by_a_server_that_does_not_know_the_node() {
    for (before, believed) in [
        (None, false),
        (Some(own("b", false)), false),
        (Some(own("a", true)), true),
    ] {
        let mut index = Index::new(NODE, true);
        let first = list::<VirtualServers>(&mut index, Vec::new(), before.as_ref()).0;
        assert_eq!(!first, believed, "{before:?}");
        let events = list_all(&mut index, wiped("x"), before.as_ref());
        assert_eq!(decisions(&events).is_some(), believed, "{before:?}");
        assert_eq!(held(&events), (!believed).then_some(true), "{before:?}");
    }
}

#[test]
fn where_nothing_is_served_nothing_is_held() {
    let mut index = Index::new(NODE, false);
    let events = list_all(&mut index, wiped("a"), None);
    assert!(decisions(&events).is_some());
    let events = list_all(&mut index, wiped("b"), Some(&own("b", true)));
    assert_eq!(held(&events), None);
}

#[test]
fn the_annotation_is_told_once_and_nothing_after_it() {
    let mut index = serving();
    apply::<Nodes>(
        &mut index,
        node("d2", "z", 20, &json!({DETACH_ANNOTATION: ""})),
    );
    assert!(
        index
            .news()
            .iter()
            .all(|event| matches!(event, Event::Peers(_)))
    );
    apply::<Nodes>(
        &mut index,
        node(NODE, "a", 21, &json!({DETACH_ANNOTATION: "now"})),
    );
    assert_eq!(index.news(), [Event::Detach { generation: 2 }]);
    apply::<Nodes>(&mut index, node(NODE, "a", 22, &json!({})));
    apply::<VirtualServers>(&mut index, web(23, 23));
    assert_eq!(index.news(), []);
}

#[test]
fn the_annotation_counts_before_anything_else_is_known() {
    let mut index = Index::new(NODE, true);
    let annotated = node(NODE, "a", 1, &json!({DETACH_ANNOTATION: ""}));
    list::<Nodes>(&mut index, vec![annotated], Some(&own("a", true)));
    assert_eq!(index.news(), [Event::Detach { generation: 2 }]);
}

#[test]
fn a_spec_that_breaks_a_rule_leaves_the_one_before() {
    let mut index = serving();
    let mut broken = node(NODE, "a", 20, &json!({}));
    let spec = &mut broken.content.as_mut().unwrap().spec;
    spec.as_mut().unwrap().interfaces = Vec::new();
    apply::<Nodes>(&mut index, broken);
    let [Event::NodeRefused(message)] = &index.news()[..] else {
        unreachable!()
    };
    assert!(message.contains("spec.interfaces"), "{message}");
    assert_eq!(index.news(), []);
    apply::<Nodes>(&mut index, node(NODE, "a", 21, &json!({})));
    assert!(matches!(&index.news()[..], [Event::Node(_)]));
}
