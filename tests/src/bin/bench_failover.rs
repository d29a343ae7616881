//! Measures how long clients get no answer while VIPs move between directors: `docs/benchmarks.md`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use nix::sys::signal::Signal;
use serde::Serialize;
use sluice_tests::figures;
use sluice_tests::kube::Part;
use sluice_tests::net::failover::{Between, Failover, NODES, SERVED, target};
use sluice_tests::net::{Family, KeptConnections, Outage, listen_for_ctrl_c};

/// Measures how long clients get no answer while VIPs move between three directors of a real API server.
#[derive(Parser)]
struct Arguments {
    /// Repetitions of each case in which something breaks
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    repetitions: u32,
    /// Repetitions of the case in which the agent is killed
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    killed: u32,
    /// Repetitions of each case that is planned, or takes seconds
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    planned: u32,
    /// Repetitions of each case in which the API server is away
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    slow: u32,
    /// For how many seconds it is; half of it where something else happens meanwhile
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=600))]
    away: u64,
    /// Only cases whose name contains this; several are alternatives
    #[arg(long)]
    case: Vec<String>,
    /// Where to write the figures
    #[arg(long, default_value = "target/bench-failover.json")]
    json: PathBuf,
}

/// Something that happens to the director that announces the VIPs.
struct Case {
    name: &'static str,
    times: Times,
    /// Whether directors ask the holder for its VIPs.
    is_probed: bool,
    happen: fn(&mut Failover, &str) -> Result<()>,
    /// Puts everything right again.
    mend: fn(&mut Failover, &str) -> Result<()>,
    /// How long clients go on.
    after: Duration,
}

impl Case {
    /// Settings of the directors' agents. A director that is back is trusted soon, so that repetitions need not wait for it; but without
    /// an API server, or without probes, that time has a part in what happens.
    fn agents(&self) -> Vec<(&'static str, &'static str)> {
        let is_hurried = self.is_probed && !matches!(self.times, Times::Rarely(_));
        vec![
            ("SLUICE_PROBES", if self.is_probed { "on" } else { "off" }),
            (
                "SLUICE_FAILBACK_SECONDS",
                if is_hurried { "1" } else { "3" },
            ),
        ]
    }
}

/// How often a case is repeated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Times {
    /// Something breaks.
    Often,
    /// The agent is killed.
    Killed,
    /// It is planned, or takes seconds.
    Seldom,
    /// The API server hangs, and it happens meanwhile. The time that is asked for is divided by this.
    Rarely(u32),
}

/// Longer than a suspicion and what follows.
const SUSPECTED: Duration = Duration::from_secs(1);

const CASES: [Case; 14] = [
    Case {
        name: "drained",
        times: Times::Seldom,
        is_probed: true,
        happen: |stage, holder| stage.drain(&[holder]),
        mend: |stage, _| stage.drain(&[]),
        after: Duration::from_secs(2),
    },
    Case {
        name: "agent ended",
        times: Times::Seldom,
        is_probed: true,
        happen: |stage, holder| stage.sluice.stop_agent(holder),
        mend: start_agent,
        after: Duration::from_secs(2),
    },
    Case {
        name: "operator killed",
        times: Times::Seldom,
        is_probed: true,
        happen: |stage, _| {
            stage.sluice.kill_operator()?;
            stage.sluice.restart_operator()
        },
        mend: |_, _| Ok(()),
        after: Duration::from_secs(2),
    },
    // The port passes nothing, and the carrier stays.
    Case {
        name: "silent",
        times: Times::Often,
        is_probed: true,
        happen: |stage, holder| stage.fabric.far_end(holder).silence(),
        mend: |stage, holder| stage.fabric.far_end(holder).unsilence(),
        after: SUSPECTED,
    },
    // It goes on renewing its Lease.
    Case {
        name: "silent, with API",
        times: Times::Often,
        is_probed: true,
        happen: |stage, holder| {
            let control = stage.fabric.control_address();
            stage.fabric.far_end(holder).isolate_but(control.v4)
        },
        mend: |stage, holder| stage.fabric.far_end(holder).unisolate(),
        after: SUSPECTED,
    },
    Case {
        name: "carrier lost",
        times: Times::Often,
        is_probed: true,
        happen: |stage, holder| stage.fabric.far_end(holder).cut(),
        mend: |stage, holder| stage.fabric.far_end(holder).mend(),
        after: SUSPECTED,
    },
    // The link towards the servers of NAT.
    Case {
        name: "2nd NIC cut",
        times: Times::Often,
        is_probed: true,
        happen: |stage, holder| stage.fabric.back_end(holder)?.cut(),
        mend: |stage, holder| stage.fabric.back_end(holder)?.mend(),
        after: SUSPECTED,
    },
    Case {
        name: "2nd NIC silent",
        times: Times::Seldom,
        is_probed: true,
        happen: |stage, holder| stage.fabric.back_end(holder)?.silence(),
        mend: |stage, holder| stage.fabric.back_end(holder)?.unsilence(),
        after: SUSPECTED,
    },
    // It answers until its deadline.
    Case {
        name: "agent killed",
        times: Times::Killed,
        is_probed: true,
        happen: |stage, holder| stage.sluice.kill_agent(holder),
        mend: start_agent,
        after: Duration::from_millis(4_300),
    },
    Case {
        name: "agent stopped",
        times: Times::Seldom,
        is_probed: true,
        happen: |stage, holder| {
            stage.signal_agent(holder, Signal::SIGSTOP)?;
            thread::sleep(Duration::from_secs(6));
            stage.signal_agent(holder, Signal::SIGCONT)
        },
        mend: |_, _| Ok(()),
        after: Duration::from_secs(2),
    },
    Case {
        name: "silent, by Lease",
        times: Times::Seldom,
        is_probed: false,
        happen: |stage, holder| stage.fabric.far_end(holder).silence(),
        mend: |stage, holder| stage.fabric.far_end(holder).unsilence(),
        after: Duration::from_secs(6),
    },
    Case {
        name: "no API",
        times: Times::Rarely(1),
        is_probed: true,
        happen: |_, _| Ok(()),
        mend: |_, _| Ok(()),
        after: Duration::from_secs(5),
    },
    Case {
        name: "silent, no API",
        times: Times::Rarely(2),
        is_probed: true,
        happen: |stage, holder| stage.fabric.far_end(holder).silence(),
        mend: |stage, holder| stage.fabric.far_end(holder).unsilence(),
        after: Duration::from_secs(5),
    },
    // All agents are killed and start again.
    Case {
        name: "agents, no API",
        times: Times::Rarely(2),
        is_probed: true,
        happen: |stage, _| {
            NODES
                .iter()
                .try_for_each(|node| stage.sluice.kill_agent(node))?;
            NODES
                .iter()
                .try_for_each(|node| stage.sluice.restart_agent(node))
        },
        mend: |stage, _| stage.sluice.await_ready(),
        after: Duration::from_secs(5),
    },
];

