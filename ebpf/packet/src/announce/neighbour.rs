//! Neighbour discovery (RFC 4861): solicitations, also of duplicate address detection (RFC 4862), and advertisements.

use super::{answered, entry, is_armed, is_group, is_to_us};
use crate::checksum::Sum;
use crate::headers::{ETHERNET, ETHERTYPE_IPV6, ICMPV6, Ip, same_address};
use crate::mac::{self, Whose};
use crate::{Outcome, Packet, Tables, marker, words};
use sluice_abi::{AnnouncedWord, DropReason};

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// The hop limit that shows that no router forwarded the packet.
const HOP_LIMIT: u8 = 255;

const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;

/// Flags of advertisements (section 4.4).
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// RFC 2464, section 7.
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// The front of every solicited-node address (RFC 4291, section 2.7.1), without its last byte.
const SOLICITED_NODE: [u8; 12] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// Offsets in the frame.
const PAYLOAD_LENGTH: usize = ETHERNET + 4;
const NEXT_HEADER: usize = ETHERNET + 6;
const SOURCE: usize = ETHERNET + 8;
const DESTINATION: usize = ETHERNET + 24;
const ICMP: usize = ETHERNET + 40;
const CHECKSUM: usize = ICMP + 2;
const TARGET: usize = ICMP + 8;
const OPTIONS: usize = ICMP + FIXED;

/// Bytes of a solicitation and of an advertisement before their options.
const FIXED: usize = 24;
/// Bytes that the length of an option counts.
const UNIT: usize = 8;
/// The most units of options of a solicitation that is answered. Hosts send a source address and a nonce (RFC 7527), a unit
/// each; solicitations with more go to the stack.
const MOST_UNITS: usize = 8;
/// Bytes of the ICMPv6 message of an answer: with one option.
const ANSWER: u8 = FIXED as u8 + UNIT as u8;
/// Bytes of the frame of an answer.
const ANSWER_FRAME: usize = ICMP + ANSWER as usize;

/// Whether an IPv6 packet seems to be a solicitation, whatever else is wrong with it.
#[inline(always)]
pub(crate) fn is_solicitation<P: Packet>(packet: &P) -> bool {
    is_message(packet, SOLICITATION).is_some()
}

#[inline(always)]
fn is_message<P: Packet>(packet: &P, kind: u8) -> Option<()> {
    let is_icmp = packet.get::<1>(NEXT_HEADER)?[0] == ICMPV6;
    (is_icmp && packet.get::<1>(ICMP)?[0] == kind).then_some(())
}

/// Answers a solicitation for an announced address. One to this node that is not answered meets what any other packet that
/// is neither TCP nor UDP does.
#[inline(always)]
pub(super) fn answer<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
) -> Result<Outcome, DropReason> {
    let Some(asked) = asked(packet, tables) else {
        return not_answered(packet, tables);
    };
    if !is_armed(tables, asked.entry) {
        return Err(DropReason::VipNotArmed);
    }
    advertise(packet, &asked)?;
    Ok(answered(tables))
}

/// As if nothing were announced.
#[inline(always)]
fn not_answered<P: Packet, T: Tables>(packet: &P, tables: &T) -> Result<Outcome, DropReason> {
    let (Some(macs), Some(ends)) = (tables.macs(), mac::Ends::of(packet)) else {
        return Ok(Outcome::PASS);
    };
    if mac::whose(packet, ends, &macs) != Whose::Uplink {
        return Ok(Outcome::PASS);
    }
    let Some(ip) = Ip::<16>::parse(packet, ETHERNET) else {
        return Ok(Outcome::PASS);
    };
    marker::not_transport::<16, P, T>(packet, tables, &ip)
}

/// A solicitation for an announced address.
struct Asked {
    entry: AnnouncedWord,
    /// The asker has no address yet: it looks whether another one has the one it wants.
    detects_duplicates: bool,
}

/// The entry of the address that a solicitation is for, if section 7.1.1 has a node take it.
///
/// Who asks for the address that it has itself asks nothing: that is a conflict, which the agent is to see.
#[inline(always)]
fn asked<P: Packet, T: Tables>(packet: &P, tables: &T) -> Option<Asked> {
    let header = packet.get::<8>(ETHERNET)?;
    let message = packet.get::<FIXED>(ICMP)?;
    let is_solicitation = header[0] >> 4 == 6
        && header[6] == ICMPV6
        && header[7] == HOP_LIMIT
        && message[0] == SOLICITATION
        && message[1] == 0;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let is_whole = length >= FIXED && length % UNIT == 0 && ICMP + length <= packet.length();
    if !is_solicitation || !is_whole || is_group(packet, 6) {
        return None;
    }
    let source = packet.get::<16>(SOURCE)?;
    let target = packet.get::<16>(TARGET)?;
    let is_multicast = |address: &[u8; 16]| address[0] == 0xff;
    if is_multicast(source) || is_multicast(target) || same_address(source, target) {
        return None;
    }
    if !is_to_us(packet, tables) {
        return None;
    }
    let entry = entry::<16, P, T>(packet, tables, target)?;
    let options = Options::read(packet, (length - FIXED) / UNIT)?;
    let sum = options
        .sum
        .add(packet.get::<32>(SOURCE)?)
        .add(packet.get::<FIXED>(ICMP)?)
        .add(&[0, 0, header[4], header[5]])
        .add(&[0, 0, 0, ICMPV6]);
    if sum.fold() != 0xffff {
        return None;
    }
    let detects_duplicates = same_address(source, &[0; 16]);
    if detects_duplicates && (options.has_source || !is_to_solicited_node(packet)?) {
        return None;
    }
    Some(Asked {
        entry,
        detects_duplicates,
    })
}

