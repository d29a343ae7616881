//! What clients are told whose flow no server takes.

use std::net::IpAddr;

use sluice_abi::{DropReason, ForwardingMode, REFUSES, Stat, TCP, UDP};
use sluice_packet::Verdict;

use super::{Net, nets};
use crate::packet::{
    case::Case,
    checksum::checksum,
    frame::{ACK, Checksum, FIN, Frame, PEER_MAC, RST, SYN, tcp, udp},
    machine::Program,
    setup::{Server, Setup},
};

/// The cases of this module.
pub fn cases() -> Vec<Case> {
    let of_net = |net: Net| [resets(&net), unreachables(&net), told_by_one(&net)];
    nets().into_iter().flat_map(of_net).collect()
}

/// A virtual server that refuses, and has a server that takes no flows.
fn setup(net: &Net, protocol: u8) -> Setup {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, protocol);
    setup.only_server(
        &vip_port,
        &Server::new(ForwardingMode::Dr, net.server, net.own),
    );
    setup.ring(vip_port.head, &[0]);
    setup.heads.entry(vip_port.head).or_default().flags |= REFUSES;
    setup
}

/// The reset that answers a frame.
pub(super) fn reset_of(frame: &Frame, sequence: u32, acknowledgement: u32, flags: u8) -> Frame {
    let answer = frame.answer();
    let answer = answer.macs(frame.destination_mac, frame.source_mac);
    Frame {
        sequence,
        acknowledgement,
        window: 0,
        ..answer.flags(flags).payload(b"")
    }
}

/// RFC 9293, section 3.10.7.1.
fn resets(net: &Net) -> Case {
    let packet = |flags| tcp(net.client, net.vip, flags);
    let (syn, bare, last) = (packet(SYN), packet(SYN).payload(b""), packet(FIN));
    let data = packet(ACK);
    let case = Case::new(format!("{} resets", net.family), setup(net, TCP));
    let case = case
        .xdp(&syn, Verdict::Tx, &reset_of(&syn, 0, 1_007, RST | ACK))
        .xdp(&bare, Verdict::Tx, &reset_of(&bare, 0, 1_001, RST | ACK))
        .xdp(&last, Verdict::Tx, &reset_of(&last, 0, 1_007, RST | ACK))
        .xdp(&data, Verdict::Tx, &reset_of(&data, 2_000, 0, RST));
    let case = [RST, RST | ACK].into_iter().fold(case, |case, flags| {
        case.drops(Program::Xdp, &packet(flags), DropReason::NoServer)
    });
    case.check("four are counted", |state| state.stat(Stat::Refused) == 4)
}

/// RFC 792; RFC 4443, section 3.1.
fn unreachables(net: &Net) -> Case {
    let plain = udp(net.client, net.vip);
    let long = plain.clone().payload(&[7; 200]);
    let short = plain.clone().payload(b"");
    let mut case = Case::new(format!("{} unreachables", net.family), setup(net, UDP));
    for frame in [&plain, &long, &short] {
        case = case.xdp(frame, Verdict::Tx, &unreachable(frame));
    }
    let mut optional = plain;
    if net.vip.is_ipv4() {
        optional.ip.options = vec![1; 4];
        case = case.drops(Program::Xdp, &optional, DropReason::NoServer);
    }
    case.check("three are counted", |state| state.stat(Stat::Refused) == 3)
}

/// The front of a datagram in an error of ICMP.
fn unreachable(frame: &Frame) -> Frame {
    let (protocol, kind, quoted) = match frame.ip.source {
        IpAddr::V4(_) => (1, [3, 3], 28),
        IpAddr::V6(_) => (58, [1, 4], 48),
    };
    let quote = frame.inner_packet()[..quoted].to_vec();
    let mut covered = Vec::new();
    if let (IpAddr::V6(source), IpAddr::V6(destination)) = (frame.ip.source, frame.ip.destination) {
        covered.extend(source.octets());
        covered.extend(destination.octets());
        covered.extend([0, 0]);
        covered.extend(u16::try_from(8 + quoted).unwrap_or_default().to_be_bytes());
        covered.extend([0, 0, 0, protocol]);
    }
    covered.extend([kind[0], kind[1], 0, 0, 0, 0, 0, 0]);
    covered.extend(&quote);
    // The first words of the packet are where ports would be.
    let answer = frame.answer().macs(frame.destination_mac, frame.source_mac);
    Frame {
        protocol,
        source_port: u16::from_be_bytes(kind),
        destination_port: checksum(&covered),
        flags: 0,
        payload: quote,
        checksum: Checksum::Fixed(0),
        ..answer
    }
}

/// Whoever balanced a packet first would have told its sender.
fn told_by_one(net: &Net) -> Case {
    let mut setup = setup(net, TCP);
    setup.peer(PEER_MAC);
    let frame = tcp(net.client, net.vip, SYN);
    let balanced = frame.clone().macs(PEER_MAC, frame.destination_mac);
    Case::new(
        format!("{} of two directors one refuses", net.family),
        setup,
    )
    .drops(Program::Xdp, &balanced, DropReason::NotMyServer)
}
