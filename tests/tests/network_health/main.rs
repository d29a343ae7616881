//! Which servers take new flows: by health checks, while they warm up, and while they are drained.

mod pools;
mod rollbacks;
mod signals;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use sluice_api::{ConditionType, find_condition};
use sluice_tests::net::fabric::DIRECTORS;
use sluice_tests::net::lab::{Lab, Mode};
use sluice_tests::net::manifest;
use sluice_tests::net::suite::Suite;
use sluice_tests::net::{ConnectionMaker, Family, KeptConnections, Protocol, until};

use pools::{
    Servers, VERDICT, await_servers, await_spared, await_verdicts, by_http, manifests, pool_name,
    restore, serve, serve_by, serve_when_all_down, servers_of, signal,
};

fn main() -> ExitCode {
    let mut suite = Suite::new();
    for mode in Mode::ALL {
        check(
            &mut suite,
            &format!("{mode}: who fails takes no new flows, and nobody else's move"),
            mode,
            move |lab| takes_no_flows(lab, mode),
        );
    }
    for (name, mode, run) in CHECKS {
        check(&mut suite, name, mode, run);
    }
    // The director answers, whatever the mode.
    for mode in [Mode::Nat, Mode::Tun] {
        check(
            &mut suite,
            &format!("{mode}: where all are down clients are told, or not"),
            mode,
            move |lab| refuses(lab, mode),
        );
    }
    for (mode, then) in [
        (Mode::Nat, "Forget"),
        (Mode::Dr, "Forget"),
        (Mode::FullNat, "Reset"),
    ] {
        check(
            &mut suite,
            &format!("{mode}: who was removed keeps its connections for a time"),
            mode,
            move |lab| drains(lab, mode, then),
        );
    }
    suite.check("signals tell how servers meet connections", signals::tell);
    suite.check(
        "a candidate that fails its clients is rolled back",
        rollbacks::roll_back,
    );
    for mode in [Mode::FullNat, Mode::Dr] {
        check(
            &mut suite,
            &format!("{mode}: connections of who is down may be reset"),
            mode,
            move |lab| resets(lab, mode),
        );
    }
    check(
        &mut suite,
        "who joins others gets its share step by step",
        Mode::FullNat,
        warms_up,
    );
    suite.main(|| Lab::build(&Mode::ALL, &[], &[]))
}

type Run = fn(&mut Lab) -> Result<()>;

/// Checks of one mode, each with its name.
const CHECKS: [(&str, Mode, Run); 6] = [
    (
        "refusing, hanging and answering else all fail",
        Mode::FullNat,
        kinds_of_faults,
    ),
    (
        "a restart of the agent keeps verdicts",
        Mode::FullNat,
        restart,
    ),
    ("where all are down all take flows", Mode::Tun, all_down),
    (
        "a fallback pool takes the flows of one with too few servers",
        Mode::Dr,
        falls_back,
    ),
    (
        "a check that nobody passes takes nobody out",
        Mode::Dr,
        never_passed,
    ),
    ("a check has a port of its own", Mode::Nat, own_port),
];

/// Adds a check that changes one mode's servers and pools. These are put right after it also if it fails, so that the next one does
/// not fail for its sake.
fn check(
    suite: &mut Suite<Lab>,
    name: &str,
    mode: Mode,
    run: impl FnOnce(&mut Lab) -> Result<()> + 'static,
) {
    suite.check(name, move |lab| {
        let outcome = run(lab);
        let restored = restore(lab, mode);
        outcome.and(restored)
    });
}

fn takes_no_flows(lab: &mut Lab, mode: Mode) -> Result<()> {
    serve(lab, mode, by_http())?;
    await_verdicts(lab, 6, 0)?;
    let client = lab.fabric.client().clone();
    let targets = Family::BOTH.map(|family| mode.target(family));
    let before = Family::BOTH.map(|family| servers_of(lab, mode, family, 20_001));
    let kept = KeptConnections::open(&client, &targets, 40, Duration::from_millis(20))?;
    // The one that has connections.
    let sick = kept.servers().keys().next().context("a server")?.clone();
    let maker = ConnectionMaker::start(&client, &targets, 2, Duration::from_millis(5))?;
    lab.fabric.web(&sick)?.set_well(false)?;
    await_verdicts(lab, 4, 2)?;
    for (family, before) in Family::BOTH.into_iter().zip(&before) {
        let before = before
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error:#}"))?;
        let after = await_spared(lab, mode, family, 20_101, &sick)?;
        let mut moved = BTreeMap::new();
        for (client, server) in &after {
            let was = &before[client];
            ensure!(
                was == server || *was == sick,
                "{client} moved from {was} to {server}"
            );
            if *was == sick {
                *moved.entry(server.clone()).or_insert(0) += 1;
            }
        }
        ensure!(
            moved.len() == 2,
            "{family}: all that was {sick}'s went to {moved:?}"
        );
    }
    lab.fabric.web(&sick)?.set_well(true)?;
    await_verdicts(lab, 6, 0)?;
    for (family, before) in Family::BOTH.into_iter().zip(before) {
        let before = before?;
        await_servers(lab, mode, family, 20_301, |servers| *servers == before)
            .with_context(|| format!("{family}: not all are where they were"))?;
    }
    maker.stop().expect_none_failed()?;
    ensure!(kept.close()? > 1, "the kept connections were not used");
    Ok(())
}

