use serde_json::{Value, json};
use sluice_api::DETACH_ANNOTATION;
use sluice_planner::ObjectName;

use super::super::object::read;
use super::*;

const NODE: &str = "d1";

fn item(kind: Kind, value: Value) -> Item {
    read(kind, serde_json::from_value(value).unwrap())
}

fn named(name: &str, version: u32) -> Value {
    json!({"metadata": {
        "namespace": "shop", "name": name, "uid": format!("uid-{name}"), "resourceVersion": version.to_string(),
    }})
}

fn web(version: u32, revision: u64) -> Item {
    let mut value = named("web", version);
    value["status"] = json!({"decision": {
        "revision": revision, "generation": 1, "addresses": ["203.0.113.1"],
        "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
        "mode": "NAT", "poolSelection": "Flow",
        "pools": [{"name": "v1", "weight": 1, "specWeight": 1}],
    }});
    item(Kind::VirtualServers, value)
}

fn pool(version: u32, revision: u64) -> Item {
    let mut value = named("v1", version);
    value["status"] = json!({"decision": {
        "revision": revision, "generation": 1,
        "endpoints": {"source": "Pods", "name": "v1", "targetPorts": [{"name": "http", "port": 8080}]},
    }});
    item(Kind::Pools, value)
}

fn slice(pool: &str, version: u32, address: &str) -> Item {
    let mut value = named(&format!("{pool}-slice"), version);
    value["metadata"]["labels"] = json!({"sluice.dev/pool": pool});
    value["addressType"] = json!("IPv4");
    value["endpoints"] = json!([{"addresses": [address]}]);
    item(Kind::PoolSlices, value)
}

fn node(name: &str, uid: &str, version: u32, annotations: &Value) -> Item {
    item(
        Kind::Nodes,
        json!({
            "metadata": {
                "name": name, "uid": uid, "resourceVersion": version.to_string(), "generation": 2,
                "annotations": annotations,
            },
            "spec": {"interfaces": ["eth0"], "role": "Director"},
            "status": {"addresses": ["10.0.0.2"]},
        }),
    )
}

fn own(uid: &str, acknowledged: bool) -> Own {
    Own {
        uid: uid.to_owned(),
        acknowledged,
    }
}

/// The lists of a cluster that serves one virtual server, with this node's object under a uid.
fn cluster(uid: &str) -> Vec<(Kind, Vec<Item>)> {
    vec![
        (Kind::ServiceSlices, Vec::new()),
        (Kind::Pools, vec![pool(4, 6)]),
        (Kind::PoolSlices, vec![slice("v1", 3, "10.0.0.7")]),
        (Kind::Nodes, vec![node(NODE, uid, 2, &json!({}))]),
        (Kind::VirtualServers, vec![web(5, 7)]),
    ]
}

/// The lists of a server that was wiped, in which this node's object was made anew.
fn wiped(uid: &str) -> Vec<(Kind, Vec<Item>)> {
    Kind::ALL
        .into_iter()
        .map(|kind| match kind {
            Kind::Nodes => (kind, vec![node(NODE, uid, 2, &json!({}))]),
            _ => (kind, Vec::new()),
        })
        .collect()
}

fn list_all(index: &mut Index, lists: Vec<(Kind, Vec<Item>)>, own: Option<&Own>) -> Vec<Event> {
    let mut events = Vec::new();
    for (kind, items) in lists {
        let (listed, complaints) = index.list(kind, items, own);
        assert_eq!(
            (listed, complaints),
            (Listed::Taken, Vec::new()),
            "{kind:?}"
        );
        events.extend(index.news());
    }
    events
}

fn serving() -> Index {
    let mut index = Index::new(NODE, false);
    list_all(&mut index, cluster("a"), Some(&own("a", false)));
    index
}

