//! The virtual servers of a mode as the plan wants them, and their manifests.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::net::address::{Dual, Family};
use crate::net::ask::Protocol;
use crate::net::fabric::{vip_of_both, vip_of_one};
use crate::net::lab::Mode;
use crate::net::manifest::{self, PORTS, VirtualServerPort};

/// Both addresses of each server.
pub(super) type Addresses = BTreeMap<&'static str, Dual>;

/// The port that the VIPs have beside [`PORTS`], unless it is away.
pub(super) const SPARE_PORT: u16 = 8080;
/// Where it is then. No server has it.
const SPARE_PORT_AWAY: u16 = 8081;

/// What tells a mode's pools apart.
const COLOURS: [&str; 2] = ["blue", "green"];

/// An edit of a mode's manifests. Pools and servers are named by their positions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Edit {
    /// Weights of the pools.
    Shares([u32; 2]),
    /// A server's weight in its pool.
    ServerWeight { server: usize, weight: u32 },
    /// The virtual servers name this pool no more.
    PoolOut(usize),
    /// They name it again.
    PoolIn(usize),
    /// The server is in no pool.
    ServerOut(usize),
    /// It is in its pool again.
    ServerIn(usize),
    /// The pool gets another name, and its old manifest is removed.
    Rename(usize),
    /// The server is in the other pool.
    Move(usize),
    /// The spare port gets another number.
    SpareAway,
    /// It has its own again.
    SpareBack,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Pool {
    /// How often it was renamed. No name comes back: its removal may not count yet.
    names: usize,
    share: u32,
    listed: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Server {
    pool: usize,
    present: bool,
    weight: u32,
}

/// Two virtual servers, at a VIP each, over two pools of three servers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Service {
    mode: Mode,
    pools: [Pool; 2],
    servers: [Server; 3],
    has_spare: bool,
}

impl Service {
    pub(super) fn new(mode: Mode) -> Self {
        let pool = |share| Pool {
            names: 0,
            share,
            listed: true,
        };
        let server = |pool| Server {
            pool,
            present: true,
            weight: 1,
        };
        Self {
            mode,
            pools: [pool(50), pool(50)],
            servers: [server(0), server(0), server(1)],
            has_spare: true,
        }
    }

    /// The service after an edit; `None` where it changes nothing, or leaves a share without a server that takes flows.
    pub(super) fn edited(&self, edit: Edit) -> Option<Self> {
        let mut next = self.clone();
        match edit {
            Edit::Shares(shares) => {
                for (pool, share) in next.pools.iter_mut().zip(shares) {
                    pool.share = share;
                }
            }
            Edit::ServerWeight { server, weight } => next.servers[server].weight = weight,
            Edit::PoolOut(pool) => next.pools[pool].listed = false,
            Edit::PoolIn(pool) => next.pools[pool].listed = true,
            Edit::ServerOut(server) => next.servers[server].present = false,
            Edit::ServerIn(server) => next.servers[server].present = true,
            Edit::Rename(pool) => next.pools[pool].names += 1,
            Edit::Move(server) => {
                // To or from a pool that no virtual server names it would be taken out or in.
                if !self.servers[server].present || self.pools.iter().any(|pool| !pool.listed) {
                    return None;
                }
                next.servers[server].pool = 1 - self.servers[server].pool;
            }
            Edit::SpareAway => next.has_spare = false,
            Edit::SpareBack => next.has_spare = true,
        }
        (next != *self && next.is_sound()).then_some(next)
    }

    /// Whether each pool has a server, one that takes flows if the pool has a share, and a pool with a share is named.
    fn is_sound(&self) -> bool {
        let filled = |pool: usize| {
            let least = u32::from(self.pools[pool].share > 0);
            let mut servers = self.servers.iter();
            servers.any(|s| s.pool == pool && s.present && s.weight >= least)
        };
        let mut pools = self.pools.iter();
        filled(0) && filled(1) && pools.any(|pool| pool.listed && pool.share > 0)
    }

    /// Whether a server is in a pool that the virtual servers name: its connections live.
    pub(super) fn keeps(&self, server: usize) -> bool {
        let server = &self.servers[server];
        server.present && self.pools[server.pool].listed
    }

    pub(super) const fn has_spare(&self) -> bool {
        self.has_spare
    }

    pub(super) fn pool_of(&self, server: usize) -> usize {
        self.servers[server].pool
    }

