//! Giving a command: check, write, wait for the operator's answer.

use std::time::Duration;

use anyhow::bail;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use sluice_api::{
    API_VERSION, CLI_MANAGER, ConditionType, Kind, ObjectKey, ROLLOUT_COMMAND_ANNOTATION,
    RolloutPolicy, find_condition,
};
use sluice_rollout::{CommandVerb, answered};
use tokio::time::{Instant, sleep};

use crate::args::{Order, Output};
use crate::command::{self, Answer, Prepared};
use crate::connect::{self, Cluster};
use crate::problem::{Access, Problem};
use crate::text::phase_line;
use crate::{EXIT_DONE, fetch, put};

use super::{follow, now};

const GET: Access = Access::sluice("get", "rolloutpolicies");
const PATCH: Access = Access::sluice("patch", "rolloutpolicies");
/// The operator answers within a second or two.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Each conflict means that the operator has just written: more in a row are not to be expected.
const MAX_CONFLICTS: u32 = 10;

pub(super) async fn give(
    cluster: &Cluster,
    verb: CommandVerb,
    order: &Order,
) -> anyhow::Result<u8> {
    let (policy, _) = fetch::policy(cluster, &order.target.name).await?;
    let prepared = command::prepare(verb, &policy).map_err(anyhow::Error::msg)?;
    let given = Given {
        cluster,
        key: ObjectKey::of(&policy),
        prepared,
        timeout: order.timeout,
        deadline: Instant::now() + order.timeout,
    };
    let policy = given.forget(policy).await?;
    given.write(policy).await?;
    let policy = given.answered().await?;
    put(&format!(
        "{} accepted for RolloutPolicy {}\n",
        given.prepared.command, given.key
    ))?;
    if order.target.watch {
        return follow::follow(cluster, &policy, Output::Table, Some(verb)).await;
    }
    let target = &policy.spec.virtual_server_name;
    let virtual_server = fetch::virtual_server(cluster, target).await?;
    let nodes = fetch::nodes_if_allowed(cluster).await?;
    let view = now(&policy, virtual_server.as_ref(), nodes.as_deref());
    put(&format!("{}\n", phase_line(&view)))?;
    if let Some(next) = &view.next {
        put(&format!("Next: {}\n", next.command_line))?;
    }
    Ok(EXIT_DONE)
}

/// A command on its way.
struct Given<'a> {
    cluster: &'a Cluster,
    key: ObjectKey,
    prepared: Prepared,
    timeout: Duration,
    deadline: Instant,
}

impl Given<'_> {
    async fn get(&self) -> Result<RolloutPolicy, Problem> {
        let api = self.cluster.policies();
        self.cluster.request(GET, api.get(&self.key.name)).await
    }

    /// Removes an annotation that the operator has answered, and waits until it has forgotten its answer.
    async fn forget(&self, policy: RolloutPolicy) -> anyhow::Result<RolloutPolicy> {
        if !self.prepared.remove_first {
            return Ok(policy);
        }
        let body = json!({"metadata": {"annotations": {ROLLOUT_COMMAND_ANNOTATION: Value::Null}}});
        let params = connect::merge_params();
        let text = self.prepared.command.to_string();
        let api = self.cluster.policies();
        let patch = Patch::Merge(&body);
        let request = api.patch(&self.key.name, &params, &patch);
        let mut policy = self.cluster.request(PATCH, request).await?;
        loop {
            let status = policy.status.as_ref();
            if status.is_none_or(|status| answered(&text, status).is_none()) {
                return Ok(policy);
            }
            self.check_deadline(&policy)?;
            sleep(LOOK_EVERY).await;
            policy = self.get().await?;
        }
    }

    /// Writes the annotation and nothing else, if run and step are still those that the command was made for.
    async fn write(&self, mut policy: RolloutPolicy) -> anyhow::Result<()> {
        let command = &self.prepared.command;
        let text = command.to_string();
        let api = self.cluster.policies();
        let params = PatchParams::apply(CLI_MANAGER).force();
        for _ in 0..MAX_CONFLICTS {
            let status = policy.status.as_ref();
            if !status.is_some_and(|status| command.is_for(status)) {
                break;
            }
            let body = json!({
                "apiVersion": API_VERSION,
                "kind": Kind::RolloutPolicy.name(),
                "metadata": {
                    "name": self.key.name,
                    "namespace": self.key.namespace,
                    "resourceVersion": policy.metadata.resource_version,
                    "annotations": {ROLLOUT_COMMAND_ANNOTATION: text},
                },
            });
            let patch = Patch::Apply(&body);
            let request = api.patch(&self.key.name, &params, &patch);
            match self.cluster.request(PATCH, request).await {
                Ok(_) => return Ok(()),
                Err(Problem::Conflict { .. }) => policy = self.get().await?,
                Err(problem) => return Err(problem.into()),
            }
        }
        bail!(
            "the run of RolloutPolicy {} changed while {text} was being written, so nothing was done: see where it is now \
             with kubectl sluice rollout get {} -n {} and give the command again",
            self.key,
            self.key.name,
            self.key.namespace
        )
    }

    async fn answered(&self) -> anyhow::Result<RolloutPolicy> {
        loop {
            let policy = self.get().await?;
            match command::answer(&self.prepared.command, &policy) {
                Some(Answer::Accepted) => return Ok(policy),
                Some(Answer::Refused(why) | Answer::Replaced(why)) => bail!(why),
                None => {}
            }
            self.check_deadline(&policy)?;
            sleep(LOOK_EVERY).await;
        }
    }

    fn check_deadline(&self, policy: &RolloutPolicy) -> anyhow::Result<()> {
        if Instant::now() < self.deadline {
            return Ok(());
        }
        let status = policy.status.as_ref();
        let ready = status.and_then(|s| find_condition(&s.conditions, ConditionType::Ready));
        let said = ready.map_or_else(
            || "it has no condition Ready".to_owned(),
            |ready| {
                format!(
                    "its condition Ready is {} ({}) {}",
                    ready.status, ready.reason, ready.message
                )
            },
        );
        bail!(
            "the operator has not answered {} within {:?}; RolloutPolicy {}: {said}. Is the operator running? (kubectl get \
             deployments -A -l app.kubernetes.io/part-of=sluice) The command stays and counts when it comes back; this takes it \
             back: kubectl annotate rolloutpolicy {} -n {} {ROLLOUT_COMMAND_ANNOTATION}-",
            self.prepared.command,
            self.timeout,
            self.key,
            self.key.name,
            self.key.namespace
        )
    }
}
