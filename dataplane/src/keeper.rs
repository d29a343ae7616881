//! Writes down what a restarted agent needs, so that nobody waits for a disk.

use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::{io, thread};

use serde::Serialize;
use tracing::warn;

/// The way to a thread that writes a file.
#[derive(Debug)]
pub(crate) struct Keeper<T>(SyncSender<T>);

impl<T: Serialize + PartialEq + Send + 'static> Keeper<T> {
    /// Starts the thread. `consequence` is logged when the file cannot be written.
    pub(crate) fn start(path: PathBuf, consequence: &'static str) -> io::Result<Self> {
        let (sender, inbox) = sync_channel::<T>(1);
        thread::Builder::new()
            .name("memory".to_owned())
            .spawn(move || {
                let mut last = None;
                for memory in inbox {
                    if last.as_ref() == Some(&memory) {
                        continue;
                    }
                    let text = serde_json::to_vec(&memory).map_err(anyhow::Error::from);
                    let written =
                        text.and_then(|text| Ok(sluice_directory::write_atomically(&path, &text)?));
                    match written {
                        Ok(()) => last = Some(memory),
                        Err(error) => warn!(path = %path.display(), %error, "{consequence}"),
                    }
                }
            })?;
        Ok(Self(sender))
    }

    /// Has something written. While something else is being written it says `false`: it is to be tried later.
    pub(crate) fn write(&self, memory: T) -> bool {
        self.0.try_send(memory).is_ok()
    }
}
