//! ARP (RFC 826) and the probes of its conflict detection (RFC 5227).

use super::{answered, entry, is_armed, is_group, is_to_us};
use crate::headers::{ETHERNET, same_address};
use crate::{Outcome, Packet, Tables, words};
use sluice_abi::{AnnouncedWord, DropReason};

/// Bytes of a packet for IPv4 on Ethernet.
const LENGTH: usize = 28;
/// IPv4 addresses by Ethernet addresses: the fields between the hardware type and the opcode.
const IPV4: [u8; 4] = [0x08, 0x00, 6, 4];
const ETHERNET_HARDWARE: [u8; 2] = [0, 1];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];

/// Offsets of the fields in the frame.
const OPCODE: usize = ETHERNET + 6;
const SENDER_MAC: usize = ETHERNET + 8;
const SENDER: usize = ETHERNET + 14;
const TARGET_MAC: usize = ETHERNET + 18;
const TARGET: usize = ETHERNET + 24;

/// Answers a request for an announced address.
#[inline(always)]
pub(super) fn answer<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
) -> Result<Outcome, DropReason> {
    let Some(entry) = asked(packet, tables) else {
        return Ok(Outcome::PASS);
    };
    if !is_armed(tables, entry) {
        return Err(DropReason::VipNotArmed);
    }
    reply(packet, entry).ok_or(DropReason::Truncated)?;
    Ok(answered(tables))
}

/// The entry of the address that a request is for.
///
/// Who asks for the address that it has itself announces it (RFC 5227, section 2.3): that is no question, but a conflict, which
/// the agent is to see.
#[inline(always)]
fn asked<P: Packet, T: Tables>(packet: &P, tables: &T) -> Option<AnnouncedWord> {
    let header = packet.get::<LENGTH>(ETHERNET)?;
    let is_request =
        header[..2] == ETHERNET_HARDWARE && header[2..6] == IPV4 && header[6..8] == REQUEST;
    if !is_request || is_group(packet, 6) || is_group(packet, SENDER_MAC) {
        return None;
    }
    let target = packet.get::<4>(TARGET)?;
    if same_address(packet.get::<4>(SENDER)?, target) || !is_to_us(packet, tables) {
        return None;
    }
    entry::<4, P, T>(packet, tables, target)
}

/// Turns a request into its answer. It goes where the frame came from: who asks on behalf of another station gets it, too.
#[inline(always)]
fn reply<P: Packet>(packet: &mut P, entry: AnnouncedWord) -> Option<()> {
    let mac = entry.mac();
    let from: [u8; 6] = words::read(packet.get(6)?);
    let asker: [u8; 10] = words::read(packet.get(SENDER_MAC)?);
    let address: [u8; 4] = words::read(packet.get(TARGET)?);
    packet.set(0, &from)?;
    packet.set(6, &mac)?;
    packet.set(OPCODE, &REPLY)?;
    packet.set(SENDER_MAC, &mac)?;
    packet.set(SENDER, &address)?;
    packet.set(TARGET_MAC, &asker)
}

/// The address in whose name an ARP packet is sent, request or reply.
#[inline(always)]
pub(super) fn told<P: Packet>(packet: &P) -> Option<&[u8; 4]> {
    if *packet.get::<4>(ETHERNET + 2)? != IPV4 {
        return None;
    }
    packet.get(SENDER)
}
