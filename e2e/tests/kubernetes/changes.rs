//! Things that happen to a cluster every day, while clients go on.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sluice_e2e::stage::{CHANGE_TIMEOUT, SHOP, SYSTEM, Sluice, WEB};
use sluice_e2e::traffic::Traffic;
use sluice_tests::kube::Part;

const SELECTOR: &str = "app=web,version=v1";

/// Scaling, a rolling update, a deleted pod: no new connection fails. While pods are added and the added ones removed, no
/// connection to one that stays breaks.
pub(crate) fn pods(sluice: &mut Sluice) -> Result<()> {
    let traffic = Traffic::start_with_kept(sluice.cluster.client(), WEB)?;
    let cost = "controller.kubernetes.io/pod-deletion-cost=100";
    sluice.kubectl(&format!(
        "annotate --namespace {SHOP} pods --selector {SELECTOR} {cost}"
    ))?;
    scale(sluice, 6)?;
    traffic.sample()?;
    scale(sluice, 3)?;
    traffic.sample()?;
    println!("{} new connections while scaling", traffic.finish()?);

    let traffic = Traffic::start(sluice.cluster.client(), WEB)?;
    sluice.kubectl(&format!(
        "rollout restart --namespace {SHOP} deployment/web-v1"
    ))?;
    settled(sluice, 3)?;
    traffic.sample()?;
    let pods = sluice.cluster.pods(SHOP, SELECTOR)?;
    for pod in pods.iter().take(1) {
        sluice.kubectl(&format!("delete pod --namespace {SHOP} {}", pod.name))?;
    }
    settled(sluice, 3)?;
    traffic.sample()?;
    println!("{} new connections while replacing", traffic.finish()?);
    Ok(())
}

/// A pod that is drained gets no new connections, keeps those that it has, and gets new ones again when it is not.
pub(crate) fn drained_pod(sluice: &mut Sluice) -> Result<()> {
    let traffic = Traffic::start_with_kept(sluice.cluster.client(), WEB)?;
    let pods = sluice.cluster.pods(SHOP, SELECTOR)?;
    let pod = &pods.first().context("a pod")?.name;
    let said = sluice.plugin(&format!("--namespace {SHOP} drain server {pod} --for 1h"))?;
    ensure!(said.contains("takes no new flows until"), "{said}");
    let got = traffic.sample()?.spread.of(pod);
    ensure!(got == 0, "{pod} is drained, and got {got}");
    let shown = sluice.plugin(&format!("--namespace {SHOP} status"))?;
    ensure!(shown.contains("drained"), "{shown}");
    let said = sluice.plugin(&format!("--namespace {SHOP} undrain server {pod}"))?;
    ensure!(said.contains("is not drained any more"), "{said}");
    let got = traffic.sample()?.spread.of(pod);
    ensure!(got > 0, "{pod} got nothing");
    println!("{} new connections, none failed", traffic.finish()?);
    // Until the operator has seen that the time is over.
    sluice.plugin(&format!("--namespace {SHOP} drain server {pod} --for 10s"))?;
    sluice.until("realserverpool/web-v1", CHANGE_TIMEOUT, |pool| {
        pool["status"]["decision"]["drained"].is_null()
    })?;
    Ok(())
}

fn scale(sluice: &Sluice, replicas: usize) -> Result<()> {
    sluice.kubectl(&format!(
        "scale --namespace {SHOP} deployment/web-v1 --replicas {replicas}"
    ))?;
    settled(sluice, replicas)
}

/// Until as many pods are ready as there should be, and those that go are gone.
fn settled(sluice: &Sluice, replicas: usize) -> Result<()> {
    sluice.kubectl(&format!(
        "rollout status --namespace {SHOP} deployment/web-v1 --timeout={}s",
        CHANGE_TIMEOUT.as_secs()
    ))?;
    sluice
        .cluster
        .await_pods(SHOP, SELECTOR, replicas, CHANGE_TIMEOUT)?;
    Ok(())
}

/// One after the other.
pub(crate) fn restarts(sluice: &mut Sluice) -> Result<()> {
    let traffic = Traffic::start_with_kept(sluice.cluster.client(), WEB)?;
    for what in ["daemonset/sluice-agent", "deployment/sluice-operator"] {
        sluice.kubectl(&format!("rollout restart --namespace {SYSTEM} {what}"))?;
        sluice.kubectl(&format!(
            "rollout status --namespace {SYSTEM} {what} --timeout={}s",
            CHANGE_TIMEOUT.as_secs()
        ))?;
        traffic.sample()?;
    }
    let control = sluice.cluster.control_mut();
    control.kill(Part::ApiServer)?;
    traffic.sample()?;
    sluice.cluster.control_mut().start_part(Part::ApiServer)?;
    sluice.await_ready("web")?;
    traffic.sample()?;
    let made = traffic.finish()?;
    println!("{made} new connections, none failed");
    // Changes still take effect after all this.
    scale(sluice, 4)?;
    sluice.until("realserverpool/web-v1", Duration::from_secs(30), |pool| {
        pool["status"]["readyServers"] == 4
    })?;
    scale(sluice, 3)
}

/// The pool of the quick start, with an address more.
const GROWN: &str = r#"addressPools=[{"name": "edge", "addresses": ["203.0.113.0/24", "2001:db8:cafe::/64", "198.51.100.7"]}]"#;

/// A new release of the chart that replaces operator and agents.
pub(crate) fn upgrade(sluice: &mut Sluice) -> Result<()> {
    let traffic = Traffic::start_with_kept(sluice.cluster.client(), WEB)?;
    let level = "log.level=info\\,sluice_agent=debug";
    let services = "operator.servicesWithoutClass=true,operator.drainCordoned=true";
    let values = ["--set", level, "--set", services, "--set-json", GROWN];
    sluice.helm("upgrade", &values)?;
    traffic.sample()?;
    let made = traffic.finish()?;
    println!("{made} new connections, none failed");
    let pool = sluice.kubectl("get addresspool edge -o jsonpath={.spec.addresses[2]}")?;
    ensure!(pool == "198.51.100.7", "the pool has not grown: {pool}");
    sluice.await_ready("web")
}
