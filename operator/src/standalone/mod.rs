//! Standalone mode: the core over the files of a directory (see [`sluice_directory`]).
//!
//! One call of [`Standalone::tick`] looks at the files and writes what changed. What is in memory is what is on disk: after
//! a failed write the next tick decides anew, and files that others change or remove are written once more. A restart at
//! any point goes on from the files. No file holds up the others.

mod files;
mod manifests;
mod nodes;
mod store;

use std::collections::{BTreeMap, BTreeSet};

use sluice_api::{
    AddressPool, Kind, LabelSelector, ObjectKey, RealServerPool, RolloutPolicy, Time, VirtualServer,
};
use sluice_directory::{
    Directory, DirectoryError, Failures, Inventory, Lock, Mirror, render_status,
};
use sluice_signals::{Intake, Report};
use tracing::{info, warn};

use crate::core::{
    Addresses, Analyses, Ledger, Outcome, Stood, Timers, World, address_pool_status, reconcile,
};
use crate::order::{Failure, Next, Schedule, Write};
use crate::settings::Settings;
use files::Files;
use manifests::Manifests;
use nodes::Nodes;
use store::Store;

/// Timers of rollouts, the only ones of the core, are looked at this often when nothing else happens.
const IDLE_MS: u64 = 1000;
/// Status files are looked at this often for what others changed, and what failed is tried again.
const HEAL_MS: u64 = 1000;

/// The operator of one directory.
#[derive(Debug)]
pub struct Standalone {
    directory: Directory,
    manifests: Manifests,
    nodes: Nodes,
    mirror: Mirror,
    addresses: Addresses,
    timers: Timers,
    intake: Intake,
    analyses: Analyses,
    virtual_servers: Store<VirtualServer>,
    pools: Store<RealServerPool>,
    policies: Store<RolloutPolicy>,
    address_pools: Store<AddressPool>,
    ledger: Ledger,
    revision_floor: u64,
    /// Whether the status files have to be read: at the start, and when another directory counts.
    unread: bool,
    /// Whether the manifests say something that was not taken yet.
    stale: bool,
    /// When the core last ran, and whether its answer may not be final yet.
    last_ms: u64,
    busy: bool,
    healed_ms: u64,
    /// The last failure, until it has not come again.
    failing: Option<(u64, String)>,
    schedule: Schedule,
    lock: Lock,
}

impl Standalone {
    /// Takes the directory's lock.
    pub fn open(directory: Directory) -> Result<Self, DirectoryError> {
        Ok(Self {
            lock: directory.lock("operator")?,
            manifests: Manifests::new(directory.clone()),
            nodes: Nodes::default(),
            mirror: Mirror::default(),
            addresses: Addresses::default(),
            timers: Timers::default(),
            intake: Intake::default(),
            analyses: Analyses::default(),
            virtual_servers: Store::new(),
            pools: Store::new(),
            policies: Store::new(),
            address_pools: Store::new(),
            ledger: Ledger::default(),
            revision_floor: 0,
            unread: true,
            stale: true,
            last_ms: 0,
            busy: true,
            healed_ms: 0,
            failing: None,
            // Who reads the files claims all revisions up to the highest.
            schedule: Schedule::new(1),
            directory,
        })
    }

    /// Takes what the operator's options say.
    pub fn set(&mut self, settings: &Settings) {
        self.addresses.reserve(&settings.reserved);
        self.addresses.refuse_servers(&settings.refused_servers);
        self.nodes.forget_after(settings.forget_silent_seconds);
    }