fn decisions(events: &[Event]) -> Option<&Decisions> {
    events.iter().find_map(|event| match event {
        Event::Decisions(decisions) => Some(decisions),
        _ => None,
    })
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
    let told = decisions(&events).unwrap();
    assert_eq!((told.revision, told.pool_revision), (7, 6));
    let servers = &told.snapshot.pools[&ObjectName::new("shop", "v1")].servers;
    assert_eq!(servers[0].address.to_string(), "10.0.0.7");
    let spec = events.iter().find_map(|event| match event {
        Event::Node(node) => Some((node.generation, node.spec.interfaces.clone())),
        _ => None,
    });
    assert_eq!(spec, Some((2, vec!["eth0".to_owned()])));
    assert_eq!(index.news(), [], "all is told once");
}

#[test]
fn revisions_are_the_highest_seen_of_their_kind() {
    let mut index = serving();
    index.apply(Kind::VirtualServers, web(8, 12));
    let gone = web(8, 12);
    index.delete(Kind::VirtualServers, &gone);
    let events = index.news();
    let told = decisions(&events).unwrap();
    assert!(told.snapshot.virtual_servers.is_empty());
    assert_eq!((told.revision, told.pool_revision), (12, 6));
}

#[test]
fn older_versions_of_an_object_are_no_news() {
    let mut index = serving();
    index.apply(Kind::VirtualServers, web(10, 9));
    assert_eq!(decisions(&index.news()).map(|d| d.revision), Some(9));
    index.apply(Kind::VirtualServers, web(9, 8));
    assert_eq!(index.news(), []);
    assert!(is_older("9", "10"));
    assert!(!is_older("10", "9"));
    assert!(!is_older("a", "b"), "no numbers: the later one is newer");
    // One of the same name that was made anew is another object.
    let mut anew = web(3, 10);
    anew.uid = "other".to_owned();
    index.apply(Kind::VirtualServers, anew);
    assert_eq!(decisions(&index.news()).map(|d| d.revision), Some(10));
}

#[test]
fn slices_of_other_services_make_no_work() {
    let mut index = serving();
    index.apply(Kind::PoolSlices, slice("other", 9, "10.0.0.9"));
    assert!(!index.decisions_changed);
    index.apply(Kind::PoolSlices, slice("v1", 9, "10.0.0.8"));
    let events = index.news();
    let told = decisions(&events).unwrap();
    let servers = &told.snapshot.pools[&ObjectName::new("shop", "v1")].servers;
    assert_eq!(servers[0].address.to_string(), "10.0.0.8");
}

/// An object with a decision that nobody can read.
fn broken(kind: Kind, name: &str, version: u32) -> Item {
    let mut value = named(name, version);
    value["status"] = json!({"decision": {"revision": "nonsense"}});
    item(kind, value)
}

/// What the core was told to be missed.
fn missed(events: &[Event]) -> Vec<String> {
    let problems = decisions(events).into_iter().flat_map(|told| &told.missed);
    problems
        .map(|p| format!("{} {} {}", p.kind.as_str(), p.object, p.reason.as_str()))
        .collect()
}

#[test]
fn an_object_that_cannot_be_read_stays_as_it_was_and_hides_no_other() {
    let broken = |version| broken(Kind::VirtualServers, "web", version);
    let mut index = serving();
    let complaints = index.apply(Kind::VirtualServers, broken(8));
    assert_eq!(complaints.len(), 1);
    assert!(complaints[0].contains("shop/web"), "{}", complaints[0]);
    assert_eq!(
        index.apply(Kind::VirtualServers, broken(9)),
        [""; 0],
        "once"
    );
    let events = index.news();
    assert_eq!(missed(&events), ["VirtualServer shop/web Unreadable"]);
    let told = decisions(&events).unwrap();
    assert_eq!((told.revision, told.snapshot.virtual_servers.len()), (7, 1));

    let mut other = web(11, 11);
    other.key.name = "other".to_owned();
    let own = own("a", true);
    let (_, complaints) = index.list(Kind::VirtualServers, vec![broken(10), other], Some(&own));
    assert_eq!(complaints, [""; 0]);
    let events = index.news();
    let told = decisions(&events).unwrap();
    assert_eq!(
        (told.revision, told.snapshot.virtual_servers.len()),
        (11, 2)
    );
    assert_eq!(missed(&events), ["VirtualServer shop/web Unreadable"]);
    index.apply(Kind::VirtualServers, web(12, 12));
    assert_eq!(missed(&index.news()), [""; 0]);
    assert_eq!(
        index.apply(Kind::VirtualServers, broken(13)).len(),
        1,
        "it was readable"
    );
}

