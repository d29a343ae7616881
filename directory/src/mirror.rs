//! Status files of one writer, as they are to stand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{DirectoryError, Failures};
use crate::files::{Stamp, entries, read_to_string, remove, write_atomically};

/// Remembers the files that a process has written, so that it can put right what others change or remove.
#[derive(Debug, Default)]
pub struct Mirror {
    files: BTreeMap<PathBuf, Kept>,
}

#[derive(Debug)]
struct Kept {
    text: String,
    /// As it was written, or last found to be right; `None`: to be compared.
    stamp: Option<Stamp>,
}

impl Mirror {
    /// Takes over a file that an earlier process wrote; `None` if there is none.
    pub fn adopt(&mut self, path: &Path) -> Result<Option<&str>, DirectoryError> {
        let Some(text) = read_to_string(path)? else {
            return Ok(None);
        };
        let kept = Kept { text, stamp: None };
        self.files.insert(path.to_owned(), kept);
        Ok(self.files.get(path).map(|kept| kept.text.as_str()))
    }

    /// Replaces a file, unless it holds this text already.
    pub fn write(&mut self, path: &Path, text: &str) -> Result<(), DirectoryError> {
        if self.files.get(path).is_some_and(|kept| kept.text == text) {
            return Ok(());
        }
        write_atomically(path, text.as_bytes())?;
        let kept = Kept {
            text: text.to_owned(),
            stamp: Stamp::of(path).ok().flatten(),
        };
        self.files.insert(path.to_owned(), kept);
        Ok(())
    }

    /// Removes a file; it may be gone already.
    pub fn remove(&mut self, path: &Path) -> Result<(), DirectoryError> {
        remove(path)?;
        self.files.remove(path);
        Ok(())
    }

    /// Removes the files of a directory for whose names `keep` is false.
    pub fn keep_only(
        &mut self,
        directory: &Path,
        keep: impl Fn(&str) -> bool,
    ) -> Result<(), DirectoryError> {
        let mut failures = Failures::default();
        for name in entries(directory)? {
            if !keep(&name) {
                failures.note(self.remove(&directory.join(&name)));
            }
        }
        self.files.retain(|path, _| {
            let name = path.file_name().and_then(|name| name.to_str());
            path.parent() != Some(directory) || name.is_some_and(&keep)
        });
        failures.result()
    }

    /// Forgets all files: they are to be written anew.
    pub fn forget(&mut self) {
        self.files.clear();
    }

    /// Writes the files that others have changed or removed once more. Returns their paths. A file that cannot be written
    /// holds up no other.
    pub fn heal(&mut self) -> (Vec<&Path>, Result<(), DirectoryError>) {
        let mut failures = Failures::default();
        let mut healed = Vec::new();
        for (path, kept) in &mut self.files {
            match kept.heal(path) {
                Ok(true) => healed.push(path.as_path()),
                Ok(false) => {}
                Err(error) => {
                    failures.note::<()>(Err(error));
                }
            }
        }
        (healed, failures.result())
    }
}

impl Kept {
    /// Returns whether the file had to be written.
    fn heal(&mut self, path: &Path) -> Result<bool, DirectoryError> {
        // Whatever cannot be looked at or read is replaced.
        let there = Stamp::of(path).ok().flatten();
        if there.is_some() && there == self.stamp {
            return Ok(false);
        }
        let is_right =
            there.is_some() && matches!(read_to_string(path), Ok(Some(text)) if text == self.text);
        if !is_right {
            write_atomically(path, self.text.as_bytes())?;
        }
        self.stamp = if is_right {
            there
        } else {
            Stamp::of(path).ok().flatten()
        };
        Ok(!is_right)
    }
}
