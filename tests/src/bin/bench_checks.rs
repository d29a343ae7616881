//! Measures what health checks of thousands of servers cost an agent: `docs/benchmarks.md`.
#![forbid(unsafe_code)]

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use nix::unistd::{SysconfVar, sysconf};
use serde::Serialize;
use serde_json::{Value, json};
use sluice_tests::figures;
use sluice_tests::net::fabric::{DIRECTORS, Fabric, ServerSpec, UPLINK};
use sluice_tests::net::manifest::{self, Role};
use sluice_tests::net::sluice::Sluice;
use sluice_tests::net::web;
use sluice_tests::net::{Family, Namespace, Process, listen_for_ctrl_c, until};

/// Measures what health checks of thousands of servers cost an agent.
#[derive(Parser)]
struct Arguments {
    /// Servers, each with an address of its own
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u16).range(10..=20_000))]
    servers: u16,
    /// Seconds between two checks of a server
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=60))]
    interval: u32,
    /// For how long to measure, with checks and without
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(2..=600))]
    seconds: u64,
    /// Where to write the figures
    #[arg(long, default_value = "target/bench-checks.json")]
    json: PathBuf,
}

/// The host that has all addresses.
const HOST: &str = "many";
/// The nginx that answers there.
const NGINX: &str = "all";
/// Where it listens.
const PORT: u16 = 9_000;
/// The addresses.
const NET: &str = "10.64.0.0/16";
/// Servers of a pool.
const POOL: usize = 500;
/// How long pools may take to be in force, and servers to be up.
const READY: Duration = Duration::from_mins(2);
/// Bins of a second in which checks are counted.
const BINS: u64 = 10;

/// What was measured.
#[derive(Serialize)]
struct Figures {
    servers: u16,
    interval_seconds: u32,
    checks_per_second: f64,
    /// Processors that the agent's process had, while servers were checked and before.
    cores: f64,
    cores_without_checks: f64,
    /// The agent's own memory, without the maps, which are the kernel's.
    memory_mb: f64,
    memory_mb_without_checks: f64,
    /// Checks in the busiest tenth of a second, relative to the mean.
    burst: f64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    listen_for_ctrl_c()?;
    figures::remove(&arguments.json)?;
    let measured = measure(&arguments)?;
    print(&measured);
    figures::write(&arguments.json, &measured)
}

fn measure(arguments: &Arguments) -> Result<Figures> {
    let fabric = Fabric::build(&[ServerSpec::new(HOST)])?;
    let director = DIRECTORS[0];
    let host = fabric.node(HOST)?;
    let gateway = host.address.of(Family::V4);
    host.namespace
        .ip(&format!("route add local {NET} dev lo"))?;
    let near = &fabric.node(director)?.namespace;
    near.ip(&format!("route add {NET} via {gateway}"))?;
    let (_server, log) = serve(&fabric, &host.namespace)?;
    let node = manifest::node(director, Role::Director, &[UPLINK]);
    let sluice = Sluice::start(&fabric, &[director], &manifest::documents(&[node]))?;
    let agent = sluice.agent_process(director)?.id();

    let servers: Vec<u16> = (0..arguments.servers).collect();
    let pools = || (0..).zip(servers.chunks(POOL));
    for (number, servers) in pools() {
        let name = format!("many-{number}");
        let vip = format!("192.0.2.{}", number + 1);
        let server = manifest::web_server(&name, &vip, &name);
        sluice.apply(&name, &[pool(&name, servers, None), server])?;
    }
    let in_force = |name: &str| {
        let status = sluice.virtual_server(name);
        status.is_some_and(|status| status.acknowledged.is_some())
    };
    until("all pools to be in force", READY, || {
        pools().all(|(number, _)| in_force(&format!("many-{number}")))
    })?;
    let quiet = over(agent, Duration::from_secs(arguments.seconds))?;

    let check = json!({
        "http": {},
        "intervalSeconds": arguments.interval,
        "timeoutMilliseconds": 1_000,
    });
    for (number, servers) in pools() {
        let name = format!("many-{number}");
        let vip = format!("192.0.2.{}", number + 1);
        let server = manifest::web_server(&name, &vip, &name);
        sluice.apply(&name, &[pool(&name, servers, Some(&check)), server])?;
    }
    let up = || {
        let metrics = sluice.metrics(director).unwrap_or_default();
        let up = metrics.get("sluice_checked_servers{verdict=\"up\"}");
        up.copied().unwrap_or_default()
    };
    until("all servers to be up", READY, || {
        up() >= f64::from(arguments.servers)
    })?;
    // What began together has settled.
    thread::sleep(Duration::from_secs(arguments.interval.into()));
    let before = fs::metadata(&log)?.len();
    let busy = over(agent, Duration::from_secs(arguments.seconds))?;
    ensure!(
        up() >= f64::from(arguments.servers),
        "{} servers are up",
        up()
    );
    let (checks_per_second, burst) = arrivals(&log, before)?;
    Ok(Figures {
        servers: arguments.servers,
        interval_seconds: arguments.interval,
        checks_per_second,
        cores: busy.cores,
        cores_without_checks: quiet.cores,
        memory_mb: busy.memory_mb,
        memory_mb_without_checks: quiet.memory_mb,
        burst,
    })
}

