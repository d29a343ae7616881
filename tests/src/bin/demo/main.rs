//! `make demo`: Sluice on one machine, from manifests to packets.
//!
//! Builds a network of namespaces, starts the operator and the agents in it, applies the manifests of `examples/demo` one by
//! one, shows where connections go, and moves a canary while connections stay open and new ones are made all the time. Ends
//! with a verdict: the exit code is not 0 if anything is not as it should be. Ctrl-C cleans up too.
//!
//! With `--kubernetes` manifests are applied to a real API server by kubectl, instead of being files of a directory.
#![forbid(unsafe_code)]

mod canary;
mod modes;
mod report;
mod takeover;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use sluice_tests::net::fabric::{DIRECTORS, Fabric, ServerSpec};
use sluice_tests::net::sluice::Sluice;
use sluice_tests::net::{Family, listen_for_ctrl_c};

use report::{Report, line, text};

/// Servers whose gateway is director 1.
const NAT_SERVERS: [&str; 2] = ["nat-1", "nat-2"];
/// Servers that know only the router.
const FULLNAT_SERVERS: [&str; 2] = ["fullnat-1", "fullnat-2"];
/// Servers that answer clients directly: an agent runs on each.
const DIRECT_SERVERS: [&str; 6] = ["dr-1", "dr-2", "tun-1", "tun-2", "tun-3", "tun-4"];

/// Shows Sluice on one machine.
#[derive(Parser, Clone, Copy, Debug)]
struct Arguments {
    /// Apply manifests to a real API server of Kubernetes, by kubectl.
    #[arg(long)]
    kubernetes: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let start = Instant::now();
    if let Err(error) = listen_for_ctrl_c() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    let mut report = Report::new();
    // Everything that was built is gone when `run` returns.
    let result = run(&mut report, arguments);
    report.finish(result, start.elapsed())
}

fn run(report: &mut Report, arguments: Arguments) -> Result<()> {
    println!(
        "Sluice: an XDP load balancer in four forwarding modes, with a takeover and a canary release"
    );
    let fabric = build_network(report)?;
    let mut sluice = start_daemons(report, &fabric, arguments)?;
    modes::show(report, &fabric, &mut sluice)?;
    takeover::show(report, &fabric, &mut sluice, arguments)?;
    canary::show(report, &fabric, &mut sluice)?;
    report.step("Looking for complaints in the daemons' logs");
    report.check("no warning, no error", sluice.expect_no_complaints());
    report.step("Cleaning up: processes, namespaces, pinned programs and maps");
    Ok(())
}

fn build_network(report: &mut Report) -> Result<Fabric> {
    report.step("Building the network: each box a namespace, IPv4 and IPv6 everywhere");
    text(
        "client --- router --- switch --+-- director-1, director-2   (forwarding on, ECMP from the router)
                               +-- nat-1, nat-2             (gateway: director-1)
                               +-- fullnat-1, fullnat-2     (gateway: router)
                               +-- dr-1, dr-2               (gateway: router)
                               +-- tun-1 ... tun-4          (gateway: router)",
    );
    let plain = FULLNAT_SERVERS.into_iter().chain(DIRECT_SERVERS);
    let servers: Vec<ServerSpec> = NAT_SERVERS
        .into_iter()
        .map(|name| ServerSpec::new(name).behind_director())
        .chain(plain.map(ServerSpec::new))
        .collect();
    let fabric = Fabric::build(&servers)?;
    text(
        "Servers have addresses, a route and nginx (and a UDP echo). Of VIPs only the router knows some, which are elsewhere.",
    );
    for director in DIRECTORS {
        let address = fabric.address(director)?;
        let [v4, v6] = Family::BOTH.map(|family| address.of(family));
        line(director, &format!("{v4}  {v6}"));
    }
    Ok(fabric)
}

fn start_daemons(report: &mut Report, fabric: &Fabric, arguments: Arguments) -> Result<Sluice> {
    let nodes: Vec<&str> = DIRECTORS.into_iter().chain(DIRECT_SERVERS).collect();
    let what = "sluice-operator, and sluice-agent on 2 directors and 6 servers";
    let manifests = manifest("nodes")?;
    let sluice = if arguments.kubernetes {
        report.step(&format!("Starting etcd, kube-apiserver, {what}"));
        let sluice = Sluice::start_in_cluster(fabric, &nodes, &manifests)?;
        let version = sluice.control_plane()?.admin().kubectl(["version"])?;
        let server = version.lines().find(|line| line.starts_with("Server"));
        line("Kubernetes", server.unwrap_or(&version));
        line("kubectl apply", "crds/*.yaml, examples/demo/nodes.yaml");
        sluice
    } else {
        report.step(&format!("Starting {what}"));
        let sluice = Sluice::start(fabric, &nodes, &manifests)?;
        line("manifests", "examples/demo/nodes.yaml");
        sluice
    };
    line("attached", "8 agents, native XDP on eth0");
    Ok(sluice)
}

/// Text of a manifest of the demo.
fn manifest(name: &str) -> Result<String> {
    let path = examples().join(format!("{name}.yaml"));
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/demo")
}
