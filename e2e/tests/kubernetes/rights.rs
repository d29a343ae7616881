//! Sluice has the capabilities and permissions that it needs, and no others.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_e2e::stage::{CHANGE_TIMEOUT, SYSTEM, Sluice};
use sluice_tests::kube::audit;

/// How long an agent that lacks a capability is looked at. One that has all of them is ready after about two seconds.
const WATCHED: Duration = Duration::from_mins(1);

/// Takes one capability at a time from the DaemonSet, and gives it back.
pub(crate) fn capabilities(sluice: &mut Sluice) -> Result<()> {
    let daemon_set = "daemonset/sluice-agent";
    let object = sluice
        .cluster
        .admin()
        .json(["get", "--namespace", SYSTEM, daemon_set])?;
    let given = "/spec/template/spec/containers/0/securityContext/capabilities/add";
    let all: Vec<String> =
        serde_json::from_value(object.pointer(given).context("capabilities")?.clone())?;
    ensure!(all.len() == 4, "the agent has {all:?}");
    for missing in &all {
        let rest: Vec<&String> = all.iter().filter(|name| *name != missing).collect();
        patch(sluice, daemon_set, given, &json!(rest))?;
        let why = fails(sluice, missing);
        let why = why.with_context(|| format!("the agent does everything without {missing}"))?;
        println!("without {missing}: {why}");
        patch(sluice, daemon_set, given, &json!(all))?;
        sluice.kubectl(&format!(
            "rollout status --namespace {SYSTEM} {daemon_set} --timeout={}s",
            CHANGE_TIMEOUT.as_secs()
        ))?;
    }
    Ok(())
}

fn patch(sluice: &Sluice, object: &str, path: &str, value: &Value) -> Result<()> {
    let change = json!([{"op": "replace", "path": path, "value": value}]).to_string();
    let arguments = [
        "patch",
        "--namespace",
        SYSTEM,
        object,
        "--type=json",
        "--patch",
        &change,
    ];
    sluice.cluster.admin().kubectl(arguments)?;
    Ok(())
}

/// Waits until the replaced agent has said what is wrong, which it cannot mend. Returns what it said. Without raw sockets it
/// announces nothing, and forwards all the same.
fn fails(sluice: &Sluice, missing: &str) -> Result<String> {
    let forwards = missing == "NET_RAW";
    let selector = "app.kubernetes.io/component=agent";
    let arguments = ["get", "pods", "--namespace", SYSTEM, "--selector", selector];
    let mut complaint = String::new();
    sluice.cluster.admin().until(&arguments, WATCHED, |pods| {
        let newest = pods["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .max_by_key(|pod| {
                pod["metadata"]["creationTimestamp"]
                    .as_str()
                    .map(str::to_owned)
            });
        let Some(name) = newest.and_then(|pod| pod["metadata"]["name"].as_str()) else {
            return false;
        };
        let ready = newest.is_some_and(|pod| sluice_tests::kube::has_condition(pod, "Ready"));
        let logs = sluice.kubectl(&format!("logs --namespace {SYSTEM} {name}"));
        let logs = logs.unwrap_or_default();
        let bad = logs
            .lines()
            .find(|line| line.contains("ERROR") || line.contains("WARN"));
        bad.unwrap_or_default().clone_into(&mut complaint);
        let is_its = bad.is_some_and(|line| !forwards || line.contains("CAP_NET_RAW"));
        is_its && ready == forwards
    })?;
    Ok(complaint)
}

/// A permission that is missing shows as a refusal, one that nobody needs as unused. Creating by server-side apply needs
/// the verb `create` too, but is noted as a patch; `api_rights` shows what fails without it.
pub(crate) fn permissions(sluice: &mut Sluice) -> Result<()> {
    audit::expect_neither_more_nor_less(&audit::asked(sluice.cluster.control())?)
}
