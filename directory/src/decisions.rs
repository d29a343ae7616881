//! Reading decisions while the operator writes them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use sluice_api::{Decision, Kind, ObjectKey, PoolDecision};

use super::status::read_yaml;
use super::{Directory, DirectoryError, Stamp};

/// Tries to find the files unchanged while they are read, in one poll.
const ATTEMPTS: usize = 4;

/// All decisions at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Decisions {
    /// Of virtual servers.
    pub virtual_servers: BTreeMap<ObjectKey, Decision>,
    /// Of pools.
    pub pools: BTreeMap<ObjectKey, PoolDecision>,
    /// The highest revision. No decision up to it is missing, since the operator writes them in this order.
    pub revision: u64,
}

/// Follows the decisions of a directory.
#[derive(Debug)]
pub struct DecisionReader {
    directory: Directory,
    stamps: Option<BTreeMap<PathBuf, Stamp>>,
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
        }
    }

    /// All decisions if a file changed since the last call that gave some; the first call always gives them.
    ///
    /// An error leaves the reader as it was: the caller goes on with what it has and calls again.
    pub fn poll(&mut self) -> Result<Option<Decisions>, DirectoryError> {
        for _ in 0..ATTEMPTS {
            let before = self.stamps()?;
            if self.stamps.as_ref() == Some(&before) {
                return Ok(None);
            }
            let decisions = self.read()?;
            if self.stamps()? == before {
                self.stamps = Some(before);
                return Ok(Some(decisions));
            }
        }
        Ok(None)
    }

    fn read(&self) -> Result<Decisions, DirectoryError> {
        let virtual_servers: BTreeMap<ObjectKey, Decision> = self.kind(Kind::VirtualServer)?;
        let pools: BTreeMap<ObjectKey, PoolDecision> = self.kind(Kind::RealServerPool)?;
        let revision = virtual_servers
            .values()
            .map(|decision| decision.revision)
            .chain(pools.values().map(|decision| decision.revision))
            .max()
            .unwrap_or_default();
        Ok(Decisions {
            virtual_servers,
            pools,
            revision,
        })
    }

    fn kind<D: for<'de> Deserialize<'de>>(
        &self,
        kind: Kind,
    ) -> Result<BTreeMap<ObjectKey, D>, DirectoryError> {
        let mut decisions = BTreeMap::new();
        for key in self.directory.list_status(kind)? {
            let path = self.directory.status_path(kind, &key);
            let file: Option<super::StatusFile<WithDecision<D>>> = read_yaml(&path)?;
            if let Some(decision) = file.and_then(|file| file.status.decision) {
                decisions.insert(key, decision);
            }
        }
        Ok(decisions)
    }

    fn stamps(&self) -> Result<BTreeMap<PathBuf, Stamp>, DirectoryError> {
        let mut stamps = BTreeMap::new();
        for kind in [Kind::VirtualServer, Kind::RealServerPool] {
            for key in self.directory.list_status(kind)? {
                let path = self.directory.status_path(kind, &key);
                if let Some(stamp) = Stamp::of(&path)? {
                    stamps.insert(path, stamp);
                }
            }
        }
        Ok(stamps)
    }
}
