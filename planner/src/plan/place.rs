//! Places of servers: ids, words, records, and the endpoints that replies come from.

use sluice_abi::{FIRST_REPLY_INDEX, MOST_INDICES, MapName, ServerRecord, ServerWord};
use sluice_api::ForwardingMode;

use super::{Placed, Planner, Scope};
use crate::Socket;
use crate::config::{PoolConfig, Reach, ServerConfig};
use crate::ids::ServerKey;
use crate::record::wanted_record;

impl<'a> Planner<'a> {
    pub(super) fn place_pool(&mut self, scope: Scope<'_>, pool: &'a PoolConfig) -> Vec<Placed<'a>> {
        let place = |server| {
            let id = self.place(scope, pool, server)?;
            Some(Placed { config: server, id })
        };
        pool.servers.iter().filter_map(place).collect()
    }

    /// Gives a server its id, word and record; `None` if it has to wait or does not fit.
    fn place(&mut self, scope: Scope<'_>, pool: &PoolConfig, server: &ServerConfig) -> Option<u32> {
        let reply = match (scope.config.decided.mode, server.reach) {
            (ForwardingMode::Nat, _) | (_, Reach::Local) => self.reply(scope, server)?,
            _ => 0,
        };
        let key = ServerKey {
            index: scope.index,
            tag: pool.tag,
            address: server.address,
            port: server.port,
            reply,
            full_nat: scope.config.decided.mode == ForwardingMode::FullNat,
        };
        let known = self.tables.servers.get(&key).copied();
        let before = known.and_then(|id| {
            let word = self.part.servers.get(&id)?;
            Some((id, *word, *self.part.records.get(&word.slot())?))
        });
        if before.is_none() && server.reach == Reach::Pending {
            return None;
        }
        let old = before.map(|(_, word, record)| (word.path(), record));
        let (path, record) = wanted_record(
            scope.vip_port,
            scope.config.decided.mode,
            key,
            server.reach,
            old,
        );
        if let Some((id, word, old_record)) = before {
            let (slot, path, record) = if old_record == record {
                (word.slot(), path, record)
            } else if let Some(slot) = self.tables.free.records.take() {
                (slot, path, record)
            } else {
                self.no_records(scope, server);
                (word.slot(), word.path(), old_record)
            };
            let word = ServerWord::new(slot, word.epoch(), path, server.draining);
            self.put_server(id, word, record);
            return Some(id);
        }
        let Some(slot) = self.tables.free.records.take() else {
            self.no_records(scope, server);
            return None;
        };
        let Some((id, epoch)) = self.tables.free.servers.take() else {
            let consequence = format!("server {} takes no flows", server.address);
            self.full(
                scope.config,
                MapName::Servers,
                self.limits.servers,
                &consequence,
            );
            return None;
        };
        self.put_server(
            id,
            ServerWord::new(slot, epoch, path, server.draining),
            record,
        );
        Some(id)
    }

    fn no_records(&mut self, scope: Scope<'_>, server: &ServerConfig) {
        let consequence = format!("server {} stays as it was", server.address);
        self.full(
            scope.config,
            MapName::Records,
            self.limits.records,
            &consequence,
        );
    }

    fn put_server(&mut self, id: u32, word: ServerWord, record: ServerRecord) {
        self.desired.servers.insert(id, word);
        self.desired.records.insert(word.slot(), record);
    }

    /// The index of a server's socket, by which replies from it are told.
    fn reply(&mut self, scope: Scope<'_>, server: &ServerConfig) -> Option<u32> {
        let protocol = scope.vip_port.protocol;
        let socket = Socket::new(server.address, protocol, server.port);
        if let Some(&index) = self.desired.replies.get(&socket) {
            return Some(index);
        }
        let index = match self.tables.image.replies.get(&socket) {
            Some(&index) => Some(index),
            None if self.reply_room.take(socket.address, 1) => self.tables.free.replies.take(),
            None => None,
        };
        let Some(index) = index else {
            let v4 = socket.address.is_ipv4();
            let map = if v4 {
                MapName::Replies4
            } else {
                MapName::Replies6
            };
            let limit = self.limits.replies.min(MOST_INDICES - FIRST_REPLY_INDEX);
            let consequence = format!("server {} takes no flows", server.address);
            self.full(scope.config, map, limit, &consequence);
            return None;
        };
        self.desired.replies.insert(socket, index);
        Some(index)
    }
}
