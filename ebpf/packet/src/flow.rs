//! The flow tables: finding, recording, confirming and forgetting flows.
//!
//! Several CPUs and the agent share the tables without locks. A reader takes an entry only if its first key word is the
//! same before and after reading the data. A writer claims a slot by exchanging the first key word for [`BUSY`], writes
//! the rest, and publishes the key last; data alone is changed by compare-exchange. So halves of two flows never mix.

use crate::headers::{ACK, FIN, RST, SYN, Tuple};
use crate::{Bucket, FamilyTables, Tables, hash};
use sluice_abi::{BUCKET_ENTRIES, ConfigWord, FlowData, FlowState, Stat, TIME_SHIFT, UDP};

/// First key word of a slot that is being written.
const BUSY: u64 = 1;

/// Time units between a half-open flow's first packet and one that confirms it: 0.54 to 1.6 s.
const CONFIRM_UNITS: u16 = 2;

/// Age at which a packet renews an entry's time: 2.1 s. Where flows are many, most packets are the first of their flow in a
/// time unit, and a write for each costs more than the look-up. Less than any timeout.
const REFRESH_UNITS: u16 = 4;
const _: () = assert!(REFRESH_UNITS < FlowState::Closed.timeout_units());

/// A flow key: words as stored, and the hash that chooses its buckets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key<const A: usize> {
    words: [u64; 3],
    hash: u64,
}

impl<const A: usize> Key<A> {
    /// Words of an entry: the key's and one of data.
    pub const WORDS: usize = if A == 4 { 2 } else { 4 };

    /// `index` is the service index of the other side, not 0; `seed` the tables' secret.
    #[inline(always)]
    pub fn new(client: &[u8; A], port: [u8; 2], index: u16, seed: u64) -> Self {
        let high = u64::from(u16::from_be_bytes(port)) << 32 | u64::from(index) << 48;
        let words = if A == 4 {
            [high | u64::from(u32_at(client, 0)), 0, 0]
        } else {
            let first = u64::from(u32_at(client, 0)) | u64::from(u32_at(client, 4)) << 32;
            let second = u64::from(u32_at(client, 8)) | u64::from(u32_at(client, 12)) << 32;
            let folded = (first ^ second.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            [high | folded >> 32, first, second]
        };
        Self::stored(words, seed)
    }

    /// The key with these words.
    #[inline(always)]
    fn stored(words: [u64; 3], seed: u64) -> Self {
        Self {
            words,
            hash: hash::bucket::<A>(&words, seed),
        }
    }

    /// The key's words as stored; the last two are unused for IPv4.
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

/// Which of the two tables.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    Established,
    HalfOpen,
}

/// A live entry.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub(crate) data: FlowData,
    pub(crate) state: FlowState,
    pub(crate) table: Table,
}

/// Bit of a found entry's data, spare in [`FlowData`]: it is in the half-open table.
const IN_HALF_OPEN: u64 = 1 << 31;

/// The monotonic clock in flow time units.
#[inline(always)]
pub(crate) fn now<T: Tables>(tables: &T) -> u16 {
    (tables.now_ns() >> TIME_SHIFT) as u16
}

/// Time units since an entry was written, and one more: the CPU that wrote it may have been a tick ahead.
#[inline(always)]
fn age(data: FlowData, now: u16) -> u16 {
    now.wrapping_sub(data.time()).wrapping_add(1)
}

/// The key of a flow between a client and the endpoint with this index.
#[inline(always)]
pub(crate) fn key<const A: usize, T: Tables>(
    tables: &T,
    client: &[u8; A],
    port: [u8; 2],
    index: u16,
) -> Key<A> {
    Key::new(client, port, index, tables.config(ConfigWord::FlowSeed))
}

#[inline(always)]
fn bucket<const A: usize, T: FamilyTables<A>>(
    tables: &T,
    table: Table,
    hash: u32,
) -> Option<T::Bucket<'_>> {
    match table {
        Table::Established => tables.flows(hash),
        Table::HalfOpen => tables.half_open(hash),
    }
}

/// The live entry of a flow: established, else half-open.
#[inline(always)]
pub(crate) fn find<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    key: &Key<A>,
    now: u16,
) -> Option<Found> {
    let found = FamilyTables::<A>::find_flow(tables, key.words, now);
    let data = FlowData(found & !IN_HALF_OPEN);
    let table = if found & IN_HALF_OPEN == 0 {
        Table::Established
    } else {
        Table::HalfOpen
    };
    Some(Found {
        data,
        state: data.state()?,
        table,
    })
}

