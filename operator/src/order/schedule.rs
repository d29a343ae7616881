//! The writes that are due, one after the other.

use std::collections::{BTreeMap, BTreeSet};

use sluice_api::{DecidedServer, Kind, ObjectKey, RealServerPoolStatus, VirtualServerStatus};

use super::pending::{Class, Flight, Pause, Pending, Place, Rank, Turn, object};
use super::{Failure, Next, Numbers, Object, Status, Waits, Write, Written};
use crate::core::Outcome;

/// Quiet statuses become news no more often than this: nodes acknowledge one by one.
pub(super) const CALM_MS: u64 = 500;
/// Decisions go before what only tells how things stand for so long; then news has a turn after so many decisions.
pub(super) const DECISIONS_FIRST_MS: u64 = 5_000;
const DECISIONS_PER_NEWS: u32 = 7;
/// Slices that nodes may not have heard of are looked at again after this time.
const SLICES_MS: u64 = 500;
/// Pending writes, writes under way, and the waits after writes that were not taken.
#[derive(Debug)]
pub(crate) struct Schedule {
    /// Writes under way at one time.
    at_once: usize,
    /// The highest revision that was ever given, as far as anybody remembers.
    given: u64,
    pending: BTreeMap<Place, Pending>,
    classes: BTreeMap<Object, Class>,
    /// The ranks of pools of which a pending decision lacks servers that they have.
    losing: BTreeMap<ObjectKey, Rank>,
    flying: BTreeMap<Object, Flight>,
    /// The lowest revision of each object whose write had no answer, since the last that was taken. Should it or a later one
    /// arrive after all, the decision gets another, since nodes may have been told that they have everything up to it.
    doubtful: BTreeMap<Object, u64>,
    waits: Waits<Object>,
    pause: Option<Pause>,
    /// When what is quiet last became news.
    quiet_ms: Option<u64>,
    /// Since when there has been news.
    news_ms: Option<u64>,
    /// Decisions that were sent since the last news was.
    decisions: u32,
    /// Kinds that may have to be closed.
    unclosed: BTreeSet<Kind>,
}

impl Schedule {
    /// `at_once` writes may be under way at one time.
    pub(crate) fn new(at_once: usize) -> Self {
        Self {
            at_once,
            given: 0,
            pending: BTreeMap::new(),
            classes: BTreeMap::new(),
            losing: BTreeMap::new(),
            flying: BTreeMap::new(),
            doubtful: BTreeMap::new(),
            waits: Waits::default(),
            pause: None,
            quiet_ms: None,
            news_ms: None,
            decisions: 0,
            // Who wrote before may have been stopped in between.
            unclosed: [Kind::VirtualServer, Kind::RealServerPool].into(),
        }
    }

    /// No revision up to this one is given again.
    pub(crate) fn raise(&mut self, revision: u64) {
        self.given = self.given.max(revision);
    }

    /// The highest revision that was given.
    pub(crate) const fn given(&self) -> u64 {
        self.given
    }

    /// How many objects are left alone after a write was not taken.
    pub(crate) fn waiting(&self) -> usize {
        self.waits.len()
    }

    /// How many objects are to be written.
    pub(crate) fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// Decisions of these kinds went away or were changed by others.
    pub(crate) fn reopen(&mut self, kinds: impl IntoIterator<Item = Kind>) {
        self.unclosed.extend(kinds);
    }

    /// Takes what the core decided. Its new revisions are higher than [`Self::given`]; what they are is told by when they
    /// are written.
    pub(crate) fn decide(&mut self, written: &impl Written, outcome: Outcome) {
        for (key, status) in outcome.policies {
            let class = written.policy(&key).classify(|last| {
                let is_same = last == Some(&status);
                (!is_same).then_some(Class::Decision)
            });
            self.put(
                written,
                (Kind::RolloutPolicy, key),
                Status::Policy(status),
                class,
            );
        }
        for (key, status) in outcome.pools {
            let class = written.pool(&key).classify(|last| {
                let decision = last.and_then(|last| last.decision.as_ref());
                if decision == status.decision.as_ref() {
                    (last != Some(&status)).then_some(Class::Quiet)
                } else {
                    Some(Class::Decision)
                }
            });
            self.put(
                written,
                (Kind::RealServerPool, key),
                Status::Pool(status),
                class,
            );
        }
        for (key, status) in outcome.virtual_servers {
            let class = written.virtual_server(&key).classify(|last| {
                let decision = last.and_then(|last| last.decision.as_ref());
                if decision != status.decision.as_ref() {
                    Some(Class::Decision)
                } else if last == Some(&status) {
                    None
                } else if acknowledged(last) != acknowledged(Some(&status)) {
                    // The next decision would hide it.
                    Some(Class::News)
                } else {
                    Some(Class::Quiet)
                }
            });
            let status = Status::VirtualServer(status);
            self.put(written, (Kind::VirtualServer, key), status, class);
        }
    }

