//! The seconds of a node.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use sluice_api::ObjectKey;

use crate::tally::Tally;

/// How many of its last seconds a node tells. Who reads less often misses some.
pub const MAX_SECONDS: usize = 30;
/// Of how many pools a node tells: the first by name, where there are more.
pub const MAX_POOLS: usize = 4096;

/// What a node saw lately.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Drawn by the agent when it starts: numbers of seconds are comparable within a session only.
    pub session: u64,
    /// The oldest first, of at most [`MAX_SECONDS`]. Seconds in which nothing was judged are among them: they tell that the node looks.
    pub seconds: Vec<Second>,
}

/// What a node saw in a second.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct Second {
    /// Counts the session's seconds.
    pub number: u64,
    /// The pools that are looked at, also those of which nothing was seen.
    #[serde(default)]
    pub pools: Vec<PoolTally>,
}

/// What a node saw of a pool.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct PoolTally {
    /// The pool's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What was seen.
    #[serde(flatten)]
    pub tally: Tally,
}

impl PoolTally {
    /// The pool.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.namespace.clone(), self.name.clone())
    }
}

/// Keeps a node's last seconds.
#[derive(Debug)]
pub struct Recorder {
    session: u64,
    next: u64,
    seconds: VecDeque<Second>,
}

impl Recorder {
    /// A session that begins.
    pub const fn new(session: u64) -> Self {
        Self {
            session,
            next: 0,
            seconds: VecDeque::new(),
        }
    }

    /// Takes what was seen in a second of the pools that are looked at.
    pub fn record(&mut self, pools: BTreeMap<ObjectKey, Tally>) {
        let pools = pools.into_iter().take(MAX_POOLS);
        let pools = pools.map(|(key, tally)| PoolTally {
            namespace: key.namespace,
            name: key.name,
            tally,
        });
        let second = Second {
            number: self.next,
            pools: pools.collect(),
        };
        self.next += 1;
        self.seconds.push_back(second);
        if self.seconds.len() > MAX_SECONDS {
            self.seconds.pop_front();
        }
    }

    /// The last seconds.
    pub fn report(&self) -> Report {
        Report {
            session: self.session,
            seconds: self.seconds.iter().cloned().collect(),
        }
    }
}
