//! Every mode over both families and protocols: towards the server, and back where replies come by the director.

use sluice_abi::{ForwardingMode, TCP, UDP};
use sluice_packet::{AlignedMac, Route, Verdict};

use super::{MODES, Net, PROTOCOLS, at_server, first, nets};
use crate::packet::{
    case::Case,
    frame::{ACK, DIRECTOR_MAC, ROUTER_MAC, SERVER_MAC, SYN, transport},
    machine::Program,
    setup::{IFINDEX, Server, Setup},
};

/// The cases of this module.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![literal_tun(), literal_nat(), literal_tun_ipv6()];
    for net in nets() {
        for (protocol, name) in PROTOCOLS {
            for mode in MODES {
                let title = format!("{mode:?} {} {name}", net.family);
                cases.push(to_server(&title, &net, mode, protocol));
                cases.push(to_another_link(&title, &net, mode, protocol));
            }
            cases.push(nat_reply(&net, protocol));
            cases.push(fullnat_reply(&net, protocol));
        }
    }
    cases
}

/// A flow's first packets reach the server, which is on the link by which they came.
fn to_server(title: &str, net: &Net, mode: ForwardingMode, protocol: u8) -> Case {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, protocol);
    let id = setup.only_server(&vip_port, &Server::new(mode, net.server, net.own));
    let first = first(net.client, net.vip, protocol).traffic_class(0x28);
    let second = transport(net.client, net.vip, protocol).payload(b"some more data");
    let length = u64::try_from(first.inner_packet().len() + second.inner_packet().len());
    Case::new(format!("{title} to the server"), setup)
        .xdp(&first, Verdict::Tx, &at_server(net, mode, &first))
        .xdp(&second, Verdict::Tx, &at_server(net, mode, &second))
        .check("both packets are counted as one flow's", move |state| {
            state.counters.get(&id) == length.ok().map(|bytes| [2, bytes, 1, 0, 0]).as_ref()
        })
}

/// The server is behind another interface.
fn to_another_link(title: &str, net: &Net, mode: ForwardingMode, protocol: u8) -> Case {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, protocol);
    let server = Server::new(mode, net.server, net.own).behind(IFINDEX + 6);
    setup.only_server(&vip_port, &server);
    let first = first(net.client, net.vip, protocol);
    Case::new(format!("{title} by another link"), setup).xdp(
        &first,
        Verdict::Redirect(IFINDEX + 6),
        &at_server(net, mode, &first),
    )
}

/// The way to the client, out of the interface by which replies come.
fn way_to_client() -> Route {
    Route::Resolved {
        ifindex: IFINDEX,
        source_mac: AlignedMac(DIRECTOR_MAC),
        next_hop_mac: AlignedMac(ROUTER_MAC),
    }
}

fn nat_reply(net: &Net, protocol: u8) -> Case {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, protocol);
    let server = Server::new(ForwardingMode::Nat, net.server, net.own);
    let id = setup.only_server(&vip_port, &server);
    setup.route(net.client.ip(), way_to_client());
    let request = first(net.client, net.vip, protocol);
    let reply = transport(net.server, net.client, protocol)
        .macs(SERVER_MAC, DIRECTOR_MAC)
        .flags(if protocol == TCP { SYN | ACK } else { 0 });
    let restored = reply
        .clone()
        .macs(DIRECTOR_MAC, ROUTER_MAC)
        .ttl(63)
        .from(net.vip);
    let bytes = u64::try_from(reply.inner_packet().len()).unwrap_or(0);
    Case::new(format!("NAT {} reply {protocol}", net.family), setup)
        .passes(Program::Xdp, &reply)
        .xdp(
            &request,
            Verdict::Tx,
            &at_server(net, ForwardingMode::Nat, &request),
        )
        .xdp(&reply, Verdict::Tx, &restored)
        .check("the reply is counted", move |state| {
            state
                .counters
                .get(&id)
                .is_some_and(|counters| counters[3..] == [1, bytes])
        })
}

