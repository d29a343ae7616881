//! The list of the other directors.

use super::*;

#[test]
fn peers_are_the_other_directors() {
    let mut index = serving();
    let list = r#"{"d1": {"addresses": ["10.0.0.1"]}, "d2": {"addresses": ["10.0.0.2"]}}"#;
    apply::<PeersList>(&mut index, peers(20, list));
    let [Event::Peers(told)] = &index.news()[..] else {
        unreachable!()
    };
    assert_eq!(told.keys().collect::<Vec<_>>(), ["d2"]);
    apply::<PeersList>(
        &mut index,
        peers(21, r#"{"d1": {"addresses": ["10.0.0.1"]}}"#),
    );
    assert_eq!(index.news(), [Event::Peers(BTreeMap::new())]);
}

#[test]
fn the_list_says_whether_this_node_may_hold_groups() {
    let mut index = serving();
    let list = |candidate| format!(r#"{{"d1": {{"addresses": [], "candidate": {candidate}}}}}"#);
    apply::<PeersList>(&mut index, peers(20, &list(true)));
    assert_eq!(index.news(), [Event::MayHold(true)]);
    apply::<PeersList>(&mut index, peers(21, &list(true)));
    assert_eq!(index.news(), []);
    apply::<PeersList>(&mut index, peers(22, &list(false)));
    assert_eq!(index.news(), [Event::MayHold(false)]);
    apply::<PeersList>(&mut index, peers(23, &list(true)));
    apply::<PeersList>(&mut index, peers(24, "{}"));
    assert_eq!(index.news(), [], "one that is not listed may not");
}

#[test]
fn pools_that_announce_are_told() {
    let mut index = serving();
    let pool = |version: u32, decision: Value| {
        item::<AddressPools>(json!({
            "metadata": {"name": "edge", "uid": "uid-edge", "resourceVersion": version.to_string()},
            "status": {"decision": decision},
        }))
    };
    apply::<AddressPools>(
        &mut index,
        pool(20, json!({"generation": 1, "l2": {"groups": 2}})),
    );
    let [Event::Announcing(told)] = &index.news()[..] else {
        unreachable!()
    };
    assert_eq!(told.pools["edge"].groups, 2);
    apply::<AddressPools>(&mut index, pool(21, json!({"generation": 2})));
    assert_eq!(index.news(), [Event::Announcing(Announcing::default())]);
}

/// Messages of the missed objects that the core was told of, and whether it was told of peers.
fn of_peers(index: &mut Index) -> (Vec<String>, bool) {
    let (mut notes, mut told) = (Vec::new(), false);
    for event in index.news() {
        match event {
            Event::Decided(changes) => {
                let missed = changes.mark.missed.into_iter();
                notes.extend(missed.map(|problem| problem.message));
            }
            Event::Peers(_) => told = true,
            _ => {}
        }
    }
    (notes, told)
}

#[test]
fn without_a_list_the_peers_stay_and_the_node_says_so() {
    let mut index = serving();
    let good = peers(20, r#"{"d2": {"addresses": ["10.0.0.2"]}}"#);
    apply::<PeersList>(&mut index, good.clone());
    assert_eq!(of_peers(&mut index), (Vec::new(), true));
    let complaints = apply::<PeersList>(&mut index, peers(21, "garbage"));
    assert_eq!(complaints.len(), 1, "{complaints:?}");
    let (notes, told) = of_peers(&mut index);
    assert!(notes[0].contains("sluice-peers") && notes[0].contains("cannot be read"));
    assert!(!told, "those that were known stay");
    apply::<PeersList>(
        &mut index,
        peers(22, r#"{"d2": {"addresses": ["10.0.0.2"]}}"#),
    );
    assert_eq!(of_peers(&mut index), (Vec::new(), false));
    delete::<PeersList>(&mut index, &peers(23, "{}"));
    let (notes, told) = of_peers(&mut index);
    assert!(notes[0].contains("is not there") && !told, "{notes:?}");
}

#[test]
fn an_agent_that_finds_no_list_begins_without() {
    let mut index = Index::new(NODE, false);
    for listing in cluster("a") {
        let listing = if listing.kind == PeersList::NAME {
            self::listing::<PeersList>(Vec::new())
        } else {
            listing
        };
        (listing.take)(&mut index, Some(&own("a", false)));
    }
    let events = index.news();
    let is_peers = |event: &Event| matches!(event, Event::Peers(_));
    assert!(!events.iter().any(is_peers), "{events:?}");
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::Decided(_)))
    );
}
