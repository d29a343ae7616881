//! Frames by which neighbours ask who has an address and tell it, field by field: ARP (RFC 826) and neighbour discovery (RFC 4861).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    case::ToBytes,
    checksum::checksum,
    frame::{Checksum, DIRECTOR_MAC, Mac, ROUTER_MAC},
};

/// To whoever hears it.
pub const BROADCAST: Mac = [0xff; 6];
/// A switch sends it to all nodes of IPv6 (RFC 2464, section 7).
pub const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
/// All nodes of IPv6 on a link (RFC 4291, section 2.7.1).
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Operation of ARP.
pub const REQUEST: u16 = 1;
/// Operation of ARP.
pub const REPLY: u16 = 2;
/// Type of ICMPv6.
pub const SOLICITATION: u8 = 135;
/// Type of ICMPv6.
pub const ADVERTISEMENT: u8 = 136;

/// An ARP packet for IPv4 on Ethernet.
#[derive(Clone, Debug)]
pub struct Arp {
    /// Receiver's Ethernet address.
    pub destination_mac: Mac,
    /// Sender's Ethernet address.
    pub source_mac: Mac,
    /// Hardware type, protocol type and lengths of addresses: 1, 0x0800, 6 and 4.
    pub format: [u8; 6],
    /// [`REQUEST`] or [`REPLY`].
    pub operation: u16,
    /// Sender hardware address.
    pub sender_mac: Mac,
    /// Sender protocol address.
    pub sender: Ipv4Addr,
    /// Target hardware address.
    pub target_mac: Mac,
    /// Target protocol address.
    pub target: Ipv4Addr,
    /// Zeros behind the packet.
    pub padding: usize,
}

impl Arp {
    /// The router asks who has `target`.
    pub fn request(sender: Ipv4Addr, target: Ipv4Addr) -> Self {
        Self {
            destination_mac: BROADCAST,
            source_mac: ROUTER_MAC,
            format: [0, 1, 8, 0, 6, 4],
            operation: REQUEST,
            sender_mac: ROUTER_MAC,
            sender,
            target_mac: [0; 6],
            target,
            padding: 0,
        }
    }

    /// The director says that it has the address.
    #[must_use]
    pub fn reply(&self) -> Self {
        Self {
            destination_mac: self.source_mac,
            source_mac: DIRECTOR_MAC,
            operation: REPLY,
            sender_mac: DIRECTOR_MAC,
            sender: self.target,
            target_mac: self.sender_mac,
            target: self.sender,
            ..self.clone()
        }
    }

    /// In a frame to this station.
    #[must_use]
    pub fn to(mut self, destination_mac: Mac) -> Self {
        self.destination_mac = destination_mac;
        self
    }
}

impl ToBytes for Arp {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = [&self.destination_mac[..], &self.source_mac, &[8, 6]].concat();
        bytes.extend(self.format);
        bytes.extend(self.operation.to_be_bytes());
        bytes.extend(self.sender_mac);
        bytes.extend(self.sender.octets());
        bytes.extend(self.target_mac);
        bytes.extend(self.target.octets());
        bytes.resize(bytes.len() + self.padding, 0);
        bytes
    }
}

/// A solicitation or an advertisement.
#[derive(Clone, Debug)]
pub struct Neighbour {
    /// Receiver's Ethernet address.
    pub destination_mac: Mac,
    /// Sender's Ethernet address.
    pub source_mac: Mac,
    /// Sender.
    pub source: Ipv6Addr,
    /// Receiver.
    pub destination: Ipv6Addr,
    /// 255.
    pub hop_limit: u8,
    /// [`SOLICITATION`] or [`ADVERTISEMENT`].
    pub kind: u8,
    /// 0.
    pub code: u8,
    /// First byte of an advertisement's flags.
    pub flags: u8,
    /// The address in question.
    pub target: Ipv6Addr,
    /// Options.
    pub options: Vec<u8>,
    /// The ICMPv6 checksum.
    pub checksum: Checksum,
    /// What the IPv6 header says too much, in bytes; may be negative.
    pub excess: i16,
    /// Zeros behind the packet.
    pub padding: usize,
}

