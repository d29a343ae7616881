//! `MACS`: the Ethernet addresses by which a frame is told to be for this node, or from another director. `NEXT_HOPS`: those to
//! which replies go.
//!
//! `MACS` is one value of words, so that a packet looks it up once for both addresses of its frame. The first
//! [`OWN_MAC_WORDS`] are buckets of [`OWN_BUCKET`] own addresses with the interface that frames to them come by. The others are
//! a filter of the other directors' addresses: a sender whose bit is not set is none, and who has a bit is looked up in
//! `PEERS`.

use crate::MIXER;

/// Words of `MACS` that hold own addresses.
pub const OWN_MAC_WORDS: u32 = 256;
/// Words of `MACS` that are the filter of the other directors' addresses.
pub const PEER_FILTER_WORDS: u32 = 256;
/// Words of `MACS`, a power of two.
pub const MAC_WORDS: u32 = OWN_MAC_WORDS + PEER_FILTER_WORDS;
const _: () = assert!(MAC_WORDS.is_power_of_two());
/// Own addresses of a bucket.
pub const OWN_BUCKET: u32 = 4;

/// Words of `NEXT_HOPS`: so many next hops of replies are refreshed at a time. The kernel keeps no more neighbours by itself
/// (`gc_thresh3`).
pub const NEXT_HOP_WORDS: u32 = 1024;
/// Next hops of a bucket.
pub const NEXT_HOP_BUCKET: u32 = 4;
/// Times of next hops count units of 2^30 ns (1.07 s) of the monotonic clock, modulo 2^16.
const NEXT_HOP_SHIFT: u32 = 30;

/// Word of `NEXT_HOPS`: `address:48 | time:16`, low bits first; 0 = free. When the stack last sent a packet to a next hop of
/// replies, so that its neighbour table looks whether the next hop is still there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHopWord(pub u64);

impl NextHopWord {
    const ADDRESS: u64 = (1 << 48) - 1;

    /// The stack sends a packet to `address`, a [`mac_number`], at `ns` of the monotonic clock.
    #[inline(always)]
    pub const fn new(address: u64, ns: u64) -> Self {
        Self((address & Self::ADDRESS) | (ns >> NEXT_HOP_SHIFT) << 48)
    }
    /// Index in `NEXT_HOPS` of the first word of the bucket that may hold it.
    #[inline(always)]
    pub const fn bucket(self) -> u32 {
        const BITS: u32 = (NEXT_HOP_WORDS / NEXT_HOP_BUCKET).ilog2();
        hash(self.0 << 16, BITS) * NEXT_HOP_BUCKET
    }
    /// Whether it is of the same next hop as the other.
    #[inline(always)]
    pub const fn is_of(self, other: Self) -> bool {
        (self.0 ^ other.0) & Self::ADDRESS == 0
    }
    /// Time units since; the most there are for a free word.
    #[inline(always)]
    pub const fn age(self, now: Self) -> u16 {
        if self.0 == 0 {
            return u16::MAX;
        }
        ((now.0 >> 48) as u16).wrapping_sub((self.0 >> 48) as u16)
    }
}

/// A hash of so many bits. They are the product's highest: a bit of the word changes none below it, and addresses of one
/// maker differ in the highest.
#[inline(always)]
const fn hash(word: u64, bits: u32) -> u32 {
    (word.wrapping_mul(MIXER) >> (64 - bits)) as u32
}

/// An Ethernet address as a number, its first byte the lowest.
pub const fn mac_number(mac: &[u8; 6]) -> u64 {
    u64::from_le_bytes([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], 0, 0])
}

/// The word of an own address, a [`mac_number`], at which frames come by the interface with this index:
/// `index:16 | address:48`, low bits first. 0 is a free place. Bits of `address` from 48 on do not count.
#[inline(always)]
pub const fn own_mac(address: u64, ifindex: u32) -> u64 {
    address << 16 | ifindex as u16 as u64
}

/// The address and the interface of an [`own_mac`].
pub const fn own_mac_parts(word: u64) -> ([u8; 6], u16) {
    let [low, high, mac @ ..] = word.to_le_bytes();
    (mac, u16::from_le_bytes([low, high]))
}

/// Index in `MACS` of the first word of the bucket that may hold this [`own_mac`].
#[inline(always)]
pub const fn own_bucket(word: u64) -> u32 {
    const BITS: u32 = (OWN_MAC_WORDS / OWN_BUCKET).ilog2();
    hash(word, BITS) * OWN_BUCKET
}

/// Index in `MACS` of the word of the filter that has the bit of this address, a [`mac_number`], and the bit. Bits of
/// `address` from 48 on do not count.
#[inline(always)]
pub const fn peer_bit(address: u64) -> (u32, u64) {
    const BITS: u32 = PEER_FILTER_WORDS.ilog2() + u64::BITS.ilog2();
    let bit = hash(address << 16, BITS);
    (OWN_MAC_WORDS + bit / u64::BITS, 1 << (bit % u64::BITS))
}
