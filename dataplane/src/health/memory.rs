//! What is known of servers, so that a restart takes no server out or in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::{fs, io};

use serde::{Deserialize, Serialize};
use sluice_api::ObjectKey;
use tracing::warn;

use super::Verdicts;

/// The verdicts that count, in a file beside the agent's socket.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(transparent)]
pub struct Memory {
    /// By namespace and name of the pool.
    pools: BTreeMap<String, KnownPool>,
}

/// A pool.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub(super) struct KnownPool {
    pub(super) has_passed: bool,
    pub(super) down: BTreeSet<SocketAddr>,
}

impl Memory {
    /// What is to be remembered of these pools.
    pub(super) fn of<'a>(pools: impl Iterator<Item = (&'a ObjectKey, Verdicts)>) -> Self {
        let pools = pools.map(|(key, verdicts)| {
            let known = KnownPool {
                has_passed: verdicts.has_passed,
                down: verdicts.down.into_keys().collect(),
            };
            (key.to_string(), known)
        });
        let nothing = KnownPool::default();
        Self {
            pools: pools.filter(|(_, known)| *known != nothing).collect(),
        }
    }

    /// What an earlier agent remembered; nothing, if it cannot be read.
    pub fn read(path: &Path) -> Self {
        let read = fs::read(path).and_then(|text| Ok(serde_json::from_slice(&text)?));
        read.unwrap_or_else(|error: io::Error| {
            if error.kind() != io::ErrorKind::NotFound {
                warn!(path = %path.display(), %error, "cannot read which servers were down: all take flows until they are checked");
            }
            Self::default()
        })
    }

    /// What is remembered of a pool, once.
    pub(super) fn take(&mut self, pool: &ObjectKey) -> Option<KnownPool> {
        self.pools.remove(&pool.to_string())
    }

    /// The servers that are down, by namespace and name of the pool, where that counts.
    pub fn down(&self, pool: &ObjectKey) -> Option<&BTreeSet<SocketAddr>> {
        let known = self.pools.get(&pool.to_string())?;
        known.has_passed.then_some(&known.down)
    }
}
