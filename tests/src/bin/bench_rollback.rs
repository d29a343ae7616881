//! Measures how long candidates fail their clients until they are rolled back: `docs/benchmarks.md`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde::Serialize;
use serde_json::{Value, json};
use sluice_tests::figures;
use sluice_tests::net::fabric::{client_sources, vip_on_link};
use sluice_tests::net::failover::{Between, Failover, SPARE};
use sluice_tests::net::faulty::{Behaviour, Clients, FaultyServers};
use sluice_tests::net::manifest;
use sluice_tests::net::{Family, listen_for_ctrl_c, until};

/// Measures how long candidates fail their clients until no node sends them new connections: rollouts in batches, with three directors and a
/// real API server.
#[derive(Parser)]
struct Arguments {
    /// Rollouts at a time
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=40))]
    batch: u16,
    /// Batches of each case
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    batches: u32,
    /// Only cases whose name (`<mode> <state> <fault>`) contains this; several are alternatives
    #[arg(long)]
    case: Vec<String>,
    /// Where to write the figures
    #[arg(long, default_value = "target/bench-rollback.json")]
    json: PathBuf,
}

/// What becomes of the candidate.
const FAULTS: [(&str, Option<Behaviour>); 5] = [
    ("refuses", Some(Behaviour::Refuse)),
    ("hangs", Some(Behaviour::Hang(20))),
    ("resets", Some(Behaviour::Reset(20))),
    (
        "slow first byte",
        Some(Behaviour::Slow(Duration::from_millis(500))),
    ),
    // Its host is off the network.
    ("crashes", None),
];

/// What a rollout does when the fault begins.
struct State {
    name: &'static str,
    steps: fn() -> Value,
    phase: &'static str,
    index: u64,
    /// The candidate's percentage then.
    weight: u32,
    /// Connections a second to each virtual server.
    per_second: u32,
}

/// For so long a step goes on before the one that is measured.
const LEARNS_SECONDS: u32 = 30;

const STATES: [State; 4] = [
    State {
        name: "pause",
        steps: || json!([{"weight": 25, "pauseSeconds": 3_000}]),
        phase: "Pausing",
        index: 0,
        weight: 25,
        per_second: 20,
    },
    State {
        name: "gate",
        steps: || json!([{"weight": 25, "gate": "Manual"}]),
        phase: "Gated",
        index: 0,
        weight: 25,
        per_second: 20,
    },
    State {
        name: "promotion",
        steps: || json!([{"weight": 25, "pauseSeconds": LEARNS_SECONDS}, {"weight": 100, "pauseSeconds": 3_000}]),
        phase: "Pausing",
        index: 1,
        weight: 100,
        per_second: 8,
    },
    State {
        name: "bake",
        steps: || json!([{"weight": 25, "pauseSeconds": LEARNS_SECONDS}]),
        phase: "Completed",
        index: 1,
        weight: 100,
        per_second: 8,
    },
];

/// Modes, each with the servers of the stable and the candidate pools.
const MODES: [(&str, [&str; 2]); 2] = [
    ("FullNAT", ["fullnat-1", "fullnat-2"]),
    ("DR", ["dr-1", "dr-2"]),
];

/// The first port.
const PORT: u16 = 9_000;
/// How long rollouts take until they are where they should be.
const REACHED: Duration = Duration::from_mins(2);
/// How long directors take until they reach a host again that was off the network.
const RETURNS: Duration = Duration::from_secs(10);
/// How long a fault is waited for. The bound is 30 s.
const PATIENCE: Duration = Duration::from_mins(2);

/// The figures of a case.
#[derive(Serialize)]
struct Line {
    fault: &'static str,
    mode: &'static str,
    /// The metric that found it.
    detector: String,
    state: &'static str,
    /// Connections a second to the candidate.
    load: u32,
    runs: usize,
    seconds: Seconds,
}

/// Seconds from the fault until no node sends the candidate new connections.
#[derive(Serialize)]
struct Seconds {
    min: f64,
    median: f64,
    p99: f64,
    max: f64,
}

