//! Measures the cost of a change among thousands of objects: `make bench-scale`.
//!
//! Each subject is measured in a process of its own, so that memory is its own. Processor time is that of the thread at work;
//! what an API server takes is time on the clock.

mod agent;
mod api_server;
mod figure;
mod operator;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};

use figure::Figure;

/// A measured part of Sluice.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Subject {
    /// The operator's core, without I/O.
    Operator,
    /// The agent's core, without I/O.
    Agent,
    /// The operator's process before a real API server; needs root and Kubernetes' binaries.
    ApiServer,
}

/// Measures what changes cost with many virtual servers, pools, servers and nodes.
#[derive(Parser)]
struct Options {
    /// Measure only this, in this process, and print figures as lines of JSON.
    #[arg(long)]
    subject: Option<Subject>,
    /// Virtual servers, and as many pools of ten servers, for the cores.
    #[arg(long, default_value_t = 10_000)]
    virtual_servers: u32,
    /// Nodes, for the operator's core.
    #[arg(long, default_value_t = 500)]
    nodes: u32,
    /// Virtual servers that are applied to the API server.
    #[arg(long, default_value_t = 1_000)]
    applied: u32,
    /// File for all figures.
    #[arg(long, default_value = "target/bench-scale.json")]
    json: PathBuf,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(subject) = options.subject {
        for figure in measure(subject, &options)? {
            println!("{}", serde_json::to_string(&figure)?);
        }
        return Ok(());
    }
    let mut figures = Vec::new();
    for subject in Subject::value_variants() {
        let found = in_process(*subject, &options)?;
        for figure in &found {
            println!("{figure}");
        }
        figures.extend(found);
    }
    fs::write(&options.json, serde_json::to_string_pretty(&figures)?)
        .with_context(|| format!("cannot write {}", options.json.display()))
}

fn measure(subject: Subject, options: &Options) -> Result<Vec<Figure>> {
    match subject {
        Subject::Operator => Ok(operator::figures(options.virtual_servers, options.nodes)),
        Subject::Agent => Ok(agent::figures(options.virtual_servers)),
        Subject::ApiServer => api_server::figures(options.applied),
    }
}

/// Measures a subject in a process of its own.
fn in_process(subject: Subject, options: &Options) -> Result<Vec<Figure>> {
    let name = subject.to_possible_value();
    let name = name.context("every subject has a name")?;
    let output = Command::new(std::env::current_exe()?)
        .args(["--subject", name.get_name()])
        .args(["--virtual-servers", &options.virtual_servers.to_string()])
        .args(["--nodes", &options.nodes.to_string()])
        .args(["--applied", &options.applied.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    let status = output.status;
    ensure!(status.success(), "{} failed: {status}", name.get_name());
    let lines = String::from_utf8(output.stdout)?;
    let figures = lines.lines().filter(|line| line.starts_with('{'));
    figures
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cases check what they measure: how many objects are decided, written and planned.
    #[test]
    fn the_cores_do_what_is_measured() {
        let figures = [operator::figures(60, 5), agent::figures(120)].concat();
        assert!(figures.iter().all(|figure| figure.value > 0.0));
        let text = serde_json::to_string(&figures).expect("figures are JSON");
        let read: Vec<Figure> = serde_json::from_str(&text).expect("as they are written");
        assert_eq!(read.len(), figures.len());
    }
}
