//! An API server that takes, refuses, or loses what a schedule writes, and checks each write that it takes:
//!
//! - *Claims.* A node that has read everything before this write claims up to the highest complete revision in it. A new
//!   revision that is not higher would be acknowledged unseen.
//! - *Needs.* A virtual server's pools and policy stand as they were wanted when it was.

use std::collections::BTreeMap;

use sluice_api::jiff::Timestamp;
use sluice_api::{
    DecidedPool, DecidedRealServerPool, DecidedVirtualServer, Decision, ExternalTrafficPolicy,
    ForwardingMode, Kind, ObjectKey, PoolDecision, PoolSelection, RealServerPoolStatus,
    RolloutPolicyStatus, RolloutRun, ServerSelection, Time, VirtualServerStatus, WhenAllDown,
};

use super::super::*;
use crate::core::Outcome;

/// How long a write that hangs is waited for.
const DEADLINE_MS: u64 = 10_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    Taken,
    Refused,
    Failed,
    Unavailable,
    /// No answer until the deadline, and then `Unavailable`.
    Hangs,
}

/// The content that an object is to have: `content` makes the decision, `quiet` does not.
#[derive(Clone, Debug, Default)]
struct Wanted {
    content: i64,
    quiet: i64,
    pools: [u32; 2],
    /// The contents of the pools, and of the policy, that this content needs.
    needs: Vec<(Object, i64)>,
}

#[derive(Clone, Debug, Default)]
struct Stored {
    status: Option<Status>,
    version: u64,
}

struct Sent {
    write: Write,
    version: u64,
    at_ms: u64,
}

pub(super) struct Sim {
    schedule: Schedule,
    wanted: BTreeMap<Object, Wanted>,
    stored: Server,
    under_way: Vec<Sent>,
    lost: Vec<Sent>,
    /// Revisions that arrived late.
    late: Vec<(Object, u64)>,
    versions: u64,
    /// The highest complete revision that nodes may have read.
    claims: BTreeMap<Kind, u64>,
    pub(super) now_ms: u64,
    pub(super) writes: usize,
    pub(super) faults: Vec<String>,
}

#[derive(Default)]
struct Server(BTreeMap<Object, Stored>);

pub(super) fn key(kind: &str, name: usize) -> ObjectKey {
    ObjectKey::new("default", format!("{kind}{name}"))
}

fn content(status: &Status) -> i64 {
    match status {
        Status::VirtualServer(status) => status.decision.as_ref().map_or(0, |d| d.generation),
        Status::Pool(status) => status.decision.as_ref().map_or(0, |d| d.generation),
        Status::Policy(status) => status.observed_generation,
    }
}

fn quiet(status: &Status) -> i64 {
    match status {
        Status::VirtualServer(status) => status.observed_generation,
        Status::Pool(status) => status.observed_generation,
        Status::Policy(_) => 0,
    }
}

impl Written for Server {
    fn virtual_server(&self, key: &ObjectKey) -> Stands<'_, VirtualServerStatus> {
        match self
            .0
            .get(&(Kind::VirtualServer, key.clone()))
            .map(|stored| &stored.status)
        {
            None => Stands::Nowhere,
            Some(Some(Status::VirtualServer(status))) => Stands::Written(status),
            Some(_) => Stands::Unwritten,
        }
    }

    fn pool(&self, key: &ObjectKey) -> Stands<'_, RealServerPoolStatus> {
        match self
            .0
            .get(&(Kind::RealServerPool, key.clone()))
            .map(|stored| &stored.status)
        {
            None => Stands::Nowhere,
            Some(Some(Status::Pool(status))) => Stands::Written(status),
            Some(_) => Stands::Unwritten,
        }
    }

    fn policy(&self, key: &ObjectKey) -> Stands<'_, RolloutPolicyStatus> {
        match self
            .0
            .get(&(Kind::RolloutPolicy, key.clone()))
            .map(|stored| &stored.status)
        {
            None => Stands::Nowhere,
            Some(Some(Status::Policy(status))) => Stands::Written(status),
            Some(_) => Stands::Unwritten,
        }
    }

    fn version(&self, object: &Object) -> u64 {
        self.0.get(object).map_or(0, |stored| stored.version)
    }

    fn decided(&self, kind: Kind) -> Vec<(&ObjectKey, Numbers)> {
        let all = self.0.iter().filter(|((of, _), _)| *of == kind);
        all.filter_map(|((_, key), stored)| Some((key, stored.status.as_ref()?.numbers()?)))
            .collect()
    }

    fn slices_are_ahead(&self, _: &ObjectKey, _: &RealServerPoolStatus) -> bool {
        false
    }
}