    /// One round. `now` is stored and shown; `monotonic_ms` tells how long anything has lasted. While the directory is lost
    /// or locked by another process nothing is concluded and nothing is written.
    pub fn tick(&mut self, now: &Time, monotonic_ms: u64) -> Result<(), DirectoryError> {
        self.stale |= self.manifests.poll(monotonic_ms);
        self.manifests.check()?;
        self.lock.verify()?;
        self.unread |= self.manifests.take_moved();
        if !self.manifests.is_complete() {
            return Ok(());
        }
        self.busy |= self.ledger.tick(monotonic_ms);
        if self.unread {
            self.read()?;
        }
        let mut failures = Failures::default();
        if monotonic_ms.saturating_sub(self.healed_ms) >= HEAL_MS {
            self.healed_ms = monotonic_ms;
            self.heal(&mut failures);
            self.stale |= self.failing.is_some();
        }
        if self.stale {
            self.take_inputs(&mut failures);
        }
        let is_decided = self.virtual_servers.has_decisions() || self.pools.has_decisions();
        let given = self.given();
        let news = self
            .nodes
            .look(&self.directory, given, is_decided, monotonic_ms);
        self.busy |= failures.note(news).unwrap_or_default();
        for node in self.nodes.take_departed() {
            let path = self.directory.status_path(Kind::LoadBalancerNode, &node);
            failures.note(self.directory.remove_signals(&node.name));
            if failures.note(self.mirror.remove(&path)).is_some() {
                info!(%node, "is gone for good: removed its report");
            }
        }
        let due = monotonic_ms.saturating_sub(self.last_ms) >= IDLE_MS;
        if due && !self.policies.objects.is_empty() {
            failures.note(self.hear(monotonic_ms));
        }
        let runs = || !self.policies.objects.is_empty() || self.is_drain_over(now);
        if self.busy || (due && runs()) {
            self.last_ms = monotonic_ms;
            let outcome = self.reconcile(now, monotonic_ms);
            self.busy = self.write(outcome, monotonic_ms, &mut failures);
            self.busy |= self.write_ledger(now, &mut failures);
        }
        self.tell(failures, monotonic_ms)
    }

    /// A failure is told until nothing waits to be tried again.
    fn tell(&mut self, failures: Failures, monotonic_ms: u64) -> Result<(), DirectoryError> {
        if let Err(error) = failures.result() {
            self.failing = Some((monotonic_ms, error.to_string()));
            return Err(error);
        }
        let waits = self.schedule.waiting() > 0;
        let is_over = |at_ms: u64| !waits && monotonic_ms.saturating_sub(at_ms) > 2 * HEAL_MS;
        self.failing = self.failing.take().filter(|(at_ms, _)| !is_over(*at_ms));
        match &self.failing {
            Some((_, message)) => Err(DirectoryError::Again(message.clone())),
            None => Ok(()),
        }
    }

    /// Reads what nodes saw of pools' servers.
    fn hear(&mut self, monotonic_ms: u64) -> Result<(), DirectoryError> {
        let mut failures = Failures::default();
        for (node, _) in self.nodes.known.iter().filter(|(_, node)| node.live) {
            let report = failures.note(self.directory.read_signals::<Report>(node));
            if let Some(report) = report.flatten() {
                self.intake.take(node, &report, monotonic_ms);
            }
        }
        let asked = Analyses::pools(&self.policies.objects);
        let news = self.intake.news(asked);
        self.analyses
            .hear(&self.policies.objects, &news, monotonic_ms);
        failures.result()
    }

    /// Reads what was decided before.
    fn read(&mut self) -> Result<(), DirectoryError> {
        self.mirror.forget();
        let (directory, mirror) = (&self.directory, &mut self.mirror);
        self.virtual_servers.load(directory, mirror)?;
        self.pools.load(directory, mirror)?;
        self.policies.load(directory, mirror)?;
        self.address_pools.load(directory, mirror)?;
        let path = directory.ledger_path();
        if let Some(text) = mirror.adopt(&path)?
            && let Err(error) = self.ledger.load(text)
        {
            warn!(file = %path.display(), "{error}: goes on with the addresses in the decisions");
        }
        let floor = directory.read_revision_floor()?;
        self.revision_floor = self.revision_floor.max(floor);
        self.unread = false;
        self.stale = true;
        Ok(())
    }