/// Each fault of the second server has its own words in the node's condition.
fn kinds_of_faults(lab: &mut Lab) -> Result<()> {
    let mode = Mode::FullNat;
    let [_, sick, _] = mode.servers();
    serve(lab, mode, by_http())?;
    await_verdicts(lab, 6, 0)?;
    signal(lab, sick, Signal::SIGSTOP)?;
    await_verdicts(lab, 4, 2)?;
    expect_words(lab, "did not answer within 500 ms")?;
    signal(lab, sick, Signal::SIGCONT)?;
    await_verdicts(lab, 6, 0)?;
    lab.fabric.web(sick)?.set_well(false)?;
    await_verdicts(lab, 4, 2)?;
    expect_words(lab, "answered with status 503")?;
    // A connection can be opened all the same.
    serve(lab, mode, json!({"tcp": {}, "intervalSeconds": 1}))?;
    await_verdicts(lab, 6, 0)?;
    lab.fabric.web(sick)?.set_well(true)?;
    let port = mode.target_port().context("a port")?;
    let echo = json!({"udp": {"send": "x"}, "port": port, "intervalSeconds": 1});
    serve(lab, mode, echo)?;
    await_verdicts(lab, 6, 0)
}

fn expect_words(lab: &Lab, words: &str) -> Result<()> {
    let mut message = String::new();
    let said = until("the node to say why", VERDICT, || {
        let status = lab.sluice.node(DIRECTORS[0]).unwrap_or_default();
        let condition = find_condition(&status.conditions, ConditionType::ServersDown);
        message = condition.map_or_else(String::new, |condition| condition.message.clone());
        message.contains(words)
    });
    said.with_context(|| message)
}

fn restart(lab: &mut Lab) -> Result<()> {
    let mode = Mode::FullNat;
    let [_, sick, _] = mode.servers();
    serve(lab, mode, by_http())?;
    await_verdicts(lab, 6, 0)?;
    lab.fabric.web(sick)?.set_well(false)?;
    await_verdicts(lab, 4, 2)?;
    let client = lab.fabric.client().clone();
    let targets = Family::BOTH.map(|family| mode.target(family));
    for family in Family::BOTH {
        await_spared(lab, mode, family, 20_401, sick)?;
    }
    let maker = ConnectionMaker::start(&client, &targets, 2, Duration::from_millis(2))?;
    maker.take_report().expect_none_failed()?;
    lab.sluice.kill_agent(DIRECTORS[0])?;
    lab.sluice.restart_agent(DIRECTORS[0])?;
    lab.sluice.await_ready()?;
    await_verdicts(lab, 4, 2)?;
    let report = maker.stop();
    report.expect_none_failed()?;
    ensure!(
        report.spread.total() > 100,
        "{} connections",
        report.spread.total()
    );
    ensure!(
        report.spread.of(sick) == 0,
        "{sick} is down, and got {}",
        report.spread.of(sick)
    );
    lab.fabric.web(sick)?.set_well(true)?;
    await_verdicts(lab, 6, 0)
}

fn all_down(lab: &mut Lab) -> Result<()> {
    let mode = Mode::Tun;
    serve(lab, mode, by_http())?;
    await_verdicts(lab, 6, 0)?;
    let before = servers_of(lab, mode, Family::V4, 20_004)?;
    for server in mode.servers() {
        lab.fabric.web(server)?.set_well(false)?;
    }
    await_verdicts(lab, 0, 6)?;
    expect_words(lab, "so all of them take flows")?;
    await_servers(lab, mode, Family::V4, 20_201, |servers| *servers == before)
        .context("flows have moved")?;
    for server in mode.servers() {
        lab.fabric.web(server)?.set_well(true)?;
    }
    await_verdicts(lab, 6, 0)
}