impl Sim {
    pub(super) fn new(at_once: usize) -> Self {
        Self {
            schedule: Schedule::new(at_once),
            wanted: BTreeMap::new(),
            stored: Server::default(),
            under_way: Vec::new(),
            lost: Vec::new(),
            late: Vec::new(),
            versions: 0,
            claims: BTreeMap::new(),
            now_ms: 0,
            writes: 0,
            faults: Vec::new(),
        }
    }

    fn want(&mut self, object: Object) -> &mut Wanted {
        self.versions += 1;
        let (contents, version) = (i64::try_from(self.versions).expect("small"), self.versions);
        self.stored.0.entry(object.clone()).or_default().version = version;
        let wanted = self.wanted.entry(object).or_default();
        wanted.content = contents;
        wanted
    }

    pub(super) fn want_pool(&mut self, name: usize) {
        self.want((Kind::RealServerPool, key("p", name)));
    }

    pub(super) fn want_policy(&mut self, name: usize) {
        self.want((Kind::RolloutPolicy, key("s", name)));
        self.want_server(name, [1, 1]);
    }

    pub(super) fn want_server(&mut self, name: usize, pools: [u32; 2]) {
        let used = (0..2).filter(|pool| pools[*pool] > 0);
        let needs = used.map(|pool| (Kind::RealServerPool, key("p", pool)));
        let needs = needs.chain([(Kind::RolloutPolicy, key("s", name))]);
        let needs = needs.filter_map(|need| Some((need.clone(), self.wanted.get(&need)?.content)));
        let needs = needs.collect();
        let wanted = self.want((Kind::VirtualServer, key("s", name)));
        (wanted.pools, wanted.needs) = (pools, needs);
    }

    pub(super) fn want_quiet(&mut self, name: usize) {
        if let Some(wanted) = self.wanted.get_mut(&(Kind::VirtualServer, key("s", name))) {
            wanted.quiet += 1;
        }
    }

    pub(super) fn remove_server(&mut self, name: usize) {
        let object = (Kind::VirtualServer, key("s", name));
        self.wanted.remove(&object);
        self.stored.0.remove(&object);
    }

    /// Decides as a core would: every object's wanted content, with the numbers that stand if the content does.
    pub(super) fn decide(&mut self) {
        let mut outcome = Outcome::default();
        let mut next = self.schedule.given();
        for ((kind, key), wanted) in &self.wanted {
            let stored = &self.stored.0[&(*kind, key.clone())];
            let last = stored
                .status
                .as_ref()
                .filter(|s| content(s) == wanted.content);
            let numbers = last.and_then(Status::numbers).unwrap_or_else(|| {
                next += 1;
                Numbers {
                    revision: next,
                    complete: 0,
                }
            });
            match kind {
                Kind::VirtualServer => {
                    let status = virtual_server(wanted, numbers);
                    outcome.virtual_servers.insert(key.clone(), status);
                }
                Kind::RealServerPool => {
                    let status = RealServerPoolStatus {
                        decision: Some(PoolDecision {
                            revision: numbers.revision,
                            complete_revision: numbers.complete,
                            generation: wanted.content,
                            content: DecidedRealServerPool::default(),
                        }),
                        ..RealServerPoolStatus::default()
                    };
                    outcome.pools.insert(key.clone(), status);
                }
                Kind::RolloutPolicy | Kind::LoadBalancerNode | Kind::AddressPool => {
                    let status = RolloutPolicyStatus {
                        observed_generation: wanted.content,
                        run: Some(RolloutRun {
                            id: String::new(),
                            virtual_server_name: key.name.clone(),
                            stable_pool_name: String::new(),
                            candidate_pool_name: String::new(),
                            start_time: Time(Timestamp::UNIX_EPOCH),
                        }),
                        ..RolloutPolicyStatus::default()
                    };
                    outcome.policies.insert(key.clone(), status);
                }
            }
        }
        let stored = &self.stored;
        self.schedule
            .reopen([Kind::VirtualServer, Kind::RealServerPool]);
        self.schedule.retain(|object| stored.0.contains_key(object));
        self.schedule.decide(stored, outcome);
    }

