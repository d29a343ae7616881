//! Every reason for dropping a packet, and right beside it the packet that is just not dropped.

use std::net::SocketAddr;

use sluice_abi::{
    ClaimData, ClaimState, ConfigWord, DropReason, FULLNAT_PORT_MIN, ForwardingMode, Path,
    RingWord, ServerWord, Stat, TCP, UDP, VipWord,
};
use sluice_packet::{AlignedMac, Route, Verdict};

use super::{MODES, Net, PROTOCOLS, first, forwarded, nets};
use crate::packet::{
    case::Case,
    frame::{ACK, DIRECTOR_MAC, Frame, MORE_FRAGMENTS, SERVER_MAC, SYN, tcp, transport, udp},
    machine::Program,
    setup::{ALWAYS_FRESH, Claim, IFINDEX, Server, Setup, VipPort},
};

/// The cases of this module.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in nets() {
        cases.extend([
            no_server(&net),
            server_gone(&net),
            unresolved(&net),
            no_headroom(&net),
            too_big(&net),
            bad_table(&net),
            no_virtual_server(&net),
            no_port(&net),
            half_open_limit(&net),
            port_in_use(&net),
            replies(&net),
            fragments(&net),
        ]);
        for (protocol, _) in PROTOCOLS {
            cases.push(truncated(&net, protocol));
            cases.extend(MODES.map(|mode| ttl(&net, mode, protocol)));
        }
    }
    cases
}

fn setup_with(net: &Net, mode: ForwardingMode, protocol: u8) -> (Setup, VipPort, u32) {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, protocol);
    let id = setup.only_server(&vip_port, &Server::new(mode, net.server, net.own));
    (setup, vip_port, id)
}

/// A frame that ends before its headers do, or before the IP packet does.
fn truncated(net: &Net, protocol: u8) -> Case {
    let (setup, ..) = setup_with(net, ForwardingMode::Dr, protocol);
    let frame = first(net.client, net.vip, protocol).payload(b"");
    let bytes = frame.bytes();
    let headers = bytes.len() - if protocol == TCP { 6 } else { 0 };
    let mut case = Case::new(format!("{} truncated {protocol}", net.family), setup).xdp(
        &frame,
        Verdict::Tx,
        &forwarded(&frame),
    );
    for length in [headers - 1, headers - 4, headers - 7] {
        case = case.drops(
            Program::Xdp,
            &bytes[..length].to_vec(),
            DropReason::Truncated,
        );
    }
    let whole = frame.payload(b"12345678").bytes();
    let cut = whole[..whole.len() - 1].to_vec();
    case.drops(Program::Xdp, &cut, DropReason::Truncated)
}

/// RFC 791, section 3.2, and RFC 8200, section 4.5: only a first fragment has ports, and not even that is balanced.
fn fragments(net: &Net) -> Case {
    let (setup, ..) = setup_with(net, ForwardingMode::Tun, UDP);
    let elsewhere = udp(net.client, net.other_client);
    let case = Case::new(format!("{} fragments", net.family), setup);
    if net.vip.is_ipv6() {
        let to_vip = transport(net.client, net.vip, FRAGMENT_HEADER);
        let to_other = transport(net.client, net.other_client, FRAGMENT_HEADER);
        return case
            .drops(Program::Xdp, &to_vip, DropReason::Fragment)
            .passes(Program::Xdp, &to_other);
    }
    let mut case = case;
    for fragment in [MORE_FRAGMENTS, MORE_FRAGMENTS | 0xb9, 0xb9, 1] {
        let mut frame = udp(net.client, net.vip);
        frame.ip.fragment = fragment;
        case = case.drops(Program::Xdp, &frame, DropReason::Fragment);
        let mut frame = elsewhere.clone();
        frame.ip.fragment = fragment;
        case = case.passes(Program::Xdp, &frame);
    }
    case
}

/// The next header of IPv6 fragments.
const FRAGMENT_HEADER: u8 = 44;

/// RFC 1812, section 5.3.1, and RFC 8200, section 3: whoever forwards takes one off, and what is left must not be 0.
fn ttl(net: &Net, mode: ForwardingMode, protocol: u8) -> Case {
    let (setup, _, id) = setup_with(net, mode, protocol);
    let frame = first(net.client, net.vip, protocol);
    let expected = super::at_server(net, mode, &frame.clone().ttl(2));
    assert_eq!(expected.ip.ttl, 1);
    Case::new(format!("{mode:?} {} TTL {protocol}", net.family), setup)
        .drops(Program::Xdp, &frame.clone().ttl(0), DropReason::TtlExceeded)
        .drops(Program::Xdp, &frame.clone().ttl(1), DropReason::TtlExceeded)
        .xdp(&frame.ttl(2), Verdict::Tx, &expected)
        .check(
            "dropped packets are not counted as the server's",
            move |state| {
                state
                    .counters
                    .get(&id)
                    .is_some_and(|counters| counters[0] == 1)
            },
        )
}

