//! Directors, their kernels, the segments and the API server, by true time.

use std::collections::{BTreeMap, VecDeque};

use super::check::Check;
use super::clock::Clock;
use super::rng::Rng;
use super::segment::Segment;
use super::server::{Reach, Reply, Request, Server};
use super::{MS, SECOND};
use crate::tests::Flaw;
use crate::{
    Action, Candidate, Coordination, Elector, Event, Health, Outcome, Settings, Source, Target,
    Time, WriteId,
};

/// Gratuitous announcements after a takeover.
const BURST_MS: [u64; 6] = [0, 100, 500, 1000, 2000, 5000];
/// The operator takes a director for dead that has not reported for so long.
const SILENT_NS: u64 = 20 * SECOND;

/// What happens at a moment.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    Tick {
        node: usize,
        turn: u64,
    },
    Hear {
        node: usize,
        path: usize,
        from: Source,
    },
    Announce {
        node: usize,
        hold: u64,
    },
    Arrive {
        request: u64,
    },
    Reply {
        request: u64,
        reply: Reply,
    },
    TimeOut {
        request: u64,
    },
    News {
        node: usize,
        life: u64,
        event: Event,
    },
    Operator,
    Fault(super::faults::Fault),
    /// A deadline of a kernel passes: only to check.
    Look,
}

#[derive(Debug)]
struct Agent {
    elector: Elector,
    life: u64,
    turn: u64,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) clock: Clock,
    agent: Option<Agent>,
    /// Until when the kernel answers.
    kernel: Time,
    pub(crate) is_up: bool,
    pub(crate) is_frozen: bool,
    pub(crate) paused_ns: Option<u64>,
    pub(crate) resumed_ns: Option<u64>,
    /// Since when one of its ports is dead though its link is up.
    pub(crate) deaf_ns: Option<u64>,
    inbox: VecDeque<Event>,
    pub(crate) is_drained: bool,
    pub(crate) health: Health,
    pub(crate) reach: Reach,
    /// Since when its path is whole.
    pub(crate) whole_ns: u64,
    seen_ns: u64,
    memory: Memory,
    holds: u64,
}

/// What an agent writes down for the next one.
#[derive(Debug, Default)]
struct Memory {
    candidates: Vec<Candidate>,
    /// Whether it found the API server out of reach.
    lacked_server: bool,
}

#[derive(Debug)]
struct Open {
    node: usize,
    life: u64,
    request: Request,
    write: Option<WriteId>,
    back_ns: Option<u64>,
}

/// What the runs differ in.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) group: String,
    pub(crate) nodes: usize,
    pub(crate) paths: usize,
    pub(crate) settings: Settings,
    pub(crate) has_watch: bool,
    pub(crate) server_faults: u64,
    pub(crate) skew: u64,
    pub(crate) flaw: Option<Flaw>,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) now_ns: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) segments: Vec<Segment>,
    pub(crate) server: Server,
    pub(crate) rng: Rng,
    pub(crate) check: Check,
    pub(crate) trace: Option<Vec<String>>,
    queue: BTreeMap<(u64, u64), Happening>,
    open: BTreeMap<u64, Open>,
    serial: u64,
}

impl World {
    pub(crate) fn new(setup: Setup, seed: u64, is_traced: bool) -> Self {
        let mut rng = Rng::new(seed);
        let nodes = (0..setup.nodes).map(|number| Node {
            name: format!("d{number}"),
            clock: Clock {
                offset_ns: rng.below(1000 * SECOND),
                rate: 1_000_000 - setup.skew + rng.below(2 * setup.skew + 1),
                stood_ns: 0,
            },
            agent: None,
            kernel: Time::default(),
            is_up: true,
            is_frozen: false,
            paused_ns: None,
            resumed_ns: None,
            deaf_ns: None,
            inbox: VecDeque::new(),
            is_drained: false,
            health: Health::Whole,
            reach: Reach::Ok,
            whole_ns: 0,
            seen_ns: 0,
            memory: Memory::default(),
            holds: 0,
        });
        let mut world = Self {
            now_ns: 0,
            nodes: nodes.collect(),
            segments: (0..setup.paths)
                .map(|_| Segment::new(setup.nodes, rng.next()))
                .collect(),
            server: Server::new(setup.server_faults),
            check: Check::new(setup.nodes),
            rng,
            trace: is_traced.then(Vec::new),
            queue: BTreeMap::new(),
            open: BTreeMap::new(),
            serial: 0,
            setup,
        };
        let candidates = world.candidates();
        for node in 0..world.nodes.len() {
            world.nodes[node].memory.candidates.clone_from(&candidates);
            world.start_agent(node);
        }
        world.at(SECOND, Happening::Operator);
        world
    }

