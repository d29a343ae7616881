//! The room of the network: what the kernel says of links, addresses, neighbours and routes, and the way to each server.
//!
//! The kernel tells of changes; what was lost is asked for anew. Routes are looked up address by address, since the
//! kernel alone knows its rules. A question that it does not answer is asked again later, and until then the last answer
//! stays.

mod neighbours;
mod resolver;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use sluice_api::{NodeRole, Peer};
use sluice_planner::{Mac, NextHop};
use tracing::warn;

use super::back_off::BackOff;
use super::decided::Addresses;
use super::intent::Intent;
use super::io::Effect;
use crate::netlink::{Change, Error, Route, Table};

use neighbours::{Key, Neighbours};
use resolver::{Need, Resolver, Surroundings};

/// Time between two looks at the default routes while routes change.
const GATEWAYS: Duration = Duration::from_secs(10);

/// How long the servers beyond a link that has its carrier again may take to be resolved before it counts as whole without them.
const RETURN_LIMIT: Duration = Duration::from_secs(1);

/// The answers of the kernel that must be asked for anew.
#[derive(Clone, Copy, Debug, Default)]
struct Stale {
    table: bool,
    gateways: bool,
}

/// The room of the network.
#[derive(Debug)]
pub(super) struct Network {
    table: Table,
    resolver: Resolver,
    neighbours: Neighbours,
    /// Neighbours that the kernel has told of since they were looked at.
    heard: BTreeSet<Key>,
    /// Indices of the interfaces that carry XDP.
    uplinks: BTreeSet<u32>,
    /// Those of them that have no carrier.
    down: BTreeSet<u32>,
    /// Those that have it again, and since when, while servers beyond them are not resolved.
    returning: BTreeMap<u32, Instant>,
    /// The node's role, once it is known.
    role: Option<NodeRole>,
    /// Addresses that are the node's by its interfaces, and the version that they were worked out for.
    interface_addresses: (BTreeSet<IpAddr>, Option<u64>),
    peers: Option<Peer>,
    gateways: BTreeSet<Key>,
    gateways_changed: bool,
    gateways_read: Option<Instant>,
    stale: Stale,
    /// Whether an answer is awaited.
    waiting: bool,
    retry: BackOff,
    released_stale: bool,
    /// Next hops that are others, until the program knows. Own addresses have none.
    next_hops: BTreeMap<IpAddr, Option<NextHop>>,
    /// Counts changes of next hops and of what [`Self::own_addresses`] says.
    version: u64,
}

impl Network {
    pub(super) fn new() -> Self {
        Self {
            table: Table::default(),
            resolver: Resolver::default(),
            neighbours: Neighbours::default(),
            heard: BTreeSet::new(),
            uplinks: BTreeSet::new(),
            down: BTreeSet::new(),
            returning: BTreeMap::new(),
            role: None,
            interface_addresses: (BTreeSet::new(), None),
            peers: None,
            gateways: BTreeSet::new(),
            gateways_changed: false,
            gateways_read: None,
            stale: Stale {
                table: true,
                gateways: true,
            },
            waiting: false,
            retry: BackOff::default(),
            released_stale: false,
            next_hops: BTreeMap::new(),
            version: 0,
        }
    }

    /// Takes in news of the kernel. Returns whether interfaces have changed.
    pub(super) fn hear(&mut self, message: &RouteNetlinkMessage) -> bool {
        match self.table.apply(message) {
            Some(Change::Link(ifindex)) => {
                self.resolver.doubt_through(ifindex);
                self.heard.extend(self.neighbours.beyond(ifindex));
                self.version += 1;
                // IPv4 routes go with their interface without a word; the kernel tells of each that comes.
                let mut gateways = self.gateways.iter();
                self.stale.gateways |= gateways.any(|&(leads_there, _)| leads_there == ifindex);
                return true;
            }
            Some(Change::LinkBack) => {
                self.doubt_all();
                return true;
            }
            Some(Change::LinkAddress(ifindex)) => {
                self.resolver.doubt_through(ifindex);
                self.version += 1;
            }
            Some(Change::Address | Change::Routes) => self.doubt_all(),
            Some(Change::Route(prefix)) => {
                self.resolver.doubt_within(prefix);
                self.stale.gateways |= prefix.is_all();
            }
            Some(Change::Neighbour(ifindex, address)) => {
                self.heard.insert((ifindex, address));
            }
            None => {}
        }
        false
    }