#[inline(always)]
fn is_to_solicited_node<P: Packet>(packet: &P) -> Option<bool> {
    let front = packet.get::<12>(DESTINATION)?;
    Some(same_address(front, &SOLICITED_NODE) && packet.get::<1>(DESTINATION + 12)?[0] == 0xff)
}

/// The options of a solicitation.
struct Options {
    sum: Sum,
    /// Whether one of them is the source's link-layer address.
    has_source: bool,
}

impl Options {
    /// Reads so many units. `None`: too many, an option of length 0, or one that the packet ends before.
    #[inline(always)]
    fn read<P: Packet>(packet: &P, units: usize) -> Option<Self> {
        if units > MOST_UNITS {
            return None;
        }
        let mut options = Self {
            sum: Sum::ZERO,
            has_source: false,
        };
        // Units that are left of an option.
        let mut left = 0;
        let mut at = 0;
        while at < MOST_UNITS && at < units {
            let unit = packet.get::<UNIT>(OPTIONS + at * UNIT)?;
            options.sum = options.sum.add(unit);
            if left == 0 {
                left = unit[1];
                options.has_source |= unit[0] == SOURCE_LINK_LAYER_ADDRESS;
                if left == 0 {
                    return None;
                }
            }
            left -= 1;
            at += 1;
        }
        (left == 0).then_some(options)
    }
}

/// Turns a solicitation into the advertisement that answers it (section 7.2.4). It goes where the frame came from, or to all
/// nodes if the asker has no address.
#[inline(always)]
fn advertise<P: Packet>(packet: &mut P, asked: &Asked) -> Result<(), DropReason> {
    let mac = asked.entry.mac();
    let from: [u8; 6] = words::read(packet.get(6).ok_or(DropReason::Truncated)?);
    let source: [u8; 16] = words::read(packet.get(SOURCE).ok_or(DropReason::Truncated)?);
    let target: [u8; 16] = words::read(packet.get(TARGET).ok_or(DropReason::Truncated)?);
    let (to, destination, mut flags) = if asked.detects_duplicates {
        (ALL_NODES_MAC, ALL_NODES, OVERRIDE)
    } else {
        (from, source, OVERRIDE | SOLICITED)
    };
    if asked.entry.is_router() {
        flags |= ROUTER;
    }
    let length = packet.length();
    let resized = if length < ANSWER_FRAME {
        packet.grow_front(ANSWER_FRAME - length)
    } else {
        packet.shrink_front(length - ANSWER_FRAME)
    };
    resized.ok_or(DropReason::NoHeadroom)?;
    let written = write(packet, &Ends { to, mac }, &destination, &target, flags);
    written.ok_or(DropReason::Truncated)
}

/// The Ethernet addresses of an answer.
struct Ends {
    to: [u8; 6],
    mac: [u8; 6],
}

#[inline(always)]
fn write<P: Packet>(
    packet: &mut P,
    ends: &Ends,
    destination: &[u8; 16],
    target: &[u8; 16],
    flags: u8,
) -> Option<()> {
    packet.set(0, &ends.to)?;
    packet.set(6, &ends.mac)?;
    packet.set(12, &ETHERTYPE_IPV6)?;
    packet.set(ETHERNET, &[0x60, 0, 0, 0])?;
    packet.set(PAYLOAD_LENGTH, &[0, ANSWER, ICMPV6, HOP_LIMIT])?;
    packet.set(SOURCE, target)?;
    packet.set(DESTINATION, destination)?;
    packet.set(ICMP, &[ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0])?;
    packet.set(TARGET, target)?;
    packet.set(OPTIONS, &[TARGET_LINK_LAYER_ADDRESS, 1])?;
    packet.set(OPTIONS + 2, &ends.mac)?;
    let sum = Sum::ZERO
        .add(packet.get::<32>(SOURCE)?)
        .add(packet.get::<{ ANSWER as usize }>(ICMP)?)
        .add(&[0, 0, 0, ANSWER])
        .add(&[0, 0, 0, ICMPV6]);
    packet.set(CHECKSUM, &(!sum.fold()).to_be_bytes())
}

/// The address in whose name an advertisement is sent, or a solicitation: neighbours learn from who asks, too (section 7.2.3).
#[inline(always)]
pub(super) fn told<P: Packet>(packet: &P) -> Option<&[u8; 16]> {
    if is_message(packet, ADVERTISEMENT).is_some() {
        return packet.get(TARGET);
    }
    is_message(packet, SOLICITATION)?;
    packet.get(SOURCE)
}
