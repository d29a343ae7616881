//! Random packets about who has a VIP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    Rng,
    world::{CLIENTS, Family, Virtual, client, vip},
};
use crate::packet::{
    case::ToBytes,
    frame::{Checksum, DIRECTOR_MAC, ROUTER_MAC, SERVER_MAC},
    machine::Program,
    neighbour::{Arp, BROADCAST, Neighbour, link_layer_address},
};

/// A question or a statement about the virtual server's address.
pub(super) struct Ask {
    /// Which program gets it.
    pub(super) program: Program,
    /// The frame.
    pub(super) frame: Vec<u8>,
    /// Whether it is clear what the frame is: no bit of it was flipped.
    pub(super) clear: bool,
}

pub(super) fn ask(rng: &mut Rng, this: &Virtual) -> Ask {
    let is_said = rng.percent(30);
    let address = if rng.percent(90) {
        this.vip_port.vip.ip()
    } else {
        vip(this.target.family, 200, 80).ip()
    };
    let mut bytes = match address {
        IpAddr::V4(address) => arp(rng, address, is_said).to_bytes(),
        IpAddr::V6(address) => neighbour(rng, address, is_said).to_bytes(),
    };
    let how = rng.below(20);
    match how {
        FLIP => {
            let at = rng.below(u32::try_from(bytes.len()).unwrap_or(1)) as usize;
            bytes[at] ^= 1 << rng.below(8);
        }
        1 => bytes.truncate(14 + rng.below(72) as usize),
        _ => {}
    }
    let program = match (is_said, rng.below(10)) {
        (_, 0) => Program::Ingress,
        (true, 1..9) | (false, 1) => Program::Egress,
        _ => Program::Xdp,
    };
    Ask {
        program,
        frame: bytes,
        clear: how != FLIP,
    }
}

/// The number by which a bit anywhere is flipped.
const FLIP: u32 = 0;

fn asker(rng: &mut Rng, family: Family) -> IpAddr {
    client(family, rng.below(CLIENTS), 0).ip()
}

fn arp(rng: &mut Rng, address: Ipv4Addr, is_said: bool) -> Arp {
    let asker = match asker(rng, Family::V4) {
        IpAddr::V4(asker) if rng.percent(80) => asker,
        _ => Ipv4Addr::UNSPECIFIED,
    };
    let ask = Arp::request(asker, address);
    let mut arp = if is_said { ask.reply() } else { ask };
    arp.padding = rng.below(19) as usize;
    match rng.below(16) {
        0 => arp.sender = arp.target,
        1 => arp.operation = u16::from(rng.byte()),
        2 => arp.format[rng.below(6) as usize] = rng.byte(),
        3 => arp.source_mac = BROADCAST,
        4 => arp.sender_mac = BROADCAST,
        5 => arp.destination_mac = SERVER_MAC,
        6 | 7 => arp.destination_mac = DIRECTOR_MAC,
        _ => {}
    }
    arp
}

fn neighbour(rng: &mut Rng, address: Ipv6Addr, is_said: bool) -> Neighbour {
    let asker = match asker(rng, Family::V6) {
        IpAddr::V6(asker) if rng.percent(80) => asker,
        _ => Ipv6Addr::UNSPECIFIED,
    };
    let ask = Neighbour::solicitation(asker, address);
    let mut packet = if is_said { ask.advertisement() } else { ask };
    let has_source = packet.source.is_unspecified() == rng.percent(10);
    if !is_said && !has_source {
        packet.options.clear();
    }
    if rng.percent(30) {
        let units = 1 + rng.below(9);
        let mut option = vec![14, u8::try_from(units).unwrap_or(1)];
        option.resize(8 * units as usize, rng.byte());
        packet.options.extend(option);
    }
    if rng.percent(5) {
        packet.options.extend(link_layer_address(1, ROUTER_MAC));
    }
    if rng.percent(30) {
        packet = packet.unicast();
    }
    packet.padding = rng.below(4) as usize;
    match rng.below(20) {
        0 => packet.source = packet.target,
        1 => packet.hop_limit = rng.byte(),
        2 => packet.code = rng.byte(),
        3 => packet.kind = rng.byte(),
        4 => packet.checksum = Checksum::Fixed(*rng.pick(&[0, 0xffff, 0x1234])),
        5 => packet.excess = i16::from(rng.byte()) - 128,
        6 => packet.source_mac = BROADCAST,
        7 => packet.destination_mac = SERVER_MAC,
        8 => {
            let mut octets = packet.destination.octets();
            octets[rng.below(16) as usize] ^= 1 << rng.below(8);
            packet.destination = octets.into();
        }
        9 => {
            let length = rng.below(24) as usize;
            packet.options.resize(length, 0);
        }
        _ => {}
    }
    packet
}