/// Two servers have a pool with a check, and the third one is the fallback where fewer than 60 % of them are up.
fn falls_back(lab: &mut Lab) -> Result<()> {
    let mode = Mode::Dr;
    let [first, second, spare] = mode.servers();
    let check = json!({"healthCheck": by_http()});
    let (pool, mut server) = manifests(lab, mode, &[first, second], check)?;
    let sorry = format!("{}-sorry", pool_name(mode));
    let fallback = manifest::pool(&sorry, &lab.members(&[spare])?, mode.target_port());
    server["spec"]["fallbackPoolName"] = json!(sorry);
    server["spec"]["minReadyPercent"] = json!(60);
    let (name, own) = (mode.virtual_server(), pool_name(mode));
    lab.sluice.apply(name, &[pool, fallback, server])?;
    lab.sluice.await_weights(name, &[(&own, 1), (&sorry, 0)])?;
    lab.sluice.await_pool(&own, 2)?;
    await_verdicts(lab, 4, 0)?;
    let client = lab.fabric.client().clone();
    let targets = Family::BOTH.map(|family| mode.target(family));
    for family in Family::BOTH {
        await_spared(lab, mode, family, 20_601, spare)?;
    }
    let maker = ConnectionMaker::start(&client, &targets, 2, Duration::from_millis(5))?;
    lab.fabric.web(first)?.set_well(false)?;
    await_verdicts(lab, 2, 2)?;
    for family in Family::BOTH {
        let all_to_it = |servers: &Servers| servers.values().all(|it| it == spare);
        await_servers(lab, mode, family, 20_701, all_to_it)
            .with_context(|| format!("{family}: not all go to the fallback pool"))?;
    }
    lab.fabric.web(first)?.set_well(true)?;
    await_verdicts(lab, 4, 0)?;
    for family in Family::BOTH {
        await_spared(lab, mode, family, 20_801, spare)?;
    }
    maker.stop().expect_none_failed()
}

/// Waits until this does not fail.
fn await_ok(what: &str, attempt: impl Fn() -> Result<()>) -> Result<()> {
    let mut last = Ok(());
    let done = until(what, VERDICT, || {
        last = attempt();
        last.is_ok()
    });
    last.and(done)
}

/// Fails if a client is not told so at once, over both protocols.
fn expect_refused(lab: &Lab, mode: Mode) -> Result<()> {
    for family in Family::BOTH {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let start = Instant::now();
            let client = lab.fabric.client();
            let answer = client.within(|| protocol.ask(None, mode.target(family)))?;
            let error = answer
                .err()
                .with_context(|| format!("{protocol} by {family} was answered"))?;
            let error = format!("{error:#}");
            ensure!(error.contains("refused"), "{protocol} by {family}: {error}");
            ensure!(
                start.elapsed() < Duration::from_secs(1),
                "{:?}",
                start.elapsed()
            );
        }
    }
    Ok(())
}

fn refuses(lab: &mut Lab, mode: Mode) -> Result<()> {
    serve_when_all_down(lab, mode, "Reject")?;
    await_verdicts(lab, 6, 0)?;
    let client = lab.fabric.client().clone();
    let targets = Family::BOTH.map(|family| mode.target(family));
    let kept = KeptConnections::open(&client, &targets, 10, Duration::from_millis(50))?;
    for server in mode.servers() {
        lab.fabric.web(server)?.set_well(false)?;
    }
    await_verdicts(lab, 0, 6)?;
    await_ok("clients to be refused", || expect_refused(lab, mode))?;
    serve_when_all_down(lab, mode, "Drop")?;
    let patience = Duration::from_secs(1);
    let target = mode.target(Family::V4);
    await_ok("clients not to be told", || {
        let error = client.within(|| TcpStream::connect_timeout(&target, patience))?;
        let error = error.err().context("it was answered")?;
        ensure!(error.kind() == ErrorKind::TimedOut, "{error}");
        Ok(())
    })?;
    kept.close().context("connections from before")?;
    for server in mode.servers() {
        lab.fabric.web(server)?.set_well(true)?;
    }
    await_verdicts(lab, 6, 0)?;
    await_ok("all to be up again", || {
        let answer = client.within(|| Protocol::Tcp.ask(None, target))?;
        answer.map(drop)
    })
}

