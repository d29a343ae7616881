//! The frames that the wrapper sends: a template of an Ethernet frame with valid checksums.

use super::case::{Family, Protocol};
use sluice_abi::bench::{BENCH_PAD, BENCH_WORDS, BenchControl, bench_frame_len};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The virtual server's port.
pub const VIP_PORT: u16 = 80;

/// Addresses of one family.
pub struct Addresses;

impl Addresses {
    /// The virtual server's IPv4 address.
    pub const VIP4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
    /// The virtual server's IPv6 address.
    pub const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
    /// An IPv4 address that is no VIP.
    pub const OTHER4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 99);
    /// An IPv6 address that is no VIP.
    pub const OTHER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99);
    /// The clients' IPv4 network: the flow's number fills the last 16 bits.
    const CLIENTS4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
    /// The clients' IPv6 network.
    const CLIENTS6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 0);
}

/// MAC addresses of the router that frames come from, and of the director.
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// See [`ROUTER_MAC`].
pub const DIRECTOR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

const ETHERNET: usize = 14;

/// Bytes of a frame.
pub fn length(family: Family) -> usize {
    match family {
        Family::Ipv4 => bench_frame_len::<4>(),
        Family::Ipv6 => bench_frame_len::<16>(),
    }
}

/// The template of frames to the VIP or, if `stray`, to an address that is none.
pub fn template(family: Family, protocol: Protocol, stray: bool) -> [u64; BENCH_WORDS] {
    let mut frame = Vec::with_capacity(BENCH_WORDS * 8);
    frame.extend(DIRECTOR_MAC);
    frame.extend(ROUTER_MAC);
    let network = match family {
        Family::Ipv4 => ipv4(&mut frame, protocol, stray),
        Family::Ipv6 => ipv6(&mut frame, protocol, stray),
    };
    let transport = frame.len();
    frame.extend([0, 0]);
    frame.extend(VIP_PORT.to_be_bytes());
    match protocol {
        // Sequence and acknowledgement number, header length; the window; no checksum yet.
        Protocol::Tcp => frame.extend([0, 0, 0, 0, 0, 0, 0, 1, 0x50, 0, 0x20, 0, 0, 0, 0, 0]),
        Protocol::Udp => {
            let length = u16::try_from(length(family) - transport).unwrap_or_default();
            frame.extend(length.to_be_bytes());
            frame.extend([0, 0]);
        }
    }
    frame.resize(length(family), 0);
    let mut words = pack(&frame);
    // Whatever a frame's number is, it does not change the sum: the checksum of one is the checksum of all.
    let rendered = bytes(&words, family, protocol);
    let pseudo = sum(&rendered[network..transport])
        + u32::from(protocol.number())
        + u32::try_from(rendered.len() - transport).unwrap_or_default();
    let checksum = !fold(pseudo + sum(&rendered[transport..]));
    let field = transport + if protocol == Protocol::Tcp { 16 } else { 6 };
    frame[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
    if family == Family::Ipv4 {
        let header = !fold(sum(&rendered[ETHERNET..ETHERNET + 20]));
        frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&header.to_be_bytes());
    }
    words = pack(&frame);
    words
}

/// Appends EtherType and IPv4 header (RFC 791); where its addresses begin.
fn ipv4(frame: &mut Vec<u8>, protocol: Protocol, stray: bool) -> usize {
    let length = u16::try_from(length(Family::Ipv4) - ETHERNET).unwrap_or_default();
    frame.extend([0x08, 0x00, 0x45, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, protocol.number(), 0, 0]);
    let addresses = frame.len();
    frame.extend(Addresses::CLIENTS4.octets());
    let destination = if stray {
        Addresses::OTHER4
    } else {
        Addresses::VIP4
    };
    frame.extend(destination.octets());
    addresses
}

/// Appends EtherType and IPv6 header (RFC 8200); where its addresses begin.
fn ipv6(frame: &mut Vec<u8>, protocol: Protocol, stray: bool) -> usize {
    let length = u16::try_from(length(Family::Ipv6) - ETHERNET - 40).unwrap_or_default();
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([protocol.number(), 64]);
    let addresses = frame.len();
    frame.extend(Addresses::CLIENTS6.octets());
    let destination = if stray {
        Addresses::OTHER6
    } else {
        Addresses::VIP6
    };
    frame.extend(destination.octets());
    addresses
}