impl Seconds {
    /// Of at least one run. Percentiles are those of the nearest rank.
    fn of(mut measured: Vec<Duration>) -> Self {
        measured.sort_unstable();
        let at = |percent: usize| {
            let rank = (measured.len() * percent).div_ceil(100).max(1);
            let time = measured.get(rank - 1).copied().unwrap_or_default();
            (time.as_secs_f64() * 100.0).round() / 100.0
        };
        Self {
            min: at(0),
            median: at(50),
            p99: at(99),
            max: at(100),
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    listen_for_ctrl_c()?;
    figures::remove(&arguments.json)?;
    let stage = Failover::build_with(Between::Kubernetes, 1)?;
    let mut lines = Vec::new();
    for (mode, servers) in MODES {
        let mut bench = None;
        for state in &STATES {
            for (fault, behaviour) in FAULTS {
                let name = format!("{mode} {} {fault}", state.name);
                let is_meant = |part: &String| name.contains(part.as_str());
                // Who sees it does not depend on the state: one is enough of the second mode.
                let is_usual = mode == "FullNAT" || state.name == "pause";
                let is_wanted = if arguments.case.is_empty() {
                    is_usual
                } else {
                    arguments.case.iter().any(is_meant)
                };
                if !is_wanted {
                    continue;
                }
                if bench.is_none() {
                    bench = Some(Bench::start(&stage, mode, servers, arguments.batch)?);
                }
                let bench = bench.as_ref().context("it has been started")?;
                let line = bench.measure(state, fault, behaviour, arguments.batches);
                let line = line.with_context(|| name.clone())?;
                println!(
                    "{name:<32} {:<9} {:>3} runs: min {:>5.1} median {:>5.1} p99 {:>5.1} max {:>5.1} s",
                    line.detector,
                    line.runs,
                    line.seconds.min,
                    line.seconds.median,
                    line.seconds.p99,
                    line.seconds.max
                );
                lines.push(line);
            }
        }
        if let Some(bench) = bench {
            bench.end()?;
        }
    }
    figures::write(&arguments.json, &lines)
}

/// Virtual servers of a mode with a stable and a candidate pool each, all at one VIP.
struct Bench<'a> {
    stage: &'a Failover,
    mode: &'static str,
    servers: [&'static str; 2],
    batch: u16,
    candidates: FaultyServers,
    _stable: FaultyServers,
}

impl<'a> Bench<'a> {
    fn start(
        stage: &'a Failover,
        mode: &'static str,
        servers: [&'static str; 2],
        batch: u16,
    ) -> Result<Self> {
        let start = |server: &str| {
            let namespace = &stage.fabric.node(server)?.namespace;
            FaultyServers::start(namespace, PORT..PORT + batch)
        };
        let bench = Self {
            stage,
            mode,
            servers,
            batch,
            candidates: start(servers[1])?,
            _stable: start(servers[0])?,
        };
        let objects = (0..batch).map(|number| bench.objects(number));
        let objects = objects.collect::<Result<Vec<_>>>()?.concat();
        stage.sluice.apply("measured", &objects)?;
        bench.until("VirtualServer", REACHED, |object| {
            let conditions = object["status"]["conditions"].as_array();
            let mut ready = conditions.into_iter().flatten();
            ready.any(|it| it["type"] == "Ready" && it["status"] == "True")
        })?;
        Ok(bench)
    }

    fn end(self) -> Result<()> {
        self.stage.sluice.remove("measured")
    }

    fn objects(&self, number: u16) -> Result<Vec<Value>> {
        let port = PORT + number;
        let [stable, candidate] = [("stable", 0), ("candidate", 1)].map(|(side, server)| {
            let name = self.servers[server];
            let members = [(name, self.stage.fabric.address(name)?, 1)];
            Ok::<_, anyhow::Error>(manifest::pool(&pool(side, number), &members, None))
        });
        let addresses = Family::BOTH.map(|family| json!({"ip": vip_on_link(SPARE).of(family)}));
        let spec = json!({
            "addresses": addresses,
            "ports": [{"name": "http", "protocol": "TCP", "port": port}],
            "forwarding": {"mode": self.mode},
            "pools": [{"name": pool("stable", number), "weight": 100}, {"name": pool("candidate", number), "weight": 0}],
        });
        let server = manifest::object("VirtualServer", &pool("measured", number), &spec);
        Ok(vec![stable?, candidate?, server])
    }

    fn clients(&self, state: &State) -> Result<Clients> {
        let groups = (0..self.batch).map(|number| {
            let vip = vip_on_link(SPARE);
            let targets = Family::BOTH.map(|family| vip.socket(family, PORT + number));
            targets.to_vec()
        });
        let groups: Vec<Vec<SocketAddr>> = groups.collect();
        let sources = Family::BOTH.map(|family| client_sources(family, 23, 16_384));
        Clients::start(
            self.stage.fabric.client(),
            groups,
            state.per_second,
            sources,
        )
    }

    fn measure(
        &self,
        state: &State,
        fault: &'static str,
        behaviour: Option<Behaviour>,
        batches: u32,
    ) -> Result<Line> {
        let (mut measured, mut detectors) = (Vec::new(), BTreeMap::new());
        for _ in 0..batches {
            let clients = self.clients(state)?;
            let policies: Vec<Value> = (0..self.batch).map(|it| policy(it, state)).collect();
            self.stage.sluice.apply("policies", &policies)?;
            let rolled = self.fail(state, behaviour, &mut detectors);
            self.candidates.behave(Behaviour::Well);
            if behaviour.is_none() {
                self.stage.fabric.far_end(self.servers[1]).unsilence()?;
                thread::sleep(RETURNS);
            }
            drop(clients);
            self.stage.sluice.remove("policies")?;
            measured.extend(rolled?);
        }
        let found = detectors.into_iter().max_by_key(|(_, count)| *count);
        Ok(Line {
            fault,
            mode: self.mode,
            detector: found.map(|(name, _)| name).unwrap_or_default(),
            state: state.name,
            load: state.per_second * state.weight / 100,
            runs: measured.len(),
            seconds: Seconds::of(measured),
        })
    }

    /// Has all candidates fail once their rollouts are where they should be. Returns after which time each was rolled back on all nodes.
    fn fail(
        &self,
        state: &State,
        behaviour: Option<Behaviour>,
        detectors: &mut BTreeMap<String, usize>,
    ) -> Result<Vec<Duration>> {
        self.until("RolloutPolicy", REACHED, |policy| {
            let status = &policy["status"];
            status["phase"] == state.phase && status["step"]["index"] == state.index
        })?;
        thread::sleep(Duration::from_secs(u64::from(LEARNS_SECONDS)));
        let began = Instant::now();
        match behaviour {
            Some(behaviour) => self.candidates.behave(behaviour),
            None => self.stage.fabric.far_end(self.servers[1]).silence()?,
        }
        let mut back = BTreeMap::new();
        self.until("RolloutPolicy", PATIENCE, |policy| {
            let status = &policy["status"];
            let is_back = status["phase"] == "RolledBack" && status["step"]["liveTime"].is_string();
            if is_back && let Some(name) = policy["metadata"]["name"].as_str() {
                let metric = match status["rollback"]["reason"].as_str() {
                    Some("ClientsFailed") => "failures",
                    Some("FirstByteSlow") => "firstByte",
                    _ => "none",
                };
                back.entry(name.to_owned())
                    .or_insert_with(|| (began.elapsed(), metric));
            }
            is_back
        })?;
        for (_, metric) in back.values() {
            *detectors.entry((*metric).to_owned()).or_default() += 1;
        }
        Ok(back.into_values().map(|(time, _)| time).collect())
    }

    /// Waits until this holds of all measured objects of a kind. Each is looked at in each look.
    fn until(
        &self,
        kind: &str,
        limit: Duration,
        mut holds: impl FnMut(&Value) -> bool,
    ) -> Result<()> {
        let admin = self.stage.sluice.control_plane()?.admin();
        let mut held = 0;
        let reached = until(&format!("each {kind}"), limit, || {
            let list = admin.json(["get", kind, "--namespace", "default"]);
            let list = list.unwrap_or_default();
            let objects = list["items"].as_array();
            let is_measured = |object: &&Value| {
                let name = object["metadata"]["name"].as_str();
                name.is_some_and(|name| name.starts_with("measured-"))
            };
            let measured = objects.into_iter().flatten().filter(is_measured);
            held = measured.filter(|object| holds(object)).count();
            held == usize::from(self.batch)
        });
        reached.with_context(|| format!("{held} of {} are", self.batch))?;
        ensure!(held > 0, "nothing was looked at");
        Ok(())
    }
}

fn pool(side: &str, number: u16) -> String {
    format!("{side}-{number}")
}

fn policy(number: u16, state: &State) -> Value {
    let spec = json!({
        "virtualServerName": pool("measured", number),
        "stablePoolName": pool("stable", number),
        "candidatePoolName": pool("candidate", number),
        "strategy": {"canary": {"steps": (state.steps)()}},
    });
    manifest::object("RolloutPolicy", &pool("measured", number), &spec)
}
