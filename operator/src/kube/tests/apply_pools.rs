//! The pools of the chart's values.

use std::time::Duration;

use super::server::{conflict, server};
use super::*;
use crate::kube::apply_pools::{apply_all, read};

const PATH: &str = "/apis/sluice.dev/v1alpha1/addresspools/edge";
const POOLS: &str = r#"[{"name": "edge", "addresses": ["203.0.113.0/28"], "priority": 7}]"#;

/// A refusal by the API server, which names an object if `name` is given.
fn refusal(code: u16, name: Option<&str>) -> (u16, Value) {
    let mut body = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "message": "no"});
    if let Some(name) = name {
        body["reason"] = json!("NotFound");
        body["details"] = json!({"name": name, "kind": "addresspools"});
    }
    (code, body)
}

/// Metadata of the pool as the API server has it.
fn found(version: u64, managed_by: Option<&str>) -> (u16, Value) {
    let mut metadata = json!({"name": "edge", "uid": "u", "resourceVersion": version.to_string()});
    if let Some(manager) = managed_by {
        metadata["labels"] = json!({"app.kubernetes.io/managed-by": manager});
    }
    let body = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata});
    (200, body)
}

/// Applies the pool to a server that answers so. Returns the error, and the methods and bodies of the requests.
async fn apply(
    wait_ms: u64,
    answer: impl FnMut(&str, &str, &Value) -> (u16, Value) + Send + 'static,
) -> (Option<String>, Vec<(String, Value)>) {
    let (client, requests) = server(answer);
    let pools = read(POOLS).expect("a list");
    let result = apply_all(client, pools, Duration::from_millis(wait_ms)).await;
    let requests = requests.lock().expect("no panic");
    let of_pool = requests
        .iter()
        .inspect(|(_, path, _)| assert_eq!(path, PATH));
    let requests = of_pool.map(|(method, _, body)| (method.clone(), body.clone()));
    (
        result.err().map(|error| error.to_string()),
        requests.collect(),
    )
}

/// Until the definition is served the answer names no object.
#[tokio::test]
async fn a_pool_is_made_once_its_kind_is_served() {
    let mut answers = 0;
    let (error, requests) = apply(60_000, move |method, _, _| {
        answers += 1;
        match (method, answers) {
            ("GET", 1) => refusal(404, None),
            ("GET", _) => refusal(404, Some("edge")),
            _ => found(1, Some("sluice-chart")),
        }
    })
    .await;
    assert_eq!(error, None);
    let methods: Vec<&str> = requests.iter().map(|(method, _)| method.as_str()).collect();
    assert_eq!(methods, ["GET", "GET", "PATCH"]);
    let labels = json!({"app.kubernetes.io/managed-by": "sluice-chart"});
    let expected = json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "AddressPool",
        "metadata": {"name": "edge", "labels": labels},
        "spec": {"addresses": ["203.0.113.0/28"], "priority": 7},
    });
    assert_eq!(requests[2].1, expected);
}

#[tokio::test]
async fn a_pool_of_the_chart_is_written_as_it_was_looked_at() {
    let mut patches = 0;
    let (error, requests) = apply(60_000, move |method, _, _| {
        if method == "GET" {
            return found(5 + patches, Some("sluice-chart"));
        }
        patches += 1;
        if patches == 1 {
            conflict()
        } else {
            found(9, Some("sluice-chart"))
        }
    })
    .await;
    assert_eq!(error, None);
    let patches = requests.iter().filter(|(method, _)| method == "PATCH");
    let versions: Vec<&Value> = patches
        .map(|(_, body)| &body["metadata"]["resourceVersion"])
        .collect();
    assert_eq!(versions, [&json!("5"), &json!("6")]);
}

#[tokio::test]
async fn a_pool_of_somebody_else_is_left_alone() {
    for manager in [None, Some("Helm")] {
        let (error, requests) = apply(60_000, move |_, _, _| found(5, manager)).await;
        assert_eq!(error.as_deref(), Some("not applied: edge"));
        assert!(requests.iter().all(|(method, _)| method == "GET"));
    }
}

#[tokio::test]
async fn what_is_refused_to_the_end_is_an_error() {
    for code in [400, 403, 422, 503] {
        let (error, requests) = apply(700, move |method, _, _| match method {
            "GET" => refusal(404, Some("edge")),
            _ => refusal(code, None),
        })
        .await;
        assert_eq!(error.as_deref(), Some("not applied: edge"));
        assert!(requests.len() > 2, "{code}: it is tried again");
    }
}

#[test]
fn a_text_that_is_no_list_of_pools_is_refused() {
    for text in [
        "",
        "{}",
        "[1]",
        r#"[{"addresses": []}]"#,
        r#"[{"name": 1}]"#,
    ] {
        let error = read(text).expect_err(text).to_string();
        assert!(error.contains("each with a name"), "{error}");
    }
    assert_eq!(read("[]").expect("a list"), []);
}
