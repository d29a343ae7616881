//! Frames written down field by field and turned into bytes, checksums included (RFC 791, 8200, 9293, 768, 2003, 2473).

use std::net::{IpAddr, SocketAddr};

use sluice_abi::{TCP, UDP};

use super::checksum::{checksum, sum};

/// TCP flags (RFC 9293, section 3.1).
pub const FIN: u8 = 0x01;
/// Synchronize.
pub const SYN: u8 = 0x02;
/// Reset.
pub const RST: u8 = 0x04;
/// Push.
pub const PSH: u8 = 0x08;
/// Acknowledgement.
pub const ACK: u8 = 0x10;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The protocol number of IPv4 in IP (RFC 2003).
const IPIP: u8 = 4;
/// The protocol number of IPv6 in IP (RFC 2473).
const IPV6: u8 = 41;

/// Content of a transport checksum field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksum {
    /// As the RFC says.
    Correct,
    /// This, right or wrong. 0 is "none" for UDP over IPv4.
    Fixed(u16),
}

/// An IP header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IpHeader {
    /// Sender.
    pub source: IpAddr,
    /// Receiver; of the same family.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// ToS byte or traffic class.
    pub traffic_class: u8,
    /// IPv4: identification.
    pub identification: u16,
    /// IPv4: flags and fragment offset.
    pub fragment: u16,
    /// IPv4: options, a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// IPv6: flow label.
    pub flow_label: u32,
}

/// IPv4's "don't fragment" in [`IpHeader::fragment`].
pub const DONT_FRAGMENT: u16 = 0x4000;
/// IPv4's "more fragments" in [`IpHeader::fragment`].
pub const MORE_FRAGMENTS: u16 = 0x2000;

impl IpHeader {
    /// A header as hosts send it.
    pub fn new(source: IpAddr, destination: IpAddr) -> Self {
        Self {
            source,
            destination,
            ttl: 64,
            traffic_class: 0,
            identification: 0,
            fragment: DONT_FRAGMENT,
            options: Vec::new(),
            flow_label: 0,
        }
    }

    /// The packet: this header, then `payload`.
    fn packet(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let length = 20 + self.options.len();
                let mut header = vec![0x40 | byte(length / 4), self.traffic_class];
                header.extend(word(length + payload.len()));
                header.extend(self.identification.to_be_bytes());
                header.extend(self.fragment.to_be_bytes());
                header.extend([self.ttl, protocol, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header.extend(&self.options);
                let checksum = checksum(&header).to_be_bytes();
                header[10..12].copy_from_slice(&checksum);
                header.extend(payload);
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let first =
                    0x6000_0000 | u32::from(self.traffic_class) << 20 | self.flow_label & 0xf_ffff;
                let mut header = first.to_be_bytes().to_vec();
                header.extend(word(payload.len()));
                header.extend([protocol, self.ttl]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header.extend(payload);
                header
            }
            _ => unreachable!("a header has addresses of one family"),
        }
    }
}

/// A frame with a transport packet, possibly in a tunnel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Receiver's Ethernet address.
    pub destination_mac: Mac,
    /// Sender's Ethernet address.
    pub source_mac: Mac,
    /// The header of a tunnel round the packet.
    pub outer: Option<IpHeader>,
    /// The packet's IP header.
    pub ip: IpHeader,
    /// [`TCP`], [`UDP`] or another protocol, whose packet begins with the ports nevertheless.
    pub protocol: u8,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// TCP flags.
    pub flags: u8,
    /// TCP: sequence number.
    pub sequence: u32,
    /// TCP: acknowledgement number.
    pub acknowledgement: u32,
    /// TCP: window.
    pub window: u16,
    /// The bytes after the transport header.
    pub payload: Vec<u8>,
    /// The transport checksum.
    pub checksum: Checksum,
    /// Bytes behind the IP packet, as Ethernet pads short frames.
    pub padding: usize,
}

/// The router's Ethernet address in test frames.
pub const ROUTER_MAC: Mac = [0x02, 0, 0, 0, 0, 0x01];
/// The director's Ethernet address in test frames.
pub const DIRECTOR_MAC: Mac = [0x02, 0, 0, 0, 0, 0x02];
/// The next hop towards servers in test frames.
pub const SERVER_MAC: Mac = [0x02, 0, 0, 0, 0, 0x03];
/// Another director's Ethernet address.
pub const PEER_MAC: Mac = [0x02, 0, 0, 0, 0, 0x04];

