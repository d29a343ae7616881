//! The pin directory: who may use it, what is in it, and taking all of it away.
//!
//! ```text
//! <pin dir>/<MAP>                          the maps
//! <pin dir>/links/<hook>-<interface>       links of XDP and tcx
//! <pin dir>/links/filter-<hook>-<interface>/   marks a clsact filter, which cannot be pinned
//! <pin dir>/links/qdisc-<interface>/           marks a clsact qdisc that an agent made
//! ```

use std::fmt::Write;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use sluice_abi::MapName;

use super::hook::{Hook, remove_filter};
use super::sys::{detach_link, open_pin};
use super::{Error, system_error};

/// How long an agent waits for the one before it to end.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

const FILTER: &str = "filter-";
const QDISC: &str = "qdisc-";

/// The pin directory, held by this process.
#[derive(Debug)]
pub struct PinLock {
    directory: PathBuf,
    _lock: File,
}

impl PinLock {
    /// Makes the directory if it is not there, and takes it for this process. Waits a little for another one to end.
    pub fn acquire(directory: &Path) -> Result<Self, Error> {
        let existing = directory.ancestors().find(|path| path.exists());
        let on_bpffs = existing
            .and_then(|path| statfs(path).ok())
            .is_some_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
        if !on_bpffs {
            return Err(Error::NoBpfFs {
                path: directory.to_owned(),
            });
        }
        let links = directory.join("links");
        fs::create_dir_all(&links).map_err(system_error(format!("create {}", links.display())))?;
        let lock =
            File::open(directory).map_err(system_error(format!("open {}", directory.display())))?;
        let start = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_TIMEOUT => {
                    thread::sleep(Duration::from_millis(50));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::PinsInUse {
                        path: directory.to_owned(),
                    });
                }
                Err(TryLockError::Error(source)) => {
                    return Err(system_error(format!("lock {}", directory.display()))(
                        source,
                    ));
                }
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn map(&self, map: MapName) -> PathBuf {
        self.directory.join(map.as_str())
    }

    pub(super) fn link(&self, hook: Hook, interface: &str) -> PathBuf {
        self.links_directory()
            .join(format!("{}-{}", hook.name(), escape(interface)))
    }

    /// The mark of a clsact filter.
    pub(super) fn filter(&self, hook: Hook, interface: &str) -> PathBuf {
        self.links_directory()
            .join(format!("{FILTER}{}-{}", hook.name(), escape(interface)))
    }

    /// The mark of a clsact qdisc of ours.
    pub(super) fn qdisc(&self, interface: &str) -> PathBuf {
        self.links_directory()
            .join(format!("{QDISC}{}", escape(interface)))
    }

    fn links_directory(&self) -> PathBuf {
        self.directory.join("links")
    }

    /// Hooks and interfaces that have a link or filter.
    pub(super) fn attached(&self) -> Result<Vec<(Hook, String)>, Error> {
        let mut found = Vec::new();
        for name in names(&self.links_directory())? {
            let rest = name.strip_prefix(FILTER).unwrap_or(&name);
            if let Some((hook, interface)) = rest.split_once('-')
                && let Some(hook) = Hook::from_name(hook)
            {
                found.push((hook, unescape(interface)));
            }
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Ends forwarding on this node: removes links, filters, qdiscs that agents made, and maps. Returns what it removed, in
    /// words. What is gone already is no error, so it may be repeated. `remove_idle_qdisc` says whether the clsact qdisc of an interface has no filter left, and then removes it.
    pub fn remove_all(
        &self,
        mut remove_idle_qdisc: impl FnMut(&str) -> io::Result<bool>,
    ) -> Result<Vec<String>, Error> {
        let mut removed = Vec::new();
        for (hook, interface) in self.attached()? {
            let mark = self.filter(hook, &interface);
            if mark.exists() {
                remove_filter(hook, &interface);
                remove_directory(&mark)?;
            }
            remove_link(&self.link(hook, &interface))?;
            removed.push(format!("{} of {interface}", hook.name()));
        }
        for name in names(&self.links_directory())? {
            if let Some(interface) = name.strip_prefix(QDISC) {
                let interface = unescape(interface);
                let gone = remove_idle_qdisc(&interface).map_err(system_error(format!(
                    "remove the clsact qdisc of {interface}"
                )))?;
                if gone {
                    removed.push(format!("qdisc of {interface}"));
                }
                remove_directory(&self.qdisc(&interface))?;
            }
        }
        for map in MapName::ALL {
            if self.map(map).exists() {
                remove_file(&self.map(map))?;
                removed.push(format!("map {}", map.as_str()));
            }
        }
        remove_directory(&self.links_directory())?;
        remove_directory(&self.directory)?;
        Ok(removed)
    }

    /// Removes the pins of maps: the state of a start that did not come to its end.
    pub(super) fn remove_maps(&self) -> Result<(), Error> {
        for map in MapName::ALL {
            remove_file(&self.map(map))?;
        }
        Ok(())
    }
}

/// Ends forwarding on this node, as [`PinLock::remove_all`] does, where no agent runs.
pub fn detach(
    directory: &Path,
    remove_idle_qdisc: impl FnMut(&str) -> io::Result<bool>,
) -> Result<Vec<String>, Error> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    PinLock::acquire(directory)?.remove_all(remove_idle_qdisc)
}

/// Detaches what a pinned link attaches, and unpins it. Unpinning alone would do, but only some time later, and until then
/// the interface takes no XDP program in another mode.
pub(super) fn remove_link(path: &Path) -> Result<(), Error> {
    let failed = || system_error(format!("detach {}", path.display()));
    if let Some(link) = open_pin(path).map_err(failed())? {
        detach_link(link.as_fd()).map_err(failed())?;
    }
    remove_file(path)
}

pub(super) fn remove_file(path: &Path) -> Result<(), Error> {
    gone(fs::remove_file(path), path)
}

pub(super) fn remove_directory(path: &Path) -> Result<(), Error> {
    gone(fs::remove_dir(path), path)
}

fn gone(result: io::Result<()>, path: &Path) -> Result<(), Error> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(system_error(format!("remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

/// Makes a mark: bpffs has no plain files, but directories.
pub(super) fn mark(path: &Path) -> Result<(), Error> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(system_error(format!("create {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

fn names(directory: &Path) -> Result<Vec<String>, Error> {
    let failed = |error| system_error(format!("list {}", directory.display()))(error);
    let mut names = Vec::new();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
        other => other.map_err(failed)?,
    };
    for entry in entries {
        let entry =
            entry.map_err(|error| system_error(format!("list {}", directory.display()))(error))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// bpffs allows no dots in names.
fn escape(interface: &str) -> String {
    let mut escaped = String::new();
    for c in interface.chars() {
        match c {
            '.' | '%' => {
                // Writing to a string cannot fail.
                let _ = write!(escaped, "%{:02x}", u32::from(c));
            }
            _ => escaped.push(c),
        }
    }
    escaped
}

fn unescape(name: &str) -> String {
    name.replace("%2e", ".").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_survive_escaping() {
        for name in ["eth0", "eth0.100", "a%b", "x.%2e", "bond-0"] {
            let escaped = escape(name);
            assert!(!escaped.contains('.'), "{escaped}");
            assert_eq!(unescape(&escaped), name);
        }
    }
}
