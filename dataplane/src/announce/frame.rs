//! The frames that announce VIPs and ask for them, and what is heard of the answers: ARP (RFC 826, RFC 5227) for IPv4,
//! neighbour discovery (RFC 4861) for IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sluice_planner::Mac;

/// Ethernet's broadcast address.
const BROADCAST: Mac = Mac([0xff; 6]);
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const ICMPV6: u8 = 58;
/// Operations of ARP.
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
/// Types of ICMPv6.
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Options of neighbour discovery (RFC 4861, 4.6.1).
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;
/// Flags of an advertisement: the sender is a router; it supersedes what is cached.
const ROUTER: u8 = 0x80;
const OVERRIDE: u8 = 0x20;
/// All nodes and all routers on a link (RFC 4291, 2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// Lengths of headers in bytes.
const ETHERNET: usize = 14;
const IP6: usize = 40;
/// A frame of ARP, and one of neighbour discovery with one option.
const ARP_FRAME: usize = ETHERNET + 28;
const ND_FRAME: usize = ETHERNET + IP6 + 32;

/// The sender of frames: an uplink of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sender {
    /// Its Ethernet address.
    pub mac: Mac,
    /// An IPv4 address of it, if it has one. Without one it asks as RFC 5227 probes do.
    pub ipv4: Option<Ipv4Addr>,
    /// Its link-local IPv6 address, if it has one.
    pub link_local: Option<Ipv6Addr>,
}

/// Whom a question goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum To {
    /// Everybody who listens for it, as clients ask.
    All,
    /// One host.
    Host(Mac),
}

/// The frames that tell everybody on a link that a VIP is at the sender's: a gratuitous ARP as request and as reply; an unsolicited
/// advertisement to all nodes and to all routers, which RFC 9131 has create entries. `router`: what the advertisement says of the VIP.
pub(super) fn announcements(sender: &Sender, vip: IpAddr, router: bool) -> [Vec<u8>; 2] {
    match vip {
        IpAddr::V4(vip) => {
            let request = Arp {
                operation: REQUEST,
                sender: (sender.mac, vip),
                target: (Mac([0; 6]), vip),
            };
            let reply = Arp {
                operation: REPLY,
                sender: (sender.mac, vip),
                target: (BROADCAST, vip),
            };
            [request, reply].map(|arp| arp.frame(BROADCAST))
        }
        IpAddr::V6(vip) => [ALL_NODES, ALL_ROUTERS].map(|to| {
            let flags = OVERRIDE | if router { ROUTER } else { 0 };
            let source = sender.link_local.unwrap_or(vip);
            let message = Discovery {
                kind: ADVERTISEMENT,
                flags,
                target: vip,
                option: Some(TARGET_MAC),
            };
            message.frame(sender.mac, multicast_mac(to), source, to)
        }),
    }
}

/// An ARP request to a gateway with the VIP as sender, which refreshes the gateway's entry even where it heeds no gratuitous ARP.
pub(super) fn refresh_gateway(sender: &Sender, vip: Ipv4Addr, gateway: Ipv4Addr) -> Vec<u8> {
    let arp = Arp {
        operation: REQUEST,
        sender: (sender.mac, vip),
        target: (Mac([0; 6]), gateway),
    };
    arp.frame(BROADCAST)
}

/// A question for an address, as clients ask it. `None`: the sender has no IPv6 address to ask from.
pub(super) fn question(sender: &Sender, address: IpAddr, to: To) -> Option<Vec<u8>> {
    match address {
        IpAddr::V4(address) => {
            let arp = Arp {
                operation: REQUEST,
                sender: (sender.mac, sender.ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED)),
                target: (Mac([0; 6]), address),
            };
            Some(arp.frame(match to {
                To::All => BROADCAST,
                To::Host(mac) => mac,
            }))
        }
        IpAddr::V6(address) => {
            let message = Discovery {
                kind: SOLICITATION,
                flags: 0,
                target: address,
                option: Some(SOURCE_MAC),
            };
            let (mac, destination) = match to {
                To::Host(mac) => (mac, address),
                To::All => {
                    let group = solicited_node(address);
                    (multicast_mac(group), group)
                }
            };
            Some(message.frame(sender.mac, mac, sender.link_local?, destination))
        }
    }
}

