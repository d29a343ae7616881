//! The room of health: has servers checked, and hands on which are down.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use sluice_api::{DownServer, ObjectKey, Reason};
use sluice_planner::Tenths;
use tracing::{info, warn};

use super::intent::Intent;
use super::io::Effect;
use super::program::is_director;
use crate::health::{Memory, Told, Verdicts};

/// Servers of a pool that a message names.
const MAX_NAMED: usize = 8;

/// The room of health.
#[derive(Debug)]
pub(super) struct Health {
    /// Pools that an earlier agent knew servers of to be down, until the checker says what it knows.
    memory: Memory,
    verdicts: BTreeMap<ObjectKey, Verdicts>,
    /// Pools with a check that has no port to ask.
    portless: BTreeSet<ObjectKey>,
    /// Pools of which other servers are down than the program knows.
    changed: BTreeMap<ObjectKey, Option<Arc<Tenths>>>,
    /// Counts such changes.
    version: u64,
    /// Whether this node's role has servers checked.
    checks: bool,
}

impl Health {
    pub(super) fn new(memory: Memory) -> Self {
        Self {
            memory,
            verdicts: BTreeMap::new(),
            portless: BTreeSet::new(),
            changed: BTreeMap::new(),
            version: 0,
            checks: false,
        }
    }

    /// Has the checker told what is new. Only directors check.
    pub(super) fn turn(&mut self, intent: &mut Intent, effects: &mut Vec<Effect>) {
        let Some(decided) = &mut intent.decided else {
            return;
        };
        let node = intent.node.as_ref();
        let checks = node.is_some_and(|node| is_director(&node.spec));
        if std::mem::replace(&mut self.checks, checks) != checks {
            decided.checked.touch_all();
        }
        let mut changes = decided.checked.take_changed();
        if changes.is_empty() {
            return;
        }
        for (pool, wanted) in &mut changes {
            if !checks {
                *wanted = None;
            }
            if wanted.as_ref().is_some_and(|wanted| wanted.lacks_port) {
                self.portless.insert(pool.clone());
            } else {
                self.portless.remove(pool);
            }
            // The maps are as an earlier agent left them: they are not to change before the checker knows more.
            let Some(wanted) = wanted else {
                continue;
            };
            let remembered = self.memory.down(pool);
            if let Some(down) = remembered.filter(|_| !self.verdicts.contains_key(pool)) {
                let down = down.iter().map(|server| (server, 0));
                let tenths = tenths(down, wanted.is_by_address());
                self.set(pool, Some(tenths));
            }
        }
        effects.push(Effect::Check(changes));
    }

    /// Takes in what the checker says.
    pub(super) fn tell(&mut self, told: Told) {
        for (pool, verdicts) in told {
            let tenths = verdicts.as_ref().map(|verdicts| {
                // As long as none has ever passed, the check may be wrong rather than all servers.
                let down = verdicts.down.keys().filter(|_| verdicts.has_passed);
                let down = down.map(|server| (server, 0));
                let warming = verdicts.warming.iter();
                let warming = warming.map(|(server, tenths)| (server, *tenths));
                tenths(down.chain(warming), verdicts.by_address)
            });
            self.set(&pool, tenths);
            log(&pool, self.verdicts.get(&pool), verdicts.as_ref());
            match verdicts {
                Some(verdicts) => self.verdicts.insert(pool, verdicts),
                None => self.verdicts.remove(&pool),
            };
        }
    }

    fn set(&mut self, pool: &ObjectKey, tenths: Option<Tenths>) {
        self.changed.insert(pool.clone(), tenths.map(Arc::new));
        self.version += 1;
    }

    /// Servers of pools that have less than all of their slots, where these are others than when this was last called.
    pub(super) fn take_changed(&mut self) -> BTreeMap<ObjectKey, Option<Arc<Tenths>>> {
        std::mem::take(&mut self.changed)
    }

    /// Changes whenever [`Self::take_changed`] may have something.
    pub(super) const fn version(&self) -> u64 {
        self.version
    }