/// What happened lasts for so long at least: a director that answers within two seconds after it was suspected was suspected wrongly,
/// and the others bear its silence for twice as long from then on.
const LASTS: Duration = Duration::from_millis(2_600);
/// Time between the end of what happened and the next time that it does. A kernel tells of carriers that are lost once a second at most,
/// whatever the interface (Linux 6.18, `net/core/link_watch.c`), and here all directors have the same kernel.
const QUIET: Duration = Duration::from_millis(1_200);
/// Time in which clients connect before something happens.
const BEFORE: Duration = Duration::from_millis(250);
/// Long connections to each VIP of DR and TUN in each family: 200 in all. Those of NAT and FullNAT end with their director, and nobody
/// tells their clients.
const LONG: usize = 50;
/// Each of them is asked this often.
const ASKED: Duration = Duration::from_millis(50);
/// How long an answer is waited for. TCP sends a lost question again 0.2, 0.6, 1.4, 3 and 6.2 s later (RFC 6298 section 5.5).
const PATIENCE: Duration = Duration::from_secs(15);

fn start_agent(stage: &mut Failover, node: &str) -> Result<()> {
    stage.sluice.restart_agent(node)?;
    stage.sluice.await_ready()
}

/// Has the API server hang, and something happen after a third of that time.
fn without_api_server(
    stage: &mut Failover,
    away: Duration,
    happen: impl FnOnce(&mut Failover) -> Result<()>,
) -> Result<()> {
    let signal = |stage: &mut Failover, signal| {
        let control = stage.sluice.control_plane_mut()?;
        control.signal(Part::ApiServer, signal)
    };
    signal(stage, Signal::SIGSTOP)?;
    thread::sleep(away / 3);
    let happened = happen(stage);
    thread::sleep(away * 2 / 3);
    signal(stage, Signal::SIGCONT)?;
    happened
}

/// The figures of a case for one mode and family.
#[derive(Serialize)]
struct Line {
    case: &'static str,
    mode: &'static str,
    family: String,
    repetitions: usize,
    outage_ms: Outages,
    /// `null`: there were none.
    broken_long_connections: Option<usize>,
}

/// Times between the starts of the last connection before an outage and the first one after it, in milliseconds.
#[derive(Serialize)]
struct Outages {
    min: f64,
    median: f64,
    p99: f64,
    max: f64,
}

impl Outages {
    /// Of at least one repetition. Percentiles are those of the nearest rank.
    fn of(mut measured: Vec<Duration>) -> Self {
        measured.sort_unstable();
        let at = |percent: usize| {
            let rank = (measured.len() * percent).div_ceil(100).max(1);
            let longest = measured.get(rank - 1).copied().unwrap_or_default();
            (longest.as_secs_f64() * 10_000.0).round() / 10.0
        };
        Self {
            min: at(0),
            median: at(50),
            p99: at(99),
            max: at(100),
        }
    }
}

