//! The decision's view of the world: a packet, the maps, the clock and chance.

use sluice_abi::{
    AnnouncedKey, AnnouncedWord, FlowClock, FlowData, Head, LocalKey, MacKey, NextHopWord, PortKey,
    RingWord, ServerRecord, ServerWord, Stat, VipWord,
};

/// Where a program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// XDP on an uplink.
    Xdp,
    /// tc ingress on an uplink, or on a bridge or overlay device behind which servers are.
    Tc,
}

/// A frame, from its Ethernet header on.
pub trait Packet {
    /// Bytes in the frame.
    fn length(&self) -> usize;
    /// Index of the interface it came by.
    fn ifindex(&self) -> u32;
    /// `N` bytes at `offset`; `None` if the frame ends before.
    fn get<const N: usize>(&self, offset: usize) -> Option<&[u8; N]>;
    /// Writes `N` bytes at `offset`; `None` if the frame ends before.
    fn set<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()>;
    /// Makes room for `n` bytes before the frame. Bytes gained are undefined.
    fn grow_front(&mut self, n: usize) -> Option<()>;
    /// Removes `n` bytes from the front.
    fn shrink_front(&mut self, n: usize) -> Option<()>;
    /// Adds to the transport checksum at `offset` what address and port changes did to it. `addresses` and `ports` are
    /// one's complement sums (RFC 1624: new − old) of big-endian 16-bit words. `zero_is_none`: 0 means no checksum (UDP).
    fn fix_checksum(
        &mut self,
        offset: usize,
        addresses: u16,
        ports: u16,
        zero_is_none: bool,
    ) -> Option<()>;
    /// Keeps the compiler from reading the frame's bounds before the call of the function that begins with this: they would reach it as
    /// numbers, by which the verifier allows no access.
    fn hold(&mut self) {}
    /// Whether the kernel has found that the frame's destination is the device that it came by. XDP comes before that.
    fn is_for_device(&self) -> bool {
        false
    }
    /// 0, but not known to be: where the verifier would follow a computation once for each constant that may come in,
    /// adding this makes the constants one.
    fn unknown_zero(&self) -> u32 {
        0
    }
}

/// Words that several CPUs share, such as a bucket of a flow table. Indices are below their number.
pub trait SharedWords {
    /// Reads a word.
    fn load(&self, word: usize) -> u64;
    /// Writes a word.
    fn store(&self, word: usize, value: u64);
    /// Writes `new` if the word is `old`; returns what it was. A full memory barrier.
    fn compare_exchange(&self, word: usize, old: u64, new: u64) -> u64;
}

/// The tables of one address family; `A` is 4 or 16.
pub trait FamilyTables<const A: usize> {
    /// A bucket of the flow tables, or a slot of `FULLNAT*`: they have as many words.
    type Bucket<'a>: SharedWords
    where
        Self: 'a;

    /// `VIPS*`.
    fn vip(&self, key: &PortKey<A>) -> Option<VipWord>;
    /// `REPLIES*`: the index of a real server's port.
    fn reply_index(&self, key: &PortKey<A>) -> Option<u32>;
    /// `LOCALS*`.
    fn local(&self, key: &LocalKey<A>) -> Option<u32>;
    /// `ANNOUNCED*`.
    fn announced(&self, key: &AnnouncedKey<A>) -> Option<AnnouncedWord>;
    /// `PEER_NETS*`: [`sluice_abi::NET_SENDS`] and [`sluice_abi::NET_TUNNELS`] of an address; 0 = neither.
    fn peer_net(&self, address: &[u8; A]) -> u32;
    /// `SOURCES*`: whether a set has a block with this address.
    fn has_source(&self, set: u32, address: &[u8; A]) -> bool;
    /// A bucket of the established flow table; `hash` is masked by the table's size.
    fn flows(&self, hash: u32) -> Option<Self::Bucket<'_>>;
    /// A bucket of the half-open flow table; `hash` is masked by the table's size.
    fn half_open(&self, hash: u32) -> Option<Self::Bucket<'_>>;
    /// A slot of `FULLNAT*`; `hash` is masked by the table's size.
    fn claims(&self, hash: u32) -> Option<Self::Bucket<'_>>;
    /// How much a slot of `FULLNAT*` is worth to its claim: [`crate::claim_worth`].
    fn claim_worth(&self, hash: u32, now: FlowClock) -> u32;
    /// The live entry of a flow: `find_words`. This and the two below are methods, so that programs can make them functions
    /// which the verifier checks once and not once for each way that leads there.
    fn find_flow(&self, words: [u64; 3], now: FlowClock) -> FlowData;
    /// Changes or removes a flow's entry: `change_words`.
    fn change_flow(&self, words: [u64; 3], found: FlowData, data: FlowData);
    /// Puts a flow into one of the flow tables: `insert_words`.
    fn insert_flow(&self, words: [u64; 3], data: FlowData, now: FlowClock) -> bool;
    /// Takes in a segment of a TCP connection that may be sampled: `sample_words`. Whether its sample goes on.
    fn sample(&self, client: [u64; 2], what: u64, numbers: u64) -> bool;
    /// The kernel's route from `source` to `destination`.
    fn route(&self, packet_ifindex: u32, source: &[u8; A], destination: &[u8; A]) -> Route;
}

