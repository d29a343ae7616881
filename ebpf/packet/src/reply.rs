//! The way back: packets of servers whose source must become the VIP again.

use crate::flow::{self, Key};
use crate::headers::{ETHERNET, Ip, Tuple, same_address};
use crate::mac::Whose;
use crate::sample;
use crate::server::{Server, address, server, server_of};
use crate::{
    Action, FamilyTables, Hook, Outcome, Packet, Route, Tables, fullnat, mac, marker, next_hop,
    rewrite,
};
use sluice_abi::{DropReason, FULLNAT_PORT_MAX, FULLNAT_PORT_MIN, FarEnd, Path, Stat};

/// A reply that reaches the director from outside.
#[inline(always)]
pub(crate) fn remote<const A: usize, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
) -> Result<Outcome, DropReason> {
    let Some(ip) = Ip::<A>::parse(packet, ETHERNET) else {
        return Ok(Outcome::PASS);
    };
    let Some(mut tuple) = Tuple::<A>::parse(packet, &ip) else {
        return Ok(Outcome::PASS);
    };
    tuple.forget_constants(packet.unknown_zero());
    let mut way = WayBack::unknown(&tuple);
    if is_fullnat_port(tuple.destination_port) {
        claimed(tables, &tuple, &mut way);
    }
    if way.server() == 0 {
        way_back(tables, &tuple, &mut way, false);
    }
    if way.server() == 0 {
        // By a bridge or overlay come packets of pods, for whom an address may be somebody else's than the VIP's.
        let (Some(macs), Some(ends)) = (tables.macs(), mac::Ends::of(packet)) else {
            return Ok(Outcome::PASS);
        };
        if mac::whose(packet, ends, &macs) != Whose::Uplink {
            return Ok(Outcome::PASS);
        }
        return marker::no_virtual_server::<A, P, T>(packet, tables, &ip);
    }
    if ETHERNET + usize::from(ip.length) > packet.length() {
        return Err(DropReason::Truncated);
    }
    let outcome = to_client(packet, tables, hook, &ip, &way)?;
    if outcome.action == Action::Pass {
        return Ok(outcome);
    }
    if way.is_sampled() {
        take_sample(packet, tables, &ip, &tuple, &way);
    }
    translate(packet, &ip, &tuple, &way)?;
    tables.count_reply(way.server(), u32::from(ip.length));
    Ok(outcome)
}

/// Takes in what a server answers a connection that has just begun.
#[inline(never)]
fn take_sample<const A: usize, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    ip: &Ip<A>,
    tuple: &Tuple<A>,
    way: &WayBack<A>,
) {
    if let Some(server) = server(tables, way.server()) {
        let numbers = sample::numbers(packet, ip);
        let client = (&way.client, way.client_port);
        sample::from_server(tables, client, &server, tuple.flags, numbers);
    }
}

#[inline(never)]
fn translate<const A: usize, P: Packet>(
    packet: &mut P,
    ip: &Ip<A>,
    tuple: &Tuple<A>,
    way: &WayBack<A>,
) -> Result<(), DropReason> {
    rewrite::source(packet, ip, tuple, &way.vip, way.vip_port)?;
    if way.client_port != tuple.destination_port || !same_address(&way.client, &tuple.destination) {
        rewrite::destination(packet, ip, tuple, &way.client, way.client_port)?;
    }
    Ok(())
}

/// A reply that this node's own stack sends. Anything but TCP and UDP of IPv6 may be an advertisement.
#[inline(always)]
pub(crate) fn local<const A: usize, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
) -> Result<Outcome, DropReason> {
    let Some(ip) = Ip::<A>::parse(packet, ETHERNET) else {
        return Ok(Outcome::PASS);
    };
    let Some(mut tuple) = Tuple::<A>::parse(packet, &ip) else {
        return Ok(if A == 16 {
            Outcome::ANNOUNCE
        } else {
            Outcome::PASS
        });
    };
    tuple.forget_constants(packet.unknown_zero());
    let mut way = WayBack::unknown(&tuple);
    way_back(tables, &tuple, &mut way, true);
    if way.server() == 0 {
        return Ok(Outcome::PASS);
    }
    if way.is_sampled() {
        take_sample(packet, tables, &ip, &tuple, &way);
    }
    rewrite::source(packet, &ip, &tuple, &way.vip, way.vip_port)?;
    tables.count_reply(way.server(), u32::from(ip.length));
    Ok(Outcome::UP)
}

#[inline(always)]
fn is_fullnat_port(port: [u8; 2]) -> bool {
    (FULLNAT_PORT_MIN..=FULLNAT_PORT_MAX).contains(&u16::from_be_bytes(port))
}