fn fullnat_reply(net: &Net, protocol: u8) -> Case {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, protocol);
    let server = Server::new(ForwardingMode::FullNat, net.server, net.own);
    setup.only_server(&vip_port, &server);
    setup.route(
        net.client.ip(),
        Route::Resolved {
            ifindex: IFINDEX + 3,
            source_mac: AlignedMac(DIRECTOR_MAC),
            next_hop_mac: AlignedMac(ROUTER_MAC),
        },
    );
    let request = first(net.client, net.vip, protocol);
    let translated = at_server(net, ForwardingMode::FullNat, &request);
    let reply = translated
        .answer()
        .macs(SERVER_MAC, DIRECTOR_MAC)
        .ttl(64)
        .flags(if protocol == TCP { SYN | ACK } else { 0 });
    let restored = reply
        .clone()
        .macs(DIRECTOR_MAC, ROUTER_MAC)
        .ttl(63)
        .from(net.vip)
        .to(net.client);
    Case::new(format!("FullNAT {} reply {protocol}", net.family), setup)
        .passes(Program::Xdp, &reply)
        .xdp(&request, Verdict::Tx, &translated)
        .xdp(&reply, Verdict::Redirect(IFINDEX + 3), &restored)
}

/// A whole frame from hexadecimal digits.
fn literal(digits: &[&str]) -> Vec<u8> {
    let digits: Vec<char> = digits.concat().chars().filter(|c| *c != ' ').collect();
    let pairs = digits.chunks(2).map(|pair| pair.iter().collect::<String>());
    pairs
        .map(|pair| u8::from_str_radix(&pair, 16).expect("hexadecimal digits"))
        .collect()
}

const ETHERNET_IN: &str = "020000000002 020000000001";
const ETHERNET_OUT: &str = "020000000003 020000000002";

/// RFC 2003, byte for byte: the inner TTL is one less and its header checksum 0x0100 more (RFC 1141); the outer header
/// copies the ToS byte and sets DF; the segment is untouched.
fn literal_tun() -> Case {
    let net = nets()[0];
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, TCP);
    setup.only_server(
        &vip_port,
        &Server::new(ForwardingMode::Tun, net.server, net.own),
    );
    let segment = "9c410050 000003e8 000007d0 5002ffff a1530000";
    let frame = literal(&[
        ETHERNET_IN,
        "0800",
        "452e0028 00004000 4006d45c c6336407 cb00710a",
        segment,
    ]);
    let expected = literal(&[
        ETHERNET_OUT,
        "0800",
        "452e003c 00004000 4004268b 0a000001 0a000005",
        "452e0028 00004000 3f06d55c c6336407 cb00710a",
        segment,
    ]);
    Case::new("TUN IPv4 byte for byte", setup).xdp(&frame, Verdict::Tx, &expected)
}

/// RFC 2473, byte for byte: traffic class copied, flow label 0, hop limit 64, payload length 60, next header 41.
fn literal_tun_ipv6() -> Case {
    let net = nets()[1];
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, TCP);
    setup.only_server(
        &vip_port,
        &Server::new(ForwardingMode::Tun, net.server, net.own),
    );
    let client = "20010db8 00010000 00000000 00000007";
    let vip = "20010db8 00020000 00000000 00000010";
    let segment = "9c410050 000003e8 000007d0 5010ffff abff0000";
    let frame = literal(&[
        ETHERNET_IN,
        "86dd",
        "62e00000 00140640",
        client,
        vip,
        segment,
    ]);
    let expected = literal(&[
        ETHERNET_OUT,
        "86dd",
        "62e00000 003c2940",
        "fd000000 00000000 00000000 00000001",
        "fd000000 00000000 00000000 00000005",
        "62e00000 0014063f",
        client,
        vip,
        segment,
    ]);
    Case::new("TUN IPv6 byte for byte", setup).xdp(&frame, Verdict::Tx, &expected)
}

/// RFC 791 and 768, byte for byte: TTL, destination address and port change, and both checksums with them.
fn literal_nat() -> Case {
    let net = nets()[0];
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, UDP);
    setup.only_server(
        &vip_port,
        &Server::new(ForwardingMode::Nat, net.server, net.own),
    );
    let frame = literal(&[
        ETHERNET_IN,
        "0800",
        "45000024 00004000 4011d483 c6336407 cb00710a",
        "9c410050 00107ad6 38206279 74657321",
    ]);
    let expected = literal(&[
        ETHERNET_OUT,
        "0800",
        "45000024 00004000 3f11078a c6336407 0a000005",
        "9c411f90 00108d9c 38206279 74657321",
    ]);
    Case::new("NAT IPv4 UDP byte for byte", setup).xdp(&frame, Verdict::Tx, &expected)
}