/// A MAC address, so aligned that the verifier lets it be read by words from the stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(align(4))]
pub struct AlignedMac(pub [u8; 6]);

/// A way to an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// Next hop known.
    Resolved {
        /// Interface out.
        ifindex: u32,
        /// Its MAC address.
        source_mac: AlignedMac,
        /// The next hop's MAC address.
        next_hop_mac: AlignedMac,
    },
    /// There is a route through this interface, but its next hop's MAC address is not known.
    NoNeighbour {
        /// Interface out.
        ifindex: u32,
    },
    /// No route, or none that may be used.
    None,
}

/// The tables that do not depend on the address family, the clock and chance.
pub trait Tables: FamilyTables<4> + FamilyTables<16> {
    /// The words of `MACS`.
    type Macs<'a>: SharedWords
    where
        Self: 'a;
    /// One word.
    type Word<'a>: SharedWords
    where
        Self: 'a;
    /// A slot of `SAMPLES`.
    type Sample<'a>: SharedWords
    where
        Self: 'a;

    /// A word of `CONFIG`.
    fn config(&self, word: sluice_abi::ConfigWord) -> u64;
    /// [`sluice_abi::ConfigWord::FlowSeed`]; programs have it as a constant.
    fn flow_seed(&self) -> u64;
    /// A slot of `HEADS`.
    fn head(&self, slot: u32) -> Option<&Head>;
    /// `RINGS`.
    fn ring(&self, ring: u32) -> Option<RingWord>;
    /// `RING_SLOTS`: a server id, 0 = none.
    fn ring_slot(&self, index: u32) -> Option<u32>;
    /// `SERVERS`.
    fn server(&self, id: u32) -> Option<ServerWord>;
    /// A slot of `RECORDS`.
    fn record(&self, slot: u32) -> Option<&ServerRecord>;
    /// `MACS`: [`sluice_abi::MAC_WORDS`] words.
    fn macs(&self) -> Option<Self::Macs<'_>>;
    /// An Ethernet address as a number, its first byte the lowest. A method, so that programs can read bytes one by one: an
    /// address that a route gave stands unaligned on the stack.
    fn mac_number(&self, mac: &[u8; 6]) -> u64 {
        sluice_abi::mac_number(mac)
    }
    /// The word of `NEW_FLOWS` for this index of a VIP port.
    fn new_flows(&self, index: u32) -> Option<Self::Word<'_>>;
    /// A slot of `SAMPLES`; `hash` is masked by their number.
    fn sample_slot(&self, hash: u32) -> Option<Self::Sample<'_>>;
    /// A word of `NEXT_HOPS`.
    fn next_hop(&self, index: u32) -> NextHopWord;
    /// Replaces a word of `NEXT_HOPS` unless it is another one than `old`; returns whether it did.
    fn change_next_hop(&self, index: u32, old: NextHopWord, new: NextHopWord) -> bool;
    /// `PEERS`: whether the frame's sender is another director.
    fn is_peer(&self, mac: &MacKey) -> bool;
    /// `GROUPS`: until when the node answers for a VIP group, in nanoseconds of [`Self::exact_ns`]; 0 = it does not.
    fn group_deadline(&self, group: u32) -> u64;
    /// Monotonic clock in nanoseconds, up to a tick late.
    fn now_ns(&self) -> u64;
    /// Monotonic clock in nanoseconds. Takes longer than [`Self::now_ns`].
    fn exact_ns(&self) -> u64;
    /// 32 random bits: where the search for a FullNAT port begins.
    fn random(&self) -> u32;
    /// Counts a packet of `bytes` IP bytes to a server, and a flow if it is new.
    fn count(&self, server: u32, bytes: u32, new_flow: bool);
    /// Counts a packet from a server.
    fn count_reply(&self, server: u32, bytes: u32);
    /// Counts an event.
    fn stat(&self, stat: Stat);
}