#[test]
fn what_never_could_be_read_is_named_and_not_acknowledged() {
    let mut index = serving();
    index.apply(Kind::VirtualServers, broken(Kind::VirtualServers, "a", 8));
    index.apply(Kind::Pools, broken(Kind::Pools, "b", 9));
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
    index.delete(Kind::Pools, &broken(Kind::Pools, "b", 10));
    assert_eq!(missed(&index.news()), expected[..1]);
}

#[test]
fn adopted_maps_stay_while_an_object_cannot_be_read() {
    for (kind, name) in [(Kind::VirtualServers, "web"), (Kind::Pools, "v1")] {
        let lists = || {
            cluster("a").into_iter().map(|(of, items)| {
                let items = if of == kind {
                    vec![broken(kind, name, 5)]
                } else {
                    items
                };
                (of, items)
            })
        };
        let own = own("a", true);
        // Where the maps are empty nothing gets lost.
        for (served, ending) in [(false, 0), (true, 1), (true, 2)] {
            let mut index = Index::new(NODE, served);
            let mut events = Vec::new();
            for (of, items) in lists() {
                index.list(of, items, Some(&own));
                events.extend(index.news());
            }
            let node_is_told = events.iter().any(|event| matches!(event, Event::Node(_)));
            assert!(node_is_told, "its programs are attached");
            assert_eq!(decisions(&events).is_none(), served);
            assert_eq!(held(&events), served.then_some(true));
            if ending == 0 {
                continue;
            }
            match (ending, kind) {
                (1, _) => index.delete(kind, &broken(kind, name, 6)),
                (_, Kind::Pools) => drop(index.apply(kind, pool(7, 7))),
                _ => drop(index.apply(kind, web(7, 7))),
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
    let mut lists = cluster("a");
    for (kind, items) in &mut lists {
        if *kind == Kind::Pools {
            let others = (0..MAX_OBJECTS).map(|i| {
                let mut other = pool(4, 6);
                other.key.name = format!("a{i}");
                other
            });
            items.splice(0..0, others);
        }
    }
    let mut events = Vec::new();
    for (kind, items) in lists {
        index.list(kind, items, Some(&own("a", false)));
        events.extend(index.news());
    }
    assert_eq!(missed(&events), ["RealServerPool shop/v1 LimitExceeded"]);
}

#[test]
fn an_empty_list_is_believed_where_this_node_is_known() {
    let mut index = serving();
    index.list(Kind::VirtualServers, Vec::new(), Some(&own("a", true)));
    let events = index.news();
    assert!(
        decisions(&events)
            .unwrap()
            .snapshot
            .virtual_servers
            .is_empty()
    );
    assert_eq!(held(&events), None);
}

#[test]
fn a_wiped_server_changes_nothing_until_something_is_decided() {
    for new in [None, Some(own("b", false))] {
        let mut index = serving();
        // Whichever list comes first: pools without servers are no better.
        let (listed, _) = index.list(Kind::Pools, Vec::new(), new.as_ref());
        assert_eq!(listed, Listed::OtherWorld);
        assert_eq!(index.news(), []);
        let events = list_all(&mut index, wiped("b"), new.as_ref());
        assert_eq!(held(&events), Some(true));
        assert_eq!(events.len(), 1, "{events:?}");
        // Another agent or a user works there; nothing is decided yet.
        index.apply(
            Kind::VirtualServers,
            item(Kind::VirtualServers, named("web", 1)),
        );
        index.apply(Kind::Pools, pool(2, 2));
        assert_eq!(index.news(), []);

        index.apply(Kind::VirtualServers, web(3, 3));
        let events = index.news();
        assert_eq!(held(&events), Some(false));
        let told = decisions(&events).unwrap();
        assert_eq!(
            (told.revision, told.pool_revision),
            (3, 2),
            "another counter"
        );
        // From now on that is the world.
        index.list(Kind::VirtualServers, Vec::new(), Some(&own("b", true)));
        assert_eq!(held(&index.news()), None);
    }
}

#[test]
fn a_server_that_comes_back_is_believed_again() {
    let mut index = serving();
    index.list(Kind::VirtualServers, Vec::new(), None);
    assert_eq!(held(&list_all(&mut index, wiped("b"), None)), Some(true));
    let own = own("a", true);
    let (listed, _) = index.list(Kind::Nodes, Vec::new(), Some(&own));
    assert_eq!(listed, Listed::OtherWorld);
    assert_eq!(held(&index.news()), Some(false), "it is being read");
    let events = list_all(&mut index, cluster("a"), Some(&own));
    assert_eq!(events, []);
    assert_eq!(index.news(), []);
}

#[test]
fn an_object_of_this_node_that_was_made_anew_is_no_harm() {
    let mut index = serving();
    index.delete(Kind::Nodes, &node(NODE, "a", 9, &json!({})));
    assert!(index.own_is_missing());
    assert_eq!(index.news(), [], "its spec stays in force");
    index.apply(Kind::Nodes, node(NODE, "b", 10, &json!({})));
    assert!(!index.own_is_missing());
    index.news();
    let new = own("b", true);
    let (listed, _) = index.list(Kind::VirtualServers, vec![web(11, 8)], Some(&new));
    assert_eq!(listed, Listed::OtherWorld);
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
        let first = index
            .list(Kind::VirtualServers, Vec::new(), before.as_ref())
            .0;
        assert_eq!(first == Listed::Taken, believed, "{before:?}");
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
    index.apply(
        Kind::Nodes,
        node("d2", "z", 20, &json!({DETACH_ANNOTATION: ""})),
    );
    assert!(
        index
            .news()
            .iter()
            .all(|event| matches!(event, Event::Peers(_)))
    );
    index.apply(
        Kind::Nodes,
        node(NODE, "a", 21, &json!({DETACH_ANNOTATION: "now"})),
    );
    assert_eq!(index.news(), [Event::Detach { generation: 2 }]);
    index.apply(Kind::Nodes, node(NODE, "a", 22, &json!({})));
    index.apply(Kind::VirtualServers, web(23, 23));
    assert_eq!(index.news(), []);
}

#[test]
fn the_annotation_counts_before_anything_else_is_known() {
    let mut index = Index::new(NODE, true);
    let annotated = node(NODE, "a", 1, &json!({DETACH_ANNOTATION: ""}));
    index.list(Kind::Nodes, vec![annotated], Some(&own("a", true)));
    assert_eq!(index.news(), [Event::Detach { generation: 2 }]);
}

#[test]
fn peers_are_the_other_directors() {
    let mut index = serving();
    index.apply(Kind::Nodes, node("d2", "z", 20, &json!({})));
    let [Event::Peers(peers)] = &index.news()[..] else {
        unreachable!()
    };
    assert_eq!(peers.keys().collect::<Vec<_>>(), ["d2"]);
    index.delete(Kind::Nodes, &node("d2", "z", 21, &json!({})));
    assert_eq!(index.news(), [Event::Peers(BTreeMap::new())]);
}

#[test]
fn a_spec_that_breaks_a_rule_leaves_the_one_before() {
    let mut index = serving();
    let mut broken = node(NODE, "a", 20, &json!({}));
    if let Ok(Content::Node(node)) = &mut broken.content {
        node.spec.as_mut().unwrap().interfaces = Vec::new();
    }
    index.apply(Kind::Nodes, broken);
    let [Event::NodeRefused(message)] = &index.news()[..] else {
        unreachable!()
    };
    assert!(message.contains("spec.interfaces"), "{message}");
    assert_eq!(index.news(), []);
    index.apply(Kind::Nodes, node(NODE, "a", 21, &json!({})));
    assert!(matches!(&index.news()[..], [Event::Node(_)]));
}
