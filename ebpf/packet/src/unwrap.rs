//! The RS side of TUN: takes a packet out of its tunnel and turns the VIP into the server's address, before the stack.

use crate::flow::{self, Key};
use crate::headers::{ETHERNET, Ip, Tuple, ip_header};
use crate::sample;
use crate::server::{address, server, server_of};
use crate::{FamilyTables, Outcome, Packet, Tables, marker, rewrite, words};
use sluice_abi::{DropReason, FlowData, LocalKey, NET_TUNNELS, Path, Stat};

/// Congestion experienced, in the ECN field (RFC 3168).
const CE: u8 = 3;

/// A tunnelled packet: ours if it comes to a server of this node and its inner destination is that server's virtual server;
/// others pass, for the kernel may have a tunnel device. A VIP is no end of a tunnel: a router would send what passed back
/// here until its TTL ends.
#[inline(always)]
pub(crate) fn unwrap<const A: usize, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
) -> Result<Outcome, DropReason> {
    let at = ETHERNET + ip_header::<A>();
    let Some(outer) = Ip::<A>::parse(packet, ETHERNET) else {
        return Ok(Outcome::PASS);
    };
    if outer.fragment || outer.payload != at {
        return marker::not_transport::<A, P, T>(packet, tables, &outer);
    }
    let Some(mut ip) = Ip::<A>::parse(packet, at) else {
        return marker::no_virtual_server::<A, P, T>(packet, tables, &outer);
    };
    let Some(own) = outer.destination(packet) else {
        return Ok(Outcome::PASS);
    };
    let Some(mut tuple) = Tuple::<A>::parse(packet, &ip) else {
        marker::no_virtual_server::<A, P, T>(packet, tables, &outer)?;
        return marker::not_transport::<A, P, T>(packet, tables, &ip);
    };
    tuple.forget_constants(packet.unknown_zero());
    let Some(vip) = tables.vip(&tuple.destination_key()) else {
        marker::no_virtual_server::<A, P, T>(packet, tables, &outer)?;
        return marker::no_virtual_server::<A, P, T>(packet, tables, &ip);
    };
    let local = LocalKey {
        addr: own,
        index: vip.index(),
    };
    let Some(id) = tables.local(&local) else {
        marker::no_virtual_server::<A, P, T>(packet, tables, &outer)?;
        return Err(DropReason::NotMyServer);
    };
    if at + usize::from(ip.length) > packet.length() {
        return Err(DropReason::Truncated);
    }
    let mut tunnelled = Tunnelled {
        from: words::read(outer.source(packet).ok_or(DropReason::Truncated)?),
        numbers: sample::numbers(packet, &ip),
        new_flow: packet.unknown_zero(),
        pad: packet.unknown_zero(),
    };
    remember(tables, id, &tuple, &mut tunnelled)?;
    let server = server(tables, id).ok_or(DropReason::ServerGone)?;
    congestion(packet, &outer, &ip, at)?;
    let ethernet = *packet.get::<ETHERNET>(0).ok_or(DropReason::Truncated)?;
    packet
        .shrink_front(ip_header::<A>())
        .ok_or(DropReason::Truncated)?;
    packet.set(0, &ethernet).ok_or(DropReason::Truncated)?;
    ip.at -= ip_header::<A>();
    ip.payload -= ip_header::<A>();
    rewrite::destination(
        packet,
        &ip,
        &tuple,
        address(&server.record.addr),
        server.record.port,
    )?;
    tables.stat(Stat::Unwrapped);
    tables.count(server.id, u32::from(ip.length), tunnelled.new_flow != 0);
    Ok(Outcome::UP)
}

/// What a tunnel says of a packet beside its flow, and whether that is new. Aligned as [`Tuple`].
#[repr(C, align(8))]
struct Tunnelled<const A: usize> {
    numbers: u64,
    from: [u8; A],
    new_flow: u32,
    pad: u32,
}

/// Records the way back of the packet's flow, or brings it up to date. Only a tunnel from a director may begin one: a flow that
/// is known goes on while its director is not yet, or no longer, in the list. A function of its own, as the steps of
/// [`crate::balance`].
#[inline(never)]
fn remember<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    id: u32,
    tuple: &Tuple<A>,
    tunnelled: &mut Tunnelled<A>,
) -> Result<(), DropReason> {
    let server = server(tables, id).ok_or(DropReason::ServerGone)?;
    if !matches!(server.word.path(), Path::Local) || server.reply_end().index == 0 {
        return Err(DropReason::BadTable);
    }
    let now = flow::now(tables);
    let key = Key::new(tables, &tuple.source, tuple.source_port, server.reply_end());
    let found = flow::find(tables, &key, now);
    if let Some(found) = found {
        let again = tuple.opens() && flow::is_over(found.state);
        let holder = server_of(tables, found.data)
            .filter(|holder| !again && holder.reply_end() == server.reply_end());
        match holder {
            Some(holder) if !holder.serves(server.record.facts.index()) => {
                return Err(DropReason::PortInUse);
            }
            Some(_) => {
                let sampled = found.state.may_be_sampled()
                    && server.word.is_sampled()
                    && sample::from_client(tables, tuple, &server, tunnelled.numbers);
                if let Some(news) = flow::news(&found, tuple, sampled, now) {
                    flow::follow(tables, &key, &found, news, now);
                }
                return Ok(());
            }
            None => {}
        }
    }
    if FamilyTables::<A>::peer_net(tables, &tunnelled.from) & NET_TUNNELS == 0 {
        return Err(DropReason::TunnelSource);
    }
    if let Some(found) = found {
        // It would hide the new flow's entry, which begins in the half-open table.
        flow::remove(tables, found.data, &key);
    }
    let state = flow::first_state(tuple);
    flow::begin(
        tables,
        &key,
        FlowData::new(server.id, server.word.epoch(), state, now, 0),
        now,
    );
    if tuple.opens() && server.word.is_sampled() {
        sample::from_client(tables, tuple, &server, tunnelled.numbers);
    }
    tunnelled.new_flow = 1;
    Ok(())
}

/// RFC 6040, section 4.2: congestion marked on the outer header is marked on the inner one; a packet whose ends do not
/// understand the mark is dropped instead.
#[inline(always)]
fn congestion<const A: usize, P: Packet>(
    packet: &mut P,
    outer: &Ip<A>,
    inner: &Ip<A>,
    at: usize,
) -> Result<(), DropReason> {
    if outer.traffic_class & CE != CE || inner.traffic_class & CE == CE {
        return Ok(());
    }
    if inner.traffic_class & CE == 0 {
        return Err(DropReason::NotEcnCapable);
    }
    rewrite::mark_congestion::<A, P>(packet, at)
}
