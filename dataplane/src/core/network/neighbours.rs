//! The neighbours that must be known, and when the kernel is to be asked for them.
//!
//! A neighbour is *pending* for its first second, then *overdue* until it is resolved. One that was resolved and stops
//! answering is *unreachable* at once. What is not resolved is asked for every second, and what the kernel does not keep
//! fresh by itself is used again every ten.
//!
//! Through a link without a carrier nothing is asked for: the kernel would wait three seconds for the answer, also when the
//! link is back before. Then everything beyond it is asked for at once.
//!
//! Other directors are not sent anything: while one does not answer it is asked for ever more seldom, and the kernel, which
//! would go on asking, does not keep it meanwhile.

use std::collections::btree_map::Entry::Vacant;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use sluice_planner::{Hop, Mac, NextHop};

use crate::netlink::{NeighbourState, Table};

/// How long a next hop may take before a server enters its ring without.
const PENDING_LIMIT: Duration = Duration::from_secs(1);
/// Time between two requests to resolve a neighbour that is not known.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// The same at most, for other directors that do not answer.
const ASK_SELDOM: Duration = Duration::from_secs(64);
/// Time between two uses of a neighbour that the kernel does not keep fresh by itself.
const KEEP_FRESH: Duration = Duration::from_secs(10);

/// A neighbour: an interface and an address beyond it.
pub(super) type Key = (u32, IpAddr);

/// The neighbours that are followed.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    entries: BTreeMap<Key, Entry>,
    /// When something is to be done about a neighbour.
    agenda: BTreeSet<(Instant, Key)>,
    /// Other directors that do not answer, which the kernel need not keep.
    unanswered: BTreeSet<Key>,
    unresolved: usize,
    managed: usize,
}

#[derive(Debug, Default)]
struct Entry {
    /// Followed addresses that are reached through it.
    users: BTreeSet<IpAddr>,
    /// Those of them that are servers'.
    servers: BTreeSet<IpAddr>,
    /// Whether it is the gateway of a default route.
    gateway: bool,
    unresolved_since: Option<Instant>,
    managed: bool,
    last_asked: Option<Instant>,
    /// How often it was asked for since it was last resolved.
    asked_in_vain: u32,
    /// Its place in the agenda.
    due: Option<Instant>,
}

/// The neighbours and addresses whose time has come.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Neighbours that the kernel is to be asked for.
    pub(super) asked: Vec<Key>,
    /// Addresses whose neighbour is overdue now.
    pub(super) overdue: BTreeSet<IpAddr>,
}

impl Neighbours {
    /// An address is reached through a neighbour from now on. `is_server`: packets are sent there.
    pub(super) fn enter(
        &mut self,
        key: Key,
        (address, is_server): (IpAddr, bool),
        table: &Table,
        now: Instant,
    ) {
        let entry = self.entry(key, table, now);
        entry.users.insert(address);
        let changed = if is_server {
            entry.servers.insert(address)
        } else {
            entry.servers.remove(&address)
        };
        if changed {
            self.refresh(key, table, now);
        }
    }

