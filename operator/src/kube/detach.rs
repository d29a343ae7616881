//! Asks all nodes' agents to take everything off their nodes, and removes the LoadBalancerNodes.

use std::collections::BTreeSet;
use std::time::Duration;

use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use sluice_api::{
    ConditionType, DETACH_ANNOTATION, LoadBalancerNode, OPERATOR_MANAGER, find_condition,
};
use sluice_kube::error::{RequestError, within};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

/// Nodes are looked at this often.
const POLL: Duration = Duration::from_millis(500);
/// How long an answer of the API server is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The nodes could not be removed.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// The API server did not answer in time.
    #[error("the API server has not answered for {} s: is it reachable from here?", ANSWER_TIMEOUT.as_secs())]
    Silent,
    /// The API server refused.
    #[error("the API server refuses: may this account list, patch and delete loadbalancernodes?")]
    Refused(#[source] RequestError),
}

/// Annotates every node, waits until each has answered, is gone, or the time is over, and deletes them all. Returns the
/// names of those that did not answer.
pub async fn detach_all(client: Client, wait: Duration) -> Result<Vec<String>, Error> {
    let api = Api::<LoadBalancerNode>::all(client);
    let end = Instant::now() + wait;
    let mut asked = BTreeSet::new();
    let mut done = BTreeSet::new();
    loop {
        let result = look(&api, &mut asked, &mut done).await;
        let over = Instant::now() >= end;
        match result {
            Ok(silent) if silent.is_empty() || over => {
                for name in &silent {
                    warn!(
                        node = name,
                        "has not answered; remove what is left there with: sluice-agent detach"
                    );
                }
                remove(&api).await?;
                return Ok(silent);
            }
            Ok(_) => {}
            Err(error) if over => return Err(error),
            Err(error) => warn!(%error, "tries again"),
        }
        sleep(POLL).await;
    }
}

/// Asks who was not asked yet. Returns the names of those who have not answered.
async fn look(
    api: &Api<LoadBalancerNode>,
    asked: &mut BTreeSet<String>,
    done: &mut BTreeSet<String>,
) -> Result<Vec<String>, Error> {
    let nodes = answer(api.list(&ListParams::default())).await?;
    let mut silent = Vec::new();
    for node in nodes {
        let name = node.name_any();
        if !node.annotations().contains_key(DETACH_ANNOTATION) {
            let patch = json!({"metadata": {"annotations": {DETACH_ANNOTATION: "true"}}});
            let parameters = PatchParams {
                field_manager: Some(OPERATOR_MANAGER.to_owned()),
                ..PatchParams::default()
            };
            match answer(api.patch(&name, &parameters, &Patch::Merge(&patch))).await {
                Err(Error::Refused(error)) if error.code() == Some(404) => continue,
                result => result.map(drop)?,
            }
        }
        if asked.insert(name.clone()) {
            info!(node = name, "is asked to detach");
        }
        let status = node.status.unwrap_or_default();
        let detached = find_condition(&status.conditions, ConditionType::Detached);
        if detached.is_none_or(|condition| condition.status != "True") {
            silent.push(name);
        } else if done.insert(name.clone()) {
            info!(node = name, "has detached");
        }
    }
    let gone = asked.iter().filter(|name| !silent.contains(name));
    for name in gone.cloned().collect::<Vec<_>>() {
        if done.insert(name.clone()) {
            info!(node = name, "is gone");
        }
    }
    Ok(silent)
}

async fn remove(api: &Api<LoadBalancerNode>) -> Result<(), Error> {
    for node in answer(api.list(&ListParams::default())).await? {
        let name = node.name_any();
        match answer(api.delete(&name, &DeleteParams::default())).await {
            Err(Error::Refused(error)) if error.code() == Some(404) => {}
            result => result.map(drop)?,
        }
        info!(node = name, "its LoadBalancerNode is deleted");
    }
    Ok(())
}

async fn answer<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    within(ANSWER_TIMEOUT, request)
        .await
        .map_err(|error| match error {
            RequestError::Slow(_) => Error::Silent,
            other => Error::Refused(other),
        })
}
