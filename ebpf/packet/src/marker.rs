//! Packets to a VIP that are for no virtual server.

use crate::headers::Ip;
use crate::{FamilyTables, Outcome, Packet};
use sluice_abi::{DropReason, PortKey, TCP, UDP};

/// Decides on a packet that is neither TCP nor UDP, or a fragment.
#[inline(always)]
pub(crate) fn not_transport<const A: usize, P: Packet, T: FamilyTables<A>>(
    packet: &P,
    tables: &T,
    ip: &Ip<A>,
) -> Result<Outcome, DropReason> {
    match no_virtual_server(packet, tables, ip) {
        Err(_) if ip.fragment => Err(DropReason::Fragment),
        Err(_) if ip.protocol == TCP || ip.protocol == UDP => Err(DropReason::Truncated),
        other => other,
    }
}

/// Decides on a packet that is for no virtual server: a VIP's is dropped, since a router would send it back here
/// until its TTL ends; any other passes.
#[inline(always)]
pub(crate) fn no_virtual_server<const A: usize, P: Packet, T: FamilyTables<A>>(
    packet: &P,
    tables: &T,
    ip: &Ip<A>,
) -> Result<Outcome, DropReason> {
    let Some(addr) = ip.destination(packet) else {
        return Ok(Outcome::PASS);
    };
    let marker = PortKey {
        addr,
        port: [0; 2],
        protocol: 0,
        pad: 0,
    };
    if tables.vip(&marker).is_some() {
        Err(DropReason::NoVirtualServer)
    } else {
        Ok(Outcome::PASS)
    }
}