    /// All routes may be others, and what is the node's own too.
    fn doubt_all(&mut self) {
        self.resolver.doubt_all();
        self.stale.gateways = true;
        self.version += 1;
    }

    /// Follows the addresses of servers, and the other directors' if these have changed.
    pub(super) fn follow(&mut self, servers: Addresses, peers: Option<Peer>) {
        for address in servers.added {
            self.resolver.follow(address, Need::Server);
        }
        for address in servers.removed {
            self.resolver.leave(address, Need::Server);
        }
        let Some(peers) = peers else {
            return;
        };
        for &address in &peers.addresses {
            self.resolver.follow(address, Need::Peer);
        }
        let before = self.peers.take().unwrap_or_default();
        for &address in before.addresses.difference(&peers.addresses) {
            self.resolver.leave(address, Need::Peer);
        }
        self.peers = Some(peers);
        self.version += 1;
    }

    /// News was lost.
    pub(super) fn lose(&mut self) {
        self.stale.table = true;
    }

    /// Takes in everything anew.
    pub(super) fn table_read(&mut self, read: Result<Table, Error>, now: Instant) {
        self.waiting = false;
        match read {
            Ok(table) => {
                self.table = table;
                self.stale.table = false;
                self.doubt_all();
                self.heard.extend(self.neighbours.all());
            }
            Err(error) => self.fail(&error, now),
        }
    }

    pub(super) fn gateways_read(&mut self, read: Result<Vec<(u32, IpAddr)>, Error>, now: Instant) {
        self.waiting = false;
        match read {
            Ok(gateways) => {
                self.gateways = gateways.into_iter().collect();
                self.gateways_changed = true;
                self.gateways_read = Some(now);
                self.stale.gateways = false;
            }
            Err(error) => self.fail(&error, now),
        }
    }

    /// Takes in routes. One that could not be looked up stays as it was known, and is looked up again later.
    pub(super) fn routes_found(
        &mut self,
        found: Vec<(IpAddr, Result<Route, Error>)>,
        intent: &Intent,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        self.waiting = false;
        let mut failure = None;
        for (address, route) in found {
            match route {
                Ok(route) => self.resolver.found(address, route),
                Err(error) => {
                    self.resolver.not_found(address);
                    failure = Some(error);
                }
            }
        }
        if let Some(error) = failure {
            self.fail(&error, now);
            self.track(intent, now, effects);
        }
    }

    fn fail(&mut self, error: &Error, now: Instant) {
        if !self.retry.is_failing() {
            warn!("cannot look at the network: {error}");
        }
        self.retry.fail(now);
    }

    /// Asks for the next thing that is not known, or, when all is, has neighbours kept.
    pub(super) fn turn(&mut self, intent: &Intent, now: Instant, effects: &mut Vec<Effect>) {
        self.find_uplinks(intent);
        self.look_at_carriers(now);
        let role = intent.node.as_ref().map(|node| node.spec.role);
        self.version += u64::from(role != self.role);
        self.role = role;
        if self.interface_addresses.1 != Some(self.version) {
            self.interface_addresses = (self.find_interface_addresses(), Some(self.version));
        }
        if self.waiting || !self.retry.is_over(now) {
            return;
        }
        if self.stale.table {
            return self.ask(Effect::ReadTable, effects);
        }
        let rested = self.gateways_read.is_none_or(|at| now >= at + GATEWAYS);
        if self.stale.gateways && (rested || self.gateways.is_empty()) {
            return self.ask(Effect::ReadGateways, effects);
        }
        let doubted = self.resolver.take_doubted();
        if !doubted.is_empty() {
            return self.ask(Effect::FindRoutes(doubted), effects);
        }
        self.track(intent, now, effects);
        self.retry.succeed();
    }