/// A TCP packet that the router hands to the director.
pub fn tcp(source: SocketAddr, destination: SocketAddr, flags: u8) -> Frame {
    Frame {
        flags,
        ..transport(source, destination, TCP)
    }
}

/// A UDP packet that the router hands to the director.
pub fn udp(source: SocketAddr, destination: SocketAddr) -> Frame {
    transport(source, destination, UDP)
}

/// A packet of `protocol` that the router hands to the director: for TCP an ACK with data.
pub fn transport(source: SocketAddr, destination: SocketAddr, protocol: u8) -> Frame {
    Frame {
        destination_mac: DIRECTOR_MAC,
        source_mac: ROUTER_MAC,
        outer: None,
        ip: IpHeader::new(source.ip(), destination.ip()),
        protocol,
        source_port: source.port(),
        destination_port: destination.port(),
        flags: if protocol == TCP { ACK } else { 0 },
        sequence: 1_000,
        acknowledgement: 2_000,
        window: u16::MAX,
        payload: b"sluice".to_vec(),
        checksum: Checksum::Correct,
        padding: 0,
    }
}

impl Frame {
    /// The same packet from elsewhere.
    #[must_use]
    pub fn from(mut self, source: SocketAddr) -> Self {
        self.ip.source = source.ip();
        self.source_port = source.port();
        self
    }

    /// The same packet to elsewhere.
    #[must_use]
    pub fn to(mut self, destination: SocketAddr) -> Self {
        self.ip.destination = destination.ip();
        self.destination_port = destination.port();
        self
    }

    /// The same packet in a frame between these stations.
    #[must_use]
    pub fn macs(mut self, source: Mac, destination: Mac) -> Self {
        self.source_mac = source;
        self.destination_mac = destination;
        self
    }

    /// With this TTL or hop limit.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ip.ttl = ttl;
        self
    }

    /// With this ToS byte or traffic class.
    #[must_use]
    pub fn traffic_class(mut self, traffic_class: u8) -> Self {
        self.ip.traffic_class = traffic_class;
        self
    }

    /// With these TCP flags.
    #[must_use]
    pub fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// With this payload.
    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// With this transport checksum.
    #[must_use]
    pub fn checksum(mut self, checksum: Checksum) -> Self {
        self.checksum = checksum;
        self
    }

    /// Wrapped as directors do it: TTL 64, traffic class of the packet, never to be fragmented, identification 0
    /// (RFC 6864: it means nothing in an atomic datagram).
    #[must_use]
    pub fn wrapped(mut self, source: IpAddr, destination: IpAddr) -> Self {
        self.outer = Some(IpHeader {
            traffic_class: self.ip.traffic_class,
            ..IpHeader::new(source, destination)
        });
        self
    }

    /// Source and destination exchanged, from the station that `self` goes to.
    #[must_use]
    pub fn answer(&self) -> Self {
        let source = SocketAddr::new(self.ip.source, self.source_port);
        let destination = SocketAddr::new(self.ip.destination, self.destination_port);
        self.clone().from(destination).to(source)
    }

    /// The transport segment.
    fn segment(&self) -> Vec<u8> {
        let mut segment = self.source_port.to_be_bytes().to_vec();
        segment.extend(self.destination_port.to_be_bytes());
        let field = match self.protocol {
            TCP => {
                segment.extend(self.sequence.to_be_bytes());
                segment.extend(self.acknowledgement.to_be_bytes());
                segment.extend([0x50, self.flags]);
                segment.extend(self.window.to_be_bytes());
                segment.extend([0; 4]);
                16
            }
            UDP => {
                segment.extend(word(8 + self.payload.len()));
                segment.extend([0, 0]);
                6
            }
            _ => {
                segment.extend([0; 4]);
                6
            }
        };
        segment.extend(&self.payload);
        let checksum = match self.checksum {
            Checksum::Fixed(value) => value,
            Checksum::Correct => self.correct_checksum(&segment),
        };
        segment[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        segment
    }

    /// RFC 9293, section 3.1, and RFC 768: over the pseudo header and the segment; UDP sends 0 as all ones.
    fn correct_checksum(&self, segment: &[u8]) -> u16 {
        let mut covered = Vec::new();
        for address in [self.ip.source, self.ip.destination] {
            match address {
                IpAddr::V4(address) => covered.extend(address.octets()),
                IpAddr::V6(address) => covered.extend(address.octets()),
            }
        }
        covered.extend([0, self.protocol]);
        covered.extend(word(segment.len()));
        covered.extend(segment);
        match (self.protocol, !sum(&covered)) {
            (UDP, 0) => 0xffff,
            (_, checksum) => checksum,
        }
    }

    /// The IP packet inside a tunnel, or the whole one.
    pub fn inner_packet(&self) -> Vec<u8> {
        self.ip.packet(self.protocol, &self.segment())
    }

    /// The frame's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let inner = self.inner_packet();
        let (packet, version) = match &self.outer {
            None => (inner, self.ip.source),
            Some(outer) => {
                let protocol = if self.ip.source.is_ipv4() { IPIP } else { IPV6 };
                (outer.packet(protocol, &inner), outer.source)
            }
        };
        let ethertype = if version.is_ipv4() {
            [0x08, 0x00]
        } else {
            [0x86, 0xdd]
        };
        let mut frame = [&self.destination_mac[..], &self.source_mac, &ethertype].concat();
        frame.extend(packet);
        frame.resize(frame.len() + self.padding, 0);
        frame
    }
}

