//! The maps: what they shall hold, what was written, and what is to be tried again.
//!
//! ```text
//!           new decisions or another view
//! in force ───────────────────────────────► plan ── Apply ──┬── done ──► plan (with the room that this one freed)
//!    ▲                                      │ ▲             │
//!    └────────── nothing left to do ────────┘ └─ ReadImage ─┴── failed, later
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use sluice_planner::{Image, Limits, NodeView, ObjectKind, Planner, Problem, Role};
use tracing::{error, warn};

use super::{labels, view};
use crate::core::back_off::BackOff;
use crate::core::intent::Intent;
use crate::core::io::Effect;
use crate::core::network::Network;
use crate::maps;
use crate::state::{Capacity, ServerLabels};

/// Up to which revisions everything is live.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::core) struct Revisions {
    pub(in crate::core) virtual_servers: u64,
    pub(in crate::core) pools: u64,
}

/// What is awaited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Awaited {
    /// What the maps hold.
    Image,
    /// The outcome of the operations of a plan.
    Applied,
}

/// What the tables tell of themselves.
#[derive(Clone, Debug, Default)]
pub(in crate::core) struct Summary {
    /// What is not live, in the order in which it is told.
    pub(in crate::core) not_live: Vec<Problem>,
    /// What is not as described, though the decisions are in force.
    pub(in crate::core) notes: Vec<String>,
    /// Labels by server id.
    pub(in crate::core) servers: Arc<BTreeMap<u32, ServerLabels>>,
    /// Limits and their use.
    pub(in crate::core) capacity: Vec<Capacity>,
}

/// The maps.
#[derive(Debug)]
pub(in crate::core) struct Tables {
    node: String,
    limits: Limits,
    /// What is planned for: the numbers of decisions and network, and the node's role.
    source: Option<(u64, u64, Role)>,
    /// The node as it was seen last.
    view: NodeView,
    /// `None` until the maps were read for the first time.
    planner: Option<Planner>,
    /// Whether the maps must be read back before anything is written.
    is_doubtful: bool,
    /// The revisions that are planned for.
    revisions: Revisions,
    /// Up to which everything is in the maps.
    in_force: Option<Revisions>,
    /// What the maps hold; nothing while they must be read back.
    actual: Arc<Image>,
    intended: Arc<Image>,
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
            limits,
            source: None,
            view: NodeView::default(),
            planner: None,
            is_doubtful: true,
            revisions: Revisions::default(),
            in_force: None,
            actual: Arc::default(),
            intended: Arc::default(),
            was_full: false,
            failure: None,
            awaited: None,
            retry: BackOff::default(),
            bridges: BTreeSet::new(),
            summary: Summary::default(),
            changes: 0,
        }
    }

    /// Plans anew if anything has changed that a plan is made of, or if the last one failed.
    pub(super) fn turn(
        &mut self,
        intent: &Intent,
        network: &Network,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let (Some(decided), Some(node)) = (&intent.decided, &intent.node) else {
            return;
        };
        if self.awaited.is_some() || !self.retry.is_over(now) {
            return;
        }
        let source = (intent.version, network.version(), view::role(&node.spec));
        if self.in_force.is_some() && self.source == Some(source) {
            return;
        }
        self.source = Some(source);
        self.view = view::node_view(&self.node, &node.spec, network);
        self.revisions = Revisions {
            virtual_servers: decided.mark().revision,
            pools: decided.mark().pool_revision,
        };
        if self.is_doubtful {
            self.awaited = Some(Awaited::Image);
            effects.push(Effect::ReadImage);
            return;
        }
        self.tell(intent);
        self.plan(intent, effects);
    }

    /// Tells the planner what is decided and seen.
    fn tell(&mut self, intent: &Intent) {
        if let (Some(planner), Some(decided)) = (&mut self.planner, &intent.decided) {
            planner.set_view(self.view.clone());
            planner.set_snapshot(decided.snapshot());
        }
    }

    /// Has the next operations written, or finds that nothing is left to do.
    fn plan(&mut self, intent: &Intent, effects: &mut Vec<Effect>) {
        let Some(planner) = &mut self.planner else {
            return;
        };
        let operations = planner.plan();
        if operations.is_empty() {
            self.in_force = Some(self.revisions);
            self.failure = None;
            self.retry.succeed();
            return self.summarize(intent);
        }
        self.intended = Arc::new(planner.image().clone());
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
                match &mut self.planner {
                    Some(planner) => planner.adopt(&image),
                    None => self.planner = Some(Planner::new(self.limits, &image)),
                }
                self.is_doubtful = false;
                self.intended = Arc::new(image);
                self.actual = Arc::clone(&self.intended);
                self.bridges = bridges(&self.actual);
                self.tell(intent);
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
        self.actual = Arc::clone(&self.intended);
        self.bridges = bridges(&self.actual);
        self.plan(intent, effects);
    }

    fn fail(&mut self, error: &maps::Error, intent: &Intent, now: Instant) {
        // Logged once: the retries are in the metrics.
        if self.failure.is_none() {
            error!("cannot bring the maps to what was decided: {error}");
        }
        self.failure = Some(error.to_string());
        self.is_doubtful = true;
        self.actual = Arc::default();
        self.in_force = None;
        self.retry.fail(now);
        self.summarize(intent);
    }

    fn summarize(&mut self, intent: &Intent) {
        let decided = intent.decided.iter();
        // What was missed and limits say more than what follows from them, so they come first.
        let mut not_live: Vec<Problem> = decided.flat_map(|d| &d.mark().missed).cloned().collect();
        let mut notes = Vec::new();
        let mut servers = BTreeMap::new();
        if let Some(planner) = &self.planner {
            let full = planner.full();
            if let Some(first) = full.first().filter(|_| !self.was_full) {
                let count = full.len();
                warn!("not everything fits into the maps, see status: {first} (1 of {count})");
            }
            self.was_full = !full.is_empty();
            let is_note = |problem: &&Problem| {
                !problem.exception || problem.kind == ObjectKind::LoadBalancerNode
            };
            let problems = planner.problems();
            let of_node = problems.iter().chain(&full).filter(is_note);
            notes = of_node.map(ToString::to_string).collect();
            not_live.extend(full.into_iter().filter(|problem| problem.exception));
            not_live.extend(planner.exceptions());
            servers = labels::of_servers(planner);
        }
        self.summary = Summary {
            not_live,
            notes,
            servers: Arc::new(servers),
            capacity: Capacity::of(&self.actual, &self.limits),
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

    /// What follows from configuration and maps, and a number that changes with it.
    pub(in crate::core) fn summary(&self) -> (&Summary, u64) {
        (&self.summary, self.changes)
    }

    /// What the maps shall hold by the last plan.
    pub(in crate::core) fn intended(&self) -> Arc<Image> {
        Arc::clone(&self.intended)
    }

    /// What they hold as far as it was written or read.
    pub(in crate::core) fn actual(&self) -> Arc<Image> {
        Arc::clone(&self.actual)
    }
}

fn bridges(image: &Image) -> BTreeSet<u32> {
    let by_tc = image
        .servers
        .values()
        .filter(|word| word.present() && word.path() == sluice_abi::Path::Tc);
    let records = by_tc.filter_map(|word| image.records.get(&word.slot()));
    records.map(|record| record.ifindex).collect()
}