/// A probe for an address that nobody has yet: an ARP request whose sender has no address (RFC 5227, section 2.1.1), or a solicitation
/// of duplicate address detection (RFC 4862, section 5.4.2).
pub(super) fn probe(sender: &Sender, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => {
            let arp = Arp {
                operation: REQUEST,
                sender: (sender.mac, Ipv4Addr::UNSPECIFIED),
                target: (Mac([0; 6]), address),
            };
            arp.frame(BROADCAST)
        }
        IpAddr::V6(address) => {
            let message = Discovery {
                kind: SOLICITATION,
                flags: 0,
                target: address,
                option: None,
            };
            let group = solicited_node(address);
            message.frame(
                sender.mac,
                multicast_mac(group),
                Ipv6Addr::UNSPECIFIED,
                group,
            )
        }
    }
}

/// The multicast address to which solicitations for an address are sent (RFC 4291, 2.7.1).
pub(super) fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(a),
        u16::from_be_bytes([b, c]),
    )
}

/// A claim that was heard: whoever has this Ethernet address says that the address is its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Claim {
    /// The address.
    pub(super) address: IpAddr,
    /// The Ethernet address.
    pub(super) mac: Mac,
}

impl Claim {
    /// Reads a frame: an ARP reply, a gratuitous ARP request or a neighbour advertisement. Anything else is `None`, and so is what
    /// breaks the rules of RFC 4861, 7.1.2 that keep routed packets out; the kernel checks checksums only of what it takes itself.
    pub(super) fn read(frame: &[u8]) -> Option<Self> {
        let ethertype = u16::from_be_bytes(*frame.get(12..)?.first_chunk()?);
        match ethertype {
            ARP => Self::of_arp(frame.get(ETHERNET..)?),
            IPV6 => Self::of_advertisement(frame),
            _ => None,
        }
    }

    fn of_arp(arp: &[u8]) -> Option<Self> {
        let arp: &[u8; 28] = arp.first_chunk()?;
        if arp[..6] != [0, 1, 8, 0, 6, 4] {
            return None;
        }
        let operation = u16::from_be_bytes([arp[6], arp[7]]);
        let mac = Mac(*arp[8..].first_chunk()?);
        let sender: [u8; 4] = *arp[14..].first_chunk()?;
        let target: [u8; 4] = *arp[24..].first_chunk()?;
        let claims = operation == REPLY || operation == REQUEST && sender == target;
        (claims && sender != [0; 4]).then(|| Self {
            address: Ipv4Addr::from(sender).into(),
            mac,
        })
    }

    fn of_advertisement(frame: &[u8]) -> Option<Self> {
        let header: &[u8; IP6] = frame.get(ETHERNET..)?.first_chunk()?;
        let message = frame.get(ETHERNET + IP6..)?;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let message = message.get(..length)?;
        let is_valid = header[6] == ICMPV6 && header[7] == 255;
        if !is_valid || length < 24 || message[..2] != [ADVERTISEMENT, 0] {
            return None;
        }
        if checksum(header, message) != 0 {
            return None;
        }
        let target: [u8; 16] = *message.get(8..)?.first_chunk()?;
        let mac = target_mac(message.get(24..)?);
        let source = Mac(*frame.get(6..)?.first_chunk()?);
        Some(Self {
            address: Ipv6Addr::from(target).into(),
            mac: mac.unwrap_or(source),
        })
    }
}

/// The target's Ethernet address, from the options of an advertisement.
fn target_mac(mut options: &[u8]) -> Option<Mac> {
    while let [kind, units, ..] = *options {
        let length = usize::from(units) * 8;
        let option = options.get(..length).filter(|option| !option.is_empty())?;
        if kind == TARGET_MAC {
            return option.get(2..8)?.first_chunk().copied().map(Mac);
        }
        options = &options[length..];
    }
    None
}

