//! FullNAT's claims: which flow a port of the director's own belongs to.
//!
//! Packets make, renew and take over claims by themselves. Who takes over a slot exchanges its key for
//! [`sluice_abi::SLOT_BUSY`] and then reads the data once more; who renews a claim exchanges the data and then reads the key once
//! more. So of two that meet one sees the other, and no port ever has two flows.

mod slot;

pub use slot::claim_worth;

use crate::choice::Choice;
use crate::flow::{self, Found, Key};
use crate::headers::{FIN, RST, Tuple};
use crate::reply::WayBack;
use crate::server::{Server, address, server_of};
use crate::{FamilyTables, SharedWords, Tables};
use slot::{Clients, DATA, KEY, Place};
use sluice_abi::{
    ClaimData, ClaimState, ConfigWord, DropReason, FULLNAT_PORT_MAX, FULLNAT_PORT_MIN, FarEnd,
    FlowClock, FlowData, FlowState, HALF_OPEN_NS, SLOT_BUSY, SLOT_FREE, Stat, TCP, Timeouts,
};

/// Ports that a new flow tries. One that the server may remember costs its client a second, so all are tried before one of those
/// is taken: of ports of which half are held or remembered, one flow of 2^32 finds none that is free.
const PORT_TRIES: u32 = 32;
/// Searches for a port: another CPU may be faster to take the one that was found.
const SEARCHES: u32 = 2;
/// Times that a word is changed anew after another CPU has changed it.
const EXCHANGES: u32 = 4;
/// Time units in which replies renew the claim of an open connection once, as clients' packets do.
const REFRESH_UNITS: u32 = 16;

/// Claims a source port towards the chosen server of FullNAT.
#[inline(never)]
pub(crate) fn claim<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    tuple: &Tuple<A>,
    choice: &mut Choice<'_, A>,
) -> Result<(), DropReason> {
    let Some(server) = choice.server() else {
        return Ok(());
    };
    if tuple.protocol == TCP && !tuple.opens() {
        return Err(DropReason::NoFlow);
    }
    if !may_begin(tables, choice.index) {
        return Err(DropReason::HalfOpenLimit);
    }
    let place = place(tables, &server, tuple.protocol);
    let mut search = 0;
    while search < SEARCHES {
        let port = find_port(tables, &place, choice.now);
        if port == 0 {
            break;
        }
        if take(tables, &place, port, &server, tuple, choice.now) {
            tables.stat(Stat::PortClaimed);
            choice.port = port;
            return Ok(());
        }
        search += 1;
    }
    give_back(tables, choice.index);
    Err(DropReason::NoPort)
}

#[inline(always)]
fn place<const A: usize, T: Tables>(tables: &T, server: &Server<'_>, protocol: u8) -> Place<A> {
    let record = server.record;
    let (server, own) = (address(&record.addr), address(&record.alt));
    Place::new(tables, server, own, record.port, protocol)
}

/// The port whose slot is worth the least; 0 if all that were tried are held.
#[inline(always)]
fn find_port<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    place: &Place<A>,
    now: FlowClock,
) -> u16 {
    const RANGE: u32 = (FULLNAT_PORT_MAX - FULLNAT_PORT_MIN) as u32 + 1;
    let random = tables.random();
    let (mut port, mut least) = (0, ClaimData::HELD);
    let mut attempt = 0;
    while attempt < PORT_TRIES {
        // An odd stride from the same random number spreads the tries over the range.
        let offset = ((random.wrapping_add(attempt.wrapping_mul((random >> 16) | 1)) & 0xffff)
            * RANGE)
            >> 16;
        let candidate = FULLNAT_PORT_MIN + offset as u16;
        let hash = place.slot(place.key(candidate.to_be_bytes()));
        let worth = FamilyTables::<A>::claim_worth(tables, hash, now);
        if worth < least {
            (port, least) = (candidate, worth);
        }
        attempt += 1;
        if least == 0 {
            break;
        }
    }
    port
}

/// Makes a claim where another one gives way. `false`: another CPU was faster.
#[inline(always)]
fn take<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    place: &Place<A>,
    port: u16,
    server: &Server<'_>,
    tuple: &Tuple<A>,
    now: FlowClock,
) -> bool {
    let key = place.key(port.to_be_bytes());
    let Some(slot) = FamilyTables::<A>::claims(tables, place.slot(key)) else {
        return false;
    };
    let (old, data) = (slot.load(KEY), slot.load(DATA));
    if old == SLOT_BUSY || old != SLOT_FREE && is_held(tables, ClaimData(data), now) {
        return false;
    }
    if slot.compare_exchange(KEY, old, SLOT_BUSY) != old {
        return false;
    }
    if slot.load(DATA) != data {
        slot.store(KEY, old);
        return false;
    }
    let new = ClaimData::new(server.id, server.word.epoch(), ClaimState::HalfOpen, now);
    slot.store(DATA, new.0);
    place.store(&slot);
    Clients::of(tuple).store(&slot);
    slot.compare_exchange(KEY, SLOT_BUSY, key.after(old).0);
    true
}

#[inline(always)]
fn is_held<T: Tables>(tables: &T, data: ClaimData, now: FlowClock) -> bool {
    let established = Timeouts(tables.config(ConfigWord::EstablishedTimeouts));
    data.worth(now, established) == ClaimData::HELD
}

