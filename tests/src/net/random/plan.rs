//! What happens when: a pure function of the seed.
//!
//! Kinds of events are drawn from a bag that has each of them once, so that a short run has every kind too. What breaks
//! something comes with what mends it, a while later; whatever is broken at the end is mended. While a bag lasts, only two of
//! the modes are edited: what the others promise where nothing changes is looked at as well.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::net::fabric::DIRECTORS;
use crate::net::lab::Mode;
use crate::packet::random::Rng;

use super::service::{Edit, Service};

/// Time without events at the beginning, so that there are connections.
const BEFORE_MS: u32 = 3_000;
/// From one event to the next.
const GAP_MS: [u32; 2] = [200, 1_800];
/// How long the network is whole after it was not.
const WHOLE_MS: u32 = 4_000;
/// A removal counts when the directory has been still for 5 s.
const STILL_MS: u32 = 6_500;
/// From a server's move to one the other way: pools that exchange servers in one edit lose them for a moment.
const ONE_WAY_MS: u32 = 20_000;
/// How often an edit is drawn that may not be possible.
const TRIES: usize = 10;

/// Weights of pools, and of servers.
const SHARES: [[u32; 2]; 7] = [
    [100, 0],
    [0, 100],
    [50, 50],
    [90, 10],
    [1, 99],
    [3, 7],
    [99, 1],
];
const WEIGHTS: [u32; 5] = [0, 1, 2, 5, 100];

