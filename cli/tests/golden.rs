//! The views of fixture objects, compared with the text in `tests/golden`. `UPDATE_GOLDEN=1` writes it anew.
#![allow(clippy::unwrap_used, reason = "a fixture that is broken ends the test")]

use std::path::PathBuf;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kubectl_sluice::args::Output;
use kubectl_sluice::document;
use kubectl_sluice::text::{self, Paint, WIDTH};
use kubectl_sluice::view::{self, GroupLeases, Leases, Nodes, Objects, Presence};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sluice_api::jiff::Timestamp;
use sluice_api::{ConditionType, Reason, Time, set_condition};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn of_kind<K: DeserializeOwned>(items: &[Value], kind: &str) -> Vec<K> {
    items
        .iter()
        .filter(|item| item["kind"] == kind)
        .map(|item| serde_json::from_value(item.clone()).unwrap())
        .collect()
}

/// A list of objects as `kubectl get -o yaml` writes them, by kind.
fn objects(name: &str) -> Objects {
    let text = std::fs::read_to_string(path(name)).unwrap();
    let items: Vec<Value> = serde_saphyr::from_str(&text).unwrap();
    Objects {
        virtual_servers: of_kind(&items, "VirtualServer"),
        pools: of_kind(&items, "RealServerPool"),
        policies: of_kind(&items, "RolloutPolicy"),
        nodes: Some(of_kind(&items, "LoadBalancerNode")),
        leases: Some(Leases::new(
            of_kind(&items, "Lease"),
            Some(now().0.as_second()),
        )),
        group_leases: Some(GroupLeases::new(
            of_kind(&items, "Lease"),
            Some(now().0.as_second()),
        )),
        slices: Some(of_kind::<EndpointSlice>(&items, "EndpointSlice")),
    }
}

fn now() -> Time {
    Time("2026-03-01T10:10:00Z".parse().unwrap())
}

fn assert_golden(name: &str, text: &str) {
    sluice_golden_file::assert_golden(&path(name), text);
}

fn assert_fits(text: &str) {
    for line in text.lines() {
        assert!(line.chars().count() <= WIDTH, "too wide: {line}");
        assert_eq!(line, line.trim_end(), "blanks trail");
    }
}

#[test]
fn a_canary_over_pods_is_shown() {
    let objects = objects("canary.objects.yaml");
    let view = view::status(&objects, &now());
    let table = text::status(&view, Paint::Plain);
    assert_fits(&table);
    assert_golden("canary.status.txt", &table);
    for (output, name) in [
        (Output::Json, "canary.status.json"),
        (Output::Yaml, "canary.status.yaml"),
    ] {
        assert_golden(name, &document(output, &view).unwrap().unwrap());
    }
    let policy = &objects.policies[0];
    let nodes = Nodes {
        objects: objects.nodes.as_deref().unwrap(),
        leases: objects.leases.as_ref(),
    };
    let view = view::rollout(policy, objects.virtual_servers.first(), Some(nodes), &now());
    let table = text::rollout(&view, Paint::Plain);
    assert_fits(&table);
    assert_golden("canary.rollout.txt", &table);
    assert_golden(
        "canary.rollout.json",
        &document(Output::Json, &view).unwrap().unwrap(),
    );
}

#[test]
fn what_is_amiss_is_named() {
    let view = view::status(&objects("amiss.objects.yaml"), &now());
    let table = text::status(&view, Paint::Plain);
    assert_fits(&table);
    assert_golden("amiss.status.txt", &table);
}

#[test]
fn vips_are_shown_with_their_holders() {
    let objects = objects("vips.objects.yaml");
    let view = view::vips(&objects);
    let table = text::vips(&view, Paint::Plain);
    assert_fits(&table);
    assert_golden("vips.txt", &table);
    for (output, name) in [(Output::Json, "vips.json"), (Output::Yaml, "vips.yaml")] {
        assert_golden(name, &document(output, &view).unwrap().unwrap());
    }
    let table = text::status(&view::status(&objects, &now()), Paint::Plain);
    assert_fits(&table);
    assert_golden("vips.status.txt", &table);
}

#[test]
fn json_and_yaml_say_the_same() {
    let view = view::status(&objects("canary.objects.yaml"), &now());
    let json = document(Output::Json, &view).unwrap().unwrap();
    let yaml = document(Output::Yaml, &view).unwrap().unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    let yaml: Value = serde_saphyr::from_str(&yaml).unwrap();
    assert_eq!(json, yaml);
}

#[test]
fn what_may_not_be_listed_is_absent() {
    let mut objects = objects("canary.objects.yaml");
    objects.nodes = None;
    objects.slices = None;
    let view = view::status(&objects, &now());
    assert_eq!(view.nodes, None);
    assert!(
        view.virtual_servers[0]
            .pools
            .iter()
            .all(|pool| pool.servers.is_none())
    );
    let table = text::status(&view, Paint::Plain);
    assert!(
        table.contains("2/3 take flows") && !table.contains("NODE"),
        "{table}"
    );
}

/// The presence of all nodes, with what the table says of it.
fn presence(objects: &Objects) -> Vec<(String, Presence, String)> {
    let view = view::status(objects, &now());
    let table = text::status(&view, Paint::Plain);
    let state = |name: &str| {
        let line = table.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit("  ").next().unwrap().trim().to_owned()
    };
    let nodes = view.nodes.unwrap().into_iter();
    nodes
        .map(|node| (node.name.clone(), node.presence, state(&node.name)))
        .collect()
}