    /// The VIPs of a mode, of one virtual server each.
    pub(super) const fn vips(mode: Mode) -> [Dual; 2] {
        let second = match mode {
            Mode::Nat => vip_of_one(11),
            Mode::FullNat => vip_of_one(21),
            Mode::Dr => vip_of_both(31),
            Mode::Tun => vip_of_both(41),
        };
        [mode.vip(), second]
    }

    /// The names of its virtual servers.
    pub(super) fn virtual_servers(&self) -> [String; 2] {
        let name = self.mode.virtual_server();
        [name.to_owned(), format!("{name}-second")]
    }

    /// The name of the manifest with its virtual servers.
    pub(super) const fn file(&self) -> &'static str {
        self.mode.virtual_server()
    }

    /// All its pools: names and, of the servers, addresses with weights.
    pub(super) fn pools(&self) -> [String; 2] {
        [0, 1].map(|pool| self.pool_name(pool))
    }

    /// The pools that its virtual servers name, with their shares.
    pub(super) fn shares(&self) -> Vec<(String, u32)> {
        let pools = self.pools.iter().enumerate();
        let listed = pools.filter(|(_, pool)| pool.listed);
        listed
            .map(|(index, pool)| (self.pool_name(index), pool.share))
            .collect()
    }

    /// The servers of a pool: name, addresses, weight.
    pub(super) fn members(
        &self,
        pool: usize,
        addresses: &Addresses,
    ) -> Vec<(&'static str, Dual, u32)> {
        let servers = self.servers.iter().zip(self.mode.servers());
        servers
            .filter(|(server, _)| server.pool == pool && server.present)
            .filter_map(|(server, name)| Some((name, *addresses.get(name)?, server.weight)))
            .collect()
    }

    /// Its ports. The one that comes and goes is the first, so that the others get other positions.
    pub(super) fn ports(&self) -> [VirtualServerPort; 3] {
        let spare = VirtualServerPort {
            name: "spare",
            protocol: Protocol::Tcp,
            port: if self.has_spare {
                SPARE_PORT
            } else {
                SPARE_PORT_AWAY
            },
        };
        [spare, PORTS[0], PORTS[1]]
    }

    /// Its manifests by name, those of pools first.
    pub(super) fn files(&self, addresses: &Addresses) -> Vec<(String, String)> {
        let mut files: Vec<_> = [0, 1]
            .map(|pool| {
                let name = self.pool_name(pool);
                let members = self.members(pool, addresses);
                let object = manifest::pool(&name, &members, self.mode.target_port());
                (name, manifest::documents(&[object]))
            })
            .into();
        let shares = self.shares();
        let shares: Vec<_> = shares.iter().map(|(name, w)| (name.as_str(), *w)).collect();
        let names = self.virtual_servers().into_iter();
        let objects: Vec<Value> = names
            .zip(Self::vips(self.mode))
            .map(|(name, vip)| {
                let vips = Family::BOTH.map(|family| vip.of(family));
                manifest::virtual_server_at(&name, self.mode.name(), &vips, &self.ports(), &shares)
            })
            .collect();
        files.push((self.file().to_owned(), manifest::documents(&objects)));
        files
    }

    fn pool_name(&self, pool: usize) -> String {
        let (name, names) = (self.mode.virtual_server(), self.pools[pool].names);
        format!("{name}-{}-v{names}", COLOURS[pool])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_without_servers_is_no_edit() {
        let service = Service::new(Mode::Dr);
        assert_eq!(service.edited(Edit::ServerOut(2)), None);
        assert_eq!(service.edited(Edit::Move(2)), None);
        let idle = service.edited(Edit::Shares([1, 0])).unwrap();
        assert_eq!(idle.edited(Edit::PoolOut(0)), None);
        let weight = |server| Edit::ServerWeight { server, weight: 0 };
        assert!(idle.edited(weight(2)).is_some());
        let one = idle.edited(weight(0)).unwrap();
        assert_eq!(one.edited(weight(1)), None);
        assert_eq!(one.edited(Edit::ServerOut(1)), None);
    }

    #[test]
    fn names_leave_servers_where_they_are() {
        let service = Service::new(Mode::Nat);
        let renamed = service.edited(Edit::Rename(0)).unwrap();
        assert_ne!(renamed.pools(), service.pools());
        assert!((0..3).all(|server| renamed.keeps(server)));
        let out = renamed.edited(Edit::PoolOut(0)).unwrap();
        assert_eq!([0, 1, 2].map(|s| out.keeps(s)), [false, false, true]);
        assert_eq!(out.shares().len(), 1);
    }
}
