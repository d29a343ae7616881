//! Whether source files are short enough to be read at once.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::command;

/// The most lines of a Rust file. None of them is generated.
const MOST_LINES: usize = 600;

/// Names the files that are too long.
pub(crate) fn check() -> Result<()> {
    let mut git = std::process::Command::new("git");
    git.current_dir(command::root());
    git.args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "*.rs",
    ]);
    let listed = command::output(&mut git).context("git cannot list the files")?;
    let mut long = Vec::new();
    for file in listed.lines() {
        let path = command::root().join(file);
        // A file that is deleted and not committed is listed still.
        if path.exists() {
            long.extend(too_long(file, &path)?);
        }
    }
    if !long.is_empty() {
        bail!(
            "longer than {MOST_LINES} lines, split them: {}",
            long.join(", ")
        );
    }
    Ok(())
}

fn too_long(file: &str, path: &Path) -> Result<Option<String>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {file}"))?;
    let lines = text.lines().count();
    Ok((lines > MOST_LINES).then(|| format!("{file} ({lines})")))
}
