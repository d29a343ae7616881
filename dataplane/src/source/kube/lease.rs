//! The Lease by which this node says that it lives: renewed while the core's loop goes round, and not otherwise.
//!
//! Whoever lives is taken at its word: of a node without the maps of an earlier agent, which a reboot takes away, the first
//! renewal waits until a status was written that does not acknowledge what was in them.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use sluice_api::{AGENT_MANAGER, MAX_LABEL_LENGTH, NODE_LABEL, NODE_SILENT_SECONDS, node_lease};
use tokio::time::{MissedTickBehavior, interval};
use tracing::info;

use super::{Error, Kube, within};
use crate::source::SourceState;
use crate::state::State;

/// Time between two renewals.
const PERIOD: Duration = Duration::from_secs(5);
/// Time without a turn of the core's loop after which the node does not count as alive.
const STUCK: Duration = Duration::from_secs(10);
/// The name in metrics and messages.
const NAME: &str = "Lease";

/// Where a Lease stood: its uid and resource version.
type Position = (String, Option<u128>);

/// Renews the Lease until the node is detached and says so.
pub(super) async fn run(server: Kube, state: Arc<State>) {
    server.source.expect(NAME);
    // The sender is the server's own.
    let _ = server
        .current
        .subscribe()
        .wait_for(|current| *current)
        .await;
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut left = server.left.subscribe();
    let mut last: Option<Position> = None;
    loop {
        tokio::select! {
            biased;
            _ = left.wait_for(|left| *left) => {
                server.works(NAME);
                return;
            }
            _ = ticks.tick() => {}
        }
        if !state.turned_within(STUCK) {
            continue;
        }
        let renewed = renew(&server).await;
        let source = &server.source;
        let (successes, failures) = (&source.lease_renewals, &source.lease_failures);
        SourceState::count(successes, failures, renewed.is_ok());
        match renewed {
            Ok(position) => {
                server.works(NAME);
                if last
                    .as_ref()
                    .is_some_and(|last| is_another(last, &position))
                {
                    info!("the API server has lost this node's Lease: reading everything anew");
                    server.world.send_modify(|world| *world += 1);
                }
                last = Some(position);
            }
            Err(error) => {
                source.failed(NAME);
                let failed = "cannot renew this node's Lease";
                server.complaints.fail(NAME, failed, &error);
            }
        }
    }
}

async fn renew(server: &Kube) -> Result<Position, Error> {
    let api: Api<Lease> = Api::namespaced(server.client.clone(), &server.namespace);
    let body = lease(&server.node, Timestamp::now());
    let parameters = PatchParams::apply(AGENT_MANAGER).force();
    let name = node_lease(&server.node);
    let written = within(api.patch(&name, &parameters, &Patch::Apply(&body))).await?;
    let meta = written.metadata;
    let version = meta
        .resource_version
        .and_then(|version| version.parse().ok());
    Ok((meta.uid.unwrap_or_default(), version))
}

fn lease(node: &str, now: Timestamp) -> Value {
    let mut metadata = json!({"name": node_lease(node)});
    if node.len() <= MAX_LABEL_LENGTH {
        metadata["labels"] = json!({NODE_LABEL: node});
    }
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": metadata,
        "spec": {
            "holderIdentity": node,
            "leaseDurationSeconds": NODE_SILENT_SECONDS,
            "renewTime": format!("{now:.6}"),
        },
    })
}

/// Whether the Lease is another object than before, or went back in time: the server was wiped, restored or exchanged, and a
/// watch that goes on from a version of the old one would stay silent.
fn is_another(last: &Position, now: &Position) -> bool {
    let went_back = matches!((last.1, now.1), (Some(last), Some(now)) if now < last);
    last.0 != now.0 || went_back
}

#[cfg(test)]
mod tests {
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
    fn a_long_name_has_no_label() {
        let lease = lease(&"n".repeat(64), Timestamp::UNIX_EPOCH);
        assert_eq!(lease["metadata"].get("labels"), None);
    }

    #[test]
    fn another_server_is_known_by_its_lease() {
        let at = |uid: &str, version| (uid.to_owned(), Some(version));
        assert!(!is_another(&at("a", 5), &at("a", 6)));
        assert!(is_another(&at("a", 5), &at("b", 6)));
        assert!(is_another(&at("a", 5), &at("a", 4)));
        assert!(!is_another(&at("a", 5), &("a".to_owned(), None)));
    }
}
