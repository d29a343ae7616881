//! The maps as packets see them, with a judge that refuses unsafe operations.
//!
//! Packets walk from word to word while operations change them. So beside the maps' content this keeps what packets may
//! still *hold*: everything that was reachable at some moment since the last grace period. An operation may not touch it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sluice_abi::{
    AnnouncedWord, FIRST_REPLY_INDEX, FIRST_SOURCE_SET, ForwardingMode, Head, MAC_WORDS, RingWord,
    SHARE_WHOLE, ServerRecord, ServerWord, VipWord,
};
use sluice_planner::{
    AnnouncedAt, Blocks, Image, Limits, Local, Mac, MapOp, Prefix, Ring, RingContent, Socket,
    Source,
};

type Check = Result<(), String>;

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

/// The maps, as large as `limits` say.
pub struct Maps {
    limits: Limits,
    vips: BTreeMap<Socket, VipWord>,
    replies: BTreeMap<Socket, u32>,
    locals: BTreeMap<Local, u32>,
    peers: BTreeSet<Mac>,
    macs: BTreeMap<u32, u64>,
    peer_nets: BTreeMap<Prefix, u32>,
    sources: BTreeSet<Source>,
    announced: BTreeMap<AnnouncedAt, AnnouncedWord>,
    heads: BTreeMap<u32, Head>,
    rings: BTreeMap<u32, RingWord>,
    ring_slots: Vec<u32>,
    servers: BTreeMap<u32, ServerWord>,
    records: BTreeMap<u32, ServerRecord>,
    held: Reach,
}

/// The parts of the maps that packets can reach.
#[derive(Default, Clone)]
struct Reach {
    heads: BTreeSet<u32>,
    /// Source sets.
    sets: BTreeSet<u32>,
    rings: BTreeSet<u32>,
    /// Offset and length in the ring slots.
    extents: BTreeSet<(u32, u32)>,
    records: BTreeSet<u32>,
    /// Server ids that entries of maps name; flows may name any.
    locals: BTreeSet<u32>,
}

impl Reach {
    fn add(&mut self, other: Self) {
        self.heads.extend(other.heads);
        self.sets.extend(other.sets);
        self.rings.extend(other.rings);
        self.extents.extend(other.extents);
        self.records.extend(other.records);
        self.locals.extend(other.locals);
    }
}

