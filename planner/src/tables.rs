//! The content of the maps, by owner: the part of each VIP port can be taken out, planned anew and put back.
//!
//! A VIP port owns its word in `VIPS`, the heads that this names, the rings that these name, the servers with its index and
//! their records and locals. It shares the address marker with the other ports of its address, replies with whoever has
//! a server at the same socket, and a source set with whoever has the same list. [`crate::adopt`] leaves of maps only what is
//! owned so, and everything here relies on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use sluice_abi::{Path, ServerRecord, VipWord};
use sluice_api::VipPort;

use crate::ids::{self, Free, RingOwner, Room, ServerKey, Side};
use crate::members::RingLayout;
use crate::problem::Problem;
use crate::sources::{self, Sets};
use crate::{Image, Limits, Local, Socket, head};

/// The content of the maps, and the numbers that are free.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) limits: Limits,
    pub(crate) image: Image,
    pub(crate) servers: BTreeMap<ServerKey, u32>,
    pub(crate) rings: BTreeMap<RingOwner, u32>,
    /// Layouts of the rings in place, as far as they are known: of maps that were read back none is.
    pub(crate) layouts: BTreeMap<u32, Arc<RingLayout>>,
    pub(crate) free: Free,
    pub(crate) sets: Sets,
    /// How many servers have a reply.
    reply_users: BTreeMap<Socket, u32>,
    /// How many VIP ports an address has.
    ports_of_address: BTreeMap<IpAddr, u32>,
    entries: Entries,
    ring_slots: u32,
    /// How many servers the tc programs deliver to by an interface.
    by_tc: BTreeMap<u32, u32>,
}

/// How many entries of the maps are in use. Of a map in two families, of the fuller one.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Usage {
    /// Of `ANNOUNCED*`.
    pub announced: usize,
    /// Of `REPLIES*`.
    pub replies: usize,
    /// Of `HEADS`.
    pub heads: usize,
    /// Of `LOCALS*`.
    pub locals: usize,
    /// Of `PEERS`.
    pub peers: usize,
    /// Of `PEER_NETS*`.
    pub peer_nets: usize,
    /// Of `RECORDS`.
    pub records: usize,
    /// Of `RING_SLOTS`.
    pub ring_slots: usize,
    /// Of `RINGS`.
    pub rings: usize,
    /// Of `SOURCES*`.
    pub sources: usize,
    /// Of `SERVERS`, absent ones aside.
    pub servers: usize,
    /// Of `VIPS*`, address markers included.
    pub vips: usize,
}

/// The outcome of a plan.
pub(crate) struct Planned {
    /// The VIP ports that the maps hold, and those that they shall hold.
    pub(crate) part: Image,
    pub(crate) desired: Image,
    /// The layouts of the rings that shall be in place, as far as they were computed anew.
    pub(crate) layouts: BTreeMap<u32, Arc<RingLayout>>,
    /// Parts that did not fit, by VIP port. They stay as they were.
    pub(crate) full: BTreeMap<VipPort, BTreeSet<Problem>>,
}

/// Entries of the maps of IPv4 and of IPv6.
#[derive(Clone, Copy, Default, Debug)]
struct Entries {
    vips: [u32; 2],
    replies: [u32; 2],
    locals: [u32; 2],
    announced: [u32; 2],
    sources: [u32; 2],
}

/// The keyed maps, of which each has one for either family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Keyed {
    Vips,
    Replies,
    Locals,
    Announced,
    Sources,
}

fn family(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}

impl Tables {
    /// Takes over maps all of which is owned.
    pub(crate) fn new(limits: Limits, owned: Image) -> Self {
        let mut tables = Self {
            limits,
            free: Free::new(&owned, &limits),
            sets: Sets::default(),
            image: Image::default(),
            servers: BTreeMap::new(),
            rings: BTreeMap::new(),
            layouts: BTreeMap::new(),
            reply_users: BTreeMap::new(),
            ports_of_address: BTreeMap::new(),
            entries: Entries::default(),
            ring_slots: 0,
            by_tc: BTreeMap::new(),
        };
        tables.put(owned);
        tables
    }

    /// How many entries a map has room for beside those that it holds.
    pub(crate) fn room(&self, map: Keyed) -> Room {
        let (limit, entries) = match map {
            Keyed::Vips => (self.limits.vips, self.entries.vips),
            Keyed::Replies => (self.limits.replies, self.entries.replies),
            Keyed::Locals => (self.limits.locals, self.entries.locals),
            Keyed::Announced => (self.limits.announced, self.entries.announced),
            Keyed::Sources => (self.limits.sources, self.entries.sources),
        };
        Room::new(entries.map(|entries| limit.saturating_sub(entries)))
    }