/// Something to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// Manifests of the mode are edited.
    Edit(Mode, Edit),
    /// The manifest of its virtual servers is truncated and half of it written.
    WriteHalf(Mode),
    /// It is written as it was.
    WriteWhole(Mode),
    /// A node's agent is killed.
    KillAgent(&'static str),
    /// It is started again.
    StartAgent(&'static str),
    /// The operator is killed.
    KillOperator,
    /// It is started again.
    StartOperator,
    /// A node's link goes down.
    CutLink(&'static str),
    /// It is up again.
    MendLink(&'static str),
    /// The router sends nothing of what both directors get to this one.
    Divert(&'static str),
    /// It spreads over both.
    Return,
    /// A director loses link, agent and maps, and the router takes the other one.
    LoseDirector(&'static str),
    /// It is back with nothing; the router spreads over both once it is ready.
    RebuildDirector(&'static str),
}

impl Action {
    /// What actions of this kind are counted under.
    pub(super) const fn kind(self) -> &'static str {
        match self {
            Self::Edit(_, Edit::Shares(_)) => "weights of pools",
            Self::Edit(_, Edit::ServerWeight { .. }) => "weights of servers",
            Self::Edit(_, Edit::PoolOut(_)) => "pools out",
            Self::Edit(_, Edit::PoolIn(_)) => "pools in",
            Self::Edit(_, Edit::ServerOut(_)) => "servers out",
            Self::Edit(_, Edit::ServerIn(_)) => "servers in",
            Self::Edit(_, Edit::Rename(_)) => "pools renamed",
            Self::Edit(_, Edit::Move(_)) => "servers moved",
            Self::Edit(_, Edit::SpareAway) => "ports changed",
            Self::Edit(_, Edit::SpareBack) => "ports changed back",
            Self::WriteHalf(_) => "manifests truncated",
            Self::WriteWhole(_) => "manifests written in place",
            Self::KillAgent(_) => "agents killed",
            Self::StartAgent(_) => "agents started",
            Self::KillOperator => "operators killed",
            Self::StartOperator => "operators started",
            Self::CutLink(node) if is_director(node) => "directors' links down",
            Self::MendLink(node) if is_director(node) => "directors' links up",
            Self::CutLink(_) => "servers' links down",
            Self::MendLink(_) => "servers' links up",
            Self::Divert(_) => "routes diverted",
            Self::Return => "routes back",
            Self::LoseDirector(_) => "directors lost",
            Self::RebuildDirector(_) => "directors rebuilt",
        }
    }
}

/// Servers' names begin otherwise.
const fn is_director(node: &str) -> bool {
    let [d, i, ..] = node.as_bytes() else {
        return false;
    };
    *d == b'd' && *i == b'i'
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {self:?}", self.kind())
    }
}

/// An action with its time from the beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Step {
    pub(super) at: Duration,
    pub(super) action: Action,
}

/// Nodes that run an agent.
pub(super) fn agents() -> Vec<&'static str> {
    let servers = [Mode::Dr, Mode::Tun].map(Mode::servers);
    DIRECTORS
        .into_iter()
        .chain(servers.into_iter().flatten())
        .collect()
}

/// What happens within `length`, and then until all is mended.
pub(super) fn plan(seed: u64, length: Duration) -> Vec<Step> {
    let mut planner = Planner {
        rng: Rng::new(seed),
        now: ms(BEFORE_MS),
        services: Mode::ALL.map(Service::new),
        edited: Vec::new(),
        bag: Vec::new(),
        pending: Vec::new(),
        down: BTreeSet::new(),
        losses: 0,
        moves: [None; 4],
        network_whole: Duration::ZERO,
        steps: Vec::new(),
    };
    while planner.now < length {
        planner.next();
    }
    planner.catch_up(Duration::MAX);
    planner.steps
}

/// A kind of event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Shares,
    ServerWeight,
    Pool,
    Server,
    Rename,
    Move,
    SparePort,
    Truncate,
    Agent,
    Operator,
    DirectorLink,
    ServerLink,
    Divert,
    Loss,
    Stillness,
}

impl Kind {
    const ALL: [Self; 15] = [
        Self::Shares,
        Self::ServerWeight,
        Self::Pool,
        Self::Server,
        Self::Rename,
        Self::Move,
        Self::SparePort,
        Self::Truncate,
        Self::Agent,
        Self::Operator,
        Self::DirectorLink,
        Self::ServerLink,
        Self::Divert,
        Self::Loss,
        Self::Stillness,
    ];
    /// Drawn where what the bag gives is not possible now.
    const ALWAYS: [Self; 4] = [Self::Shares, Self::ServerWeight, Self::Rename, Self::Move];
}

struct Planner {
    rng: Rng,
    now: Duration,
    services: [Service; 4],
    /// The modes that are edited while this bag lasts.
    edited: Vec<Mode>,
    bag: Vec<Kind>,
    /// What mends what is broken.
    pending: Vec<Step>,
    /// Nodes without an agent, and the operator.
    down: BTreeSet<&'static str>,
    /// Directors lost so far: one and the other in turn, since one has the modes that break.
    losses: usize,
    /// The last move of a server of each mode: when, and from which pool.
    moves: [Option<(Duration, usize)>; 4],
    /// When the network is as it should be, and has been for a while.
    network_whole: Duration,
    steps: Vec<Step>,
}

const OPERATOR: &str = "operator";

impl Planner {
    fn next(&mut self) {
        if self.bag.is_empty() {
            self.bag = self.shuffled(&Kind::ALL);
            self.edited = self.shuffled(&Mode::ALL);
            self.edited.truncate(2);
        }
        if let Some(kind) = self.bag.pop()
            && !self.draw(kind)
        {
            self.bag.insert(0, kind);
            let other = *self.rng.pick(&Kind::ALWAYS);
            self.draw(other);
        }
        let gap = self.between(GAP_MS);
        self.now += gap;
        self.catch_up(self.now);
    }

    /// Draws an event of this kind now; false where none is possible.
    fn draw(&mut self, kind: Kind) -> bool {
        match kind {
            Kind::Agent => self.kill_agent(),
            Kind::Operator => self.kill_operator(),
            Kind::DirectorLink | Kind::ServerLink | Kind::Divert | Kind::Loss => {
                self.network_whole <= self.now && self.disturb_network(kind)
            }
            Kind::Truncate => {
                let mode = *self.rng.pick(&self.edited);
                self.act(Action::WriteHalf(mode));
                self.later([300, 2_500], Action::WriteWhole(mode));
                true
            }
            Kind::Stillness => {
                let edits = self.pending.iter();
                let last = edits
                    .filter(|step| is_edit(step.action))
                    .map(|step| step.at);
                self.now = last.max().unwrap_or_default().max(self.now) + ms(STILL_MS);
                self.catch_up(self.now);
                true
            }
            _ => self.draw_edit(kind),
        }
    }

    fn draw_edit(&mut self, kind: Kind) -> bool {
        for _ in 0..TRIES {
            let mode = *self.rng.pick(&self.edited);
            let (pool, server) = (self.index(2), self.index(3));
            let weight = *self.rng.pick(&WEIGHTS);
            let (edit, back) = match kind {
                Kind::ServerWeight => (Edit::ServerWeight { server, weight }, None),
                Kind::Pool => (Edit::PoolOut(pool), Some(Edit::PoolIn(pool))),
                Kind::Server => (Edit::ServerOut(server), Some(Edit::ServerIn(server))),
                Kind::Rename => (Edit::Rename(pool), None),
                Kind::Move => (Edit::Move(server), None),
                Kind::SparePort => (Edit::SpareAway, Some(Edit::SpareBack)),
                _ => (Edit::Shares(*self.rng.pick(&SHARES)), None),
            };
            if self.services[mode as usize].edited(edit).is_none() || !self.may_move(mode, edit) {
                continue;
            }
            self.act(Action::Edit(mode, edit));
            if let Some(back) = back {
                self.later([500, 6_000], Action::Edit(mode, back));
            }
            return true;
        }
        false
    }

    /// Whether an edit moves no server, or none the other way than shortly before. Notes the move.
    fn may_move(&mut self, mode: Mode, edit: Edit) -> bool {
        let Edit::Move(server) = edit else {
            return true;
        };
        let from = self.services[mode as usize].pool_of(server);
        let last = &mut self.moves[mode as usize];
        let against = last.filter(|(_, before)| *before != from);
        if against.is_some_and(|(at, _)| self.now < at + ms(ONE_WAY_MS)) {
            return false;
        }
        *last = Some((self.now, from));
        true
    }

    fn kill_agent(&mut self) -> bool {
        let node = *self.rng.pick(&agents());
        if self.down.contains(node) {
            return false;
        }
        self.act(Action::KillAgent(node));
        self.later([100, 5_000], Action::StartAgent(node));
        true
    }

    fn kill_operator(&mut self) -> bool {
        if self.down.contains(OPERATOR) {
            return false;
        }
        self.act(Action::KillOperator);
        self.later([100, 5_000], Action::StartOperator);
        true
    }

    /// One thing at a time: two at once are more than the promises speak of.
    fn disturb_network(&mut self, kind: Kind) -> bool {
        let director = *self.rng.pick(&DIRECTORS);
        let back = match kind {
            Kind::DirectorLink | Kind::ServerLink => {
                let mode = *self.rng.pick(&Mode::ALL);
                let server = *self.rng.pick(&mode.servers());
                let node = if kind == Kind::ServerLink {
                    server
                } else {
                    director
                };
                self.act(Action::CutLink(node));
                self.later([200, 3_500], Action::MendLink(node))
            }
            Kind::Divert => {
                self.act(Action::Divert(director));
                self.later([1_000, 5_000], Action::Return)
            }
            _ => {
                let director = DIRECTORS[self.losses % DIRECTORS.len()];
                if self.down.contains(director) {
                    return false;
                }
                self.losses += 1;
                self.act(Action::LoseDirector(director));
                self.later([500, 3_000], Action::RebuildDirector(director))
            }
        };
        self.network_whole = back + ms(WHOLE_MS);
        true
    }

    fn act(&mut self, action: Action) {
        self.perform(Step {
            at: self.now,
            action,
        });
    }

    /// Has something done after a time between these milliseconds, and returns when.
    fn later(&mut self, between_ms: [u32; 2], action: Action) -> Duration {
        let at = self.now + self.between(between_ms);
        self.pending.push(Step { at, action });
        at
    }

    /// Does what is pending until then.
    fn catch_up(&mut self, until: Duration) {
        let first = |steps: &[Step]| {
            let due = steps
                .iter()
                .enumerate()
                .filter(|(_, step)| step.at <= until);
            due.min_by_key(|(_, step)| step.at).map(|(index, _)| index)
        };
        while let Some(index) = first(&self.pending) {
            let step = self.pending.remove(index);
            self.perform(step);
        }
    }

    fn perform(&mut self, step: Step) {
        match step.action {
            Action::Edit(mode, edit) => {
                let service = &mut self.services[mode as usize];
                if let Some(next) = service.edited(edit) {
                    *service = next;
                }
            }
            Action::KillAgent(node) | Action::LoseDirector(node) => {
                self.down.insert(node);
            }
            Action::StartAgent(node) | Action::RebuildDirector(node) => {
                self.down.remove(node);
            }
            Action::KillOperator => {
                self.down.insert(OPERATOR);
            }
            Action::StartOperator => {
                self.down.remove(OPERATOR);
            }
            _ => {}
        }
        self.steps.push(step);
    }

    fn between(&mut self, [least, most]: [u32; 2]) -> Duration {
        ms(least + self.rng.below(most - least))
    }

    fn index(&mut self, end: u32) -> usize {
        self.rng.below(end) as usize
    }

    fn shuffled<T: Copy>(&mut self, all: &[T]) -> Vec<T> {
        let mut left = all.to_vec();
        let mut order = Vec::new();
        while let Ok(end @ 1..) = u32::try_from(left.len()) {
            let index = self.index(end);
            order.push(left.swap_remove(index));
        }
        order
    }
}

fn is_edit(action: Action) -> bool {
    matches!(
        action,
        Action::Edit(..) | Action::WriteHalf(_) | Action::WriteWhole(_)
    )
}

const fn ms(ms: u32) -> Duration {
    Duration::from_millis(ms as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_secs(80);

    /// All that [`Action::kind`] may say.
    const KINDS: usize = 24;

    #[test]
    fn the_seed_decides_all() {
        assert_eq!(plan(7, SHORT), plan(7, SHORT));
        assert_ne!(plan(7, SHORT), plan(8, SHORT));
    }

    #[test]
    fn a_short_plan_has_every_kind_of_action() {
        for seed in 0..100 {
            let steps = plan(seed, SHORT);
            let kinds: BTreeSet<_> = steps.iter().map(|step| step.action.kind()).collect();
            assert_eq!(kinds.len(), KINDS, "seed {seed}: {kinds:?}");
        }
    }

    #[test]
    fn steps_are_in_order_and_mend_all() {
        for seed in 0..20 {
            let steps = plan(seed, Duration::from_mins(10));
            assert!(steps.iter().is_sorted_by_key(|step| step.at));
            let mut services = Mode::ALL.map(Service::new);
            let mut down = BTreeSet::new();
            for step in &steps {
                match step.action {
                    Action::Edit(mode, edit) => {
                        let service = &mut services[mode as usize];
                        *service = service.edited(edit).expect("an edit that is possible");
                    }
                    Action::KillAgent(node) | Action::LoseDirector(node) => {
                        assert!(down.insert(node), "{node} is down already");
                    }
                    Action::StartAgent(node) | Action::RebuildDirector(node) => {
                        assert!(down.remove(node), "{node} is up already");
                    }
                    Action::CutLink(node) => assert!(down.insert(&node[1..])),
                    Action::MendLink(node) => assert!(down.remove(&node[1..])),
                    Action::Divert(_) => assert!(down.insert("route")),
                    Action::Return => assert!(down.remove("route")),
                    _ => {}
                }
            }
            assert!(down.is_empty(), "{down:?}");
            for service in services {
                assert!((0..3).all(|server| service.keeps(server)) && service.has_spare());
            }
        }
    }
}
