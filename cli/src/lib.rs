//! The kubectl plugin of Sluice: `kubectl sluice status`, `vips`, `drain`, `node` and `rollout`.
//!
//! Objects are fetched ([`fetch`]), turned into a view by pure functions ([`view`]) and printed ([`text`], or the view
//! itself as JSON and YAML). A command to a run is checked against the run's phase ([`command`]) before it is written, so
//! that one which the operator would ignore is refused at once.
#![forbid(unsafe_code)]

pub mod args;
pub mod command;
pub mod connect;
pub mod drain;
pub mod fetch;
pub mod node;
pub mod problem;
pub mod rollout;
pub mod status;
pub mod text;
pub mod view;
pub mod vips;
pub mod watch;

use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::CommandFactory as _;
use serde::Serialize;

use args::{Args, DrainWhat, Output, UndrainWhat, Verb};

/// Everything went as asked.
pub const EXIT_DONE: u8 = 0;
/// An error, or a command that was refused or not carried out.
pub const EXIT_ERROR: u8 = 1;
/// A watched run was aborted or is stalled.
pub const EXIT_NOT_COMPLETED: u8 = 3;
/// Ended by Ctrl-C, as shells have it.
pub const EXIT_INTERRUPTED: u8 = 130;

/// Runs the plugin and returns its exit code.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let code = match args.verb {
        Verb::Status(status) => status::run(&args.connection, &status).await?,
        Verb::Vips(vips) => vips::run(&args.connection, &vips).await?,
        Verb::Drain(DrainWhat::Server(server)) => drain::drain(&args.connection, &server).await?,
        Verb::Undrain(UndrainWhat::Server(target)) => {
            drain::undrain(&args.connection, &target).await?
        }
        Verb::Node(verb) => node::run(&args.connection, verb).await?,
        Verb::Rollout(verb) => rollout::run(&args.connection, verb).await?,
        Verb::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "kubectl-sluice", &mut script);
            put(&String::from_utf8_lossy(&script))?;
            EXIT_DONE
        }
        Verb::Version => {
            put(concat!(
                "Client Version: v",
                env!("CARGO_PKG_VERSION"),
                "\n"
            ))?;
            EXIT_DONE
        }
    };
    Ok(ExitCode::from(code))
}

/// Writes to standard output. A reader that has gone, such as `head`, is no error.
pub fn put(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// A view as JSON or YAML, with a line end; `None` for the table, which each view has of its own.
pub fn document(output: Output, view: &impl Serialize) -> anyhow::Result<Option<String>> {
    Ok(match output {
        Output::Table => None,
        Output::Json => {
            let text = serde_json::to_string_pretty(view).context("cannot write JSON")?;
            Some(format!("{text}\n"))
        }
        Output::Yaml => Some(serde_saphyr::to_string(view).context("cannot write YAML")?),
    })
}
