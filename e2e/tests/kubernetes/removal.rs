//! Nodes and the whole of Sluice go.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sluice_e2e::stage::{CHANGE_TIMEOUT, NODES, SHOP, SYSTEM, Sluice, WEB};
use sluice_tests::kube::{BpfObjects, departure};
use sluice_tests::net::until;

use crate::services;

/// The longest time for which a dead node holds up a step.
const HELD_UP: Duration = Duration::from_secs(45);

/// The section of the quick start. Afterwards the kernel has what it had before.
pub(crate) fn uninstall(sluice: &mut Sluice) -> Result<()> {
    let held = BpfObjects::now()?.since(&sluice.before);
    ensure!(
        held.programs.len() >= NODES.len() && held.maps.len() >= NODES.len(),
        "Sluice is not there: {held}"
    );
    sluice.kubectl(&format!(
        "delete --ignore-not-found --namespace {SHOP} virtualserver/everywhere"
    ))?;
    sluice.apply_example("rollout")?;
    sluice.quick_start("Removing")?;
    let mut left = String::new();
    // The kernel frees maps some time after their last user is gone.
    until(
        "the kernel to free programs and maps",
        CHANGE_TIMEOUT,
        || {
            left = BpfObjects::now().map_or_else(
                |error| error.to_string(),
                |now| {
                    let left = now.since(&sluice.before);
                    if left.is_empty() {
                        String::new()
                    } else {
                        left.to_string()
                    }
                },
            );
            left.is_empty()
        },
    )
    .with_context(|| left.clone())?;
    for name in NODES {
        let node = sluice.cluster.node(name)?;
        let mut namespaces = Ok(String::new());
        // The pod of the Job that asked the agents goes a moment after the release.
        until("network namespaces to go", CHANGE_TIMEOUT, || {
            namespaces = node.run("ls /run/netns");
            namespaces.as_ref().is_ok_and(|list| list.trim().is_empty())
        })
        .with_context(|| format!("left on {name}: {namespaces:?}"))?;
        // The kernel itself has two files there.
        let pins = node.run("ls --ignore=*.debug /sys/fs/bpf")?;
        let qdiscs = node.run("tc qdisc show dev eth0")?;
        let link = node.run("ip -details link show dev eth0")?;
        ensure!(pins.trim().is_empty(), "pins are left on {name}: {pins}");
        ensure!(
            !qdiscs.contains("clsact"),
            "a qdisc is left on {name}: {qdiscs}"
        );
        ensure!(!link.contains("xdp"), "XDP is left on {name}: {link}");
    }
    let nodes = sluice.kubectl("get loadbalancernodes -o name")?;
    ensure!(nodes.trim().is_empty(), "objects are left: {nodes}");
    Ok(())
}

/// Installed anew, with a canary on its way.
pub(crate) fn lost_node(sluice: &mut Sluice) -> Result<()> {
    let values = "detach.timeoutSeconds=10,operator.servicesWithoutClass=true";
    sluice.helm("install", &["--create-namespace", "--set", values])?;
    sluice.apply_example("web")?;
    sluice.await_ready("web")?;
    sluice.cluster.route_vip(WEB, &NODES[..1])?;
    sluice.apply_example("rollout")?;
    let policy = "rolloutpolicy/web";
    sluice.until(policy, CHANGE_TIMEOUT, |policy| {
        policy["status"]["phase"] == "Gated"
    })?;
    // Clients come in by the first node; with the operator's node its next one would have to come up first.
    let operator = sluice.cluster.admin().json([
        "get",
        "pods",
        "--namespace",
        SYSTEM,
        "--selector=app.kubernetes.io/component=operator",
    ])?;
    let home = operator["items"][0]["spec"]["nodeName"].as_str();
    let mut others = NODES[1..].iter().filter(|node| Some(**node) != home);
    let lost = others.next().context("a node without the operator")?;
    let clients = services::held_by(sluice, lost)?;
    sluice.cluster.kill_node(lost)?;
    let start = Instant::now();
    sluice.plugin(&format!("--namespace {SHOP} rollout promote web"))?;
    sluice.until(policy, CHANGE_TIMEOUT, |policy| {
        let step = &policy["status"]["step"];
        step["index"] == 1 && step["liveTime"].is_string()
    })?;
    let held_up = start.elapsed();
    println!("the step was in force {held_up:.1?} after {lost} was lost");
    services::went_on(clients)?;
    ensure!(held_up <= HELD_UP, "the step was held up for {held_up:?}");
    let web = sluice.until("virtualserver/web", CHANGE_TIMEOUT, |_| true)?;
    let conditions = web["status"]["conditions"]
        .as_array()
        .context("conditions")?;
    let named = conditions.iter().any(|condition| {
        condition["type"] == "NodesSilent"
            && condition["status"] == "True"
            && condition["message"]
                .as_str()
                .is_some_and(|text| text.contains(*lost))
    });
    ensure!(named, "{lost} is not named: {conditions:#?}");
    departure::depart(sluice.cluster.admin(), SYSTEM, CHANGE_TIMEOUT)?;
    // It is not waited for for ever here either. Its pods stay until somebody says that it is gone for good.
    let start = Instant::now();
    let release = ["uninstall", "sluice", "--namespace", SYSTEM];
    let said = sluice.cluster.admin().helm(release)?;
    println!("uninstalled in {:.1?}: {said}", start.elapsed());
    let nodes = sluice.kubectl("get loadbalancernodes -o name")?;
    ensure!(nodes.trim().is_empty(), "objects are left: {nodes}");
    Ok(())
}
