//! The checks of `make lint`.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{bpf, command, generate, length};

type Check = fn() -> Result<()>;

/// Runs every check, also after one has failed, so that one run tells all.
pub(crate) fn run() -> Result<()> {
    let checks: [(&str, Check); 6] = [
        ("format", || {
            command::run(&mut command::cargo(["fmt", "--all", "--check"]))
        }),
        ("clippy", || command::run(&mut clippy())),
        ("BPF programs", bpf::lint),
        ("length of files", length::check),
        ("dependencies", dependencies),
        ("generated files", || generate::run(true)),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        eprintln!("lint: {name}");
        if let Err(error) = check() {
            eprintln!("lint: {name}: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Formats all crates.
pub(crate) fn format() -> Result<()> {
    command::run(&mut command::cargo(["fmt", "--all"]))?;
    command::run(&mut bpf::format_command(false))
}

fn clippy() -> Command {
    command::cargo(
        [
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--quiet",
            "--keep-going",
        ]
        .iter()
        .chain(&["--", "-D", "warnings"]),
    )
}

/// Licences, banned crates and sources of both lock files. Advisories are left out: they need a database from the
/// network, and a new one would fail a build that changed nothing.
fn dependencies() -> Result<()> {
    for manifest in ["Cargo.toml", "ebpf/programs/Cargo.toml"] {
        command::run(&mut command::cargo([
            "deny",
            "--manifest-path",
            manifest,
            "--log-level",
            "error",
            "--config",
            "deny.toml",
            "check",
            "bans",
            "licenses",
            "sources",
        ]))?;
    }
    Ok(())
}
