//! The Lease by which a node's agent says that it lives: the agent renews it, the operator reads it.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use sluice_api::jiff::Timestamp;
use sluice_api::{AGENT_MANAGER, NODE_LABEL, NODE_SILENT_SECONDS, Time, node_label, node_lease};

use crate::error::{RequestError, within};
use crate::identity::Position;

/// How long the answer to a renewal is waited for.
const RENEW_LIMIT: Duration = Duration::from_secs(5);
/// How long the answer to a list is waited for: who asks is about to take nodes for silent.
const LIST_LIMIT: Duration = Duration::from_secs(3);

/// Renews the Lease of a node, or makes it. Returns where the API server stands.
pub async fn renew(client: &Client, namespace: &str, node: &str) -> Result<Position, RequestError> {
    let api: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let body = lease(node, Timestamp::now());
    let parameters = PatchParams::apply(AGENT_MANAGER).force();
    let name = node_lease(node);
    let patch = Patch::Apply(&body);
    let written = within(RENEW_LIMIT, api.patch(&name, &parameters, &patch)).await?;
    let meta = written.metadata;
    Ok(Position::new(meta.uid, meta.resource_version.as_deref()))
}

/// The Leases of all nodes.
pub async fn list(client: &Client, namespace: &str) -> Result<Vec<Lease>, RequestError> {
    let api = Api::<Lease>::namespaced(client.clone(), namespace);
    let parameters = ListParams::default().labels(NODE_LABEL);
    let leases = within(LIST_LIMIT, api.list(&parameters)).await?;
    Ok(leases.items)
}

/// The times in a node's Lease.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LeaseFacts {
    /// When its agent last renewed it, by the node's clock.
    pub renewed: Option<Time>,
    /// When it was last written, in seconds by the API server's clock.
    pub written: Option<i64>,
}

impl LeaseFacts {
    /// Reads a Lease.
    pub fn of(lease: Lease) -> Self {
        let renewed = lease.spec.and_then(|spec| spec.renew_time);
        let managers = lease.metadata.managed_fields.unwrap_or_default();
        let written = managers.iter().filter_map(|entry| entry.time.as_ref());
        Self {
            renewed: renewed.map(|time| Time(time.0)),
            written: written.map(|time| time.0.as_second()).max(),
        }
    }
}

fn lease(node: &str, now: Timestamp) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": node_lease(node), "labels": {NODE_LABEL: node_label(node)}},
        "spec": {
            "holderIdentity": node,
            "leaseDurationSeconds": NODE_SILENT_SECONDS,
            "renewTime": format!("{now:.6}"),
        },
    })
}

#[cfg(test)]
mod tests {
    use sluice_api::MAX_LABEL_LENGTH;

    use super::*;

    #[test]
    fn a_lease_says_who_and_for_how_long() {
        let lease = lease("d1", Timestamp::UNIX_EPOCH);
        assert_eq!(lease["metadata"]["name"], "sluice-node-d1");
        assert_eq!(lease["metadata"]["labels"]["sluice.dev/node"], "d1");
        assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
        assert_eq!(lease["spec"]["renewTime"], "1970-01-01T00:00:00.000000Z");
    }

    #[test]
    /// Leases are found by their label, so without one its node would count as silent.
    fn a_long_name_has_a_label_too() {
        let long = format!("{}.example.com", "n".repeat(60));
        let lease = lease(&long, Timestamp::UNIX_EPOCH);
        let label = lease["metadata"]["labels"]["sluice.dev/node"].as_str();
        let label = label.expect("a label");
        assert!(
            label.len() <= MAX_LABEL_LENGTH && sluice_api::is_label(label),
            "{label}"
        );
        assert_ne!(label, node_label(&long.replace("com", "org")));
    }

    #[test]
    fn the_last_writer_dates_a_lease() {
        let lease = serde_json::from_value(json!({
            "metadata": {"managedFields": [
                {"manager": "a", "time": "2026-01-01T00:00:05Z"},
                {"manager": "b", "time": "2026-01-01T00:00:09Z"},
            ]},
            "spec": {"renewTime": "2026-01-01T00:00:01.000000Z"},
        }));
        let facts = LeaseFacts::of(lease.expect("a Lease"));
        assert_eq!(facts.written, Some(1_767_225_609));
        assert_eq!(
            facts.renewed.map(|time| time.0.as_second()),
            Some(1_767_225_601)
        );
    }
}