/// The addresses that a reply gets. Aligned as [`Tuple`].
#[repr(C, align(8))]
pub(crate) struct WayBack<const A: usize> {
    pub(crate) vip: [u8; A],
    pub(crate) client: [u8; A],
    pub(crate) vip_port: [u8; 2],
    pub(crate) client_port: [u8; 2],
    /// `server id:32 | sampled:1`, low bits first, in one word: the server that replies, and whether a sample of the connection may be told of
    /// it; 0: no reply of a known flow.
    found: u64,
}

impl<const A: usize> WayBack<A> {
    /// Nothing known yet: the reply goes where it says.
    #[inline(always)]
    fn unknown(tuple: &Tuple<A>) -> Self {
        Self {
            vip: tuple.source,
            client: tuple.destination,
            vip_port: tuple.source_port,
            client_port: tuple.destination_port,
            found: 0,
        }
    }

    /// The server that replies; 0: no reply of a known flow.
    #[inline(always)]
    pub(crate) fn server(&self) -> u32 {
        self.found as u32
    }

    #[inline(always)]
    fn is_sampled(&self) -> bool {
        self.found >> 32 != 0
    }

    /// Takes in which server replies. A sample may wait for packets of `sampled` connections.
    #[inline(always)]
    pub(crate) fn set_server(&mut self, server: &Server<'_>, sampled: bool) {
        let sampled = u64::from(sampled && server.word.is_sampled()) << 32;
        self.found = u64::from(server.id) | sampled;
    }
}

/// Finds the flow that a packet from a real server's port answers, and brings both its entries up to date. A function of
/// its own, as the steps of [`crate::balance`].
#[inline(never)]
fn way_back<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    tuple: &Tuple<A>,
    way: &mut WayBack<A>,
    local: bool,
) {
    let Some(index) = tables.reply_index(&tuple.source_key()) else {
        return;
    };
    let now = flow::now(tables);
    let far = FarEnd {
        index,
        port: tuple.source_port,
    };
    let key = Key::new(tables, &tuple.destination, tuple.destination_port, far);
    let Some(found) = flow::find_ongoing(tables, &key, now) else {
        return;
    };
    let Some(server) = server_of(tables, found.data) else {
        return;
    };
    let record = server.record;
    if matches!(server.word.path(), Path::Local) != local || record.facts.reply_index() != index {
        return;
    }
    if let Some(data) =
        flow::follow_reply::<A, T>(tables, &key, &found, tuple.protocol, tuple.flags, now)
    {
        let far = FarEnd {
            index: record.facts.index(),
            port: record.vip_port,
        };
        let forward = Key::new(tables, &tuple.destination, tuple.destination_port, far);
        flow::keep_alive(tables, &forward, data, now);
    }
    way.vip = *address(&record.alt);
    way.vip_port = record.vip_port;
    way.set_server(&server, found.state.may_be_sampled());
}

/// Finds the flow that claimed the port which a reply comes to.
#[inline(never)]
fn claimed<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    tuple: &Tuple<A>,
    way: &mut WayBack<A>,
) {
    fullnat::answered(tables, tuple, way);
    if way.server() == 0 {
        // Another CPU may have changed what was read.
        *way = WayBack::unknown(tuple);
    }
}

/// Routes a reply from the VIP to the client and does what a router does to it, before the addresses are rewritten.
/// [`Outcome::PASS`]: tc does it all.
#[inline(always)]
fn to_client<const A: usize, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
    ip: &Ip<A>,
    way: &WayBack<A>,
) -> Result<Outcome, DropReason> {
    let route = tables.route(packet.ifindex(), &way.vip, &way.client);
    if let (Route::NoNeighbour { .. }, Hook::Xdp) = (route, hook) {
        // tc restores the VIP and has the stack find the neighbour. Were the VIP restored here, the stack would forward a
        // packet whose source is the VIP: strict reverse-path filters and firewalls drop that.
        tables.stat(Stat::ToStack);
        return Ok(Outcome::PASS);
    }
    if let (Route::Resolved { next_hop_mac, .. }, Hook::Xdp) = (&route, hook)
        && next_hop::is_due(tables, &next_hop_mac.0)
    {
        tables.stat(Stat::ToStack);
        return Ok(Outcome::PASS);
    }
    if ip.ttl <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    rewrite::decrement_ttl(packet, ip)?;
    match (route, hook) {
        (Route::None, _) => Err(DropReason::NoRoute),
        (Route::NoNeighbour { ifindex } | Route::Resolved { ifindex, .. }, Hook::Tc) => {
            Ok(Outcome::neigh(ifindex))
        }
        (Route::NoNeighbour { .. }, Hook::Xdp) => Ok(Outcome::PASS),
        (
            Route::Resolved {
                ifindex,
                source_mac,
                next_hop_mac,
            },
            Hook::Xdp,
        ) => {
            rewrite::macs(packet, &next_hop_mac.0, &source_mac.0)?;
            Ok(if ifindex == packet.ifindex() {
                Outcome::TX
            } else {
                Outcome::redirect(ifindex)
            })
        }
    }
}
