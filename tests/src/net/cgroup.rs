//! Control groups of a run: those in which nodes keep their containers.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait;

/// How long processes may take to be gone once they are killed.
const LIMIT: Duration = Duration::from_secs(20);

/// The controllers that a node's control groups are to have.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];

/// Makes a group of this name at the top of each hierarchy, unless it is there.
pub(super) fn create(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.join(name);
        for controller in CONTROLLERS {
            // In the second version of control groups children have what their parent gives them. Not every machine has
            // every controller, and the first version has no such file.
            let _ = fs::write(
                hierarchy.join("cgroup.subtree_control"),
                format!("+{controller}"),
            );
        }
        fs::create_dir_all(&group).with_context(|| format!("create {}", group.display()))?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // In the first version a new group has no processor and no memory.
            if let Ok(value) = fs::read(hierarchy.join(file)) {
                fs::write(group.join(file), value)
                    .with_context(|| format!("set {file} in {}", group.display()))?;
            }
        }
    }
    Ok(())
}

/// Names of the groups at the top of all hierarchies.
pub(super) fn names() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for hierarchy in hierarchies()? {
        names.extend(children(&hierarchy).filter_map(|path| {
            let name = path.file_name()?;
            Some(name.to_string_lossy().into_owned())
        }));
    }
    Ok(names)
}

/// Kills what is in the groups of this name and removes them.
pub(super) fn remove(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.join(name);
        let mut last = Ok(());
        wait::until_even_if_interrupted(
            &format!("control group {name} to be empty"),
            LIMIT,
            || {
                last = clear(&group);
                last.is_ok()
            },
        )
        .with_context(|| format!("{last:?}"))?;
    }
    Ok(())
}

fn clear(group: &Path) -> io::Result<()> {
    for child in children(group) {
        clear(&child)?;
    }
    let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for id in processes.lines().filter_map(|line| line.parse().ok()) {
        // It may have ended by itself since.
        let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The groups right below one; none if it is gone.
fn children(group: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(group)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}

/// Where hierarchies of either version are mounted, each once.
fn hierarchies() -> Result<BTreeSet<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the list of mounts")?;
    Ok(mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (path, kind) = (words.next()?, words.next()?);
            matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(path))
        })
        .collect())
}