    fn take_inputs(&mut self, failures: &mut Failures) {
        let mut of_inputs = Failures::default();
        let inputs = self.manifests.inputs(&mut self.mirror, &mut of_inputs);
        self.virtual_servers.replace(inputs.virtual_servers);
        self.pools.replace(inputs.pools);
        self.policies.replace(inputs.policies);
        self.address_pools.replace(inputs.address_pools);
        let pools = self.address_pools.objects.iter();
        let pools = pools.map(|(key, pool)| (key.name.as_str(), pool));
        self.ledger.set_pools(pools, &mut self.addresses);
        self.nodes.want(inputs.nodes);
        self.stale = false;
        self.busy = true;
        failures.note(of_inputs.result());
    }

    /// Puts right what others did to the status files.
    fn heal(&mut self, failures: &mut Failures) {
        let (healed, result) = self.mirror.heal();
        if let Some(first) = healed.first() {
            let (count, first) = (healed.len(), first.display());
            warn!(count, %first, "status files were changed or removed by somebody else: written once more");
        }
        failures.note(result);
        let (directory, mirror) = (&self.directory, &mut self.mirror);
        failures.note(self.virtual_servers.remove_strays(directory, mirror));
        failures.note(self.pools.remove_strays(directory, mirror));
        failures.note(self.policies.remove_strays(directory, mirror));
        failures.note(self.address_pools.remove_strays(directory, mirror));
    }

    /// How long the steps of all policies have stood as they do.
    fn stood(&mut self, monotonic_ms: u64) -> BTreeMap<ObjectKey, Stood> {
        let policies = self.policies.objects.iter();
        let timers = &mut self.timers;
        let stood = policies.map(|(key, policy)| {
            let stood = timers.look(key, policy.status.as_ref(), monotonic_ms);
            (key.clone(), stood)
        });
        stood.collect()
    }

    /// The highest revision that is known to have been given.
    fn given(&self) -> u64 {
        let servers = self.virtual_servers.highest_revision();
        let pools = self.pools.highest_revision();
        let floor = self.revision_floor.max(self.schedule.given());
        servers.max(pools).max(floor)
    }

    /// Whether a server is to take new flows again that is drained by hand.
    fn is_drain_over(&self, now: &Time) -> bool {
        self.pools.objects.values().any(|pool| {
            let decision = pool.status.as_ref().and_then(|it| it.decision.as_ref());
            decision.is_some_and(|decision| decision.content.is_drain_over(now.0))
        })
    }

    fn reconcile(&mut self, now: &Time, monotonic_ms: u64) -> Outcome {
        let stood = self.stood(monotonic_ms);
        let mut world = World {
            virtual_servers: std::mem::take(&mut self.virtual_servers.objects),
            pools: std::mem::take(&mut self.pools.objects),
            analysed: self.analyses.all(&self.policies.objects),
            policies: std::mem::take(&mut self.policies.objects),
            nodes: std::mem::take(&mut self.nodes.known),
            orphans: BTreeMap::new(),
            revision_floor: self.revision_floor.max(self.schedule.given()),
            cluster: None,
            addresses: std::mem::take(&mut self.addresses),
            stood,
            assigned: BTreeMap::new(),
        };
        world.orphans = self.pools.statuses_without(&world.pools);
        self.ledger.assign(&mut world);
        self.schedule.raise(world.highest_revision());
        let outcome = reconcile(&world, now);
        self.virtual_servers.objects = world.virtual_servers;
        self.pools.objects = world.pools;
        self.policies.objects = world.policies;
        self.nodes.known = world.nodes;
        self.addresses = world.addresses;
        outcome
    }

