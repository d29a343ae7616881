//! Commands that run to their end.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// Runs a command line, split at spaces, and returns what it wrote. The error holds what it complained of.
pub(super) fn command(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty command line")?;
    output(Command::new(program).args(words))
}

/// Runs a command to its end and returns what it wrote.
pub fn output(command: &mut Command) -> Result<String> {
    let result = command
        .output()
        .with_context(|| format!("start {command:?}"))?;
    if !result.status.success() {
        let complaint = String::from_utf8_lossy(&result.stderr);
        bail!("{command:?}: {}: {}", result.status, complaint.trim());
    }
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}