    /// An address is not reached through a neighbour any more. Returns whether nothing needs the neighbour then.
    pub(super) fn leave(&mut self, key: Key, address: IpAddr) -> bool {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.users.remove(&address);
            entry.servers.remove(&address);
        }
        self.drop_unused(key)
    }

    /// Sets which neighbours are gateways. Returns those that nothing needs any more.
    pub(super) fn set_gateways(
        &mut self,
        gateways: &BTreeSet<Key>,
        table: &Table,
        now: Instant,
    ) -> Vec<Key> {
        for &key in gateways {
            let is_new = !std::mem::replace(&mut self.entry(key, table, now).gateway, true);
            if is_new {
                self.refresh(key, table, now);
            }
        }
        let mut others = Vec::new();
        for (&key, entry) in &mut self.entries {
            if entry.gateway && !gateways.contains(&key) {
                entry.gateway = false;
                others.push(key);
            }
        }
        others.retain(|&key| self.drop_unused(key));
        others
    }

    fn entry(&mut self, key: Key, table: &Table, now: Instant) -> &mut Entry {
        if let Vacant(place) = self.entries.entry(key) {
            place.insert(Entry::default());
            self.refresh(key, table, now);
        }
        self.entries.entry(key).or_default()
    }

    fn drop_unused(&mut self, key: Key) -> bool {
        let unused = |entry: &Entry| !entry.gateway && entry.users.is_empty();
        if !self.entries.get(&key).is_some_and(unused) {
            return false;
        }
        self.unanswered.remove(&key);
        if let Some(entry) = self.entries.remove(&key) {
            self.unresolved -= usize::from(entry.unresolved_since.is_some());
            self.managed -= usize::from(entry.managed);
            if let Some(due) = entry.due {
                self.agenda.remove(&(due, key));
            }
        }
        true
    }

    /// The kernel has told of a neighbour. Returns the addresses that are reached through it.
    pub(super) fn heard(&mut self, key: Key, table: &Table, now: Instant) -> BTreeSet<IpAddr> {
        self.refresh(key, table, now);
        let entry = self.entries.get(&key);
        entry.map(|entry| entry.users.clone()).unwrap_or_default()
    }

    /// A link has its carrier again: what is beyond it is asked for at once.
    pub(super) fn ask_anew(&mut self, ifindex: u32, table: &Table, now: Instant) {
        for key in self.beyond(ifindex) {
            if let Some(entry) = self.entries.get_mut(&key) {
                (entry.last_asked, entry.asked_in_vain) = (None, 0);
            }
            self.refresh(key, table, now);
        }
    }

    /// Whether servers beyond an interface are not resolved.
    pub(super) fn lacks_servers(&self, ifindex: u32) -> bool {
        let mut beyond = self.entries_beyond(ifindex);
        beyond.any(|(_, entry)| !entry.servers.is_empty() && entry.unresolved_since.is_some())
    }

    /// The followed neighbours beyond an interface.
    pub(super) fn beyond(&self, ifindex: u32) -> Vec<Key> {
        self.entries_beyond(ifindex).map(|(&key, _)| key).collect()
    }

    fn entries_beyond(&self, ifindex: u32) -> impl Iterator<Item = (&Key, &Entry)> {
        let first = (ifindex, IpAddr::from(Ipv4Addr::UNSPECIFIED));
        let beyond = self.entries.range(first..);
        beyond.take_while(move |((of, _), _)| *of == ifindex)
    }

    /// Every followed neighbour.
    pub(super) fn all(&self) -> Vec<Key> {
        self.entries.keys().copied().collect()
    }

    fn refresh(&mut self, key: Key, table: &Table, now: Instant) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        self.unresolved -= usize::from(entry.unresolved_since.is_some());
        self.managed -= usize::from(entry.managed);
        let known = table.neighbour_at(key.0, key.1);
        entry.unresolved_since = match state(table, key) {
            NeighbourState::Valid => None,
            _ => entry.unresolved_since.or(Some(now)),
        };
        if entry.unresolved_since.is_none() || !entry.is_of_directors_alone() {
            entry.asked_in_vain = 0;
            self.unanswered.remove(&key);
        } else if state(table, key) == NeighbourState::Failed {
            self.unanswered.insert(key);
        }
        entry.managed = known.is_some_and(|known| known.managed);
        self.unresolved += usize::from(entry.unresolved_since.is_some());
        self.managed += usize::from(entry.managed);
        let at = entry.next(key, table, now);
        if entry.due == at {
            return;
        }
        if let Some(before) = std::mem::replace(&mut entry.due, at) {
            self.agenda.remove(&(before, key));
        }
        self.agenda.extend(at.map(|at| (at, key)));
    }

    /// Takes what is due. Neighbours that the kernel is to be asked for count as asked.
    pub(super) fn take_due(&mut self, table: &Table, now: Instant) -> Due {
        let mut due = Due::default();
        while let Some(&(at, key)) = self.agenda.first()
            && at <= now
        {
            self.agenda.pop_first();
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            entry.due = None;
            if entry.is_overdue(now) {
                due.overdue.extend(&entry.users);
            }
            if entry.ask_at(key, table, now).is_some_and(|at| at <= now) {
                entry.last_asked = Some(now);
                entry.asked_in_vain = entry.asked_in_vain.saturating_add(1);
                due.asked.push(key);
            }
            self.refresh(key, table, now);
        }
        due
    }

    /// Takes the neighbours that the kernel need not keep for now.
    pub(super) fn take_unanswered(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut self.unanswered)
    }

    /// When something is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.agenda.first().map(|(at, _)| *at)
    }

    /// The next hop through a neighbour, or how far its resolution has come.
    pub(super) fn resolve(&self, table: &Table, key: Key, hop: Hop, now: Instant) -> NextHop {
        if let Some(next_hop_mac) = valid_mac(table, key) {
            return NextHop::Resolved(Hop {
                next_hop_mac,
                ..hop
            });
        }
        let overdue = self.entries.get(&key).is_some_and(|e| e.is_overdue(now));
        match state(table, key) {
            NeighbourState::Failed => NextHop::Unreachable,
            _ if overdue => NextHop::Overdue,
            _ => NextHop::Pending,
        }
    }

    /// Those of `neighbours` that are not followed.
    pub(super) fn not_followed(&self, neighbours: impl Iterator<Item = Key>) -> Vec<Key> {
        neighbours
            .filter(|key| !self.entries.contains_key(key))
            .collect()
    }

    /// Whether the kernel keeps followed neighbours fresh by itself.
    pub(super) fn sees_managed(&self) -> bool {
        self.managed > 0
    }

    /// Neighbours that are followed, and how many of them are not resolved.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.entries.len(), self.unresolved)
    }
}

