//! The agent's state for its admin endpoint: written by the core and the sweeper, read by the endpoint.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant, SystemTime};

use sluice_api::{AttachMode, NodeException};
use sluice_planner::Planner;

use crate::maps::{FlowCensus, FullNatCensus, Maps};
use crate::signals::Signals;
use crate::source::SourceState;

/// Time without a turn of the core's loop after which the agent is not healthy.
const STUCK: Duration = Duration::from_secs(30);

/// The core's state after its last turn.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// The planner of the maps; `None` if there is none.
    pub planner: Option<SharedPlanner>,
    /// Every decision on a virtual server up to this one is live, the exceptions aside.
    pub acknowledged_revision: u64,
    /// Every decision on a pool up to this one is live, the exceptions aside.
    pub acknowledged_pool_revision: u64,
    /// Decided objects that are not live, with the reasons.
    pub exceptions: Arc<Vec<NodeException>>,
    /// The VIP groups that this node takes part in, and whether it holds them.
    pub groups: Vec<(String, bool)>,
    /// The VIP groups that nobody holds, among those that this node watches.
    pub groups_without_holder: usize,
    /// Servers that are checked, by what checks say of them.
    pub checked: [(&'static str, usize); 4],
    /// How XDP is attached, by interface.
    pub interfaces: Vec<(String, AttachMode)>,
    /// Neighbours that are followed.
    pub neighbours: usize,
    /// Those of them that are not resolved.
    pub neighbours_unresolved: usize,
    /// Why the node is not ready; empty if it is.
    pub not_ready: Vec<String>,
}

/// The core's planner, for those who ask what it plans. The core waits while somebody looks at it, so looks are short.
#[derive(Clone, Debug)]
pub struct SharedPlanner(Arc<RwLock<Planner>>);

impl SharedPlanner {
    /// Shares a planner.
    pub fn new(planner: Planner) -> Self {
        Self(Arc::new(RwLock::new(planner)))
    }

    /// Looks at it.
    pub fn read(&self) -> RwLockReadGuard<'_, Planner> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works with it.
    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Planner> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A limit of the planner's maps and its use. Of a map in two families, of the fuller one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacity {
    /// CamelCase name of the map.
    pub name: &'static str,
    /// The most entries that there can be.
    pub limit: u64,
    /// Entries in use.
    pub used: u64,
}

impl Capacity {
    /// Of the maps as they are planned.
    pub fn of(planner: &Planner) -> Vec<Self> {
        let (limits, usage) = (planner.limits(), planner.usage());
        let entry = |name, limit, used: usize| Self {
            name,
            limit: u64::from(limit),
            used: used as u64,
        };
        vec![
            entry("Announced", limits.announced, usage.announced),
            entry("Backends", limits.replies, usage.replies),
            entry("Heads", limits.heads, usage.heads),
            entry("Locals", limits.locals, usage.locals),
            entry("PeerNets", limits.peer_nets, usage.peer_nets),
            entry("Peers", limits.peers, usage.peers),
            entry("Records", limits.records, usage.records),
            entry("RingSlots", limits.ring_slots, usage.ring_slots),
            entry("Rings", limits.rings, usage.rings),
            entry("Servers", limits.servers, usage.servers),
            entry("Sources", limits.sources, usage.sources),
            entry("Vips", limits.vips, usage.vips),
        ]
    }
}

/// The sweeper's last counts.
#[derive(Clone, Debug, Default)]
pub struct Censuses {
    /// Flows.
    pub flows: Arc<FlowCensus>,
    /// FullNAT's claims.
    pub claims: Arc<FullNatCensus>,
}

/// Counters of what is announced and asked for.
#[derive(Debug, Default)]
pub struct AnnounceCounts {
    /// VIPs that were announced, each time on all of its uplinks.
    pub announcements: AtomicU64,
    /// Questions for VIPs, and to witnesses.
    pub probes: AtomicU64,
    /// Frames that the kernel did not take.
    pub unsent: AtomicU64,
    /// Claims of addresses that there was no room for.
    pub unheard: AtomicU64,
    /// Claims of VIPs by hosts that are no directors.
    pub strangers: AtomicU64,
    /// Times that a VIP was defended against such a claim.
    pub defences: AtomicU64,
    /// Reads and writes of the Leases of VIP groups.
    pub lease_requests: AtomicU64,
    /// Those for which there was no room.
    pub lease_drops: AtomicU64,
}

impl AnnounceCounts {
    /// Counts one.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counters of checks of servers.
#[derive(Debug, Default)]
pub struct CheckCounts {
    /// Checks that were passed.
    pub passed: AtomicU64,
    /// Checks that failed.
    pub failed: AtomicU64,
}

impl CheckCounts {
    /// Counts one.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counters of the agent's own work.
#[derive(Debug, Default)]
pub struct Counts {
    /// Plans that were applied.
    pub applies: AtomicU64,
    /// Plans whose application failed.
    pub apply_failures: AtomicU64,
    /// Map operations carried out.
    pub operations: AtomicU64,
    /// Messages of rtnetlink for which there was no room, so that everything was asked for anew.
    pub netlink_drops: AtomicU64,
    /// Flow entries freed after they expired.
    pub flows_expired: AtomicU64,
}

impl Counts {
    /// Counts a step of applying a plan that failed.
    pub fn failed<T, E>(&self, step: Result<T, E>) -> Result<T, E> {
        if step.is_err() {
            self.apply_failures.fetch_add(1, Ordering::Relaxed);
        }
        step
    }
}

/// Shared by the threads of the agent.
#[derive(Debug)]
pub struct State {
    /// The node's name.
    pub node: String,
    /// Counters.
    pub counts: Counts,
    /// Counters of what is announced.
    pub announced: Arc<AnnounceCounts>,
    /// Counters of checks.
    pub checked: Arc<CheckCounts>,
    /// How servers meet connections.
    pub signals: Signals,
    /// How the source fares.
    pub source: Arc<SourceState>,
    /// How long applying plans took.
    pub apply_seconds: Histogram,
    maps: RwLock<Option<Arc<Maps>>>,
    published: RwLock<Published>,
    censuses: RwLock<Censuses>,
    closed_doors: RwLock<BTreeMap<&'static str, String>>,
    start: Instant,
    last_turn: AtomicU64,
}

impl State {
    /// Nothing was done yet. `maps` is `None` on a node that is to stay detached.
    pub fn new(node: String, maps: Option<Arc<Maps>>, source: Arc<SourceState>) -> Self {
        let published = Published {
            not_ready: vec!["the agent is starting".to_owned()],
            ..Published::default()
        };
        Self {
            node,
            maps: RwLock::new(maps),
            counts: Counts::default(),
            announced: Arc::default(),
            checked: Arc::default(),
            signals: Signals::new(session()),
            source,
            apply_seconds: Histogram::default(),
            published: RwLock::new(published),
            censuses: RwLock::default(),
            closed_doors: RwLock::default(),
            start: Instant::now(),
            last_turn: AtomicU64::new(0),
        }
    }

    /// The maps; `None` once the node is detached.
    pub fn maps(&self) -> Option<Arc<Maps>> {
        self.maps
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Gives the maps up, so that the kernel frees them once nobody uses them any more.
    pub fn release_maps(&self) {
        *self.maps.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The state that the core published last.
    pub fn published(&self) -> Published {
        self.published
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Replaces what the core published.
    pub fn publish(&self, published: Published) {
        *self
            .published
            .write()
            .unwrap_or_else(PoisonError::into_inner) = published;
    }

    /// The sweeper's last counts.
    pub fn censuses(&self) -> Censuses {
        self.censuses
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Replaces what the sweeper counted.
    pub fn count(&self, censuses: Censuses) {
        *self
            .censuses
            .write()
            .unwrap_or_else(PoisonError::into_inner) = censuses;
    }

    /// The options of the addresses at which the admin endpoint cannot listen, and why not.
    pub fn closed_doors(&self) -> BTreeMap<&'static str, String> {
        let doors = self.closed_doors.read();
        doors.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The admin endpoint cannot listen at the address of an option.
    pub fn close_door(&self, option: &'static str, reason: String) {
        let doors = self.closed_doors.write();
        let mut doors = doors.unwrap_or_else(PoisonError::into_inner);
        doors.insert(option, reason);
    }

    /// It listens there.
    pub fn open_door(&self, option: &str) {
        let doors = self.closed_doors.write();
        let mut doors = doors.unwrap_or_else(PoisonError::into_inner);
        doors.remove(option);
    }

    /// The core's loop has made a turn.
    pub fn turn(&self) {
        let elapsed = self.start.elapsed().as_millis();
        self.last_turn.store(
            u64::try_from(elapsed).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }

    /// Whether the core's loop goes round.
    pub fn is_healthy(&self) -> bool {
        self.turned_within(STUCK)
    }

    /// Whether the core's loop made a turn in the time before now, or the process is not older than that.
    pub fn turned_within(&self, time: Duration) -> bool {
        let last = Duration::from_millis(self.last_turn.load(Ordering::Relaxed));
        self.start.elapsed() < last + time
    }
}

/// Tells this process from the one before it.
fn session() -> u64 {
    getrandom::u64().unwrap_or_else(|_| {
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or_default()
    })
}

/// A histogram of durations with fixed bounds.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; HISTOGRAM_BOUNDS.len()],
    count: AtomicU64,
    microseconds: AtomicU64,
}

/// Upper bounds of a histogram's buckets, in seconds; the last one is not counted by itself.
pub const HISTOGRAM_BOUNDS: [f64; 12] = [
    0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0,
];

impl Histogram {
    /// Counts a duration.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = HISTOGRAM_BOUNDS.iter().position(|&bound| seconds <= bound);
        if let Some(counter) = bucket.and_then(|bucket| self.buckets.get(bucket)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        let microseconds = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.microseconds.fetch_add(microseconds, Ordering::Relaxed);
    }

    /// Sum in seconds, count, and (bound, durations within it and above the one before).
    pub fn read(&self) -> (f64, u64, Vec<(f64, u64)>) {
        let counts: Vec<u64> = self
            .buckets
            .iter()
            .map(|bucket| bucket.load(Ordering::Relaxed))
            .collect();
        let count = self.count.load(Ordering::Relaxed);
        let sum = Duration::from_micros(self.microseconds.load(Ordering::Relaxed));
        let within: u64 = counts.iter().sum();
        let mut buckets: Vec<(f64, u64)> = HISTOGRAM_BOUNDS.into_iter().zip(counts).collect();
        buckets.push((f64::INFINITY, count.saturating_sub(within)));
        (sum.as_secs_f64(), count, buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_is_in_one_bucket() {
        let histogram = Histogram::default();
        for milliseconds in [0, 1, 7, 90, 20_000] {
            histogram.observe(Duration::from_millis(milliseconds));
        }
        let (sum, count, buckets) = histogram.read();
        assert_eq!(count, 5);
        assert!((sum - 20.098).abs() < 1e-6, "{sum}");
        assert_eq!(buckets.iter().map(|(_, n)| n).sum::<u64>(), 5);
        assert_eq!(buckets.last().map(|&(_, n)| n), Some(1));
    }
}