    pub(crate) fn at(&mut self, time_ns: u64, happening: Happening) {
        self.serial += 1;
        let key = (time_ns.max(self.now_ns), self.serial);
        self.queue.insert(key, happening);
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let text = line();
            let (s, us) = (self.now_ns / SECOND, self.now_ns % SECOND / 1000);
            trace.push(format!("{s:>4}.{us:06} {text}"));
        }
    }

    /// Runs until then. Returns the first fault that the check found.
    pub(crate) fn run(&mut self, until_ns: u64) -> Result<(), String> {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > until_ns {
                break;
            }
            let ((time_ns, _), happening) = entry.remove_entry();
            self.now_ns = time_ns;
            self.happen(happening);
            Check::look(self)?;
        }
        self.now_ns = until_ns;
        Check::look(self)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Tick { node, turn } => {
                if self.is_running(node) && self.agent(node).is_some_and(|a| a.turn == turn) {
                    self.tick(node);
                }
            }
            Happening::Hear { node, path, from } => {
                self.tell(node, Event::Answer { path, from });
            }
            Happening::Announce { node, hold } => self.announce(node, hold),
            Happening::Arrive { request } => self.arrive(request),
            Happening::Reply { request, reply } => self.reply(request, reply),
            Happening::TimeOut { request } => self.reply(request, Reply::Failed),
            Happening::News { node, life, event } => {
                if self.agent(node).is_some_and(|agent| agent.life == life)
                    && self.nodes[node].reach != Reach::Hung
                    && self.nodes[node].reach != Reach::Refused
                {
                    self.tell(node, event);
                }
            }
            Happening::Operator => self.operator(),
            Happening::Fault(fault) => fault.happen(self),
            Happening::Look => {}
        }
    }

    fn agent(&self, node: usize) -> Option<&Agent> {
        self.nodes[node].agent.as_ref()
    }

    pub(crate) fn elector(&self, node: usize) -> Option<&Elector> {
        self.agent(node).map(|agent| &agent.elector)
    }

    /// Whether its processes run.
    pub(crate) fn is_running(&self, node: usize) -> bool {
        let node = &self.nodes[node];
        node.agent.is_some() && !node.is_frozen && node.paused_ns.is_none()
    }

    /// Whether its kernel answers.
    pub(crate) fn is_armed(&self, node: usize) -> bool {
        let node = &self.nodes[node];
        node.is_up && node.paused_ns.is_none() && node.clock.local(self.now_ns) < node.kernel
    }

    pub(crate) fn tell(&mut self, node: usize, event: Event) {
        if self.nodes[node].agent.is_none() {
            return;
        }
        if !self.is_running(node) {
            return self.nodes[node].inbox.push_back(event);
        }
        if !matches!(event, Event::Answer { .. }) {
            self.note(|| format!("   d{node} is told {event:?}"));
        }
        let now = self.nodes[node].clock.local(self.now_ns);
        if let Some(agent) = &mut self.nodes[node].agent {
            agent.elector.on(event, now);
        }
        self.tick(node);
    }

    /// Hands over what came while the processes stood, timers first or last.
    pub(crate) fn wake(&mut self, node: usize) {
        if !self.is_running(node) {
            return;
        }
        if self.rng.chance(500) {
            self.tick(node);
        }
        while let Some(event) = self.nodes[node].inbox.pop_front() {
            self.tell(node, event);
        }
        self.tick(node);
    }

    fn tick(&mut self, node: usize) {
        let now = self.nodes[node].clock.local(self.now_ns);
        self.serial += 1;
        let turn = self.serial;
        let Some(agent) = &mut self.nodes[node].agent else {
            return;
        };
        agent.turn = turn;
        let before = self.trace.is_some().then(|| agent.elector.state());
        let actions = agent.elector.tick(now);
        let after = self.trace.is_some().then(|| agent.elector.state());
        let next = agent.elector.next_deadline();
        if let (Some(before), Some(after)) = (before, after)
            && (before.role, before.authority, before.hindrance)
                != (after.role, after.authority, after.hindrance)
        {
            self.note(|| {
                format!(
                    "   d{node} is {:?} {:?} {:?}",
                    after.role, after.authority, after.hindrance
                )
            });
        }
        if let Some(next) = next {
            assert!(next > now, "an elector that wakes at once would spin");
            let delay_ns = if self.rng.chance(10) { 20 * MS } else { MS / 2 };
            let delay_ns = self.rng.below(delay_ns);
            let time_ns = self.nodes[node].clock.true_ns(next) + delay_ns;
            self.at(time_ns, Happening::Tick { node, turn });
        }
        for action in actions {
            self.act(node, action);
        }
    }

    fn act(&mut self, node: usize, action: Action) {
        if !matches!(action, Action::Probe { .. }) {
            self.note(|| format!("d{node} {action:?}"));
        }
        match action {
            Action::ReadLease => self.request(node, Request::Read, None),
            Action::WriteLease {
                id,
                version,
                holder,
            } => {
                Check::written(self, node, holder.as_deref());
                self.request(node, Request::Write { version, holder }, Some(id));
            }
            Action::Arm { until } => {
                self.nodes[node].kernel = until;
                self.check.rights[node] = self.elector(node).and_then(Elector::authority);
                let end_ns = self.nodes[node].clock.true_ns(until);
                self.at(end_ns, Happening::Look);
            }
            Action::Disarm => self.nodes[node].kernel = Time::default(),
            Action::Announce => {
                Check::took(self, node);
                self.check.takeovers += 1;
                self.nodes[node].holds += 1;
                let hold = self.nodes[node].holds;
                for ms in BURST_MS {
                    let time_ns = self.now_ns + ms * MS;
                    self.at(time_ns, Happening::Announce { node, hold });
                }
            }
            Action::Probe { path, target } => self.probe(node, path, &target),
        }
    }

    fn probe(&mut self, node: usize, path: usize, target: &Target) {
        self.check.probes += 1;
        let now_ns = self.now_ns;
        let back_ns = now_ns + self.rng.range(MS / 10, MS);
        let segment = &self.segments[path];
        if *target == Target::Witness {
            if segment.passes_gateway(node, now_ns, &mut self.rng) {
                let from = Source::Witness;
                self.at(back_ns, Happening::Hear { node, path, from });
            }
            return;
        }
        for other in 0..self.nodes.len() {
            let name = &self.nodes[other].name;
            let is_asked = match target {
                Target::Peer(asked) => asked == name,
                _ => true,
            };
            if other != node
                && is_asked
                && self.is_armed(other)
                && self.segments[path].passes(node, other, now_ns, &mut self.rng)
            {
                let from = Source::Peer(self.nodes[other].name.clone());
                self.at(back_ns, Happening::Hear { node, path, from });
            } else if other != node && is_asked && self.is_armed(other) {
                self.check.lost += 1;
            }
        }
    }

    fn announce(&mut self, node: usize, hold: u64) {
        if !self.is_running(node) || self.nodes[node].holds != hold || !self.is_armed(node) {
            return;
        }
        for path in 0..self.segments.len() {
            for other in (0..self.nodes.len()).filter(|other| *other != node) {
                let time_ns = self.now_ns + self.rng.range(MS / 20, MS / 2);
                if self.segments[path].passes(node, other, self.now_ns, &mut self.rng) {
                    let from = Source::Peer(self.nodes[node].name.clone());
                    let node = other;
                    self.at(time_ns, Happening::Hear { node, path, from });
                }
            }
        }
    }

    fn request(&mut self, node: usize, request: Request, write: Option<WriteId>) {
        self.serial += 1;
        let number = self.serial;
        let reach = self.nodes[node].reach;
        let journey = self
            .server
            .send(reach, write.is_some(), self.now_ns, &mut self.rng);
        for time_ns in journey.arrivals {
            self.at(time_ns, Happening::Arrive { request: number });
        }
        if let Some(time_ns) = journey.refused_ns {
            self.at(time_ns, Happening::TimeOut { request: number });
        }
        let late_ns = self.rng.below(5 * MS);
        let end_ns = self.now_ns + SECOND + late_ns;
        self.at(end_ns, Happening::TimeOut { request: number });
        let life = self.agent(node).map_or(0, |agent| agent.life);
        let open = Open {
            node,
            life,
            request,
            write,
            back_ns: journey.back_ns,
        };
        self.open.insert(number, open);
        // Requests are kept after their end: copies may arrive late.
        while self.open.len() > 200 {
            self.open.pop_first();
        }
    }

    fn arrive(&mut self, number: u64) {
        let Some(open) = self.open.get(&number) else {
            return;
        };
        let (request, node, back_ns) = (open.request.clone(), open.node, open.back_ns);
        let age_ns = self.now_ns - self.server.changed_ns;
        let before = self.server.holder.clone();
        let (reply, is_changed) = self.server.take(&request, self.now_ns, &mut self.rng);
        if let Some(back_ns) = back_ns {
            let time_ns = self.now_ns + back_ns;
            self.at(
                time_ns,
                Happening::Reply {
                    request: number,
                    reply,
                },
            );
        }
        if !is_changed {
            return;
        }
        let view = self.server.view();
        self.note(|| format!("-- Lease {} is {:?}, by d{node}", view.version, view.holder));
        Check::swapped(self, node, before.as_deref(), age_ns);
        if self.setup.has_watch {
            for node in 0..self.nodes.len() {
                self.news(node, 30 * MS);
            }
        }
    }

    /// Tells a node of the Lease as a watch does.
    pub(crate) fn news(&mut self, node: usize, most_ns: u64) {
        let Some(life) = self.agent(node).map(|agent| agent.life) else {
            return;
        };
        let event = Event::LeaseRead(self.server.view());
        let time_ns = self.now_ns + self.rng.range(MS, most_ns);
        self.at(time_ns, Happening::News { node, life, event });
    }

    fn reply(&mut self, number: u64, reply: Reply) {
        let Some(open) = self.open.get_mut(&number) else {
            return;
        };
        let (node, write) = (open.node, open.write);
        // One answer to each request, and none to a process that has ended.
        let life = std::mem::replace(&mut open.life, u64::MAX);
        if self.agent(node).is_none_or(|agent| agent.life != life) {
            return;
        }
        let is_refused = self.nodes[node].reach == Reach::Refused;
        let event = match (reply, write) {
            (Reply::View(view), _) => Event::LeaseRead(view),
            (Reply::Written(outcome), Some(id)) => Event::Written { id, outcome },
            (Reply::Failed, Some(id)) if is_refused => Event::Written {
                id,
                outcome: Outcome::Failed,
            },
            (Reply::Failed, Some(id)) => Event::Written {
                id,
                outcome: Outcome::TimedOut,
            },
            (Reply::Failed | Reply::Written(_), None) => Event::LeaseUnreachable,
        };
        self.tell(node, event);
    }

    /// The candidates as the operator's list has them.
    fn candidates(&self) -> Vec<Candidate> {
        let stable_ns = u64::try_from(self.setup.settings.stable_time.as_nanos()).unwrap();
        let listed = self
            .nodes
            .iter()
            .filter(|node| !node.is_drained && self.now_ns < node.seen_ns + SILENT_NS);
        let candidates = listed.map(|node| Candidate {
            name: node.name.clone(),
            steady: self.now_ns >= node.whole_ns + stable_ns,
        });
        candidates.collect()
    }

    /// Once a second the operator reads the nodes' reports and writes its list; nodes read it if they can.
    fn operator(&mut self) {
        let is_standalone = self.setup.settings.coordination == Coordination::Peers;
        let reads = |reach| is_standalone || reach == Reach::Ok || reach == Reach::Slow;
        for node in 0..self.nodes.len() {
            if self.is_running(node) && reads(self.nodes[node].reach) {
                self.nodes[node].seen_ns = self.now_ns;
            }
        }
        for node in 0..self.nodes.len() {
            let mut segments = self.segments.iter();
            if !self.is_running(node) || !segments.all(|segment| segment.is_connected(node)) {
                self.nodes[node].whole_ns = self.now_ns;
            }
        }
        let candidates = self.candidates();
        for node in 0..self.nodes.len() {
            if reads(self.nodes[node].reach) && self.nodes[node].memory.candidates != candidates {
                self.nodes[node].memory.candidates.clone_from(&candidates);
                self.check.changed_ns = self.now_ns;
                self.tell(node, Event::Candidates(candidates.clone()));
            }
        }
        self.at(self.now_ns + SECOND, Happening::Operator);
    }

    /// Starts an agent, which reads back the list of candidates that it last knew, and whether it lacked the API server.
    pub(crate) fn start_agent(&mut self, node: usize) {
        self.serial += 1;
        let life = self.serial;
        let now = self.nodes[node].clock.local(self.now_ns);
        let name = self.nodes[node].name.clone();
        let mut elector = Elector::new(&self.setup.group, &name, self.setup.settings.clone(), now);
        elector.flaw = self.setup.flaw;
        self.nodes[node].inbox.clear();
        self.nodes[node].agent = Some(Agent {
            elector,
            life,
            turn: 0,
        });
        let health = self.nodes[node].health;
        let candidates = self.nodes[node].memory.candidates.clone();
        for event in [
            Event::Paths(self.setup.paths),
            Event::Candidates(candidates),
            Event::Drain(self.nodes[node].is_drained),
            Event::Health(health),
        ] {
            self.tell(node, event);
        }
        if self.nodes[node].memory.lacked_server {
            self.tell(node, Event::ServerLost);
        }
        if self.setup.has_watch {
            self.news(node, 100 * MS);
        }
    }

    /// Ends the agent; the kernel goes on until its deadline.
    pub(crate) fn end_agent(&mut self, node: usize) {
        if let Some(agent) = self.nodes[node].agent.take() {
            self.nodes[node].memory.lacked_server = agent.elector.state().lacks_server;
        }
        self.nodes[node].is_frozen = false;
        self.nodes[node].inbox.clear();
    }

    /// The machine loses all that it knows but its pins on disk.
    pub(crate) fn crash(&mut self, node: usize) {
        self.end_agent(node);
        self.nodes[node].is_up = false;
        self.nodes[node].kernel = Time::default();
    }
}
