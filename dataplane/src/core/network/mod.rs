//! The room of the network: what the kernel says of links, addresses, neighbours and routes, and the way to each server.
//!
//! The kernel tells of changes; what was lost is asked for anew. Routes are looked up address by address, since the
//! kernel alone knows its rules. A question that it does not answer is asked again later, and until then the last answer
//! stays.

mod resolver;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use sluice_planner::{Mac, NextHop};
use tracing::warn;

use super::back_off::BackOff;
use super::intent::Intent;
use super::io::Effect;
use crate::netlink::{Change, Error, Route, Table};

use resolver::{Resolver, Surroundings};

/// Time between two looks at the default routes while routes change.
const GATEWAYS: Duration = Duration::from_secs(10);

/// What is to be asked for anew.
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
    /// Indices of the interfaces that carry XDP.
    uplinks: BTreeSet<u32>,
    gateways: BTreeSet<(u32, IpAddr)>,
    gateways_read: Option<Instant>,
    stale: Stale,
    /// Whether an answer is awaited.
    waiting: bool,
    retry: BackOff,
    /// The state of the intent from which the followed addresses were taken.
    followed: Option<(u64, u64)>,
    released_stale: bool,
}

impl Network {
    pub(super) fn new() -> Self {
        Self {
            table: Table::default(),
            resolver: Resolver::default(),
            uplinks: BTreeSet::new(),
            gateways: BTreeSet::new(),
            gateways_read: None,
            stale: Stale {
                table: true,
                gateways: true,
            },
            waiting: false,
            retry: BackOff::default(),
            followed: None,
            released_stale: false,
        }
    }

    /// Takes in news of the kernel. Returns whether interfaces have changed.
    pub(super) fn hear(&mut self, message: &RouteNetlinkMessage) -> bool {
        match self.table.apply(message) {
            Some(Change::Link(ifindex)) => {
                self.resolver.doubt_through(ifindex);
                // IPv4 routes go with their interface without a word; the kernel tells of each that comes.
                let mut gateways = self.gateways.iter();
                self.stale.gateways |= gateways.any(|&(leads_there, _)| leads_there == ifindex);
                return true;
            }
            Some(Change::LinkBack) => {
                self.resolver.doubt_all();
                self.stale.gateways = true;
                return true;
            }
            Some(Change::LinkAddress(ifindex)) => self.resolver.doubt_through(ifindex),
            Some(Change::Address | Change::Routes) => {
                self.resolver.doubt_all();
                self.stale.gateways = true;
            }
            Some(Change::Route(prefix)) => {
                self.resolver.doubt_within(prefix);
                self.stale.gateways |= prefix.is_all();
            }
            Some(Change::Neighbour) | None => {}
        }
        false
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
                self.stale = Stale {
                    table: false,
                    gateways: true,
                };
                self.resolver.doubt_all();
            }
            Err(error) => self.fail(&error, now),
        }
    }

    pub(super) fn gateways_read(&mut self, read: Result<Vec<(u32, IpAddr)>, Error>, now: Instant) {
        self.waiting = false;
        match read {
            Ok(gateways) => {
                self.gateways = gateways.into_iter().collect();
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
        self.uplinks = self.find_uplinks(intent);
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
        let version = (intent.version, intent.peers_version);
        if self.followed != Some(version) {
            self.followed = Some(version);
            self.resolver.follow(&intent.addresses_to_reach());
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
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        if let Some(until) = self.retry.until() {
            return Some(until);
        }
        let gateways = self.gateways_read.filter(|_| self.stale.gateways);
        let gateways = gateways.map(|read| read + GATEWAYS);
        let neighbours = self.resolver.deadline(&self.table, now);
        gateways.into_iter().chain(neighbours).min()
    }

    fn track(&mut self, intent: &Intent, now: Instant, effects: &mut Vec<Effect>) {
        let gateways = self.gateways.iter();
        let gateways = gateways.filter(|(ifindex, _)| self.uplinks.contains(ifindex));
        let gateways: BTreeSet<(u32, IpAddr)> = gateways.copied().collect();
        let around = Surroundings {
            table: &self.table,
            uplinks: &self.uplinks,
        };
        let mut released = self.resolver.track(around, &gateways, now);
        if !self.released_stale && intent.node.is_some() && intent.decisions.is_some() {
            // What an earlier agent registered and this one does not need.
            self.released_stale = true;
            released.extend(self.resolver.not_tracked(self.table.registered()));
        }
        for (ifindex, address) in released {
            let entry = self.table.neighbour_at(ifindex, address);
            if entry.is_some_and(|entry| entry.ours) {
                effects.push(Effect::ReleaseNeighbour(ifindex, address));
            }
        }
        for (ifindex, address) in self.resolver.due(&self.table, now) {
            effects.push(Effect::KeepNeighbour(ifindex, address));
        }
    }

    fn find_uplinks(&self, intent: &Intent) -> BTreeSet<u32> {
        let links = intent.interfaces();
        links
            .filter_map(|name| self.table.link_by_name(name))
            .map(|(ifindex, _)| ifindex)
            .collect()
    }

    /// Links, addresses and neighbours as last heard of.
    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    /// Every address of the node, by its interfaces or its routes.
    pub(super) fn own_addresses(&self) -> BTreeSet<IpAddr> {
        let mut addresses = self.table.addresses();
        addresses.extend(self.resolver.own());
        addresses
    }

    /// What is known of the way to each address.
    pub(super) fn next_hops(&self, now: Instant) -> BTreeMap<IpAddr, NextHop> {
        self.resolver.next_hops(self.around(), now)
    }

    /// The Ethernet address of a followed address that is on the link of an uplink.
    pub(super) fn mac_on_link(&self, address: IpAddr) -> Option<Mac> {
        self.resolver.mac_on_link(self.around(), address)
    }

    /// Whether the kernel keeps followed neighbours fresh by itself.
    pub(super) fn sees_managed(&self) -> bool {
        self.resolver.sees_managed(&self.table)
    }

    /// Neighbours that are followed, and how many of them are not resolved.
    pub(super) fn neighbours(&self) -> (usize, usize) {
        self.resolver.counts()
    }

    fn around(&self) -> Surroundings<'_> {
        Surroundings {
            table: &self.table,
            uplinks: &self.uplinks,
        }
    }
}
