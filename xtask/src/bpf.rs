//! Building the BPF programs.
//!
//! The crate `ebpf/programs` needs a compiler with a core library for the BPF target and unstable features, which the
//! stable toolchain of rustup has not: Debian's packages have it, and so has rustup's nightly with the source of core.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::command;

const TARGET: &str = "bpfel-unknown-none";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CLIPPY: &str = "/usr/bin/cargo-clippy";

/// Optimisation is not a choice: without it LLVM leaves code that the verifier or the linker refuses.
const PROFILE: &str = "--release";

/// Flags for rustc beside the linker. v3 has 32-bit operations and is what kernel 6.1 accepts; misaligned access
/// turns comparisons of addresses from byte loads into word loads, which every 64-bit machine that Linux runs BPF on allows.
const RUST_FLAGS: &[&str] = &[
    "-C",
    "link-arg=--btf",
    "-C",
    "target-cpu=v3",
    "-C",
    "link-arg=--cpu-features=+allows-misaligned-mem-access,+alu32",
];

enum Toolchain {
    Debian,
    Nightly,
}

impl Toolchain {
    /// The first that can build for the BPF target.
    fn find() -> Result<Self> {
        if has_bpf_core(DEBIAN_RUSTC) && Path::new(DEBIAN_CARGO).exists() {
            return Ok(Self::Debian);
        }
        let nightly = command::output(
            Command::new("rustc")
                .args(["--print", "sysroot"])
                .env("RUSTUP_TOOLCHAIN", "nightly"),
        );
        if nightly.is_some_and(|sysroot| {
            Path::new(&sysroot)
                .join("lib/rustlib/src/rust/library/core")
                .exists()
        }) {
            return Ok(Self::Nightly);
        }
        bail!(
            "no compiler for the BPF programs: `make setup` installs Debian's (rustc-web, cargo-web, \
             libstd-rust-web-dev-bpf); elsewhere `rustup toolchain install nightly --component rust-src`"
        )
    }

    /// The cargo of this toolchain, with the environment in which it compiles the tree at `root` for the BPF target.
    fn cargo(&self, program: &str, root: &Path) -> Result<Command> {
        let linker = command::find_program("bpf-linker")
            .context("bpf-linker is missing: `make setup` installs it")?;
        let linker = format!("linker={}", linker.display());
        let mut command = match self {
            Self::Debian => {
                let mut command = Command::new(program);
                command
                    .env("CARGO", DEBIAN_CARGO)
                    .env("RUSTC", DEBIAN_RUSTC)
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env_remove("RUSTUP_TOOLCHAIN");
                command
            }
            Self::Nightly => {
                let mut command = Command::new("cargo");
                command
                    .env_remove("CARGO")
                    .env_remove("RUSTC")
                    .env("RUSTUP_TOOLCHAIN", "nightly")
                    .env("CARGO_UNSTABLE_BUILD_STD", "core");
                command
            }
        };
        let flags: Vec<_> = ["-C", &linker].iter().chain(RUST_FLAGS).copied().collect();
        command
            .current_dir(crate_directory(root))
            .env("CARGO_TARGET_DIR", root.join("target/bpf-build"))
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
            .env_remove("RUSTFLAGS")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER");
        Ok(command)
    }
}

fn crate_directory(root: &Path) -> PathBuf {
    root.join("ebpf/programs")
}

fn has_bpf_core(rustc: &str) -> bool {
    command::output(Command::new(rustc).args(["--print", "sysroot"])).is_some_and(|sysroot| {
        Path::new(&sysroot)
            .join("lib/rustlib")
            .join(TARGET)
            .exists()
    })
}

/// Builds every binary of the BPF crate of the source tree at `root` into its `target/bpf/<binary>.o`.
pub(crate) fn build(root: &Path) -> Result<()> {
    let mut cargo = Toolchain::find()?.cargo(DEBIAN_CARGO, root)?;
    cargo
        .args(["build", PROFILE, "--bins", "--target", TARGET])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit());
    let output = cargo
        .output()
        .with_context(|| format!("cannot run {}", command::show(&cargo)))?;
    if !output.status.success() {
        bail!("the BPF programs do not build ({})", output.status);
    }
    let destination = root.join("target/bpf");
    fs::create_dir_all(&destination)
        .with_context(|| format!("cannot create {}", destination.display()))?;
    for executable in command::executables(&output.stdout)? {
        let name = executable.file_stem().unwrap_or(OsStr::new("unnamed"));
        let program = fs::read(&executable)
            .with_context(|| format!("cannot read {}", executable.display()))?;
        command::write_if_changed(&destination.join(name).with_extension("o"), &program)?;
    }
    Ok(())
}

/// Checks format and lints of the BPF crate, which is no member of the workspace.
pub(crate) fn lint() -> Result<()> {
    command::run(&mut format_command(true))?;
    let toolchain = Toolchain::find()?;
    if matches!(toolchain, Toolchain::Debian) && !Path::new(DEBIAN_CLIPPY).exists() {
        bail!("clippy for the BPF programs is missing: `xtask/setup.sh --lint` installs it");
    }
    let mut clippy = toolchain.cargo(DEBIAN_CLIPPY, command::root())?;
    clippy
        .args(["clippy", PROFILE, "--bins", "--locked", "--target", TARGET])
        .args(["--", "-D", "warnings"]);
    command::run(&mut clippy)
}

/// The command that formats the BPF crate, or only checks its format.
pub(crate) fn format_command(check: bool) -> Command {
    let mut command = command::cargo(["fmt"]);
    command.current_dir(crate_directory(command::root()));
    if check {
        command.arg("--check");
    }
    command
}
