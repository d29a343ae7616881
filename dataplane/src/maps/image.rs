//! The planner's image: reading it back from the maps, and writing the operations that change it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sluice_abi::{AnnouncedWord, MapName, RingWord};
use sluice_planner::{
    AnnouncedAt, Blocks, ByFamily, Image, Local, Mac, MapOp, Prefix, Ring, RingContent, Socket,
    Source,
};

use super::{Error, Maps, map_error};

impl Maps {
    /// Reads back what the planner decides.
    pub fn image(&self) -> Result<Image, Error> {
        let vips = self.vips()?;
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
            replies: self.replies()?,
            locals: self.locals()?,
            peers: peers.into_iter().map(|(key, _)| Mac(key.mac)).collect(),
            macs: self.macs(),
            peer_nets: self.peer_nets()?,
            sources: self.sources()?,
            announced: self.announced()?,
            heads,
            rings: self.rings()?,
            servers,
            records,
        })
    }

    fn vips(&self) -> Result<BTreeMap<Socket, sluice_abi::VipWord>, Error> {
        let v4 = self.vips4.entries();
        let v4 = v4.map_err(map_error(MapName::Vips4, "read it"))?;
        let v6 = self.vips6.entries();
        let v6 = v6.map_err(map_error(MapName::Vips6, "read it"))?;
        let v4 = v4.into_iter().map(|(key, word)| (key.into(), word));
        let v6 = v6.into_iter().map(|(key, word)| (key.into(), word));
        Ok(v4.chain(v6).collect())
    }

    fn macs(&self) -> BTreeMap<u32, u64> {
        let words = self.macs.words().iter();
        let words = words.map(|word| word.load(Ordering::Relaxed));
        (0..).zip(words).filter(|(_, word)| *word != 0).collect()
    }

    fn peer_nets(&self) -> Result<BTreeMap<Prefix, u32>, Error> {
        let v4 = self.peer_nets4.entries();
        let v4 = v4.map_err(map_error(MapName::PeerNets4, "read it"))?;
        let v6 = self.peer_nets6.entries();
        let v6 = v6.map_err(map_error(MapName::PeerNets6, "read it"))?;
        let v4 = v4.into_iter().map(|(key, flags)| (key.into(), flags));
        let v6 = v6.into_iter().map(|(key, flags)| (key.into(), flags));
        Ok(v4.chain(v6).collect())
    }

    fn sources(&self) -> Result<BTreeMap<u32, Blocks>, Error> {
        let mut sets: BTreeMap<u32, BTreeSet<Prefix>> = BTreeMap::new();
        let v4 = self.sources4.entries();
        let v4 = v4.map_err(map_error(MapName::Sources4, "read it"))?;
        let v6 = self.sources6.entries();
        let v6 = v6.map_err(map_error(MapName::Sources6, "read it"))?;
        let v4 = v4.into_iter().map(|(key, _)| Source::from(key));
        let v6 = v6.into_iter().map(|(key, _)| Source::from(key));
        for Source { set, block } in v4.chain(v6) {
            sets.entry(set).or_default().insert(block);
        }
        let sets = sets.into_iter();
        Ok(sets
            .map(|(set, blocks)| (set, blocks.into_iter().collect()))
            .collect())
    }

    fn announced(&self) -> Result<BTreeMap<AnnouncedAt, AnnouncedWord>, Error> {
        let v4 = self.announced4.entries();
        let v4 = v4.map_err(map_error(MapName::Announced4, "read it"))?;
        let v6 = self.announced6.entries();
        let v6 = v6.map_err(map_error(MapName::Announced6, "read it"))?;
        let v4 = v4.into_iter().map(|(key, word)| (key.into(), word));
        let v6 = v6.into_iter().map(|(key, word)| (key.into(), word));
        Ok(v4.chain(v6).collect())
    }

    fn replies(&self) -> Result<BTreeMap<Socket, u32>, Error> {
        let v4 = self.replies4.entries();
        let v4 = v4.map_err(map_error(MapName::Replies4, "read it"))?;
        let v6 = self.replies6.entries();
        let v6 = v6.map_err(map_error(MapName::Replies6, "read it"))?;
        let v4 = v4.into_iter().map(|(key, index)| (key.into(), index));
        let v6 = v6.into_iter().map(|(key, index)| (key.into(), index));
        Ok(v4.chain(v6).collect())
    }

    fn locals(&self) -> Result<BTreeMap<Local, u32>, Error> {
        let v4 = self.locals4.entries();
        let v4 = v4.map_err(map_error(MapName::Locals4, "read it"))?;
        let v6 = self.locals6.entries();
        let v6 = v6.map_err(map_error(MapName::Locals6, "read it"))?;
        let v4 = v4.into_iter().map(|(key, id)| (key.into(), id));
        let v6 = v6.into_iter().map(|(key, id)| (key.into(), id));
        Ok(v4.chain(v6).collect())
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
            MapOp::WriteSources { set, blocks } => self.write_sources(*set, blocks),
            MapOp::RemoveSources { set, blocks } => self.remove_sources(*set, blocks),
            MapOp::SetServer { id, word } => self.set_server(*id, *word),
            MapOp::SetRing { ring, word } => self
                .rings
                .set(*ring, word)
                .map_err(map_error(MapName::Rings, "write it")),
            MapOp::SetVip { socket, word } => match socket.key() {
                ByFamily::V4(key) => written(MapName::Vips4, self.vips4.set(&key, word)),
                ByFamily::V6(key) => written(MapName::Vips6, self.vips6.set(&key, word)),
            },
            MapOp::RemoveVip { socket } => match socket.key() {
                ByFamily::V4(key) => written(MapName::Vips4, self.vips4.remove(&key)),
                ByFamily::V6(key) => written(MapName::Vips6, self.vips6.remove(&key)),
            },
            MapOp::SetReply { socket, index } => match socket.key() {
                ByFamily::V4(key) => written(MapName::Replies4, self.replies4.set(&key, index)),
                ByFamily::V6(key) => written(MapName::Replies6, self.replies6.set(&key, index)),
            },
            MapOp::RemoveReply { socket } => match socket.key() {
                ByFamily::V4(key) => written(MapName::Replies4, self.replies4.remove(&key)),
                ByFamily::V6(key) => written(MapName::Replies6, self.replies6.remove(&key)),
            },
            MapOp::SetLocal { local, server } => match local.key() {
                ByFamily::V4(key) => written(MapName::Locals4, self.locals4.set(&key, server)),
                ByFamily::V6(key) => written(MapName::Locals6, self.locals6.set(&key, server)),
            },
            MapOp::RemoveLocal { local } => match local.key() {
                ByFamily::V4(key) => written(MapName::Locals4, self.locals4.remove(&key)),
                ByFamily::V6(key) => written(MapName::Locals6, self.locals6.remove(&key)),
            },
            MapOp::AddPeer { mac } => written(MapName::Peers, self.peers.set(&(*mac).into(), &1)),
            MapOp::RemovePeer { mac } => written(MapName::Peers, self.peers.remove(&(*mac).into())),
            MapOp::SetMac { index, word } => {
                written(MapName::Macs, self.macs.set_word(*index, *word))
            }
            MapOp::SetPeerNet { prefix, flags } => match prefix.key() {
                ByFamily::V4(key) => written(MapName::PeerNets4, self.peer_nets4.set(&key, flags)),
                ByFamily::V6(key) => written(MapName::PeerNets6, self.peer_nets6.set(&key, flags)),
            },
            MapOp::RemovePeerNet { prefix } => match prefix.key() {
                ByFamily::V4(key) => written(MapName::PeerNets4, self.peer_nets4.remove(&key)),
                ByFamily::V6(key) => written(MapName::PeerNets6, self.peer_nets6.remove(&key)),
            },
            MapOp::SetAnnounced { at, word } => match at.key() {
                ByFamily::V4(key) => written(MapName::Announced4, self.announced4.set(&key, word)),
                ByFamily::V6(key) => written(MapName::Announced6, self.announced6.set(&key, word)),
            },
            MapOp::RemoveAnnounced { at } => match at.key() {
                ByFamily::V4(key) => written(MapName::Announced4, self.announced4.remove(&key)),
                ByFamily::V6(key) => written(MapName::Announced6, self.announced6.remove(&key)),
            },
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

    fn write_sources(&self, set: u32, blocks: &Blocks) -> Result<(), Error> {
        let sources = blocks.iter().map(|&block| Source { set, block });
        sources
            .map(|source| source.key())
            .try_for_each(|key| match key {
                ByFamily::V4(key) => written(MapName::Sources4, self.sources4.set(&key, &1)),
                ByFamily::V6(key) => written(MapName::Sources6, self.sources6.set(&key, &1)),
            })
    }

    fn remove_sources(&self, set: u32, blocks: &Blocks) -> Result<(), Error> {
        let sources = blocks.iter().map(|&block| Source { set, block });
        sources
            .map(|source| source.key())
            .try_for_each(|key| match key {
                ByFamily::V4(key) => written(MapName::Sources4, self.sources4.remove(&key)),
                ByFamily::V6(key) => written(MapName::Sources6, self.sources6.remove(&key)),
            })
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
