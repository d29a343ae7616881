//! Everything that lives in a BPF map: structs, words, constants and drop reasons.
//!
//! Both the programs and the agent compile this crate, so there is no second definition to keep in step. Rules:
//! `#[repr(C)]`, explicit padding, addresses and ports in network byte order as byte arrays, no bool, enum, `Option` or
//! `usize` in a map value, and a size assertion for each struct. A value that packets can reach is either one 8-byte
//! *word*, which is replaced atomically, or a slot that is never rewritten while a word refers to it.
//!
//! How the maps refer to each other:
//!
//! ```text
//! VIPS (address, protocol, port) ─► VipWord ─► HEADS[slot] ─► RINGS[ring] ─► RING_SLOTS[offset + hash] ─► server id
//! HEADS[slot] ─► source set; SOURCES (set, client's address): whether the client may begin a flow
//! FLOWS (client, VIP port's index)  ─► FlowData ─────────────────────────────────────────────────────► server id
//! server id ─► SERVERS[id] = ServerWord ─► RECORDS[slot] = ServerRecord (one cache line)
//! SAMPLES (as FLOWS) ─► how a connection to a server began
//! ANNOUNCED (address, interface) ─► AnnouncedWord ─► GROUPS[group]: until when the node answers for the address
//! ```
#![no_std]
#![forbid(unsafe_code)]
// Words are unpacked by shifting and cutting off.
#![allow(clippy::cast_possible_truncation)]
#![allow(
    clippy::inline_always,
    reason = "programs keep frames and flow words in registers"
)]

mod announce;
pub mod bench;
mod claim;
mod flow;
mod head;
mod keys;
mod mac;
mod names;
mod reason;
mod sample;
mod server;

pub use announce::{
    AnnouncedKey, AnnouncedWord, GROUP_DEADLINE, GROUP_NAME, GROUP_WORDS, MAX_GROUPS, group_hash,
};
pub use claim::{
    ClaimData, ClaimKey, ClaimState, FULLNAT_PORT_MAX, FULLNAT_PORT_MIN, HALF_OPEN_NS,
    NEW_FLOW_WORDS, claim_words,
};
pub use flow::{
    BUCKET_ENTRIES, ESTABLISHED_SHIFT, FarEnd, FlowClock, FlowData, FlowState, HALF_OPEN_SHIFT,
    SLOT_BUSY, SLOT_FREE, Timeouts, entry_words,
};
pub use head::{
    EVERYBODY, FIRST_SOURCE_SET, Head, HeadPool, MAX_POOLS, NOBODY, POOL_BY_CLIENT_ADDRESS,
    REFUSES, RingWord, SERVER_BY_CLIENT_ADDRESS, SHARE_WHOLE, Scheduler,
};
pub use keys::{
    FIRST_REPLY_INDEX, LocalKey, MOST_INDICES, MacKey, NET_SENDS, NET_TUNNELS, PortKey, PrefixKey,
    Source, SourceKey, VipWord,
};
pub use mac::{
    MAC_WORDS, NEXT_HOP_BUCKET, NEXT_HOP_WORDS, NextHopWord, OWN_BUCKET, OWN_MAC_WORDS,
    PEER_FILTER_WORDS, mac_number, own_bucket, own_mac, own_mac_parts, peer_bit,
};
pub use names::{CONFIG_WORDS, ConfigWord, MapName};
pub use reason::{DropReason, MOST_DROP_REASONS, MOST_STATS, Stat};
pub use sample::{
    SAMPLE_ASKED, SAMPLE_BEGUN, SAMPLE_DATA, SAMPLE_KEY, SAMPLE_NUMBERS, SAMPLE_SLOTS,
    SAMPLE_STALE_NS, SAMPLE_TIME_NS, SAMPLE_TIME_SHIFT, SAMPLE_TIMES, SAMPLE_WORDS, SampleData,
    SampleState,
};
pub use server::{ForwardingMode, Path, ServerCounters, ServerFacts, ServerRecord, ServerWord};

/// Version of the layout of every map. The agent adopts pinned maps only if the version stored in them equals this.
pub const ABI_VERSION: u64 = 5;

/// TCP's protocol number (RFC 9293).
pub const TCP: u8 = 6;
/// UDP's protocol number (RFC 768).
pub const UDP: u8 = 17;

/// 2^64 / φ, an odd number by which hashes multiply: each bit changes about half of those above it.
pub const MIXER: u64 = 0x9e37_79b9_7f4a_7c15;
