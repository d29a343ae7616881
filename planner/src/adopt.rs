//! The part of an image read back from maps that is as a plan would have left it.
//!
//! A sequence that was cut short leaves things that nobody owns yet or any more: servers of a VIP port whose word was not
//! written, rings that no head names. Maps that somebody else wrote into may hold anything. All of that goes before anything
//! is planned, so that plans can rely on who owns what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sluice_abi::{FIRST_REPLY_INDEX, Head, HeadPool, ServerRecord, ServerWord, VipWord};
use sluice_api::VipPort;

use crate::ids::{self, ServerKey};
use crate::{Image, Socket, announce, head, sources};

/// The part of an image that VIP ports own, as each plan leaves it.
pub(crate) fn owned(image: &Image) -> Image {
    let mut adopter = Adopter::new(image);
    for (key, &word) in &image.vips {
        if let Some(vip_port) = key.vip_port() {
            adopter.vip_port(vip_port, word);
        }
    }
    adopter.servers_and_locals();
    adopter.announced();
    adopter.owned
}

struct Adopter<'a> {
    image: &'a Image,
    /// Servers that are complete by themselves.
    servers: BTreeMap<u32, &'a ServerRecord>,
    /// Reply indices, each at one socket.
    replies: BTreeMap<Socket, u32>,
    /// VIP ports by index.
    indices: BTreeMap<u32, VipPort>,
    /// Start and end of rings, in slots.
    extents: BTreeMap<u32, u32>,
    owned: Image,
}

impl<'a> Adopter<'a> {
    fn new(image: &'a Image) -> Self {
        let mut keys: BTreeSet<ServerKey> = BTreeSet::new();
        let mut slots = BTreeSet::new();
        let present = image.servers.iter().filter(|(_, word)| word.present());
        let servers = present.filter_map(|(&id, word)| {
            let record = image.records.get(&word.slot())?;
            (slots.insert(word.slot()) && keys.insert(ids::key_of(record))).then_some((id, record))
        });
        let servers = servers.collect();
        let mut indices = BTreeSet::new();
        let replies = image
            .replies
            .iter()
            .map(|(&socket, &index)| (socket, index));
        let replies = replies
            .filter(|&(_, index)| index >= FIRST_REPLY_INDEX && indices.insert(index))
            .collect();
        Self {
            image,
            servers,
            replies,
            indices: BTreeMap::new(),
            extents: BTreeMap::new(),
            owned: Image {
                peers: image.peers.clone(),
                macs: image.macs.clone(),
                peer_nets: image.peer_nets.clone(),
                ..Image::default()
            },
        }
    }

    fn vip_port(&mut self, vip_port: VipPort, word: VipWord) {
        let index = word.index();
        let is_index = index < FIRST_REPLY_INDEX && index != 0;
        if !is_index || self.indices.contains_key(&index) {
            return;
        }
        let slots: Vec<u32> = [word.head(), word.rs_head()]
            .into_iter()
            .filter(|&slot| slot != 0)
            .collect();
        let heads: Option<Vec<&Head>> = slots
            .iter()
            .map(|slot| self.image.heads.get(slot))
            .collect();
        let Some(heads) = heads else { return };
        let unowned = |slot: &u32| !self.owned.heads.contains_key(slot);
        let distinct: BTreeSet<u32> = slots.iter().copied().filter(unowned).collect();
        if distinct.len() < slots.len() || heads.iter().any(|head| head.index != index) {
            return;
        }
        let mut rings = BTreeMap::new();
        for head in &heads {
            let mut named: BTreeSet<(u32, u32)> = BTreeSet::new();
            for pool in head::pools(head).filter(|pool| pool.ring != 0) {
                // A pool that stands in for others has its ring in several places.
                if !named.insert((pool.ring, pool.tag)) {
                    continue;
                }
                let Some(extent) = self.ring((vip_port, index), pool, &rings) else {
                    return;
                };
                rings.insert(pool.ring, extent);
            }
        }
        for (ring, (start, end)) in rings {
            self.extents.insert(start, end);
            self.owned
                .rings
                .insert(ring, self.image.rings[&ring].clone());
        }
        for (slot, head) in slots.into_iter().zip(heads) {
            self.owned.heads.insert(slot, *head);
            let set = sources::set_of(head);
            let blocks = set.and_then(|set| Some((set, self.image.sources.get(&set)?)));
            if let Some((set, blocks)) = blocks {
                self.owned.sources.insert(set, Arc::clone(blocks));
            }
        }
        self.indices.insert(index, vip_port);
        self.owned.vips.insert(vip_port.into(), word);
        let marker = Socket::marker(vip_port.address);
        if let Some(word) = self.image.vips.get(&marker).filter(|word| word.0 == 0) {
            self.owned.vips.insert(marker, *word);
        }
    }

