//! A VIP that nobody routes, and a director that dies.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_tests::kube::{EVERY_ADDRESS, every_address};
use sluice_tests::net::fabric::{DIRECTORS, Fabric, UPLINK, vip_on_link};
use sluice_tests::net::sluice::Sluice;
use sluice_tests::net::{Dual, Family, KeptConnections, Outage, Protocol, until};

use super::manifest;
use super::report::{Report, line};
use crate::Arguments;

const NAME: &str = "announced";
const VIP: Dual = vip_on_link(201);
/// Connections that stay open.
const KEPT: usize = 50;
/// How long clients connect before the director dies, and after that.
const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(2);
/// How long a director may take to announce the VIP.
const SETTLE: Duration = Duration::from_secs(20);
/// The longest time without a new connection. It is a third of a second on an idle machine.
const OUTAGE: Duration = Duration::from_secs(3);

/// Applies the manifest, and takes the director that announces its VIP off the network under load.
pub(crate) fn show(
    report: &mut Report,
    fabric: &Fabric,
    sluice: &mut Sluice,
    arguments: Arguments,
) -> Result<()> {
    report.step("A VIP without a route: one director announces it, and dies under load");
    if arguments.kubernetes {
        announce_all(sluice)?;
        // Its agent loses the API server with everything else.
        for text in ["cannot ", "the watch is lost"] {
            sluice.expect_complaint(text);
        }
    }
    sluice.apply_text(NAME, &manifest(NAME)?)?;
    sluice.await_weights(NAME, &[("dr", 1)])?;
    let targets = Family::BOTH.map(|family| VIP.socket(family, 80));
    let [v4, v6] = targets.map(|target| target.ip());
    line("manifest", "examples/demo/announced.yaml");
    line("VIPs", &format!("{v4}  {v6}  port 80"));
    let mut holders = [None; 2];
    until("a director to announce each VIP", SETTLE, || {
        holders = Family::BOTH.map(|family| answering(fabric, family).ok().flatten());
        holders.iter().all(Option::is_some)
    })?;
    let holder = holders[0].context("nobody answers")?;
    let names = holders.map(Option::unwrap_or_default);
    line("announced by", &names.join("  "));
    let pause = Duration::from_millis(50);
    let kept = KeptConnections::open(fabric.client(), &targets, KEPT, pause)?;
    let clients = targets.map(|target| Outage::start(fabric.client(), target));
    thread::sleep(BEFORE);
    fabric.far_end(holder).silence()?;
    line("dead", holder);
    thread::sleep(AFTER);
    for (family, client) in Family::BOTH.into_iter().zip(clients) {
        let outage = client?.stop();
        let longest = outage.longest;
        let what = format!(
            "{family}: no new connection for {longest:.0?}, {} of {} failed",
            outage.failed, outage.begun
        );
        let short = || -> Result<()> {
            ensure!(longest <= OUTAGE, "that is too long");
            Ok(())
        };
        report.check(&what, short());
    }
    let rounds = kept.close().map(drop);
    report.check(&format!("{KEPT} open connections went on"), rounds);
    for family in Family::BOTH {
        let successor = answering(fabric, family)?.unwrap_or("nobody");
        let another = || -> Result<()> {
            ensure!(
                successor != holder && successor != "nobody",
                "{holder} is dead"
            );
            Ok(())
        };
        report.check(&format!("{family}: announced by {successor}"), another());
    }
    fabric.far_end(holder).unsilence()?;
    sluice.await_ready()
}

/// The director whose Ethernet address the router has for the VIP of a family.
fn answering(fabric: &Fabric, family: Family) -> Result<Option<&'static str>> {
    let target = VIP.socket(family, 80);
    // Whatever comes of it, the router has asked for the VIP by then.
    let _ = fabric.client().within(|| Protocol::Tcp.ask(None, target))?;
    let entry = fabric.router().ip(&format!("neigh show {}", target.ip()))?;
    for director in DIRECTORS {
        let mac = fabric.node(director)?.namespace.port(UPLINK).mac()?;
        if entry.contains(mac.trim()) {
            return Ok(Some(director));
        }
    }
    Ok(None)
}

/// Has the pool of all addresses announced: those that are in no director's subnet are nobody's to announce.
fn announce_all(sluice: &Sluice) -> Result<()> {
    let pool = every_address();
    let pool = json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "AddressPool", "metadata": {"name": EVERY_ADDRESS},
        "spec": {"addresses": pool["addresses"], "autoAssign": false, "sharing": "Cluster", "announce": {"l2": {}}},
    });
    sluice.apply("pools", &[pool])
}
