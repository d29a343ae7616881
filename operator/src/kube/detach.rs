//! Asks all nodes' agents to take everything off their nodes, and removes the LoadBalancerNodes.

use std::collections::BTreeSet;
use std::time::Duration;

use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, Resource as _, ResourceExt};
use serde_json::json;
use sluice_api::{ConditionType, DETACH_ANNOTATION, LoadBalancerNode, OPERATOR_MANAGER, is_true};
use sluice_kube::Stamp;
use sluice_kube::error::{RequestError, within};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::writer::only;

/// Nodes are looked at this often.
const POLL: Duration = Duration::from_millis(500);
/// How long an answer of the API server is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long nodes that change while they are deleted are looked at again, when the time for their answers is over.
const CHANGES_TIMEOUT: Duration = Duration::from_secs(10);

/// The nodes could not be removed.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// The API server did not answer in time.
    #[error("the API server has not answered for {} s: is it reachable from here?", ANSWER_TIMEOUT.as_secs())]
    Silent,
    /// The API server refused.
    #[error("the API server refuses: may this account list, patch and delete loadbalancernodes?")]
    Refused(#[source] RequestError),
    /// A node changes whenever it is to be deleted.
    #[error(
        "the LoadBalancerNode {0} changes again and again: find out who writes it, and run this command once more"
    )]
    Changes(String),
}

/// Annotates every node, waits until each has answered, is gone, or the time is over, and deletes them all. Returns the
/// names of those that did not answer.
///
/// A node is deleted as it was looked at: one that has changed, or is another of the same name, is looked at again.
pub async fn detach_all(client: Client, wait: Duration) -> Result<Vec<String>, Error> {
    let api = Api::<LoadBalancerNode>::all(client);
    let end = Instant::now() + wait;
    let mut asked = BTreeSet::new();
    let mut done = BTreeSet::new();
    loop {
        let result = look(&api, &mut asked, &mut done).await;
        let over = Instant::now() >= end;
        match result {
            Ok(nodes) if nodes.silent.is_empty() || over => {
                let Some(changed) = remove(&api, &nodes.seen).await? else {
                    for name in &nodes.silent {
                        warn!(
                            node = name,
                            "has not answered; remove what is left there with: sluice-agent detach"
                        );
                    }
                    return Ok(nodes.silent);
                };
                if Instant::now() >= end + CHANGES_TIMEOUT {
                    return Err(Error::Changes(changed));
                }
            }
            Ok(_) => {}
            Err(error) if over => return Err(error),
            Err(error) => warn!(%error, "tries again"),
        }
        sleep(POLL).await;
    }
}

/// The nodes as they were looked at.
#[derive(Debug, Default)]
struct Looked {
    /// Names of those that have not answered.
    silent: Vec<String>,
    /// All, with the version of each.
    seen: Vec<(String, Stamp)>,
}

/// Asks who was not asked yet.
async fn look(
    api: &Api<LoadBalancerNode>,
    asked: &mut BTreeSet<String>,
    done: &mut BTreeSet<String>,
) -> Result<Looked, Error> {
    let nodes = answer(api.list(&ListParams::default())).await?;
    let mut looked = Looked::default();
    for mut node in nodes {
        let name = node.name_any();
        if !node.annotations().contains_key(DETACH_ANNOTATION) {
            let patch = json!({"metadata": {"annotations": {DETACH_ANNOTATION: "true"}}});
            let parameters = PatchParams {
                field_manager: Some(OPERATOR_MANAGER.to_owned()),
                ..PatchParams::default()
            };
            match answer(api.patch(&name, &parameters, &Patch::Merge(&patch))).await {
                Err(Error::Refused(error)) if error.code() == Some(404) => continue,
                patched => node = patched?,
            }
        }
        if asked.insert(name.clone()) {
            info!(node = name, "is asked to detach");
        }
        looked.seen.push((name.clone(), Stamp::of(node.meta())));
        let status = node.status.unwrap_or_default();
        if !is_true(&status.conditions, ConditionType::Detached) {
            looked.silent.push(name);
        } else if done.insert(name.clone()) {
            info!(node = name, "has detached");
        }
    }
    let gone = asked.iter().filter(|name| !looked.silent.contains(name));
    for name in gone.cloned().collect::<Vec<_>>() {
        if done.insert(name.clone()) {
            info!(node = name, "is gone");
        }
    }
    Ok(looked)
}

/// Returns one that has changed since it was looked at, and is still there.
async fn remove(
    api: &Api<LoadBalancerNode>,
    seen: &[(String, Stamp)],
) -> Result<Option<String>, Error> {
    let mut changed = None;
    for (name, stamp) in seen {
        match answer(api.delete(name, &only(stamp))).await {
            Err(Error::Refused(error)) if error.code() == Some(404) => {}
            Err(Error::Refused(error)) if error.code() == Some(409) => {
                changed = Some(name.clone());
                continue;
            }
            result => result.map(drop)?,
        }
        info!(node = name, "its LoadBalancerNode is deleted");
    }
    Ok(changed)
}

async fn answer<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    within(ANSWER_TIMEOUT, request)
        .await
        .map_err(|error| match error {
            RequestError::Slow(_) => Error::Silent,
            other => Error::Refused(other),
        })
}
