//! A node's maps as they follow from what is decided and seen, change by change.
//!
//! ```text
//! set_virtual_server, set_servers ───┐
//! set_tenths, set_view, set_next_hop ┴► VIP ports concerned ─► plan() ─► operations, then exceptions
//! new, adopt: what the maps hold ─────► all VIP ports ──────────┤
//! set_announced ──────────────────────► addresses concerned ────┘
//! ```
//!
//! The cost of a change grows with what it touches: indices lead from an address to the pools that have a server there, from
//! a pool to its virtual servers, and from these to their VIP ports. These are planned anew, and of their rings only those
//! are computed whose servers or weights are not what they were. After a start, and whenever the maps may not be as planned,
//! all VIP ports are planned in this same way.
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

use sluice_api::{DecidedVirtualServer, ForwardingMode, ObjectKey, VipPort};

use crate::adopt;
use crate::announce::Announcements;
use crate::config::VipPortConfig;
use crate::diff::diff;
use crate::ids::address_of;
use crate::known::Known;
use crate::problem::{ObjectKind, Problem, Reason};
use crate::resolve::{Claims, claims, tags, vip_port};
use crate::surroundings::{self, Surroundings};
use crate::tables::{Tables, Usage};
use crate::{Announced, Image, Limits, MapOp, NextHop, NodeView, Server, Socket, Tenths, live};

/// A VIP port that somebody claims.
#[derive(Debug, Default)]
struct Claimed {
    /// Virtual servers that claim it; the first one that can be served has it.
    by: BTreeSet<ObjectKey>,
    /// The one that has it.
    served: Option<ObjectKey>,
}

/// The problems with a VIP port.
#[derive(PartialEq, Eq, Debug, Default)]
struct Trouble {
    /// Problems because of which something is not served, or not as described.
    problems: BTreeSet<Problem>,
    /// Problems for lack of room in the maps.
    full: BTreeSet<Problem>,
    /// Other problems because of which parts of it are not live.
    not_live: BTreeSet<Problem>,
}

/// A node's maps, as they are and as they shall be.
#[derive(Debug)]
pub struct Planner {
    known: Known,
    /// Problems of virtual servers that do not depend on the port.
    refused: BTreeMap<ObjectKey, BTreeSet<Problem>>,
    claimed: BTreeMap<VipPort, Claimed>,
    /// VIP ports with which something is wrong.
    troubles: BTreeMap<VipPort, Trouble>,
    /// Says what of the node's surroundings does not fit.
    more: BTreeSet<Problem>,
    /// Counts changes of what is wrong.
    trouble_changes: u64,
    /// VIP ports that are to be planned anew.
    dirty: BTreeSet<VipPort>,
    announcements: Announcements,
    /// Says which addresses are not announced for lack of room.
    not_announced: BTreeSet<Problem>,
    tables: Tables,
    /// Operations that come before all others: they remove what nobody owns from maps that were read back.
    first: Vec<MapOp>,
}

