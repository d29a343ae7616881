//! The flow tables: finding, recording, confirming and forgetting flows.
//!
//! Several CPUs and the agent share the tables without locks. A reader takes an entry only if its first key word is the
//! same before and after reading the data. A writer claims a slot by exchanging the first key word for [`sluice_abi::SLOT_BUSY`], writes
//! the rest, and publishes the key last; data alone is changed by compare-exchange. So halves of two flows never mix.

mod entry;
mod insert;
mod key;

pub(crate) use entry::{Found, Table};
pub use entry::{change_words, find_words};
pub use insert::insert_words;
pub use key::Key;

use crate::headers::{ACK, FIN, RST, SYN, Tuple};
use crate::{FamilyTables, Tables};
use entry::{IN_HALF_OPEN, locate};
use sluice_abi::{ConfigWord, FlowData, FlowState, Stat, TIME_SHIFT, UDP};

/// Time units between a half-open flow's first packet and one that confirms it: 0.54 to 1.6 s.
const CONFIRM_UNITS: u16 = 2;

/// Age at which a packet renews an entry's time: 2.1 s. Where flows are many, most packets are the first of their flow in a
/// time unit, and a write for each costs more than the look-up. Less than any timeout.
const REFRESH_UNITS: u16 = 4;
const _: () = assert!(REFRESH_UNITS < FlowState::Closed.timeout_units());

/// The monotonic clock in flow time units.
#[inline(always)]
pub(crate) fn now<T: Tables>(tables: &T) -> u16 {
    (tables.now_ns() >> TIME_SHIFT) as u16
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
    data.age(now) <= REFRESH_UNITS
}

/// Whether a connection attempt on a flow in this state begins another one.
#[inline(always)]
pub(crate) fn is_over(state: FlowState) -> bool {
    matches!(
        state,
        FlowState::Closing | FlowState::Closed | FlowState::Unconfirmed
    )
}

/// State of a flow that begins with this packet.
#[inline(always)]
pub(crate) fn first_state<const A: usize>(tuple: &Tuple<A>) -> FlowState {
    if tuple.opens() {
        FlowState::Syn
    } else {
        FlowState::Unconfirmed
    }
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
        _ => found.data.age(now) > CONFIRM_UNITS,
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
