//! The first part of the decision: whose packet it is.

use crate::headers::{ETHERNET, Ip, Tuple};
use crate::mac::Whose;
use crate::{FamilyTables, Hook, Outcome, Packet, Tables, announce, balance, mac, marker};
use sluice_abi::DropReason;

/// Sends a packet to a virtual server on its way. [`crate::Action::Unwrap`], [`crate::Action::Reply`] and
/// [`crate::Action::Announce`] ask for another part.
#[inline(always)]
pub(crate) fn forward<const A: usize, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
) -> Result<Outcome, DropReason> {
    let (Some(macs), Some(ends)) = (tables.macs(), mac::Ends::of(packet)) else {
        return Ok(Outcome::PASS);
    };
    match mac::whose(packet, ends, &macs) {
        Whose::Uplink => {}
        // Servers answer there. Pods and other hosts behind it are no clients: their own traffic is not captured.
        Whose::Device => return Ok(Outcome::REPLY),
        Whose::Others if is_solicitation::<A, P>(packet, hook) => return Ok(Outcome::ANNOUNCE),
        Whose::Others => return Ok(Outcome::PASS),
    }
    let Some(ip) = Ip::<A>::parse(packet, ETHERNET) else {
        return Ok(Outcome::PASS);
    };
    if ip.is_tunnel() {
        return Ok(Outcome::UNWRAP);
    }
    let Some(mut tuple) = Tuple::<A>::parse(packet, &ip) else {
        if is_solicitation::<A, P>(packet, hook) {
            return Ok(Outcome::ANNOUNCE);
        }
        return marker::not_transport::<A, P, T>(packet, tables, &ip);
    };
    let Some(vip) = tables.vip(&tuple.destination_key()) else {
        return Ok(Outcome::REPLY);
    };
    tuple.balanced = mac::is_balanced(tables, ends, &macs, &tuple);
    balance::balance::<A, P, T>(packet, tables, hook, &ip, &mut tuple, vip)
}

/// Whether the packet seems to ask for an address; XDP answers what does. Asked only about packets that are for no virtual server.
#[inline(always)]
fn is_solicitation<const A: usize, P: Packet>(packet: &P, hook: Hook) -> bool {
    A == 16 && matches!(hook, Hook::Xdp) && announce::is_solicitation(packet)
}
