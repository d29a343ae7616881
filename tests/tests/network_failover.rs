//! VIPs that nobody routes: three directors of a real API server announce them and take them over from each other, while clients on
//! the segment and behind a router connect every 5 ms.

use std::collections::BTreeMap;
use std::env;
use std::net::{IpAddr, Ipv6Addr};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sluice_api::{RollbackReason, RolloutPhase, UnheldReason};
use sluice_tests::kube::{ControlPlane, Part, condition};
use sluice_tests::net::fabric::{UPLINK, vip_on_link};
use sluice_tests::net::failover::{AFTER, Between, Failover, NODES, SERVED, expect_short, target};
use sluice_tests::net::manifest;
use sluice_tests::net::sluice::Sluice;
use sluice_tests::net::suite::Suite;
use sluice_tests::net::{
    ConnectionMaker, Family, KeptConnections, Outage, OutageReport, Port, Protocol, until,
};
use sluice_tests::net::{gateway, stranger};

/// Longer than the deadline of a holder whose agent does not extend it.
const DEADLINE: Duration = Duration::from_secs(6);
/// Longer than a takeover takes where a holder is replaced when its Lease has expired.
const BY_LEASE: Duration = Duration::from_secs(9);
/// How long questions are lost, unless SLUICE_LOSS_SECONDS says something else: at random, and in bursts.
const LOSSY: Duration = Duration::from_secs(12);
/// In a third of all time everything is lost.
const BURST: Duration = Duration::from_millis(100);
/// Time in which nothing happens but renewals, and how often it is looked at.
const AT_REST: Duration = Duration::from_secs(8);
const LOOKS: usize = 2;
/// Time until five hundred virtual servers are in force on a busy machine.
const MANY_SERVED: Duration = Duration::from_mins(2);
/// Longest time without a connection while agents that have just begun agree on who holds a group.
const CONTESTED: Duration = Duration::from_millis(100);
/// Longer than one by probes.
const PROBED: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.check("every VIP is answered by the holder of its group", answered);
    suite.check("a drained director hands over and nobody notices", drained);
    suite.check("an agent that ends hands over and nobody notices", ended);
    suite.check("a silent director is replaced", silent);
    suite.check("a director without a carrier is replaced", without_carrier);
    suite.check("NAT's gateway moves with the VIPs", gateway::moves);
    suite.check(
        "without probes a silent director is replaced by its Lease",
        without_probes,
    );
    suite.check("a killed agent is replaced after its deadline", killed);
    suite.check(
        "a stopped agent is replaced, and says nothing when it goes on",
        stopped,
    );
    suite.check("a candidate with a dead port takes nothing", dead_port);
    suite.check("without the API server nobody notices", without_api_server);
    suite.check(
        "without the API server agents start again where they were",
        restarted_without_api_server,
    );
    suite.check(
        "with all directors drained two say that nobody holds",
        unheld,
    );
    suite.check(
        "a VIP that a host has is announced when it is free",
        stranger::in_use,
    );
    suite.check("a VIP that a stranger claims is defended", claimed);
    suite.check(
        "a switch that snoops on MLD lets clients ask for VIPs",
        snooping,
    );
    suite.check("lost questions for VIPs move nothing", lossy);
    suite.check("a thousand VIPs cost the API server what ten do", many_vips);
    suite.check(
        "agents report a candidate that fails, and it is rolled back",
        rolled_back,
    );
    suite.main(|| Failover::build(Between::Kubernetes))
}

fn expect_none(reports: &[OutageReport]) -> Result<()> {
    let failed: usize = reports.iter().map(|report| report.failed).sum();
    ensure!(failed == 0, "{failed} connections failed: {reports:?}");
    Ok(())
}

fn answered(stage: &mut Failover) -> Result<()> {
    for (name, ..) in SERVED {
        let holder = stage.holder_of(name)?;
        let mac = stage.fabric.node(&holder)?.namespace.port(UPLINK).mac()?;
        stage.ask(name)?;
        for family in Family::BOTH {
            let target = target(name, family);
            let option = family.option();
            let known = stage
                .neighbour
                .ip(&format!("{option} neigh show {}", target.ip()))?;
            ensure!(
                known.contains(&mac),
                "{name} is at {holder} with {mac}, and known as {known}"
            );
        }
    }
    Ok(())
}

