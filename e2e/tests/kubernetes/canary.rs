//! Canary releases between two Deployments.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_e2e::stage::{CHANGE_TIMEOUT, SHOP, Sluice, WEB};
use sluice_e2e::traffic::{Traffic, expect_share};

/// From the second version back to the first one: each step waits for a command.
const BACK: &str = "
apiVersion: sluice.dev/v1alpha1
kind: RolloutPolicy
metadata: {name: back, namespace: shop}
spec:
  virtualServerName: web
  stablePoolName: web-v2
  candidatePoolName: web-v1
  strategy: {canary: {steps: [{weight: 10, gate: Manual}, {weight: 50, gate: Manual}]}}
";

/// The section of the quick start, with clients all the time.
pub(crate) fn quick_start(sluice: &mut Sluice) -> Result<()> {
    let traffic = Traffic::start_with_kept(sluice.cluster.client(), WEB)?;
    expect_share(&traffic.sample()?, "web-v2", 0)?;
    sluice.quick_start("A canary")?;
    expect_share(&traffic.sample()?, "web-v2", 100)?;
    let made = traffic.finish()?;
    println!("{made} new connections, none failed");
    // The policy holds the weights that it has reached; without it they stay.
    sluice.kubectl(&format!("delete --namespace {SHOP} rolloutpolicy web"))?;
    Ok(())
}

/// Shares are measured while the gate of each step is closed.
pub(crate) fn back(sluice: &mut Sluice) -> Result<()> {
    let traffic = Traffic::start_with_kept(sluice.cluster.client(), WEB)?;
    expect_share(&traffic.sample()?, "web-v1", 0)?;
    sluice.cluster.admin().apply(BACK)?;
    for weight in [10, 50] {
        gated(sluice, weight)?;
        expect_share(&traffic.sample()?, "web-v1", weight)?;
        sluice.cluster.admin().apply(BACK)?;
        sluice.plugin(&format!("--namespace {SHOP} rollout promote back"))?;
    }
    sluice.until("rolloutpolicy/back", CHANGE_TIMEOUT, |policy| {
        policy["status"]["phase"] == "Completed"
    })?;
    expect_share(&traffic.sample()?, "web-v1", 100)?;
    // Agents in pods report what they see to the operator's pod.
    sluice.until("rolloutpolicy/back", CHANGE_TIMEOUT, |policy| {
        let metrics = policy["status"]["analysis"]["metrics"].as_array();
        let mut metrics = metrics.into_iter().flatten();
        metrics.any(|metric| metric["candidate"]["samples"].as_u64() > Some(0))
    })?;
    let made = traffic.finish()?;
    println!("{made} new connections, none failed");
    Ok(())
}

/// Waits until the policy's step has this weight and its gate is reached: then every live node has acknowledged it.
fn gated(sluice: &Sluice, weight: u32) -> Result<()> {
    sluice.until("rolloutpolicy/back", CHANGE_TIMEOUT, |policy| {
        let status = &policy["status"];
        status["phase"] == "Gated" && status["step"]["weight"] == weight
    })?;
    let web = sluice.until("virtualserver/web", CHANGE_TIMEOUT, |_| true)?;
    let acknowledged = &web["status"]["acknowledged"];
    let decision = &web["status"]["decision"];
    ensure!(
        acknowledged["revision"] == decision["revision"]
            && acknowledged["pools"] == decision["pools"],
        "the gate was reached before all nodes had the step: {}",
        web["status"]
    );
    let nodes = sluice.cluster.admin().json(["get", "loadbalancernodes"])?;
    let nodes = nodes["items"].as_array().context("a list")?;
    ensure!(nodes.len() == 3, "{} nodes", nodes.len());
    for node in nodes {
        let known = node["status"]["acknowledgedRevision"].as_u64();
        ensure!(
            known >= decision["revision"].as_u64(),
            "{} has not acknowledged {}",
            node["metadata"]["name"],
            decision["revision"]
        );
    }
    Ok(())
}

/// Applies manifests a second time in the midst of a rollout that has moved weights, as GitOps tools do all the time:
/// nothing may change.
pub(crate) fn applied_again(sluice: &mut Sluice) -> Result<()> {
    let before = sluice.owned_by_user()?;
    for _ in 0..2 {
        let answer = sluice.apply_example("web")?;
        let changed: Vec<&str> = answer
            .lines()
            .filter(|line| !line.ends_with("unchanged"))
            .collect();
        ensure!(changed.is_empty(), "changed by applying again: {changed:?}");
    }
    let server_side = "apply --server-side --field-manager=gitops -f";
    let path = Sluice::example("web")?;
    sluice.kubectl(&format!("{server_side} {path} --force-conflicts"))?;
    sluice
        .kubectl(&format!("{server_side} {path}"))
        .context("a second apply conflicts")?;
    let after = sluice.owned_by_user()?;
    ensure!(
        without_bookkeeping(&before) == without_bookkeeping(&after),
        "{before:#?} became {after:#?}"
    );
    let diff = sluice.kubectl(&format!("diff -f {path}"));
    ensure!(diff.is_ok(), "{diff:?}");
    sluice.kubectl(&format!("delete --namespace {SHOP} rolloutpolicy back"))?;
    Ok(())
}

/// kubectl keeps its last manifest in an annotation, which a server-side apply takes over or drops.
fn without_bookkeeping(objects: &[Value]) -> Vec<Value> {
    let mut objects = objects.to_vec();
    for object in &mut objects {
        if let Some(annotations) = object["annotations"].as_object_mut() {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
            if annotations.is_empty() {
                object["annotations"] = Value::Null;
            }
        }
    }
    objects
}
