//! The maps: what they shall hold, what was written, and what is to be tried again.
//!
//! ```text
//!           new decisions or another view
//! in force ───────────────────────────────► plan ── Apply ──┬── done ──► plan (with the room that this one freed)
//!    ▲                                      │ ▲             │
//!    └────────── nothing left to do ────────┘ └─ ReadImage ─┴── failed, later
//! ```

use std::collections::BTreeSet;
use std::time::Instant;

use sluice_api::MAX_MESSAGE_LENGTH;
use sluice_planner::{Image, Limits, ObjectKind, Planner, Problem, Role};
use tracing::{error, warn};

use super::view;
use crate::core::announce::Announce;
use crate::core::back_off::BackOff;
use crate::core::health::Health;
use crate::core::intent::Intent;
use crate::core::io::Effect;
use crate::core::network::Network;
use crate::maps;
use crate::state::SharedPlanner;

/// Up to which revisions everything is live.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::core) struct Revisions {
    pub(in crate::core) virtual_servers: u64,
    pub(in crate::core) pools: u64,
}

/// The input of a plan: the versions of what other rooms say, and the node's role.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Source {
    intent: u64,
    network: u64,
    announce: u64,
    health: u64,
    role: Role,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Awaited {
    /// The content of the maps.
    Image,
    /// The outcome of the operations of a plan.
    Applied,
}

/// The problems of the tables, for the report.
#[derive(Clone, Debug, Default)]
pub(in crate::core) struct Summary {
    /// Problems because of which something is not live, in the order in which they are told.
    pub(in crate::core) not_live: Vec<Problem>,
    /// Problems in spite of which the decisions are in force, in words; at least as many as a message holds.
    pub(in crate::core) notes: String,
    /// Source of the summary: the planner's count of changes of troubles, and the problems of the source.
    of: (u64, Vec<Problem>),
}

/// The maps.
#[derive(Debug)]
pub(in crate::core) struct Tables {
    node: String,
    /// Input that is planned for.
    source: Option<Source>,
    planner: SharedPlanner,
    /// Whether the maps must be read back before anything is written.
    is_doubtful: bool,
    /// The revisions that are planned for.
    revisions: Revisions,
    /// Up to which everything is in the maps.
    in_force: Option<Revisions>,
    was_full: bool,
    /// Why the maps are not as they should be.
    failure: Option<String>,
    awaited: Option<Awaited>,
    retry: BackOff,
    /// Interfaces other than uplinks behind which servers are.
    bridges: BTreeSet<u32>,
    summary: Summary,
    /// Counts changes of the summary.
    changes: u64,
}

impl Tables {
    pub(super) fn new(node: &str, limits: Limits) -> Self {
        Self {
            node: node.to_owned(),
            source: None,
            planner: SharedPlanner::new(Planner::new(limits, &Image::default())),
            is_doubtful: true,
            revisions: Revisions::default(),
            in_force: None,
            was_full: false,
            failure: None,
            awaited: None,
            retry: BackOff::default(),
            bridges: BTreeSet::new(),
            summary: Summary::default(),
            changes: 0,
        }
    }

    /// Plans for what has changed, or anew if the last plan failed.
    pub(super) fn turn(
        &mut self,
        (intent, network): (&mut Intent, &mut Network),
        (announce, health): (&mut Announce, &mut Health),
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let (Some(decided), Some(node)) = (&intent.decided, &intent.node) else {
            return;
        };
        if self.awaited.is_some() || !self.retry.is_over(now) {
            return;
        }
        let role = view::role(&node.spec);
        let source = Source {
            intent: intent.version,
            network: network.version(),
            announce: announce.version(),
            health: health.version(),
            role,
        };
        if self.in_force.is_some() && self.source == Some(source) {
            return;
        }
        self.source = Some(source);
        self.revisions = Revisions {
            virtual_servers: decided.mark().revision,
            pools: decided.mark().pool_revision,
        };
        let view = view::node_view(&self.node, &node.spec, network);
        let mut planner = self.planner.write();
        planner.set_view(view);
        let changed = intent.take_changed();
        for (key, decided) in changed.virtual_servers {
            planner.set_virtual_server(&key, decided);
        }
        for (key, servers) in changed.servers {
            planner.set_servers(&key, servers);
        }
        for (address, next_hop) in network.take_next_hops() {
            planner.set_next_hop(address, next_hop);
        }
        for (vip, announced) in announce.take_changed() {
            planner.set_announced(vip, announced);
        }
        for (pool, tenths) in health.take_changed() {
            planner.set_tenths(&pool, tenths);
        }
        drop(planner);
        if self.is_doubtful {
            self.awaited = Some(Awaited::Image);
            effects.push(Effect::ReadImage);
            return;
        }
        self.plan(intent, effects);
    }