    /// Starts all writes that are due. Returns until when there is nothing more.
    pub(super) fn start(&mut self) {
        self.next();
    }

    fn next(&mut self) -> Option<u64> {
        loop {
            match self.schedule.next(&self.stored, self.now_ms) {
                Next::Write(write) => {
                    self.writes += 1;
                    self.under_way.push(Sent {
                        version: self.stored.version(&write.object),
                        write: *write,
                        at_ms: self.now_ms,
                    });
                }
                Next::At(ms) => return Some(ms),
                Next::Idle => return None,
            }
        }
    }

    pub(super) fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Gives the nth write under way this answer.
    pub(super) fn land(&mut self, nth: usize, answer: Answer) {
        if self.under_way.is_empty() {
            return;
        }
        let sent = self.under_way.swap_remove(nth % self.under_way.len());
        let object = sent.write.object.clone();
        let text = String::new();
        let failure = match answer {
            Answer::Taken => match self.stored.0.get(&object) {
                None => Some(Failure::Gone),
                Some(stored) if stored.version != sent.version => Some(Failure::Stale),
                Some(_) => {
                    self.check(&sent.write);
                    self.store(sent);
                    None
                }
            },
            Answer::Refused => Some(Failure::Refused(text)),
            Answer::Failed => Some(Failure::Failed(text)),
            Answer::Unavailable | Answer::Hangs => {
                self.lost.push(sent);
                Some(Failure::Unavailable(text))
            }
        };
        let answer = failure.as_ref().map_or(Ok(()), Err);
        self.schedule.answered(&object, answer, self.now_ms);
    }

    /// A write that had no answer arrives, if its object has not changed. Its revision may have been claimed: it must not
    /// stay.
    pub(super) fn arrive_late(&mut self, nth: usize) {
        if self.lost.is_empty() {
            return;
        }
        let sent = self.lost.swap_remove(nth % self.lost.len());
        let stored = self.stored.0.get(&sent.write.object);
        if let Some(stored) = stored.filter(|stored| stored.version == sent.version) {
            let revision = |status: &Status| status.numbers().map(|numbers| numbers.revision);
            let stands = stored.status.as_ref();
            let new = revision(&sent.write.status);
            if stands.and_then(revision) != new {
                self.late
                    .extend(new.map(|new| (sent.write.object.clone(), new)));
            }
            self.store(sent);
        }
    }

    fn store(&mut self, sent: Sent) {
        let Write { object, status } = sent.write;
        self.versions += 1;
        let numbers = status.numbers().unwrap_or_default();
        let claim = self.claims.entry(object.0).or_default();
        *claim = (*claim).max(numbers.complete);
        let version = self.versions;
        let status = Some(status);
        self.stored.0.insert(object, Stored { status, version });
    }

    fn check(&mut self, write: &Write) {
        let Write { object, status } = write;
        let stands = self.stored.0[object].status.as_ref();
        let before = stands.and_then(Status::numbers).map(|n| n.revision);
        let claim = self.claims.get(&object.0).copied().unwrap_or_default();
        if let Some(Numbers { revision, .. }) = status.numbers()
            && before != Some(revision)
            && revision <= claim
        {
            let fault = format!("{object:?} gets revision {revision}, and {claim} is claimed");
            self.faults.push(fault);
        }
        let wanted = self.wanted.get(object);
        for (need, least) in wanted.iter().flat_map(|wanted| &wanted.needs) {
            let is_current = wanted.is_some_and(|wanted| wanted.content == content(status));
            let there = self
                .stored
                .0
                .get(need)
                .and_then(|stored| stored.status.as_ref());
            if is_current && there.map_or(0, content) < *least {
                self.faults.push(format!("{object:?} before {need:?}"));
            }
        }
    }

