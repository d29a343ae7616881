//! Objects that are left alone for a while after a write was not taken.

use std::collections::BTreeMap;

/// The first wait; it doubles with each failure.
const FIRST_MS: u64 = 500;
const LONGEST_MS: u64 = 60_000;
/// Longest wait while the API server takes no writes: it may take them soon.
const LONGEST_UNAVAILABLE_MS: u64 = 4_000;
/// Longest wait for an object at which the API server fails: each attempt may take it long.
const LONGEST_FAILED_MS: u64 = 10_000;
/// A changed object is tried again after this time at the earliest.
const CHANGED_MS: u64 = 1_000;

/// Why a write was not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// The object has changed, which news will tell.
    Stale,
    /// The object is gone.
    Gone,
    /// It is not wanted, and the same write will not be wanted again.
    Refused(String),
    /// The write failed at this object.
    Failed(String),
    /// Nothing is taken now.
    Unavailable(String),
}

impl Failure {
    /// Whether the same write may be taken soon, though nothing changed here.
    const fn may_pass(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Unavailable(_))
    }

    const fn longest_ms(&self) -> u64 {
        match self {
            Self::Unavailable(_) => LONGEST_UNAVAILABLE_MS,
            Self::Failed(_) => LONGEST_FAILED_MS,
            Self::Stale | Self::Gone | Self::Refused(_) => LONGEST_MS,
        }
    }
}

#[derive(Clone, Debug)]
struct Wait {
    since_ms: u64,
    delay_ms: u64,
    version: u64,
    failure: Failure,
}

impl Wait {
    fn due_ms(&self, version: u64) -> u64 {
        let changed = version != self.version;
        let delay = match (changed, &self.failure) {
            (true, Failure::Stale) => 0,
            (true, _) => self.delay_ms.min(CHANGED_MS),
            (false, _) => self.delay_ms,
        };
        self.since_ms + delay
    }
}

/// Waits by object.
#[derive(Clone, Debug)]
pub(crate) struct Waits<K>(BTreeMap<K, Wait>);

impl<K> Default for Waits<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Waits<K> {
    /// From when a write may be tried. `version` is that of the object as it is known now.
    pub(crate) fn due_ms(&self, key: &K, version: u64) -> u64 {
        self.0.get(key).map_or(0, |wait| wait.due_ms(version))
    }

    /// Notes a failure. Returns whether it is another one than the last.
    pub(crate) fn failed(&mut self, key: &K, version: u64, failure: &Failure, now_ms: u64) -> bool {
        let last = self.0.get(key);
        let news = last.is_none_or(|last| last.failure != *failure);
        let delay_ms = last.map_or(FIRST_MS, |last| last.delay_ms * 2);
        let wait = Wait {
            since_ms: now_ms,
            delay_ms: delay_ms.min(failure.longest_ms()),
            version,
            failure: failure.clone(),
        };
        self.0.insert(key.clone(), wait);
        news
    }

    /// Whether this one was failed at the last time: it comes after all others.
    pub(crate) fn comes_last(&self, key: &K) -> bool {
        self.0.get(key).is_some_and(|wait| wait.failure.may_pass())
    }

    /// Ends a wait.
    pub(crate) fn end(&mut self, key: &K) {
        self.0.remove(key);
    }

    /// Those that wait.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end_with_a_change() {
        let mut waits = Waits::default();
        let refused = Failure::Refused("no".to_owned());
        assert!(waits.failed(&"a", 1, &refused, 0));
        assert_eq!(waits.due_ms(&"a", 1), 500);
        assert!(!waits.failed(&"a", 1, &refused, 500), "told once");
        assert_eq!(waits.due_ms(&"a", 1), 1_500);
        assert!(!waits.failed(&"a", 1, &refused, 1_500));
        let calm = 1_500 + CHANGED_MS;
        assert_eq!(waits.due_ms(&"a", 2), calm, "a change has to calm down");
        assert_eq!(waits.due_ms(&"b", 1), 0);
        for _ in 0..20 {
            waits.failed(&"a", 1, &refused, 0);
        }
        assert_eq!(waits.due_ms(&"a", 1), LONGEST_MS);
        waits.failed(&"a", 1, &Failure::Stale, 7);
        assert_eq!(waits.due_ms(&"a", 2), 7, "the watch told of the change");
        waits.end(&"a");
        assert_eq!(waits.len(), 0);
    }
}
