//! When which server is checked, and what follows from the outcomes: without I/O and without a clock.
//!
//! The checks of all servers are spread over their intervals: the `n`-th server begins at the fractional part of `n` times the golden
//! ratio, which leaves no gaps and makes no bursts however many there are. Directors begin at different times by their names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_api::{HealthCheck, MAX_CHECK_FAILURE_LENGTH, ObjectKey};

use super::memory::Memory;
use super::server::{Server, Thresholds, Verdict};
use super::warming::Warming;
use super::{PoolChecks, Told, Verdicts, is_by_address, scatter};

/// 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A server of a pool.
type Target = (ObjectKey, SocketAddr);

/// A check that is due.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) pool: ObjectKey,
    pub(super) server: SocketAddr,
    pub(super) check: Arc<HealthCheck>,
    /// By which its outcome is told from that of an earlier check of the same server.
    number: u64,
}

/// All checks.
#[derive(Debug)]
pub(super) struct Checks {
    pools: BTreeMap<ObjectKey, Pool>,
    /// What is due when. A server whose check is under way is not in it.
    agenda: BTreeSet<(Instant, Target)>,
    /// When which server gets more of its share.
    steps: BTreeSet<(Instant, Target)>,
    /// Where the next server begins in its interval, as a part of 2^64.
    phase: u64,
    attempts: u64,
    /// What was known when the process began.
    memory: Memory,
    changed: BTreeSet<ObjectKey>,
}

#[derive(Debug)]
struct Pool {
    check: Option<Arc<HealthCheck>>,
    warmup: Option<Duration>,
    has_passed: bool,
    servers: BTreeMap<SocketAddr, Checked>,
}

#[derive(Debug)]
struct Checked {
    server: Server,
    /// When it is due, without jitter.
    turn: Instant,
    /// When it is checked next, or was last.
    due: Instant,
    /// The check that is under way.
    under_way: Option<u64>,
    warming: Option<Warming>,
    /// Why it failed last.
    reason: String,
}

impl Checks {
    /// `seed` is the node's own. `memory` is what an earlier process knew.
    pub(super) fn new(seed: u64, memory: Memory) -> Self {
        Self {
            pools: BTreeMap::new(),
            agenda: BTreeSet::new(),
            steps: BTreeSet::new(),
            phase: seed,
            attempts: 0,
            memory,
            changed: BTreeSet::new(),
        }
    }

    /// Has the servers of a pool watched; `None`: no more. Verdicts stand as long as the check is the same.
    pub(super) fn set_pool(&mut self, key: &ObjectKey, wanted: Option<PoolChecks>, now: Instant) {
        let before = self.pools.remove(key);
        self.changed.insert(key.clone());
        for (server, checked) in before.iter().flat_map(|pool| &pool.servers) {
            let target = (key.clone(), *server);
            if let Some(warming) = checked.warming {
                self.steps.remove(&(warming.next, target.clone()));
            }
            self.agenda.remove(&(checked.due, target));
        }
        let Some(wanted) = wanted else {
            return;
        };
        let remembered = self.memory.take(key).unwrap_or_default();
        let same = before
            .as_ref()
            .filter(|before| before.check == wanted.check);
        let has_passed = same.map_or(remembered.has_passed, |before| before.has_passed);
        // Those of a pool that is new here are as old as any.
        let old = before
            .as_ref()
            .map(|before| before.servers.keys().map(SocketAddr::ip).collect());
        let old: Option<BTreeSet<IpAddr>> = old;
        let is_same = same.is_some();
        let mut known = before.map(|before| before.servers).unwrap_or_default();
        let interval = wanted.check.as_deref().map_or(Duration::ZERO, interval);
        let mut pool = Pool {
            check: wanted.check,
            warmup: wanted.warmup,
            has_passed,
            servers: BTreeMap::new(),
        };
        for address in wanted.servers {
            let before = known.remove(&address);
            let warming = match (&before, pool.warmup) {
                (_, None) => None,
                (Some(before), Some(time)) => before.warming.and_then(|it| it.at(now, time)),
                (None, Some(time)) => {
                    let is_new = old.as_ref().is_some_and(|old| !old.contains(&address.ip()));
                    is_new.then(|| Warming::begin(now, time))
                }
            };
            let mut checked = before.filter(|_| is_same).unwrap_or_else(|| {
                let is_down = remembered.down.contains(&address);
                self.phase = self.phase.wrapping_add(GOLDEN);
                Checked::new(is_down, now + part(interval, self.phase))
            });
            checked.warming = warming;
            let target = (key.clone(), address);
            if let Some(warming) = warming {
                self.steps.insert((warming.next, target.clone()));
            }
            if pool.check.is_some() && checked.under_way.is_none() {
                self.agenda.insert((checked.due, target));
            }
            pool.servers.insert(address, checked);
        }
        self.pools.insert(key.clone(), pool);
    }

    /// When the next server gets more of its share.
    pub(super) fn next_step(&self) -> Option<Instant> {
        self.steps.first().map(|(at, _)| *at)
    }

    /// Gives the servers that warm up what is theirs by now.
    pub(super) fn warm(&mut self, now: Instant) {
        while self.next_step().is_some_and(|at| at <= now)
            && let Some((_, (key, server))) = self.steps.pop_first()
        {
            let Some(pool) = self.pools.get_mut(&key) else {
                continue;
            };
            let checked = pool.servers.get_mut(&server);
            let Some((checked, time)) = checked.zip(pool.warmup) else {
                continue;
            };
            checked.warming = checked.warming.and_then(|it| it.at(now, time));
            if let Some(warming) = checked.warming {
                self.steps.insert((warming.next, (key.clone(), server)));
            }
            self.changed.insert(key);
        }
    }