struct Arp {
    operation: u16,
    sender: (Mac, Ipv4Addr),
    target: (Mac, Ipv4Addr),
}

impl Arp {
    fn frame(&self, to: Mac) -> Vec<u8> {
        let mut frame = Vec::with_capacity(ARP_FRAME);
        ethernet(&mut frame, to, self.sender.0, ARP);
        frame.extend([0, 1, 8, 0, 6, 4]);
        frame.extend(self.operation.to_be_bytes());
        for (mac, address) in [self.sender, self.target] {
            frame.extend(mac.0);
            frame.extend(address.octets());
        }
        frame
    }
}

/// A message of neighbour discovery.
struct Discovery {
    kind: u8,
    flags: u8,
    target: Ipv6Addr,
    /// The kind of the option that holds the sender's Ethernet address, if there is one.
    option: Option<u8>,
}

impl Discovery {
    fn frame(&self, from: Mac, to: Mac, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let mut message = vec![self.kind, 0, 0, 0, self.flags, 0, 0, 0];
        message.extend(self.target.octets());
        if let Some(option) = self.option {
            message.extend([option, 1]);
            message.extend(from.0);
        }
        let mut header = Vec::with_capacity(IP6);
        header.extend([0x60, 0, 0, 0]);
        header.extend(u16::try_from(message.len()).unwrap_or(0).to_be_bytes());
        header.extend([ICMPV6, 255]);
        header.extend(source.octets());
        header.extend(destination.octets());
        if let Some(header) = header.first_chunk() {
            let sum = checksum(header, &message).to_be_bytes();
            message[2..4].copy_from_slice(&sum);
        }
        let mut frame = Vec::with_capacity(ND_FRAME);
        ethernet(&mut frame, to, from, IPV6);
        frame.extend(header);
        frame.extend(message);
        frame
    }
}

fn ethernet(frame: &mut Vec<u8>, to: Mac, from: Mac, ethertype: u16) {
    frame.extend(to.0);
    frame.extend(from.0);
    frame.extend(ethertype.to_be_bytes());
}

/// The Ethernet address of an IPv6 multicast group (RFC 2464, 7).
fn multicast_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    Mac([0x33, 0x33, a, b, c, d])
}

