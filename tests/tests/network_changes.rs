//! Weights: flows spread as they say, and changing them breaks nothing that is under way.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use sluice_tests::net::fabric::client_sources;
use sluice_tests::net::lab::{Lab, Mode};
use sluice_tests::net::manifest;
use sluice_tests::net::suite::Suite;
use sluice_tests::net::{
    ConnectionMaker, Family, KeptConnections, Protocol, Share, UdpStream,
    expect_no_retransmissions, retransmitted_segments, until,
};

/// Flows of a spread, from fixed sources.
const FLOWS: usize = 10_000;
/// New connections in each step of a change of weights.
const CONNECTIONS_PER_STEP: u64 = 2_000;
/// Allowed deviations from the exact share, in standard deviations.
const DEVIATIONS: f64 = 3.0;
/// How long a step of the rollout, or the connections to look at, may take.
const STEP_TIMEOUT: Duration = Duration::from_mins(2);

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for (mode, family, protocol) in [
        (Mode::Tun, Family::V4, Protocol::Udp),
        (Mode::Tun, Family::V6, Protocol::Tcp),
        (Mode::Dr, Family::V4, Protocol::Tcp),
        (Mode::Nat, Family::V6, Protocol::Udp),
        (Mode::FullNat, Family::V4, Protocol::Tcp),
    ] {
        suite.check(
            format!("{mode} {family} {protocol} spreads by weight"),
            move |lab| spreads(lab, mode, family, protocol),
        );
    }
    suite.check("a share five points off is noticed", notices_wrong_share);
    suite.check("weights of servers within a pool", server_weights);
    for mode in Mode::ALL {
        suite.check(
            format!("{mode} changes weights without a failure"),
            move |lab| changes_weights(lab, mode),
        );
    }
    suite.check("a rollout policy moves a canary", canary);
    suite.main(|| Lab::build(&Mode::ALL, &[], &[]))
}

/// Shares of a mode's three servers when the stable pool has `stable` percent.
fn shares(mode: Mode, stable: u32) -> [Share<'static>; 3] {
    let [one, two, three] = mode.servers();
    let stable = f64::from(stable);
    [
        Share::new(one, stable / 2.0),
        Share::new(two, stable / 2.0),
        Share::new(three, 100.0 - stable),
    ]
}

fn spreads(lab: &mut Lab, mode: Mode, family: Family, protocol: Protocol) -> Result<()> {
    for (stable, seed) in [(90, 21), (50, 22)] {
        lab.set_shares(mode, stable, 100 - stable)?;
        let sources = client_sources(family, seed, FLOWS);
        let spread = protocol.ask_from_each(lab.fabric.client(), &sources, mode.target(family))?;
        spread.expect(&shares(mode, stable), DEVIATIONS)?;
    }
    lab.set_shares(mode, 100, 0)
}

fn notices_wrong_share(lab: &mut Lab) -> Result<()> {
    let (mode, family) = (Mode::Tun, Family::V6);
    let sources = client_sources(family, 31, FLOWS);
    lab.set_shares(mode, 75, 25)?;
    let spread = Protocol::Udp.ask_from_each(lab.fabric.client(), &sources, mode.target(family))?;
    spread.expect(&shares(mode, 75), DEVIATIONS)?;
    for wrong in [70, 80] {
        let noticed = spread.expect(&shares(mode, wrong), DEVIATIONS).is_err();
        ensure!(noticed, "{spread} passes for {wrong} %");
    }
    lab.set_shares(mode, 100, 0)
}

fn server_weights(lab: &mut Lab) -> Result<()> {
    let mode = Mode::Nat;
    let mut members = lab.members(&mode.servers())?;
    let weights = [5, 3, 2];
    for (member, weight) in members.iter_mut().zip(weights) {
        member.2 = weight;
    }
    let vip = sluice_tests::net::fabric::vip_of_one(70);
    let objects = [
        manifest::pool("weighted", &members, None),
        manifest::virtual_server("weighted", "NAT", vip, &[("weighted", 7)]),
    ];
    lab.sluice.apply("weighted", &objects)?;
    lab.sluice.await_weights("weighted", &[("weighted", 1)])?;
    let servers = mode.servers().into_iter();
    let expected: Vec<Share<'_>> = servers
        .zip(weights)
        .map(|(server, weight)| Share::new(server, f64::from(weight)))
        .collect();
    let sources = client_sources(Family::V4, 41, FLOWS);
    let spread =
        Protocol::Udp.ask_from_each(lab.fabric.client(), &sources, vip.socket(Family::V4, 80))?;
    spread.expect(&expected, DEVIATIONS)?;
    lab.sluice.remove("weighted")
}

