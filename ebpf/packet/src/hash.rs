//! The two hashes: which bucket a flow is in, and which pool and server a new flow gets.

use sluice_abi::MIXER;

/// Finalizer of a 64-bit multiply–xorshift hash: every input bit reaches every output bit.
#[inline(always)]
const fn mix(mut h: u64) -> u64 {
    h ^= h >> 32;
    h = h.wrapping_mul(0xd6e8_feb8_6659_fd93);
    h ^= h >> 32;
    h = h.wrapping_mul(0xd6e8_feb8_6659_fd93);
    h ^ (h >> 32)
}

/// Hash for the flow tables of an IPv4 client's address and port, and of the far end, [`sluice_abi::FarEnd::mixed`]. The seed
/// is secret, or a client could fill one bucket on purpose. The halves choose the two buckets.
///
/// The far end is known last, by a look-up. So it comes last, and the client's part is computed meanwhile.
#[inline(always)]
pub fn bucket_ipv4(client: u64, far: u64, seed: u64) -> u64 {
    let h = (client ^ seed).wrapping_mul(MIXER);
    let h = (h ^ (h >> 32) ^ far).wrapping_mul(0xd6e8_feb8_6659_fd93);
    h ^ (h >> 32)
}

/// As [`bucket_ipv4`], of an IPv6 key's words: the first has the far end in it.
#[inline(always)]
pub fn bucket_ipv6(words: &[u64; 3], seed: u64) -> u64 {
    let h = (words[1] ^ seed).wrapping_mul(MIXER);
    let h = (h ^ (h >> 32) ^ words[2]).wrapping_mul(MIXER);
    let h = (h ^ (h >> 32) ^ words[0]).wrapping_mul(0xd6e8_feb8_6659_fd93);
    h ^ (h >> 32)
}

/// First part of the hash for FullNAT's claims: of the server's and the own address, one word in IPv4. The seed is secret,
/// or who knows the servers could fill the slots of one port after the other.
#[inline(always)]
pub fn claim_ends(ends: &[u64; 4], is_ipv4: bool, seed: u64) -> u64 {
    let mut h = (ends[0] ^ seed).wrapping_mul(MIXER);
    let mut i = 1;
    while !is_ipv4 && i < 4 {
        h = (h ^ (h >> 32) ^ ends[i]).wrapping_mul(MIXER);
        i += 1;
    }
    h ^ (h >> 32)
}

/// Second part: of a [`sluice_abi::ClaimKey`].
#[inline(always)]
pub fn claim(ends: u64, key: u64) -> u32 {
    ((ends ^ key).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32) as u32
}

/// Hash of a flow for pool and ring: equal on every director. The low half chooses the ring slot, [`pool`] the pool.
#[inline(always)]
pub fn flow<const A: usize>(client: &[u8; A], port: [u8; 2], seed: u32) -> u64 {
    let port = u64::from(u16::from_be_bytes(port));
    mix(address(client, seed) ^ port.wrapping_mul(MIXER))
}

/// As [`flow`], by the client's address alone.
#[inline(always)]
pub fn client<const A: usize>(client: &[u8; A], seed: u32) -> u64 {
    mix(address(client, seed))
}

/// The 31-bit pool hash out of [`flow`]'s or [`client`]'s result.
#[inline(always)]
pub fn pool(hash: u64) -> u32 {
    (hash >> 33) as u32
}

/// The hash that chooses the next candidate when one will not do.
#[inline(always)]
pub fn next(hash: u64) -> u64 {
    mix(hash.wrapping_add(MIXER))
}

#[inline(always)]
fn address<const A: usize>(client: &[u8; A], seed: u32) -> u64 {
    let mut h = u64::from(seed);
    let mut i = 0;
    while i + 3 < A {
        let word = u32::from_be_bytes([client[i], client[i + 1], client[i + 2], client[i + 3]]);
        h = (h ^ u64::from(word)).wrapping_mul(MIXER);
        h ^= h >> 32;
        i += 4;
    }
    h
}
