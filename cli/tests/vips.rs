//! Who announces an address, from Leases and nodes' reports that agree or not.
#![allow(clippy::unwrap_used, reason = "a fixture that is broken ends the test")]

use k8s_openapi::api::coordination::v1::Lease;
use kubectl_sluice::text::{self, Paint};
use kubectl_sluice::view::{self, GroupLeases, HoldState, Leases, Objects, VipView};
use serde_json::{Value, json};
use sluice_api::jiff::Timestamp;
use sluice_api::{LoadBalancerNode, Time};

/// The API server's clock.
const NOW: i64 = 1_772_000_000;

fn time(seconds_ago: i64) -> String {
    Timestamp::from_second(NOW - seconds_ago)
        .unwrap()
        .to_string()
}

/// One virtual server with one address, of the group `public-0`.
fn served() -> Objects {
    let object = json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "VirtualServer",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"addresses": [{"ip": "203.0.113.1"}], "ports": [], "forwarding": {"mode": "NAT"}, "pools": []},
        "status": {"decision": {
            "revision": 7, "generation": 1, "addresses": ["203.0.113.1"], "ports": [], "mode": "NAT", "poolSelection": "Flow",
            "pools": [], "groups": [{"address": "203.0.113.1", "group": "public-0"}],
        }},
    });
    Objects {
        virtual_servers: vec![serde_json::from_value(object).unwrap()],
        ..Objects::default()
    }
}

/// A node that reports this role in the group, if any.
fn node(name: &str, role: Option<&str>, authority: &str) -> LoadBalancerNode {
    let groups: Vec<Value> = role
        .map(|role| match role {
            "Holder" => json!({"name": "public-0", "role": role, "authority": authority}),
            _ => json!({"name": "public-0", "role": role}),
        })
        .into_iter()
        .collect();
    let node = json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "LoadBalancerNode",
        "metadata": {"name": name},
        "spec": {"interfaces": ["eth0"]},
        "status": {"observedGeneration": 1, "groups": groups},
    });
    serde_json::from_value(node).unwrap()
}

/// The group's Lease, got 600 s ago and written so long ago.
fn lease(holder: Option<&str>, seconds_ago: i64) -> Lease {
    serde_json::from_value(json!({
        "metadata": {
            "name": "sluice-vip-public-0",
            "creationTimestamp": time(9_000),
            "managedFields": [{"manager": "sluice-agent", "time": time(seconds_ago)}],
        },
        "spec": {"holderIdentity": holder, "acquireTime": time(600), "leaseDurationSeconds": 4},
    }))
    .unwrap()
}

fn leases(leases: Vec<Lease>) -> GroupLeases {
    GroupLeases::new(leases, Some(NOW))
}

fn vip(objects: &Objects) -> VipView {
    let mut vips = view::vips(objects).vips;
    assert_eq!(vips.len(), 1);
    vips.remove(0)
}

/// The Lease's holder, if any, and age (`None`: Leases may not be listed), the nodes that hold (`None`: they may not be listed),
/// the state, and a part of what `status` says.
type Case<'a> = (
    Option<(&'a str, i64)>,
    Option<&'a [&'a str]>,
    HoldState,
    &'a str,
);

#[test]
fn leases_and_nodes_are_weighed() {
    use HoldState::{Armed, Contested, Expired, NoHolder, Renewed, TakingOver, Unknown};
    let cases: [Case; 17] = [
        (Some(("a", 1)), Some(&["a"]), Armed, "(at a)"),
        (Some(("a", 4)), Some(&["a"]), Armed, "(at a)"),
        (Some(("a", 5)), Some(&["a"]), Expired, "(at a, expired)"),
        (Some(("a", 5)), Some(&["b"]), Expired, "(at a, expired)"),
        (Some(("a", 5)), None, Expired, "(at a, expired)"),
        (Some(("a", 1)), Some(&[]), TakingOver, "(a takes over)"),
        (
            Some(("a", 1)),
            Some(&["b"]),
            Contested,
            "(contested by a and b)",
        ),
        (
            Some(("a", 1)),
            Some(&["a", "b"]),
            Contested,
            "(contested by a and b)",
        ),
        (Some(("a", 1)), None, Renewed, "(at a)"),
        (Some(("", 1)), Some(&[]), NoHolder, "(no holder)"),
        (Some(("", 900)), Some(&["b"]), NoHolder, "(no holder)"),
        (Some(("", 1)), None, NoHolder, "(no holder)"),
        (None, Some(&["b"]), Armed, "(at b)"),
        (None, Some(&["a", "b"]), Contested, "(contested by a and b)"),
        (None, Some(&[]), NoHolder, "(no holder)"),
        (None, None, Unknown, "VIPs       203.0.113.1\n"),
        (Some(("b", 1)), Some(&["b"]), Armed, "(at b)"),
    ];
    for (by_lease, holding, state, line) in cases {
        let mut objects = served();
        let holder = by_lease.map(|(holder, age)| lease(Some(holder), age));
        objects.group_leases = holder.map(|lease| leases(vec![lease]));
        objects.nodes = holding.map(|holding| {
            {
                let role = |name: &&str| holding.contains(name).then_some("Holder");
                ["a", "b", "c"].map(|name| node(name, role(&name), "Lease"))
            }
            .to_vec()
        });
        let vip = vip(&objects).announcement;
        let case = format!("{by_lease:?}, {holding:?}: {vip:?}");
        assert_eq!(vip.state, state, "{case}");
        let is_fine = [Armed, Renewed, Unknown].contains(&state);
        assert_eq!(vip.message.is_none(), is_fine, "{case}");
        let status = view::status(&objects, &Time(Timestamp::from_second(NOW).unwrap()));
        assert_eq!(status.virtual_servers[0].vips, [vip], "{case}");
        let table = text::status(&status, Paint::Plain);
        assert!(table.contains(line), "{case}: {table}");
    }
}

