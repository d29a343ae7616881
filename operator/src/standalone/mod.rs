//! Standalone mode: the core over the files of a directory (see [`sluice_directory`]).
//!
//! One call of [`Standalone::tick`] looks at the files and writes what changed. What is in memory is what is on disk: after
//! a failed write the next tick decides anew. A restart at any point goes on from the files.

mod files;
mod manifests;
mod nodes;
mod store;

use std::collections::{BTreeMap, BTreeSet};

use sluice_api::{Kind, ObjectKey, RealServerPool, RolloutPolicy, Time, VirtualServer};
use sluice_directory::{Directory, DirectoryError, Lock};

use crate::core::{Outcome, World, reconcile};
use crate::order::{Failure, Next, Schedule, Write};
use files::Files;
use manifests::Manifests;
use nodes::Nodes;
use store::Store;

/// Timers of rollouts, the only ones of the core, are looked at this often when nothing else happens.
const IDLE_MS: u64 = 1000;

/// The operator of one directory.
#[derive(Debug)]
pub struct Standalone {
    directory: Directory,
    manifests: Manifests,
    nodes: Nodes,
    virtual_servers: Store<VirtualServer>,
    pools: Store<RealServerPool>,
    policies: Store<RolloutPolicy>,
    revision_floor: u64,
    /// Whether the manifests say something that was not taken yet.
    stale: bool,
    /// When the core last ran, and whether its answer may not be final yet.
    last_ms: u64,
    busy: bool,
    schedule: Schedule,
    _lock: Lock,
}

impl Standalone {
    /// Takes the directory's lock and reads what was decided before.
    pub fn open(directory: Directory) -> Result<Self, DirectoryError> {
        let lock = directory.lock("operator")?;
        Ok(Self {
            manifests: Manifests::new(directory.clone()),
            nodes: Nodes::default(),
            virtual_servers: Store::load(&directory)?,
            pools: Store::load(&directory)?,
            policies: Store::load(&directory)?,
            revision_floor: directory.read_revision_floor()?,
            stale: true,
            last_ms: 0,
            busy: true,
            // Who reads the files claims all revisions up to the highest.
            schedule: Schedule::new(1),
            directory,
            _lock: lock,
        })
    }

    /// One round. `now` is stored and shown; `monotonic_ms` tells how long a node has been silent.
    pub fn tick(&mut self, now: &Time, monotonic_ms: u64) -> Result<(), DirectoryError> {
        let changed = self.manifests.poll()?;
        if !self.manifests.is_complete() {
            return Ok(());
        }
        self.stale |= changed;
        if self.stale {
            let inputs = self.manifests.inputs()?;
            self.virtual_servers.replace(inputs.virtual_servers);
            self.pools.replace(inputs.pools);
            self.policies.replace(inputs.policies);
            self.nodes.want(inputs.nodes);
            self.stale = false;
            self.busy = true;
        }
        let is_decided = self.virtual_servers.has_decisions() || self.pools.has_decisions();
        self.busy |= self.nodes.look(&self.directory, is_decided, monotonic_ms)?;
        let due = monotonic_ms.saturating_sub(self.last_ms) >= IDLE_MS;
        if self.busy || (due && !self.policies.objects.is_empty()) {
            self.last_ms = monotonic_ms;
            let outcome = self.reconcile(now);
            // Stays set when a write fails: what was not written is decided again.
            self.busy = true;
            self.busy = self.write(outcome, monotonic_ms)?;
        }
        Ok(())
    }

    fn reconcile(&mut self, now: &Time) -> Outcome {
        let world = World {
            virtual_servers: std::mem::take(&mut self.virtual_servers.objects),
            pools: std::mem::take(&mut self.pools.objects),
            policies: std::mem::take(&mut self.policies.objects),
            nodes: std::mem::take(&mut self.nodes.known),
            orphans: BTreeMap::new(),
            revision_floor: self.revision_floor.max(self.schedule.given()),
            cluster: None,
        };
        let world = World {
            orphans: self.pools.statuses_without(&world.pools),
            ..world
        };
        self.schedule.raise(world.highest_revision());
        let outcome = reconcile(&world, now);
        self.virtual_servers.objects = world.virtual_servers;
        self.pools.objects = world.pools;
        self.policies.objects = world.policies;
        self.nodes.known = world.nodes;
        outcome
    }

    /// Writes what changed, in order. Returns whether anything changed or is left to be written.
    fn write(&mut self, outcome: Outcome, monotonic_ms: u64) -> Result<bool, DirectoryError> {
        let directory = &self.directory;
        let gone = self.virtual_servers.highest_gone(&outcome.virtual_servers);
        let gone = gone.max(self.pools.highest_gone(&outcome.pools));
        if gone > self.revision_floor {
            directory.write_revision_floor(gone)?;
            self.revision_floor = gone;
        }
        let mut changed = self
            .virtual_servers
            .keep(directory, |key| outcome.virtual_servers.contains_key(key))?;
        changed |= self
            .policies
            .keep(directory, |key| outcome.policies.contains_key(key))?;
        let pools: BTreeSet<ObjectKey> = outcome.pools.keys().cloned().collect();
        let mut files = Files {
            virtual_servers: &mut self.virtual_servers,
            pools: &mut self.pools,
            policies: &mut self.policies,
        };
        self.schedule
            .reopen([Kind::VirtualServer, Kind::RealServerPool]);
        self.schedule.retain(|object| files.has(object));
        self.schedule.decide(&files, outcome);
        while let Next::Write(write) = self.schedule.next(&files, monotonic_ms) {
            let Write { object, status } = *write;
            let result = files.write(directory, &object.1, status);
            let failure = result.as_ref().err();
            let failure = failure.map(|error| Failure::Failed(error.to_string()));
            let answer = failure.as_ref().map_or(Ok(()), Err);
            self.schedule.answered(&object, answer, monotonic_ms);
            result?;
            changed = true;
        }
        // Decisions that no longer name them are written.
        changed |= self.pools.keep(directory, |key| pools.contains(key))?;
        Ok(changed || self.schedule.pending_count() > 0)
    }
}
