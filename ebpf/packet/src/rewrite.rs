//! Changing headers: addresses and ports with their checksums, TTL, MAC addresses, and the outer header of a tunnel.

use crate::Packet;
use crate::checksum::{Sum, update};
use crate::headers::{
    ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPIP, IPV6_IN_IP, Ip, Tuple, checksum_offset,
    ip_header,
};
use sluice_abi::{DropReason, UDP};

/// TTL and hop limit of outer headers.
const OUTER_TTL: u8 = 64;

/// Sum of the word of TTL and protocol, when the TTL is one less, and the complement of what it was: the same for all (RFC 1141).
const TTL_LOWERED: u16 = 0xffff - 0x0100;

/// Replaces destination address and port.
#[inline(always)]
pub(crate) fn destination<const A: usize, P: Packet>(
    packet: &mut P,
    ip: &Ip<A>,
    tuple: &Tuple<A>,
    address: &[u8; A],
    port: [u8; 2],
) -> Result<(), DropReason> {
    let at = ETHERNET + if A == 4 { 16 } else { 24 };
    let addresses = Sum::ZERO.sub(&tuple.destination).add(address).fold();
    let ports = Sum::ZERO.sub(&tuple.destination_port).add(&port).fold();
    set(packet, at, address)?;
    set(packet, ip.payload + 2, &port)?;
    checksums(packet, ip, tuple.protocol, addresses, ports)
}

/// Replaces source address and port.
#[inline(always)]
pub(crate) fn source<const A: usize, P: Packet>(
    packet: &mut P,
    ip: &Ip<A>,
    tuple: &Tuple<A>,
    address: &[u8; A],
    port: [u8; 2],
) -> Result<(), DropReason> {
    let at = ETHERNET + if A == 4 { 12 } else { 8 };
    let addresses = Sum::ZERO.sub(&tuple.source).add(address).fold();
    let ports = Sum::ZERO.sub(&tuple.source_port).add(&port).fold();
    set(packet, at, address)?;
    set(packet, ip.payload, &port)?;
    checksums(packet, ip, tuple.protocol, addresses, ports)
}

#[inline(always)]
fn set<const N: usize, P: Packet>(
    packet: &mut P,
    offset: usize,
    bytes: &[u8; N],
) -> Result<(), DropReason> {
    packet.set(offset, bytes).ok_or(DropReason::Truncated)
}

#[inline(always)]
fn checksums<const A: usize, P: Packet>(
    packet: &mut P,
    ip: &Ip<A>,
    protocol: u8,
    addresses: u16,
    ports: u16,
) -> Result<(), DropReason> {
    if A == 4 {
        let field = *packet
            .get::<2>(ETHERNET + 10)
            .ok_or(DropReason::Truncated)?;
        set(packet, ETHERNET + 10, &update(field, addresses))?;
    }
    packet
        .fix_checksum(
            ip.payload + checksum_offset(protocol),
            addresses,
            ports,
            protocol == UDP,
        )
        .ok_or(DropReason::Truncated)
}

/// Lowers the TTL as a router does (RFC 1812, section 5.3.1; RFC 8200, section 3). The caller has checked that it is above 1.
#[inline(always)]
pub(crate) fn decrement_ttl<const A: usize, P: Packet>(
    packet: &mut P,
    ip: &Ip<A>,
) -> Result<(), DropReason> {
    if A == 4 {
        let field = packet.get::<4>(ETHERNET + 8).ok_or(DropReason::Truncated)?;
        let ttl = ip.ttl.wrapping_sub(1);
        let checksum = update([field[2], field[3]], TTL_LOWERED);
        set(
            packet,
            ETHERNET + 8,
            &[ttl, field[1], checksum[0], checksum[1]],
        )
    } else {
        let next_header = packet.get::<2>(ETHERNET + 6).ok_or(DropReason::Truncated)?[0];
        set(packet, ETHERNET + 6, &[next_header, ip.ttl.wrapping_sub(1)])
    }
}

/// Addresses the frame.
#[inline(always)]
pub(crate) fn macs<P: Packet>(
    packet: &mut P,
    to: &[u8; 6],
    from: &[u8; 6],
) -> Result<(), DropReason> {
    set(packet, 0, to)?;
    set(packet, 6, from)
}

/// Puts an outer header of the same family before the packet (RFC 2003, RFC 2473): traffic class copied (RFC 6040, normal
/// mode), never to be fragmented. The Ethernet header's addresses are left to the caller.
#[inline(always)]
pub(crate) fn wrap<const A: usize, P: Packet>(
    packet: &mut P,
    ip: &Ip<A>,
    from: &[u8; A],
    to: &[u8; A],
) -> Result<(), DropReason> {
    packet
        .grow_front(ip_header::<A>())
        .ok_or(DropReason::NoHeadroom)?;
    if A == 4 {
        let length = ip.length.wrapping_add(20).to_be_bytes();
        let start = [
            0x45,
            ip.traffic_class,
            length[0],
            length[1],
            0,
            0,
            0x40,
            0,
            OUTER_TTL,
            IPIP,
        ];
        let sum = Sum::ZERO.add(&start).add(from).add(to).fold();
        set(packet, 12, &ETHERTYPE_IPV4)?;
        set(packet, ETHERNET, &start)?;
        set(packet, ETHERNET + 10, &(!sum).to_be_bytes())?;
        set(packet, ETHERNET + 12, from)?;
        set(packet, ETHERNET + 16, to)
    } else {
        let length = ip.length.to_be_bytes();
        let class = ip.traffic_class;
        let start = [
            0x60 | (class >> 4),
            class << 4,
            0,
            0,
            length[0],
            length[1],
            IPV6_IN_IP,
            OUTER_TTL,
        ];
        set(packet, 12, &ETHERTYPE_IPV6)?;
        set(packet, ETHERNET, &start)?;
        set(packet, ETHERNET + 8, from)?;
        set(packet, ETHERNET + 24, to)
    }
}

/// Sets the ECN field of the header at `at` to "congestion experienced".
#[inline(always)]
pub(crate) fn mark_congestion<const A: usize, P: Packet>(
    packet: &mut P,
    at: usize,
) -> Result<(), DropReason> {
    if A == 4 {
        let header = packet.get::<12>(at).ok_or(DropReason::Truncated)?;
        let old = [header[0], header[1]];
        let new = [header[0], header[1] | 3];
        let checksum = update(
            [header[10], header[11]],
            Sum::ZERO.sub(&old).add(&new).fold(),
        );
        set(packet, at, &new)?;
        set(packet, at + 10, &checksum)
    } else {
        let header = packet.get::<2>(at).ok_or(DropReason::Truncated)?;
        let marked = [header[0], header[1] | 0x30];
        set(packet, at, &marked)
    }
}
