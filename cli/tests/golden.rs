//! The views of fixture objects, compared with the text in `tests/golden`. `UPDATE_GOLDEN=1` writes it anew.
#![allow(clippy::unwrap_used, reason = "a fixture that is broken ends the test")]

use std::path::PathBuf;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kubectl_sluice::args::Output;
use kubectl_sluice::document;
use kubectl_sluice::text::{self, Paint, WIDTH};
use kubectl_sluice::view::{self, Objects, Presence};
use serde::de::DeserializeOwned;
use serde_json::Value;
use sluice_api::{ConditionType, Reason, Time, find_condition, set_condition};

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
    let view = view::rollout(policy, objects.virtual_servers.first(), &now());
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

#[test]
fn nodes_of_which_nothing_is_said_are_not_called_live() {
    let known = objects("canary.objects.yaml");
    let named = |presence, state| [("node-a", presence, state), ("node-b", presence, state)];
    expect_presence(&known, &named(Presence::Live, "live"));
    let unknown = named(Presence::Unknown, "unknown");
    // Another namespace may have virtual servers, and the operator may not have looked at this one.
    let mut none = known.clone();
    none.virtual_servers.clear();
    expect_presence(&none, &unknown);
    let mut new = known.clone();
    new.virtual_servers[0].status = None;
    expect_presence(&new, &unknown);

    let silent = |names: &str| {
        let mut objects = known.clone();
        let status = objects.virtual_servers[0].status.as_mut().unwrap();
        let message = format!("no report for more than 40 s from {names}: start the agent there");
        set_condition(
            &mut status.conditions,
            ConditionType::NodesSilent,
            true,
            Reason::NodeSilent,
            &message,
            3,
            &now(),
        );
        objects
    };
    let one = ("node-a", Presence::Silent, "silent");
    let live = [one, ("node-b", Presence::Live, "live")];
    let unknown = [one, ("node-b", Presence::Unknown, "unknown")];
    expect_presence(
        &silent("node-a, node-b"),
        &[one, ("node-b", Presence::Silent, "silent")],
    );
    expect_presence(&silent("node-a, node-bb"), &live);
    // Wherever the list is cut, within a name too, it names nobody falsely, and of those it does not name nothing is known.
    for length in 900..1100 {
        let objects = silent(&format!("node-a, {}, node-bb", "x".repeat(length)));
        let status = objects.virtual_servers[0].status.as_ref().unwrap();
        let condition = find_condition(&status.conditions, ConditionType::NodesSilent).unwrap();
        let cut = !condition.message.contains("node-bb:");
        expect_presence(&objects, if cut { &unknown } else { &live });
    }
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

/// What the documentation shows is what the program prints.
#[test]
fn the_documentation_shows_real_output() {
    let docs = path("../../../docs/kubectl-sluice.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    for name in ["canary.status.txt", "canary.rollout.txt"] {
        let sample = std::fs::read_to_string(path(name)).unwrap();
        assert!(
            docs.contains(&sample),
            "docs/kubectl-sluice.md lacks {name}"
        );
    }
}
