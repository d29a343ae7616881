//! The keys of flow entries.

use crate::{Tables, hash};
use sluice_abi::{FarEnd, MIXER};

/// A flow key. Its words are those that are stored; for IPv4 the second is not stored, it is the hash that chooses the
/// buckets, and the third is unused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key<const A: usize> {
    pub(crate) words: [u64; 3],
}

impl<const A: usize> Key<A> {
    /// Words of an entry: the key's and one of data.
    pub(crate) const WORDS: usize = sluice_abi::entry_words::<A>();

    /// The key of a flow between a client and `far`.
    #[inline(always)]
    pub(crate) fn new<T: Tables>(tables: &T, client: &[u8; A], port: [u8; 2], far: FarEnd) -> Self {
        Self::of_words(tables, Self::client(client), port, far)
    }

    /// A client's address in words; the second is 0 for IPv4.
    #[inline(always)]
    pub(crate) fn client(address: &[u8; A]) -> [u64; 2] {
        let word = |at| u64::from(u32_at(address, at));
        if A == 4 {
            [word(0), 0]
        } else {
            [word(0) | word(4) << 32, word(8) | word(12) << 32]
        }
    }

    /// As [`Self::new`], of a client's address in words.
    #[inline(always)]
    pub(crate) fn of_words<T: Tables>(
        tables: &T,
        client: [u64; 2],
        port: [u8; 2],
        far: FarEnd,
    ) -> Self {
        let mixed = far.mixed();
        let port = u64::from(u16::from_be_bytes(port)) << 32;
        let tag = u64::from(far.tag()) << 48;
        let [first, second] = client;
        let words = if A == 4 {
            let client = port | first;
            let seed = tables.flow_seed();
            [client | tag, hash::bucket_ipv4(client, mixed, seed), 0]
        } else {
            let folded = (first ^ second.rotate_left(17)).wrapping_mul(MIXER);
            [port | tag | ((folded ^ mixed) >> 32), first, second]
        };
        Self { words }
    }

    /// Hashes of the two buckets that may hold the flow, to be masked by the table's size.
    #[inline(always)]
    pub(crate) fn buckets<T: Tables>(&self, tables: &T) -> [u32; 2] {
        let hash = if A == 4 {
            self.words[1]
        } else {
            hash::bucket_ipv6(&self.words, tables.flow_seed())
        };
        [hash as u32, (hash >> 32) as u32]
    }
}

/// Four bytes of an address as a number, the first the lowest.
#[inline(always)]
pub(crate) fn u32_at<const A: usize>(bytes: &[u8; A], at: usize) -> u32 {
    // As a whole: out of single bytes the compiler makes a dozen instructions.
    let word = bytes.get(at..).and_then(<[u8]>::first_chunk);
    word.map_or(0, |word| u32::from_le_bytes(*word))
}
