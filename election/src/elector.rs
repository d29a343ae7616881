//! The state machine: what is known, and in which order it is looked at.

use std::collections::BTreeMap;
use std::mem;
use std::time::Duration;

use crate::hold::Hold;
use crate::lease::Lease;
use crate::path::{Bound, Path};
use crate::patience::Patience;
use crate::{
    Action, Authority, Candidate, Coordination, Event, Health, Hindrance, MAX_PATHS, Outcome, Role,
    Settings, Source, State, Time, WriteId, ranked,
};

/// Time before a write is tried again that was refused at once.
const RETRY: Duration = Duration::from_millis(250);

/// A suspicion that nothing has refuted.
#[derive(Clone, Debug)]
pub(crate) struct Suspicion {
    pub(crate) name: String,
    pub(crate) since: Time,
    /// Paths on which the holder was silent.
    pub(crate) paths: Vec<usize>,
}

/// Decides for one VIP group on one node. [`Elector::on`] takes news in, [`Elector::tick`] says what is due.
///
/// ```text
///             ┌──────────── renewed, or nobody else answers ─┐
///             ▼                                              │
/// candidate ─► holder ── another's name, a better peer ──► candidate, or suspected: claims nothing for a while
///     ▲         │  │
///     │         │  └── deadline passed without either ──────► candidate
///     └─────────┴───── handed over or released
/// ```
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, each with a name of its own"
)]
pub struct Elector {
    pub(crate) node: String,
    pub(crate) settings: Settings,
    group: String,
    candidates: Option<BTreeMap<String, bool>>,
    /// The candidates' names, best first.
    pub(crate) ranked: Vec<String>,
    health: Option<Health>,
    is_drained: bool,
    pub(crate) is_ending: bool,
    /// A former process of this node may have armed the kernel.
    pub(crate) may_be_armed: bool,
    pub(crate) lease: Lease,
    pub(crate) hold: Option<Hold>,
    /// The Lease was given to this node while it was valid.
    pub(crate) is_named: bool,
    /// This node tried to take the Lease: its name there may be its own doing.
    pub(crate) has_tried: bool,
    /// To whom this node last handed over.
    pub(crate) gave_to: Option<String>,
    pub(crate) paths: Vec<Path>,
    /// Who is believed to hold, other than this node, and when it was last heard.
    pub(crate) believed: Option<String>,
    pub(crate) believed_heard: Option<Time>,
    pub(crate) patience: Patience,
    /// Whom this node suspected last.
    pub(crate) suspected: Option<Suspicion>,
    /// When this node lost the group by suspicion.
    pub(crate) lost: Option<Time>,
    /// When the wait before a claim ends.
    pub(crate) claim: Option<Time>,
    pub(crate) retry_at: Time,
    /// The write that gives no right any more.
    pub(crate) void: Option<WriteId>,
    pub(crate) out: Vec<Action>,
    wake: Option<Time>,
    #[cfg(test)]
    pub(crate) flaw: Option<crate::tests::Flaw>,
}

impl Elector {
    /// Knows nothing yet and holds nothing. What a former process armed goes on until its deadline, or until this elector
    /// learns that it must not. `group` and `node` are names as in the Lease and the peers' records.
    pub fn new(group: &str, node: &str, settings: Settings, now: Time) -> Self {
        Self {
            node: node.to_owned(),
            settings,
            group: group.to_owned(),
            candidates: None,
            ranked: Vec::new(),
            health: None,
            is_drained: false,
            is_ending: false,
            may_be_armed: true,
            lease: Lease::default(),
            hold: None,
            is_named: false,
            has_tried: false,
            gave_to: None,
            paths: Vec::new(),
            believed: None,
            believed_heard: None,
            patience: Patience::default(),
            suspected: None,
            lost: None,
            claim: None,
            retry_at: now,
            void: None,
            out: Vec::new(),
            wake: Some(now),
            #[cfg(test)]
            flaw: None,
        }
    }

    /// Takes news in. What follows from it is due at the next [`Elector::tick`].
    pub fn on(&mut self, event: Event, now: Time) {
        self.wake = Some(now);
        self.lapse(now);
        match event {
            Event::Candidates(candidates) => self.on_candidates(candidates),
            Event::Paths(count) => {
                let count = count.min(MAX_PATHS);
                if count != self.paths.len() {
                    self.paths = vec![Path::default(); count];
                }
            }
            Event::Health(health) => self.health = Some(health),
            Event::Witness(witness) => self.settings.witness = witness,
            Event::LeaseRead(view) => {
                self.lease.was_read(now, &self.settings);
                self.learn(view, now);
            }
            Event::LeaseUnreachable => self.lease.was_not_read(now, &self.settings),
            Event::ServerLost => self.lease.was_lost(now, &self.settings),
            Event::Written { id, outcome } => self.on_written(id, outcome, now),
            Event::Answer { path, from } => self.on_answer(path, from, now),
            Event::Drain(is_drained) => self.is_drained = is_drained,
            Event::Shutdown => self.is_ending = true,
        }
    }

