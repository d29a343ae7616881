//! One run of a test binary or of the demo, and what it leaves behind when it is killed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::Pid;

use super::cgroup;
use super::command::command;
use super::namespace::Namespace;
use super::wait;

const PREFIX: &str = "sluice-run";
const LOCK: &str = "/run/sluice-tests.lock";
const NAMESPACES: &str = "/run/netns";
const BPF_FS: &str = "/sys/fs/bpf";

/// How long killed processes may take to be gone.
const END_LIMIT: Duration = Duration::from_secs(20);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Owner of namespaces, control groups, pin directories and a directory for logs and state; dropping it removes them all.
#[derive(Debug)]
pub struct Run {
    name: String,
    directory: PathBuf,
}

impl Run {
    /// Removes what killed runs left, and makes an empty directory for this one.
    pub fn start() -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("network namespaces and BPF need root: run this as root");
        }
        mount_bpf_fs()?;
        sweep()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}-{}-{number}", process::id());
        let directory = std::env::temp_dir().join(&name);
        fs::create_dir(&directory).with_context(|| format!("create {}", directory.display()))?;
        Ok(Self { name, directory })
    }

    /// The name that everything of this run begins with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A directory for state and logs that is removed with the run.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes a namespace called `label` within this run, with its loopback up.
    pub fn namespace(&self, label: &str) -> Result<Namespace> {
        Namespace::create(&self.name, label, &self.directory)
    }

    /// A directory in the BPF file system for one node's pins. The node creates it.
    pub fn pin_directory(&self, label: &str) -> PathBuf {
        Path::new(BPF_FS).join(format!("{}-{label}", self.name))
    }

    /// Makes a control group for one node's containers, in all hierarchies of the machine, and returns its name.
    pub fn control_group(&self, label: &str) -> Result<String> {
        let name = format!("{}-{label}", self.name);
        cgroup::create(&name)?;
        Ok(name)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            eprintln!("clean-up of {}: {error:#}", self.name);
        }
    }
}

/// Removes what runs of dead processes left: processes in their namespaces, the namespaces, control groups, pins and
/// directories.
pub fn sweep() -> Result<()> {
    // Two that start at once would remove the same things under each other's hands.
    let file = File::create(LOCK).with_context(|| format!("create {LOCK}"))?;
    let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error);
    let _lock = lock.with_context(|| format!("lock {LOCK}"))?;
    for name in remains()? {
        let alive = owner(&name).is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists());
        if !alive {
            remove(&name)?;
        }
    }
    Ok(())
}

/// Names of the runs that have a namespace, control group, pin directory or directory now, each once.
pub fn remains() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for directory in [
        Path::new(NAMESPACES),
        Path::new(BPF_FS),
        &std::env::temp_dir(),
    ] {
        for entry in entries(directory)? {
            if let Some(name) = run_name(&entry) {
                names.push(name);
            }
        }
    }
    names.extend(cgroup::names()?.iter().filter_map(|name| run_name(name)));
    names.sort();
    names.dedup();
    Ok(names)
}

/// Fails if a namespace, control group, directory, pin or process of this run is there.
pub fn expect_no_remains(run: &str) -> Result<()> {
    if remains()?.iter().any(|name| name == run) {
        bail!("namespaces, control groups, pins or directories of {run} are left");
    }
    for pid in entries(Path::new("/proc"))? {
        // Other entries, and processes that have ended since, have no command line.
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if pid != "self" && String::from_utf8_lossy(&line).contains(run) {
            bail!(
                "process {pid} of {run} is left: {}",
                String::from_utf8_lossy(&line)
            );
        }
    }
    Ok(())
}

fn remove(run: &str) -> Result<()> {
    let mine = |entry: &String| run_name(entry).as_deref() == Some(run);
    for namespace in entries(Path::new(NAMESPACES))?.into_iter().filter(mine) {
        wait::until_even_if_interrupted(
            &format!("processes in {namespace} to end"),
            END_LIMIT,
            || kill_processes(&namespace).unwrap_or(false),
        )?;
        command(&format!("ip netns delete {namespace}"))?;
    }
    for group in cgroup::names()?.into_iter().filter(mine) {
        cgroup::remove(&group)?;
    }
    for directory in [Path::new(BPF_FS), &std::env::temp_dir()] {
        for entry in entries(directory)?.into_iter().filter(mine) {
            let path = directory.join(entry);
            fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Kills all processes in a namespace but this one, and returns whether there was none.
fn kill_processes(namespace: &str) -> Result<bool> {
    let mut none = true;
    for pid in command(&format!("ip netns pids {namespace}"))?.lines() {
        let pid = pid.trim().parse()?;
        if pid != i32::try_from(process::id())? {
            // It may have ended by itself since.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            none = false;
        }
    }
    Ok(none)
}

/// The names in a directory; none if there is no such directory.
fn entries(directory: &Path) -> Result<Vec<String>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let list = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    Ok(list
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect())
}

/// `sluice-run-PID-NUMBER` of `sluice-run-PID-NUMBER-label`.
fn run_name(entry: &str) -> Option<String> {
    let mut parts = entry.strip_prefix(PREFIX)?.strip_prefix('-')?.split('-');
    let (pid, number) = (parts.next()?, parts.next()?);
    Some(format!("{PREFIX}-{pid}-{number}"))
}

fn owner(run: &str) -> Option<u32> {
    run.strip_prefix(PREFIX)?.split('-').nth(1)?.parse().ok()
}

fn mount_bpf_fs() -> Result<()> {
    let type_now = statfs(BPF_FS).with_context(|| format!("look at {BPF_FS}"))?;
    if type_now.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    mount(
        Some("bpf"),
        BPF_FS,
        Some("bpf"),
        MsFlags::empty(),
        None::<&str>,
    )
    .with_context(|| format!("mount the BPF file system at {BPF_FS}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_run() {
        let run = run_name("sluice-run-12-3-client").unwrap();
        assert_eq!(run, "sluice-run-12-3");
        assert_eq!(owner(&run), Some(12));
        assert_eq!(run_name("sluice"), None);
    }
}
