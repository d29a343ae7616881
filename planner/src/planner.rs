//! A node's maps as they follow from what is decided and seen, change by change.
//!
//! ```text
//! set_virtual_server, set_servers ─┐
//! set_view ────────────────────────┴► VIP ports concerned ─► plan() ─► operations, then exceptions
//! new, adopt: what the maps hold ───► all VIP ports ──────────┘
//! ```
//!
//! What a change costs grows with what it touches: indices lead from an address to the pools that have a server there, from a
//! pool to its virtual servers, and from these to their VIP ports. These are planned anew, and of their rings only those are
//! computed whose servers or weights are not what they were. After a start, and whenever the maps may not be as planned, all
//! VIP ports are planned in this same way.
//!
//! An agent calls it like this:
//!
//! 1. [`Planner::new`] with what the maps hold; the setters, as news comes.
//! 2. [`Planner::plan`], and the operations that it returns in their order, until it returns none. What is full may have room
//!    after operations that remove something: the next call tries it again.
//! 3. If an operation fails: a grace period, [`Planner::adopt`] with the maps read back, and on from 2.
//! 4. [`Planner::exceptions`] and the other questions, once nothing is left to do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use sluice_api::{DecidedVirtualServer, ObjectKey, VipPort};

use crate::adopt;
use crate::config::VipPortConfig;
use crate::diff::diff;
use crate::ids::address_of;
use crate::problem::{ObjectKind, Problem, Reason};
use crate::resolve::{Claims, claims, tags, vip_port};
use crate::tables::Tables;
use crate::{Endpoint, Image, Limits, Mac, MapOp, NodeView, Server, Snapshot, live};

/// What is known of a VIP port that somebody claims.
#[derive(Debug, Default)]
struct Claimed {
    /// Virtual servers that claim it; the first one that can be served has it.
    by: BTreeSet<ObjectKey>,
    /// The one that has it.
    served: Option<ObjectKey>,
    /// What cannot be served, or not as described.
    problems: BTreeSet<Problem>,
    /// What did not fit.
    full: BTreeSet<Problem>,
    /// What is not live of it, other than for its problems.
    not_live: BTreeSet<Problem>,
}

/// A node's maps, as they are and as they shall be.
#[derive(Debug)]
pub struct Planner {
    snapshot: Snapshot,
    view: NodeView,
    /// Pools and the virtual servers that name them.
    users: BTreeSet<(ObjectKey, ObjectKey)>,
    /// Addresses and the pools that have a server there.
    addresses: BTreeSet<(IpAddr, ObjectKey)>,
    /// What is wrong with a virtual server whatever the port.
    refused: BTreeMap<ObjectKey, BTreeSet<Problem>>,
    claimed: BTreeMap<VipPort, Claimed>,
    /// VIP ports that are to be planned anew.
    dirty: BTreeSet<VipPort>,
    tables: Tables,
    /// What has to be done before anything else.
    first: Vec<MapOp>,
}

impl Planner {
    /// Nothing is decided, and nothing known of the node.
    pub fn new(limits: Limits, image: &Image) -> Self {
        let mut planner = Self {
            snapshot: Snapshot::default(),
            view: NodeView::default(),
            users: BTreeSet::new(),
            addresses: BTreeSet::new(),
            refused: BTreeMap::new(),
            claimed: BTreeMap::new(),
            dirty: BTreeSet::new(),
            tables: Tables::new(limits, Image::default()),
            first: Vec::new(),
        };
        planner.adopt(image);
        planner
    }

    /// Takes the maps for what they are: everything is planned anew.
    pub fn adopt(&mut self, image: &Image) {
        let owned = adopt::owned(image);
        self.first = diff(image, &owned, &BTreeMap::new());
        self.dirty = self.claimed.keys().copied().collect();
        self.dirty
            .extend(owned.vips.keys().filter_map(Endpoint::vip_port));
        self.tables = Tables::new(self.tables.limits, owned);
    }