impl Maps {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            vips: BTreeMap::new(),
            replies: BTreeMap::new(),
            locals: BTreeMap::new(),
            peers: BTreeSet::new(),
            macs: BTreeMap::new(),
            peer_nets: BTreeMap::new(),
            sources: BTreeSet::new(),
            announced: BTreeMap::new(),
            heads: BTreeMap::new(),
            rings: BTreeMap::new(),
            ring_slots: vec![u32::MAX; limits.ring_slots as usize],
            servers: BTreeMap::new(),
            records: BTreeMap::new(),
            held: Reach::default(),
        }
    }

    /// Fills empty maps. The slots of a ring come in the order of their servers, since an image does not keep theirs.
    pub fn load(&mut self, image: &Image) {
        self.vips = image.vips.clone();
        self.replies = image.replies.clone();
        self.locals = image.locals.clone();
        self.announced = image.announced.clone();
        for (set, blocks) in &image.sources {
            self.sources.extend(Source::of_set(*set, blocks));
        }
        self.heads = image.heads.clone();
        self.servers = image.servers.clone();
        self.records = image.records.clone();
        for (id, ring) in &image.rings {
            let parts = ring.content.parts().iter();
            let slots = parts.flat_map(|&(id, slots)| std::iter::repeat_n(id, slots as usize));
            let start = ring.word.offset() as usize;
            for (place, id) in self.ring_slots[start..].iter_mut().zip(slots) {
                *place = id;
            }
            self.rings.insert(*id, ring.word);
        }
    }

    fn set_mac(&mut self, index: u32, word: u64) -> Check {
        ensure!(index < MAC_WORDS, "MACS has no index {index}");
        let before = if word == 0 {
            self.macs.remove(&index)
        } else {
            self.macs.insert(index, word)
        };
        ensure!(before.unwrap_or(0) != word, "MACS {index} twice");
        Ok(())
    }

    fn set_announced(&mut self, at: AnnouncedAt, word: AnnouncedWord) -> Check {
        let before = self.announced.insert(at, word);
        ensure!(before != Some(word), "{at} twice");
        let family = |other: &&AnnouncedAt| other.address.is_ipv4() == at.address.is_ipv4();
        let entries = self.announced.keys().filter(family).count();
        ensure!(
            entries <= self.limits.announced as usize,
            "ANNOUNCED is full"
        );
        Ok(())
    }

    /// Applies one operation and says if it, or what it leads to, can harm a packet.
    pub fn apply(&mut self, op: &MapOp) -> Check {
        match op {
            MapOp::WriteRecord { .. }
            | MapOp::WriteRingSlots { .. }
            | MapOp::WriteHead { .. }
            | MapOp::WriteSources { .. } => self.write(op)?,
            MapOp::RemoveSources { set, blocks } => self.remove_sources(*set, blocks)?,
            MapOp::SetServer { id, word } => self.set_server(*id, *word)?,
            MapOp::SetRing { ring, word } => self.set_ring(*ring, *word)?,
            MapOp::SetVip { socket, word } => {
                self.vips.insert(*socket, *word);
                let family = |e: &&Socket| e.address.is_ipv4() == socket.address.is_ipv4();
                let entries = self.vips.keys().filter(family).count();
                ensure!(entries <= self.limits.vips as usize, "VIPS is full");
            }
            MapOp::RemoveVip { socket } => {
                ensure!(self.vips.remove(socket).is_some(), "no {socket} to remove");
            }
            MapOp::SetReply { socket, index } => {
                self.replies.insert(*socket, *index);
                let family = |e: &&Socket| e.address.is_ipv4() == socket.address.is_ipv4();
                let entries = self.replies.keys().filter(family).count();
                ensure!(entries <= self.limits.replies as usize, "REPLIES is full");
            }
            MapOp::RemoveReply { socket } => {
                ensure!(self.replies.remove(socket).is_some(), "no reply {socket}");
            }
            MapOp::SetLocal { local, server } => {
                self.locals.insert(*local, *server);
                let family = |l: &&Local| l.address.is_ipv4() == local.address.is_ipv4();
                let entries = self.locals.keys().filter(family).count();
                ensure!(entries <= self.limits.locals as usize, "LOCALS is full");
            }
            MapOp::RemoveLocal { local } => {
                ensure!(
                    self.locals.remove(local).is_some(),
                    "no {local:?} to remove"
                );
            }
            MapOp::AddPeer { mac } => ensure!(self.peers.insert(*mac), "{mac} twice"),
            MapOp::RemovePeer { mac } => ensure!(self.peers.remove(mac), "no {mac}"),
            MapOp::SetMac { index, word } => self.set_mac(*index, *word)?,
            MapOp::SetPeerNet { prefix, flags } => {
                let before = self.peer_nets.insert(*prefix, *flags);
                ensure!(before != Some(*flags), "{prefix} twice");
            }
            MapOp::RemovePeerNet { prefix } => {
                ensure!(self.peer_nets.remove(prefix).is_some(), "no {prefix}");
            }
            MapOp::SetAnnounced { at, word } => self.set_announced(*at, *word)?,
            MapOp::RemoveAnnounced { at } => {
                ensure!(self.announced.remove(at).is_some(), "no {at} to remove");
            }
            MapOp::Grace => self.held = Reach::default(),
        }
        self.check()?;
        let reach = self.reach();
        self.held.add(reach);
        Ok(())
    }

    fn write(&mut self, op: &MapOp) -> Check {
        match op {
            MapOp::WriteRecord { slot, record } => {
                ensure!(!self.held.records.contains(slot), "record {slot} is in use");
                ensure!((1..self.limits.records).contains(slot), "no record {slot}");
                self.records.insert(*slot, *record);
            }
            MapOp::WriteHead { slot, head } => {
                ensure!(!self.held.heads.contains(slot), "head {slot} is in use");
                ensure!((1..self.limits.heads).contains(slot), "no head {slot}");
                self.heads.insert(*slot, *head);
            }
            MapOp::WriteRingSlots { offset, layout } => {
                let slots = layout.slots();
                let end = *offset as usize + slots.len();
                ensure!(end <= self.ring_slots.len(), "ring slots end before {end}");
                for &(start, length) in &self.held.extents {
                    let apart = end <= start as usize || start + length <= *offset;
                    ensure!(
                        apart,
                        "ring slots {offset}..{end} overwrite {start} + {length}"
                    );
                }
                self.ring_slots[*offset as usize..end].copy_from_slice(&slots);
            }
            MapOp::WriteSources { set, blocks } => {
                ensure!(!self.held.sets.contains(set), "source set {set} is in use");
                ensure!(*set >= FIRST_SOURCE_SET, "{set} is no source set");
                for source in Source::of_set(*set, blocks) {
                    ensure!(self.sources.insert(source), "{source:?} twice");
                }
                for is_v4 in [true, false] {
                    let of_family = |s: &&Source| s.block.address.is_ipv4() == is_v4;
                    let entries = self.sources.iter().filter(of_family).count();
                    ensure!(entries <= self.limits.sources as usize, "SOURCES is full");
                }
            }
            _ => return Err("not a write".into()),
        }
        Ok(())
    }

    fn remove_sources(&mut self, set: u32, blocks: &Blocks) -> Check {
        let in_use = self.held.sets.contains(&set);
        ensure!(!in_use, "source set {set} goes while in use");
        for source in Source::of_set(set, blocks) {
            ensure!(self.sources.remove(&source), "no {source:?} to remove");
        }
        Ok(())
    }

    /// The blocks of a source set.
    pub fn blocks(&self, set: u32) -> Vec<Prefix> {
        let of_set = self.sources.iter().filter(|source| source.set == set);
        of_set.map(|source| source.block).collect()
    }

    fn set_ring(&mut self, ring: u32, word: RingWord) -> Check {
        ensure!((1..self.limits.rings).contains(&ring), "no ring {ring}");
        if word.present() {
            self.rings.insert(ring, word);
        } else {
            ensure!(
                !self.held.rings.contains(&ring),
                "ring {ring} goes while in use"
            );
            self.rings.remove(&ring);
        }
        Ok(())
    }

    fn set_server(&mut self, id: u32, word: ServerWord) -> Check {
        ensure!((1..self.limits.servers).contains(&id), "no server {id}");
        let old = self.servers.get(&id).copied().unwrap_or_default();
        let record = |word: ServerWord| self.records.get(&word.slot());
        match (old.present(), word.present()) {
            (true, true) => {
                let same = record(old).map(identity) == record(word).map(identity);
                ensure!(
                    same,
                    "server id {id} is given to another server while in use"
                );
                ensure!(old.epoch() == word.epoch(), "server {id} changes its epoch");
            }
            (false, true) => {
                let next = old.epoch().wrapping_add(1);
                ensure!(
                    word.epoch() == next,
                    "server {id} comes back in epoch {}",
                    word.epoch()
                );
            }
            (true, false) => {
                ensure!(word.epoch() == old.epoch(), "server {id} forgets its epoch");
                ensure!(
                    !self.held.locals.contains(&id),
                    "server {id} goes while a local"
                );
                for &(start, length) in &self.held.extents {
                    let range = start as usize..(start + length) as usize;
                    ensure!(
                        !self.ring_slots[range].contains(&id),
                        "server {id} goes while in a ring"
                    );
                }
            }
            (false, false) => return Err(format!("server {id} goes twice")),
        }
        if word == ServerWord(0) {
            self.servers.remove(&id);
        } else {
            self.servers.insert(id, word);
        }
        Ok(())
    }

    /// Whether a packet that starts now finds everything it is led to.
    pub fn check(&self) -> Check {
        for (socket, word) in self.vips.iter().filter(|(e, _)| !e.is_marker()) {
            ensure!(
                (1..FIRST_REPLY_INDEX).contains(&word.index()),
                "{socket} without an index"
            );
            for slot in [word.head(), word.rs_head()]
                .into_iter()
                .filter(|&slot| slot != 0)
            {
                let head = self
                    .heads
                    .get(&slot)
                    .ok_or_else(|| format!("no head {slot}"))?;
                ensure!(
                    head.index == word.index(),
                    "{socket}: head of another VIP port"
                );
                self.check_head(head)?;
            }
        }
        for at in self
            .announced
            .iter()
            .filter_map(|(at, word)| (!word.is_router()).then_some(at))
        {
            let mut vips = self.vips.iter();
            let balanced =
                vips.any(|(socket, word)| socket.address == at.address && word.head() != 0);
            ensure!(balanced, "{at} is announced and not balanced");
        }
        for (local, id) in &self.locals {
            let record = self.record(*id)?;
            ensure!(
                record.facts.index() == local.index,
                "{local:?}: server of another service"
            );
        }
        let indices: BTreeSet<u32> = self.replies.values().copied().collect();
        ensure!(
            indices.len() == self.replies.len(),
            "two replies of one index"
        );
        ensure!(
            indices.iter().all(|&index| index >= FIRST_REPLY_INDEX),
            "a reply's index is a VIP port's"
        );
        let mut identities = BTreeSet::new();
        for (id, word) in self.servers.iter().filter(|(_, word)| word.present()) {
            let record = self.record(*id)?;
            ensure!(
                identities.insert((identity(record), record.tag)),
                "server {id} is there twice for one pool"
            );
            if record.facts.reply_index() != 0 {
                let found = self
                    .replies
                    .values()
                    .any(|&index| index == record.facts.reply_index());
                ensure!(found, "server {id} of word {word:?} without its reply");
            }
        }
        Ok(())
    }

    fn check_head(&self, head: &Head) -> Check {
        let set = head.source_set;
        ensure!(
            set < FIRST_SOURCE_SET || !self.blocks(set).is_empty(),
            "source set {set} is not there"
        );
        let pools = &head.pools[..usize::from(head.pool_count)];
        ensure!(
            pools.is_sorted_by_key(|pool| pool.threshold),
            "thresholds fall"
        );
        ensure!(
            pools.iter().all(|pool| pool.threshold <= SHARE_WHOLE),
            "more than the whole"
        );
        for pool in pools.iter().filter(|pool| pool.ring != 0) {
            let word = self
                .rings
                .get(&pool.ring)
                .ok_or_else(|| format!("no ring {}", pool.ring))?;
            let slots = self.slots(*word).ok_or("a ring outside the slots")?;
            let ids: BTreeSet<u32> = slots.iter().copied().collect();
            for id in ids {
                let record = self.record(id)?;
                // For a moment it may be named by a pool that takes it over.
                let its_own = record.facts.index() == head.index;
                ensure!(
                    its_own,
                    "ring {}: server {id} of another VIP port",
                    pool.ring
                );
            }
        }
        Ok(())
    }

    fn record(&self, id: u32) -> Result<&ServerRecord, String> {
        let word = self.servers.get(&id).filter(|word| word.present());
        let word = word.ok_or_else(|| format!("server {id} is not there"))?;
        self.records
            .get(&word.slot())
            .ok_or_else(|| format!("server {id} without a record"))
    }

    /// The slots of a ring.
    pub fn slots(&self, word: RingWord) -> Option<&[u32]> {
        let start = word.offset() as usize;
        self.ring_slots.get(start..start + word.slots() as usize)
    }

    fn reach(&self) -> Reach {
        let mut reach = Reach {
            locals: self.locals.values().copied().collect(),
            ..Reach::default()
        };
        for word in self.vips.values() {
            reach.heads.extend([word.head(), word.rs_head()]);
        }
        for head in reach.heads.iter().filter_map(|slot| self.heads.get(slot)) {
            reach.rings.extend(head.pools.iter().map(|pool| pool.ring));
            reach.sets.insert(head.source_set);
        }
        for word in reach.rings.iter().filter_map(|ring| self.rings.get(ring)) {
            reach.extents.insert((word.offset(), word.slots()));
        }
        let present = self.servers.values().filter(|word| word.present());
        reach.records.extend(present.map(|word| word.slot()));
        reach
    }

    /// The image that an agent reads back.
    pub fn image(&self) -> Image {
        let heads = |slot| Some((slot, *self.heads.get(&slot)?));
        let slots = self
            .vips
            .values()
            .flat_map(|word| [word.head(), word.rs_head()]);
        let ring = |(&id, &word)| {
            let content = Arc::new(RingContent::of(self.slots(word)?));
            Some((id, Ring { word, content }))
        };
        let sets: BTreeSet<u32> = self.sources.iter().map(|source| source.set).collect();
        let present = self.servers.values().filter(|word| word.present());
        let record = |word: &ServerWord| Some((word.slot(), *self.records.get(&word.slot())?));
        Image {
            vips: self.vips.clone(),
            replies: self.replies.clone(),
            locals: self.locals.clone(),
            peers: self.peers.clone(),
            macs: self.macs.clone(),
            peer_nets: self.peer_nets.clone(),
            sources: sets
                .into_iter()
                .map(|set| (set, self.blocks(set).into()))
                .collect(),
            announced: self.announced.clone(),
            heads: slots.filter_map(heads).collect(),
            rings: self.rings.iter().filter_map(ring).collect(),
            servers: self.servers.clone(),
            records: present.filter_map(record).collect(),
        }
    }
}

/// The properties that tell one server from another to its flows: the pool that names it is none.
fn identity(record: &ServerRecord) -> impl Ord + use<> {
    let full_nat = record.facts.mode() == Some(ForwardingMode::FullNat);
    let (index, reply) = (record.facts.index(), record.facts.reply_index());
    (index, record.addr, record.port, reply, full_nat)
}
