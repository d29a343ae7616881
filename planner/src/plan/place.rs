//! Places of servers: ids, words, records, and the endpoints that replies come from.

use sluice_abi::{FIRST_REPLY_INDEX, MOST_INDICES, MapName, Path, ServerRecord, ServerWord};
use sluice_api::ForwardingMode;

use super::identity::has_reply;
use super::{Before, Placed, Planner, Scope};
use crate::Socket;
use crate::config::{PoolConfig, Reach, ServerConfig};
use crate::ids::ServerKey;
use crate::record::wanted_record;

impl<'a> Planner<'a> {
    pub(super) fn place_pool(&mut self, scope: Scope<'a>, pool: &'a PoolConfig) -> Vec<Placed<'a>> {
        let place = |server: &'a ServerConfig| {
            let id = if server.gives_flows_up {
                0
            } else {
                self.place(scope, pool, server)?
            };
            Some(Placed { config: server, id })
        };
        pool.servers.iter().filter_map(place).collect()
    }

    /// Gives a server its id, word and record; `None` if it has to wait or does not fit.
    fn place(
        &mut self,
        scope: Scope<'a>,
        pool: &PoolConfig,
        server: &'a ServerConfig,
    ) -> Option<u32> {
        let mode = scope.config.decided.mode;
        let reply = if has_reply(mode, server) {
            self.reply(scope, server)?
        } else {
            0
        };
        let key = ServerKey {
            index: scope.index,
            tag: pool.tag,
            address: server.address,
            port: server.port,
            reply,
            full_nat: mode == ForwardingMode::FullNat,
        };
        let known = self.tables.servers.get(&key).copied();
        let known = known.or_else(|| self.identities.take_spare(key));
        if let Some(before) = known.and_then(|id| self.before(id)) {
            let id = before.id;
            self.renew(scope, key, server, before);
            self.identities.set_placed(key, server);
            return Some(id);
        }
        if server.reach == Reach::Pending {
            return None;
        }
        if !self.takes_server(scope) {
            return None;
        }
        let (path, record) = wanted_record(scope.vip_port, mode, key, server.reach, None);
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
        let word = self.word_of(server, slot, epoch, path);
        self.put_server(id, word, record);
        self.identities.set_placed(key, server);
        Some(id)
    }

    /// Keeps an id, with what its word and record shall be now.
    pub(super) fn renew(
        &mut self,
        scope: Scope<'a>,
        key: ServerKey,
        server: &ServerConfig,
        before: Before,
    ) {
        let Before { id, word, record } = before;
        // The way to it is the same whatever pool named it.
        let tag = key.tag;
        let old = Some((word.path(), ServerRecord { tag, ..record }));
        let mode = scope.config.decided.mode;
        let (path, wanted) = wanted_record(scope.vip_port, mode, key, server.reach, old);
        let (slot, path, wanted) = if record == wanted {
            (word.slot(), path, wanted)
        } else if let Some(slot) = self.tables.free.records.take() {
            (slot, path, wanted)
        } else {
            self.no_records(scope, server);
            (word.slot(), word.path(), record)
        };
        let word = self.word_of(server, slot, word.epoch(), path);
        self.put_server(id, word, wanted);
    }

    /// The word of a server that shall be met so.
    fn word_of(&self, server: &ServerConfig, slot: u32, epoch: u8, path: Path) -> ServerWord {
        ServerWord::new(slot, epoch, path, self.identities.drains(server))
            .resetting(self.identities.resets(server))
            .sampling(self.identities.samples(server))
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