    /// What is announced and can be served.
    fn announced(&mut self) {
        for (at, word) in &self.image.announced {
            if word.is_router() || announce::is_live(&self.owned, at.address) {
                self.owned.announced.insert(*at, *word);
            }
        }
    }

    /// Start and end of a ring whose servers all are this VIP port's, if nobody else has it.
    fn ring(
        &self,
        (vip_port, index): (VipPort, u32),
        pool: &HeadPool,
        taken: &BTreeMap<u32, (u32, u32)>,
    ) -> Option<(u32, u32)> {
        let ring = self.image.rings.get(&pool.ring)?;
        if self.owned.rings.contains_key(&pool.ring) || taken.contains_key(&pool.ring) {
            return None;
        }
        let start = ring.word.offset();
        let end = start.checked_add(ring.word.slots())?;
        let overlaps = |&(other, other_end): &(u32, u32)| other < end && start < other_end;
        let before = self.extents.range(..end).next_back();
        if before.is_some_and(|(_, &other_end)| start < other_end) || taken.values().any(overlaps) {
            return None;
        }
        let is_its_own = |&(id, _): &(u32, u32)| {
            let record = self.servers.get(&id);
            record.is_some_and(|record| {
                record.facts.index() == index
                    && record.tag == pool.tag
                    && self.has_reply(vip_port, record)
            })
        };
        let parts = ring.content.parts();
        parts.iter().all(is_its_own).then_some((start, end))
    }

    /// Whether replies from a server are told as its record has it.
    fn has_reply(&self, vip_port: VipPort, record: &ServerRecord) -> bool {
        record.facts.reply_index() == 0
            || self.replies.get(&reply_of(vip_port, record)) == Some(&record.facts.reply_index())
    }

    /// Servers of the VIP ports that are owned, and what belongs to them; all other server ids leave their epochs.
    fn servers_and_locals(&mut self) {
        for (&id, &word) in &self.image.servers {
            let record = self.servers.get(&id).copied();
            let owner =
                record.and_then(|record| Some((self.indices.get(&record.facts.index())?, record)));
            let owner = owner.filter(|(vip_port, record)| self.has_reply(**vip_port, record));
            if let Some((vip_port, record)) = owner {
                if record.facts.reply_index() != 0 {
                    let reply = reply_of(*vip_port, record);
                    self.owned.replies.insert(reply, record.facts.reply_index());
                }
                self.owned.servers.insert(id, word);
                self.owned.records.insert(word.slot(), *record);
                continue;
            }
            let absent = ServerWord::absent(word.epoch());
            if absent != ServerWord(0) {
                self.owned.servers.insert(id, absent);
            }
        }
        for (local, id) in &self.image.locals {
            let word = self.owned.servers.get(id).filter(|word| word.present());
            let record = word.and_then(|word| self.owned.records.get(&word.slot()));
            if record.is_some_and(|record| {
                record.facts.index() == local.index && ids::address_of(record) == local.address
            }) {
                self.owned.locals.insert(*local, *id);
            }
        }
    }
}

fn reply_of(vip_port: VipPort, record: &ServerRecord) -> Socket {
    let port = u16::from_be_bytes(record.port);
    Socket::new(ids::address_of(record), vip_port.protocol, port)
}
