//! Telling clients that no server takes their flow, or takes it any more: by a reset (RFC 9293, section 3.10.7.1), or by the
//! error of ICMP that says port unreachable (RFC 792; RFC 4443, section 3.1).

use crate::checksum::Sum;
use crate::headers::{
    ACK, ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, FIN, ICMPV6, Ip, RST, SYN, ip_header,
};
use crate::{Outcome, Packet, Tables, words};
use sluice_abi::{DropReason, Stat, TCP};

const ICMP: u8 = 1;
/// Type and code of *port unreachable*.
const UNREACHABLE4: [u8; 2] = [3, 3];
const UNREACHABLE6: [u8; 2] = [1, 4];
/// Bytes of a TCP header without options, and offset of its checksum.
const TCP_HEADER: usize = 20;
const TCP_CHECKSUM: usize = 16;
/// Bytes of an ICMP header, and offset of its checksum.
const ICMP_HEADER: usize = 8;
const ICMP_CHECKSUM: usize = 2;
/// Bytes of a refused packet that its sender gets back: the IP header without options and eight bytes, the ports among them.
const QUOTE4: usize = 28;
const QUOTE6: usize = 48;
/// TTL and hop limit of an answer (RFC 1700).
const HOPS: u8 = 64;

/// Who asked whom.
#[repr(C, align(8))]
struct Ends<const A: usize> {
    client: [u8; A],
    vip: [u8; A],
    /// The frame's Ethernet addresses.
    from: [u8; 6],
    pad: [u8; 2],
    to: [u8; 6],
}

/// An answer without its IP header. Aligned as [`crate::headers::Tuple`].
#[repr(C, align(8))]
struct Message<const N: usize>([u8; N]);

/// Turns a packet that no server takes, or takes any more, into the answer that says so. A reset, and what has no answer, is dropped.
#[inline(always)]
pub(crate) fn refuse<const A: usize, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
) -> Result<Outcome, DropReason> {
    answer::<A, P>(packet).ok_or(DropReason::NoServer)?;
    tables.stat(Stat::Refused);
    Ok(Outcome::TX)
}

#[inline(always)]
fn answer<const A: usize, P: Packet>(packet: &mut P) -> Option<()> {
    let ip = Ip::<A>::parse(packet, ETHERNET)?;
    // Nobody is told who sends as several stations.
    if packet.get::<1>(6)?[0] & 1 != 0 {
        return None;
    }
    let ends = Ends::<A> {
        client: words::read(ip.source(packet)?),
        vip: ip.destination(packet)?,
        from: words::read(packet.get(6)?),
        pad: [0; 2],
        to: words::read(packet.get(0)?),
    };
    if ip.protocol == TCP {
        reset(packet, &ip, &ends)
    } else if A == 4 {
        unreachable::<A, QUOTE4, { ICMP_HEADER + QUOTE4 }, P>(packet, &ip, &ends)
    } else {
        unreachable::<A, QUOTE6, { ICMP_HEADER + QUOTE6 }, P>(packet, &ip, &ends)
    }
}

/// A reset that the client believes: one that acknowledges what it sent, or has the number that it waits for.
#[inline(always)]
fn reset<const A: usize, P: Packet>(packet: &mut P, ip: &Ip<A>, ends: &Ends<A>) -> Option<()> {
    let header = packet.get::<TCP_HEADER>(ip.payload)?;
    let flags = header[13];
    if flags & RST != 0 {
        return None;
    }
    let mut message = Message([0; TCP_HEADER]);
    let tcp = &mut message.0;
    tcp[0] = header[2];
    tcp[1] = header[3];
    tcp[2] = header[0];
    tcp[3] = header[1];
    let acknowledged = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
    let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    let (sequence, acknowledgement, flags) = if flags & ACK != 0 {
        (acknowledged, 0, RST)
    } else {
        let headers = ip.payload - ip.at + usize::from(header[12] >> 4) * 4;
        let data = usize::from(ip.length).checked_sub(headers)? as u32;
        let marks = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        (0, sequence.wrapping_add(data + marks), RST | ACK)
    };
    copy4(tcp, 4, sequence.to_be_bytes());
    copy4(tcp, 8, acknowledgement.to_be_bytes());
    tcp[12] = (TCP_HEADER as u8 / 4) << 4;
    tcp[13] = flags;
    let sum = pseudo_header(ends, TCP, TCP_HEADER);
    send::<A, TCP_HEADER, TCP_CHECKSUM, P>(packet, ends, TCP, message, sum)
}