/// The solicited-node address of `target` (RFC 4291, section 2.7.1).
pub fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = target.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (high & 0xff), low)
}

/// The Ethernet address of an IPv6 multicast address (RFC 2464, section 7).
pub fn multicast_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// An option with an Ethernet address: 1 is the source's, 2 the target's.
pub fn link_layer_address(kind: u8, mac: Mac) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

impl Neighbour {
    /// The router asks who has `target`, as hosts do at first: by multicast, and with its own Ethernet address.
    pub fn solicitation(source: Ipv6Addr, target: Ipv6Addr) -> Self {
        let destination = solicited_node(target);
        Self {
            destination_mac: multicast_mac(destination),
            source_mac: ROUTER_MAC,
            source,
            destination,
            hop_limit: 255,
            kind: SOLICITATION,
            code: 0,
            flags: 0,
            target,
            options: link_layer_address(1, ROUTER_MAC),
            checksum: Checksum::Correct,
            excess: 0,
            padding: 0,
        }
    }

    /// Somebody who wants `target` for itself asks who has it (RFC 4862, section 5.4.2).
    pub fn duplicate_detection(target: Ipv6Addr) -> Self {
        Self {
            options: Vec::new(),
            ..Self::solicitation(Ipv6Addr::UNSPECIFIED, target)
        }
    }

    /// The director says that it has the address: override and, unless to all, solicited.
    #[must_use]
    pub fn advertisement(&self) -> Self {
        let is_unspecified = self.source.is_unspecified();
        let (destination_mac, destination, flags) = if is_unspecified {
            (ALL_NODES_MAC, ALL_NODES, 0x20)
        } else {
            (self.source_mac, self.source, 0x60)
        };
        Self {
            destination_mac,
            source_mac: DIRECTOR_MAC,
            source: self.target,
            destination,
            hop_limit: 255,
            kind: ADVERTISEMENT,
            code: 0,
            flags,
            target: self.target,
            options: link_layer_address(2, DIRECTOR_MAC),
            checksum: Checksum::Correct,
            excess: 0,
            padding: 0,
        }
    }

    /// As hosts ask again whether a neighbour is still there: at its own address.
    #[must_use]
    pub fn unicast(mut self) -> Self {
        self.destination_mac = DIRECTOR_MAC;
        self.destination = self.target;
        self
    }

    /// With these options.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }
}

impl ToBytes for Neighbour {
    fn to_bytes(&self) -> Vec<u8> {
        let mut message = vec![self.kind, self.code, 0, 0, self.flags, 0, 0, 0];
        message.extend(self.target.octets());
        message.extend(&self.options);
        let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
        let addresses = [self.source.octets(), self.destination.octets()].concat();
        let checksum = match self.checksum {
            Checksum::Fixed(value) => value,
            Checksum::Correct => {
                // RFC 8200, section 8.1.
                let pseudo = [
                    &addresses[..],
                    &[0, 0],
                    &length.to_be_bytes(),
                    &[0, 0, 0, 58],
                ];
                checksum(&[&pseudo.concat()[..], &message].concat())
            }
        };
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        let length = length.wrapping_add_signed(self.excess);
        let mut bytes = [&self.destination_mac[..], &self.source_mac, &[0x86, 0xdd]].concat();
        bytes.extend([0x60, 0, 0, 0]);
        bytes.extend(length.to_be_bytes());
        bytes.extend([58, self.hop_limit]);
        bytes.extend(addresses);
        bytes.extend(message);
        bytes.resize(bytes.len() + self.padding, 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_solicitation_byte_by_byte() {
        let bytes = Neighbour::solicitation(
            "fe80::1".parse().unwrap(),
            "2001:db8::12:3456".parse().unwrap(),
        )
        .to_bytes();
        assert_eq!(bytes.len(), 86);
        assert_eq!(bytes[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        assert_eq!(bytes[14..22], [0x60, 0, 0, 0, 0, 32, 58, 255]);
        assert_eq!(
            bytes[38..54],
            [
                0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0x12, 0x34, 0x56
            ]
        );
        assert_eq!(bytes[54..56], [135, 0]);
        assert_eq!(bytes[78..], [1, 1, 2, 0, 0, 0, 0, 1]);
    }
}
