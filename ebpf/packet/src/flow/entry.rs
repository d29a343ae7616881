//! Finding and changing entries of the two tables.

use super::Key;
use crate::{Bucket, FamilyTables, Tables};
use sluice_abi::{BUCKET_ENTRIES, ConfigWord, FlowData, FlowState};

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
pub(super) const IN_HALF_OPEN: u64 = 1 << 31;

impl Found {
    /// As [`find_words`] gave it.
    #[inline(always)]
    pub(super) fn marked(&self) -> u64 {
        match self.table {
            Table::Established => self.data.0,
            Table::HalfOpen => self.data.0 | IN_HALF_OPEN,
        }
    }
}

#[inline(always)]
pub(super) fn bucket<const A: usize, T: FamilyTables<A>>(
    tables: &T,
    table: Table,
    hash: u32,
) -> Option<T::Bucket<'_>> {
    match table {
        Table::Established => tables.flows(hash),
        Table::HalfOpen => tables.half_open(hash),
    }
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

#[inline(always)]
fn find_in<const A: usize, T: FamilyTables<A>>(
    tables: &T,
    table: Table,
    key: &Key<A>,
    now: u16,
) -> Option<Found> {
    let data = locate(tables, table, key)?;
    let state = data.state()?;
    if !data.is_live(state, now) {
        return None;
    }
    Some(Found { data, state, table })
}

/// The data of a flow's entry, live or not.
#[inline(always)]
pub(super) fn locate<const A: usize, T: FamilyTables<A>>(
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
