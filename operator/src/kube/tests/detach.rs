//! Detaching all nodes.

use std::time::Duration;

use super::server::{conflict, deleted, server};
use super::*;
use crate::kube::detach::detach_all;

/// A LoadBalancerNode as the API server has it.
fn object_of(uid: &str, version: u64, is_detached: bool) -> Value {
    let status = if is_detached { "True" } else { "False" };
    let mut object = json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "LoadBalancerNode",
        "metadata": {"name": "n1", "uid": uid, "resourceVersion": version.to_string(), "annotations": {}},
        "spec": {"interfaces": ["eth0"]},
        "status": {"conditions": [{
            "type": "Detached", "status": status, "reason": "Asked", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]},
    });
    if is_detached {
        object["metadata"]["annotations"] = json!({"sluice.dev/detach": "true"});
    }
    object
}

/// A node that came back under its name while others were waited for has not detached.
#[tokio::test]
async fn detaching_deletes_no_node_that_came_back() {
    let mut looks = 0;
    let (client, requests) = server(move |method, _, body| match method {
        "GET" => {
            looks += 1;
            let object = match looks {
                1 => object_of("a", 5, true),
                _ => object_of("b", 9, false),
            };
            let list = json!({
                "apiVersion": "sluice.dev/v1alpha1", "kind": "LoadBalancerNodeList", "metadata": {}, "items": [object],
            });
            (200, list)
        }
        "PATCH" => (200, object_of("b", 10, false)),
        _ if body["preconditions"]["uid"] == "a" => conflict(),
        _ => deleted(),
    });
    let silent = detach_all(client, Duration::from_millis(400)).await;
    assert_eq!(silent.expect("no error"), ["n1"], "it has not answered");
    let requests = requests.lock().expect("no panic");
    let deletes = requests.iter().filter(|(method, _, _)| method == "DELETE");
    let versions: Vec<&Value> = deletes.map(|(_, _, body)| &body["preconditions"]).collect();
    let first = json!({"uid": "a", "resourceVersion": "5"});
    let then = json!({"uid": "b", "resourceVersion": "10"});
    assert_eq!(versions, [&first, &then]);
}
