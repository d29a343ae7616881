//! Finding and changing entries of the two tables.

use super::Key;
use crate::{FamilyTables, SharedWords, Tables};
use sluice_abi::{BUCKET_ENTRIES, ConfigWord, FlowClock, FlowData, FlowState, Timeouts};

/// Which of the two tables.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    Established,
    HalfOpen,
}

impl Table {
    /// The table that holds flows in this state.
    #[inline(always)]
    pub(super) fn of(state: FlowState) -> Self {
        if state.is_half_open() {
            Self::HalfOpen
        } else {
            Self::Established
        }
    }

    /// Idle times of the states in this table.
    #[inline(always)]
    pub(super) fn timeouts<T: Tables>(self, tables: &T) -> Timeouts {
        Timeouts(tables.config(match self {
            Self::Established => ConfigWord::EstablishedTimeouts,
            Self::HalfOpen => ConfigWord::HalfOpenTimeouts,
        }))
    }
}

/// A live entry.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub(crate) data: FlowData,
    pub(crate) state: FlowState,
}

impl Found {
    /// The entry with this data; `None` if no known state is stored.
    #[inline(always)]
    pub(crate) fn of(data: FlowData) -> Option<Self> {
        Some(Self {
            data,
            state: data.state()?,
        })
    }

    #[inline(always)]
    pub(crate) fn table(&self) -> Table {
        Table::of(self.state)
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

/// Body of [`FamilyTables::find_flow`]: the data of the live entry with a key of these words, 0 if there is none.
#[inline(always)]
pub fn find_words<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    words: [u64; 3],
    now: FlowClock,
) -> FlowData {
    let key = Key::<A> { words };
    if let Some(data) = find_in(tables, Table::Established, &key, now) {
        return data;
    }
    find_in(tables, Table::HalfOpen, &key, now).unwrap_or_default()
}

#[inline(always)]
fn find_in<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    table: Table,
    key: &Key<A>,
    now: FlowClock,
) -> Option<FlowData> {
    let data = locate(tables, table, key)?;
    let live = data.is_live(data.state()?, now, table.timeouts(tables));
    live.then_some(data)
}

/// The data of a flow's entry, live or not.
#[inline(always)]
pub(super) fn locate<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    table: Table,
    key: &Key<A>,
) -> Option<FlowData> {
    let [first, second] = key.buckets(tables);
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

/// Body of [`FamilyTables::change_flow`]: replaces the data of the entry with a key of these words, or removes the entry
/// if the new data is 0, provided that its data is still `found`, as [`find_words`] gave it.
#[inline(always)]
pub fn change_words<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    words: [u64; 3],
    found: FlowData,
    data: FlowData,
) {
    let key = Key::<A> { words };
    let Some(state) = found.state() else {
        return;
    };
    let table = Table::of(state);
    let [first, second] = key.buckets(tables);
    if !change_in(tables, table, first, &key, found.0, data) {
        change_in(tables, table, second, &key, found.0, data);
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