fn pack(frame: &[u8]) -> [u64; BENCH_WORDS] {
    let mut padded = vec![0; BENCH_PAD];
    padded.extend(frame);
    padded.resize(BENCH_WORDS * 8, 0);
    let mut words = [0; BENCH_WORDS];
    for (word, bytes) in words.iter_mut().zip(padded.chunks_exact(8)) {
        *word = bytes
            .iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    words
}

fn bytes(template: &[u64; BENCH_WORDS], family: Family, protocol: Protocol) -> Vec<u8> {
    let control = BenchControl {
        frame: *template,
        ..BenchControl::default()
    };
    rendered(&control, family, protocol, 0)
}

/// The frame that the wrapper writes for packet number `packet`.
pub fn rendered(
    control: &BenchControl,
    family: Family,
    protocol: Protocol,
    packet: u64,
) -> Vec<u8> {
    let words = match (family, protocol) {
        (Family::Ipv4, Protocol::Tcp) => control.render::<4, false>(packet),
        (Family::Ipv4, Protocol::Udp) => control.render::<4, true>(packet),
        (Family::Ipv6, Protocol::Tcp) => control.render::<16, false>(packet),
        (Family::Ipv6, Protocol::Udp) => control.render::<16, true>(packet),
    };
    let bytes = words.iter().flat_map(|word| word.to_le_bytes());
    bytes.skip(BENCH_PAD).take(length(family)).collect()
}

/// The sum of the big-endian 16-bit words of `bytes` (RFC 1071); an odd byte at the end counts as the high one.
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2);
    words
        .map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |&low| u32::from(low)))
        .sum()
}

#[expect(clippy::cast_possible_truncation, reason = "folded into 16 bits")]
fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const TCP_FLAGS: usize = 13;

    fn control(family: Family, protocol: Protocol) -> BenchControl {
        BenchControl {
            frame: template(family, protocol, false),
            mask: u32::MAX,
            shift: 1,
            flags: [0x02, 0x10],
            ..BenchControl::default()
        }
    }

    fn headers(family: Family) -> (usize, usize) {
        match family {
            Family::Ipv4 => (26, 34),
            Family::Ipv6 => (22, 54),
        }
    }

    #[test]
    fn every_frame_has_valid_checksums() {
        for family in Family::ALL {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let control = control(family, protocol);
                for packet in [0, 1, 2, 3, 0x1_fffe, 0x1234_5678] {
                    let frame = rendered(&control, family, protocol, packet);
                    let (addresses, transport) = headers(family);
                    if family == Family::Ipv4 {
                        assert_eq!(fold(sum(&frame[14..34])), 0xffff, "IPv4 header");
                    }
                    let length = u32::try_from(frame.len() - transport).unwrap();
                    let total = sum(&frame[addresses..transport])
                        + u32::from(protocol.number())
                        + length
                        + sum(&frame[transport..]);
                    assert_eq!(fold(total), 0xffff, "{family} {protocol} {packet}");
                }
            }
        }
    }

    #[test]
    fn flows_differ_in_address_and_port() {
        for family in Family::ALL {
            let control = control(family, Protocol::Tcp);
            let (addresses, transport) = headers(family);
            let clients: BTreeSet<Vec<u8>> = (0..4096u64)
                .map(|flow| {
                    let packet = flow << 1 | flow << 13;
                    let frame = rendered(&control, family, Protocol::Tcp, packet);
                    let address = if family == Family::Ipv4 { 4 } else { 16 };
                    [
                        &frame[addresses..addresses + address],
                        &frame[transport..transport + 2],
                    ]
                    .concat()
                })
                .collect();
            assert_eq!(clients.len(), 4096);
        }
    }

    #[test]
    fn a_flow_begins_with_its_syn() {
        let control = control(Family::Ipv4, Protocol::Tcp);
        let flags =
            |packet| rendered(&control, Family::Ipv4, Protocol::Tcp, packet)[34 + TCP_FLAGS];
        assert_eq!(
            [flags(0), flags(1), flags(2), flags(3)],
            [0x02, 0x10, 0x02, 0x10]
        );
    }
}
