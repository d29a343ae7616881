//! Standalone mode: the core over the files of a directory (see [`sluice_directory`]).
//!
//! One call of [`Standalone::tick`] looks at the files and writes what changed. What is in memory is what is on disk: after
//! a failed write the next tick decides anew. A restart at any point goes on from the files.

mod manifests;
mod nodes;
mod store;

use std::collections::BTreeMap;

use sluice_api::{
    Kind, ObjectKey, RealServerPool, RealServerPoolStatus, RolloutPolicy, Time, VirtualServer,
    VirtualServerStatus,
};
use sluice_directory::{Directory, DirectoryError, Lock};

use crate::core::{Outcome, World, reconcile};
use manifests::Manifests;
use nodes::Nodes;
use store::Store;

/// Timers of rollouts, the only ones of the core, are looked at this often when nothing else happens.
const IDLE_MS: u64 = 1000;

/// Conditions alone are written no more often than this: nodes acknowledge one by one.
const CALM_MS: u64 = 500;

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
    /// When conditions were last written.
    calm_ms: Option<u64>,
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
            calm_ms: None,
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
        self.busy |= self.nodes.look(&self.directory, monotonic_ms)?;
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
            revision_floor: self.revision_floor,
            cluster: None,
        };
        let world = World {
            orphans: self.pools.statuses_without(&world.pools),
            ..world
        };
        let outcome = reconcile(&world, now);
        self.virtual_servers.objects = world.virtual_servers;
        self.pools.objects = world.pools;
        self.policies.objects = world.policies;
        self.nodes.known = world.nodes;
        outcome
    }

    /// Writes what changed: rollouts before the weights they ask for, decisions in the order of their revisions. Returns
    /// whether anything changed or is left to be written.
    fn write(&mut self, outcome: Outcome, monotonic_ms: u64) -> Result<bool, DirectoryError> {
        let Outcome {
            mut virtual_servers,
            mut pools,
            policies,
        } = outcome;
        let order = self.changed_decisions(&pools, &virtual_servers);
        let gone = self.virtual_servers.highest_gone(&virtual_servers);
        let gone = gone.max(self.pools.highest_gone(&pools));
        let directory = &self.directory;
        if gone > self.revision_floor {
            directory.write_revision_floor(gone)?;
            self.revision_floor = gone;
        }
        let mut changed = self.virtual_servers.keep(directory, &virtual_servers)?;
        changed |= self.policies.keep(directory, &policies)?;
        for (key, status) in policies {
            changed |= self.policies.write(directory, &key, status)?;
        }
        for (_, kind, key) in order {
            if kind == Kind::RealServerPool {
                if let Some(status) = pools.get(&key).cloned() {
                    changed |= self.pools.write(directory, &key, status)?;
                }
            } else if let Some(status) = virtual_servers.get(&key).cloned() {
                changed |= self.virtual_servers.write(directory, &key, status)?;
            }
        }
        changed |= self.pools.keep(directory, &pools)?;
        let calm = self.calm_ms.map(|last| monotonic_ms.saturating_sub(last));
        if calm.is_some_and(|ms| ms < CALM_MS) {
            return Ok(true);
        }
        self.calm_ms = Some(monotonic_ms);
        while let Some((key, status)) = pools.pop_first() {
            changed |= self.pools.write(directory, &key, status)?;
        }
        while let Some((key, status)) = virtual_servers.pop_first() {
            changed |= self.virtual_servers.write(directory, &key, status)?;
        }
        Ok(changed)
    }

    /// What is written at once: changed decisions, and acknowledged ones, which the next decision would hide.
    fn changed_decisions(
        &self,
        pools: &BTreeMap<ObjectKey, RealServerPoolStatus>,
        virtual_servers: &BTreeMap<ObjectKey, VirtualServerStatus>,
    ) -> Vec<(u64, Kind, ObjectKey)> {
        let mut changed = Vec::new();
        for (key, status) in pools {
            let last = self.pools.status(key).and_then(|s| s.decision.as_ref());
            if let Some(decision) = status.decision.as_ref().filter(|new| last != Some(*new)) {
                changed.push((decision.revision, Kind::RealServerPool, key.clone()));
            }
        }
        for (key, status) in virtual_servers {
            let Some(decision) = &status.decision else {
                continue;
            };
            let last = self.virtual_servers.status(key);
            let same = last.is_some_and(|last| {
                let revision = |status: &VirtualServerStatus| {
                    status
                        .acknowledged
                        .as_ref()
                        .map_or(0, |acknowledged| acknowledged.revision)
                };
                last.decision.as_ref() == Some(decision) && revision(last) == revision(status)
            });
            if !same {
                changed.push((decision.revision, Kind::VirtualServer, key.clone()));
            }
        }
        changed.sort();
        changed
    }
}
