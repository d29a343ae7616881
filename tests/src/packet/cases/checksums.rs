//! Checksums at the edges of one's complement arithmetic.

use sluice_abi::{ForwardingMode, TCP, UDP};
use sluice_packet::Verdict;

use super::{Net, forwarded, nets};
use crate::packet::{
    case::Case,
    checksum::is_valid,
    frame::{Checksum, DIRECTOR_MAC, Frame, SERVER_MAC, SYN, tcp, udp},
    machine::Program,
    setup::{Server, Setup},
};

/// The cases of this module.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in nets() {
        for mode in [ForwardingMode::Nat, ForwardingMode::FullNat] {
            cases.push(every_value(&net, mode, TCP));
            cases.push(every_value(&net, mode, UDP));
            cases.push(no_checksum(&net, mode));
            cases.push(wrong_stays_wrong(&net, mode));
        }
        cases.push(local_zero_result(&net));
    }
    cases.push(ip_header());
    cases
}

fn nat_setup(net: &Net, mode: ForwardingMode, protocol: u8) -> Setup {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, protocol);
    setup.only_server(&vip_port, &Server::new(mode, net.server, net.own));
    setup
}

fn rewritten(net: &Net, mode: ForwardingMode, frame: &Frame) -> Frame {
    let forwarded = forwarded(frame).to(net.server);
    if mode == ForwardingMode::FullNat {
        forwarded.from(std::net::SocketAddr::new(
            net.own,
            sluice_abi::FULLNAT_PORT_MIN,
        ))
    } else {
        forwarded
    }
}

/// The payload word that brings the checksum of `frame` (whose payload is 2 zero bytes) to `wanted`.
fn payload_for(frame: &Frame, wanted: u16) -> [u8; 2] {
    let now = field(frame);
    // ~now + word = ~wanted in one's complement arithmetic.
    let word = u32::from(!wanted) + u32::from(now);
    let word = (word & 0xffff) + (word >> 16);
    [(word >> 8).to_be_bytes()[3], word.to_be_bytes()[3]]
}

/// The transport checksum of a frame without options.
fn field(frame: &Frame) -> u16 {
    let bytes = frame.bytes();
    let ip = if frame.ip.source.is_ipv4() { 20 } else { 40 };
    let at = 14 + ip + if frame.protocol == TCP { 16 } else { 6 };
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The checksum before or after is at, or next to, the two ends of its range. UDP sends what would be 0 as 0xffff.
fn every_value(net: &Net, mode: ForwardingMode, protocol: u8) -> Case {
    let setup = nat_setup(net, mode, protocol);
    let frame = if protocol == TCP {
        tcp(net.client, net.vip, SYN)
    } else {
        udp(net.client, net.vip)
    };
    let frame = frame.payload(&[0, 0]);
    let after = rewritten(net, mode, &frame);
    let title = format!("{mode:?} {} checksums, protocol {protocol}", net.family);
    let mut case = Case::new(title, setup);
    for value in [
        0x0000, 0x0001, 0x00ff, 0x0100, 0x7fff, 0xff00, 0xfffe, 0xffff,
    ] {
        for base in [&frame, &after] {
            let payload = payload_for(base, value);
            let frame = frame.clone().payload(&payload);
            case = case.xdp(&frame, Verdict::Tx, &rewritten(net, mode, &frame));
        }
    }
    case
}

/// RFC 768: no checksum stays none over IPv4. RFC 8200, section 8.1: over IPv6 there must be one; a sender that left it
/// out gets it back left out.
fn no_checksum(net: &Net, mode: ForwardingMode) -> Case {
    let setup = nat_setup(net, mode, UDP);
    let frame = udp(net.client, net.vip).checksum(Checksum::Fixed(0));
    let expected = rewritten(net, mode, &frame);
    Case::new(format!("{mode:?} {} without checksum", net.family), setup).xdp(
        &frame,
        Verdict::Tx,
        &expected,
    )
}

/// A damaged packet must not be repaired: the server has to see that it is damaged.
fn wrong_stays_wrong(net: &Net, mode: ForwardingMode) -> Case {
    let setup = nat_setup(net, mode, TCP);
    let frame = tcp(net.client, net.vip, SYN);
    let right_before = field(&frame);
    let right_after = field(&rewritten(net, mode, &frame));
    let error = 0x0102;
    let add = |value: u16| {
        let (sum, carry) = value.overflowing_add(error);
        Checksum::Fixed(sum + u16::from(carry))
    };
    let damaged = frame.checksum(add(right_before));
    let expected = rewritten(net, mode, &damaged).checksum(add(right_after));
    Case::new(format!("{mode:?} {} damaged", net.family), setup).xdp(
        &damaged,
        Verdict::Tx,
        &expected,
    )
}

/// tc rewrites by the kernel's helper instead, which must hold to the same rules.
fn local_zero_result(net: &Net) -> Case {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, UDP);
    let server = Server::new(ForwardingMode::Nat, net.server, net.own).by(sluice_abi::Path::Local);
    setup.only_server(&vip_port, &server);
    let request = udp(net.client, net.vip);
    let reply = udp(net.server, net.client)
        .macs(DIRECTOR_MAC, SERVER_MAC)
        .payload(&[0, 0]);
    let restored = reply.clone().from(net.vip);
    let mut case = Case::new(format!("{} replies at tc egress", net.family), setup).xdp(
        &request,
        Verdict::Up,
        &request.clone().to(net.server),
    );
    for value in [0x0001, 0xfffe, 0xffff] {
        for base in [&reply, &restored] {
            let reply = reply.clone().payload(&payload_for(base, value));
            let restored = reply.clone().from(net.vip);
            case = case.run(Program::Egress, &reply, Verdict::Up, &restored);
        }
    }
    let none = reply.checksum(Checksum::Fixed(0));
    case.run(
        Program::Egress,
        &none,
        Verdict::Up,
        &none.clone().from(net.vip),
    )
}

/// RFC 1624: the IPv4 header checksum over all values near the ends, as TTL and destination change.
fn ip_header() -> Case {
    let net = nets()[0];
    let setup = nat_setup(&net, ForwardingMode::Nat, TCP);
    let mut case = Case::new("IPv4 header checksums", setup);
    let frame = tcp(net.client, net.vip, SYN);
    let header = |frame: &Frame| u16::from_be_bytes([frame.bytes()[24], frame.bytes()[25]]);
    for wanted in [0x0000_u16, 0x0001, 0x00ff, 0x0100, 0xfeff, 0xff00, 0xfffe] {
        for after in [false, true] {
            let base = if after {
                rewritten(&net, ForwardingMode::Nat, &frame)
            } else {
                frame.clone()
            };
            let identification = u32::from(!wanted) + u32::from(header(&base));
            let identification = (identification & 0xffff) + (identification >> 16);
            let mut frame = frame.clone();
            frame.ip.identification = u16::try_from(identification).unwrap_or(0);
            let expected = rewritten(&net, ForwardingMode::Nat, &frame);
            assert!(is_valid(&expected.bytes()[14..34]));
            case = case.xdp(&frame, Verdict::Tx, &expected);
        }
    }
    case
}