    /// How many entries are in use.
    pub(crate) fn usage(&self) -> Usage {
        let fuller = |[v4, v6]: [u32; 2]| v4.max(v6) as usize;
        Usage {
            announced: fuller(self.entries.announced),
            replies: fuller(self.entries.replies),
            heads: self.image.heads.len(),
            locals: fuller(self.entries.locals),
            peers: self.image.peers.len(),
            peer_nets: self.peer_nets(),
            records: self.image.records.len(),
            ring_slots: self.ring_slots as usize,
            rings: self.image.rings.len(),
            sources: fuller(self.entries.sources),
            servers: self.servers.len(),
            vips: fuller(self.entries.vips),
        }
    }

    fn peer_nets(&self) -> usize {
        let nets = &self.image.peer_nets;
        let v4 = nets.keys().filter(|net| net.address.is_ipv4()).count();
        v4.max(nets.len() - v4)
    }

    /// Indices of the interfaces by which the tc programs deliver.
    pub(crate) fn tc_interfaces(&self) -> impl Iterator<Item = u32> {
        self.by_tc.keys().copied()
    }

    /// Ids, epochs and records of the servers of a VIP port, in the order of their keys.
    pub(crate) fn servers_of(
        &self,
        vip_port: VipPort,
    ) -> impl Iterator<Item = (u32, u8, &ServerRecord)> {
        let word = self.image.vips.get(&vip_port.into()).copied();
        let servers = word
            .into_iter()
            .flat_map(|word| self.with_index(word.index()));
        servers.filter_map(|(_, id)| {
            let word = self.image.servers.get(&id)?;
            Some((id, word.epoch(), self.image.records.get(&word.slot())?))
        })
    }

    /// Keys and ids of the servers of the VIP port with this index.
    pub(crate) fn with_index(&self, index: u32) -> impl Iterator<Item = (&ServerKey, u32)> {
        let all = self.servers.range(first_server(index)..);
        all.take_while(move |(key, _)| key.index == index)
            .map(|(key, &id)| (key, id))
    }

    /// Owners and ids of the rings of the VIP port with this index.
    pub(crate) fn rings_of(&self, index: u32) -> impl Iterator<Item = (&RingOwner, u32)> {
        let all = self.rings.range(first_ring(index)..);
        all.take_while(move |(owner, _)| owner.0 == index)
            .map(|(owner, &id)| (owner, id))
    }

    /// How many slots a ring has.
    pub(crate) fn slots_of(&self, ring: u32) -> u32 {
        let ring = self.image.rings.get(&ring);
        ring.map_or(0, |ring| ring.word.slots())
    }

    /// The part of the maps that VIP ports own or share.
    pub(crate) fn part(&self, of: impl IntoIterator<Item = VipPort>) -> Image {
        let mut part = Image::default();
        for vip_port in of {
            let Some(&word) = self.image.vips.get(&vip_port.into()) else {
                continue;
            };
            part.vips.insert(vip_port.into(), word);
            let marker = Socket::marker(vip_port.address);
            copy(&self.image.vips, &mut part.vips, &marker);
            copy(&self.image.heads, &mut part.heads, &word.head());
            copy(&self.image.heads, &mut part.heads, &word.rs_head());
            for (_, ring) in self.rings_of(word.index()) {
                copy(&self.image.rings, &mut part.rings, &ring);
            }
            for (key, id) in self.with_index(word.index()) {
                copy(&self.image.servers, &mut part.servers, &id);
                if let Some(server) = self.image.servers.get(&id) {
                    copy(&self.image.records, &mut part.records, &server.slot());
                }
                if key.reply != 0 {
                    let reply = Socket::new(key.address, vip_port.protocol, key.port);
                    copy(&self.image.replies, &mut part.replies, &reply);
                }
                let local = Local {
                    address: key.address,
                    index: key.index,
                };
                copy(&self.image.locals, &mut part.locals, &local);
            }
        }
        for set in part.heads.values().filter_map(sources::set_of) {
            copy(&self.image.sources, &mut part.sources, &set);
        }
        part
    }

    /// How many ports an address has beside those in a part.
    fn other_ports(&self, part: &Image, address: IpAddr) -> u32 {
        let in_part = part
            .vips
            .keys()
            .filter(|key| key.address == address && !key.is_marker());
        let all = self.ports_of_address.get(&address).copied().unwrap_or(0);
        all.saturating_sub(u32::try_from(in_part.count()).unwrap_or(u32::MAX))
    }