fn word(value: usize) -> [u8; 2] {
    u16::try_from(value)
        .expect("lengths of test packets fit their fields")
        .to_be_bytes()
}

fn byte(value: usize) -> u8 {
    u8::try_from(value).expect("a header's length fits its field")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::checksum::is_valid;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// Both checksums added up by hand.
    #[test]
    fn ipv4_header_layout() {
        let frame = tcp(address("10.0.0.2:40000"), address("10.0.0.1:80"), SYN).payload(b"");
        let bytes = frame.bytes();
        assert_eq!(
            bytes,
            [
                0x02, 0, 0, 0, 0, 0x02, 0x02, 0, 0, 0, 0, 0x01, 0x08, 0x00, // Ethernet
                0x45, 0x00, 0x00, 0x28, 0x00, 0x00, 0x40, 0x00, 0x40, 0x06, 0x26,
                0xce, // IPv4
                10, 0, 0, 2, 10, 0, 0, 1, //
                0x9c, 0x40, 0x00, 0x50, 0x00, 0x00, 0x03, 0xe8, 0x00, 0x00, 0x07, 0xd0, // TCP
                0x50, 0x02, 0xff, 0xff, 0xf3, 0x97, 0x00, 0x00,
            ]
        );
    }

    #[test]
    fn checksums_are_valid() {
        for (from, to) in [("10.0.0.2:1", "10.0.0.1:2"), ("[fd00::2]:1", "[fd00::1]:2")] {
            let frame = udp(address(from), address(to)).payload(b"odd");
            let segment = frame.segment();
            assert!(!is_valid(&segment), "the pseudo header is covered too");
            let mut covered = match (frame.ip.source, frame.ip.destination) {
                (IpAddr::V4(a), IpAddr::V4(b)) => [a.octets(), b.octets()].concat(),
                (IpAddr::V6(a), IpAddr::V6(b)) => [a.octets(), b.octets()].concat(),
                _ => unreachable!(),
            };
            covered.extend([0, UDP, 0, 11]);
            covered.extend(segment);
            assert!(is_valid(&covered));
        }
    }

    #[test]
    fn tunnels_wrap_the_packet() {
        let frame = udp(address("[fd00::2]:1"), address("[fd00::1]:2"));
        let wrapped = frame
            .clone()
            .wrapped("fd00::a".parse().unwrap(), "fd00::b".parse().unwrap());
        let bytes = wrapped.bytes();
        assert_eq!(bytes[54..], frame.bytes()[14..]);
        assert_eq!(bytes[14 + 6], IPV6);
        assert_eq!(bytes[14 + 4..14 + 6], [0, 54]);
    }
}