fn drained(stage: &mut Failover) -> Result<()> {
    for server in ["dr", "tun"] {
        let targets = Family::BOTH.map(|family| target(server, family));
        let client = stage.fabric.client();
        let kept = KeptConnections::open(client, &targets, 20, Duration::from_millis(20))?;
        let drain = |stage: &mut Failover, holder: &str| stage.drain(&[holder]);
        let (holder, reports) = stage.disturb(server, drain, AFTER)?;
        let after = stage.holder_of(server);
        stage.drain(&[])?;
        ensure!(
            after? != holder,
            "{holder} holds the group of {server} still"
        );
        expect_none(&reports)?;
        kept.close()?;
        stage.settle()?;
    }
    Ok(())
}

fn ended(stage: &mut Failover) -> Result<()> {
    let reports = stage.end_agent("dr", Sluice::stop_agent, AFTER)?;
    expect_none(&reports)?;
    stage.settle()
}

fn silent(stage: &mut Failover) -> Result<()> {
    let reports = stage.silence("tun")?;
    expect_short(&reports)?;
    stage.settle()
}

fn without_carrier(stage: &mut Failover) -> Result<()> {
    let cut = |stage: &mut Failover, holder: &str| stage.fabric.far_end(holder).cut();
    let (holder, reports) = stage.disturb("dr", cut, AFTER)?;
    stage.fabric.far_end(&holder).mend()?;
    expect_short(&reports)?;
    stage.settle()
}

fn without_probes(stage: &mut Failover) -> Result<()> {
    stage.set_agents(&[("SLUICE_PROBES", "off")])?;
    let silence = |stage: &mut Failover, holder: &str| stage.fabric.far_end(holder).silence();
    let (holder, reports) = stage.disturb("tun", silence, BY_LEASE)?;
    stage.fabric.far_end(&holder).unsilence()?;
    for report in reports {
        ensure!(
            report.longest > PROBED && report.longest < BY_LEASE,
            "{report:?}"
        );
    }
    stage.settle()?;
    stage.set_agents(&[("SLUICE_PROBES", "on")])
}

fn killed(stage: &mut Failover) -> Result<()> {
    let reports = stage.end_agent("dr", Sluice::kill_agent, DEADLINE)?;
    expect_short(&reports)?;
    stage.settle()
}

fn stopped(stage: &mut Failover) -> Result<()> {
    let server = "tun";
    let stop = |stage: &mut Failover, holder: &str| stage.signal_agent(holder, Signal::SIGSTOP);
    let (holder, reports) = stage.disturb(server, stop, DEADLINE)?;
    let outages = stage.clients(server)?;
    stage.signal_agent(&holder, Signal::SIGCONT)?;
    thread::sleep(AFTER);
    let thawed: Vec<OutageReport> = outages.into_iter().map(Outage::stop).collect();
    expect_short(&reports)?;
    expect_none(&thawed)?;
    stage.settle()
}

/// Silences a director that does not hold the group of a virtual server.
fn dead_port(stage: &mut Failover) -> Result<()> {
    stage.rest()?;
    let before = stage.holder_of("dr")?;
    let Some(candidate) = NODES.iter().find(|node| **node != before) else {
        bail!("there is no candidate");
    };
    let silence = |stage: &mut Failover, _: &str| stage.fabric.far_end(candidate).silence();
    let (_, reports) = stage.disturb("dr", silence, AFTER)?;
    stage.fabric.far_end(candidate).unsilence()?;
    let after = stage.holder_of("dr")?;
    ensure!(after == before, "{after} took the group from {before}");
    expect_none(&reports)?;
    stage.settle()
}