    /// When the next check is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.agenda.first().map(|(due, _)| *due)
    }

    /// A check that is due, if one is. It is under way from now on.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Attempt> {
        if self.agenda.first()?.0 > now {
            return None;
        }
        let (_, (pool, server)) = self.agenda.pop_first()?;
        let known = self.pools.get_mut(&pool)?;
        let checked = known.servers.get_mut(&server)?;
        self.attempts += 1;
        checked.under_way = Some(self.attempts);
        let check = Arc::clone(known.check.as_ref()?);
        Some(Attempt {
            pool,
            server,
            check,
            number: self.attempts,
        })
    }

    /// Takes the outcome of a check in: how long it took, or why it failed. Returns whether it passed; `None`: nobody asks any more.
    pub(super) fn on(
        &mut self,
        attempt: &Attempt,
        outcome: Result<Duration, String>,
        now: Instant,
    ) -> Option<bool> {
        let pool = self.pools.get_mut(&attempt.pool)?;
        let checked = pool.servers.get_mut(&attempt.server)?;
        if checked.under_way != Some(attempt.number) {
            return None;
        }
        let check = pool.check.as_deref()?;
        checked.under_way = None;
        let interval = interval(check);
        checked.turn = next(checked.turn, interval, now);
        let most = interval * check.jitter_percent.into() / 100;
        checked.due = checked.turn + part(most, scatter(attempt.number));
        let target = (attempt.pool.clone(), attempt.server);
        self.agenda.insert((checked.due, target.clone()));
        let outcome = outcome.and_then(|took| in_time(took, check));
        let passed = outcome.is_ok();
        if let Err(reason) = outcome {
            checked.reason = reason.chars().take(MAX_CHECK_FAILURE_LENGTH).collect();
        }
        let is_first = passed && !pool.has_passed;
        pool.has_passed |= passed;
        let thresholds = Thresholds {
            rise: check.rise.into(),
            fall: check.fall.into(),
        };
        let before = checked.server.verdict();
        let has_changed = checked.server.on(passed, thresholds, now);
        if has_changed {
            let is_back = before == Verdict::Down;
            let time = pool.warmup.filter(|_| is_back);
            let warming = time.map(|time| Warming::begin(now, time));
            let is_down = checked.server.verdict() == Verdict::Down;
            if (is_back || is_down)
                && let Some(ended) = std::mem::replace(&mut checked.warming, warming)
            {
                self.steps.remove(&(ended.next, target.clone()));
            }
            self.steps
                .extend(warming.map(|warming| (warming.next, target)));
        }
        if has_changed || is_first {
            self.changed.insert(attempt.pool.clone());
        }
        Some(passed)
    }

    /// What is to be told since this was last called.
    pub(super) fn take_changed(&mut self) -> Told {
        let changed = std::mem::take(&mut self.changed).into_iter();
        let told = changed.map(|key| {
            let verdicts = self.pools.get(&key).map(Pool::verdicts);
            (key, verdicts)
        });
        told.collect()
    }

    /// What is to be remembered.
    pub(super) fn memory(&self) -> Memory {
        let pools = self.pools.iter();
        Memory::of(pools.map(|(key, pool)| (key, pool.verdicts())))
    }
}

impl Pool {
    fn verdicts(&self) -> Verdicts {
        let mut verdicts = Verdicts {
            has_passed: self.has_passed,
            by_address: is_by_address(self.check.as_deref()),
            ..Verdicts::default()
        };
        for (address, checked) in &self.servers {
            match (checked.server.verdict(), checked.warming) {
                (Verdict::Down, _) => {
                    verdicts.down.insert(*address, checked.reason.clone());
                }
                (_, Some(warming)) => {
                    verdicts.warming.insert(*address, warming.tenths);
                }
                (Verdict::Up, None) => verdicts.up += 1,
                (Verdict::Unknown, None) => verdicts.unknown += usize::from(self.check.is_some()),
            }
        }
        verdicts
    }
}

impl Checked {
    /// Nothing is known of it but whether it was down.
    const fn new(is_down: bool, due: Instant) -> Self {
        Self {
            server: Server::new(if is_down {
                Verdict::Down
            } else {
                Verdict::Unknown
            }),
            turn: due,
            due,
            under_way: None,
            warming: None,
            reason: String::new(),
        }
    }
}

fn interval(check: &HealthCheck) -> Duration {
    Duration::from_secs(check.interval_seconds.into())
}

/// A part of a time, in units of 2^-64.
fn part(time: Duration, part: u64) -> Duration {
    let nanos = (time.as_nanos() * u128::from(part)) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// The next time after `now` that is whole intervals after `due`.
fn next(due: Instant, interval: Duration, now: Instant) -> Instant {
    let late = now.saturating_duration_since(due).as_nanos();
    let missed = late / interval.as_nanos().max(1);
    due + interval * (u32::try_from(missed).unwrap_or(u32::MAX - 1) + 1)
}

fn in_time(took: Duration, check: &HealthCheck) -> Result<Duration, String> {
    match check.max_response_milliseconds {
        Some(most) if took > Duration::from_millis(most.into()) => Err(format!(
            "answered after {} ms, more than maxResponseMilliseconds allows ({most})",
            took.as_millis()
        )),
        _ => Ok(took),
    }
}

#[cfg(test)]
mod tests;
