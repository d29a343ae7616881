//! Running the tests.

use std::{
    io::{BufRead, BufReader, Write},
    process::Stdio,
    thread,
};

use anyhow::{Context, Result, anyhow, bail};

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
    let outcome = match scope {
        Scope::Unit => {
            let chosen = workspace(suites::unit()?);
            cargo_test(&[&chosen, arguments].concat(), Show::Now)?
        }
        Scope::All => {
            // Integration tests run the agent and the operator; cargo test builds the binaries of the tests' own package
            // only. Writing the images builds them first, and the BPF programs.
            images::run(&images::Options::default())?;
            if arguments.is_empty() {
                all()?
            } else {
                cargo_test(arguments, Show::Now)?
            }
        }
    };
    let Outcome {
        summary, failure, ..
    } = outcome;
    println!();
    for failure in summary.failures() {
        println!("failed: {failure}");
    }
    if summary.ignored() > 0 {
        println!("{} ignored", summary.ignored());
    }
    println!("{summary}");
    if let Some(failure) = failure {
        bail!("{failure}");
    }
    if summary.failed() || summary.is_empty() {
        bail!("cargo test reported success for the above");
    }
    Ok(())
}

/// What a run of `cargo test` came to.
#[derive(Default)]
struct Outcome {
    summary: Summary,
    /// What was printed, if it was kept.
    output: Vec<u8>,
    failure: Option<String>,
}

impl Outcome {
    fn join(&mut self, other: Self) {
        self.summary.join(other.summary);
        self.output.extend(other.output);
        self.failure = self.failure.take().or(other.failure);
    }
}

/// What becomes of the output of a run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Show {
    /// It is printed as it comes.
    Now,
    /// It is kept.
    Later,
}

fn workspace(mut arguments: Vec<String>) -> Vec<String> {
    // With another selection of packages these would be built anew with other features.
    arguments.insert(0, "--workspace".to_owned());
    arguments
}

/// Runs everything: what is built once serves all runs, of which some go side by side.
fn all() -> Result<Outcome> {
    command::run(&mut command::cargo(["test", "--workspace", "--no-run"]))?;
    let suites::Runs { pairs, then } = suites::all()?;
    let mut outcome = Outcome::default();
    for lanes in pairs {
        outcome.join(side_by_side(lanes)?);
    }
    outcome.join(one_by_one(then.into(), Show::Now)?);
    Ok(outcome)
}

/// Runs two lanes at once. What the second prints comes after the first.
fn side_by_side([first, second]: [Vec<Vec<String>>; 2]) -> Result<Outcome> {
    let (first, second) = thread::scope(|scope| {
        let second = scope.spawn(|| one_by_one(second, Show::Later));
        (one_by_one(first, Show::Now), second.join())
    });
    let mut outcome = first?;
    let second = second.map_err(|_| anyhow!("the thread that watched a run has panicked"))??;
    std::io::stdout().write_all(&second.output)?;
    outcome.join(second);
    Ok(outcome)
}

fn one_by_one(runs: Vec<Vec<String>>, show: Show) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for arguments in runs {
        outcome.join(cargo_test(&workspace(arguments), show)?);
    }
    Ok(outcome)
}

/// Runs `cargo test`, to the end also when tests fail.
fn cargo_test(arguments: &[String], show: Show) -> Result<Outcome> {
    let mut cargo = command::cargo(["test", "--no-fail-fast"]);
    cargo
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = cargo
        .spawn()
        .with_context(|| format!("cannot run {}", command::show(&cargo)))?;
    let mut outcome = Outcome::default();
    let output = child.stdout.take().context("cargo test has no output")?;
    for line in BufReader::new(output).split(b'\n') {
        let mut line = line.context("cannot read the output of cargo test")?;
        outcome.summary.add(&String::from_utf8_lossy(&line));
        line.push(b'\n');
        match show {
            Show::Now => std::io::stdout().write_all(&line)?,
            Show::Later => outcome.output.extend(line),
        }
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    if !status.success() {
        outcome.failure = Some(format!("cargo test failed ({status})"));
    }
    Ok(outcome)
}