    /// How many servers are checked, by what checks say of them.
    pub(super) fn counts(&self) -> [(&'static str, usize); 4] {
        let sum = |count: fn(&Verdicts) -> usize| self.verdicts.values().map(count).sum();
        [
            ("up", sum(|it| it.up)),
            ("warming", sum(|it| it.warming.len())),
            ("down", sum(|it| it.down.len())),
            ("unknown", sum(|it| it.unknown)),
        ]
    }

    /// The servers that are down.
    pub(super) fn down(&self) -> impl Iterator<Item = DownServer> {
        self.verdicts.iter().flat_map(|(pool, verdicts)| {
            verdicts.down.iter().map(|(server, why)| DownServer {
                namespace: pool.namespace.clone(),
                pool: pool.name.clone(),
                address: server.ip(),
                port: Some(server.port()).filter(|port| *port != 0),
                reason: why.clone(),
            })
        })
    }

    /// Which servers are down, and why, in words.
    pub(super) fn complaints(&self) -> (Reason, Vec<String>) {
        let failing = self.verdicts.iter().filter(|(_, it)| !it.down.is_empty());
        let (passed, never): (Vec<_>, Vec<_>) = failing.partition(|(_, it)| it.has_passed);
        let portless = self.portless.iter().map(|pool| {
            format!(
                "pool {pool}: nothing is checked, since virtual servers forward to it by another protocol than that of the check: give \
                 spec.healthCheck.port"
            )
        });
        let mut texts: Vec<String> = portless.collect();
        for (pool, verdicts) in &never {
            let (server, why) = verdicts.down.first_key_value().unzip();
            texts.push(format!(
                "pool {pool}: no server has ever passed its check, so all take flows: correct spec.healthCheck, or the servers ({}: {})",
                server.map_or_else(String::new, name),
                why.map_or("", String::as_str),
            ));
        }
        for (pool, verdicts) in &passed {
            let is_last = verdicts.up + verdicts.unknown + verdicts.warming.len() == 0;
            let consequence = if is_last {
                ", so all of them take flows, unless virtual servers want it otherwise"
            } else {
                ""
            };
            let named = verdicts.down.iter().take(MAX_NAMED);
            let named = named.map(|(server, why)| format!("{} ({why})", name(server)));
            let named: Vec<String> = named.collect();
            let more = verdicts.down.len() - named.len();
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            texts.push(format!(
                "pool {pool}: down: {}{more}{consequence}",
                named.join(", ")
            ));
        }
        let reason = if passed.is_empty() {
            Reason::CheckNeverPassed
        } else {
            Reason::ChecksFailed
        };
        (reason, texts)
    }
}

/// By ICMP no port is checked.
fn name(server: &SocketAddr) -> String {
    match server.port() {
        0 => server.ip().to_string(),
        _ => server.to_string(),
    }
}

/// Servers that lend slots, at one of their ports or at all.
fn tenths<'a>(lending: impl Iterator<Item = (&'a SocketAddr, u8)>, by_address: bool) -> Tenths {
    let key = |server: &SocketAddr| {
        let port = if by_address { 0 } else { server.port() };
        SocketAddr::new(server.ip(), port)
    };
    lending
        .map(|(server, tenths)| (key(server), tenths))
        .collect()
}

/// A line where other servers are up or down than before.
fn log(pool: &ObjectKey, before: Option<&Verdicts>, after: Option<&Verdicts>) {
    let summary = |verdicts: &Verdicts| {
        let up = verdicts.up + verdicts.warming.len();
        (
            up,
            verdicts.unknown,
            verdicts.down.len(),
            verdicts.has_passed,
        )
    };
    let Some(after) = after.map(summary) else {
        return;
    };
    if before.map(summary) == Some(after) {
        return;
    }
    let (up, unknown, down, has_passed) = after;
    if has_passed || down == 0 {
        info!(%pool, up, unknown, down, "checked servers");
    } else {
        warn!(%pool, unknown, down, "no server has ever passed its check, so all take flows");
    }
}