    /// Sees to it that a part and what it shall become agree in what others share with them.
    pub(crate) fn share(&self, part: &mut Image, desired: &mut Image) {
        self.sets.share(&self.image, part, desired);
        let used = users_of_replies(desired);
        desired.replies.retain(|_, index| used.contains_key(index));
        for key in desired.vips.keys().filter(|key| key.is_marker()) {
            copy(&self.image.vips, &mut part.vips, key);
        }
        for key in desired.replies.keys() {
            copy(&self.image.replies, &mut part.replies, key);
        }
        for (key, word) in part.vips.iter().filter(|(key, _)| key.is_marker()) {
            if self.other_ports(part, key.address) > 0 {
                desired.vips.entry(*key).or_insert(*word);
            }
        }
        let users = users_of_replies(part);
        for (socket, index) in &part.replies {
            let all = self.reply_users.get(socket).copied().unwrap_or(0);
            if all > users.get(index).copied().unwrap_or(0) {
                desired.replies.entry(*socket).or_insert(*index);
            }
        }
    }

    /// Puts what was planned in the place of what is there, and frees what only that had.
    pub(crate) fn replace(&mut self, planned: Planned) {
        let Planned {
            part,
            desired,
            mut layouts,
            ..
        } = planned;
        layouts.retain(|id, _| desired.rings.contains_key(id));
        let free = &mut self.free;
        for (slot, _) in part
            .heads
            .iter()
            .filter(|(slot, _)| !desired.heads.contains_key(slot))
        {
            free.heads.give_back(*slot);
        }
        for (id, ring) in &part.rings {
            let now = desired.rings.get(id);
            if now.is_none() {
                free.rings.give_back(*id);
                self.layouts.remove(id);
            }
            if now.is_none_or(|now| now.word != ring.word) {
                free.arena.give_back(ring.word.offset(), ring.word.slots());
            }
        }
        for set in part.sources.keys() {
            if !desired.sources.contains_key(set) {
                free.sets.give_back(*set);
            }
        }
        for slot in part
            .records
            .keys()
            .filter(|slot| !desired.records.contains_key(slot))
        {
            free.records.give_back(*slot);
        }
        for (id, word) in &part.servers {
            if desired.servers.get(id).is_none_or(|now| !now.present()) {
                free.servers.give_back(*id, word.epoch());
            }
        }
        for (socket, index) in &part.replies {
            if !desired.replies.contains_key(socket) {
                free.replies.give_back(*index);
            }
        }
        for (key, word) in part.vips.iter().filter(|(key, _)| !key.is_marker()) {
            if !desired.vips.contains_key(key) {
                free.indices.give_back(word.index());
            }
        }
        self.settle(&desired);
        self.take_out(&part);
        self.put(desired);
        self.layouts.extend(layouts);
    }

    /// Frees what was taken for `desired` and is not in it.
    fn settle(&mut self, desired: &Image) {
        let free = &mut self.free;
        let vips = desired.vips.values();
        let indices: BTreeSet<u32> = vips.map(|word| word.index()).collect();
        let replies: BTreeSet<u32> = desired.replies.values().copied().collect();
        let offsets: BTreeSet<u32> = desired
            .rings
            .values()
            .map(|ring| ring.word.offset())
            .collect();
        free.indices.settle(|index| indices.contains(&index));
        free.replies.settle(|index| replies.contains(&index));
        free.heads.settle(|slot| desired.heads.contains_key(&slot));
        free.sets.settle(|set| desired.sources.contains_key(&set));
        free.rings.settle(|ring| desired.rings.contains_key(&ring));
        free.records
            .settle(|slot| desired.records.contains_key(&slot));
        free.servers
            .settle(|id| desired.servers.get(&id).is_some_and(|word| word.present()));
        free.arena.settle(|offset| offsets.contains(&offset));
    }

