//! Reading decisions while the operator writes them, or somebody removes them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use sluice_api::{Decision, Kind, ObjectKey, PoolDecision};

use super::status::{Inventory, Names, read_yaml};
use super::{Directory, DirectoryError};
use crate::files::Stamp;

/// Tries to find the files unchanged while they are read, in one poll.
const ATTEMPTS: usize = 4;
/// Polls after which files that could not be read are read once more, though they look the same.
const RETRY_POLLS: u32 = 10;

/// All decisions at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Decisions {
    /// Of virtual servers.
    pub virtual_servers: BTreeMap<ObjectKey, Decision>,
    /// Of pools.
    pub pools: BTreeMap<ObjectKey, PoolDecision>,
    /// The highest revision. Where the decisions are [whole](Self::is_whole), none up to it is missing, since the operator
    /// writes them in this order.
    pub revision: u64,
    /// Virtual servers and pools whose status cannot be read, and why.
    pub unreadable: BTreeMap<(Kind, ObjectKey), String>,
    /// Whether there are as many, and for the same objects, as the operator says in its inventory.
    pub is_whole: bool,
}

impl Decisions {
    /// Whether the operator has withdrawn the decision on an object that had one and has none here. Where files are missing
    /// that the operator did not remove, nothing is withdrawn.
    pub fn withdraws(&self, kind: Kind, key: &ObjectKey) -> bool {
        let is_there = match kind {
            Kind::VirtualServer => self.virtual_servers.contains_key(key),
            Kind::RealServerPool => self.pools.contains_key(key),
            Kind::RolloutPolicy | Kind::LoadBalancerNode | Kind::AddressPool => true,
        };
        self.is_whole && !is_there && !self.unreadable.contains_key(&(kind, key.clone()))
    }

    fn inventory(&self) -> Inventory {
        let unreadable = |kind| {
            let of_kind = self.unreadable.keys().filter(move |id| id.0 == kind);
            of_kind.map(|id| &id.1)
        };
        let virtual_servers = self.virtual_servers.keys();
        let pools = self.pools.keys();
        Inventory {
            virtual_servers: Names::of(virtual_servers.chain(unreadable(Kind::VirtualServer))),
            pools: Names::of(pools.chain(unreadable(Kind::RealServerPool))),
        }
    }
}

/// Follows the decisions of a directory.
#[derive(Debug)]
pub struct DecisionReader {
    directory: Directory,
    stamps: Option<BTreeMap<PathBuf, Stamp>>,
    /// Polls until the files are read in any case; 0: only when one has changed.
    retry: u32,
}

#[derive(Deserialize)]
struct WithDecision<D> {
    #[serde(default = "none")]
    decision: Option<D>,
}

fn none<D>() -> Option<D> {
    None
}

impl DecisionReader {
    /// Reads nothing yet.
    pub fn new(directory: Directory) -> Self {
        Self {
            directory,
            stamps: None,
            retry: 0,
        }
    }

    /// All decisions if a file changed since the last call that gave some; the first call always gives them.
    ///
    /// An error leaves the reader as it was: the caller goes on with what it has and calls again.
    pub fn poll(&mut self) -> Result<Option<Decisions>, DirectoryError> {
        if self.retry > 0 {
            self.retry -= 1;
            if self.retry == 0 {
                self.stamps = None;
            }
        }
        for _ in 0..ATTEMPTS {
            let before = self.stamps()?;
            if self.stamps.as_ref() == Some(&before) {
                return Ok(None);
            }
            let decisions = self.read()?;
            if self.stamps()? == before {
                self.stamps = Some(before);
                if !decisions.unreadable.is_empty() {
                    self.retry = RETRY_POLLS;
                }
                return Ok(Some(decisions));
            }
        }
        Ok(None)
    }

    fn read(&self) -> Result<Decisions, DirectoryError> {
        let mut unreadable = BTreeMap::new();
        let virtual_servers: BTreeMap<ObjectKey, Decision> =
            self.kind(Kind::VirtualServer, &mut unreadable)?;
        let pools: BTreeMap<ObjectKey, PoolDecision> =
            self.kind(Kind::RealServerPool, &mut unreadable)?;
        let revision = virtual_servers
            .values()
            .map(|decision| decision.revision)
            .chain(pools.values().map(|decision| decision.revision))
            .max()
            .unwrap_or_default();
        let mut decisions = Decisions {
            virtual_servers,
            pools,
            revision,
            unreadable,
            is_whole: false,
        };
        let inventory = self.directory.read_inventory().ok().flatten();
        decisions.is_whole = inventory.is_some_and(|stated| stated == decisions.inventory());
        Ok(decisions)
    }

    fn kind<D: for<'de> Deserialize<'de>>(
        &self,
        kind: Kind,
        unreadable: &mut BTreeMap<(Kind, ObjectKey), String>,
    ) -> Result<BTreeMap<ObjectKey, D>, DirectoryError> {
        let mut decisions = BTreeMap::new();
        for key in self.directory.list_status(kind)? {
            let path = self.directory.status_path(kind, &key);
            let file: Result<Option<super::StatusFile<WithDecision<D>>>, _> = read_yaml(&path);
            match file {
                Ok(file) => {
                    if let Some(decision) = file.and_then(|file| file.status.decision) {
                        decisions.insert(key, decision);
                    }
                }
                Err(error) => {
                    unreadable.insert((kind, key), error.to_string());
                }
            }
        }
        Ok(decisions)
    }

    /// Stamps of all files that are read. Those that cannot be looked at count as having none.
    fn stamps(&self) -> Result<BTreeMap<PathBuf, Stamp>, DirectoryError> {
        let mut paths = vec![self.directory.inventory_path()];
        for kind in [Kind::VirtualServer, Kind::RealServerPool] {
            let keys = self.directory.list_status(kind)?.into_iter();
            paths.extend(keys.map(|key| self.directory.status_path(kind, &key)));
        }
        let stamps = paths.into_iter();
        let stamps = stamps.filter_map(|path| Some((path.clone(), Stamp::of(&path).ok()??)));
        Ok(stamps.collect())
    }
}