    /// Decides, writes and answers for a while. What hangs has its answer in the end.
    pub(super) fn settle(&mut self, answer: impl Fn(&Object) -> Answer) {
        let end_ms = self.now_ms + 180_000;
        while self.now_ms < end_ms {
            self.decide();
            let due = self.next();
            let now_ms = self.now_ms;
            let lands = |sent: &Sent| {
                answer(&sent.write.object) != Answer::Hangs || now_ms >= sent.at_ms + DEADLINE_MS
            };
            if let Some(nth) = self.under_way.iter().position(lands) {
                let object = &self.under_way[nth].write.object;
                self.land(nth, answer(object));
                continue;
            }
            if due.is_none() && self.under_way.is_empty() {
                return;
            }
            let hanging = self.under_way.iter().map(|sent| sent.at_ms + DEADLINE_MS);
            let next = due.into_iter().chain(hanging).min();
            self.now_ms = next.map_or(end_ms, |next| next.max(now_ms + 1));
        }
    }

    /// Objects that do not stand as they are wanted.
    pub(super) fn unsettled(&self, which: impl Fn(&Object) -> bool) -> Vec<Object> {
        let wanted = self.wanted.iter().filter(|(object, _)| which(object));
        let differs = wanted.filter(|(object, wanted)| {
            let status = self.stored.0[*object].status.as_ref();
            status.is_none_or(|status| {
                content(status) != wanted.content || quiet(status) != wanted.quiet
            })
        });
        differs.map(|(object, _)| object.clone()).collect()
    }

    /// Objects that have a revision which arrived late.
    pub(super) fn doubtful(&self) -> Vec<Object> {
        let late = self.late.iter().filter(|(object, revision)| {
            let stored = self.stored.0.get(object);
            let numbers = stored.and_then(|stored| stored.status.as_ref()?.numbers());
            numbers.is_some_and(|numbers| numbers.revision == *revision)
        });
        late.map(|(object, _)| object.clone()).collect()
    }

    /// Whether this virtual server needs that pool.
    pub(super) fn needs(&self, object: &Object, pool: &ObjectKey) -> bool {
        let pools = self.wanted[object].pools;
        (0..2).any(|name| pools[name] > 0 && key("p", name) == *pool)
    }

    /// Whether a node that reads what stands claims all of it, and what stands may be claimed.
    pub(super) fn is_closed(&self) -> bool {
        [Kind::VirtualServer, Kind::RealServerPool]
            .into_iter()
            .all(|kind| {
                let decided = self.stored.decided(kind);
                let highest = decided.iter().map(|(_, numbers)| numbers.revision).max();
                let complete = decided.iter().map(|(_, numbers)| numbers.complete).max();
                complete >= highest
            })
    }
}

fn virtual_server(wanted: &Wanted, numbers: Numbers) -> VirtualServerStatus {
    let pools = wanted.pools.iter().enumerate();
    let pools = pools.map(|(name, weight)| DecidedPool {
        name: key("p", name).name,
        weight: *weight,
        spec_weight: *weight,
    });
    VirtualServerStatus {
        observed_generation: wanted.quiet,
        decision: Some(Decision {
            revision: numbers.revision,
            complete_revision: numbers.complete,
            generation: wanted.content,
            content: DecidedVirtualServer {
                addresses: Vec::new(),
                ports: Vec::new(),
                mode: ForwardingMode::Nat,
                pool_selection: PoolSelection::Flow,
                server_selection: ServerSelection::Flow,
                external_traffic_policy: ExternalTrafficPolicy::Cluster,
                when_all_down: WhenAllDown::LastKnown,
                fallback: None,
                sources: None,
                pools: pools.collect(),
                groups: Vec::new(),
            },
        }),
        ..VirtualServerStatus::default()
    }
}