/// Stops the API server, ends a director meanwhile, and lets the API server go on.
fn without_api_server(stage: &mut Failover) -> Result<()> {
    let server = "dr";
    let stop = |stage: &mut Failover, _: &str| {
        let control = stage.sluice.control_plane_mut()?;
        control.signal(Part::ApiServer, Signal::SIGSTOP)
    };
    let (holder, without) = stage.disturb(server, stop, 2 * DEADLINE)?;
    let outages = stage.clients(server)?;
    thread::sleep(Duration::from_secs(1));
    stage.fabric.far_end(&holder).silence()?;
    thread::sleep(AFTER);
    let dead: Vec<OutageReport> = outages.into_iter().map(Outage::stop).collect();
    println!("  a director died meanwhile: {dead:?}");
    let outages = stage.clients(server)?;
    let control = stage.sluice.control_plane_mut()?;
    control.signal(Part::ApiServer, Signal::SIGCONT)?;
    thread::sleep(AFTER);
    let back: Vec<OutageReport> = outages.into_iter().map(Outage::stop).collect();
    stage.fabric.far_end(&holder).unsilence()?;
    expect_none(&without)?;
    expect_short(&dead)?;
    expect_none(&back)?;
    stage.settle()
}

/// Kills all agents and starts them again while the API server hangs: they go on by what they had written down.
fn restarted_without_api_server(stage: &mut Failover) -> Result<()> {
    let server = "nat";
    let restart = |stage: &mut Failover, _: &str| {
        let control = stage.sluice.control_plane_mut()?;
        control.signal(Part::ApiServer, Signal::SIGSTOP)?;
        thread::sleep(DEADLINE);
        for node in NODES {
            stage.sluice.kill_agent(node)?;
        }
        NODES
            .iter()
            .try_for_each(|node| stage.sluice.restart_agent(node))
    };
    let (_, without) = stage.disturb(server, restart, DEADLINE)?;
    let outages = stage.clients(server)?;
    let control = stage.sluice.control_plane_mut()?;
    control.signal(Part::ApiServer, Signal::SIGCONT)?;
    thread::sleep(DEADLINE);
    let back: Vec<OutageReport> = outages.into_iter().map(Outage::stop).collect();
    expect_short(&without)?;
    // Agents that have just begun may contest a group for a moment when the API server is back.
    let gap = back.iter().map(|report| report.longest).max();
    ensure!(
        gap < Some(CONTESTED),
        "nobody answered for {gap:?}: {back:?}"
    );
    stage.sluice.await_ready()?;
    stage.settle()
}

/// Drains all directors: the first two of each group say that nobody holds it, and why.
fn unheld(stage: &mut Failover) -> Result<()> {
    stage.sluice.expect_complaint("nobody holds the VIP group");
    let group = stage.group_of("dr")?;
    stage.drain(&NODES)?;
    let says = |stage: &Failover, node: &str| {
        let status = stage.sluice.node(node).unwrap_or_default();
        let mut unheld = status.unheld_groups.into_iter();
        unheld.any(|it| it.name == group && it.reason == Some(UnheldReason::NoCandidate))
    };
    let told = until(
        "two to say that nobody holds the group",
        3 * DEADLINE,
        || NODES.iter().filter(|node| says(stage, node)).count() == 2,
    );
    stage.drain(&[])?;
    told?;
    stage.settle()?;
    until("all to take that back", DEADLINE, || {
        !NODES.iter().any(|node| says(stage, node))
    })
}

/// The operator makes an Event of what the holder tells.
fn claimed(stage: &mut Failover) -> Result<()> {
    stranger::defended(stage)?;
    let admin = stage.sluice.control_plane()?.admin();
    until("an Event of the claim", Duration::from_secs(10), || {
        let events = [
            "get",
            "events.events.k8s.io",
            "--all-namespaces",
            "--output=json",
        ];
        let Ok(events) = admin.json(events) else {
            return false;
        };
        let mut events = events["items"].as_array().into_iter().flatten();
        events.any(|event| {
            event["reason"] == "AnsweredElsewhere"
                && event["regarding"]["kind"] == "LoadBalancerNode"
        })
    })
}

