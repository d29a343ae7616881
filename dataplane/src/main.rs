//! `sluice-agent`: runs the data plane of one node.
#![forbid(unsafe_code)]

mod options;
mod run;
mod sources;

use std::process::ExitCode;

use anyhow::{Context, Result};
use sluice_agent::netlink::Requests;
use sluice_agent::{admin, maps};
use tracing_subscriber::EnvFilter;

use options::{Cli, Command, LogFormat, Place};

fn main() -> ExitCode {
    let cli = Cli::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let result = match cli.command {
        Command::Run(options) => {
            set_up_log(options.log_format);
            run::run(&options)
        }
        Command::Detach(place) => {
            set_up_log(LogFormat::Text);
            detach(&place)
        }
        Command::Dump(place) => ask(&place, "/maps"),
        Command::Health(place) => ask(&place, "/healthz"),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice-agent: ERROR {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn set_up_log(format: LogFormat) {
    let wanted = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_else(|_| "info".to_owned());
    let mut filter = EnvFilter::try_new(&wanted).unwrap_or_else(|_| EnvFilter::new("info"));
    // The client calls every failed request an error; the source says what lasts.
    if !wanted.contains("kube_client")
        && let Ok(quiet) = "kube_client=off".parse()
    {
        filter = filter.add_directive(quiet);
    }
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

fn detach(place: &Place) -> Result<()> {
    let mut requests = Requests::open()?;
    let removed = maps::detach(&place.pin_dir, |interface| {
        requests
            .remove_idle_clsact(interface)
            .map_err(std::io::Error::other)
    })?;
    requests
        .release_registered()
        .context("release neighbours")?;
    requests.leave_groups().context("leave multicast groups")?;
    // A killed agent leaves them.
    for file in [place.socket(), place.memory(), place.known_servers()] {
        let _ = std::fs::remove_file(file);
    }
    if removed.is_empty() {
        println!(
            "nothing was attached or pinned in {}",
            place.pin_dir.display()
        );
    }
    for what in removed {
        println!("removed {what}");
    }
    Ok(())
}

fn ask(place: &Place, path: &str) -> Result<()> {
    print!("{}", admin::ask(&place.socket(), path)?);
    Ok(())
}
