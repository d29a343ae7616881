//! Standalone mode's directory: manifests that users write, and status files beside them.
//!
//! ```text
//! D/*.yaml, D/*.yml                              manifests; other names and hidden files are not read
//! D/.status/<Kind>/<namespace>/<name>.yaml       status of an object, written by the operator
//! D/.status/LoadBalancerNode/<name>.yaml         status of a node, written by that node's agent
//! D/.status/last-good/<manifest>                 the manifest as it was when it last parsed, written by the operator
//! D/.status/files/<manifest>                     why a manifest is broken, written by the operator
//! D/.status/revision.yaml                        highest revision of decisions that are gone, written by the operator
//! ```
//!
//! Each file has one writer, and is replaced as a whole by renaming: a reader sees the old or the new one, never parts.
//! A broken manifest is replaced by its last-good copy, for every reader.
#![forbid(unsafe_code)]

mod decisions;
pub mod manifest;
mod manifests;
mod status;
mod yaml;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub use decisions::{DecisionReader, Decisions};
pub use manifests::{InForce, ManifestReader, ManifestState, Source};
use sluice_api::{Kind, ObjectKey};
pub use status::{FileReport, StatusFile, StatusMeta};

/// A directory in standalone mode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Directory {
    root: PathBuf,
}

/// An error with a file of the directory.
#[derive(thiserror::Error, Debug)]
pub enum DirectoryError {
    /// The system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The action that failed, as a verb.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A status file does not hold what its writer writes.
    #[error("{}: not a status file ({message}): remove it, its writer makes a new one", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The parser's message.
        message: String,
    },
    /// Another process has the lock.
    #[error("{} is held by another process: stop that one first, a directory has one {role}", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Who may hold it.
        role: String,
    },
}

/// Held as long as this value lives; the kernel releases it with the process.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Directory {
    /// The directory need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where the manifests are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The status file of an object.
    pub fn status_path(&self, kind: Kind, key: &ObjectKey) -> PathBuf {
        let mut path = self.kind_path(kind);
        if kind.namespaced() {
            path.push(&key.namespace);
        }
        path.push(format!("{}.yaml", key.name));
        path
    }

    /// The last version of a manifest that parsed.
    pub fn last_good_path(&self, manifest: &str) -> PathBuf {
        self.root.join(".status/last-good").join(manifest)
    }

    /// The report on a broken manifest.
    pub fn report_path(&self, manifest: &str) -> PathBuf {
        self.root.join(".status/files").join(manifest)
    }

    /// Takes the lock of a role such as `operator`, or of one node's agent.
    pub fn lock(&self, role: &str) -> Result<Lock, DirectoryError> {
        let path = self.root.join(format!(".status/{role}.lock"));
        create_parent(&path)?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|source| io_error(&path, "open", source))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(fs::TryLockError::WouldBlock) => Err(DirectoryError::Locked {
                path,
                role: role.to_owned(),
            }),
            Err(fs::TryLockError::Error(source)) => Err(io_error(&path, "lock", source)),
        }
    }

    fn kind_path(&self, kind: Kind) -> PathBuf {
        self.root.join(".status").join(kind.name())
    }
}

/// Replaces a file as a whole: the content goes to a hidden file beside it, which is then renamed.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<(), DirectoryError> {
    create_parent(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.tmp"));
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| io_error(path, "write", source))
}

/// Removes a file; it may be gone already.
pub fn remove(path: &Path) -> Result<(), DirectoryError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(io_error(path, "remove", source))
        }
        _ => Ok(()),
    }
}

/// Metadata by which two versions of a file differ, so that neither has to be read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Stamp {
    inode: u64,
    size: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Stamp {
    fn of(path: &Path) -> Result<Option<Self>, DirectoryError> {
        match fs::metadata(path) {
            Ok(meta) => Ok(Some(Self {
                inode: meta.ino(),
                size: meta.size(),
                seconds: meta.mtime(),
                nanoseconds: meta.mtime_nsec(),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(io_error(path, "look at", source)),
        }
    }
}

/// Names of the entries of a directory that are not hidden, sorted; none if it does not exist.
fn entries(path: &Path) -> Result<Vec<String>, DirectoryError> {
    let listing = match fs::read_dir(path) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(io_error(path, "list", source)),
    };
    let mut names = Vec::new();
    for entry in listing {
        let entry = entry.map_err(|source| io_error(path, "list", source))?;
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn read_to_string(path: &Path) -> Result<Option<String>, DirectoryError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(io_error(path, "read", source)),
    }
}

fn create_parent(path: &Path) -> Result<(), DirectoryError> {
    match path.parent() {
        Some(parent) => {
            fs::create_dir_all(parent).map_err(|source| io_error(parent, "create", source))
        }
        None => Ok(()),
    }
}

fn io_error(path: &Path, action: &'static str, source: io::Error) -> DirectoryError {
    DirectoryError::Io {
        path: path.to_owned(),
        action,
        source,
    }
}

#[cfg(test)]
mod tests;