    /// Forgets an object that is gone.
    pub(crate) fn forget(&mut self, object: &Object) {
        self.remove(object);
        self.doubtful.remove(object);
        self.waits.end(object);
    }

    /// Forgets the objects for which `exists` is false.
    pub(crate) fn retain(&mut self, exists: impl Fn(&Object) -> bool) {
        let known = self.classes.keys().chain(self.doubtful.keys());
        let known = known.chain(self.waits.keys());
        let gone: Vec<Object> = known.filter(|object| !exists(object)).cloned().collect();
        for object in gone {
            self.forget(&object);
        }
    }

    /// The next write. It counts as under way until [`Self::answered`].
    pub(crate) fn next(&mut self, written: &impl Written, now_ms: u64) -> Next {
        if let Some(pause) = self.pause
            && now_ms < pause.end_ms()
        {
            return Next::At(pause.end_ms());
        }
        let mut due = self.release(now_ms);
        if self.flying.len() >= self.at_once {
            return Next::Idle;
        }
        let overdue = self
            .news_ms
            .is_some_and(|since| now_ms >= since + DECISIONS_FIRST_MS);
        let classes = if overdue && self.decisions >= DECISIONS_PER_NEWS {
            [Class::News, Class::Decision]
        } else {
            [Class::Decision, Class::News]
        };
        for turn in [Turn::First, Turn::Last] {
            for class in classes {
                if let Some(place) = self.pick(written, class, turn, now_ms, &mut due) {
                    return self.send(&place, turn, now_ms);
                }
                if class == Class::Decision
                    && turn == Turn::First
                    && let Some(write) = self.close(written, now_ms, &mut due)
                {
                    return write;
                }
            }
        }
        due.map_or(Next::Idle, Next::At)
    }

    /// Takes the answer to a write. Returns whether it is another failure than the last one at this object.
    pub(crate) fn answered(
        &mut self,
        object: &Object,
        answer: Result<(), &Failure>,
        now_ms: u64,
    ) -> bool {
        let Some(flight) = self.flying.remove(object) else {
            return false;
        };
        match answer {
            Ok(()) => {
                self.pause = None;
                self.waits.end(object);
                self.doubtful.remove(object);
                if flight.gives_numbers() {
                    self.unclosed.insert(object.0);
                }
                let pending = self.pending(object);
                if pending.is_some() && pending == flight.pending.as_ref() {
                    self.remove(object);
                }
                false
            }
            Err(Failure::Gone) => {
                self.forget(object);
                true
            }
            Err(failure) => {
                if let Failure::Unavailable(_) = failure {
                    self.pause = Some(Pause::after(self.pause, &flight, now_ms));
                    if let Some(revision) = flight.revision {
                        self.doubtful.entry(object.clone()).or_insert(revision);
                    }
                }
                self.waits.failed(object, flight.version, failure, now_ms)
            }
        }
    }

    fn put(
        &mut self,
        written: &impl Written,
        object: Object,
        status: Status,
        class: Option<Class>,
    ) {
        let numbers = status.numbers().unwrap_or_default();
        let lowest = self.doubtful.get(&object);
        let doubtful = lowest.is_some_and(|lowest| numbers.revision >= *lowest);
        let Some(mut class) = class.or(doubtful.then_some(Class::Decision)) else {
            self.remove(&object);
            if !self.flying.contains_key(&object) {
                self.waits.end(&object);
            }
            return;
        };
        let last = self.remove(&object);
        if doubtful {
            class = Class::Decision;
        } else if class == Class::Quiet && last == Some(Class::News) {
            class = Class::News;
        }
        let pending = Pending {
            is_new: doubtful || numbers.revision > self.given,
            version: written.version(&object),
            status,
        };
        if let Status::Pool(status) = &pending.status
            && let Some(rank) = loses(written.pool(&object.1).status(), status)
        {
            self.losing.insert(object.1.clone(), rank);
        }
        let place = (class, self.rank(&object), object.1.clone());
        self.pending.insert(place, pending);
        self.classes.insert(object, class);
    }

    fn place(&self, object: &Object) -> Option<Place> {
        let class = *self.classes.get(object)?;
        Some((class, self.rank(object), object.1.clone()))
    }

    fn rank(&self, object: &Object) -> Rank {
        let rank = Rank::of(object.0);
        let losing = self.losing.get(&object.1).filter(|_| rank == Rank::Pool);
        losing.copied().unwrap_or(rank)
    }

    fn pending(&self, object: &Object) -> Option<&Pending> {
        self.pending.get(&self.place(object)?)
    }

