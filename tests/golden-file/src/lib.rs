//! Golden files: text that a test expects, kept beside the test and reviewed like code.
//!
//! With `UPDATE_GOLDEN=1` in the environment a test writes its text instead of comparing it.
#![forbid(unsafe_code)]

mod difference;

use std::io;
use std::path::{Path, PathBuf};

use difference::difference;

/// The environment variable that makes [`check`] write.
pub const UPDATE: &str = "UPDATE_GOLDEN";

/// Why a text is not the expected one.
#[derive(thiserror::Error, Debug)]
pub enum GoldenError {
    /// The file says something else.
    #[error("{} differs; UPDATE_GOLDEN=1 takes the new text over:\n{difference}", .path.display())]
    Differs {
        /// The golden file.
        path: PathBuf,
        /// Lines that are missing (`-`) and new (`+`), with some around them.
        difference: String,
    },
    /// The file cannot be read or written.
    #[error("{}: {error}; UPDATE_GOLDEN=1 makes a missing file", .path.display())]
    File {
        /// The golden file.
        path: PathBuf,
        /// The error of the read or write.
        error: io::Error,
    },
}

/// Fails the test that calls it with what [`check`] says.
#[track_caller]
#[expect(clippy::panic, reason = "it is an assertion")]
pub fn assert_golden(path: &Path, text: &str) {
    if let Err(error) = check(path, text) {
        panic!("{error}");
    }
}

/// Compares `text` with the file at `path`, or writes the file if [`UPDATE`] is set.
pub fn check(path: &Path, text: &str) -> Result<(), GoldenError> {
    let file_error = |error| GoldenError::File {
        path: path.to_owned(),
        error,
    };
    if std::env::var_os(UPDATE).is_some() {
        return std::fs::write(path, text).map_err(file_error);
    }
    let expected = std::fs::read_to_string(path).map_err(file_error)?;
    if text == expected {
        return Ok(());
    }
    Err(GoldenError::Differs {
        path: path.to_owned(),
        difference: difference(&expected, text),
    })
}
