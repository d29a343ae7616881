//! The maps: what they shall hold, what was written, and what is to be tried again.
//!
//! ```text
//!           new decisions or another view
//! in force ───────────────────────────────► planned ── Apply ──► in force
//!    ▲                                        ▲ │ ▲                  (once more, if something did not fit: the first
//!    │                                        │ │ └ ImageRead        plan may have freed its room)
//!    └──────── nothing to change ─────────────┘ └── failed ── later ── ReadImage
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use sluice_planner::{
    Image, Limits, NodeConfig, ObjectKind, Plan, Problem, RingCache, Role, diff, live, node_config,
    plan_with,
};
use tracing::{error, warn};

use super::{labels, view};
use crate::core::back_off::BackOff;
use crate::core::intent::Intent;
use crate::core::io::Effect;
use crate::core::network::Network;
use crate::maps;
use crate::state::{Capacity, ServerLabels};

/// Plans in a row: what there was no room for may fit once the first plan has freed its part.
const PASSES: u8 = 2;

/// Up to which revisions everything is live.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::core) struct Revisions {
    pub(in crate::core) virtual_servers: u64,
    pub(in crate::core) pools: u64,
}

/// What was brought into the maps.
#[derive(Debug)]
struct InForce {
    revisions: Revisions,
    config: Arc<NodeConfig>,
}

/// What is awaited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Awaited {
    /// What the maps hold.
    Image,
    /// The outcome of the operations of a plan.
    Applied {
        /// Counts the plans in a row.
        pass: u8,
        /// Whether there were operations.
        changes: bool,
    },
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
    /// What the configuration is made of: the numbers of decisions and network, and the node's role.
    source: Option<(u64, u64, Role)>,
    config: Arc<NodeConfig>,
    /// The revisions that the configuration is made of.
    revisions: Revisions,
    in_force: Option<InForce>,
    /// What the maps hold; `None` when it must be read back.
    actual: Option<Arc<Image>>,
    intended: Arc<Image>,
    rings: RingCache,
    limit_problems: Vec<Problem>,
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
            config: Arc::default(),
            revisions: Revisions::default(),
            in_force: None,
            actual: None,
            intended: Arc::default(),
            rings: RingCache::default(),
            limit_problems: Vec::new(),
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
        let view = view::node_view(&self.node, &node.spec, network);
        self.source = Some(source);
        self.config = Arc::new(node_config(decided.snapshot(), &view));
        self.revisions = Revisions {
            virtual_servers: decided.mark().revision,
            pools: decided.mark().pool_revision,
        };
        match &mut self.in_force {
            Some(in_force) if in_force.config == self.config => {
                in_force.revisions = self.revisions;
                self.summarize(intent);
            }
            _ => self.begin(effects),
        }
    }

    fn begin(&mut self, effects: &mut Vec<Effect>) {
        self.was_full = !self.limit_problems.is_empty();
        if self.actual.is_some() {
            self.plan(1, effects);
        } else {
            self.awaited = Some(Awaited::Image);
            effects.push(Effect::ReadImage);
        }
    }

    fn plan(&mut self, pass: u8, effects: &mut Vec<Effect>) {
        let actual = self.actual.clone().unwrap_or_default();
        let Plan { desired, problems } =
            plan_with(&self.config, &actual, &self.limits, &mut self.rings);
        let operations = diff(&actual, &desired);
        self.intended = Arc::new(desired);
        self.limit_problems = problems;
        self.awaited = Some(Awaited::Applied {
            pass,
            changes: !operations.is_empty(),
        });
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
                self.actual = Some(Arc::new(image));
                self.plan(1, effects);
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
        let Some(Awaited::Applied { pass, changes }) = self.awaited.take() else {
            return;
        };
        if let Err(error) = outcome {
            return self.fail(&error, intent, now);
        }
        self.actual = Some(Arc::clone(&self.intended));
        if changes && pass < PASSES && !self.limit_problems.is_empty() {
            return self.plan(pass + 1, effects);
        }
        if let Some(first) = self.limit_problems.first().filter(|_| !self.was_full) {
            let count = self.limit_problems.len();
            warn!("not everything fits into the maps, see status: {first} (1 of {count})");
        }
        self.in_force = Some(InForce {
            revisions: self.revisions,
            config: Arc::clone(&self.config),
        });
        self.failure = None;
        self.retry.succeed();
        self.bridges = bridges(&self.intended);
        self.summarize(intent);
    }

    fn fail(&mut self, error: &maps::Error, intent: &Intent, now: Instant) {
        // Logged once: the retries are in the metrics.
        if self.failure.is_none() {
            error!("cannot bring the maps to what was decided: {error}");
        }
        self.failure = Some(error.to_string());
        self.actual = None;
        self.in_force = None;
        self.retry.fail(now);
        self.summarize(intent);
    }

    fn summarize(&mut self, intent: &Intent) {
        let actual = self.actual.clone().unwrap_or_default();
        let decided = intent.decided.as_ref();
        // What was missed and limits say more than what follows from them, so they come first.
        let missed = decided.iter().flat_map(|decided| &decided.mark().missed);
        let limits = self.limit_problems.iter().filter(|p| p.exception);
        let not_live = live(&self.config, &actual);
        let problems = self.config.problems.iter().chain(&self.limit_problems);
        let is_note =
            |problem: &&Problem| !problem.exception || problem.kind == ObjectKind::LoadBalancerNode;
        let labels =
            decided.map(|known| labels::of_servers(&actual, &self.config, known.snapshot()));
        self.summary = Summary {
            not_live: missed.chain(limits).cloned().chain(not_live).collect(),
            servers: Arc::new(labels.unwrap_or_default()),
            capacity: Capacity::of(&actual, &self.limits),
            notes: problems.filter(is_note).map(ToString::to_string).collect(),
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
        self.in_force.as_ref().map(|in_force| in_force.revisions)
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
        self.actual.clone().unwrap_or_default()
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