    /// Writes who has which addresses, and what is to be said of the pools. Returns whether anything was written.
    fn write_ledger(&mut self, now: &Time, failures: &mut Failures) -> bool {
        let (directory, mirror) = (&self.directory, &mut self.mirror);
        if self.ledger.take_changed().next().is_some() {
            let path = directory.ledger_path();
            failures.note(mirror.write(&path, &self.ledger.text(None)));
        }
        let pools = &mut self.address_pools;
        let there: BTreeSet<ObjectKey> = pools.objects.keys().cloned().collect();
        let removed = pools.keep(directory, mirror, |key| there.contains(key));
        let mut changed = failures.note(removed).unwrap_or(true);
        for (name, state) in self.ledger.pool_states() {
            let key = ObjectKey::new("", name);
            let Some(pool) = pools.objects.get(&key) else {
                continue;
            };
            let selected = |selector: &LabelSelector| self.nodes.selected(selector);
            let status = address_pool_status(pool, &state, selected, now);
            if pool.status.as_ref() != Some(&status) {
                let written = pools.write(directory, mirror, &key, status);
                changed |= failures.note(written).is_some();
            }
        }
        changed
    }

    /// Writes what changed, in order. Returns whether anything changed or is left to be written.
    fn write(&mut self, outcome: Outcome, monotonic_ms: u64, failures: &mut Failures) -> bool {
        let gone = self.virtual_servers.highest_gone(&outcome.virtual_servers);
        let gone = gone.max(self.pools.highest_gone(&outcome.pools));
        if gone > self.revision_floor {
            let path = self.directory.revision_path();
            let floor = self.directory.revision_floor(gone);
            let written = floor.and_then(|text| self.mirror.write(&path, &text));
            if failures.note(written).is_none() {
                // Without it a revision could be given twice.
                return true;
            }
            self.revision_floor = gone;
        }
        let (directory, mirror) = (&self.directory, &mut self.mirror);
        let kept = |key: &ObjectKey| outcome.virtual_servers.contains_key(key);
        let removed = self.virtual_servers.keep(directory, mirror, kept);
        let mut changed = failures.note(removed).unwrap_or(true);
        let kept = |key: &ObjectKey| outcome.policies.contains_key(key);
        let removed = self.policies.keep(directory, mirror, kept);
        changed |= failures.note(removed).unwrap_or(true);
        let pools: BTreeSet<ObjectKey> = outcome.pools.keys().cloned().collect();
        changed |= self.write_statuses(outcome, monotonic_ms, failures);
        // Decisions that no longer name them are written.
        let kept = |key: &ObjectKey| pools.contains(key);
        let removed = self.pools.keep(&self.directory, &mut self.mirror, kept);
        changed |= failures.note(removed).unwrap_or(true);
        failures.note(self.write_inventory());
        changed || self.schedule.pending_count() > 0
    }

    /// Returns whether any was written.
    fn write_statuses(
        &mut self,
        outcome: Outcome,
        monotonic_ms: u64,
        failures: &mut Failures,
    ) -> bool {
        let mut files = Files {
            directory: &self.directory,
            mirror: &mut self.mirror,
            virtual_servers: &mut self.virtual_servers,
            pools: &mut self.pools,
            policies: &mut self.policies,
        };
        self.schedule
            .reopen([Kind::VirtualServer, Kind::RealServerPool]);
        self.schedule.retain(|object| files.has(object));
        self.schedule.decide(&files, outcome);
        let mut changed = false;
        while let Next::Write(write) = self.schedule.next(&files, monotonic_ms) {
            let Write { object, status } = *write;
            let result = files.write(&object.1, status);
            let failure = result.as_ref().err();
            let failure = failure.map(|error| Failure::Failed(error.to_string()));
            let answer = failure.as_ref().map_or(Ok(()), Err);
            self.schedule.answered(&object, answer, monotonic_ms);
            changed |= failures.note(result).is_some();
        }
        changed
    }

    /// Says which decisions there are, so that agents tell those that were withdrawn from files that somebody removed.
    fn write_inventory(&mut self) -> Result<(), DirectoryError> {
        let path = self.directory.inventory_path();
        let inventory = Inventory {
            virtual_servers: self.virtual_servers.decided(),
            pools: self.pools.decided(),
        };
        self.mirror.write(&path, &render_status(&path, &inventory)?)
    }
}
