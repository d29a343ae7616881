//! Sending a packet to its server: the four forwarding modes over the paths of the node.

use crate::choice::Chosen;
use crate::headers::{Ip, Tuple};
use crate::server::address;
use crate::{FamilyTables, Hook, Outcome, Packet, Tables, rewrite};
use sluice_abi::{DropReason, ForwardingMode, Path};

/// Rewrites or wraps the packet for the chosen server and says where it goes.
#[inline(always)]
pub(crate) fn deliver<const A: usize, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
    ip: &Ip<A>,
    tuple: &Tuple<A>,
    chosen: &Chosen<'_>,
) -> Result<Outcome, DropReason> {
    let &Chosen {
        ref server,
        port,
        new_flow,
    } = chosen;
    let record = server.record;
    if record.facts.is_ipv6() != (A == 16) {
        return Err(DropReason::BadTable);
    }
    let path = server.word.path();
    if matches!(path, Path::Local) {
        rewrite::destination(packet, ip, tuple, address(&record.addr), record.port)?;
        tables.count(server.id, u32::from(ip.length), new_flow);
        return Ok(Outcome::UP);
    }
    if ip.ttl <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    let mode = record.facts.mode().ok_or(DropReason::BadTable)?;
    let overhead = if matches!(mode, ForwardingMode::Tun) {
        crate::headers::ip_header::<A>() as u32
    } else {
        0
    };
    if matches!(hook, Hook::Xdp) && u32::from(ip.length) + overhead > u32::from(record.facts.mtu())
    {
        return Err(DropReason::TooBig);
    }
    rewrite::decrement_ttl(packet, ip)?;
    match mode {
        ForwardingMode::Nat => {
            rewrite::destination(packet, ip, tuple, address(&record.addr), record.port)?;
        }
        ForwardingMode::FullNat => {
            rewrite::destination(packet, ip, tuple, address(&record.addr), record.port)?;
            rewrite::source(packet, ip, tuple, address(&record.alt), port.to_be_bytes())?;
        }
        ForwardingMode::Dr => {}
        ForwardingMode::Tun => {
            rewrite::wrap(packet, ip, address(&record.alt), address(&record.addr))?;
        }
    }
    tables.count(server.id, u32::from(ip.length), new_flow);
    if matches!(path, Path::Tc) {
        return Ok(Outcome::neigh(record.ifindex));
    }
    rewrite::macs(packet, &record.next_hop_mac, &record.source_mac)?;
    if matches!(hook, Hook::Xdp) && record.ifindex == packet.ifindex() {
        Ok(Outcome::TX)
    } else {
        Ok(Outcome::redirect(record.ifindex))
    }
}