fn no_server(net: &Net) -> Case {
    let (setup, vip_port, id) = setup_with(net, ForwardingMode::Dr, TCP);
    let frame = tcp(net.client, net.vip, SYN);
    let ring = vip_port.head;
    Case::new(format!("{} no server", net.family), setup)
        .then(move |setup| setup.ring(ring, &[0]))
        .drops(Program::Xdp, &frame, DropReason::NoServer)
        .then(move |setup| {
            setup.ring(ring, &[id]);
            setup.rings.insert(ring, RingWord::default());
        })
        .drops(Program::Xdp, &frame, DropReason::NoServer)
        .then(move |setup| {
            setup.ring(ring, &[id]);
            setup.heads.entry(ring).or_default().pools[0].threshold = 0;
        })
        .drops(Program::Xdp, &frame, DropReason::NoServer)
        .then(move |setup| setup.heads.entry(ring).or_default().pools[0].threshold = 1 << 31)
        .xdp(&frame, Verdict::Tx, &forwarded(&frame))
}

fn server_gone(net: &Net) -> Case {
    let (setup, _, id) = setup_with(net, ForwardingMode::Dr, UDP);
    let frame = udp(net.client, net.vip);
    Case::new(format!("{} server gone", net.family), setup)
        .then(move |setup| setup.change_server(id, |_| ServerWord::absent(1)))
        .drops(Program::Xdp, &frame, DropReason::ServerGone)
}

/// A server whose next hop is lost, for new flows and for old ones.
fn unresolved(net: &Net) -> Case {
    let (setup, _, id) = setup_with(net, ForwardingMode::Dr, TCP);
    let with_path = move |path| {
        move |setup: &mut Setup| {
            setup.change_server(id, |word| {
                ServerWord::new(word.slot(), word.epoch(), path, false)
            });
        }
    };
    let (old, new) = (
        tcp(net.client, net.vip, SYN),
        tcp(net.other_client, net.vip, SYN),
    );
    Case::new(format!("{} unresolved", net.family), setup)
        .xdp(&old, Verdict::Tx, &forwarded(&old))
        .then(with_path(Path::Unresolved))
        .drops(
            Program::Xdp,
            &old.clone().flags(ACK),
            DropReason::NextHopUnresolved,
        )
        .drops(Program::Xdp, &new, DropReason::NextHopUnresolved)
        .drops(Program::Ingress, &new, DropReason::NextHopUnresolved)
        .then(with_path(Path::Xdp))
        .xdp(&new, Verdict::Tx, &forwarded(&new))
}

fn no_headroom(net: &Net) -> Case {
    let (setup, ..) = setup_with(net, ForwardingMode::Tun, UDP);
    let frame = udp(net.client, net.vip);
    Case::new(format!("{} no headroom", net.family), setup)
        .drops_without_headroom(&frame, DropReason::NoHeadroom)
        .xdp(
            &frame,
            Verdict::Tx,
            &super::at_server(net, ForwardingMode::Tun, &frame),
        )
}

/// The packet with its outer header has to fit the MTU of the way, to the byte.
fn too_big(net: &Net) -> Case {
    let mut setup = Setup::director();
    let mut case_frames = Vec::new();
    for (mode, vip) in [
        (ForwardingMode::Tun, net.vip),
        (ForwardingMode::Nat, net.other_vip),
    ] {
        let vip_port = setup.virtual_server(vip, UDP);
        setup.only_server(&vip_port, &Server::new(mode, net.server, net.own));
        let ip = if vip.is_ipv6() { 40 } else { 20 };
        let outer = if mode == ForwardingMode::Tun { ip } else { 0 };
        let fits = udp(net.client, vip).payload(&vec![0x5a; 1500 - ip - 8 - outer]);
        let too_big = udp(net.other_client, vip).payload(&vec![0x5a; 1500 - ip - 8 - outer + 1]);
        case_frames.push((fits.clone(), super::at_server(net, mode, &fits), too_big));
    }
    let mut case = Case::new(format!("{} too big", net.family), setup);
    for (fits, expected, too_big) in case_frames {
        case = case.xdp(&fits, Verdict::Tx, &expected).drops(
            Program::Xdp,
            &too_big,
            DropReason::TooBig,
        );
    }
    case
}