    /// Has the next operations written, or finds that nothing is left to do.
    fn plan(&mut self, intent: &Intent, effects: &mut Vec<Effect>) {
        let operations = self.planner.write().plan();
        if operations.is_empty() {
            self.in_force = Some(self.revisions);
            self.failure = None;
            self.retry.succeed();
            return self.summarize(intent);
        }
        self.awaited = Some(Awaited::Applied);
        effects.push(Effect::Apply(operations));
    }

    /// Takes in what the maps hold.
    pub(in crate::core) fn image_read(
        &mut self,
        read: Result<Image, maps::Error>,
        intent: &Intent,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        self.awaited = None;
        match read {
            Ok(image) => {
                self.planner.write().adopt(&image);
                self.is_doubtful = false;
                self.find_bridges();
                self.plan(intent, effects);
            }
            Err(error) => self.fail(&error, intent, now),
        }
    }

    /// Takes in what came of the operations of a plan.
    pub(in crate::core) fn applied(
        &mut self,
        outcome: Result<(), maps::Error>,
        intent: &Intent,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        if self.awaited.take() != Some(Awaited::Applied) {
            return;
        }
        if let Err(error) = outcome {
            return self.fail(&error, intent, now);
        }
        self.find_bridges();
        self.plan(intent, effects);
    }

    fn find_bridges(&mut self) {
        self.bridges = self.planner.read().tc_interfaces().collect();
    }

    fn fail(&mut self, error: &maps::Error, intent: &Intent, now: Instant) {
        // Logged once: the retries are in the metrics.
        if self.failure.is_none() {
            error!("cannot bring the maps to what was decided: {error}");
        }
        self.failure = Some(error.to_string());
        self.is_doubtful = true;
        self.in_force = None;
        self.retry.fail(now);
        self.summarize(intent);
    }

    /// Tells what is wrong, unless that is what was told last.
    fn summarize(&mut self, intent: &Intent) {
        let decided = intent.decided.as_ref();
        let missed = decided.map_or(&[][..], |decided| &decided.mark().missed);
        let planner = self.planner.read();
        let changes = planner.trouble_changes();
        if self.changes > 0 && self.summary.of.0 == changes && self.summary.of.1 == missed {
            return;
        }
        let full = planner.full();
        if let Some(first) = full.first().filter(|_| !self.was_full) {
            let count = full.len();
            warn!("not everything fits into the maps, see status: {first} (1 of {count})");
        }
        self.was_full = !full.is_empty();
        let problems = planner.problems();
        // Missed objects and limits say more than the problems that follow from them, so they come first.
        let not_fitting = full.iter().copied().filter(|problem| problem.exception);
        let not_live = missed.iter().chain(not_fitting);
        self.summary = Summary {
            not_live: not_live.chain(planner.exceptions()).cloned().collect(),
            notes: notes(missed.iter().chain(problems.iter().chain(&full).copied())),
            of: (changes, missed.to_vec()),
        };
        self.changes += 1;
    }

    /// Whether the rooms after this one have to wait.
    pub(super) fn is_waiting(&self) -> bool {
        self.awaited.is_some()
    }

    /// When a plan that failed is tried again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry.until()
    }

    /// Interfaces other than uplinks behind which servers are.
    pub(super) fn bridges(&self) -> &BTreeSet<u32> {
        &self.bridges
    }

    /// Up to which revisions everything is live; `None` while nothing was brought into the maps.
    pub(in crate::core) fn revisions(&self) -> Option<Revisions> {
        self.in_force
    }

    /// Why the maps are not as they should be.
    pub(in crate::core) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// The summary of the tables' problems, and a number that changes with it.
    pub(in crate::core) fn summary(&self) -> (&Summary, u64) {
        (&self.summary, self.changes)
    }

    /// The planner of the maps.
    pub(in crate::core) fn planner(&self) -> &SharedPlanner {
        &self.planner
    }
}

/// Tells those problems that are no exceptions, or that are the node's, until a message is full.
fn notes<'a>(problems: impl Iterator<Item = &'a Problem>) -> String {
    let is_note =
        |problem: &&Problem| !problem.exception || problem.kind == ObjectKind::LoadBalancerNode;
    let mut notes = String::new();
    for problem in problems.filter(is_note) {
        if notes.chars().count() > MAX_MESSAGE_LENGTH {
            break;
        }
        if !notes.is_empty() {
            notes.push_str("; ");
        }
        notes.push_str(&problem.to_string());
    }
    notes
}