    /// What is due: to be called after each [`Elector::on`] and at [`Elector::next_deadline`]. The actions are to be carried
    /// out in their order.
    pub fn tick(&mut self, now: Time) -> Vec<Action> {
        self.wake = None;
        self.give_up_requests(now);
        self.lapse(now);
        self.patience.calm(&self.settings, now);
        if self.candidates.is_some() && self.health.is_some() {
            if self.hold.is_some() {
                self.keep(now);
            }
            if self.hold.is_none() {
                self.seek(now);
            }
            self.send_probes(now);
        }
        self.await_deadline(now);
        self.read(now);
        mem::take(&mut self.out)
    }

    /// When [`Elector::tick`] has something to do though no news comes.
    pub fn next_deadline(&self) -> Option<Time> {
        self.wake
    }

    /// For status and metrics.
    pub fn state(&self) -> State {
        let hold = self.hold.as_ref();
        let hindrance = self.hindrance();
        let role = match (hold, hindrance) {
            (Some(_), _) => Role::Holder,
            (None, None) => Role::Candidate,
            (None, Some(_)) => Role::Bystander,
        };
        let own = hold.map(|_| self.node.clone());
        let named = || self.lease.holder().map(str::to_owned);
        let is_written = self.lease.pending().is_none()
            && (!self.is_named_here() || self.lease.unreachable_from(&self.settings).is_some());
        State {
            role,
            rank: Some(self.rank(&self.node)).filter(|rank| *rank < self.ranked.len()),
            authority: hold.map(|hold| hold.authority),
            until: hold.map(|hold| hold.until),
            holder: own.or_else(|| self.believed.clone()).or_else(named),
            hindrance,
            heard: self.paths.iter().filter_map(Path::heard).max(),
            lacks_server: self.lease.unreachable_from(&self.settings).is_some(),
            is_finished: self.is_ending && hold.is_none() && is_written,
        }
    }

    fn on_candidates(&mut self, candidates: Vec<Candidate>) {
        let names = candidates.iter().map(|candidate| candidate.name.as_str());
        let names = ranked(&self.group, names);
        self.ranked = names.into_iter().map(str::to_owned).collect();
        let candidates = candidates.into_iter();
        self.candidates = Some(candidates.map(|c| (c.name, c.steady)).collect());
    }

    fn on_written(&mut self, id: WriteId, outcome: Outcome, now: Time) {
        let is_failure = matches!(outcome, Outcome::Failed);
        let Some((write, written)) = self.lease.was_written(id, outcome, now) else {
            return;
        };
        if is_failure {
            self.retry_at = now + RETRY;
        }
        let Some(view) = written else {
            return;
        };
        let renewed = view.renewed.clone();
        self.lease.was_read(now, &self.settings);
        let was_named = self.is_named;
        self.learn(view, now);
        if write.holder.as_ref() == Some(&self.node) {
            // Its own doing.
            self.is_named &= was_named;
            if self.void == Some(id) {
                return;
            }
            self.lease.was_renewed(now, &self.settings);
            self.granted(write.sent, now);
        } else if let Some(handing) = self.hold.as_mut().and_then(|hold| hold.handing.as_mut()) {
            handing.written = Some(renewed);
        }
    }

    fn on_answer(&mut self, path: usize, from: Source, now: Time) {
        if path >= self.paths.len() {
            return;
        }
        match from {
            Source::Peer(name) if name != self.node => self.on_peer(path, &name, now),
            Source::Witness => self.paths[path].on_witness(now),
            Source::Peer(_) | Source::Stranger => {}
        }
    }

    fn on_peer(&mut self, path: usize, name: &str, now: Time) {
        self.meet_rival(name, now);
        let is_known = self.believed.as_deref() == Some(name);
        let is_lately_heard = self
            .believed_heard
            .is_some_and(|heard| now.since(heard) <= self.settings.suspicion);
        // On the path where the holder is silent, whoever answers has taken over.
        let is_silent_here = self.paths[path].is_holder_silent(self.bound(), &self.settings, now);
        if !is_known && (!is_lately_heard || is_silent_here) {
            self.believe(Some(name));
        }
        let is_believed = self.believed.as_deref() == Some(name);
        if is_believed {
            self.believed_heard = Some(now);
        }
        if let Some(ended) = self.paths[path].on_peer(is_believed, now) {
            self.patience.bear(ended, &self.settings, now);
        }
        self.refute(name, path, now);
    }