/// The first two candidates of the group hear nobody answer, which weighs more than what its holder and its Lease say.
#[test]
fn who_hears_nobody_answer_says_so() {
    let unheld = |name: &str, seconds_ago, reason: Option<&str>| {
        let mut node = node(name, Some("Candidate"), "");
        let group = json!({"name": "public-0", "since": time(seconds_ago), "reason": reason});
        let group = serde_json::from_value(group).unwrap();
        node.status.as_mut().unwrap().unheld_groups = vec![group];
        node
    };
    let mut objects = served();
    objects.group_leases = Some(leases(vec![lease(Some("a"), 1)]));
    objects.nodes = Some(vec![
        node("a", Some("Holder"), "Lease"),
        unheld("b", 20, None),
        unheld("c", 30, Some("LeaseRefused")),
    ]);
    let found = vip(&objects).announcement;
    assert_eq!(found.state, HoldState::NoHolder);
    assert_eq!((found.held_seconds, found.unheld_by.len()), (Some(30), 2));
    let message = format!(
        "b and c (LeaseRefused) hear nobody answer for public-0 since {}",
        time(30)
    );
    assert_eq!(found.message, Some(message));
    let table = text::vips(&view::vips(&objects), Paint::Plain);
    assert!(table.contains("  none    30s    "), "{table}");
    let status = view::status(&objects, &Time(Timestamp::from_second(NOW).unwrap()));
    let status = text::status(&status, Paint::Plain);
    assert!(
        status.contains("203.0.113.1 (no holder for 30s)"),
        "{status}"
    );
    // Who hears nobody at all may be cut off.
    objects.nodes = Some(vec![
        node("a", Some("Holder"), "Lease"),
        unheld("b", 20, Some("NoWitness")),
    ]);
    let found = vip(&objects).announcement;
    assert_eq!(
        (found.state, found.held_seconds),
        (HoldState::Armed, Some(600))
    );
    assert!(
        found
            .message
            .is_some_and(|message| message.starts_with("b (NoWitness) hears"))
    );
}

#[test]
fn both_are_named() {
    let mut objects = served();
    objects.group_leases = Some(leases(vec![lease(Some("a"), 1)]));
    objects.nodes = Some(vec![node("b", Some("Holder"), "Peers")]);
    let vip = vip(&objects).announcement;
    assert_eq!(vip.holder.as_deref(), Some("a"));
    assert_eq!(vip.holding_nodes, Some(vec!["b".to_owned()]));
    assert_eq!(vip.authority, None, "that of a, which says nothing");
    assert_eq!(vip.held_seconds, Some(600));
    assert_eq!(
        vip.message.as_deref(),
        Some("the Lease of public-0 names a, but b says that it holds it")
    );
}

#[test]
fn a_lease_that_is_not_there_names_nobody() {
    let mut objects = served();
    objects.group_leases = Some(leases(Vec::new()));
    objects.nodes = Some(vec![node("a", Some("Candidate"), "")]);
    let vip = vip(&objects).announcement;
    assert_eq!((vip.state, vip.holder), (HoldState::NoHolder, None));
}

/// A silent node's last report says that it holds what another one has taken over.
#[test]
fn what_a_silent_node_said_does_not_count() {
    let mut objects = served();
    objects.group_leases = Some(leases(vec![lease(Some("b"), 1)]));
    let holding = |name| node(name, Some("Holder"), "Lease");
    objects.nodes = Some(vec![holding("a"), holding("b")]);
    assert_eq!(vip(&objects).announcement.state, HoldState::Contested);
    let of_node = |name: &str, seconds_ago| {
        let lease = json!({"metadata": {
            "labels": {"sluice.dev/node": name},
            "managedFields": [{"manager": "sluice-agent", "time": time(seconds_ago)}],
        }});
        serde_json::from_value(lease).unwrap()
    };
    let of_nodes = vec![of_node("a", 41), of_node("b", 1)];
    objects.leases = Some(Leases::new(of_nodes, Some(NOW)));
    assert_eq!(vip(&objects).announcement.state, HoldState::Armed);
}

/// Without a clock it is as late as the newest Lease at least.
#[test]
fn the_newest_lease_tells_the_time() {
    let mut objects = served();
    objects.nodes = Some(vec![node("a", Some("Holder"), "Lease")]);
    let mut other = lease(Some("b"), 0);
    other.metadata.name = Some("sluice-vip-public-1".to_owned());
    let both = vec![lease(Some("a"), 5), other];
    objects.group_leases = Some(GroupLeases::new(both, None));
    assert_eq!(vip(&objects).announcement.state, HoldState::Expired);
    objects.group_leases = Some(GroupLeases::new(vec![lease(Some("a"), 5)], None));
    assert_eq!(vip(&objects).announcement.state, HoldState::Armed);
}

/// Whoever may make Leases in a namespace of his own cannot name a holder.
#[test]
fn the_older_lease_of_two_counts() {
    let mut objects = served();
    objects.nodes = Some(vec![node("a", Some("Holder"), "Lease")]);
    let mut foreign = lease(Some("z"), 0);
    let created = foreign.metadata.creation_timestamp.as_mut().unwrap();
    created.0 = Timestamp::from_second(NOW - 60).unwrap();
    for both in [
        vec![lease(Some("a"), 1), foreign.clone()],
        vec![foreign.clone(), lease(Some("a"), 1)],
    ] {
        objects.group_leases = Some(leases(both));
        assert_eq!(vip(&objects).announcement.holder.as_deref(), Some("a"));
    }
}
