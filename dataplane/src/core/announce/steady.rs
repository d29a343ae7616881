//! For how long the paths of uplinks have been whole.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Time without a turn after which the process counts as having been paused: what was before says nothing any more.
const PAUSE: Duration = Duration::from_secs(5);

/// Since when uplinks are whole.
#[derive(Debug)]
pub(super) struct Steady {
    stable_time: Duration,
    since: BTreeMap<String, Instant>,
    last: Option<Instant>,
}

impl Steady {
    pub(super) fn new(stable_time: Duration) -> Self {
        Self {
            stable_time,
            since: BTreeMap::new(),
            last: None,
        }
    }

    /// Takes in which uplinks are whole.
    pub(super) fn look(&mut self, whole: &BTreeSet<String>, now: Instant) {
        let last = self.last.replace(now);
        if last.is_some_and(|last| now.saturating_duration_since(last) > PAUSE) {
            self.since.clear();
        }
        self.since.retain(|name, _| whole.contains(name));
        for name in whole {
            self.since.entry(name.clone()).or_insert(now);
        }
    }

    /// Whether an uplink was whole for the stable time without a pause.
    pub(super) fn is(&self, uplink: &str, now: Instant) -> bool {
        let since = self.since.get(uplink);
        since.is_some_and(|since| now.saturating_duration_since(*since) >= self.stable_time)
    }

    /// When the next uplink has been whole for long enough.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let times = self.since.values().map(|since| *since + self.stable_time);
        times.filter(|time| *time > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    /// Looks every second from one time to another.
    fn look(steady: &mut Steady, start: Instant, seconds: std::ops::Range<u64>, whole: &[&str]) {
        let whole = whole.iter().map(|name| (*name).to_owned()).collect();
        for second in seconds {
            steady.look(&whole, start + Duration::from_secs(second));
        }
    }

    #[test]
    fn an_uplink_is_steady_when_it_was_whole_for_the_stable_time() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut steady = Steady::new(MINUTE);
        look(&mut steady, start, 0..30, &["eth0", "eth1"]);
        look(&mut steady, start, 30..31, &["eth0"]);
        look(&mut steady, start, 31..61, &["eth0", "eth1"]);
        assert!(!steady.is("eth0", at(59)) && steady.is("eth0", at(60)));
        assert!(!steady.is("eth1", at(60)), "it was down in between");
        assert_eq!(steady.deadline(at(60)), Some(at(91)));
        assert!(!steady.is("eth2", at(60)));
    }

    #[test]
    fn a_pause_begins_the_time_anew() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut steady = Steady::new(MINUTE);
        look(&mut steady, start, 0..50, &["eth0"]);
        look(&mut steady, start, 56..62, &["eth0"]);
        assert!(!steady.is("eth0", at(62)));
        assert_eq!(steady.deadline(at(62)), Some(at(116)));
    }
}