/// Tables that contradict the packet: none of these happens by the agent's hand, and none may crash or go astray.
fn bad_table(net: &Net) -> Case {
    let (setup, vip_port, id) = setup_with(net, ForwardingMode::Tun, UDP);
    let frame = udp(net.client, net.vip);
    let (vip, index, head) = (net.vip, vip_port.index, vip_port.head);
    Case::new(format!("{} bad table", net.family), setup)
        .then(move |setup| setup.change_record(id, |record| record.facts.0 ^= 1 << 44))
        .drops(Program::Xdp, &frame, DropReason::BadTable)
        .then(move |setup| {
            setup.change_record(id, |record| {
                record.facts.0 ^= 1 << 44;
                record.facts.0 &= !(15 << 40);
            });
        })
        .drops(Program::Xdp, &frame, DropReason::BadTable)
        .then(move |setup| setup.change_record(id, |record| record.facts.0 |= 9 << 40))
        .drops(Program::Xdp, &frame, DropReason::BadTable)
        .then(move |setup| setup.heads.entry(head).or_default().scheduler = 200)
        .drops(
            Program::Xdp,
            &udp(net.other_client, vip),
            DropReason::BadTable,
        )
        .then(move |setup| setup.set_vip(vip, UDP, VipWord::new(index, 1000, 0)))
        .drops(
            Program::Xdp,
            &udp(net.other_client, vip),
            DropReason::BadTable,
        )
        .then(move |setup| {
            setup.change_record(id, |record| record.facts.0 ^= (9 ^ 3) << 40);
            setup.heads.entry(head).or_default().scheduler = 0;
            setup.set_vip(vip, UDP, VipWord::new(index, head, 0));
        })
        .xdp(&frame, Verdict::Tx, &forwarded(&frame))
}

/// A VIP's other ports and protocols are dropped, other addresses pass.
fn no_virtual_server(net: &Net) -> Case {
    let (setup, ..) = setup_with(net, ForwardingMode::Tun, TCP);
    let icmp = if net.vip.is_ipv6() { 58 } else { 1 };
    let other_port = SocketAddr::new(net.vip.ip(), 81);
    let mut case = Case::new(format!("{} no virtual server", net.family), setup)
        .drops(
            Program::Xdp,
            &tcp(net.client, other_port, SYN),
            DropReason::NoVirtualServer,
        )
        .drops(
            Program::Xdp,
            &udp(net.client, net.vip),
            DropReason::NoVirtualServer,
        )
        .drops(
            Program::Ingress,
            &udp(net.client, net.vip),
            DropReason::NoVirtualServer,
        );
    for protocol in [icmp, 132, 50] {
        let frame = transport(net.client, net.vip, protocol);
        case = case
            .drops(Program::Xdp, &frame, DropReason::NoVirtualServer)
            .passes(Program::Xdp, &frame.to(net.other_vip));
    }
    case.passes(Program::Xdp, &tcp(net.client, net.other_vip, SYN))
}

/// All ports that a flow tries are taken. A random number of 0 means a stride of 1 in a number of 16 bits: the 32
/// tries meet the first 13 ports.
fn no_port(net: &Net) -> Case {
    let (mut setup, ..) = setup_with(net, ForwardingMode::FullNat, TCP);
    let data = ClaimData::new(1, 1, ClaimState::Established, ALWAYS_FRESH);
    for port in FULLNAT_PORT_MIN..FULLNAT_PORT_MIN + 13 {
        setup.claim(Claim {
            server: net.server,
            own: SocketAddr::new(net.own, port),
            client: net.other_client,
            vip: net.vip,
            protocol: TCP,
            data,
        });
    }
    let frame = tcp(net.client, net.vip, SYN);
    // 0x8000 is the middle of the range: 4096 + (0x8000 * 25904 >> 16) = 17048.
    let expected = forwarded(&frame)
        .to(net.server)
        .from(SocketAddr::new(net.own, 17_048));
    Case::new(format!("{} no port", net.family), setup)
        .drops(Program::Xdp, &frame, DropReason::NoPort)
        .random(0x8000)
        .xdp(&frame, Verdict::Tx, &expected)
        .check("one port was claimed", |state| {
            state.stat(Stat::PortClaimed) == 1
        })
}

