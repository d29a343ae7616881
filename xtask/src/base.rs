//! Building another commit, to be measured beside this tree.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{bpf, command};

/// The benchmark's side of the comparison. Commits that have none get this tree's.
const WORKER: &str = "tests/src/bin/bench_worker.rs";

/// Builds `commit` into `target/base/`: `bpf/*.o` and `bench_worker`. Its sources go to a directory of its own there, so
/// that the next comparison with it builds nothing.
pub(crate) fn build(commit: &str) -> Result<()> {
    let root = command::root();
    let name = format!("{commit}^{{commit}}");
    let mut git = Command::new("git");
    git.args(["rev-parse", "--verify", "--quiet", &name])
        .current_dir(root);
    let Some(hash) = command::output(&mut git) else {
        bail!("there is no commit {commit}");
    };
    let base = root.join("target/base");
    let tree = base.join(&hash);
    if !tree.exists() {
        extract(&hash, &tree)?;
    }
    let worker = tree.join(WORKER);
    if !worker.exists() {
        fs::copy(root.join(WORKER), &worker)
            .with_context(|| format!("cannot write {}", worker.display()))?;
    }
    bpf::build(&tree)?;
    let objects = base.join("bpf");
    fs::create_dir_all(&objects)?;
    for object in ["sluice.o", "bench.o"] {
        fs::copy(tree.join("target/bpf").join(object), objects.join(object))
            .with_context(|| format!("{commit} has no {object}"))?;
    }
    fs::copy(build_worker(&tree)?, base.join("bench_worker"))?;
    println!("built {hash} into {}", base.display());
    Ok(())
}

/// Writes the commit's files to `tree`, all of them or none.
fn extract(hash: &str, tree: &Path) -> Result<()> {
    let partial = tree.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(&partial)?;
    let mut git = Command::new("git")
        .args(["archive", hash])
        .current_dir(command::root())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run git archive")?;
    let archive = git.stdout.take().context("git archive has no output")?;
    let mut tar = Command::new("tar");
    tar.arg("-x").current_dir(&partial).stdin(archive);
    command::run(&mut tar)?;
    if !git.wait()?.success() {
        bail!("git archive {hash} failed");
    }
    fs::rename(&partial, tree).with_context(|| format!("cannot write {}", tree.display()))
}

/// The release build of the worker, in a target directory of its own: cargo tells the crates of two trees apart neither by
/// the trees' paths nor by their contents, so in a common one it would take this tree's crates for the commit's.
fn build_worker(tree: &Path) -> Result<std::path::PathBuf> {
    let mut cargo = command::cargo(["build", "--release", "--package", "sluice-tests"]);
    cargo
        .args(["--bin", "bench_worker"])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(tree)
        .env("CARGO_TARGET_DIR", tree.join("target"))
        .stderr(Stdio::inherit());
    let output = cargo
        .output()
        .with_context(|| format!("cannot run {}", command::show(&cargo)))?;
    if !output.status.success() {
        bail!("the benchmark does not build ({})", output.status);
    }
    let mut executables = command::executables(&output.stdout)?;
    executables.pop().context("cargo named no executable")
}