impl Entry {
    fn is_overdue(&self, now: Instant) -> bool {
        self.unresolved_since
            .is_some_and(|since| now >= since + PENDING_LIMIT)
    }

    fn is_of_directors_alone(&self) -> bool {
        !self.gateway && self.servers.is_empty()
    }

    /// When the kernel is to be asked; `None`: not at all.
    fn ask_at(&self, key: Key, table: &Table, now: Instant) -> Option<Instant> {
        if table.link_by_index(key.0).is_some_and(|link| !link.up) {
            return None;
        }
        let pause = match table.neighbour_at(key.0, key.1) {
            Some(known) if known.fixed => return None,
            Some(known) if known.state == NeighbourState::Valid && known.managed => return None,
            Some(known) if known.state == NeighbourState::Valid => KEEP_FRESH,
            _ if self.is_of_directors_alone() => {
                let doublings = self.asked_in_vain.saturating_sub(1).min(6);
                ASK_SELDOM.min(ASK_AGAIN * 2_u32.pow(doublings))
            }
            _ => ASK_AGAIN,
        };
        Some(self.last_asked.map_or(now, |at| at + pause))
    }

    /// When something is to be done.
    fn next(&self, key: Key, table: &Table, now: Instant) -> Option<Instant> {
        let overdue = self.unresolved_since.map(|since| since + PENDING_LIMIT);
        let overdue = overdue.filter(|&at| at > now);
        let ask = self.ask_at(key, table, now);
        overdue.into_iter().chain(ask).min()
    }
}

fn state(table: &Table, (ifindex, address): Key) -> NeighbourState {
    table
        .neighbour_at(ifindex, address)
        .map_or(NeighbourState::Incomplete, |entry| entry.state)
}

pub(super) fn valid_mac(table: &Table, (ifindex, address): Key) -> Option<Mac> {
    let entry = table.neighbour_at(ifindex, address)?;
    entry.mac.filter(|_| entry.state == NeighbourState::Valid)
}
