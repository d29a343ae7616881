//! The operator's metrics and its health.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::core::PoolState;
use crate::stream::StreamMetrics;

/// Labels with a kind of object.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct KindLabel {
    /// The kind.
    pub kind: &'static str,
}

/// Labels with the state of a node.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct StateLabel {
    /// `live`, `joining` or `silent`.
    pub state: &'static str,
}

/// Labels with an address pool.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct AddressLabels {
    /// The pool's name.
    pub pool: String,
    /// `used` (by a virtual server, or at rest) or `assignable`.
    pub state: &'static str,
}

/// Labels of a write.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct WriteLabels {
    /// The kind of the object.
    pub kind: &'static str,
    /// `ok`, `stale`, `field_manager_conflict`, `refused`, `unavailable`, `gone` or `failed`.
    pub result: &'static str,
}

/// The operator's metrics and what its health is told by.
#[derive(Debug)]
pub struct Metrics {
    /// Rounds of the core.
    pub reconciles: Counter,
    /// How long a round of the core takes, writes aside.
    pub reconcile_seconds: Histogram,
    /// How long a write takes.
    pub write_seconds: Histogram,
    /// Writes by kind and result.
    pub writes: Family<WriteLabels, Counter>,
    /// Lost watches by kind.
    pub watch_errors: Family<KindLabel, Counter>,
    /// Complete lists by kind.
    pub lists: Family<KindLabel, Counter>,
    /// Objects by kind.
    pub objects: Family<KindLabel, Gauge>,
    /// Nodes by state.
    pub nodes: Family<StateLabel, Gauge>,
    /// Addresses of address pools.
    pub addresses: Family<AddressLabels, Gauge<f64, AtomicU64>>,
    /// Objects that cannot be read, by kind.
    pub unreadable: Family<KindLabel, Counter>,
    /// Events that had no room in the queue, or that the API server did not take.
    pub events_dropped: Counter,
    /// The highest revision known.
    pub highest_revision: Gauge<u64, AtomicU64>,
    /// Objects that are left alone for a while after a write was not taken.
    pub waiting: Gauge<i64, AtomicI64>,
    /// Numbers of the stream of signals.
    pub stream: StreamMetrics,
    start: Instant,
    /// Milliseconds since `start` when the loop last went round.
    turned_ms: AtomicU64,
    not_ready: Mutex<Vec<String>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let buckets = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0];
        Self {
            reconciles: Counter::default(),
            reconcile_seconds: Histogram::new(buckets),
            write_seconds: Histogram::new(buckets),
            writes: Family::default(),
            watch_errors: Family::default(),
            lists: Family::default(),
            objects: Family::default(),
            nodes: Family::default(),
            addresses: Family::default(),
            unreadable: Family::default(),
            events_dropped: Counter::default(),
            highest_revision: Gauge::default(),
            waiting: Gauge::default(),
            stream: StreamMetrics::default(),
            start: Instant::now(),
            turned_ms: AtomicU64::new(0),
            not_ready: Mutex::new(vec!["has not begun".to_owned()]),
        }
    }
}

/// The loop counts as standing still after this time: longer than the slowest answer that it waits for.
const STILL: Duration = Duration::from_mins(1);

impl Metrics {
    /// The loop went round, or had the answer that it waited for, or gave it up.
    pub fn turn(&self) {
        let turned = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.turned_ms.store(turned, Ordering::Relaxed);
    }

    /// Counts the nodes by the state of each.
    pub fn count_nodes(&self, states: impl Iterator<Item = &'static str>) {
        let mut counts = BTreeMap::from([("live", 0), ("joining", 0), ("silent", 0)]);
        for state in states {
            *counts.entry(state).or_default() += 1;
        }
        for (state, count) in counts {
            self.nodes.get_or_create(&StateLabel { state }).set(count);
        }
    }

    /// Counts the addresses of each pool.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a count of more than 2^53 addresses need not be exact"
    )]
    pub fn count_addresses<'a>(&self, pools: impl Iterator<Item = (&'a str, PoolState)>) {
        self.addresses.clear();
        for (pool, state) in pools {
            for (name, count) in [
                ("used", state.used as f64),
                ("assignable", state.size as f64),
            ] {
                let labels = AddressLabels {
                    pool: pool.to_owned(),
                    state: name,
                };
                self.addresses.get_or_create(&labels).set(count);
            }
        }
    }

    /// Whether the loop went round lately, or got on with what it waits for.
    pub fn is_healthy(&self) -> bool {
        self.stands_still() < STILL
    }

    /// How long the loop has not got on.
    pub(crate) fn stands_still(&self) -> Duration {
        let turned = Duration::from_millis(self.turned_ms.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(turned)
    }

    /// Says what is waited for; nothing: ready.
    pub fn set_not_ready(&self, reasons: Vec<String>) {
        let mut not_ready = self
            .not_ready
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *not_ready = reasons;
    }

    /// The things that are waited for; empty: ready.
    pub fn not_ready(&self) -> Vec<String> {
        let not_ready = self
            .not_ready
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        not_ready.clone()
    }

    /// Adds everything to a registry.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("sluice_operator");
        registry.register("reconciles", "Rounds of the core", self.reconciles.clone());
        registry.register_with_unit(
            "reconcile_duration",
            "Time of a round of the core, writes aside",
            Unit::Seconds,
            self.reconcile_seconds.clone(),
        );
        registry.register_with_unit(
            "write_duration",
            "Time of a write",
            Unit::Seconds,
            self.write_seconds.clone(),
        );
        registry.register("writes", "Writes by kind and result", self.writes.clone());
        registry.register(
            "watch_errors",
            "Lost watches by kind",
            self.watch_errors.clone(),
        );
        registry.register("lists", "Complete lists by kind", self.lists.clone());
        registry.register("objects", "Objects by kind", self.objects.clone());
        registry.register(
            "nodes",
            "Nodes by state: live, joining (nothing acknowledged yet) or silent",
            self.nodes.clone(),
        );
        registry.register(
            "address_pool_addresses",
            "Addresses of an address pool: used (those that rest among them) and assignable",
            self.addresses.clone(),
        );
        registry.register(
            "unreadable_objects",
            "Times that an object could not be read, by kind",
            self.unreadable.clone(),
        );
        registry.register(
            "events_dropped",
            "Events that had no room in the queue or were not taken by the API server",
            self.events_dropped.clone(),
        );
        registry.register(
            "highest_revision",
            "The highest revision of a decision",
            self.highest_revision.clone(),
        );
        registry.register(
            "waiting_objects",
            "Objects that are left alone for a while after a write was not taken",
            self.waiting.clone(),
        );
        self.stream.register(registry);
    }
}
