//! Telling others of this node: its status, written at most once a second and never by the core itself.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use sluice_api::LoadBalancerNodeStatus;
use tracing::warn;

/// Time between two writes.
const PAUSE: Duration = Duration::from_secs(1);
/// Time between two complaints while writing fails.
const COMPLAINT: Duration = Duration::from_mins(1);

/// Where the core puts its latest status; one that was not written yet is replaced.
#[derive(Clone, Debug, Default)]
pub struct Mailbox {
    shared: Arc<(Mutex<Option<LoadBalancerNodeStatus>>, Condvar)>,
}

impl Mailbox {
    /// Leaves a status to be written.
    pub fn put(&self, status: LoadBalancerNodeStatus) {
        let (slot, changed) = &*self.shared;
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
        changed.notify_one();
    }

    fn take(&self) -> LoadBalancerNodeStatus {
        let (slot, changed) = &*self.shared;
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(status) = slot.take() {
                return status;
            }
            slot = changed.wait(slot).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes what is put into the mailbox for as long as the process lives, in a thread of its own. What cannot be written
    /// is followed by the next heartbeat.
    pub fn run<E: std::fmt::Display>(
        self,
        write: impl Fn(LoadBalancerNodeStatus) -> Result<(), E> + Send + 'static,
    ) {
        thread::spawn(move || {
            let mut complained: Option<Instant> = None;
            loop {
                let written = write(self.take());
                let now = Instant::now();
                match written {
                    Err(error) if complained.is_none_or(|at| now > at + COMPLAINT) => {
                        warn!("cannot write this node's status: {error}");
                        complained = Some(now);
                    }
                    Err(_) => {}
                    Ok(()) => complained = None,
                }
                thread::sleep(PAUSE);
            }
        });
    }
}