    fn remove(&mut self, object: &Object) -> Option<Class> {
        let place = self.place(object)?;
        self.pending.remove(&place);
        if object.0 == Kind::RealServerPool {
            self.losing.remove(&object.1);
        }
        self.classes.remove(object)
    }

    fn of_class(&self, class: Class) -> impl Iterator<Item = (&Place, &Pending)> {
        let first = (class, Rank::Policy, ObjectKey::default());
        let places = self.pending.range(first..);
        places.take_while(move |(place, _)| place.0 == class)
    }

    /// Makes news of what is quiet, if it is time. Returns when it will be.
    fn release(&mut self, now_ms: u64) -> Option<u64> {
        let due_ms = self.quiet_ms.map_or(0, |last| last + CALM_MS);
        let is_any = self.of_class(Class::Quiet).next().is_some();
        let is_due = now_ms >= due_ms;
        if is_due && is_any {
            self.quiet_ms = Some(now_ms);
            let first = (Class::Quiet, Rank::Policy, ObjectKey::default());
            for ((_, rank, key), pending) in self.pending.split_off(&first) {
                self.classes.insert((rank.kind(), key.clone()), Class::News);
                self.pending.insert((Class::News, rank, key), pending);
            }
        }
        if self.of_class(Class::News).next().is_none() {
            self.news_ms = None;
        } else {
            self.news_ms.get_or_insert(now_ms);
        }
        (!is_due && is_any).then_some(due_ms)
    }

    fn pick(
        &self,
        written: &impl Written,
        class: Class,
        turn: Turn,
        now_ms: u64,
        due: &mut Option<u64>,
    ) -> Option<Place> {
        if turn == Turn::Last {
            let flying = self.flying.values();
            let last = flying.filter(|flight| flight.turn == Turn::Last).count();
            // However long these take, the others have half of the places.
            if self.waits.len() == 0 || last > 0 && last >= self.at_once / 2 {
                return None;
            }
        }
        let place = self.of_class(class).find(|(place, pending)| {
            let object = object(place);
            let is_turn = self.waits.comes_last(&object) == (turn == Turn::Last);
            let is_current = pending.version == written.version(&object);
            if !is_turn || !is_current || self.flying.contains_key(&object) {
                return false;
            }
            let from_ms = self.begin_ms(written, &object, pending, now_ms);
            if let Some(from_ms) = from_ms.filter(|from_ms| *from_ms > now_ms) {
                *due = Some(due.map_or(from_ms, |due| due.min(from_ms)));
            }
            from_ms.is_some_and(|from_ms| from_ms <= now_ms)
        });
        place.map(|(place, _)| place.clone())
    }

    /// From when a status may be written; `None`: not before something else is.
    fn begin_ms(
        &self,
        written: &impl Written,
        object: &Object,
        pending: &Pending,
        now_ms: u64,
    ) -> Option<u64> {
        let from_ms = self.waits.due_ms(object, written.version(object));
        if self.classes.get(object) != Some(&Class::Decision) {
            return Some(from_ms);
        }
        match &pending.status {
            Status::Pool(status) if written.slices_are_ahead(&object.1, status) => {
                Some(from_ms.max(now_ms + SLICES_MS))
            }
            Status::Pool(_) if self.awaits_gains(object) => None,
            Status::Pool(_) | Status::Policy(_) => Some(from_ms),
            Status::VirtualServer(status) => {
                let is_ready = !self.is_driven_anew(&object.1)
                    && needed(&object.1, status).all(|pool| !self.is_undecided(pool));
                is_ready.then_some(from_ms)
            }
        }
    }

    fn is_undecided(&self, pool: ObjectKey) -> bool {
        let pool = (Kind::RealServerPool, pool);
        self.classes.get(&pool) == Some(&Class::Decision)
    }

    /// Whether a pool loses servers while the decision of another one is being written to which they may move.
    fn awaits_gains(&self, object: &Object) -> bool {
        let rank = self.rank(object);
        let mut flying = self.flying.iter();
        rank != Rank::Pool
            && flying.any(|(other, flight)| {
                other.0 == Kind::RealServerPool
                    && other.1.namespace == object.1.namespace
                    && flight.turn == Turn::First
                    && self.rank(other) < rank
            })
    }

    /// Whether a policy that drives this virtual server is not written yet.
    fn is_driven_anew(&self, key: &ObjectKey) -> bool {
        let policies = self.of_class(Class::Decision);
        let mut policies = policies.take_while(|(place, _)| place.1 == Rank::Policy);
        policies.any(|(place, pending)| {
            let Status::Policy(status) = &pending.status else {
                return false;
            };
            let run = status.run.as_ref();
            run.is_some_and(|run| place.2.sibling(&run.virtual_server_name) == *key)
        })
    }