/// Lets the switch send each multicast frame only where somebody has joined its group, and clients ask anew while no agent runs on the
/// holder.
fn snooping(stage: &mut Failover) -> Result<()> {
    let server = "tun";
    let holder = stage.holder_of(server)?;
    let target = target(server, Family::V6);
    let IpAddr::V6(vip) = target.ip() else {
        bail!("{target} is no IPv6 address");
    };
    let [.., a, b, c] = vip.octets();
    let group = format!("ff02::1:ff{a:02x}:{b:02x}{c:02x}").parse::<Ipv6Addr>()?;
    stage.fabric.snoop(true)?;
    until(
        "the switch to know the group",
        Duration::from_secs(20),
        || stage.fabric.joined(&holder, group).unwrap_or(false),
    )?;
    stage.sluice.kill_agent(&holder)?;
    stage.neighbour.ip(&format!("-6 neigh flush to {vip}"))?;
    let asked = stage.neighbour.within(|| Protocol::Tcp.ask(None, target))?;
    stage.sluice.restart_agent(&holder)?;
    stage.sluice.await_ready()?;
    stage.fabric.snoop(false)?;
    asked?;
    stage.settle()
}

/// Loses 30 % of the directors' questions for VIPs, and then all questions and answers at the holder's port for 30 % of the time.
fn lossy(stage: &mut Failover) -> Result<()> {
    let seconds = env::var("SLUICE_LOSS_SECONDS").ok();
    let seconds = seconds.map(|text| text.parse().map(Duration::from_secs));
    let time = seconds.transpose()?.unwrap_or(LOSSY);
    stage.rest()?;
    let before = stage.takeovers()?;
    let ports = || NODES.iter().map(|node| stage.fabric.far_end(node));
    let all_lost = || ports().map(Port::lost).sum::<Result<u64>>();

    ports().try_for_each(|port| port.lose_questions(30))?;
    thread::sleep(time);
    let at_random = all_lost();
    ports().try_for_each(Port::lose_nothing)?;

    let holder = stage.holder_of("dr")?;
    let port = stage.fabric.far_end(&holder);
    port.lose_bursts()?;
    let end = Instant::now() + time;
    let mut next = Instant::now();
    let mut result = Ok(());
    while Instant::now() < end && result.is_ok() {
        result = port.lose_burst(BURST);
        next += BURST * 10 / 3;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let in_bursts = port.lost();
    port.lose_nothing()?;
    result?;

    let (at_random, in_bursts) = (at_random?, in_bursts?);
    let takeovers = stage.takeovers()? - before;
    println!(
        "  {time:?} each: {at_random} questions lost at random, {in_bursts} questions and answers in bursts, {takeovers} takeovers"
    );
    ensure!(at_random > 0 && in_bursts > 0, "nothing was lost");
    ensure!(takeovers == 0, "{takeovers} takeovers");
    stage.settle()
}

/// A virtual server with a VIP of each family from the pool `many`.
fn one_of_many(number: usize) -> Value {
    let addresses =
        Family::BOTH.map(|family| json!({"family": family.to_string(), "addressPoolName": "many"}));
    json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "VirtualServer",
        "metadata": {"name": format!("many-{number}"), "labels": {"number": "many"}},
        "spec": {
            "addresses": addresses,
            "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
            "forwarding": {"mode": "FullNAT"},
            "pools": [{"name": "fullnat", "weight": 1}],
        },
    })
}

/// What directors and operator ask the API server for, and how often, while so many virtual servers are announced and nothing happens.
/// Where a renewal comes late candidates read the Lease: the quietest of some looks counts.
fn requests(stage: &Failover, servers: usize) -> Result<BTreeMap<String, usize>> {
    let objects: Vec<Value> = (0..servers).map(one_of_many).collect();
    stage.sluice.apply("many", &objects)?;
    let control = stage.sluice.control_plane()?;
    let list = ["get", "virtualservers", "--selector=number=many"];
    control.admin().until(&list, MANY_SERVED, |list| {
        let objects = list["items"].as_array().map_or(&[][..], Vec::as_slice);
        let is_ready = |object| condition(object, "Ready")["status"] == "True";
        objects.len() == servers && objects.iter().all(is_ready)
    })?;
    stage.rest()?;
    let looks = (0..LOOKS).map(|_| look(control));
    let looks = looks.collect::<Result<Vec<_>>>()?;
    let quietest = looks.into_iter().min_by_key(total);
    quietest.context("a look")
}

