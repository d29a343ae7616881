//! Map writes, and the limits of the maps.

use std::sync::Arc;

use sluice_abi::{AnnouncedWord, Head, RingWord, ServerRecord, ServerWord, VipWord};

use crate::{AnnouncedAt, Blocks, Local, Mac, Prefix, RingLayout, Socket};

/// One map write.
///
/// An executor applies them in order and may stop after any of them. Before it applies operations that were computed from
/// an image it read back (after a start, or after a sequence that was cut short) it waits one grace period, because
/// packets may still hold what the last words that were flipped led to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MapOp {
    /// Writes a slot of `RECORDS` that no word names.
    WriteRecord {
        /// The slot.
        slot: u32,
        /// Its value.
        record: ServerRecord,
    },
    /// Writes `RING_SLOTS[offset ..]`, which no ring covers.
    WriteRingSlots {
        /// Index of the first slot.
        offset: u32,
        /// The seed and the members that the slots follow from.
        layout: Arc<RingLayout>,
    },
    /// Adds the entries of a source set, which no head names, to `SOURCES*`.
    WriteSources {
        /// The set.
        set: u32,
        /// Its blocks.
        blocks: Blocks,
    },
    /// Removes the entries of a source set, which no head names, from `SOURCES*`.
    RemoveSources {
        /// The set.
        set: u32,
        /// Its blocks.
        blocks: Blocks,
    },
    /// Writes a slot of `HEADS` that no VIP word names.
    WriteHead {
        /// The slot.
        slot: u32,
        /// Its value.
        head: Head,
    },
    /// Sets a word of `SERVERS`.
    SetServer {
        /// The server id.
        id: u32,
        /// The word.
        word: ServerWord,
    },
    /// Sets a word of `RINGS`.
    SetRing {
        /// The ring id.
        ring: u32,
        /// The word; `RingWord(0)` = no ring.
        word: RingWord,
    },
    /// Sets an entry of `VIPS*`.
    SetVip {
        /// The key.
        socket: Socket,
        /// The value.
        word: VipWord,
    },
    /// Removes an entry of `VIPS*`.
    RemoveVip {
        /// The key.
        socket: Socket,
    },
    /// Sets an entry of `REPLIES*`.
    SetReply {
        /// The key.
        socket: Socket,
        /// The reply index.
        index: u32,
    },
    /// Removes an entry of `REPLIES*`.
    RemoveReply {
        /// The key.
        socket: Socket,
    },
    /// Sets an entry of `LOCALS*`.
    SetLocal {
        /// The key.
        local: Local,
        /// The server id.
        server: u32,
    },
    /// Removes an entry of `LOCALS*`.
    RemoveLocal {
        /// The key.
        local: Local,
    },
    /// Adds an entry to `PEERS`.
    AddPeer {
        /// The key.
        mac: Mac,
    },
    /// Removes an entry of `PEERS`.
    RemovePeer {
        /// The key.
        mac: Mac,
    },
    /// Sets a word of `MACS`.
    SetMac {
        /// Its index.
        index: u32,
        /// The word; 0 = none.
        word: u64,
    },
    /// Sets an entry of `PEER_NETS*`.
    SetPeerNet {
        /// The key.
        prefix: Prefix,
        /// [`sluice_abi::NET_SENDS`], [`sluice_abi::NET_TUNNELS`].
        flags: u32,
    },
    /// Removes an entry of `PEER_NETS*`.
    RemovePeerNet {
        /// The key.
        prefix: Prefix,
    },
    /// Sets an entry of `ANNOUNCED*`.
    SetAnnounced {
        /// The key.
        at: AnnouncedAt,
        /// The value.
        word: AnnouncedWord,
    },
    /// Removes an entry of `ANNOUNCED*`.
    RemoveAnnounced {
        /// The key.
        at: AnnouncedAt,
    },
    /// Waits until no packet that was in a program when the wait began is in it any more.
    Grace,
}

/// How much the maps hold. Of a map in two families, what each of the two holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Entries of `VIPS4`, and of `VIPS6`: VIP ports and one marker per address.
    pub vips: u32,
    /// Entries of `REPLIES4`, and of `REPLIES6`.
    pub replies: u32,
    /// Entries of `LOCALS4`, and of `LOCALS6`.
    pub locals: u32,
    /// Entries of `PEERS`.
    pub peers: u32,
    /// Entries of `PEER_NETS4`, and of `PEER_NETS6`.
    pub peer_nets: u32,
    /// Entries of `SOURCES4`, and of `SOURCES6`.
    pub sources: u32,
    /// Entries of `ANNOUNCED4`, and of `ANNOUNCED6`: one for each address and interface.
    pub announced: u32,
    /// Slots of `HEADS`; slot 0 is never used.
    pub heads: u32,
    /// Words of `RINGS`; id 0 is never used.
    pub rings: u32,
    /// Slots of `RING_SLOTS`.
    pub ring_slots: u32,
    /// Words of `SERVERS`; id 0 is never used.
    pub servers: u32,
    /// Slots of `RECORDS`; slot 0 is never used.
    pub records: u32,
    /// Words of `SERVERS` that one virtual server gets.
    pub servers_each: u32,
    /// Slots of `RING_SLOTS` that one virtual server gets.
    pub ring_slots_each: u32,
    /// Entries of `SOURCES4`, and of `SOURCES6`, that one virtual server gets.
    pub sources_each: u32,
}

impl Limits {
    /// What one virtual server gets of a table that holds so much: a quarter, so that there is room left for others.
    pub const fn quota(limit: u32) -> u32 {
        limit / 4
    }
}
