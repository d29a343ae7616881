//! How a source fares, for metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sluice_stream::SenderState;

/// Counters of one kind of thing that a source reads.
#[derive(Clone, Copy, Debug)]
pub struct KindState {
    /// Changes that were read.
    pub events: u64,
    /// Times that everything was read anew.
    pub relists: u64,
    /// Failures.
    pub errors: u64,
    /// Since when the source cannot say that it knows the newest; `None` while it can.
    pub unsynced: Option<Instant>,
}

/// Shared by the threads of a source; read by the admin endpoint.
#[derive(Debug, Default)]
pub struct SourceState {
    kinds: Mutex<BTreeMap<&'static str, KindState>>,
    held: Mutex<Option<String>>,
    /// Renewals of the node's Lease.
    pub lease_renewals: AtomicU64,
    /// Renewals that failed.
    pub lease_failures: AtomicU64,
    /// Times that the node's status was written.
    pub status_writes: AtomicU64,
    /// Times that it could not be written.
    pub status_failures: AtomicU64,
    /// How the stream of signals fares.
    pub stream: Arc<SenderState>,
}

impl SourceState {
    /// A kind is read from now on.
    pub fn expect(&self, kind: &'static str) {
        self.update(kind, |_| {});
    }

    /// Changes of a kind were read.
    pub fn events(&self, kind: &'static str, count: u64) {
        self.update(kind, |state| state.events += count);
    }

    /// Everything of a kind was read anew.
    pub fn relisted(&self, kind: &'static str) {
        self.update(kind, |state| state.relists += 1);
    }

    /// The source knows the newest of a kind.
    pub fn synced(&self, kind: &'static str) {
        self.update(kind, |state| state.unsynced = None);
    }

    /// A kind could not be read.
    pub fn failed(&self, kind: &'static str) {
        self.update(kind, |state| {
            state.errors += 1;
            state.unsynced = state.unsynced.or_else(|| Some(Instant::now()));
        });
    }

    /// Counters by kind.
    pub fn kinds(&self) -> BTreeMap<&'static str, KindState> {
        lock(&self.kinds).clone()
    }

    /// How long the source has not known the newest of everything; zero while it does.
    pub fn unsynced(&self) -> Duration {
        let kinds = lock(&self.kinds);
        let since = kinds.values().filter_map(|kind| kind.unsynced).min();
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Says why the source withholds what it reads.
    pub fn hold(&self, reason: Option<String>) {
        *lock(&self.held) = reason;
    }

    /// Why the source withholds what it reads, if it does.
    pub fn held(&self) -> Option<String> {
        lock(&self.held).clone()
    }

    /// Counts a success or a failure.
    pub fn count(successes: &AtomicU64, failures: &AtomicU64, success: bool) {
        let counter = if success { successes } else { failures };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn update(&self, kind: &'static str, change: impl FnOnce(&mut KindState)) {
        let mut kinds = lock(&self.kinds);
        change(kinds.entry(kind).or_insert_with(|| KindState {
            events: 0,
            relists: 0,
            errors: 0,
            unsynced: Some(Instant::now()),
        }));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_kind_that_lags_is_a_source_that_lags() {
        let state = SourceState::default();
        assert_eq!(state.unsynced(), Duration::ZERO);
        state.expect("a");
        state.synced("b");
        assert!(state.unsynced() > Duration::ZERO);
        state.synced("a");
        assert_eq!(state.unsynced(), Duration::ZERO);
        state.failed("b");
        assert!(state.unsynced() > Duration::ZERO);
        assert_eq!(state.kinds()["b"].errors, 1);
    }
}
