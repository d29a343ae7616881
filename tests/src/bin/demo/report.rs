//! The demo's output: numbered steps, aligned facts, and checks that decide about the exit code.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

/// Columns of the name of a fact.
const NAME_WIDTH: usize = 16;

/// Steps so far and checks that failed.
#[derive(Debug, Default)]
pub(crate) struct Report {
    steps: u32,
    failed: u32,
    passed: u32,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Begins a step.
    pub(crate) fn step(&mut self, text: &str) {
        self.steps += 1;
        println!("\n{:>2}  {text}", self.steps);
    }

    /// Says whether something is as it should be.
    pub(crate) fn check(&mut self, what: &str, result: Result<()>) {
        match result {
            Ok(()) => {
                self.passed += 1;
                line("ok", what);
            }
            Err(error) => {
                self.failed += 1;
                line("FAILED", &format!("{what}: {error:#}"));
            }
        }
    }

    /// The verdict.
    pub(crate) fn finish(self, result: Result<()>, took: Duration) -> ExitCode {
        let seconds = took.as_secs();
        let Self { passed, failed, .. } = self;
        match result {
            Ok(()) if failed == 0 => {
                println!("\nAll {passed} checks passed in {seconds} s.");
                ExitCode::SUCCESS
            }
            Ok(()) => {
                println!(
                    "\n{failed} of {} checks FAILED ({seconds} s).",
                    passed + failed
                );
                ExitCode::FAILURE
            }
            Err(error) => {
                println!("\nThe demo could not go on: {error:#}");
                ExitCode::FAILURE
            }
        }
    }
}

/// Explains.
pub(crate) fn text(text: &str) {
    for line in text.lines() {
        println!("      {line}");
    }
}

/// Shows a fact.
pub(crate) fn line(name: &str, value: &str) {
    println!("      {name:<NAME_WIDTH$}  {value}");
}
