//! The views of fixture objects, compared with the text in `tests/golden`. `UPDATE_GOLDEN=1` writes it anew.
#![allow(clippy::unwrap_used, reason = "a fixture that is broken ends the test")]

use std::path::PathBuf;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kubectl_sluice::args::Output;
use kubectl_sluice::document;
use kubectl_sluice::text::{self, Paint, WIDTH};
use kubectl_sluice::view::{self, Objects};
use serde::de::DeserializeOwned;
use serde_json::Value;
use sluice_api::Time;

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
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path(name), text).unwrap();
    }
    let expected = std::fs::read_to_string(path(name)).unwrap();
    assert_eq!(text, expected, "{name}");
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
