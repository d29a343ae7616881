//! The ring of a pool: which slot leads to which server.
//!
//! A packet's hash picks one of `2^k` slots, so a server's part of the new flows is its part of the slots. Three things
//! matter: the parts are the weights as exactly as slots allow; every director computes the same ring from the same
//! servers; and a change of one server or weight moves few slots of the others.
//!
//! [`quotas`] gives each server its exact share, rounded by the largest remainder, thus within one slot of it. [`fill`] is
//! Maglev's algorithm with weights: each server has a pseudo-random order of all slots and takes the first free one
//! of it whenever it is its turn. The turns come by cumulative weight: the `k`-th slot of a server of weight `w` at time
//! `k/w`. A server that leaves frees its slots, the others take them in their own order, and few of their later
//! choices change in consequence. Orders and ties depend on a seed (the pool's name), address and port alone: not on ids,
//! not on the order of the input, not on earlier rings.
//!
//! [`log2_slots`] chooses among few sizes, because between two sizes nearly every slot differs. A ring whose size
//! remembered the past would avoid that, but two directors with different pasts would disagree; so sizes are far apart
//! (a factor of four) and begin at 4,096: the change is met at about 16 and 64 servers of equal weight and hardly
//! elsewhere. It concerns new flows alone, since the flow table keeps the others where they are.
//!
//! A server that is down, or that is not to have its full share yet, lends slots ([`lend`]). Each of them goes where a second hash of the
//! slot leads, so servers that lend nothing keep all of theirs, and directors that think otherwise of one server agree on the slots of all others.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::IpAddr;

use sluice_abi::MIXER;

use crate::hash;

/// A server's identity in a ring: its address, and its port where the mode tells servers of one address apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RingKey {
    /// The server's address.
    pub address: IpAddr,
    /// The server's port; 0 where a frame names only the address (DR, TUN).
    pub port: u16,
}

/// log2 of the largest ring's slots.
pub const MAX_LOG2_SLOTS: u8 = 16;

/// The slots that the lightest server shall have at least, as far as the largest ring allows.
const SLOTS_OF_LIGHTEST: u128 = 256;

/// The sizes of rings with more than one server, as log2.
const SIZES: [u8; 3] = [12, 14, MAX_LOG2_SLOTS];

/// The size, as log2 of the slots, of a ring over servers of these weights (those of weight 0 do not count).
pub fn log2_slots(weights: impl IntoIterator<Item = u64>) -> u8 {
    let (mut servers, mut sum, mut least) = (0, 0_u128, u128::MAX);
    for weight in weights.into_iter().filter(|&w| w > 0) {
        servers += 1;
        sum += u128::from(weight);
        least = least.min(u128::from(weight));
    }
    if servers <= 1 {
        return 0;
    }
    let wanted = (sum * SLOTS_OF_LIGHTEST).div_ceil(least);
    SIZES
        .into_iter()
        .find(|&size| wanted <= 1 << size)
        .unwrap_or(MAX_LOG2_SLOTS)
}

/// Tenths that make up the whole of a server's slots.
pub const WHOLE: u8 = 10;

/// Looks for a slot that is not lent before all slots are looked at in turn.
const TRIES: u64 = 64;

/// How many of `slots` each server gets: the exact share rounded down or up, more by the largest remainders. Where
/// remainders are equal, `ties` decides, smaller first.
pub fn quotas(weights: &[u64], ties: &[u64], slots: u32) -> Vec<u32> {
    let sum: u128 = weights.iter().copied().map(u128::from).sum();
    if sum == 0 {
        return vec![0; weights.len()];
    }
    let exact = |weight: u64| u128::from(weight) * u128::from(slots);
    let mut quotas: Vec<u32> = weights
        .iter()
        .map(|&weight| u32::try_from(exact(weight) / sum).unwrap_or(slots))
        .collect();
    let missing = slots - quotas.iter().sum::<u32>();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&i| (Reverse(exact(weights[i]) % sum), ties[i], i));
    for i in order.into_iter().take(missing as usize) {
        quotas[i] += 1;
    }
    quotas
}