/// The outages and broken connections of a case, by server and family.
type Measured = BTreeMap<(usize, Family), (Vec<Duration>, Option<usize>)>;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    listen_for_ctrl_c()?;
    figures::remove(&arguments.json)?;
    // One group, so that every mode and family is measured in each repetition.
    let mut stage = Failover::build_with(Between::Kubernetes, 1)?;
    let mut lines = Vec::new();
    let mut agents = Vec::new();
    for case in &CASES {
        let is_meant = |part: &String| case.name.contains(part.as_str());
        if arguments.case.is_empty() || arguments.case.iter().any(is_meant) {
            let wanted = case.agents();
            if agents != wanted {
                stage.set_agents(&wanted)?;
                agents = wanted;
            }
            lines.extend(measure(&mut stage, case, &arguments)?);
        }
    }
    print(&lines);
    figures::write(&arguments.json, &lines)
}

fn measure(stage: &mut Failover, case: &Case, arguments: &Arguments) -> Result<Vec<Line>> {
    let repetitions = match case.times {
        Times::Often => arguments.repetitions,
        Times::Killed => arguments.killed,
        Times::Seldom => arguments.planned,
        Times::Rarely(_) => arguments.slow,
    };
    let start = Instant::now();
    let mut measured = Measured::new();
    for repetition in 0..repetitions {
        let longest = repeat(stage, case, (repetition, arguments.away), &mut measured)
            .with_context(|| format!("{}, repetition {}", case.name, repetition + 1))?;
        let seconds = start.elapsed().as_secs();
        eprintln!(
            "{}: {} of {repetitions} after {seconds} s, nobody for {} ms",
            case.name,
            repetition + 1,
            longest.as_millis()
        );
    }
    stage.settle()?;
    let lines = measured
        .into_iter()
        .map(|((server, family), (outages, broken))| Line {
            case: case.name,
            mode: SERVED[server].1,
            family: family.to_string(),
            repetitions: outages.len(),
            outage_ms: Outages::of(outages),
            broken_long_connections: broken,
        });
    Ok(lines.collect())
}

/// Lets it happen once under load. Clients are on the segment and behind the router in turn. Returns the longest outage.
fn repeat(
    stage: &mut Failover,
    case: &Case,
    (repetition, away): (u32, u64),
    measured: &mut Measured,
) -> Result<Duration> {
    let begun = Instant::now();
    let client = if repetition.is_multiple_of(2) {
        &stage.neighbour
    } else {
        stage.fabric.client()
    };
    // The director of before is to have recovered, and perhaps has got the group back.
    let holder = stage.holder_at_rest(SERVED[0].0)?;
    let mut clients = Vec::new();
    for (server, (name, mode, ..)) in SERVED.iter().enumerate() {
        for family in Family::BOTH {
            let target = target(name, family);
            let keeps = !mode.ends_with("NAT");
            let open = || KeptConnections::open_within(client, &[target], LONG, ASKED, PATIENCE);
            let kept = keeps.then(open);
            let kept = kept.transpose()?;
            let outage = Outage::start(client, target)?;
            clients.push(((server, family), kept, outage));
        }
    }
    thread::sleep(BEFORE.max(QUIET.saturating_sub(begun.elapsed())));
    let start = Instant::now();
    let happened = match case.times {
        Times::Rarely(part) => {
            without_api_server(stage, Duration::from_secs(away) / part, |stage| {
                (case.happen)(stage, &holder)
            })
        }
        Times::Often | Times::Killed | Times::Seldom => (case.happen)(stage, &holder),
    };
    thread::sleep(case.after);
    let mut longest = Duration::ZERO;
    for (_, _, outage) in &clients {
        outage.halt();
    }
    for (key, kept, outage) in clients {
        let (outages, broken) = measured.entry(key).or_default();
        let outage = outage.stop().longest;
        outages.push(outage);
        longest = longest.max(outage);
        if let Some(kept) = kept {
            *broken.get_or_insert_default() += kept.count_broken()?;
        }
    }
    happened?;
    thread::sleep((start + LASTS).saturating_duration_since(Instant::now()));
    (case.mend)(stage, &holder)?;
    Ok(longest)
}

fn print(lines: &[Line]) {
    println!(
        "{:<16} {:<8} {:<5} {:>5}  {:>8} {:>8} {:>8} {:>8}  {:>7}",
        "case", "mode", "", "times", "min ms", "median", "p99", "max", "broken"
    );
    for line in lines {
        let Outages {
            min,
            median,
            p99,
            max,
        } = line.outage_ms;
        println!(
            "{:<16} {:<8} {:<5} {:>5}  {min:>8.1} {median:>8.1} {p99:>8.1} {max:>8.1}  {:>7}",
            line.case,
            line.mode,
            line.family,
            line.repetitions,
            line.broken_long_connections
                .map_or("-".to_owned(), |broken| broken.to_string())
        );
    }
}