    pub(crate) fn believe(&mut self, name: Option<&str>) {
        self.believed = name.map(str::to_owned);
        self.believed_heard = None;
        for path in &mut self.paths {
            path.forget_holder();
        }
    }

    /// Ends requests of which the caller says nothing.
    fn give_up_requests(&mut self, now: Time) {
        let read = self.lease.read_deadline(&self.settings);
        if read.is_some_and(|deadline| self.due(deadline, now)) {
            self.lease.was_not_read(now, &self.settings);
        }
        let write = self.lease.write_deadline(&self.settings);
        if write.is_some_and(|deadline| self.due(deadline, now))
            && let Some(id) = self.lease.pending().map(|pending| pending.id)
        {
            self.on_written(id, Outcome::TimedOut, now);
        }
    }

    fn read(&mut self, now: Time) {
        if self.settings.coordination == Coordination::Peers {
            return;
        }
        if let Some(next) = self.lease.next_read()
            && self.due(next, now)
        {
            self.lease.start_read(now);
            self.out.push(Action::ReadLease);
        }
        let deadline = self.lease.read_deadline(&self.settings);
        deadline.map(|deadline| self.due(deadline, now));
    }

    /// Whether this moment has come; if not, the elector wakes then.
    pub(crate) fn due(&mut self, time: Time, now: Time) -> bool {
        if time <= now {
            return true;
        }
        self.wake = Some(self.wake.map_or(time, |wake| wake.min(time)));
        false
    }

    /// Writes the Lease. Only when it is not busy.
    pub(crate) fn write(&mut self, holder: Option<String>, now: Time) {
        let (id, version) = self.lease.start_write(holder.clone(), now);
        #[cfg(test)]
        let version = self.flawed_version(version);
        self.out.push(Action::WriteLease {
            id,
            version,
            holder,
        });
        let deadline = self.lease.write_deadline(&self.settings);
        deadline.map(|deadline| self.due(deadline, now));
    }

    /// Why this node claims nothing.
    pub(crate) fn hindrance(&self) -> Option<Hindrance> {
        let unable = self.inability();
        unable.or_else(|| self.lost.map(|_| Hindrance::Suspected))
    }

    /// Why this node may not hold.
    pub(crate) fn inability(&self) -> Option<Hindrance> {
        let Some(candidates) = &self.candidates else {
            return Some(Hindrance::Unknown);
        };
        match self.health {
            None => Some(Hindrance::Unknown),
            Some(Health::Broken) => Some(Hindrance::Broken),
            _ if self.is_ending => Some(Hindrance::ShuttingDown),
            _ if self.is_drained => Some(Hindrance::Drained),
            _ if !candidates.contains_key(&self.node) => Some(Hindrance::NotListed),
            Some(Health::Whole) => None,
        }
    }

    /// Whether the Lease names this node.
    pub(crate) fn is_named_here(&self) -> bool {
        self.lease.holder() == Some(self.node.as_str())
    }

    /// Whether there is no API server, or it is out of reach.
    pub(crate) fn is_unreachable(&mut self, now: Time) -> bool {
        if self.settings.coordination == Coordination::Peers {
            return true;
        }
        let from = self.lease.unreachable_from(&self.settings);
        from.is_some_and(|from| self.due(from, now))
    }

    /// Whether a candidate's path was whole for the stable time. False for who is none.
    pub(crate) fn is_steady(&self, name: &str) -> bool {
        let candidates = self.candidates.as_ref();
        candidates.and_then(|candidates| candidates.get(name)) == Some(&true)
    }

    /// Candidates that rank better than this one; the last rank if it is none of them.
    pub(crate) fn rank(&self, name: &str) -> usize {
        let mut names = self.ranked.iter();
        names
            .position(|other| other == name)
            .unwrap_or(self.ranked.len())
    }

    /// The silence that this node bears.
    pub(crate) fn bound(&self) -> Bound {
        self.patience.bound(&self.settings)
    }

    /// By what right it holds.
    pub(crate) fn authority(&self) -> Option<Authority> {
        self.hold.as_ref().map(|hold| hold.authority)
    }
}