/// A VIP port may begin two flows at once, and one in four seconds. Another one is not concerned, and a flow that is
/// confirmed does not count.
fn half_open_limit(net: &Net) -> Case {
    let (mut setup, ..) = setup_with(net, ForwardingMode::FullNat, UDP);
    let other_vip = SocketAddr::new(net.vip.ip(), net.vip.port() + 1);
    let other = setup.virtual_server(other_vip, UDP);
    let server = Server::new(ForwardingMode::FullNat, net.server, net.own);
    setup.only_server(&other, &server);
    setup.config(ConfigWord::NewFlowInterval, 4_000_000_000);
    let client = |n| SocketAddr::new(net.client.ip(), net.client.port() + n);
    let flow = |n, port| {
        let frame = udp(client(n), net.vip);
        let translated = forwarded(&frame)
            .to(net.server)
            .from(SocketAddr::new(net.own, port));
        (frame, translated)
    };
    // The middle of the range, and ports that lie behind it.
    let (one, two, three, four) = (
        flow(1, FULLNAT_PORT_MIN),
        flow(2, 17_048),
        flow(3, 17_049),
        flow(4, 17_050),
    );
    let elsewhere = udp(client(5), other_vip);
    let elsewhere_translated = forwarded(&elsewhere)
        .to(net.server)
        .from(SocketAddr::new(net.own, 17_049));
    Case::new(format!("{} half-open limit", net.family), setup)
        .xdp(&one.0, Verdict::Tx, &one.1)
        .random(0x8000)
        .xdp(&two.0, Verdict::Tx, &two.1)
        .drops(Program::Xdp, &three.0, DropReason::HalfOpenLimit)
        .xdp(&elsewhere, Verdict::Tx, &elsewhere_translated)
        .xdp(&one.0, Verdict::Tx, &one.1)
        .after_seconds(2)
        .drops(Program::Xdp, &three.0, DropReason::HalfOpenLimit)
        .xdp(&one.0, Verdict::Tx, &one.1)
        .xdp(&four.0, Verdict::Tx, &four.1)
        .drops(Program::Xdp, &three.0, DropReason::HalfOpenLimit)
}

/// NAT: one server of two virtual servers cannot tell two connections from one client port apart.
fn port_in_use(net: &Net) -> Case {
    let (mut setup, _, id) = setup_with(net, ForwardingMode::Nat, TCP);
    let other = setup.virtual_server(net.other_vip, TCP);
    setup.only_server(
        &other,
        &Server::new(ForwardingMode::Nat, net.server, net.own),
    );
    let (one, two) = (
        tcp(net.client, net.vip, SYN),
        tcp(net.client, net.other_vip, SYN),
    );
    let at_server = |frame: &Frame| forwarded(frame).to(net.server);
    Case::new(format!("{} port in use", net.family), setup)
        .xdp(&one, Verdict::Tx, &at_server(&one))
        .drops(Program::Xdp, &two, DropReason::PortInUse)
        // The id now belongs to another server: its flow is over.
        .then(move |setup| {
            setup.change_server(id, |word| ServerWord::new(word.slot(), 2, Path::Xdp, false));
        })
        .xdp(&two, Verdict::Tx, &at_server(&two))
}

/// Replies that cannot be sent on.
fn replies(net: &Net) -> Case {
    let (setup, ..) = setup_with(net, ForwardingMode::Nat, UDP);
    let request = udp(net.client, net.vip);
    let reply = udp(net.server, net.client).macs(SERVER_MAC, DIRECTOR_MAC);
    let resolved = Route::Resolved {
        ifindex: IFINDEX,
        source_mac: AlignedMac(DIRECTOR_MAC),
        next_hop_mac: AlignedMac(SERVER_MAC),
    };
    let mut cut = reply.bytes();
    cut.pop();
    let client = net.client.ip();
    Case::new(format!("{} replies", net.family), setup)
        .xdp(&request, Verdict::Tx, &forwarded(&request).to(net.server))
        .drops(Program::Xdp, &reply, DropReason::NoRoute)
        .drops(Program::Ingress, &reply, DropReason::NoRoute)
        .then(move |setup| setup.route(client, resolved))
        .drops(Program::Xdp, &reply.clone().ttl(1), DropReason::TtlExceeded)
        .drops(Program::Xdp, &cut, DropReason::Truncated)
        .xdp(&reply, Verdict::Tx, &forwarded(&reply).from(net.vip))
}