impl Planner {
    /// Nothing is decided, and nothing known of the node.
    pub fn new(limits: Limits, image: &Image) -> Self {
        let mut planner = Self {
            known: Known::default(),
            refused: BTreeMap::new(),
            claimed: BTreeMap::new(),
            troubles: BTreeMap::new(),
            more: BTreeSet::new(),
            trouble_changes: 0,
            dirty: BTreeSet::new(),
            announcements: Announcements::default(),
            not_announced: BTreeSet::new(),
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
            .extend(owned.vips.keys().filter_map(Socket::vip_port));
        self.announcements.adopt(&owned);
        self.tables = Tables::new(self.tables.limits, owned);
    }

    /// Takes in what was decided of a virtual server; `None`: it has no decision.
    pub fn set_virtual_server(
        &mut self,
        key: &ObjectKey,
        decided: Option<Arc<DecidedVirtualServer>>,
    ) {
        if self.known.virtual_servers.get(key) != decided.as_ref() {
            self.withdraw(key);
            self.known.set_virtual_server(key, decided);
            self.claim(key);
        }
    }

    /// Takes in the servers of a pool; `None`: it has no decision.
    pub fn set_servers(&mut self, pool: &ObjectKey, servers: Option<Arc<[Server]>>) {
        if self.known.pools.get(pool) != servers.as_ref() {
            self.known.set_servers(pool, servers);
            self.pool_changed(pool);
        }
    }

    /// Takes in which servers of a pool have less than all slots that are theirs.
    pub fn set_tenths(&mut self, pool: &ObjectKey, tenths: Option<Arc<Tenths>>) {
        let tenths = tenths.filter(|tenths| !tenths.is_empty());
        let known = &mut self.known.tenths;
        let before = match &tenths {
            Some(tenths) => known.insert(pool.clone(), Arc::clone(tenths)),
            None => known.remove(pool),
        };
        if before != tenths {
            self.pool_changed(pool);
        }
    }

    /// Takes in what the node sees of itself.
    pub fn set_view(&mut self, view: NodeView) {
        let more = surroundings::left_out(&view, &self.tables);
        self.trouble_changes += u64::from(self.more != more);
        self.more = more;
        let old = std::mem::replace(&mut self.known.view, view);
        let new = &self.known.view;
        if old.name != new.name || old.role != new.role {
            let virtual_servers = self.known.virtual_servers.keys();
            for key in virtual_servers.cloned().collect::<Vec<_>>() {
                self.claim_anew(&key);
            }
            return;
        }
        let changed = old.addresses.symmetric_difference(&new.addresses);
        for address in changed.copied().collect::<Vec<_>>() {
            for key in self.known.with_vip(address) {
                self.claim_anew(&key);
            }
            self.address_changed(address);
        }
    }

    /// Takes in what is known of the way to an address. `None` counts as [`NextHop::Pending`]; the node's own addresses need
    /// no next hop.
    pub fn set_next_hop(&mut self, address: IpAddr, next_hop: Option<NextHop>) {
        let next_hops = &mut self.known.next_hops;
        let old = match next_hop {
            Some(next_hop) => next_hops.insert(address, next_hop),
            None => next_hops.remove(&address),
        };
        if old != next_hop {
            self.address_changed(address);
        }
    }

    /// Takes in how an address is to be announced; `None`: not at all. A VIP is as soon as, and as long as, this node balances
    /// one of its ports.
    pub fn set_announced(&mut self, address: IpAddr, announced: Option<Announced>) {
        self.announcements.set(address, announced);
    }

    /// The servers at an address are reached otherwise.
    fn address_changed(&mut self, address: IpAddr) {
        for pool in self.known.pools_at(address) {
            self.pool_changed(&pool);
        }
    }

    fn pool_changed(&mut self, pool: &ObjectKey) {
        for user in self.known.users(pool) {
            if let Some(decided) = self.known.virtual_servers.get(user) {
                self.dirty.extend(decided.vip_ports());
            }
        }
    }

    fn claim_anew(&mut self, key: &ObjectKey) {
        self.withdraw(key);
        self.claim(key);
    }

    fn withdraw(&mut self, key: &ObjectKey) {
        if self.refused.remove(key).is_some() {
            self.trouble_changes += 1;
        }
        let Some(decided) = self.known.virtual_servers.get(key) else {
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
        let Some(decided) = self.known.virtual_servers.get(key) else {
            return;
        };
        let Claims {
            vip_ports,
            problems,
        } = claims(&self.known.view, key, decided);
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
            self.trouble_changes += 1;
        }
    }

    /// The next operations, in an order of which every prefix is safe. They are taken for done. None: the maps are as they
    /// shall be, as far as they have room.
    pub fn plan(&mut self) -> Vec<MapOp> {
        let mut operations = std::mem::take(&mut self.first);
        if !operations.is_empty() {
            return operations;
        }
        let around = Surroundings::wanted(&self.known.view, &self.tables);
        let is_dirty = !self.dirty.is_empty() || self.announcements.is_dirty();
        if !is_dirty && around == Surroundings::of(&self.tables.image) {
            return operations;
        }
        let mut wanted = BTreeMap::new();
        let mut troubles: BTreeMap<VipPort, Trouble> = BTreeMap::new();
        for vip_port in std::mem::take(&mut self.dirty) {
            let (config, problems) = self.resolve(vip_port);
            wanted.insert(vip_port, config);
            troubles.entry(vip_port).or_default().problems = problems;
        }
        let mut planned = crate::plan::plan(&mut self.tables, &wanted);
        Surroundings::of(&self.tables.image).put_into(&mut planned.part);
        around.put_into(&mut planned.desired);
        let addresses = wanted.keys().map(|vip_port| vip_port.address);
        self.announcements
            .plan(&self.tables, addresses, &mut planned);
        let mut full = std::mem::take(&mut planned.full);
        operations = diff(&planned.part, &planned.desired, &planned.layouts);
        self.tables.replace(planned);
        for (vip_port, mut trouble) in troubles {
            trouble.full = full.remove(&vip_port).unwrap_or_default();
            if let Some(Some(config)) = wanted.get(&vip_port) {
                trouble.not_live = live::of_vip_port(&vip_port, config, &self.tables.image);
            }
            self.note(vip_port, trouble);
        }
        if !operations.is_empty() {
            // The room that these make is there for the next plan. A quota has room only after what the virtual server gave up.
            let is_starved = |(vip_port, trouble): &(&VipPort, &Trouble)| {
                let mut full = trouble.full.iter();
                full.any(|problem| {
                    problem.reason != Reason::QuotaExceeded || wanted.contains_key(*vip_port)
                })
            };
            let starved = self.troubles.iter().filter(is_starved);
            self.dirty.extend(starved.map(|(vip_port, _)| *vip_port));
            self.announcements.try_full();
        }
        self.note_announcements();
        operations
    }

    fn note_announcements(&mut self) {
        let (node, limit) = (&self.known.view.name, self.tables.limits.announced);
        let problems = self.announcements.left_out(node, limit);
        self.trouble_changes += u64::from(problems != self.not_announced);
        self.not_announced = problems;
    }

    /// A VIP port as it shall be, with the virtual server that has it, and the problems with serving it as described.
    fn resolve(&mut self, at: VipPort) -> (Option<VipPortConfig>, BTreeSet<Problem>) {
        let mut problems = BTreeSet::new();
        let Some(claimed) = self.claimed.get_mut(&at) else {
            return (None, problems);
        };
        let mut found: Option<VipPortConfig> = None;
        for key in &claimed.by {
            if let Some(first) = &found {
                problems.insert(conflict(at, key, &first.virtual_server));
                continue;
            }
            let (config, of_this_one) = vip_port(&self.known, key, at);
            problems.extend(of_this_one);
            found = config;
        }
        claimed.served = found.as_ref().map(|config| config.virtual_server.clone());
        if claimed.by.is_empty() {
            self.claimed.remove(&at);
        }
        (found, problems)
    }

    fn note(&mut self, vip_port: VipPort, trouble: Trouble) {
        let before = self.troubles.remove(&vip_port).unwrap_or_default();
        self.trouble_changes += u64::from(before != trouble);
        if trouble != Trouble::default() {
            self.troubles.insert(vip_port, trouble);
        }
    }

    /// The content of the maps once all operations that were returned are applied.
    pub fn image(&self) -> &Image {
        &self.tables.image
    }

    /// The limits of the maps.
    pub fn limits(&self) -> &Limits {
        &self.tables.limits
    }

    /// How many entries of the maps are in use.
    pub fn usage(&self) -> Usage {
        self.tables.usage()
    }

    /// Indices of the interfaces by which the tc programs deliver to servers.
    pub fn tc_interfaces(&self) -> impl Iterator<Item = u32> {
        self.tables.tc_interfaces()
    }

    /// Changes whenever [`Self::problems`], [`Self::full`] or [`Self::exceptions`] may.
    pub fn trouble_changes(&self) -> u64 {
        self.trouble_changes
    }

    /// Problems because of which something is not served, or not as described.
    pub fn problems(&self) -> BTreeSet<&Problem> {
        let of_ports = self.troubles.values().flat_map(|trouble| &trouble.problems);
        self.refused.values().flatten().chain(of_ports).collect()
    }

    /// Problems for lack of room in the maps. The parts concerned are as they were.
    pub fn full(&self) -> BTreeSet<&Problem> {
        let of_ports = self.troubles.values().flat_map(|trouble| &trouble.full);
        let of_node = self.more.iter().chain(&self.not_announced);
        of_ports.chain(of_node).collect()
    }

    /// Problems because of which decisions are not live: exceptions that a node names beside the revision it acknowledges.
    ///
    /// Live means that every pool with a share is known and its ring in place: the head has the decided shares, and each
    /// server's part of the ring's slots is its weight. This looks at the maps' content and not at what a plan intended.
    pub fn exceptions(&self) -> BTreeSet<&Problem> {
        let mut exceptions = self.problems();
        exceptions.retain(|problem| problem.exception);
        exceptions.extend(self.troubles.values().flat_map(|trouble| &trouble.not_live));
        exceptions
    }

    /// The VIP ports that are served, and for which virtual server.
    pub fn served(&self) -> impl Iterator<Item = (VipPort, &ObjectKey)> {
        let claimed = self.claimed.iter();
        claimed.filter_map(|(vip_port, claimed)| Some((*vip_port, claimed.served.as_ref()?)))
    }

    /// The VIP ports that are served, and by which forwarding mode.
    pub fn served_modes(&self) -> impl Iterator<Item = (VipPort, ForwardingMode)> {
        self.served().filter_map(|(vip_port, key)| {
            let decided = self.known.virtual_servers.get(key)?;
            Some((vip_port, decided.mode))
        })
    }

    /// The servers in the maps.
    pub fn servers(&self) -> impl Iterator<Item = ServerInfo<'_>> {
        self.served()
            .flat_map(|(vip_port, virtual_server)| self.servers_at(vip_port, virtual_server))
    }