    fn send(&mut self, place: &Place, turn: Turn, now_ms: u64) -> Next {
        let Some(pending) = self.pending.get(place).cloned() else {
            return Next::Idle;
        };
        let object = object(place);
        let mut status = pending.status.clone();
        let mut revision = None;
        if pending.is_new && status.numbers().is_some() {
            self.given += 1;
            let lowest = self.lowest_under_way(object.0);
            let complete = lowest.map_or(self.given, |lowest| lowest - 1);
            status.number(Numbers {
                revision: self.given,
                complete,
            });
            revision = Some(self.given);
        }
        self.decisions = match place.0 {
            Class::Decision => self.decisions.saturating_add(1),
            Class::News | Class::Quiet => 0,
        };
        let flight = Flight {
            revision,
            version: pending.version,
            sent_ms: now_ms,
            turn,
            pending: Some(pending),
        };
        self.flying.insert(object.clone(), flight);
        Next::Write(Box::new(Write { object, status }))
    }

    fn lowest_under_way(&self, kind: Kind) -> Option<u64> {
        let flying = self.flying.iter().filter(|(object, _)| object.0 == kind);
        flying.filter_map(|(_, flight)| flight.revision).min()
    }

    /// Says in one decision of a kind that all are complete, if none says so.
    fn close(
        &mut self,
        written: &impl Written,
        now_ms: u64,
        due: &mut Option<u64>,
    ) -> Option<Next> {
        for kind in self.unclosed.clone() {
            let mut flying = self.flying.iter();
            if flying.any(|(object, flight)| object.0 == kind && flight.gives_numbers()) {
                continue;
            }
            let mut decided = written.decided(kind);
            let highest = decided.iter().map(|(_, numbers)| numbers.revision).max();
            let complete = decided.iter().map(|(_, numbers)| numbers.complete).max();
            if complete >= highest {
                self.unclosed.remove(&kind);
                continue;
            }
            decided.sort_by_key(|(_, numbers)| std::cmp::Reverse(numbers.revision));
            for (key, numbers) in decided {
                let object = (kind, key.clone());
                let from_ms = self.waits.due_ms(&object, written.version(&object));
                if from_ms > now_ms {
                    *due = Some(due.map_or(from_ms, |due| due.min(from_ms)));
                } else if self.classes.get(&object) != Some(&Class::Decision)
                    && !self.flying.contains_key(&object)
                {
                    let complete = highest.unwrap_or_default();
                    let numbers = Numbers {
                        complete,
                        ..numbers
                    };
                    return self.rewrite(written, object, numbers, now_ms);
                }
            }
        }
        None
    }

    /// Writes what stands, with these numbers.
    fn rewrite(
        &mut self,
        written: &impl Written,
        object: Object,
        numbers: Numbers,
        now_ms: u64,
    ) -> Option<Next> {
        let mut status = match object.0 {
            Kind::VirtualServer => {
                Status::VirtualServer(written.virtual_server(&object.1).status()?.clone())
            }
            Kind::RealServerPool => Status::Pool(written.pool(&object.1).status()?.clone()),
            Kind::RolloutPolicy | Kind::LoadBalancerNode | Kind::AddressPool => return None,
        };
        status.number(numbers);
        let flight = Flight {
            revision: None,
            version: written.version(&object),
            sent_ms: now_ms,
            turn: Turn::First,
            pending: None,
        };
        self.flying.insert(object.clone(), flight);
        Some(Next::Write(Box::new(Write { object, status })))
    }
}

/// The last revision that every live node acknowledged.
fn acknowledged(status: Option<&VirtualServerStatus>) -> u64 {
    let acknowledged = status.and_then(|status| status.acknowledged.as_ref());
    acknowledged.map_or(0, |acknowledged| acknowledged.revision)
}

/// The rank of a decision that lacks a server, by address and ports, that the one before has.
fn loses(before: Option<&RealServerPoolStatus>, after: &RealServerPoolStatus) -> Option<Rank> {
    let servers = |status: &RealServerPoolStatus| -> BTreeSet<_> {
        let decision = status.decision.iter();
        let servers = decision.flat_map(|decision| &decision.content.servers);
        let identity = |server: &DecidedServer| (server.address, server.target_ports.clone());
        servers.map(identity).collect()
    };
    let (before, after) = (servers(before?), servers(after));
    let gains = !after.is_subset(&before);
    (!before.is_subset(&after)).then_some(if gains {
        Rank::PoolThatExchanges
    } else {
        Rank::PoolThatLoses
    })
}

/// The pools that a decision sends flows to.
fn needed<'a>(
    key: &'a ObjectKey,
    status: &'a VirtualServerStatus,
) -> impl Iterator<Item = ObjectKey> + 'a {
    let pools = status
        .decision
        .iter()
        .flat_map(|decision| &decision.content.pools);
    let pools = pools.filter(|pool| pool.weight > 0);
    pools.map(|pool| key.sibling(&pool.name))
}
