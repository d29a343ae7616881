//! Which server ids of a VIP port go on as the same servers.
//!
//! To its flows a server is its address, port and mode, whatever pool names it. Ids are by pool, since counters are, so an id
//! whose pool names the server no longer is a *spare*: another pool that names it takes the id over, flows and all, and
//! spares that nobody takes stay as long as any pool names the server. So a server has at most as many ids as pools ever
//! named it at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_api::ForwardingMode;

use super::{Before, Planner, Scope};
use crate::Resets;
use crate::config::{Reach, ServerConfig};
use crate::ids::ServerKey;

/// The servers of the VIP port being planned, whatever pools name them.
#[derive(Default)]
pub(super) struct Identities<'a> {
    /// Ids whose pools name the server no longer, by key without pool.
    spare: BTreeMap<ServerKey, Vec<u32>>,
    /// Servers that have their places, by key without pool.
    placed: BTreeMap<ServerKey, &'a ServerConfig>,
    /// The servers that pools name.
    named: BTreeMap<(IpAddr, u16), Named>,
    /// Those of them that a pool names whose servers' connections are sampled.
    sampled: BTreeSet<(IpAddr, u16)>,
    /// How many ids of the VIP port do not stay.
    pub(super) leaving: u32,
}

/// A server as the pools that name it have it.
struct Named {
    /// All of them drain it.
    drains: bool,
    /// Whether all of them have its connections reset.
    resets: bool,
    has_reply: bool,
}

impl<'a> Identities<'a> {
    /// Of the VIP port of `scope`, which has these servers in the maps.
    pub(super) fn new<'b>(
        scope: Scope<'a>,
        in_maps: impl Iterator<Item = (&'b ServerKey, u32)>,
    ) -> Self {
        let mut identities = Self::default();
        let mut named = BTreeSet::new();
        let mode = scope.config.decided.mode;
        for pool in &scope.config.pools {
            for server in &pool.servers {
                named.insert((pool.tag, server.address, server.port));
                let all = identities.named.entry((server.address, server.port));
                let all = all.or_insert(Named {
                    drains: true,
                    resets: true,
                    has_reply: has_reply(mode, server),
                });
                all.drains &= server.draining;
                all.resets &= server.resets == Resets::Now;
                if pool.is_sampled {
                    let server = (server.address, server.port);
                    identities.sampled.insert(server);
                }
            }
        }
        for (key, id) in in_maps {
            if !named.contains(&(key.tag, key.address, key.port)) {
                let spare = identities.spare.entry(key.without_pool());
                spare.or_default().push(id);
            }
            let server = identities.named.get(&(key.address, key.port));
            let stays = server.is_some_and(|server| {
                let is_full_nat = mode == ForwardingMode::FullNat;
                server.has_reply == (key.reply != 0) && is_full_nat == key.full_nat
            });
            identities.leaving += u32::from(!stays);
        }
        identities
    }

    /// An id that this server may take over.
    pub(super) fn take_spare(&mut self, key: ServerKey) -> Option<u32> {
        self.spare.get_mut(&key.without_pool())?.pop()
    }

    /// Takes in that a server has its place.
    pub(super) fn set_placed(&mut self, key: ServerKey, server: &'a ServerConfig) {
        self.placed.insert(key.without_pool(), server);
    }

    /// Whether a connection attempt on an old flow of a server chooses anew: all pools that name it drain it.
    pub(super) fn drains(&self, server: &ServerConfig) -> bool {
        let all = self.named.get(&(server.address, server.port));
        all.map_or(server.draining, |all| all.drains)
    }

    /// Whether connections of a server are reset: all pools that name it have them reset.
    pub(super) fn resets(&self, server: &ServerConfig) -> bool {
        let all = self.named.get(&(server.address, server.port));
        all.map_or(server.resets == Resets::Now, |all| all.resets)
    }

    /// Whether connections of a server are sampled: a pool that names it has them sampled.
    pub(super) fn samples(&self, server: &ServerConfig) -> bool {
        self.sampled.contains(&(server.address, server.port))
    }
}

/// Whether replies from a server are told by its socket.
pub(super) fn has_reply(mode: ForwardingMode, server: &ServerConfig) -> bool {
    mode == ForwardingMode::Nat || server.reach == Reach::Local
}

impl<'a> Planner<'a> {
    /// Keeps the spare ids of servers that other pools name.
    pub(super) fn keep_spares(&mut self, scope: Scope<'a>) {
        for (identity, ids) in std::mem::take(&mut self.identities.spare) {
            let Some(&server) = self.identities.placed.get(&identity) else {
                continue;
            };
            for id in ids {
                if let Some(before) = self.before(id) {
                    let tag = before.record.tag;
                    self.renew(scope, ServerKey { tag, ..identity }, server, before);
                }
            }
        }
    }

    /// What the maps have of an id.
    pub(super) fn before(&self, id: u32) -> Option<Before> {
        let word = *self.part.servers.get(&id)?;
        let record = *self.part.records.get(&word.slot())?;
        Some(Before { id, word, record })
    }
}