/// The ring: for each of `1 << log2_slots` slots the position of its server among `servers`. Servers of weight 0 get no
/// slot. Empty if no server has a weight.
pub fn fill(seed: u32, servers: &BTreeMap<RingKey, u64>, log2_slots: u8) -> Vec<u32> {
    let slots = 1_u32 << log2_slots.min(MAX_LOG2_SLOTS);
    // Weights are ratios: a common factor shall not even change how times are rounded.
    let factor = servers.values().copied().fold(0, gcd);
    if factor == 0 {
        return Vec::new();
    }
    let weights: Vec<u64> = servers.values().map(|weight| weight / factor).collect();
    let keys: Vec<u64> = servers.keys().map(|key| key_hash(seed, key)).collect();
    let quotas = quotas(&weights, &keys, slots);

    let mut ring = vec![u32::MAX; slots as usize];
    let mut takers: Vec<Taker> = keys
        .iter()
        .map(|&key| Taker::new(key, log2_slots))
        .collect();
    let sum = weights.iter().copied().map(u128::from).sum();
    let mut turns: BinaryHeap<Turn> = (0..weights.len())
        .filter(|&i| quotas[i] > 0)
        .map(|i| Turn::first(weights[i], sum, slots, keys[i], i))
        .collect();
    while let Some(mut turn) = turns.peek_mut() {
        let taker = &mut takers[turn.server];
        taker.take(&mut ring, turn.server);
        if taker.taken < quotas[turn.server] {
            turn.next();
        } else {
            PeekMut::pop(turn);
        }
    }
    ring
}

/// The servers that lend, with the tenths of their slots that they keep: those of `tenths` below [`WHOLE`]. None if nobody would be left to
/// borrow: where all servers are down each has its slots as though none were, and where all the others begin they take all.
pub fn lenders(
    servers: &BTreeMap<RingKey, u64>,
    tenths: &BTreeMap<RingKey, u8>,
) -> BTreeMap<RingKey, u8> {
    let of = |key: &RingKey| tenths.get(key).copied().unwrap_or(WHOLE).min(WHOLE);
    let taking = servers.iter().filter(|(_, weight)| **weight > 0);
    let most = taking.map(|(key, _)| of(key)).max().unwrap_or(WHOLE);
    let lends = |key: &&RingKey| of(key) < WHOLE && (most == WHOLE || of(key) == 0);
    let lending = servers.keys().filter(|_| most > 0).filter(lends);
    lending.map(|key| (*key, of(key))).collect()
}

/// The slots of a ring that servers lend, each with a slot of the server that takes it. `ring` is that of [`fill`], `lenders` that of
/// [`lenders`]. The slots that a server keeps at some tenths are among those that it keeps at more.
pub fn lend(
    seed: u32,
    ring: &[u32],
    servers: &BTreeMap<RingKey, u64>,
    lenders: &BTreeMap<RingKey, u8>,
) -> Vec<(u32, u32)> {
    let kept: Vec<u8> = servers
        .keys()
        .map(|key| lenders.get(key).copied().unwrap_or(WHOLE))
        .collect();
    let tenths = |slot: u32| kept[ring[slot as usize] as usize];
    let slots = || (0..).take(ring.len());
    if !slots().any(|slot| tenths(slot) == WHOLE) {
        return Vec::new();
    }
    let order = |slot: u32| hash::of_words(&[seed, slot]);
    let mut of_lenders: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for slot in slots().filter(|slot| tenths(*slot) < WHOLE) {
        of_lenders
            .entry(ring[slot as usize])
            .or_default()
            .push(slot);
    }
    let mut lent = Vec::new();
    for (server, mut slots) in of_lenders {
        slots.sort_by_key(|&slot| (order(slot), slot));
        let keeps = (slots.len() * usize::from(kept[server as usize])).div_ceil(usize::from(WHOLE));
        let given = slots.into_iter().skip(keeps);
        lent.extend(given.map(|slot| {
            (
                slot,
                borrower(ring.len(), order(slot), |s| tenths(s) == WHOLE),
            )
        }));
    }
    lent
}