fn pool(name: &str, servers: &[u16], check: Option<&Value>) -> Value {
    let servers = servers.iter().map(|number| {
        let [high, low] = number.to_be_bytes();
        let address = IpAddr::from(Ipv4Addr::new(10, 64, high, low));
        json!({"name": format!("server-{number}"), "address": address})
    });
    let servers: Vec<Value> = servers.collect();
    let port = manifest::WEB.name;
    let mut spec = json!({
        "servers": {"static": servers},
        "targetPorts": [{"name": port, "port": PORT}],
    });
    if let Some(check) = check {
        spec["healthCheck"] = check.clone();
    }
    manifest::object("RealServerPool", name, &spec)
}

/// nginx at all addresses, and the file in which it writes down when it is asked.
fn serve(fabric: &Fabric, namespace: &Namespace) -> Result<(Process, PathBuf)> {
    let http = format!(
        "  log_format arrival $msec;
  access_log arrivals arrival;
  server {{
    listen 0.0.0.0:{PORT} backlog=4096;
    location / {{ return 200 \"well\\n\"; }}
  }}
"
    );
    let directory = web::directory(fabric.run(), NGINX)?;
    let log = directory.join("arrivals");
    let server = web::start(namespace, NGINX, &directory, &http)?;
    until("nginx to listen", Duration::from_secs(10), || log.exists())?;
    Ok((server, log))
}

/// What a process needs.
struct Needs {
    cores: f64,
    memory_mb: f64,
}

/// What it needs over a time.
fn over(process: u32, time: Duration) -> Result<Needs> {
    let (start, before) = (Instant::now(), processor_time(process)?);
    thread::sleep(time);
    let used = processor_time(process)? - before;
    Ok(Needs {
        cores: used / start.elapsed().as_secs_f64(),
        memory_mb: own_memory_mb(process)?,
    })
}

/// Seconds in user and kernel mode (proc_pid_stat(5): fields 14 and 15).
fn processor_time(process: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = text.rsplit_once(')').context("a name in parentheses")?;
    let fields = fields.split_whitespace().skip(11).take(2);
    let ticks: f64 = fields.map(str::parse::<f64>).sum::<Result<_, _>>()?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("ticks of a second")?;
    #[expect(clippy::cast_precision_loss, reason = "a hundred")]
    Ok(ticks / per_second as f64)
}

/// Memory of the process alone in units of 10^6 bytes (proc_pid_status(5)). What it shares with the kernel, as the maps, is not in it.
fn own_memory_mb(process: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let mut lines = text.lines();
    let line = lines.find_map(|line| line.strip_prefix("RssAnon:"));
    let kib: f64 = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .context("RssAnon")?
        .parse()?;
    Ok(kib * 1_024.0 / 1e6)
}

/// Requests in a second, and those of the busiest bin relative to the mean, in what was written after so many bytes.
fn arrivals(log: &Path, skipped: u64) -> Result<(f64, f64)> {
    let text = fs::read_to_string(log)?;
    let text = text
        .get(usize::try_from(skipped)?..)
        .context("a longer log")?;
    // Milliseconds after the point. The last line may not be whole.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let times = whole
        .lines()
        .map(|line| line.replace('.', "").parse::<u64>());
    let times: Vec<u64> = times.collect::<Result<_, _>>()?;
    let (first, last) = times.first().zip(times.last()).context("a request")?;
    let length = 1_000 / BINS;
    let mut bins = vec![0_u32; usize::try_from((last - first) / length)?];
    ensure!(!bins.is_empty(), "all requests came at once");
    for time in &times {
        // The last bin is not whole.
        if let Some(bin) = bins.get_mut(usize::try_from(time.saturating_sub(*first) / length)?) {
            *bin += 1;
        }
    }
    let sum: u32 = bins.iter().sum();
    #[expect(clippy::cast_precision_loss, reason = "a few thousand bins")]
    let mean = f64::from(sum) / bins.len() as f64;
    let most = bins.iter().max().copied().unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "ten")]
    Ok((mean * BINS as f64, f64::from(most) / mean))
}

fn print(figures: &Figures) {
    println!(
        "{} servers, each asked by HTTP every {} s",
        figures.servers, figures.interval_seconds
    );
    println!("{:>8.0} checks per second", figures.checks_per_second);
    println!(
        "{:>8.2} processors of the agent ({:.2} without checks)",
        figures.cores, figures.cores_without_checks
    );
    println!(
        "{:>8.1} MB of memory ({:.1} without checks)",
        figures.memory_mb, figures.memory_mb_without_checks
    );
    println!(
        "{:>8.2} times the mean in the busiest tenth of a second",
        figures.burst
    );
}