/// An error with the front of what it is about.
#[inline(always)]
fn unreachable<const A: usize, const Q: usize, const N: usize, P: Packet>(
    packet: &mut P,
    ip: &Ip<A>,
    ends: &Ends<A>,
) -> Option<()> {
    // With options the ports lie further behind.
    if ip.payload - ip.at != ip_header::<A>() {
        return None;
    }
    let quote: [u8; Q] = words::read(packet.get(ETHERNET)?);
    let mut message = Message([0; N]);
    let [kind, code] = if A == 4 { UNREACHABLE4 } else { UNREACHABLE6 };
    message.0[0] = kind;
    message.0[1] = code;
    let mut at = 0;
    while at + 4 <= Q {
        copy4(&mut message.0, ICMP_HEADER + at, words::word(&quote, at));
        at += 4;
    }
    let protocol = if A == 4 { ICMP } else { ICMPV6 };
    // That of ICMP for IPv4 has none.
    let sum = if A == 4 {
        Sum::ZERO
    } else {
        pseudo_header(ends, protocol, N)
    };
    send::<A, N, ICMP_CHECKSUM, P>(packet, ends, protocol, message, sum)
}

#[inline(always)]
fn copy4<const N: usize>(to: &mut [u8; N], at: usize, bytes: [u8; 4]) {
    if let Some(to) = to.get_mut(at..at + 4) {
        to.copy_from_slice(&bytes);
    }
}

/// The sum over the pseudo header of an answer (RFC 9293, section 3.1; RFC 8200, section 8.1).
#[inline(always)]
fn pseudo_header<const A: usize>(ends: &Ends<A>, protocol: u8, length: usize) -> Sum {
    let [high, low] = (length as u16).to_be_bytes();
    Sum::ZERO
        .add(&ends.client)
        .add(&ends.vip)
        .add(&[0, 0, high, low])
        .add(&[0, 0, 0, protocol])
}

/// Puts the answer in the place of the packet. `C` is the offset of its checksum, and `sum` what counts for that beside the message.
#[inline(always)]
fn send<const A: usize, const N: usize, const C: usize, P: Packet>(
    packet: &mut P,
    ends: &Ends<A>,
    protocol: u8,
    mut message: Message<N>,
    sum: Sum,
) -> Option<()> {
    let [high, low] = (!sum.add(&message.0).fold()).to_be_bytes();
    message.0[C] = high;
    message.0[C + 1] = low;
    let length = packet.length();
    let wanted = ETHERNET + ip_header::<A>() + N;
    if length < wanted {
        packet.grow_front(wanted - length)?;
    } else {
        packet.shrink_front(length - wanted)?;
    }
    packet.set(0, &ends.from)?;
    packet.set(6, &ends.to)?;
    if A == 4 {
        let [high, low] = ((ip_header::<A>() + N) as u16).to_be_bytes();
        packet.set(12, &ETHERTYPE_IPV4)?;
        packet.set(ETHERNET, &[0x45, 0, high, low, 0, 0, 0x40, 0])?;
        packet.set(ETHERNET + 8, &[HOPS, protocol, 0, 0])?;
        packet.set(ETHERNET + 12, &ends.vip)?;
        packet.set(ETHERNET + 16, &ends.client)?;
        let sum = Sum::ZERO.add(packet.get::<20>(ETHERNET)?);
        packet.set(ETHERNET + 10, &(!sum.fold()).to_be_bytes())?;
    } else {
        let [high, low] = (N as u16).to_be_bytes();
        packet.set(12, &ETHERTYPE_IPV6)?;
        packet.set(ETHERNET, &[0x60, 0, 0, 0, high, low, protocol, HOPS])?;
        packet.set(ETHERNET + 8, &ends.vip)?;
        packet.set(ETHERNET + 24, &ends.client)?;
    }
    packet.set(ETHERNET + ip_header::<A>(), &message.0)
}
