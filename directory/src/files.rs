//! Reading, replacing and removing single files.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::DirectoryError;
use crate::settle::Place;

/// Status lives below a directory of this name.
pub(crate) const STATUS: &str = ".status";
/// Longest file name of Linux' file systems, in bytes.
pub(crate) const MAX_FILE_NAME: usize = 255;

/// Replaces a file as a whole: the content goes to a hidden file beside it, which is then renamed.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<(), DirectoryError> {
    create_parents(path)?;
    let name = path.file_name().unwrap_or_default();
    // As long as its own name is, it would be too long where that is as long as a name may be.
    let temporary = path.with_file_name(format!(".{:016x}.tmp", fnv(name.as_encoded_bytes())));
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        match fs::rename(&temporary, path) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory && is_status(path) => {
                fs::remove_dir_all(path)?;
                fs::rename(&temporary, path)
            }
            result => result,
        }
    };
    write().map_err(|source| {
        // A file that cannot be replaced leaves nothing behind.
        let _ = fs::remove_file(&temporary);
        io_error(path, "write", source)
    })
}

/// Removes a status file, or a directory that is in its place; it may be gone already.
pub(crate) fn remove(path: &Path) -> Result<(), DirectoryError> {
    let removed = match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory && is_status(path) => {
            fs::remove_dir_all(path)
        }
        result => result,
    };
    match removed {
        Err(source) if !is_absent(&source) => Err(io_error(path, "remove", source)),
        _ => Ok(()),
    }
}

/// Whether all that is at this path is Sluice's.
fn is_status(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == STATUS)
}

/// Metadata by which two versions of a file differ, so that neither has to be read.
///
/// Size and time of modification are not enough: tools restore the time, and another content may be as long. The time of
/// the inode's last change cannot be set, and rises with each write, rename and change of attributes. Within the file
/// system's resolution it may stand still: see [`Stamp::TRUSTED_MS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Stamp {
    pub(crate) place: Place,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// A stamp that was seen unchanged for so long tells every later version from this one: file systems' clocks have a
    /// resolution of two seconds or better. Before, only the content tells.
    pub(crate) const TRUSTED_MS: u64 = 3_000;

    /// `None` if there is no such file.
    pub(crate) fn of(path: &Path) -> Result<Option<Self>, DirectoryError> {
        match fs::metadata(path) {
            Ok(meta) => Ok(Some(Self::from(&meta))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(source) => Err(io_error(path, "look at", source)),
        }
    }
}

impl From<&Metadata> for Stamp {
    fn from(meta: &Metadata) -> Self {
        Self {
            place: Place::from(meta),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

impl From<&Metadata> for Place {
    fn from(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
        }
    }
}

/// Names of the entries of a directory that are not hidden, sorted.
pub(crate) fn names(path: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        if !name.as_encoded_bytes().starts_with(b".") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The same of a directory of status files; none if it does not exist. Names that Sluice does not give are left out.
pub(crate) fn entries(path: &Path) -> Result<Vec<String>, DirectoryError> {
    let names = match names(path) {
        Ok(names) => names,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(source) => return Err(io_error(path, "list", source)),
    };
    let names = names.into_iter();
    Ok(names.filter_map(|name| name.into_string().ok()).collect())
}

/// The text of a file; `None` if there is none.
pub(crate) fn read_to_string(path: &Path) -> Result<Option<String>, DirectoryError> {
    match read_text(path, u64::MAX) {
        Ok(text) => Ok(Some(text)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(source) => Err(io_error(path, "read", source)),
    }
}

/// The text of a regular file of at most this size. Anything else may block, or never end.
pub(crate) fn read_text(path: &Path, max_bytes: u64) -> io::Result<String> {
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("is not a file with text"));
    }
    let mut text = String::new();
    file.take(max_bytes).read_to_string(&mut text)?;
    Ok(text)
}

/// Makes the directories of a status file, but never the one that holds the manifests: where that is gone it is not for
/// Sluice to make another.
fn create_parents(path: &Path) -> Result<(), DirectoryError> {
    let parents = path.ancestors().skip(1);
    let missing: Vec<&Path> = parents
        .take_while(|parent| is_status(parent))
        .take_while(|parent| !parent.is_dir())
        .collect();
    for parent in missing.into_iter().rev() {
        match fs::create_dir(parent) {
            Err(source) if !parent.is_dir() => return Err(io_error(parent, "create", source)),
            _ => {}
        }
    }
    Ok(())
}

/// Whether there is no such file, also because what should be its directory is none.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Whether links lead in a circle.
pub(crate) fn is_loop(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ELOOP)
}

pub(crate) fn io_error(path: &Path, action: &'static str, source: io::Error) -> DirectoryError {
    DirectoryError::Io {
        path: path.to_owned(),
        action,
        source,
    }
}

/// FNV-1a: tells one content from another.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
