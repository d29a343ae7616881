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
pub(crate) use key::{Key, u32_at};

use crate::headers::{ACK, FIN, RST, SYN, Tuple};
use crate::server::server_of;
use crate::{FamilyTables, Tables};
use entry::locate;
use sluice_abi::{FlowClock, FlowData, FlowState, Stat, UDP};

/// Time units between a half-open flow's first packet and one that confirms it: 0.54 to 1.6 s.
const CONFIRM_UNITS: u16 = 2;

/// Age up to which a packet leaves an entry's time as it is: each flow's first packet in a time unit of established flows
/// (8.6 s) renews it. Where flows are many, a write for each packet costs more than the look-up. Timeouts are at least one
/// unit, so an entry that is fresh has not expired.
const REFRESH_UNITS: u16 = 1;

/// The monotonic clock.
#[inline(always)]
pub(crate) fn now<T: Tables>(tables: &T) -> FlowClock {
    FlowClock::from_ns(tables.now_ns())
}

/// The live entry of a flow: established, else half-open.
#[inline(always)]
pub(crate) fn find<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    key: &Key<A>,
    now: FlowClock,
) -> Option<Found> {
    Found::of(FamilyTables::<A>::find_flow(tables, key.words, now))
}

/// As [`find`], of a flow that goes on: another CPU that confirms it moves its entry from the half-open table to the other,
/// and may have done so between the looks at the two.
#[inline(always)]
pub(crate) fn find_ongoing<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    key: &Key<A>,
    now: FlowClock,
) -> Option<Found> {
    find(tables, key, now).or_else(|| find(tables, key, now))
}

/// The data of a flow's established entry, if it is one of the common kind that the client's packet leaves as it is: no flag
/// opens or ends anything, and none did before.
#[inline(always)]
pub(crate) fn find_current<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    key: &Key<A>,
    tuple: &Tuple<A>,
    now: FlowClock,
) -> Option<FlowData> {
    let data = locate(tables, Table::Established, key)?;
    let state = if tuple.protocol == UDP {
        FlowState::Udp
    } else {
        FlowState::Established
    };
    let current =
        data.is_in(state) && tuple.flags & (SYN | FIN | RST) == 0 && is_fresh(data, state, now);
    current.then_some(data)
}

/// Whether an entry's time may stay as it is; if so, the entry has not expired.
#[inline(always)]
fn is_fresh(data: FlowData, state: FlowState, now: FlowClock) -> bool {
    data.age(state, now) <= REFRESH_UNITS
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
    FamilyTables::<A>::change_flow(tables, key.words, found.data, data);
}

/// Removes the entry with this data, unless it changed meanwhile.
#[inline(always)]
pub(crate) fn remove<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    found: FlowData,
    key: &Key<A>,
) {
    FamilyTables::<A>::change_flow(tables, key.words, found, FlowData::default());
}

/// Puts a flow into the table of its state, in the place of its old entry, a free slot, an expired flow or else the oldest
/// one of its two buckets. `false`: another CPU was faster, and the flow has no entry.
#[inline(always)]
fn insert<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    key: &Key<A>,
    data: FlowData,
    now: FlowClock,
) -> bool {
    FamilyTables::<A>::insert_flow(tables, key.words, data, now)
}

/// Makes the half-open entry of a new flow.
#[inline(always)]
pub(crate) fn begin<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    key: &Key<A>,
    data: FlowData,
    now: FlowClock,
) {
    let made = insert(tables, key, data, now);
    tables.stat(if made {
        Stat::HalfOpen
    } else {
        Stat::Stateless
    });
}

/// The data that an entry gets by a packet from the client; `None` if nothing changes. `sampled`: a sample of the connection goes on.
#[inline(always)]
pub(crate) fn news<const A: usize>(
    found: &Found,
    tuple: &Tuple<A>,
    sampled: bool,
    now: FlowClock,
) -> Option<FlowData> {
    if matches!(found.table(), Table::HalfOpen) && !confirms(found, tuple.flags, now) {
        return None;
    }
    let next = match next_state(found.state, tuple.protocol, tuple.flags) {
        FlowState::Established | FlowState::Young if sampled => FlowState::Young,
        FlowState::Young => FlowState::Established,
        other => other,
    };
    let data = found.data.renewed(next, now);
    (data != found.data).then_some(data)
}

/// Brings an entry up to date with its [`news`]. A half-open flow that is confirmed moves into the flow table.
#[inline(always)]
pub(crate) fn follow<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    key: &Key<A>,
    found: &Found,
    news: FlowData,
    now: FlowClock,
) {
    match found.table() {
        Table::Established => replace(tables, found, key, news),
        Table::HalfOpen => promote(tables, key, found, news, now),
    }
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
    now: FlowClock,
) -> Option<FlowData> {
    if matches!(found.table(), Table::HalfOpen) {
        return None;
    }
    let old = found.data;
    let state = next_state(found.state, protocol, flags);
    if state == found.state && is_fresh(old, state, now) {
        return None;
    }
    let data = old.renewed(state, now);
    replace(tables, found, key, data);
    Some(data)
}

/// Makes the entry of the other direction say what this one says. What another flow left there gives way if its server is
/// gone, or if it is over and this one is not: a new flow whose packets met those of the old one may not have removed it.
#[inline(always)]
pub(crate) fn accompany<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    key: &Key<A>,
    data: FlowData,
    now: FlowClock,
) {
    if let Some(found) = find(tables, key, now) {
        if found.data.same_server(data.server(), data.epoch()) {
            return match found.table() {
                Table::Established => replace(tables, &found, key, data),
                Table::HalfOpen => promote(tables, key, &found, data, now),
            };
        }
        let goes_on = data.state().is_some_and(|state| !is_over(state));
        let gives_way = is_over(found.state) && goes_on;
        if !gives_way && server_of(tables, found.data).is_some() {
            return;
        }
        remove(tables, found.data, key);
    }
    insert(tables, key, data, now);
}

/// Refreshes an established flow's entry after news of the other direction.
#[inline(always)]
pub(crate) fn keep_alive<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    key: &Key<A>,
    data: FlowData,
    now: FlowClock,
) {
    if let Some(found) = find(tables, key, now)
        && matches!(found.table(), Table::Established)
        && found.data.same_server(data.server(), data.epoch())
        && found.data.port() == data.port()
    {
        replace(tables, &found, key, data);
    }
}

/// Removes a flow's entry.
#[inline(always)]
pub(crate) fn forget<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    key: &Key<A>,
    now: FlowClock,
) {
    if let Some(found) = find(tables, key, now) {
        remove(tables, found.data, key);
    }
}

#[inline(always)]
fn promote<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    key: &Key<A>,
    found: &Found,
    data: FlowData,
    now: FlowClock,
) {
    if insert(tables, key, data, now) {
        remove(tables, found.data, key);
        tables.stat(Stat::Promoted);
    }
}

/// Whether a client's packet shows that a half-open flow is no forgery or stray: an ACK after the SYN, or a further
/// packet about a second after the first.
#[inline(always)]
fn confirms(found: &Found, flags: u8, now: FlowClock) -> bool {
    match found.state {
        FlowState::Syn => flags & (SYN | ACK | RST) == ACK,
        _ => found.data.age(found.state, now) > CONFIRM_UNITS,
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
    } else if matches!(state, FlowState::Young) {
        FlowState::Young
    } else {
        FlowState::Established
    }
}