/// The checksum of an ICMPv6 message (RFC 4443, 2.3); 0 over a message whose checksum is right.
fn checksum(header: &[u8; IP6], message: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u32 {
        let words = bytes.chunks(2);
        words
            .map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)))
            .sum()
    };
    let length = u32::try_from(message.len()).unwrap_or(0);
    let mut sum = words(&header[8..]) + length + u32::from(ICMPV6) + words(message);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn sender() -> Sender {
        Sender {
            mac: OWN,
            ipv4: Some(Ipv4Addr::new(192, 0, 2, 1)),
            link_local: Some("fe80::1".parse().unwrap()),
        }
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn whoever_announces_is_heard() {
        for vip in ["203.0.113.7", "2001:db8::7"].map(address) {
            for frame in announcements(&sender(), vip, false) {
                let claim = Claim {
                    address: vip,
                    mac: OWN,
                };
                assert_eq!(Claim::read(&frame), Some(claim), "{frame:02x?}");
            }
        }
    }

    #[test]
    fn a_question_claims_nothing() {
        for vip in ["203.0.113.7", "2001:db8::7"].map(address) {
            for to in [To::All, To::Host(OTHER)] {
                let frame = question(&sender(), vip, to).unwrap();
                assert_eq!(Claim::read(&frame), None);
            }
        }
        let frame = refresh_gateway(&sender(), [203, 0, 113, 7].into(), [192, 0, 2, 254].into());
        assert_eq!(Claim::read(&frame), None);
    }

    #[test]
    fn questions_are_the_ones_that_clients_ask() {
        let frame = question(&sender(), address("203.0.113.7"), To::All).unwrap();
        let expected = "ffffffffffff020000000001080600010800060400010200000000\
                        01c00002010000000000 00cb007107";
        assert_eq!(hex(&frame), expected.replace(' ', ""));
        let frame = question(&sender(), address("2001:db8::aa:bbcc"), To::All).unwrap();
        assert_eq!(hex(&frame[..6]), "3333ffaabbcc");
        assert_eq!(
            solicited_node("2001:db8::aa:bbcc".parse().unwrap()),
            "ff02::1:ffaa:bbcc".parse::<Ipv6Addr>().unwrap()
        );
        // Neighbours that are known are asked at their own address.
        let frame = question(&sender(), address("2001:db8::aa:bbcc"), To::Host(OTHER)).unwrap();
        assert_eq!(hex(&frame[..6]), "020000000002");
        assert_eq!(
            hex(&frame[38..54]),
            "20010db80000000000000000 00aabbcc".replace(' ', "")
        );
    }

    #[test]
    fn probes_name_no_sender() {
        let frame = probe(&sender(), address("203.0.113.7"));
        let expected =
            "ffffffffffff0200000000010806000108000604000102000000000100000000000000000000cb007107";
        assert_eq!(hex(&frame), expected);
        assert_eq!(Claim::read(&frame), None);
        let frame = probe(&sender(), address("2001:db8::aa:bbcc"));
        assert_eq!(hex(&frame[..6]), "3333ffaabbcc");
        assert_eq!(frame[ETHERNET + 8..ETHERNET + 24], [0; 16], "its source");
        assert_eq!(frame.len(), ETHERNET + IP6 + 24, "it has no option");
        let header = frame[ETHERNET..].first_chunk().unwrap();
        assert_eq!(checksum(header, &frame[ETHERNET + IP6..]), 0);
    }

    #[test]
    fn without_an_address_ipv4_is_asked_as_a_probe_and_ipv6_not_at_all() {
        let sender = Sender {
            ipv4: None,
            link_local: None,
            ..sender()
        };
        let frame = question(&sender, address("203.0.113.7"), To::All).unwrap();
        assert_eq!(frame[28..32], [0; 4]);
        assert_eq!(question(&sender, address("2001:db8::7"), To::All), None);
    }

    #[test]
    fn an_advertisement_that_was_routed_or_is_damaged_says_nothing() {
        let [good, _] = announcements(&sender(), address("2001:db8::7"), true);
        assert!(Claim::read(&good).is_some());
        for at in [ETHERNET + 7, ETHERNET + IP6 + 2, ETHERNET + IP6 + 20] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(Claim::read(&bad), None, "byte {at}");
        }
        for length in 0..good.len() {
            assert_eq!(Claim::read(&good[..length]), None, "{length} bytes");
        }
        let [arp, _] = announcements(&sender(), address("203.0.113.7"), false);
        for length in 0..arp.len() {
            assert_eq!(Claim::read(&arp[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn an_advertisement_without_its_option_is_the_senders() {
        let [mut frame, _] = announcements(&sender(), address("2001:db8::7"), false);
        frame[ETHERNET + IP6 + 24] = 200;
        let header = *frame[ETHERNET..].first_chunk().unwrap();
        frame[ETHERNET + IP6 + 2..][..2].copy_from_slice(&[0, 0]);
        let sum = checksum(&header, &frame[ETHERNET + IP6..]).to_be_bytes();
        frame[ETHERNET + IP6 + 2..][..2].copy_from_slice(&sum);
        frame[6..12].copy_from_slice(&OTHER.0);
        assert_eq!(Claim::read(&frame).map(|claim| claim.mac), Some(OTHER));
        // An option of no length would be read for ever.
        frame[ETHERNET + IP6 + 25] = 0;
        frame[ETHERNET + IP6 + 2..][..2].copy_from_slice(&[0, 0]);
        let sum = checksum(&header, &frame[ETHERNET + IP6..]).to_be_bytes();
        frame[ETHERNET + IP6 + 2..][..2].copy_from_slice(&sum);
        assert_eq!(Claim::read(&frame).map(|claim| claim.mac), Some(OTHER));
    }

    fn hex(bytes: &[u8]) -> String {
        let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
        digits.collect::<Vec<_>>().concat()
    }
}
