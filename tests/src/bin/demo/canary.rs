//! A canary release under traffic.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sluice_api::{ROLLOUT_COMMAND_ANNOTATION, RolloutPhase};
use sluice_tests::net::fabric::{Fabric, vip_of_both};
use sluice_tests::net::sluice::Sluice;
use sluice_tests::net::{
    ConnectionMaker, Family, KeptConnections, Namespace, Spread, UdpStream,
    expect_no_retransmissions, retransmitted_segments, until,
};

use super::manifest;
use super::report::{Report, line, text};

const POLICY: &str = "tun-v2";
const KEPT: usize = 40;
const MAKERS: usize = 4;
const ONE_PERCENT: f64 = 0.01;
/// New connections that are looked at in each step.
const PER_STEP: u64 = 2_000;
/// How long a step of the rollout, or the connections to look at, may take.
const STEP_TIMEOUT: Duration = Duration::from_mins(1);

/// Clients under way while the weights change.
struct Traffic {
    kept: KeptConnections,
    stream: UdpStream,
    maker: ConnectionMaker,
    retransmitted: u64,
}

impl Traffic {
    fn start(client: &Namespace) -> Result<Self> {
        let targets: [SocketAddr; 2] =
            Family::BOTH.map(|family| vip_of_both(40).socket(family, 80));
        Ok(Self {
            retransmitted: retransmitted_segments(client)?,
            kept: KeptConnections::open(client, &targets, KEPT, Duration::from_millis(20))?,
            stream: UdpStream::start(client, targets[1], Duration::from_millis(2))?,
            maker: ConnectionMaker::start(client, &targets, MAKERS, Duration::from_millis(1))?,
        })
    }
}

/// Applies the policy, and opens the gate after each step once the connections of the step were looked at.
pub(crate) fn show(report: &mut Report, fabric: &Fabric, sluice: &mut Sluice) -> Result<()> {
    report.step(
        "Canary: a RolloutPolicy moves `tun` from tun-v1 (tun-1, tun-2) to tun-v2 (tun-3, tun-4)",
    );
    line("manifest", "examples/demo/rollout.yaml");
    text(
        "Clients meanwhile: 40 connections that stay open and ask 50 times a second, new connections all",
    );
    text("the time, none tried twice, and a numbered UDP stream.");
    let traffic = Traffic::start(fabric.client())?;
    show_share(report, &traffic.maker, 0)?;
    let policy = manifest("rollout")?;
    sluice.apply_text("rollout", &policy)?;
    for weight in [10, 50, 100] {
        let start = Instant::now();
        sluice.await_weights("tun", &[("tun-v1", 100 - weight), ("tun-v2", weight)])?;
        let seconds = start.elapsed().as_secs_f64();
        let nodes = format!("acknowledged by every node after {seconds:.1} s");
        line(&format!("step {weight} %"), &nodes);
        show_share(report, &traffic.maker, weight)?;
        if weight < 100 {
            promote(sluice, &policy)?;
        }
    }
    until("the rollout to complete", STEP_TIMEOUT, || {
        let status = sluice.rollout(POLICY);
        status.is_some_and(|status| status.phase == Some(RolloutPhase::Completed))
    })?;
    end(report, fabric.client(), traffic)
}

/// Opens the gate of the step in force: the command is an annotation of the policy.
fn promote(sluice: &Sluice, policy: &str) -> Result<()> {
    let mut command = None;
    until("the gate", STEP_TIMEOUT, || {
        command = sluice.rollout(POLICY).and_then(|status| {
            let gated = status.phase == Some(RolloutPhase::Gated);
            let (run, step) = status.run.zip(status.step)?;
            gated.then(|| format!("promote/{}/{}", run.id, step.index))
        });
        command.is_some()
    })?;
    let command = command.unwrap_or_default();
    line("gate", &format!("{ROLLOUT_COMMAND_ANNOTATION}: {command}"));
    let metadata = format!("metadata: {{name: {POLICY}}}");
    let annotated = format!(
        "metadata:\n  name: {POLICY}\n  annotations: {{{ROLLOUT_COMMAND_ANNOTATION}: {command}}}"
    );
    ensure!(
        policy.contains(&metadata),
        "the manifest has no `{metadata}`"
    );
    sluice.apply_text("rollout", &policy.replace(&metadata, &annotated))
}

/// Looks at the connections of one step.
fn show_share(report: &mut Report, maker: &ConnectionMaker, weight: u32) -> Result<()> {
    // Of the connections that began before the change only failures count.
    let before = maker.take_report().expect_none_failed();
    let made = maker.made();
    until("new connections", STEP_TIMEOUT, || {
        maker.made() >= made + PER_STEP
    })?;
    let seen = maker.take_report();
    let new = ["tun-3", "tun-4"]
        .map(|server| seen.spread.of(server))
        .iter()
        .sum();
    report.check(
        &format!("{}, none failed", seen.spread),
        before
            .and_then(|()| seen.expect_none_failed())
            .and_then(|()| expect_share(&seen.spread, new, weight)),
    );
    Ok(())
}

/// The candidate's part of the new connections, within four standard deviations and what the change itself blurs.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn expect_share(spread: &Spread, new: u64, weight: u32) -> Result<()> {
    let (total, new) = (spread.total() as f64, new as f64);
    let part = f64::from(weight) * ONE_PERCENT;
    let deviation = (total * part * (1.0 - part)).sqrt();
    let allowed = 4.0 * deviation + MAKERS as f64;
    ensure!(
        (new - total * part).abs() <= allowed,
        "tun-v2 got {new} of {total} at {weight} %"
    );
    Ok(())
}

fn end(report: &mut Report, client: &Namespace, traffic: Traffic) -> Result<()> {
    report.step("What the clients say");
    let made = traffic.maker.made();
    report.check(
        &format!("{made} new connections in all, none failed"),
        traffic.maker.stop().expect_none_failed(),
    );
    let kept = traffic.kept.close();
    let rounds = kept.as_ref().map_or(0, |rounds| *rounds);
    report.check(
        &format!("{KEPT} connections stayed with their servers for {rounds} requests each"),
        kept.map(|_| ()),
    );
    let stream = traffic.stream.finish()?;
    report.check(
        &format!(
            "UDP stream: {} sent, {} answered",
            stream.sent, stream.answered
        ),
        stream.expect_whole(),
    );
    report.check(
        "no segment was sent again: TcpRetransSegs of the client is 0",
        expect_no_retransmissions(client, traffic.retransmitted),
    );
    Ok(())
}
