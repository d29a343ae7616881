//! One writer per file: the lock of the operator, and of each node's agent.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::{Directory, DirectoryError};
use crate::files::{Stamp, io_error};

/// Tries to lock a file that somebody else removes meanwhile.
const ATTEMPTS: usize = 8;

/// Held as long as this value lives; the kernel releases it with the process.
///
/// It is on a file beside the manifests, not among the status files: whoever removes those does not let a second process in.
/// A lock on a file that was removed locks nobody out, so the holder asks [`Lock::verify`] before it writes.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    role: String,
    file: Mutex<File>,
}

impl Directory {
    /// Takes the lock of a role such as `operator`, or of one node's agent.
    pub fn lock(&self, role: &str) -> Result<Lock, DirectoryError> {
        let path = self.root().join(format!(".{role}.lock"));
        Ok(Lock {
            file: Mutex::new(take(&path, role)?),
            path,
            role: role.to_owned(),
        })
    }
}

impl Lock {
    /// Makes sure that the lock is on the file that others would lock, and takes it there if the file was removed or the
    /// directory replaced. After an error the holder must not write.
    pub fn verify(&self) -> Result<(), DirectoryError> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_at(&file, &self.path)? {
            *file = take(&self.path, &self.role)?;
        }
        Ok(())
    }
}

fn take(path: &Path, role: &str) -> Result<File, DirectoryError> {
    for _ in 0..ATTEMPTS {
        let mut options = File::options();
        let options = options.create(true).truncate(false).write(true);
        let file = options
            .open(path)
            .map_err(|source| io_error(path, "open", source))?;
        match file.try_lock() {
            Ok(()) if is_at(&file, path)? => return Ok(file),
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => break,
            Err(fs::TryLockError::Error(source)) => return Err(io_error(path, "lock", source)),
        }
    }
    Err(DirectoryError::Locked {
        path: path.to_owned(),
        role: role.to_owned(),
    })
}

/// Whether a file is the one at this path.
fn is_at(file: &File, path: &Path) -> Result<bool, DirectoryError> {
    let meta = file.metadata();
    let meta = meta.map_err(|source| io_error(path, "look at", source))?;
    let there = Stamp::of(path)?;
    Ok(there.is_some_and(|there| there.place == Stamp::from(&meta).place))
}