/// Brings the claimed port of a flow to a FullNAT server up to date with a client's packet, and then the flow's entry: other
/// CPUs trust a fresh one without a look at the claim. If another flow has taken the port over, this one is a new one.
#[inline(never)]
pub(crate) fn touch_claim<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    tuple: &Tuple<A>,
    choice: &mut Choice<'_, A>,
) {
    let Some(server) = choice.server() else {
        return;
    };
    if renew(tables, tuple, choice, &server) {
        if choice.news != FlowData::default()
            && let Some(found) = Found::of(choice.was)
        {
            flow::follow(tables, &choice.key, &found, choice.news, choice.now);
        }
        return;
    }
    flow::forget(tables, &choice.key, choice.now);
    choice.set_server(None);
    choice.port = 0;
    choice.new_flow = true;
}

/// `false`: the port is another flow's.
#[inline(always)]
fn renew<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    tuple: &Tuple<A>,
    choice: &Choice<'_, A>,
    server: &Server<'_>,
) -> bool {
    let place = place::<A, T>(tables, server, tuple.protocol);
    let key = place.key(choice.port.to_be_bytes());
    let Some(slot) = FamilyTables::<A>::claims(tables, place.slot(key)) else {
        return false;
    };
    let (word, data) = (slot.load(KEY), ClaimData(slot.load(DATA)));
    let is_own = key.is_in(word) && place.is_in(&slot) && Clients::of(tuple).is_in(&slot);
    let (true, Some(state)) = (is_own, data.state()) else {
        return false;
    };
    let is_half_open = matches!(state, ClaimState::HalfOpen);
    if !is_half_open || choice.news != FlowData::default() {
        let mut next = next_state(state, tuple, true);
        if matches!(next, ClaimState::Established | ClaimState::Young)
            && choice.news != FlowData::default()
        {
            next = if choice.news.is_in(FlowState::Young) {
                ClaimState::Young
            } else {
                ClaimState::Established
            };
        }
        let changed = exchange(&slot, data, data.renewed(next, choice.now));
        if is_half_open && changed {
            give_back(tables, choice.index);
        }
    }
    slot.load(KEY) == word
}

#[inline(always)]
fn next_state<const A: usize>(
    state: ClaimState,
    tuple: &Tuple<A>,
    from_client: bool,
) -> ClaimState {
    let (fin, rst) = (tuple.flags & FIN != 0, tuple.flags & RST != 0);
    state.after(tuple.protocol, fin, rst, from_client)
}

#[inline(always)]
fn exchange(slot: &impl SharedWords, old: ClaimData, new: ClaimData) -> bool {
    old != new && slot.compare_exchange(DATA, old.0, new.0) == old.0
}

/// Finds the flow whose port a reply comes to, and brings its claim and its entry up to date. A claim that gives way is
/// answered for as long as nobody wants its port, and not renewed.
#[inline(always)]
pub(crate) fn answered<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    tuple: &Tuple<A>,
    way: &mut WayBack<A>,
) {
    let (server, own) = (&tuple.source, &tuple.destination);
    let place = Place::new(tables, server, own, tuple.source_port, tuple.protocol);
    let key = place.key(tuple.destination_port);
    let Some(slot) = FamilyTables::<A>::claims(tables, place.slot(key)) else {
        return;
    };
    let (word, data) = (slot.load(KEY), ClaimData(slot.load(DATA)));
    if !key.is_in(word) || !place.is_in(&slot) {
        return;
    }
    Clients::load(&slot, way);
    if slot.load(KEY) != word {
        return;
    }
    let (Some(state), Some(flow)) = (data.state(), data.flow(tuple.destination_port)) else {
        return;
    };
    let Some(server) = server_of(tables, flow) else {
        return;
    };
    way.set_server(&server, state.may_be_sampled());
    let now = flow::now(tables);
    let next = next_state(state, tuple, false);
    let patience = match next {
        ClaimState::Established | ClaimState::Young | ClaimState::Udp => REFRESH_UNITS,
        _ => 1,
    };
    let is_due = next != state || data.age(now) >= patience;
    if matches!(state, ClaimState::HalfOpen) || !is_due || !is_held(tables, data, now) {
        return;
    }
    let renewed = data.renewed(next, now);
    if exchange(&slot, data, renewed)
        && let Some(flow) = renewed.flow(tuple.destination_port)
    {
        let far = FarEnd {
            index: server.record.facts.index(),
            port: way.vip_port,
        };
        let forward = Key::new(tables, &way.client, way.client_port, far);
        flow::keep_alive(tables, &forward, flow, now);
    }
}

/// Whether a VIP port may begin another flow. Its word says until when its share is used up: each new flow puts that
/// off by an interval, each confirmed one takes its interval back (generic cell rate algorithm, ITU-T I.371).
#[inline(always)]
fn may_begin<T: Tables>(tables: &T, index: u32) -> bool {
    let Some(word) = tables.new_flows(index) else {
        return true;
    };
    let now = tables.now_ns();
    let interval = tables.config(ConfigWord::NewFlowInterval);
    let mut exchange = 0;
    while exchange < EXCHANGES {
        let used_up = word.load(0);
        let from = if used_up > now { used_up } else { now };
        if from - now > HALF_OPEN_NS {
            return false;
        }
        if word.compare_exchange(0, used_up, from + interval) == used_up {
            return true;
        }
        exchange += 1;
    }
    // Other CPUs have counted as many.
    true
}

#[inline(always)]
fn give_back<T: Tables>(tables: &T, index: u32) {
    let Some(word) = tables.new_flows(index) else {
        return;
    };
    let interval = tables.config(ConfigWord::NewFlowInterval);
    let mut exchange = 0;
    while exchange < EXCHANGES {
        let used_up = word.load(0);
        if used_up < interval || word.compare_exchange(0, used_up, used_up - interval) == used_up {
            return;
        }
        exchange += 1;
    }
}
