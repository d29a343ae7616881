//! Health checks: which servers of pools work, as this node sees it.
//!
//! ```text
//! core ── which servers, and how ──► worker ── due: Attempt ──► probe (a task each)
//!   ▲                                  │ Checks (pure): schedule, verdicts ◄── outcome
//!   └───────── verdicts that changed ──┤
//!                                      └── memory: verdicts outlive the process
//! ```
//!
//! A server is *up*, *warming*, *down* or not known. What is not known takes flows, as what is up does: a restart, or a check that
//! no server of the pool ever passed, takes no server out. One that is warming has a part of its share, which grows.

mod checks;
mod memory;
mod probe;
mod server;
mod warming;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_api::{HealthCheck, ObjectKey};

pub use memory::Memory;
pub use worker::{Checker, Tools};

/// The servers of a pool that are watched, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolChecks {
    /// How they are checked; `None`: they are not.
    pub check: Option<Arc<HealthCheck>>,
    /// After what time a server that joins, or that is up again, has its whole share; `None`: at once.
    pub warmup: Option<Duration>,
    /// Addresses of servers with the ports that are checked; port 0: the server as a whole.
    pub servers: BTreeSet<SocketAddr>,
    /// Whether none is checked since virtual servers forward by another protocol than that of the check, which has no port of its own.
    pub lacks_port: bool,
}

impl PoolChecks {
    /// Whether a server is up or down as a whole rather than at each of its ports.
    pub fn is_by_address(&self) -> bool {
        is_by_address(self.check.as_deref())
    }
}

/// A number that looks random, the same in every process.
fn scatter(of: impl Hash) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(of)
}

fn is_by_address(check: Option<&HealthCheck>) -> bool {
    check.is_none_or(HealthCheck::is_by_address)
}

/// What checks say of the servers of a pool.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verdicts {
    /// Servers that are up and have their whole share.
    pub up: usize,
    /// Servers of which nothing is known yet.
    pub unknown: usize,
    /// Servers that begin, with the tenths of their share that they have: 1 to 9.
    pub warming: BTreeMap<SocketAddr, u8>,
    /// Those that are down, and why the check failed that decided it.
    pub down: BTreeMap<SocketAddr, String>,
    /// Whether a verdict is about all ports of a server.
    pub by_address: bool,
    /// Whether any server has ever passed. As long as none has, those that are down count for nothing.
    pub has_passed: bool,
}

/// Pools of which checks say something else than before; `None`: they are not checked any more.
pub type Told = BTreeMap<ObjectKey, Option<Verdicts>>;