    /// The servers in the maps whose connections are sampled, of the pools that have them sampled.
    pub fn sampled(&self) -> impl Iterator<Item = ServerInfo<'_>> {
        let sampled = |pool: &&ObjectKey| {
            let servers = self.known.pools.get(pool);
            servers.is_some_and(|servers| servers.iter().any(|server| server.is_sampled))
        };
        let pools = self.known.pools.keys().filter(sampled);
        pools.flat_map(move |pool| {
            let users = self.known.users(pool);
            let served = users.flat_map(move |user| {
                let decided = self.known.virtual_servers.get(user).into_iter();
                let vip_ports = decided.flat_map(|decided| decided.vip_ports());
                vip_ports.filter_map(move |at| {
                    let has = self.claimed.get(&at)?.served.as_ref() == Some(user);
                    has.then_some((at, user))
                })
            });
            let servers = served.flat_map(|(at, user)| self.servers_at(at, user));
            servers.filter(move |server| server.pool == pool.name)
        })
    }

    fn servers_at<'a>(
        &'a self,
        vip_port: VipPort,
        virtual_server: &'a ObjectKey,
    ) -> impl Iterator<Item = ServerInfo<'a>> {
        let decided = self.known.virtual_servers.get(virtual_server);
        let pools = decided.into_iter().flat_map(|decided| &decided.pools);
        let tags = decided.map_or_else(Vec::new, |decided| tags(&decided.pools));
        let pools: BTreeMap<u32, &str> = tags
            .into_iter()
            .zip(pools.map(|p| p.name.as_str()))
            .collect();
        let servers = self.tables.servers_of(vip_port);
        servers.filter_map(move |(id, epoch, record)| {
            Some(ServerInfo {
                id,
                epoch,
                vip_port,
                virtual_server,
                pool: pools.get(&record.tag)?,
                address: address_of(record),
                port: u16::from_be_bytes(record.port),
            })
        })
    }

    /// The names that users gave the servers of a pool at an address.
    pub fn names<'a>(&'a self, pool: &ObjectKey, address: IpAddr) -> impl Iterator<Item = &'a str> {
        let servers = self.known.pools.get(pool).into_iter();
        let there = servers
            .flat_map(|servers| &**servers)
            .filter(move |server| server.address == address);
        there.map(|server| server.name.as_str())
    }
}

/// A server in the maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServerInfo<'a> {
    /// Its id.
    pub id: u32,
    /// The epoch of the id: an earlier server with the same id had another.
    pub epoch: u8,
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
