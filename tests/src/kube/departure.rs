//! A node that leaves the cluster for good.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::{account::Account, condition};
use crate::net::manifest;

const NODE: &str = "departed";

/// Makes a node whose agent never reports, waits until the operator in `namespace` holds it for silent, deletes the Node, and
/// waits until the operator has deleted what is left of it: the LoadBalancerNode and the Lease.
pub fn depart(admin: &Account, namespace: &str, limit: Duration) -> Result<()> {
    let objects = [
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}),
        json!({
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "LoadBalancerNode",
            "metadata": {"name": NODE},
            "spec": {"interfaces": ["eth0"]},
        }),
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": format!("sluice-node-{NODE}"),
                "namespace": namespace,
                "labels": {"sluice.dev/node": NODE},
            },
            "spec": {"holderIdentity": NODE},
        }),
    ];
    admin.apply(&manifest::documents(&objects))?;
    admin.until(&["get", "loadbalancernode", NODE], limit, |object| {
        condition(object, "Silent")["status"] == "True"
    })?;
    admin.kubectl(["delete", "node", NODE])?;
    for kind in ["lease", "loadbalancernode"] {
        let list = ["get", kind, "--namespace", namespace];
        admin.until(&list, limit, |list| {
            let mut items = list["items"].as_array().into_iter().flatten();
            let is_left = |item: &Value| item["metadata"]["name"].to_string().contains(NODE);
            !items.any(is_left)
        })?;
    }
    Ok(())
}