fn expect_presence(objects: &Objects, expected: &[(&str, Presence, &str)]) {
    let expected: Vec<_> = expected
        .iter()
        .map(|(name, presence, state)| ((*name).to_owned(), *presence, (*state).to_owned()))
        .collect();
    assert_eq!(presence(objects), expected);
}

/// The Lease of a node, written so long before [`now`].
fn lease(node: &str, seconds_ago: i64) -> Lease {
    let written = Timestamp::from_second(now().0.as_second() - seconds_ago).unwrap();
    serde_json::from_value(json!({
        "metadata": {
            "name": format!("sluice-node-{node}"),
            "labels": {"sluice.dev/node": node},
            "managedFields": [{"manager": "sluice-agent", "time": written.to_string()}],
        },
    }))
    .unwrap()
}

fn says_silent(objects: &mut Objects, node: usize, is_silent: bool) {
    let status = &mut objects.nodes.as_mut().unwrap()[node].status;
    let conditions = &mut status.get_or_insert_default().conditions;
    let (kind, reason) = (ConditionType::Silent, Reason::NodeSilent);
    set_condition(conditions, kind, is_silent, reason, "", 1, &now());
}

#[test]
fn a_node_lives_by_its_lease() {
    let mut objects = objects("canary.objects.yaml");
    let clock = Some(now().0.as_second());
    let mut expect = |leases: Vec<Lease>, clock, expected: [(Presence, &str); 2]| {
        objects.leases = Some(Leases::new(leases, clock));
        let [a, b] = expected;
        expect_presence(&objects, &[("node-a", a.0, a.1), ("node-b", b.0, b.1)]);
    };
    let (live, silent) = ((Presence::Live, "live"), (Presence::Silent, "silent"));
    let unknown = (Presence::Unknown, "unknown");
    let both = |a, b| vec![lease("node-a", a), lease("node-b", b)];
    expect(both(3, 40), clock, [live, live]);
    expect(both(3, 41), clock, [live, silent]);
    expect(both(300, 300), clock, [silent, silent]);
    // Without a clock it is as late as the newest Lease at least.
    expect(both(300, 341), None, [live, silent]);
    expect(vec![lease("node-b", 3)], clock, [unknown, live]);
}

#[test]
fn without_leases_the_operators_word_counts() {
    let mut objects = objects("canary.objects.yaml");
    objects.leases = None;
    let unknown = ("node-b", Presence::Unknown, "unknown");
    says_silent(&mut objects, 0, true);
    expect_presence(&objects, &[("node-a", Presence::Silent, "silent"), unknown]);
    says_silent(&mut objects, 0, false);
    expect_presence(
        &objects,
        &[("node-a", Presence::Unknown, "unknown"), unknown],
    );
    // That alone is no report.
    objects.nodes.as_mut().unwrap()[0].status = None;
    says_silent(&mut objects, 0, true);
    expect_presence(
        &objects,
        &[
            ("node-a", Presence::NeverReported, "no report yet"),
            unknown,
        ],
    );
}

#[test]
fn awaited_nodes_are_named() {
    let mut objects = objects("canary.objects.yaml");
    let shown = |objects: &Objects| {
        let view = view::status(objects, &now());
        let acknowledged = view.virtual_servers[0].acknowledged.clone().unwrap();
        (
            acknowledged.nodes,
            acknowledged.live_nodes,
            acknowledged.awaited.unwrap_or_default(),
        )
    };
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(shown(&objects), (Some(1), Some(2), named(&["node-b"])));
    // One that has acknowledged nothing is not awaited, as long as another one has.
    let nodes = objects.nodes.as_mut().unwrap();
    let status = nodes[1].status.as_mut().unwrap();
    (
        status.acknowledged_revision,
        status.acknowledged_pool_revision,
    ) = (0, 0);
    assert_eq!(shown(&objects), (Some(1), Some(1), named(&[])));
    says_silent(&mut objects, 0, true);
    objects.leases = None;
    assert_eq!(shown(&objects), (Some(0), Some(1), named(&["node-b"])));
    objects.nodes = None;
    assert_eq!(shown(&objects), (None, None, Vec::new()));
}

#[test]
fn colour_is_only_added() {
    let view = view::status(&objects("amiss.objects.yaml"), &now());
    let coloured = text::status(&view, Paint::Colour);
    let mut plain = String::new();
    let mut rest = coloured.as_str();
    while let Some(start) = rest.find('\u{1b}') {
        let end = start + rest[start..].find('m').unwrap() + 1;
        plain.push_str(&rest[..start]);
        rest = &rest[end..];
    }
    plain.push_str(rest);
    assert_ne!(coloured, plain);
    assert_eq!(plain, text::status(&view, Paint::Plain));
}

/// The samples in the documentation are what the program prints.
#[test]
fn the_documentation_shows_real_output() {
    let docs = path("../../../docs/kubectl-sluice.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    for name in ["canary.status.txt", "canary.rollout.txt", "vips.txt"] {
        let sample = std::fs::read_to_string(path(name)).unwrap();
        assert!(
            docs.contains(&sample),
            "docs/kubectl-sluice.md lacks {name}"
        );
    }
}
