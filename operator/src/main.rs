//! The operator's executable.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use sluice_api::Time;
use sluice_api::directory::Directory;
use sluice_api::jiff::Timestamp;
use sluice_operator::standalone::Standalone;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

/// How often the directory is looked at.
const POLL: Duration = Duration::from_millis(200);

/// Admits virtual servers, decides what nodes forward by, and steps rollouts.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// Standalone mode: directory with manifests; status is written to .status in it.
    #[arg(long, env = "SLUICE_DIR", value_name = "DIRECTORY")]
    dir: PathBuf,
    /// Log lines as JSON.
    #[arg(long, env = "SLUICE_LOG_JSON")]
    log_json: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_log(arguments.log_json);
    match run(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The level is `RUST_LOG`, by default `info`.
fn start_log(json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    if json {
        builder.json().init();
    } else {
        builder.init();
    }
}

async fn run(arguments: &Arguments) -> Result<()> {
    let path = &arguments.dir;
    ensure!(
        path.is_dir(),
        "{} is no directory: create it and put manifests there",
        path.display()
    );
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut operator = Standalone::open(Directory::new(path))?;
    info!(directory = %path.display(), "started");
    let start = Instant::now();
    let mut interval = tokio::time::interval(POLL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failing = String::new();
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
        let monotonic_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let result = operator.tick(&now(), monotonic_ms);
        let message = result
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        if message != failing {
            if message.is_empty() {
                info!("goes on");
            } else {
                error!("{message}; tries again");
            }
            failing = message;
        }
    }
    info!("stopped");
    Ok(())
}

/// Status keeps whole seconds.
fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}