    /// Takes in what was decided of a virtual server; `None`: it has no decision.
    pub fn set_virtual_server(
        &mut self,
        key: &ObjectKey,
        decided: Option<&Arc<DecidedVirtualServer>>,
    ) {
        let old = self.snapshot.virtual_servers.get(key);
        if old == decided {
            return;
        }
        for pool in old.iter().flat_map(|old| &old.pools) {
            self.users.remove(&(key.sibling(&pool.name), key.clone()));
        }
        for pool in decided.iter().flat_map(|decided| &decided.pools) {
            self.users.insert((key.sibling(&pool.name), key.clone()));
        }
        self.withdraw(key);
        match decided {
            Some(decided) => self
                .snapshot
                .virtual_servers
                .insert(key.clone(), Arc::clone(decided)),
            None => self.snapshot.virtual_servers.remove(key),
        };
        self.claim(key);
    }

    /// Takes in the servers of a pool; `None`: it has no decision.
    pub fn set_servers(&mut self, pool: &ObjectKey, servers: Option<&Vec<Server>>) {
        let old = self.snapshot.pools.get(pool);
        if old == servers {
            return;
        }
        for server in old.into_iter().flatten() {
            self.addresses.remove(&(server.address, pool.clone()));
        }
        for server in servers.into_iter().flatten() {
            self.addresses.insert((server.address, pool.clone()));
        }
        match servers {
            Some(servers) => self.snapshot.pools.insert(pool.clone(), servers.clone()),
            None => self.snapshot.pools.remove(pool),
        };
        self.pool_changed(pool);
    }

    /// Takes in everything that is decided.
    pub fn set_snapshot(&mut self, snapshot: &Snapshot) {
        let gone = |old: &ObjectKey| !snapshot.virtual_servers.contains_key(old);
        let known = self.snapshot.virtual_servers.keys();
        for key in known.filter(|key| gone(key)).cloned().collect::<Vec<_>>() {
            self.set_virtual_server(&key, None);
        }
        let gone = |old: &ObjectKey| !snapshot.pools.contains_key(old);
        let known = self.snapshot.pools.keys();
        for key in known.filter(|key| gone(key)).cloned().collect::<Vec<_>>() {
            self.set_servers(&key, None);
        }
        for (key, decided) in &snapshot.virtual_servers {
            self.set_virtual_server(key, Some(decided));
        }
        for (key, servers) in &snapshot.pools {
            self.set_servers(key, Some(servers));
        }
    }

    /// Takes in what the node sees.
    pub fn set_view(&mut self, view: NodeView) {
        let old = std::mem::replace(&mut self.view, view);
        let same_node = old.name == self.view.name
            && old.role == self.view.role
            && old.addresses == self.view.addresses;
        if !same_node {
            let keys: Vec<ObjectKey> = self.snapshot.virtual_servers.keys().cloned().collect();
            for key in &keys {
                self.withdraw(key);
                self.claim(key);
            }
            return;
        }
        for address in changed(&old.next_hops, &self.view.next_hops) {
            let from = (address, ObjectKey::new("", ""));
            let pools = self.addresses.range(from..);
            let pools = pools.take_while(|(other, _)| *other == address);
            for pool in pools.map(|(_, pool)| pool.clone()).collect::<Vec<_>>() {
                self.pool_changed(&pool);
            }
        }
    }

    fn pool_changed(&mut self, pool: &ObjectKey) {
        let from = (pool.clone(), ObjectKey::new("", ""));
        let users = self
            .users
            .range(from..)
            .take_while(|(other, _)| other == pool);
        for (_, user) in users {
            if let Some(decided) = self.snapshot.virtual_servers.get(user) {
                self.dirty.extend(decided.vip_ports());
            }
        }
    }

    fn withdraw(&mut self, key: &ObjectKey) {
        self.refused.remove(key);
        let Some(decided) = self.snapshot.virtual_servers.get(key) else {
            return;
        };
        for vip_port in decided.vip_ports() {
            if let Some(claimed) = self.claimed.get_mut(&vip_port) {
                claimed.by.remove(key);
            }
            self.dirty.insert(vip_port);
        }
    }

