//! Reading headers: Ethernet II, IPv4 (RFC 791), IPv6 (RFC 8200), the ports and flags of TCP and UDP.

use crate::{Packet, words};
use sluice_abi::{PortKey, TCP, UDP};

/// Bytes of an Ethernet header without VLAN tag.
pub(crate) const ETHERNET: usize = 14;
pub(crate) const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
pub(crate) const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
pub(crate) const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// Next header of ICMPv6 (RFC 4443).
pub(crate) const ICMPV6: u8 = 58;

/// IPv4 in IP (RFC 2003).
pub(crate) const IPIP: u8 = 4;
/// IPv6 in IP (RFC 2473).
pub(crate) const IPV6_IN_IP: u8 = 41;

/// TCP flags (RFC 9293, section 3.1).
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

/// Bytes of the family's fixed IP header.
pub(crate) const fn ip_header<const A: usize>() -> usize {
    if A == 4 { 20 } else { 40 }
}

#[inline(always)]
pub(crate) fn ethertype<P: Packet>(packet: &P) -> Option<[u8; 2]> {
    packet.get::<2>(12).copied()
}

/// Fields of an IP header that the decision reads, beside its addresses. Aligned as [`Tuple`].
#[repr(align(8))]
pub(crate) struct Ip<const A: usize> {
    /// Offset of the header.
    pub(crate) at: usize,
    /// Offset of the header after this one.
    pub(crate) payload: usize,
    /// Length of the whole IP packet.
    pub(crate) length: u16,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    /// ToS byte or traffic class.
    pub(crate) traffic_class: u8,
    /// Whether it is a fragment, the first included.
    pub(crate) fragment: bool,
}

impl<const A: usize> Ip<A> {
    /// Reads the header at `at`. `None`: no valid header there.
    #[inline(always)]
    pub(crate) fn parse<P: Packet>(packet: &P, at: usize) -> Option<Self> {
        if A == 4 {
            Self::parse_v4(packet, at)
        } else {
            Self::parse_v6(packet, at)
        }
    }

    #[inline(always)]
    fn parse_v4<P: Packet>(packet: &P, at: usize) -> Option<Self> {
        let header = packet.get::<20>(at)?;
        let header_length = usize::from(header[0] & 15) * 4;
        if header[0] >> 4 != 4 || header_length < 20 {
            return None;
        }
        Some(Self {
            at,
            payload: at + header_length,
            length: u16::from_be_bytes([header[2], header[3]]),
            protocol: header[9],
            ttl: header[8],
            traffic_class: header[1],
            fragment: [header[6] & 0x3f, header[7]] != [0, 0],
        })
    }

    #[inline(always)]
    fn parse_v6<P: Packet>(packet: &P, at: usize) -> Option<Self> {
        let header = packet.get::<40>(at)?;
        if header[0] >> 4 != 6 {
            return None;
        }
        Some(Self {
            at,
            payload: at + 40,
            length: u16::from_be_bytes([header[4], header[5]]).saturating_add(40),
            protocol: header[6],
            ttl: header[7],
            traffic_class: (header[0] << 4) | (header[1] >> 4),
            fragment: header[6] == 44,
        })
    }

    /// Where the packet is going.
    #[inline(always)]
    pub(crate) fn source<'a, P: Packet>(&self, packet: &'a P) -> Option<&'a [u8; A]> {
        packet.get(self.at + if A == 4 { 12 } else { 8 })
    }

    #[inline(always)]
    pub(crate) fn destination<P: Packet>(&self, packet: &P) -> Option<[u8; A]> {
        let destination = packet.get::<A>(self.at + if A == 4 { 16 } else { 24 })?;
        Some(words::read(destination))
    }

    /// Whether the payload is an IP packet of the same family.
    #[inline(always)]
    pub(crate) fn is_tunnel(&self) -> bool {
        self.protocol == if A == 4 { IPIP } else { IPV6_IN_IP }
    }
}

/// The five numbers that identify a flow.
///
/// Aligned and ordered so, because the compiler joins neighbours that are copied together into 8-byte accesses and the
/// verifier refuses misaligned ones on the stack.
#[repr(C, align(8))]
pub(crate) struct Tuple<const A: usize> {
    pub(crate) source: [u8; A],
    pub(crate) source_port: [u8; 2],
    pub(crate) destination_port: [u8; 2],
    pub(crate) protocol: u8,
    /// TCP flags; 0 for UDP.
    pub(crate) flags: u8,
    /// Another director has balanced the packet already: only this node's own servers may get it.
    pub(crate) balanced: bool,
    pad: u8,
    pub(crate) destination: [u8; A],
}

impl<const A: usize> Tuple<A> {
    /// Reads the ports behind `ip`. `None`: neither TCP nor UDP, a fragment, or the frame ends before.
    #[inline(always)]
    pub(crate) fn parse<P: Packet>(packet: &P, ip: &Ip<A>) -> Option<Self> {
        if ip.fragment {
            return None;
        }
        // One window for each header: a look beyond the packet's end costs as much as the reading.
        let (ports, flags) = match ip.protocol {
            TCP => {
                let header = packet.get::<14>(ip.payload)?;
                (*header.first_chunk::<4>()?, header[13])
            }
            UDP => (*packet.get::<8>(ip.payload)?.first_chunk::<4>()?, 0),
            _ => return None,
        };
        Some(Self {
            source: words::read(packet.get::<A>(ip.at + if A == 4 { 12 } else { 8 })?),
            destination: ip.destination(packet)?,
            source_port: *ports.first_chunk()?,
            destination_port: *ports.last_chunk()?,
            protocol: ip.protocol,
            flags,
            balanced: false,
            pad: 0,
        })
    }

    #[inline(always)]
    pub(crate) fn destination_key(&self) -> PortKey<A> {
        PortKey {
            addr: self.destination,
            port: self.destination_port,
            protocol: self.protocol,
            pad: 0,
        }
    }

    #[inline(always)]
    pub(crate) fn source_key(&self) -> PortKey<A> {
        PortKey {
            addr: self.source,
            port: self.source_port,
            protocol: self.protocol,
            pad: 0,
        }
    }

    /// `zero` is [`Packet::unknown_zero`].
    #[inline(always)]
    pub(crate) fn forget_constants(&mut self, zero: u32) {
        self.protocol = self.protocol.wrapping_add(zero as u8);
        self.flags = self.flags.wrapping_add(zero as u8);
    }

    /// A TCP connection attempt.
    #[inline(always)]
    pub(crate) fn opens(&self) -> bool {
        self.protocol == TCP && self.flags & (SYN | ACK | RST) == SYN
    }
}

/// Offset of the checksum in the transport header.
#[inline(always)]
pub(crate) fn checksum_offset(protocol: u8) -> usize {
    if protocol == TCP { 16 } else { 6 }
}

/// Whether two addresses are equal, without a branch for each byte. `A` is a multiple of 4.
#[inline(always)]
pub(crate) fn same_address<const A: usize>(a: &[u8; A], b: &[u8; A]) -> bool {
    let mut difference = 0;
    let mut at = 0;
    while at + 3 < A {
        let x = u32::from_ne_bytes(words::word(a, at));
        let y = u32::from_ne_bytes(words::word(b, at));
        difference |= x ^ y;
        at += 4;
    }
    difference == 0
}