/// New connections all the time, old ones that stay, and a UDP stream, while the candidate takes over and hands back.
fn changes_weights(lab: &mut Lab, mode: Mode) -> Result<()> {
    let client = lab.fabric.client().clone();
    let targets = Family::BOTH.map(|family| mode.target(family));
    let retransmitted = retransmitted_segments(&client)?;
    let kept = KeptConnections::open(&client, &targets, 40, Duration::from_millis(20))?;
    let stream = UdpStream::start(&client, targets[1], Duration::from_millis(2))?;
    let opener = ConnectionMaker::start(&client, &targets, 4, Duration::ZERO)?;
    for stable in [90, 50, 0, 100] {
        lab.set_shares(mode, stable, 100 - stable)?;
        // Those that began before the change are counted for failures, not for the spread.
        opener.take_report().expect_none_failed()?;
        let before = opener.made();
        until("new connections", STEP_TIMEOUT, || {
            opener.made() >= before + CONNECTIONS_PER_STEP
        })?;
        let report = opener.take_report();
        report.expect_none_failed()?;
        // A connection of each worker may have begun before the change.
        let old = report.spread.total() - CONNECTIONS_PER_STEP.min(report.spread.total());
        ensure!(old < 500, "{old} connections too many");
        let strict = stable != 0 && stable != 100;
        if strict {
            report.spread.expect(&shares(mode, stable), 4.0)?;
        }
    }
    opener.stop().expect_none_failed()?;
    ensure!(kept.close()? > 1, "the kept connections were not used");
    stream.finish()?.expect_whole()?;
    expect_no_retransmissions(&client, retransmitted)?;
    Ok(())
}

/// The operator moves the weights by itself, step by step, as nodes acknowledge them.
fn canary(lab: &mut Lab) -> Result<()> {
    let mode = Mode::Tun;
    let client = lab.fabric.client().clone();
    let targets = Family::BOTH.map(|family| mode.target(family));
    let retransmitted = retransmitted_segments(&client)?;
    let kept = KeptConnections::open(&client, &targets, 20, Duration::from_millis(20))?;
    let opener = ConnectionMaker::start(&client, &targets, 4, Duration::ZERO)?;
    let policy = manifest::rollout(
        "canary",
        mode.virtual_server(),
        mode.stable(),
        mode.candidate(),
        &[(10, 3), (50, 3)],
    );
    lab.sluice.apply("canary", &[policy])?;
    for weight in [10, 50, 100] {
        lab.await_shares(mode, 100 - weight, weight)?;
    }
    let sluice = &lab.sluice;
    until("the rollout to complete", STEP_TIMEOUT, || {
        sluice
            .rollout("canary")
            .is_some_and(|status| status.phase == Some(sluice_api::RolloutPhase::Completed))
    })?;
    opener.take_report().expect_none_failed()?;
    let before = opener.made();
    until("new connections", STEP_TIMEOUT, || {
        opener.made() > before + 200
    })?;
    let after = opener.stop();
    after.expect_none_failed()?;
    ensure!(kept.close()? > 1, "the kept connections were not used");
    expect_no_retransmissions(&client, retransmitted)?;

    // After the policy is deleted the decided weights stay until the spec's weights change.
    lab.sluice.remove("canary")?;
    lab.sluice.await_no_rollout("canary")?;
    let sources = client_sources(Family::V4, 51, 100);
    let spread = Protocol::Udp.ask_from_each(&client, &sources, mode.target(Family::V4))?;
    spread.expect(&shares(mode, 0)[2..], DEVIATIONS)?;
    lab.set_shares(mode, 1, 0)
}