/// What [`FamilyTables::find_flow`] does: the data of the live entry with a key of these words, marked if the entry is
/// half-open; 0 if there is none.
#[inline(always)]
pub fn find_words<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    words: [u64; 3],
    now: u16,
) -> u64 {
    let key = Key::<A>::stored(words, tables.config(ConfigWord::FlowSeed));
    if let Some(found) = find_in(tables, Table::Established, &key, now) {
        return found.data.0;
    }
    find_in(tables, Table::HalfOpen, &key, now).map_or(0, |found| found.data.0 | IN_HALF_OPEN)
}

/// The data of a flow's established entry, if the client's packet leaves it as it is.
#[inline(always)]
pub(crate) fn find_current<const A: usize, T: FamilyTables<A>>(
    tables: &T,
    key: &Key<A>,
    tuple: &Tuple<A>,
    now: u16,
) -> Option<FlowData> {
    let data = locate(tables, Table::Established, key)?;
    let state = data.state()?;
    let current = is_fresh(data, now)
        && !tuple.opens()
        && next_state(state, tuple.protocol, tuple.flags) == state;
    current.then_some(data)
}

/// Whether an entry's time may stay as it is; if so, the entry has not expired.
#[inline(always)]
fn is_fresh(data: FlowData, now: u16) -> bool {
    age(data, now) <= REFRESH_UNITS
}

/// Whether a connection attempt on a flow in this state begins another one.
#[inline(always)]
pub(crate) fn is_over(state: FlowState) -> bool {
    matches!(
        state,
        FlowState::Closing | FlowState::Closed | FlowState::Unconfirmed
    )
}

#[inline(always)]
fn find_in<const A: usize, T: FamilyTables<A>>(
    tables: &T,
    table: Table,
    key: &Key<A>,
    now: u16,
) -> Option<Found> {
    let data = locate(tables, table, key)?;
    let state = data.state()?;
    if age(data, now) > state.timeout_units() + 1 {
        return None;
    }
    Some(Found { data, state, table })
}

/// The data of a flow's entry, live or not.
#[inline(always)]
fn locate<const A: usize, T: FamilyTables<A>>(
    tables: &T,
    table: Table,
    key: &Key<A>,
) -> Option<FlowData> {
    let [first, second] = key.buckets();
    match scan(tables, table, first, key) {
        Some((_, data)) => Some(data),
        None => Some(scan(tables, table, second, key)?.1),
    }
}

/// The entry of `key` in one bucket: index of its data word, and the data.
#[inline(always)]
fn scan<const A: usize, T: FamilyTables<A>>(
    tables: &T,
    table: Table,
    hash: u32,
    key: &Key<A>,
) -> Option<(u32, FlowData)> {
    let bucket = bucket(tables, table, hash)?;
    let mut entry = 0;
    while entry < BUCKET_ENTRIES {
        let at = entry * Key::<A>::WORDS;
        if bucket.load(at) == key.words[0] {
            let rest = A == 4
                || bucket.load(at + 1) == key.words[1] && bucket.load(at + 2) == key.words[2];
            let data = bucket.load(at + Key::<A>::WORDS - 1);
            if rest && bucket.load(at) == key.words[0] {
                return Some(((at + Key::<A>::WORDS - 1) as u32, FlowData(data)));
            }
        }
        entry += 1;
    }
    None
}

/// Replaces the data of an entry, unless it changed meanwhile.
#[inline(always)]
pub(crate) fn replace<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    found: &Found,
    key: &Key<A>,
    data: FlowData,
) {
    FamilyTables::<A>::change_flow(tables, key.words, found.marked(), data);
}

/// Removes an entry, unless it changed meanwhile.
#[inline(always)]
pub(crate) fn remove<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    found: &Found,
    key: &Key<A>,
) {
    FamilyTables::<A>::change_flow(tables, key.words, found.marked(), FlowData::default());
}

impl Found {
    /// As [`find_words`] gave it.
    #[inline(always)]
    fn marked(&self) -> u64 {
        match self.table {
            Table::Established => self.data.0,
            Table::HalfOpen => self.data.0 | IN_HALF_OPEN,
        }
    }
}

/// What [`FamilyTables::change_flow`] does: replaces the data of the entry with a key of these words, or removes the entry
/// if the new data is 0, provided that its data is still `found`, as [`find_words`] gave it.
#[inline(always)]
pub fn change_words<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    words: [u64; 3],
    found: u64,
    data: FlowData,
) {
    let key = Key::<A>::stored(words, tables.config(ConfigWord::FlowSeed));
    let table = if found & IN_HALF_OPEN == 0 {
        Table::Established
    } else {
        Table::HalfOpen
    };
    let [first, second] = key.buckets();
    if !change_in(tables, table, first, &key, found & !IN_HALF_OPEN, data) {
        change_in(tables, table, second, &key, found & !IN_HALF_OPEN, data);
    }
}