    fn take_out(&mut self, part: &Image) {
        let image = &mut self.image;
        for (key, word) in &part.vips {
            image.vips.remove(key);
            self.entries.vips[family(key.address)] -= 1;
            if !key.is_marker() {
                lower(&mut self.ports_of_address, key.address);
            }
            for head in [word.head(), word.rs_head()] {
                image.heads.remove(&head);
            }
            let first = first_ring(word.index());
            let owned = self.rings.range(first..).map(|(owner, _)| *owner);
            let owned: Vec<RingOwner> = owned.take_while(|owner| owner.0 == word.index()).collect();
            for owner in owned {
                self.rings.remove(&owner);
            }
        }
        for (id, ring) in &part.rings {
            image.rings.remove(id);
            self.ring_slots -= ring.word.slots();
        }
        let sockets: BTreeMap<u32, Socket> =
            part.replies.iter().map(|(&e, &index)| (index, e)).collect();
        for (id, word) in &part.servers {
            image.servers.remove(id);
            if let Some(record) = image.records.remove(&word.slot()) {
                self.servers.remove(&ids::key_of(&record));
                if word.path() == Path::Tc {
                    lower(&mut self.by_tc, record.ifindex);
                }
                if let Some(socket) = sockets.get(&record.facts.reply_index()) {
                    lower(&mut self.reply_users, *socket);
                }
            }
        }
        for socket in part.replies.keys() {
            image.replies.remove(socket);
            self.entries.replies[family(socket.address)] -= 1;
        }
        for mac in &part.peers {
            image.peers.remove(mac);
        }
        for index in part.macs.keys() {
            image.macs.remove(index);
        }
        for prefix in part.peer_nets.keys() {
            image.peer_nets.remove(prefix);
        }
        for at in part.announced.keys() {
            image.announced.remove(at);
            self.entries.announced[family(at.address)] -= 1;
        }
        self.sets.take_out(part);
        for (set, blocks) in &part.sources {
            image.sources.remove(set);
            let counts = self.entries.sources.iter_mut().zip(sources::count(blocks));
            counts.for_each(|(entries, count)| *entries -= count);
        }
        for local in part.locals.keys() {
            image.locals.remove(local);
            self.entries.locals[family(local.address)] -= 1;
        }
    }

    fn put(&mut self, part: Image) {
        for key in part.vips.keys() {
            self.entries.vips[family(key.address)] += 1;
        }
        for key in part.replies.keys() {
            self.entries.replies[family(key.address)] += 1;
        }
        for key in part.locals.keys() {
            self.entries.locals[family(key.address)] += 1;
        }
        for at in part.announced.keys() {
            self.entries.announced[family(at.address)] += 1;
        }
        self.sets.put(&part);
        for blocks in part.sources.values() {
            let counts = self.entries.sources.iter_mut().zip(sources::count(blocks));
            counts.for_each(|(entries, count)| *entries += count);
        }
        for ring in part.rings.values() {
            self.ring_slots += ring.word.slots();
        }
        for (vip_port, word) in part
            .vips
            .iter()
            .filter_map(|(key, word)| Some((key.vip_port()?, word)))
        {
            *self.ports_of_address.entry(vip_port.address).or_default() += 1;
            for (side, slot) in sides(*word) {
                for pool in part.heads.get(&slot).into_iter().flat_map(head::pools) {
                    if part.rings.contains_key(&pool.ring) {
                        self.rings.insert((word.index(), side, pool.tag), pool.ring);
                    }
                }
            }
        }
        let sockets: BTreeMap<u32, Socket> =
            part.replies.iter().map(|(&e, &index)| (index, e)).collect();
        for (id, word) in part.servers.iter().filter(|(_, word)| word.present()) {
            let Some(record) = part.records.get(&word.slot()) else {
                continue;
            };
            self.servers.insert(ids::key_of(record), *id);
            if word.path() == Path::Tc {
                *self.by_tc.entry(record.ifindex).or_default() += 1;
            }
            if let Some(socket) = sockets.get(&record.facts.reply_index()) {
                *self.reply_users.entry(*socket).or_default() += 1;
            }
        }
        let image = &mut self.image;
        image.vips.extend(part.vips);
        image.replies.extend(part.replies);
        image.locals.extend(part.locals);
        image.announced.extend(part.announced);
        image.peers.extend(part.peers);
        image.macs.extend(part.macs);
        image.peer_nets.extend(part.peer_nets);
        image.sources.extend(part.sources);
        image.heads.extend(part.heads);
        image.rings.extend(part.rings);
        image.servers.extend(part.servers);
        image.records.extend(part.records);
    }
}

fn sides(word: VipWord) -> [(Side, u32); 2] {
    [
        (Side::Director, word.head()),
        (Side::RealServer, word.rs_head()),
    ]
}

fn lower<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K) {
    if let std::collections::btree_map::Entry::Occupied(mut count) = counts.entry(key) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

fn users_of_replies(part: &Image) -> BTreeMap<u32, u32> {
    let mut users = BTreeMap::new();
    for word in part.servers.values().filter(|word| word.present()) {
        if let Some(record) = part.records.get(&word.slot()) {
            *users.entry(record.facts.reply_index()).or_default() += 1;
        }
    }
    users
}

fn first_server(index: u32) -> ServerKey {
    ServerKey {
        index,
        tag: 0,
        address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        port: 0,
        reply: 0,
        full_nat: false,
    }
}

fn first_ring(index: u32) -> RingOwner {
    (index, Side::Director, 0)
}

fn copy<K: Ord + Copy, V: Clone>(from: &BTreeMap<K, V>, to: &mut BTreeMap<K, V>, key: &K) {
    if let Some(value) = from.get(key) {
        to.insert(*key, value.clone());
    }
}