    fn claim(&mut self, key: &ObjectKey) {
        let Some(decided) = self.snapshot.virtual_servers.get(key) else {
            return;
        };
        let Claims {
            vip_ports,
            problems,
        } = claims(&self.view, key, decided);
        for vip_port in vip_ports {
            self.claimed
                .entry(vip_port)
                .or_default()
                .by
                .insert(key.clone());
            self.dirty.insert(vip_port);
        }
        if !problems.is_empty() {
            self.refused.insert(key.clone(), problems);
        }
    }

    /// The next operations, in an order of which every prefix is safe. They are taken for done. None: the maps are as they
    /// shall be, as far as they have room.
    pub fn plan(&mut self) -> Vec<MapOp> {
        let mut operations = std::mem::take(&mut self.first);
        if !operations.is_empty() {
            return operations;
        }
        let peers = self.wanted_peers();
        if self.dirty.is_empty() && peers == self.tables.image.peers {
            return operations;
        }
        let dirty = std::mem::take(&mut self.dirty);
        let wanted: BTreeMap<VipPort, Option<VipPortConfig>> = dirty
            .into_iter()
            .map(|vip_port| (vip_port, self.resolve(vip_port)))
            .collect();
        let mut planned = crate::plan::plan(&mut self.tables, &wanted);
        planned.part.peers.clone_from(&self.tables.image.peers);
        planned.desired.peers = peers;
        let mut full = std::mem::take(&mut planned.full);
        operations = diff(&planned.part, &planned.desired, &planned.layouts);
        self.tables.replace(planned);
        for (vip_port, config) in &wanted {
            let Some(claimed) = self.claimed.get_mut(vip_port) else {
                continue;
            };
            claimed.full = full.remove(vip_port).unwrap_or_default();
            claimed.not_live = match config {
                Some(config) => live::of_vip_port(vip_port, config, &self.tables.image),
                None => BTreeSet::new(),
            };
            if claimed.by.is_empty() {
                self.claimed.remove(vip_port);
            }
        }
        if !operations.is_empty() {
            // The room that these make is there for the next plan.
            let starved = self
                .claimed
                .iter()
                .filter(|(_, claimed)| !claimed.full.is_empty());
            self.dirty.extend(starved.map(|(vip_port, _)| *vip_port));
        }
        operations
    }

    /// What a VIP port shall be, and whose.
    fn resolve(&mut self, at: VipPort) -> Option<VipPortConfig> {
        let claimed = self.claimed.get_mut(&at)?;
        claimed.problems.clear();
        let mut found: Option<VipPortConfig> = None;
        for key in &claimed.by {
            if let Some(first) = &found {
                claimed
                    .problems
                    .insert(conflict(at, key, &first.virtual_server));
                continue;
            }
            let (config, problems) = vip_port(&self.snapshot, &self.view, key, at);
            claimed.problems.extend(problems);
            found = config;
        }
        claimed.served = found.as_ref().map(|config| config.virtual_server.clone());
        found
    }

    fn wanted_peers(&self) -> BTreeSet<Mac> {
        let limit = self.tables.limits.peers as usize;
        self.view.peers.iter().copied().take(limit).collect()
    }

    /// What the maps hold once all operations that were returned are applied.
    pub fn image(&self) -> &Image {
        &self.tables.image
    }

    /// What cannot be served, or not as described.
    pub fn problems(&self) -> BTreeSet<Problem> {
        let of_ports = self.claimed.values().flat_map(|claimed| &claimed.problems);
        let all = self.refused.values().flatten().chain(of_ports);
        all.cloned().collect()
    }

