//! Running the tests.

use std::{
    io::{BufRead, BufReader, Write},
    process::Stdio,
};

use anyhow::{Context, Result, bail};

use crate::{command, images, suites, summary::Summary};

/// Which tests run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All, or those that the arguments for cargo choose.
    All,
    /// Those that need nothing but cargo.
    Unit,
}

impl Scope {
    /// From the command line's `--unit`.
    pub(crate) fn of(unit: bool) -> Self {
        if unit { Self::Unit } else { Self::All }
    }
}

/// Runs the tests, after building what they need, and prints the sum of their results as the last line.
pub(crate) fn run(scope: Scope, arguments: &[String]) -> Result<()> {
    let mut cargo = command::cargo(["test", "--no-fail-fast"]);
    match scope {
        Scope::Unit => {
            cargo.args(suites::unit()?);
        }
        Scope::All => {
            // Integration tests run the agent and the operator; cargo test builds the binaries of the tests' own package
            // only. Writing the images builds them first, and the BPF programs.
            images::run(&images::Options::default())?;
            if arguments.is_empty() {
                cargo.arg("--workspace");
            }
        }
    }
    cargo
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = cargo
        .spawn()
        .with_context(|| format!("cannot run {}", command::show(&cargo)))?;
    let mut summary = Summary::default();
    let mut stdout = std::io::stdout().lock();
    let output = child.stdout.take().context("cargo test has no output")?;
    for line in BufReader::new(output).split(b'\n') {
        let mut line = line.context("cannot read the output of cargo test")?;
        summary.add(&String::from_utf8_lossy(&line));
        line.push(b'\n');
        stdout.write_all(&line)?;
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    println!();
    for failure in summary.failures() {
        println!("failed: {failure}");
    }
    if summary.ignored() > 0 {
        println!("{} ignored", summary.ignored());
    }
    println!("{summary}");
    if !status.success() {
        bail!("cargo test failed ({status})");
    }
    if summary.failed() || summary.is_empty() {
        bail!("cargo test reported success for the above");
    }
    Ok(())
}
