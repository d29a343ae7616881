//! Trouble that lasts is named in the log, now and then.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

/// Trouble that is over by then is not worth a warning: an API server that is restarted is away for that long.
const WARN_AFTER: Duration = Duration::from_secs(10);
/// Time between two complaints of one kind while they last.
const COMPLAINT: Duration = Duration::from_mins(1);

#[derive(Debug)]
struct Trouble {
    since: Instant,
    complained: Option<Instant>,
}

/// Present troubles, by the name of what fails.
#[derive(Clone, Debug, Default)]
pub(super) struct Complaints(Arc<Mutex<BTreeMap<&'static str, Trouble>>>);

impl Complaints {
    /// Something failed.
    pub(super) fn fail(&self, what: &'static str, failed: &str, error: &dyn Display) {
        let now = Instant::now();
        if self.is_due(what, now) {
            warn!("{failed}, going on with what is known: {error}");
        } else {
            debug!("{failed}: {error}");
        }
    }

    /// Something works.
    pub(super) fn succeed(&self, what: &'static str) {
        let mut troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(trouble) = troubles.remove(what)
            && trouble.complained.is_some()
        {
            let seconds = trouble.since.elapsed().as_secs();
            info!("{what}: works again after {seconds} s");
        }
    }

    fn is_due(&self, what: &'static str, now: Instant) -> bool {
        let mut troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let trouble = troubles.entry(what).or_insert(Trouble {
            since: now,
            complained: None,
        });
        let due = now >= trouble.since + WARN_AFTER
            && trouble.complained.is_none_or(|at| now >= at + COMPLAINT);
        if due {
            trouble.complained = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_that_lasts_is_named_once_a_minute() {
        let complaints = Complaints::default();
        let start = Instant::now();
        let due_at: Vec<u64> = (0..140)
            .filter(|second| complaints.is_due("a", start + Duration::from_secs(*second)))
            .collect();
        assert_eq!(due_at, [10, 70, 130]);
        complaints.succeed("a");
        assert!(!complaints.is_due("a", start + Duration::from_secs(141)));
    }
}
