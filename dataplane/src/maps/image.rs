//! The planner's image: reading it back from the maps, and writing the operations that change it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sluice_abi::{MapName, RingWord, VipWord};
use sluice_planner::{Blocks, Image, Mac, MapOp, Prefix, Ring, RingContent, Socket, Source};

use super::{Error, Maps, map_error};

impl Maps {
    /// Reads back what the planner decides.
    pub fn image(&self) -> Result<Image, Error> {
        let vips: BTreeMap<Socket, VipWord> = self.vips.entries()?.collect();
        let named = vips.values().flat_map(|word| [word.head(), word.rs_head()]);
        let slots: BTreeSet<u32> = named.filter(|&slot| slot != 0).collect();
        let mut heads = BTreeMap::new();
        for slot in slots.range(..self.heads.max_entries()) {
            let head = self.heads.get(*slot);
            heads.insert(*slot, head.map_err(map_error(MapName::Heads, "read it"))?);
        }
        let mut servers = BTreeMap::new();
        let mut records = BTreeMap::new();
        for id in 1..self.servers.max_entries() {
            let word = self.servers.get(id);
            let word = word.map_err(map_error(MapName::Servers, "read it"))?;
            if word.0 == 0 {
                continue;
            }
            servers.insert(id, word);
            if word.present() && word.slot() < self.records.max_entries() {
                let record = self.records.get(word.slot());
                let record = record.map_err(map_error(MapName::Records, "read it"))?;
                records.insert(word.slot(), record);
            }
        }
        let peers = self.peers.entries();
        let peers = peers.map_err(map_error(MapName::Peers, "read it"))?;
        Ok(Image {
            vips,
            replies: self.replies.entries()?.collect(),
            locals: self.locals.entries()?.collect(),
            peers: peers.into_iter().map(|(key, _)| Mac(key.mac)).collect(),
            macs: self.macs(),
            peer_nets: self.peer_nets.entries()?.collect(),
            sources: self.sources()?,
            announced: self.announced.entries()?.collect(),
            heads,
            rings: self.rings()?,
            servers,
            records,
        })
    }

    fn macs(&self) -> BTreeMap<u32, u64> {
        let words = self.macs.words().iter();
        let words = words.map(|word| word.load(Ordering::Relaxed));
        (0..).zip(words).filter(|(_, word)| *word != 0).collect()
    }

    fn sources(&self) -> Result<BTreeMap<u32, Blocks>, Error> {
        let mut sets: BTreeMap<u32, BTreeSet<Prefix>> = BTreeMap::new();
        for (Source { set, block }, _) in self.sources.entries()? {
            sets.entry(set).or_default().insert(block);
        }
        let sets = sets.into_iter();
        Ok(sets
            .map(|(set, blocks)| (set, blocks.into_iter().collect()))
            .collect())
    }

    fn rings(&self) -> Result<BTreeMap<u32, Ring>, Error> {
        let mut rings = BTreeMap::new();
        for ring in 1..self.rings.max_entries() {
            let word = self.rings.get(ring);
            let word = word.map_err(map_error(MapName::Rings, "read it"))?;
            if word.present() && self.holds(word) {
                let values = self.ring_slots.halves(word.offset(), slots(word));
                let values = values.map_err(map_error(MapName::RingSlots, "read it"))?;
                let slots: Vec<u32> = values
                    .iter()
                    .map(|value| value.load(Ordering::Relaxed))
                    .collect();
                let content = Arc::new(RingContent::of(&slots));
                rings.insert(ring, Ring { word, content });
            }
        }
        Ok(rings)
    }

    /// Whether a ring lies within the arena.
    fn holds(&self, word: RingWord) -> bool {
        word.log2_slots() < 32
            && u64::from(word.offset()) + u64::from(word.slots())
                <= 2 * u64::from(self.ring_slots.max_entries())
    }

    /// Carries out one operation of a diff.
    pub fn apply(&self, op: &MapOp) -> Result<(), Error> {
        match op {
            MapOp::WriteRecord { slot, record } => self
                .records
                .set(*slot, record)
                .map_err(map_error(MapName::Records, "write it")),
            MapOp::WriteRingSlots { offset, layout } => self.write_ring(*offset, &layout.slots()),
            MapOp::WriteHead { slot, head } => self
                .heads
                .set(*slot, head)
                .map_err(map_error(MapName::Heads, "write it")),
            MapOp::WriteSources { set, blocks } => Source::of_set(*set, blocks)
                .try_for_each(|source| self.sources.set(&source.key(), &1)),
            MapOp::RemoveSources { set, blocks } => Source::of_set(*set, blocks)
                .try_for_each(|source| self.sources.remove(&source.key())),
            MapOp::SetServer { id, word } => self.set_server(*id, *word),
            MapOp::SetRing { ring, word } => self
                .rings
                .set(*ring, word)
                .map_err(map_error(MapName::Rings, "write it")),
            MapOp::SetVip { socket, word } => self.vips.set(&socket.key(), word),
            MapOp::RemoveVip { socket } => self.vips.remove(&socket.key()),
            MapOp::SetReply { socket, index } => self.replies.set(&socket.key(), index),
            MapOp::RemoveReply { socket } => self.replies.remove(&socket.key()),
            MapOp::SetLocal { local, server } => self.locals.set(&local.key(), server),
            MapOp::RemoveLocal { local } => self.locals.remove(&local.key()),
            MapOp::AddPeer { mac } => written(MapName::Peers, self.peers.set(&(*mac).into(), &1)),
            MapOp::RemovePeer { mac } => written(MapName::Peers, self.peers.remove(&(*mac).into())),
            MapOp::SetMac { index, word } => {
                written(MapName::Macs, self.macs.set_word(*index, *word))
            }
            MapOp::SetPeerNet { prefix, flags } => self.peer_nets.set(&prefix.key(), flags),
            MapOp::RemovePeerNet { prefix } => self.peer_nets.remove(&prefix.key()),
            MapOp::SetAnnounced { at, word } => self.announced.set(&at.key(), word),
            MapOp::RemoveAnnounced { at } => self.announced.remove(&at.key()),
            MapOp::Grace => {
                self.grace();
                Ok(())
            }
        }
    }

    /// A server that takes over an id starts counting at zero.
    fn set_server(&self, id: u32, word: sluice_abi::ServerWord) -> Result<(), Error> {
        let before = self.servers.get(id);
        let before = before.map_err(map_error(MapName::Servers, "read it"))?;
        if word.present() && (!before.present() || before.epoch() != word.epoch()) {
            let cleared = self.counters.clear(id);
            cleared.map_err(map_error(MapName::Counters, "clear it"))?;
        }
        written(MapName::Servers, self.servers.set(id, &word))
    }

    fn write_ring(&self, offset: u32, slots: &[u32]) -> Result<(), Error> {
        let values = self.ring_slots.halves(offset, slots.len());
        let values = values.map_err(map_error(MapName::RingSlots, "write it"))?;
        for (value, slot) in values.iter().zip(slots) {
            value.store(*slot, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn slots(word: RingWord) -> usize {
    word.slots() as usize
}

fn written(map: MapName, result: io::Result<()>) -> Result<(), Error> {
    result.map_err(map_error(map, "write it"))
}
