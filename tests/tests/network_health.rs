//! Which servers take new flows: by health checks, while they warm up, and while they are drained.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sluice_api::{ConditionType, find_condition};
use sluice_tests::net::fabric::{DIRECTORS, client_sources};
use sluice_tests::net::lab::{Lab, Mode};
use sluice_tests::net::manifest;
use sluice_tests::net::suite::Suite;
use sluice_tests::net::{ConnectionMaker, Family, KeptConnections, Protocol, WELL, until};

/// Clients of a spread: each asks from an address of its own.
const CLIENTS: usize = 400;
/// How long verdicts take at most: three checks a second apart, and what a busy machine needs.
const VERDICT: Duration = Duration::from_secs(20);

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
const CHECKS: [(&str, Mode, Run); 5] = [
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

fn by_http() -> Value {
    json!({"http": {"path": WELL, "bodyContains": "well"}, "intervalSeconds": 1, "timeoutMilliseconds": 500, "fall": 2})
}

/// Has all three servers of a mode serve, in one pool with this check. New flows go by the client's address.
fn serve(lab: &mut Lab, mode: Mode, check: Value) -> Result<()> {
    let mut fields = json!({});
    fields["healthCheck"] = check;
    serve_by(lab, mode, &mode.servers(), fields)
}

/// The same, where this becomes of new flows when all are down.
fn serve_when_all_down(lab: &mut Lab, mode: Mode, what: &str) -> Result<()> {
    let (pool, mut server) = manifests(
        lab,
        mode,
        &mode.servers(),
        json!({"healthCheck": by_http()}),
    )?;
    server["spec"]["whenAllDown"] = json!(what);
    apply(lab, mode, &mode.servers(), &[pool, server])
}

/// Has these servers of a mode serve, in one pool with these fields in its spec.
fn serve_by(lab: &mut Lab, mode: Mode, servers: &[&str], fields: Value) -> Result<()> {
    let (pool, server) = manifests(lab, mode, servers, fields)?;
    apply(lab, mode, servers, &[pool, server])
}

fn pool_name(mode: Mode) -> String {
    format!("checked-{}", mode.virtual_server())
}

/// The pool and the virtual server.
fn manifests(lab: &Lab, mode: Mode, servers: &[&str], mut fields: Value) -> Result<(Value, Value)> {
    let name = pool_name(mode);
    let mut pool = manifest::pool(&name, &lab.members(servers)?, mode.target_port());
    let fields = fields.as_object_mut().context("an object")?;
    let spec = pool["spec"].as_object_mut().context("a spec")?;
    spec.append(fields);
    let pools = [(name.as_str(), 1)];
    let server = mode.virtual_server();
    let mut server = manifest::virtual_server(server, mode.name(), mode.vip(), &pools);
    server["spec"]["serverSelection"] = json!("ClientAddress");
    Ok((pool, server))
}

fn apply(lab: &mut Lab, mode: Mode, servers: &[&str], objects: &[Value; 2]) -> Result<()> {
    let (name, pool) = (mode.virtual_server(), pool_name(mode));
    lab.sluice.apply(name, objects)?;
    lab.sluice.await_weights(name, &[(&pool, 1)])?;
    lab.sluice.await_pool(&pool, servers.len())
}

/// Has a mode's servers work, and puts its own pools in place again.
fn restore(lab: &mut Lab, mode: Mode) -> Result<()> {
    for server in mode.servers() {
        signal(lab, server, Signal::SIGCONT)?;
        lab.fabric.web(server)?.set_well(true)?;
    }
    lab.set_shares(mode, 100, 0)
}

/// Stops a server's process, or lets it go on.
fn signal(lab: &mut Lab, server: &str, signal: Signal) -> Result<()> {
    let id = lab.fabric.web(server)?.process().id();
    Ok(kill(Pid::from_raw(i32::try_from(id)?), signal)?)
}

/// How many servers a director has verdicts of this kind on.
fn count(lab: &Lab, director: &str, verdict: &str) -> Result<u64> {
    let series = format!("sluice_checked_servers{{verdict=\"{verdict}\"}}");
    let metrics = lab.sluice.metrics(director)?;
    let value = metrics
        .get(&series)
        .with_context(|| format!("no {series}"))?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count of a few servers"
    )]
    Ok(*value as u64)
}

/// Waits until both directors know so many servers to be up and down, in both families together: each checks for itself.
fn await_verdicts(lab: &Lab, up: u64, down: u64) -> Result<()> {
    let mut seen = String::new();
    let known = until("the directors to know which servers work", VERDICT, || {
        let counts = DIRECTORS.map(|director| {
            ["up", "down"].map(|verdict| count(lab, director, verdict).unwrap_or(u64::MAX))
        });
        seen = format!("{counts:?}");
        counts.iter().all(|counts| *counts == [up, down])
    });
    known.with_context(|| seen)
}

/// Waits until clients get the servers that `is_meant` accepts: verdicts are known a little before they are in force.
fn await_servers(
    lab: &Lab,
    mode: Mode,
    family: Family,
    port: u16,
    is_meant: impl Fn(&Servers) -> bool,
) -> Result<Servers> {
    let mut ports = port..;
    let mut last = servers_of(lab, mode, family, port)?;
    until("flows to go where they are meant to", VERDICT, || {
        if is_meant(&last) {
            return true;
        }
        let next = ports.next().context("a port");
        if let Ok(found) = next.and_then(|port| servers_of(lab, mode, family, port)) {
            last = found;
        }
        false
    })?;
    Ok(last)
}

/// Waits until no client gets this server.
fn await_spared(lab: &Lab, mode: Mode, family: Family, port: u16, server: &str) -> Result<Servers> {
    let spared = |servers: &Servers| servers.values().all(|it| it != server);
    await_servers(lab, mode, family, port, spared)
}

/// Servers by the address of the client that got them.
type Servers = BTreeMap<SocketAddr, String>;

/// The server that each client gets.
fn servers_of(lab: &Lab, mode: Mode, family: Family, port: u16) -> Result<Servers> {
    let sources = client_sources(family, 51, CLIENTS);
    let target = mode.target(family);
    let mut found = BTreeMap::new();
    for source in sources {
        let from = SocketAddr::new(source.ip(), port);
        let answer = lab
            .fabric
            .client()
            .within(|| Protocol::Tcp.ask(Some(from), target))??;
        found.insert(SocketAddr::new(source.ip(), 0), answer.server);
    }
    Ok(found)
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
