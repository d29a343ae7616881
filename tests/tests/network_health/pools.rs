//! A mode's servers with pools of their own, what directors say of them, and which server each client gets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sluice_tests::net::fabric::{DIRECTORS, client_sources};
use sluice_tests::net::lab::{Lab, Mode};
use sluice_tests::net::manifest;
use sluice_tests::net::{Family, Protocol, WELL, until};

/// Clients of a spread: each asks from an address of its own.
const CLIENTS: usize = 400;
/// How long verdicts take at most: three checks a second apart, and what a busy machine needs.
pub(crate) const VERDICT: Duration = Duration::from_secs(20);

pub(crate) fn by_http() -> Value {
    json!({"http": {"path": WELL, "bodyContains": "well"}, "intervalSeconds": 1, "timeoutMilliseconds": 500, "fall": 2})
}

/// Has all three servers of a mode serve, in one pool with this check. New flows go by the client's address.
pub(crate) fn serve(lab: &mut Lab, mode: Mode, check: Value) -> Result<()> {
    let mut fields = json!({});
    fields["healthCheck"] = check;
    serve_by(lab, mode, &mode.servers(), fields)
}

/// The same, where this becomes of new flows when all are down.
pub(crate) fn serve_when_all_down(lab: &mut Lab, mode: Mode, what: &str) -> Result<()> {
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
pub(crate) fn serve_by(lab: &mut Lab, mode: Mode, servers: &[&str], fields: Value) -> Result<()> {
    let (pool, server) = manifests(lab, mode, servers, fields)?;
    apply(lab, mode, servers, &[pool, server])
}

pub(crate) fn pool_name(mode: Mode) -> String {
    format!("checked-{}", mode.virtual_server())
}

/// The pool and the virtual server.
pub(crate) fn manifests(
    lab: &Lab,
    mode: Mode,
    servers: &[&str],
    mut fields: Value,
) -> Result<(Value, Value)> {
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
pub(crate) fn restore(lab: &mut Lab, mode: Mode) -> Result<()> {
    for server in mode.servers() {
        signal(lab, server, Signal::SIGCONT)?;
        lab.fabric.web(server)?.set_well(true)?;
    }
    lab.set_shares(mode, 100, 0)
}

/// Stops a server's process, or lets it go on.
pub(crate) fn signal(lab: &mut Lab, server: &str, signal: Signal) -> Result<()> {
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
pub(crate) fn await_verdicts(lab: &Lab, up: u64, down: u64) -> Result<()> {
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
pub(crate) fn await_servers(
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
pub(crate) fn await_spared(
    lab: &Lab,
    mode: Mode,
    family: Family,
    port: u16,
    server: &str,
) -> Result<Servers> {
    let spared = |servers: &Servers| servers.values().all(|it| it != server);
    await_servers(lab, mode, family, port, spared)
}

/// Servers by the address of the client that got them.
pub(crate) type Servers = BTreeMap<SocketAddr, String>;

/// The server that each client gets.
pub(crate) fn servers_of(lab: &Lab, mode: Mode, family: Family, port: u16) -> Result<Servers> {
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