fn never_passed(lab: &mut Lab) -> Result<()> {
    let mode = Mode::Dr;
    lab.sluice
        .expect_complaint("no server has ever passed its check");
    let wrong =
        json!({"http": {"expectedStatuses": [{"min": 599, "max": 599}]}, "intervalSeconds": 1});
    serve(lab, mode, wrong)?;
    await_verdicts(lab, 0, 6)?;
    expect_words(
        lab,
        "no server has ever passed its check, so all take flows",
    )?;
    let start = Instant::now();
    let got = servers_of(lab, mode, Family::V6, 20_006)?;
    let distinct: std::collections::BTreeSet<&String> = got.values().collect();
    ensure!(
        distinct.len() == 3,
        "{distinct:?} after {:?}",
        start.elapsed()
    );
    Ok(())
}

/// The port that clients reach is served, and the one that is checked is not.
fn own_port(lab: &mut Lab) -> Result<()> {
    let mode = Mode::Nat;
    lab.sluice
        .expect_complaint("no server has ever passed its check");
    serve(
        lab,
        mode,
        json!({"tcp": {}, "port": 9, "intervalSeconds": 1}),
    )?;
    await_verdicts(lab, 0, 6)?;
    expect_words(lab, ":9: cannot connect")?;
    serve(
        lab,
        mode,
        json!({"tcp": {}, "port": 80, "intervalSeconds": 1}),
    )?;
    await_verdicts(lab, 6, 0)
}

fn resets(lab: &mut Lab, mode: Mode) -> Result<()> {
    let fields = json!({"healthCheck": by_http(), "onDown": "Reset"});
    serve_by(lab, mode, &mode.servers(), fields)?;
    await_verdicts(lab, 6, 0)?;
    let client = lab.fabric.client().clone();
    let targets = Family::BOTH.map(|family| mode.target(family));
    let kept = KeptConnections::open(&client, &targets, 40, Duration::from_millis(50))?;
    let (sick, theirs) = kept.servers().first_key_value().context("a server")?;
    let (sick, theirs) = (sick.clone(), *theirs);
    lab.fabric.web(&sick)?.set_well(false)?;
    await_verdicts(lab, 4, 2)?;
    for family in Family::BOTH {
        await_spared(lab, mode, family, 20_501, &sick)?;
    }
    // Each asks again within this time.
    thread::sleep(Duration::from_secs(1));
    let broken = kept.count_broken()?;
    ensure!(
        broken == theirs,
        "{broken} connections ended, and {sick} had {theirs}"
    );
    Ok(())
}

fn drains(lab: &mut Lab, mode: Mode, then: &str) -> Result<()> {
    let time = Duration::from_secs(6);
    let drain = || json!({"drain": {"timeoutSeconds": time.as_secs(), "then": then}});
    serve_by(lab, mode, &mode.servers(), drain())?;
    let client = lab.fabric.client().clone();
    let targets = Family::BOTH.map(|family| mode.target(family));
    let open = || KeptConnections::open(&client, &targets, 40, Duration::from_millis(50));
    let (early, late) = (open()?, open()?);
    let (removed, theirs) = late.servers().first_key_value().context("a server")?;
    let (removed, theirs) = (removed.clone(), *theirs);
    let mut others = mode.servers().to_vec();
    others.retain(|server| *server != removed);
    let maker = ConnectionMaker::start(&client, &targets, 2, Duration::from_millis(5))?;
    serve_by(lab, mode, &others, drain())?;
    let start = Instant::now();
    maker.take_report().expect_none_failed()?;
    thread::sleep(time / 3);
    early.close().context("before the time is over")?;
    let report = maker.stop();
    report.expect_none_failed()?;
    ensure!(
        report.spread.of(&removed) == 0,
        "new connections to {removed}"
    );
    thread::sleep((time + Duration::from_secs(2)).saturating_sub(start.elapsed()));
    let broken = late.count_broken()?;
    ensure!(
        broken == theirs,
        "{broken} connections ended, and {removed} had {theirs}"
    );
    Ok(())
}

fn warms_up(lab: &mut Lab) -> Result<()> {
    let mode = Mode::FullNat;
    let warmup = || json!({"warmup": {"seconds": 9}});
    let [first, second, joins] = mode.servers();
    serve_by(lab, mode, &[first, second], warmup())?;
    serve_by(lab, mode, &mode.servers(), warmup())?;
    let share = |lab: &Lab, port| {
        let servers = servers_of(lab, mode, Family::V4, port)?;
        let its = servers.values().filter(|server| *server == joins).count();
        anyhow::Ok(its * 100 / servers.len())
    };
    // A tenth of its third, and one more each second.
    let percent = share(lab, 20_007)?;
    ensure!((1..=15).contains(&percent), "{percent} % at first");
    thread::sleep(Duration::from_secs(10));
    let percent = share(lab, 20_008)?;
    ensure!((25..=42).contains(&percent), "{percent} % at last");
    Ok(())
}
