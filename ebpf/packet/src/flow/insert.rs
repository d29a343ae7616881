//! Which slot a new entry takes, and taking it.

use super::Key;
use super::entry::{Table, bucket};
use crate::{FamilyTables, SharedWords, Tables};
use sluice_abi::{BUCKET_ENTRIES, FlowClock, FlowData, SLOT_BUSY, SLOT_FREE, Stat, Timeouts};

/// Body of [`FamilyTables::insert_flow`]: `words` are the key's; the flow's state says into which table it is put. `unknown` is 0, as [`crate::Packet::unknown_zero`].
#[inline(always)]
pub fn insert_words<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    words: [u64; 3],
    data: FlowData,
    now: FlowClock,
    unknown: u32,
) -> bool {
    let Some(state) = data.state() else {
        return false;
    };
    let table = Table::of(state);
    let key = &Key::<A> { words };
    let [first, second] = key.buckets(tables);
    let Some(bucket_1) = bucket::<A, T>(tables, table, first) else {
        return false;
    };
    let clock = (now, table.timeouts(tables));
    let mut best = best_slot(&bucket_1, key, clock, unknown, 0);
    if let Some(bucket_2) = bucket::<A, T>(tables, table, second) {
        best = best.min(best_slot(&bucket_2, key, clock, unknown, SECOND_BUCKET));
    }
    // Looked up again: for a choice between two pointers the verifier follows every pair of slots.
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
    if old == SLOT_BUSY || target.compare_exchange(at, old, SLOT_BUSY) != old {
        return false;
    }
    if A != 4 {
        target.store(at + 1, key.words[1]);
        target.store(at + 2, key.words[2]);
    }
    target.store(at + Key::<A>::WORDS - 1, data.0);
    target.compare_exchange(at, SLOT_BUSY, key.words[0]);
    if best >> WORTH_SHIFT > EXPIRED {
        tables.stat(match table {
            Table::Established => Stat::FlowEvicted,
            Table::HalfOpen => Stat::HalfOpenEvicted,
        });
    }
    true
}

/// Worth of a slot to its flow, lowest first: the key's own, free, free at the bucket's end, expired, then live by the
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
fn best_slot<const A: usize, B: SharedWords>(
    bucket: &B,
    key: &Key<A>,
    (now, timeouts): (FlowClock, Timeouts),
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
        } else if old == SLOT_FREE {
            if entry + 1 < BUCKET_ENTRIES {
                FREE
            } else {
                LAST_FREE
            }
        } else if old == SLOT_BUSY {
            WRITING
        } else {
            live_worth(
                FlowData(bucket.load(at + Key::<A>::WORDS - 1)),
                now,
                timeouts,
            )
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
fn live_worth(data: FlowData, now: FlowClock, timeouts: Timeouts) -> u32 {
    match data.state() {
        Some(state) if data.is_live(state, now, timeouts) => {
            EXPIRED + 1 + u32::from(u16::MAX - data.age(state, now))
        }
        _ => EXPIRED,
    }
}
