//! Standalone mode's directory: manifests that users write, and status files beside them.
//!
//! ```text
//! D/*.yaml, D/*.yml                              manifests; other names and hidden files are not read
//! D/.status/<Kind>/<namespace>/<name>.yaml       status of an object, written by the operator
//! D/.status/LoadBalancerNode/<name>.yaml         status of a node, written by that node's agent
//! D/.status/signals/<node>.json                  what a node saw of pools' servers lately, written by that node's agent
//! D/.status/last-good/<manifest>                 the manifest as it was when it last parsed, written by the operator
//! D/.status/files/<manifest>                     why a manifest does not count as it is, written by the operator
//! D/.status/revision.yaml                        highest revision of decisions that are gone, written by the operator
//! D/.status/inventory.yaml                       which decisions there are, written by the operator
//! D/.<role>.lock                                 locked by the operator, and by each node's agent
//! ```
//!
//! Each file has one writer, and is replaced as a whole by renaming: a reader sees the old or the new one, never parts.
//! A broken manifest is replaced by its last-good copy, for every reader.
//!
//! Whoever loses the directory loses nothing that is served. [`ManifestReader`] takes objects for removed only as its rules
//! say, [`DecisionReader`] takes decisions for withdrawn only where the operator's [`Inventory`] says so, and [`Mirror`] puts
//! status files right that others have changed or removed.
#![forbid(unsafe_code)]

mod decisions;
mod files;
mod lock;
pub mod manifest;
mod manifests;
mod mirror;
mod settle;
mod status;
mod yaml;

use std::io;
use std::path::{Path, PathBuf};

pub use decisions::{DecisionReader, Decisions};
pub use files::write_atomically;
pub use lock::Lock;
pub use manifests::{InForce, ManifestReader, ManifestState, Source};
pub use mirror::Mirror;
pub use settle::{Hold, RESTLESS_MS, SETTLE_MS, STILL_MS, WORD, WRITTEN_MS};
pub use status::{
    FileReport, Inventory, Names, StatusFile, StatusMeta, parse_status, render_status,
};

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
    /// The directory is not there, or another one is in its place.
    #[error("{}: {reason}; what was known before stays in force", path.display())]
    Lost {
        /// The directory.
        path: PathBuf,
        /// Why, and the remedy.
        reason: String,
    },
    /// A failure that is tried again from time to time.
    #[error("{0}")]
    Again(String),
    /// Several things failed.
    #[error("{first} (and {more} more)")]
    Several {
        /// The first failure.
        first: Box<Self>,
        /// How many others there are.
        more: usize,
    },
}

/// Failures of steps of which none holds up the others.
#[derive(Debug, Default)]
pub struct Failures {
    first: Option<DirectoryError>,
    more: usize,
}

impl Failures {
    /// Notes a step's result; the value, if it succeeded.
    pub fn note<T>(&mut self, result: Result<T, DirectoryError>) -> Option<T> {
        match result {
            Ok(value) => return Some(value),
            Err(error) if self.first.is_none() => self.first = Some(error),
            Err(_) => self.more += 1,
        }
        None
    }

    /// Whether no step failed.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// One error for all.
    pub fn result(self) -> Result<(), DirectoryError> {
        match (self.first, self.more) {
            (None, _) => Ok(()),
            (Some(error), 0) => Err(error),
            (Some(first), more) => Err(DirectoryError::Several {
                first: Box::new(first),
                more,
            }),
        }
    }
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

    fn status_root(&self) -> PathBuf {
        self.root.join(files::STATUS)
    }
}

#[cfg(test)]
mod tests;