/// A slot whose server borrows: the first that `is_whole` by a sequence of hashes. There is one.
fn borrower(slots: usize, order: u64, is_whole: impl Fn(u32) -> bool) -> u32 {
    let mask = u32::try_from(slots - 1).unwrap_or(u32::MAX);
    let mut slot = 0;
    for attempt in 1..=TRIES {
        slot = hash::low(hash::mix(order ^ MIXER.wrapping_mul(attempt))) & mask;
        if is_whole(slot) {
            return slot;
        }
    }
    while !is_whole(slot) {
        slot = (slot + 1) & mask;
    }
    slot
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn key_hash(seed: u32, key: &RingKey) -> u64 {
    let port = key.port.to_be_bytes();
    let seed = seed.to_be_bytes();
    match key.address {
        IpAddr::V4(a) => hash::of(&[&seed, &a.octets(), &port]),
        IpAddr::V6(a) => hash::of(&[&seed, &a.octets(), &port]),
    }
}

/// A server's turn to take a slot; the greatest is next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    time: Reverse<u64>,
    tie: Reverse<u64>,
    server: usize,
    step: u64,
}

impl Turn {
    /// Times count in units of which the whole ring takes 2^60; steps are rounded so finely that 65,536 of them add up to
    /// less than 2^-11 of a turn. The step of a server that gets a slot only as a remainder may be too long to count:
    /// it comes last.
    fn first(weight: u64, sum: u128, slots: u32, tie: u64, server: usize) -> Self {
        let ratio = ((sum << 28) / u128::from(weight)).min(1 << 90);
        let step = (ratio << 32) / u128::from(slots);
        let step = u64::try_from(step).unwrap_or(u64::MAX).min(1 << 62);
        Self {
            time: Reverse(step),
            tie: Reverse(tie),
            server,
            step,
        }
    }

    fn next(&mut self) {
        self.time.0 += self.step;
    }
}

/// A server on its way through its own order of all slots: a bijection of `0..slots` by odd multipliers and shifts.
struct Taker {
    multipliers: [u32; 3],
    summands: [u32; 2],
    shift: u32,
    mask: u32,
    position: u32,
    taken: u32,
}

impl Taker {
    fn new(key: u64, log2_slots: u8) -> Self {
        let (a, b) = (hash::mix(key ^ MIXER), hash::mix(!key));
        let c = hash::mix(a ^ b.rotate_left(32));
        Self {
            multipliers: [hash::low(a) | 1, hash::low(b) | 1, hash::low(c) | 1],
            summands: [hash::high(a), hash::high(b)],
            shift: u32::from(log2_slots).div_ceil(2),
            mask: (1 << log2_slots) - 1,
            position: 0,
            taken: 0,
        }
    }

    fn slot(&self, position: u32) -> u32 {
        let [a, b, c] = self.multipliers;
        let mut x = position.wrapping_mul(a).wrapping_add(self.summands[0]) & self.mask;
        x ^= x >> self.shift;
        x = x.wrapping_mul(b).wrapping_add(self.summands[1]) & self.mask;
        x ^= x >> self.shift;
        x = x.wrapping_mul(c) & self.mask;
        x ^ (x >> self.shift)
    }

    /// Takes the first free slot. There is one as long as the quotas sum up to the slots.
    fn take(&mut self, ring: &mut [u32], server: usize) {
        while self.position <= self.mask {
            let slot = &mut ring[self.slot(self.position) as usize];
            self.position += 1;
            if *slot == u32::MAX {
                *slot = u32::try_from(server).unwrap_or(u32::MAX);
                self.taken += 1;
                return;
            }
        }
        self.taken = u32::MAX;
    }
}