fn total(counts: &BTreeMap<String, usize>) -> usize {
    counts.values().sum()
}

fn look(control: &ControlPlane) -> Result<BTreeMap<String, usize>> {
    let before = control.audit_events()?.len();
    thread::sleep(AT_REST);
    let mut counts = BTreeMap::new();
    for event in &control.audit_events()?[before..] {
        // Watches end when they have lasted for some minutes.
        if event["verb"] != "watch" {
            let request = format!("{} {}", event["verb"], event["objectRef"]["resource"]);
            *counts.entry(request).or_default() += 1;
        }
    }
    Ok(counts)
}

fn many_vips(stage: &mut Failover) -> Result<()> {
    let pool = json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "AddressPool", "metadata": {"name": "many"},
        "spec": {
            "addresses": ["198.18.0.0/20", "2001:db8:18::/64"], "autoAssign": false,
            "announce": {"l2": {"groups": 4}},
        },
    });
    stage.sluice.apply("pool-of-many", &[pool])?;
    let (few, many) = (requests(stage, 5)?, requests(stage, 500)?);
    println!("  requests in {AT_REST:?} with 10 VIPs: {few:?}, with 1,000: {many:?}");
    let [few, many] = [few, many].map(|counts| total(&counts));
    // Renewals that come late on a busy machine make the difference; one request more for each virtual server would be 500.
    ensure!(few > 0 && many * 2 <= few * 3, "{few} and {many}");
    let admin = stage.sluice.control_plane()?.admin();
    admin.kubectl([
        "delete",
        "virtualservers",
        "--selector=number=many",
        "--wait=false",
    ])?;
    stage.settle()
}

/// The virtual server of a rollout, and the number of its VIP.
const ROLLED: (&str, u8) = ("fullnat", 203);
/// How long a candidate may fail its clients.
const FAILING: Duration = Duration::from_secs(30);

/// Nobody listens at the candidate's port.
fn rolled_back(stage: &mut Failover) -> Result<()> {
    let (name, number) = ROLLED;
    let server = "fullnat-2";
    let members = [(server, stage.fabric.address(server)?, 1)];
    let candidate = manifest::pool("candidate", &members, Some(81));
    let policy = manifest::rollout("roll", name, name, "candidate", &[(25, 3_000)]);
    let serve = |stage: &Failover, pools: &[(&str, u32)]| {
        let server = manifest::virtual_server(name, "FullNAT", vip_on_link(number), pools);
        stage.sluice.apply("rolled", &[server])
    };
    stage.sluice.apply("candidate", &[candidate])?;
    serve(stage, &[(name, 100), ("candidate", 0)])?;
    let targets = Family::BOTH.map(|family| target(name, family));
    let pause = Duration::from_millis(500);
    let maker = ConnectionMaker::start_as_many(stage.fabric.client(), &targets, 12, pause, 11)?;
    let began = Instant::now();
    stage.sluice.apply("policy", &[policy])?;
    stage
        .sluice
        .expect_complaint("everything was given back to the stable pool");
    let mut last = None;
    let back = until("the run to be rolled back", FAILING, || {
        last = stage.sluice.rollout("roll");
        let status = last.as_ref();
        status.is_some_and(|it| it.phase == Some(RolloutPhase::RolledBack))
    });
    back.with_context(|| format!("{last:#?}"))?;
    stage
        .sluice
        .await_weights(name, &[(name, 100), ("candidate", 0)])?;
    let took = began.elapsed().as_secs_f64();
    let rollback = last.and_then(|it| it.rollback).context("a reason")?;
    println!(
        "  in force everywhere {took:.1} s after the policy was applied: {}",
        rollback.message
    );
    ensure!(rollback.reason == RollbackReason::ClientsFailed);
    maker.take_report();
    thread::sleep(2 * pause);
    maker.take_report();
    thread::sleep(2 * pause);
    maker.stop().expect_none_failed()?;
    stage.sluice.remove("policy")?;
    serve(stage, &[(name, 1)])?;
    stage.sluice.await_weights(name, &[(name, 1)])?;
    stage.sluice.remove("candidate")?;
    stage.settle()
}
