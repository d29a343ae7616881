//! FullNAT's claims: which flow a port of the director's own belongs to.

use crate::choice::Choice;
use crate::flow::{self, Key, Table};
use crate::headers::{Tuple, same_address};
use crate::server::{address, server_of};
use crate::{FamilyTables, Tables};
use sluice_abi::{
    ConfigWord, DropReason, FULLNAT_PORT_MAX, FULLNAT_PORT_MIN, FarEnd, FlowData, FullNatKey,
    FullNatValue, ServerRecord, Stat,
};

/// Ports that a new flow tries: when half the ports towards a server are in use, one flow of 2^32 finds none.
const PORT_TRIES: u32 = 32;

/// Claims a source port towards the chosen server of FullNAT.
#[inline(never)]
pub(crate) fn claim<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    tuple: &Tuple<A>,
    choice: &mut Choice<'_, A>,
) -> Result<(), DropReason> {
    const RANGE: u32 = (FULLNAT_PORT_MAX - FULLNAT_PORT_MIN) as u32 + 1;
    let Some(server) = choice.server() else {
        return Ok(());
    };
    if tables.config(ConfigWord::HalfOpenPorts).cast_signed()
        >= tables.config(ConfigWord::HalfOpenPortLimit).cast_signed()
    {
        return Err(DropReason::HalfOpenLimit);
    }
    let mut key = claim_key(server.record, tuple.protocol, 0);
    let mut value = FullNatValue {
        data: FlowData::default(),
        client: tuple.source,
        vip: tuple.destination,
        client_port: tuple.source_port,
        vip_port: tuple.destination_port,
        pad: [0; 4],
    };
    let random = tables.random();
    let mut attempt = 0;
    while attempt < PORT_TRIES {
        // An odd stride from the same random number spreads the tries over the range.
        let offset = ((random.wrapping_add(attempt.wrapping_mul((random >> 16) | 1)) & 0xffff)
            * RANGE)
            >> 16;
        let port = FULLNAT_PORT_MIN + offset as u16;
        key.own_port = port.to_be_bytes();
        value.data = FlowData::new(
            server.id,
            server.word.epoch(),
            flow::first_state(tuple),
            choice.now,
            port,
        );
        if tables.fullnat_claim(&key, &value) {
            tables.add_half_open_ports(1);
            tables.stat(Stat::PortClaimed);
            choice.port = port;
            return Ok(());
        }
        attempt += 1;
    }
    Err(DropReason::NoPort)
}

/// Brings the claimed port of a flow to a FullNAT server up to date. If the claim has expired the flow is a new one.
#[inline(never)]
pub(crate) fn touch_claim<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    tuple: &Tuple<A>,
    choice: &mut Choice<'_, A>,
) {
    let Some(server) = choice.server() else {
        return;
    };
    let key = claim_key::<A>(server.record, tuple.protocol, choice.port);
    if let Some(claim) = tables.fullnat(&key)
        && same_address(&claim.client, &tuple.source)
        && claim.client_port == tuple.source_port
    {
        tables.fullnat_touch(&key, choice.news);
        if matches!(choice.was_in, Table::HalfOpen) {
            tables.add_half_open_ports(-1);
        }
        return;
    }
    flow::forget(tables, &choice.key, choice.now);
    choice.set_server(None);
    choice.port = 0;
    choice.new_flow = true;
}

#[inline(always)]
fn claim_key<const A: usize>(record: &ServerRecord, protocol: u8, port: u16) -> FullNatKey<A> {
    FullNatKey {
        server: *address(&record.addr),
        own: *address(&record.alt),
        server_port: record.port,
        own_port: port.to_be_bytes(),
        protocol,
        pad: [0; 3],
    }
}

/// The claim of the port that a reply comes to, which the reply brings up to date, and its flow.
#[inline(always)]
pub(crate) fn answered<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    tuple: &Tuple<A>,
) -> Option<FullNatValue<A>> {
    let key = FullNatKey {
        server: tuple.source,
        own: tuple.destination,
        server_port: tuple.source_port,
        own_port: tuple.destination_port,
        protocol: tuple.protocol,
        pad: [0; 3],
    };
    let claim = tables.fullnat(&key)?;
    let state = claim.data.state()?;
    if !state.is_half_open() {
        let (old, now) = (claim.data, flow::now(tables));
        let next = flow::next_state(state, tuple.protocol, tuple.flags);
        let data = old.renewed(next, now);
        if data != old {
            tables.fullnat_touch(&key, data);
            if let Some(server) = server_of(tables, data) {
                let far = FarEnd {
                    index: server.record.facts.index(),
                    port: claim.vip_port,
                };
                let forward = Key::new(tables, &claim.client, claim.client_port, far);
                flow::keep_alive(tables, &forward, data, now);
            }
        }
    }
    Some(claim)
}
