//! Objects that are left alone for a while after a write was not taken.

use std::collections::BTreeMap;

use super::conflict::WriteError;

const FIRST_MS: u64 = 500;
const LONGEST_MS: u64 = 60_000;
/// What the API server does not take now it may take soon.
const UNAVAILABLE_MS: u64 = 4_000;
/// Nor at which it fails; asking may take it long.
const FAILED_MS: u64 = 10_000;
/// A changed object is tried again after this time at the earliest.
const CHANGED_MS: u64 = 1_000;

#[derive(Clone, Debug)]
struct Wait {
    since_ms: u64,
    delay_ms: u64,
    version: u64,
    error: WriteError,
}

/// Waits by object.
#[derive(Clone, Debug)]
pub(super) struct Patience<K>(BTreeMap<K, Wait>);

impl<K> Default for Patience<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Patience<K> {
    /// Whether a write may be tried. `version` is that of the object as it is known now.
    pub(super) fn allows(&self, key: &K, version: u64, now_ms: u64) -> bool {
        self.0.get(key).is_none_or(|wait| {
            let waited = now_ms.saturating_sub(wait.since_ms);
            let changed = version != wait.version;
            waited >= wait.delay_ms
                || changed && (wait.error == WriteError::Stale || waited >= CHANGED_MS)
        })
    }

    /// Notes a failure. Returns whether it is another one than the last.
    pub(super) fn failed(
        &mut self,
        key: &K,
        version: u64,
        error: &WriteError,
        now_ms: u64,
    ) -> bool {
        let last = self.0.get(key);
        let news = last.is_none_or(|last| last.error != *error);
        let delay_ms = match last {
            Some(last) => last.delay_ms * 2,
            None => FIRST_MS,
        };
        let longest = match error {
            WriteError::Unavailable(_) => UNAVAILABLE_MS,
            WriteError::Failed(_) => FAILED_MS,
            _ => LONGEST_MS,
        };
        let wait = Wait {
            since_ms: now_ms,
            delay_ms: delay_ms.min(longest),
            version,
            error: error.clone(),
        };
        self.0.insert(key.clone(), wait);
        news
    }

    /// Whether the API server failed at this one the last time: it comes after all others.
    pub(super) fn comes_last(&self, key: &K) -> bool {
        self.0.get(key).is_some_and(|wait| wait.error.may_pass())
    }

    /// Whether there is one that [`Self::comes_last`].
    pub(super) fn some_come_last(&self) -> bool {
        self.0.values().any(|wait| wait.error.may_pass())
    }

    pub(super) fn succeeded(&mut self, key: &K) {
        self.0.remove(key);
    }

    /// Forgets objects for which `keep` is false.
    pub(super) fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.0.retain(|key, _| keep(key));
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end_with_a_change() {
        let mut patience = Patience::default();
        let refused = WriteError::Refused("no".to_owned());
        assert!(patience.failed(&"a", 1, &refused, 0));
        assert!(!patience.allows(&"a", 1, 499));
        assert!(patience.allows(&"a", 1, 500));
        assert!(!patience.failed(&"a", 1, &refused, 500), "told once");
        assert!(!patience.allows(&"a", 1, 1_400));
        assert!(
            !patience.allows(&"a", 2, 1_400),
            "a changed object has to calm down"
        );
        assert!(patience.allows(&"b", 1, 0));
        for _ in 0..20 {
            patience.failed(&"a", 1, &refused, 0);
        }
        assert!(!patience.allows(&"a", 1, LONGEST_MS - 1));
        assert!(patience.allows(&"a", 1, LONGEST_MS));
        patience.failed(&"a", 1, &WriteError::Stale, 0);
        assert!(patience.allows(&"a", 2, 1), "the watch told of the change");
        patience.succeeded(&"a");
        assert_eq!(patience.len(), 0);
    }
}