    /// What does not fit. The parts concerned are as they were.
    pub fn full(&self) -> BTreeSet<Problem> {
        let of_ports = self.claimed.values().flat_map(|claimed| &claimed.full);
        let mut full: BTreeSet<Problem> = of_ports.cloned().collect();
        let limit = self.tables.limits.peers;
        let more = self.view.peers.len().saturating_sub(limit as usize);
        if more > 0 {
            full.insert(Problem {
                kind: ObjectKind::LoadBalancerNode,
                object: ObjectKey::new("", &self.view.name),
                reason: Reason::LimitExceeded,
                message: format!(
                    "PEERS is full ({limit} entries), so packets from {more} directors more are balanced again: give the \
                     agent larger maps"
                ),
                exception: true,
            });
        }
        full
    }

    /// What is not live of what was decided: the exceptions that a node names beside the revision it acknowledges.
    ///
    /// Live means that every pool with a share is known and its ring in place: the head has the decided shares, and each
    /// server's part of the ring's slots is its weight. This looks at the maps' content and not at what a plan intended.
    pub fn exceptions(&self) -> BTreeSet<Problem> {
        let mut exceptions = self.problems();
        exceptions.retain(|problem| problem.exception);
        let not_live = self.claimed.values().flat_map(|claimed| &claimed.not_live);
        exceptions.extend(not_live.cloned());
        exceptions
    }

    /// The VIP ports that are served, and for which virtual server.
    pub fn served(&self) -> impl Iterator<Item = (VipPort, &ObjectKey)> {
        let claimed = self.claimed.iter();
        claimed.filter_map(|(vip_port, claimed)| Some((*vip_port, claimed.served.as_ref()?)))
    }

    /// The servers in the maps.
    pub fn servers(&self) -> impl Iterator<Item = ServerInfo<'_>> {
        self.served().flat_map(|(vip_port, virtual_server)| {
            let decided = self.snapshot.virtual_servers.get(virtual_server);
            let pools = decided.into_iter().flat_map(|decided| &decided.pools);
            let tags = decided.map_or_else(Vec::new, |decided| tags(&decided.pools));
            let pools: BTreeMap<u32, &str> = tags
                .into_iter()
                .zip(pools.map(|p| p.name.as_str()))
                .collect();
            let servers = self.tables.servers_of(vip_port);
            servers.filter_map(move |(id, record)| {
                Some(ServerInfo {
                    id,
                    vip_port,
                    virtual_server,
                    pool: pools.get(&record.tag)?,
                    address: address_of(record),
                    port: u16::from_be_bytes(record.port),
                })
            })
        })
    }

    /// What users call the servers of a pool at an address.
    pub fn names<'a>(&'a self, pool: &ObjectKey, address: IpAddr) -> impl Iterator<Item = &'a str> {
        let servers = self.snapshot.pools.get(pool).into_iter().flatten();
        let there = servers.filter(move |server| server.address == address);
        there.map(|server| server.name.as_str())
    }
}

/// A server in the maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServerInfo<'a> {
    /// Its id.
    pub id: u32,
    /// The VIP port that it serves.
    pub vip_port: VipPort,
    /// The virtual server.
    pub virtual_server: &'a ObjectKey,
    /// The pool's name.
    pub pool: &'a str,
    /// The server's address.
    pub address: IpAddr,
    /// The server's port, or the virtual server's where the server's node translates it.
    pub port: u16,
}

fn conflict(at: VipPort, key: &ObjectKey, other: &ObjectKey) -> Problem {
    Problem {
        kind: ObjectKind::VirtualServer,
        object: key.clone(),
        reason: Reason::EndpointConflict,
        message: format!(
            "{at} is served for {other} already: change spec.addresses or spec.ports of one of the two"
        ),
        exception: true,
    }
}

/// The keys whose values differ.
fn changed<V: PartialEq>(old: &BTreeMap<IpAddr, V>, new: &BTreeMap<IpAddr, V>) -> Vec<IpAddr> {
    let gone = old.keys().filter(|key| !new.contains_key(key));
    let other = new
        .iter()
        .filter(|(key, value)| old.get(key) != Some(*value));
    gone.chain(other.map(|(key, _)| key)).copied().collect()
}
