//! The keys of flow entries.

use crate::hash;
use sluice_abi::FarEnd;

/// A flow key: words as stored, and the hash that chooses its buckets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key<const A: usize> {
    pub(super) words: [u64; 3],
    hash: u64,
}

impl<const A: usize> Key<A> {
    /// Words of an entry: the key's and one of data.
    pub const WORDS: usize = sluice_abi::entry_words::<A>();

    /// The key of a flow between a client and `far`; `seed` is the tables' secret.
    #[inline(always)]
    pub fn new(client: &[u8; A], port: [u8; 2], far: FarEnd, seed: u64) -> Self {
        let mixed = far.mixed();
        let high = u64::from(u16::from_be_bytes(port)) << 32 | u64::from(far.tag()) << 48;
        let words = if A == 4 {
            [high | u64::from(u32_at(client, 0)), mixed, 0]
        } else {
            let first = u64::from(u32_at(client, 0)) | u64::from(u32_at(client, 4)) << 32;
            let second = u64::from(u32_at(client, 8)) | u64::from(u32_at(client, 12)) << 32;
            let folded = (first ^ second.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            [high | ((folded ^ mixed) >> 32), first, second]
        };
        Self::of(words, seed)
    }

    /// The key with these words.
    #[inline(always)]
    pub(super) fn of(words: [u64; 3], seed: u64) -> Self {
        Self {
            words,
            hash: hash::bucket::<A>(&words, seed),
        }
    }

    /// The key's words: those that are stored, and for IPv4 a second one that only chooses the buckets. The third is unused
    /// for IPv4.
    pub fn words(&self) -> [u64; 3] {
        self.words
    }

    /// Hashes of the two buckets that may hold the flow, to be masked by the table's size.
    #[inline(always)]
    pub fn buckets(&self) -> [u32; 2] {
        [self.hash as u32, (self.hash >> 32) as u32]
    }
}

#[inline(always)]
fn u32_at<const A: usize>(bytes: &[u8; A], at: usize) -> u32 {
    if at + 3 < A {
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    } else {
        0
    }
}