/// [`change_words`] in one bucket; `false` if the entry is not there.
#[inline(always)]
fn change_in<const A: usize, T: FamilyTables<A>>(
    tables: &T,
    table: Table,
    hash: u32,
    key: &Key<A>,
    old: u64,
    data: FlowData,
) -> bool {
    let Some((word, now)) = scan(tables, table, hash, key) else {
        return false;
    };
    if now.0 != old {
        return true;
    }
    let Some(bucket) = bucket(tables, table, hash) else {
        return true;
    };
    if data.0 == 0 {
        let first = (word as usize).wrapping_sub(Key::<A>::WORDS - 1);
        bucket.compare_exchange(first, key.words[0], 0);
    } else {
        bucket.compare_exchange(word as usize, old, data.0);
    }
    true
}

/// Puts a flow into a table, in the place of its old entry, a free slot, an expired flow or else the oldest one of its
/// two buckets. `false`: another CPU was faster, and the flow has no entry.
#[inline(always)]
pub(crate) fn insert<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    table: Table,
    key: &Key<A>,
    data: FlowData,
    now: u16,
) -> bool {
    FamilyTables::<A>::insert_flow(
        tables,
        key.words,
        data,
        now,
        matches!(table, Table::HalfOpen),
    )
}

/// What [`FamilyTables::insert_flow`] does: `words` are the key's as stored.
#[inline(always)]
pub fn insert_words<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    words: [u64; 3],
    data: FlowData,
    now: u16,
    half_open: bool,
) -> bool {
    let table = if half_open {
        Table::HalfOpen
    } else {
        Table::Established
    };
    let key = &Key::<A>::stored(words, tables.config(ConfigWord::FlowSeed));
    let [first, second] = key.buckets();
    let unknown = tables.unknown_zero();
    let mut best = u32::MAX;
    if let Some(bucket) = bucket::<A, T>(tables, table, first) {
        best = best_slot(&bucket, key, now, unknown, 0);
    }
    if let Some(bucket) = bucket::<A, T>(tables, table, second) {
        best = best.min(best_slot(&bucket, key, now, unknown, SECOND_BUCKET));
    }
    let hash = if best & SECOND_BUCKET == 0 {
        first
    } else {
        second
    };
    let Some(target) = bucket::<A, T>(tables, table, hash) else {
        return false;
    };
    let at = (best & SLOT) as usize * Key::<A>::WORDS;
    let old = target.load(at);
    if old == BUSY || target.compare_exchange(at, old, BUSY) != old {
        return false;
    }
    if A != 4 {
        target.store(at + 1, key.words[1]);
        target.store(at + 2, key.words[2]);
    }
    target.store(at + Key::<A>::WORDS - 1, data.0);
    target.compare_exchange(at, BUSY, key.words[0]);
    if best >> WORTH_SHIFT > EXPIRED {
        tables.stat(match table {
            Table::Established => Stat::FlowEvicted,
            Table::HalfOpen => Stat::HalfOpenEvicted,
        });
    }
    true
}

/// What a slot is worth to its flow, lowest first: the key's own, free, free at the bucket's end, expired, then live by the
/// time it has left, then one that is being written. A bucket fills from its front: if only its end is free, the flow's
/// second bucket comes first if it has more room. So a table that is half full evicts a tenth of what it would.
const OWN: u32 = 0;
const FREE: u32 = 1;
const LAST_FREE: u32 = 2;
const EXPIRED: u32 = 3;
const WRITING: u32 = 0x1ff_ffff;

/// A candidate is `worth << 3 | second bucket << 2 | slot`, so that the least one is the best.
const SLOT: u32 = 3;
const SECOND_BUCKET: u32 = 4;
const WORTH_SHIFT: u32 = 3;

#[inline(always)]
fn best_slot<const A: usize, B: Bucket>(
    bucket: &B,
    key: &Key<A>,
    now: u16,
    unknown: u32,
    which: u32,
) -> u32 {
    let mut best = u32::MAX - unknown;
    let mut entry = 0;
    while entry < BUCKET_ENTRIES {
        let at = entry * Key::<A>::WORDS;
        let old = bucket.load(at);
        let same = old == key.words[0]
            && (A == 4
                || bucket.load(at + 1) == key.words[1] && bucket.load(at + 2) == key.words[2]);
        let worth = if same {
            OWN
        } else if old == 0 {
            if entry + 1 < BUCKET_ENTRIES {
                FREE
            } else {
                LAST_FREE
            }
        } else if old == BUSY {
            WRITING
        } else {
            live_worth(FlowData(bucket.load(at + Key::<A>::WORDS - 1)), now)
        };
        let candidate = ((worth + unknown) << WORTH_SHIFT) | which | entry as u32;
        if candidate < best {
            best = candidate;
        }
        entry += 1;
    }
    best
}

