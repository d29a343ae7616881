//! Answering for VIPs: who has an address, clients' neighbours ask by ARP ([`arp`]) and by neighbour discovery
//! ([`neighbour`]).
//!
//! No address of a VIP group is on an interface, so the stack neither answers for it nor speaks of it, unless somebody has put it
//! there or has the node answer for others (proxy ARP). While the node holds the group, requests are answered in place.
//! While it does not, requests are dropped and whatever the stack sends in the address's name is too: neighbours must
//! not learn that this node has an address which another one holds.
//!
//! What RFCs tell to ignore, and what asks for another address or comes by another interface, goes to the stack as it is.

mod arp;
mod neighbour;

use crate::mac::{self, Whose};
use crate::{FamilyTables, Outcome, Packet, Tables, words};
use sluice_abi::{AnnouncedKey, AnnouncedWord, DropReason, Stat};

pub(crate) use neighbour::is_solicitation;

/// Answers a request for an announced address: of ARP if `A` is 4, else of neighbour discovery.
#[inline(always)]
pub(crate) fn answer<const A: usize, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
) -> Result<Outcome, DropReason> {
    if A == 4 {
        arp::answer(packet, tables)
    } else {
        neighbour::answer(packet, tables)
    }
}

/// Drops what this node's stack sends in the name of an announced address whose group the node does not hold: ARP packets if `A` is
/// 4, else neighbour advertisements and solicitations.
#[inline(always)]
pub(crate) fn guard<const A: usize, P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
) -> Result<Outcome, DropReason> {
    let announced = if A == 4 {
        arp::told(packet).and_then(|address| entry::<4, _, _>(packet, tables, address))
    } else {
        neighbour::told(packet).and_then(|address| entry::<16, _, _>(packet, tables, address))
    };
    match announced {
        Some(entry) if !is_armed(tables, entry) => Err(DropReason::AnnouncementNotArmed),
        _ => Ok(Outcome::PASS),
    }
}

/// The entry of an address at the interface of the packet.
#[inline(always)]
fn entry<const A: usize, P: Packet, T: FamilyTables<A>>(
    packet: &P,
    tables: &T,
    address: &[u8; A],
) -> Option<AnnouncedWord> {
    tables.announced(&AnnouncedKey {
        addr: words::read(address),
        ifindex: packet.ifindex(),
    })
}

/// Whether the node holds the group of an entry.
#[inline(always)]
fn is_armed<T: Tables>(tables: &T, entry: AnnouncedWord) -> bool {
    tables.exact_ns() < tables.group_deadline(entry.group())
}

/// Whether a request is for whoever hears it, or for this node: a switch may flood what asks another director.
#[inline(always)]
fn is_to_us<P: Packet, T: Tables>(packet: &P, tables: &T) -> bool {
    if is_group(packet, 0) {
        return true;
    }
    let (Some(macs), Some(ends)) = (tables.macs(), mac::Ends::of(packet)) else {
        return false;
    };
    mac::whose(packet, ends, &macs) == Whose::Uplink
}

/// Whether the Ethernet address at `at` is of several stations, or none is there.
#[inline(always)]
fn is_group<P: Packet>(packet: &P, at: usize) -> bool {
    packet.get::<1>(at).is_none_or(|first| first[0] & 1 != 0)
}

/// An answer was written in the place of the request.
#[inline(always)]
fn answered<T: Tables>(tables: &T) -> Outcome {
    tables.stat(Stat::Answered);
    Outcome::TX
}