    fn ask(&mut self, effect: Effect, effects: &mut Vec<Effect>) {
        self.waiting = true;
        effects.push(effect);
    }

    /// Whether the rooms after this one have to wait.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// When something changes by itself.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if let Some(until) = self.retry.until() {
            return Some(until);
        }
        let gateways = self.gateways_read.filter(|_| self.stale.gateways);
        let gateways = gateways.map(|read| read + GATEWAYS);
        let neighbours = self.neighbours.deadline();
        let returning = self.returning.values().map(|since| *since + RETURN_LIMIT);
        let returning = returning.chain(gateways);
        returning.chain(neighbours).min()
    }

    /// Works out what follows from the newest answers, and has neighbours kept and released.
    fn track(&mut self, intent: &Intent, now: Instant, effects: &mut Vec<Effect>) {
        let mut released = Vec::new();
        if std::mem::take(&mut self.gateways_changed) {
            let gateways = self.gateways.iter().copied();
            let gateways = gateways.filter(|(ifindex, _)| self.uplinks.contains(ifindex));
            let (gateways, table) = (gateways.collect(), &self.table);
            released.extend(self.neighbours.set_gateways(&gateways, table, now));
        }
        for key in std::mem::take(&mut self.heard) {
            let users = self.neighbours.heard(key, &self.table, now);
            self.resolver.touch(users);
        }
        released.extend(self.work_out(now));
        let due = self.neighbours.take_due(&self.table, now);
        self.resolver.touch(due.overdue);
        released.extend(self.work_out(now));
        released.extend(self.neighbours.take_unanswered());
        let neighbours = &self.neighbours;
        self.returning.retain(|ifindex, since| {
            now < *since + RETURN_LIMIT && neighbours.lacks_servers(*ifindex)
        });
        if !self.released_stale && intent.node.is_some() && intent.decided.is_some() {
            // Neighbours that an earlier agent registered and this one does not need.
            self.released_stale = true;
            released.extend(self.neighbours.not_followed(self.table.registered()));
        }
        for (ifindex, address) in released {
            let entry = self.table.neighbour_at(ifindex, address);
            if entry.is_some_and(|entry| entry.ours) {
                effects.push(Effect::ReleaseNeighbour(ifindex, address));
            }
        }
        for (ifindex, address) in due.asked {
            effects.push(Effect::KeepNeighbour(ifindex, address));
        }
    }

    /// Works out the next hops that something has changed about. Returns the neighbours that nothing needs any more.
    fn work_out(&mut self, now: Instant) -> Vec<Key> {
        let around = Surroundings {
            table: &self.table,
            uplinks: &self.uplinks,
        };
        let outcome = self.resolver.work_out(around, &mut self.neighbours, now);
        self.version += u64::from(outcome.own_changed || !outcome.next_hops.is_empty());
        self.next_hops.extend(outcome.next_hops);
        outcome.released
    }

    fn find_uplinks(&mut self, intent: &Intent) {
        let links = intent.interfaces();
        let uplinks: BTreeSet<u32> = links
            .filter_map(|name| self.table.link_by_name(name))
            .map(|(ifindex, _)| ifindex)
            .collect();
        if self.uplinks != uplinks {
            self.uplinks = uplinks;
            self.gateways_changed = true;
            self.resolver.touch_all();
            self.version += 1;
        }
    }

    fn look_at_carriers(&mut self, now: Instant) {
        self.down.retain(|ifindex| self.uplinks.contains(ifindex));
        for &ifindex in &self.uplinks {
            if self
                .table
                .link_by_index(ifindex)
                .is_none_or(|link| !link.up)
            {
                self.down.insert(ifindex);
                self.returning.remove(&ifindex);
            } else if self.down.remove(&ifindex) {
                self.neighbours.ask_anew(ifindex, &self.table, now);
                self.returning.insert(ifindex, now);
            }
        }
    }

    /// Whether an uplink has got its carrier back just now, and no packet gets to servers beyond it yet.
    pub(super) fn is_returning(&self, ifindex: u32) -> bool {
        self.returning.contains_key(&ifindex)
    }

    /// Links, addresses and neighbours as last heard of.
    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    /// Every address of the node, by its interfaces or its routes.
    pub(super) fn own_addresses(&self) -> BTreeSet<IpAddr> {
        let mut addresses = self.interface_addresses().clone();
        addresses.extend(self.resolver.own());
        addresses
    }

    /// Whether an address is one of [`Self::own_addresses`].
    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        self.interface_addresses().contains(&address) || self.resolver.own().contains(&address)
    }

    /// Addresses that are the node's by its interfaces: the uplinks, what is on top of them, and, on a director, loopback.
    /// Others are not, such as those that kube-proxy keeps on a dummy interface. A server may have a VIP on loopback, as it
    /// must where no agent runs.
    pub(super) fn interface_addresses(&self) -> &BTreeSet<IpAddr> {
        &self.interface_addresses.0
    }

    fn find_interface_addresses(&self) -> BTreeSet<IpAddr> {
        let mut interfaces = self.table.stacked_on(self.uplinks.iter().copied());
        if self.role == Some(NodeRole::Director) {
            interfaces.extend(self.table.loopbacks());
        }
        self.table.addresses(&interfaces)
    }

    /// Next hops by address, those that have changed since they were last taken.
    pub(super) fn take_next_hops(&mut self) -> BTreeMap<IpAddr, Option<NextHop>> {
        std::mem::take(&mut self.next_hops)
    }

    /// Changes whenever what is said of the way to an address, or of own addresses, may be another.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// The addresses of all the other directors; `None`: nobody has said yet.
    pub(super) fn peers(&self) -> Option<&Peer> {
        self.peers.as_ref()
    }

    /// Whether a default route leads through an interface.
    pub(super) fn has_gateway(&self, ifindex: u32) -> bool {
        let mut gateways = self.gateways.iter();
        gateways.any(|&(leads_there, _)| leads_there == ifindex)
    }

    /// The gateways of the default routes through an interface.
    pub(super) fn gateways_through(&self, ifindex: u32) -> impl Iterator<Item = IpAddr> + '_ {
        let gateways = self.gateways.iter();
        let through = gateways.filter(move |(leads_there, _)| *leads_there == ifindex);
        through.map(|(_, gateway)| *gateway)
    }

    /// The gateways of all default routes, with the indices of the interfaces that lead there.
    pub(super) const fn gateways(&self) -> &BTreeSet<Key> {
        &self.gateways
    }

    /// Whether there is a default route.
    pub(super) fn has_gateways(&self) -> bool {
        !self.gateways.is_empty()
    }

    /// Own Ethernet addresses, with the index of the uplink that frames to them come by.
    pub(super) fn own_macs(&self) -> BTreeSet<(u32, Mac)> {
        let uplinks = self.uplinks.iter();
        let macs = uplinks.flat_map(|&uplink| {
            let macs = self.table.macs_of(uplink).into_iter();
            macs.map(move |mac| (uplink, mac))
        });
        macs.collect()
    }

    /// The Ethernet address of a followed address that is on the link of an uplink, as it was last known.
    pub(super) fn mac_on_link(&self, address: IpAddr) -> Option<Mac> {
        self.resolver.mac_on_link(address)
    }

    /// Whether the kernel keeps followed neighbours fresh by itself.
    pub(super) fn sees_managed(&self) -> bool {
        self.neighbours.sees_managed()
    }

    /// Neighbours that are followed, and how many of them are not resolved.
    pub(super) fn neighbours(&self) -> (usize, usize) {
        self.neighbours.counts()
    }
}