/// Worth of another flow's slot: the longer it has been idle, the less.
#[inline(always)]
fn live_worth(data: FlowData, now: u16) -> u32 {
    let age = age(data, now);
    match data.state() {
        Some(state) if age <= state.timeout_units() + 1 => EXPIRED + 1 + u32::from(u16::MAX - age),
        _ => EXPIRED,
    }
}

/// Makes the half-open entry of a new flow.
#[inline(always)]
pub(crate) fn begin<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    key: &Key<A>,
    data: FlowData,
    now: u16,
) {
    let made = insert(tables, Table::HalfOpen, key, data, now);
    tables.stat(if made {
        Stat::HalfOpen
    } else {
        Stat::Stateless
    });
}

/// Brings an entry up to date with a packet from the client; `None` if nothing changed. A half-open flow that the packet
/// confirms moves into the flow table.
#[inline(always)]
pub(crate) fn follow<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    key: &Key<A>,
    found: &Found,
    protocol: u8,
    flags: u8,
    now: u16,
) -> Option<FlowData> {
    if matches!(found.table, Table::HalfOpen) && !confirms(found, flags, now) {
        return None;
    }
    let state = next_state(found.state, protocol, flags);
    let old = found.data;
    let data = FlowData::new(old.server(), old.epoch(), state, now, old.port());
    if data == old {
        return None;
    }
    match found.table {
        Table::Established => replace(tables, found, key, data),
        Table::HalfOpen => promote(tables, key, found, data, now),
    }
    Some(data)
}

/// Brings an entry up to date with a packet from the server; `None` if nothing changed. A reply confirms nothing: the
/// client's address may be forged.
#[inline(always)]
pub(crate) fn follow_reply<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    key: &Key<A>,
    found: &Found,
    protocol: u8,
    flags: u8,
    now: u16,
) -> Option<FlowData> {
    if matches!(found.table, Table::HalfOpen) {
        return None;
    }
    let old = found.data;
    let state = next_state(found.state, protocol, flags);
    if state == found.state && is_fresh(old, now) {
        return None;
    }
    let data = FlowData::new(old.server(), old.epoch(), state, now, old.port());
    replace(tables, found, key, data);
    Some(data)
}

/// Makes the entry of the other direction say what this one says.
#[inline(always)]
pub(crate) fn accompany<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    key: &Key<A>,
    data: FlowData,
    now: u16,
) {
    match find(tables, key, now) {
        Some(found) if found.data.server() != data.server() => {}
        Some(found) => match found.table {
            Table::Established => replace(tables, &found, key, data),
            Table::HalfOpen => promote(tables, key, &found, data, now),
        },
        None => {
            insert(tables, Table::Established, key, data, now);
        }
    }
}

/// Refreshes an established flow's entry after news of the other direction.
#[inline(always)]
pub(crate) fn keep_alive<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    key: &Key<A>,
    data: FlowData,
    now: u16,
) {
    if let Some(found) = find(tables, key, now)
        && matches!(found.table, Table::Established)
        && found.data.server() == data.server()
    {
        replace(tables, &found, key, data);
    }
}

/// Whether a flow in this state is in the half-open table.
pub(crate) const fn is_half_open(state: FlowState) -> bool {
    matches!(state, FlowState::Syn | FlowState::Unconfirmed)
}

/// Removes a flow's entry.
#[inline(always)]
pub(crate) fn forget<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    key: &Key<A>,
    now: u16,
) {
    if let Some(found) = find(tables, key, now) {
        remove(tables, &found, key);
    }
}

#[inline(always)]
fn promote<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    key: &Key<A>,
    found: &Found,
    data: FlowData,
    now: u16,
) {
    if insert(tables, Table::Established, key, data, now) {
        remove(tables, found, key);
        tables.stat(Stat::Promoted);
    }
}

/// Whether a client's packet shows that a half-open flow is no forgery or stray: an ACK after the SYN, or a further
/// packet about a second after the first.
#[inline(always)]
fn confirms(found: &Found, flags: u8, now: u16) -> bool {
    match found.state {
        FlowState::Syn => flags & (SYN | ACK | RST) == ACK,
        _ => age(found.data, now) > CONFIRM_UNITS,
    }
}

/// State after a packet of either side.
#[inline(always)]
pub(crate) fn next_state(state: FlowState, protocol: u8, flags: u8) -> FlowState {
    if protocol == UDP {
        FlowState::Udp
    } else if flags & RST != 0 || matches!(state, FlowState::Closed) {
        FlowState::Closed
    } else if flags & FIN != 0 || matches!(state, FlowState::Closing) {
        FlowState::Closing
    } else {
        FlowState::Established
    }
}
