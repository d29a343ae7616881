//! Flows whose keys look alike: a key has room for a tag of the far end only, and two ends may have the same.

use std::net::SocketAddr;

use sluice_abi::{FarEnd, ForwardingMode, TCP};
use sluice_packet::Verdict;

use super::{Net, nets};
use crate::packet::{
    case::Case,
    frame::{ACK, DIRECTOR_MAC, PSH, SYN, tcp},
    layout,
    setup::{Server, Setup},
};

/// The cases of this module.
pub fn cases() -> Vec<Case> {
    nets().iter().map(one_tag).collect()
}

/// A port at which a virtual server with this index has the same tag as `far`, if there is one.
fn port_with_the_tag_of(far: FarEnd, index: u32) -> Option<u16> {
    let tag = |port: u16| {
        layout::tag(FarEnd {
            index,
            port: port.to_be_bytes(),
        })
    };
    (1..=u16::MAX).find(|port| tag(*port) == layout::tag(far))
}

fn at(vip: SocketAddr, port: u32) -> SocketAddr {
    SocketAddr::new(vip.ip(), u16::try_from(port).unwrap_or(u16::MAX))
}

/// One client port talks to two virtual servers of one tag. The test's tables have so few buckets that many of these flows
/// share one: then an entry is found that is the other flow's, and it must not be followed.
fn one_tag(net: &Net) -> Case {
    const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 7, 1], [2, 0, 0, 0, 7, 2]];
    let mut setup = Setup::director();
    let first = setup.virtual_server(net.vip, TCP);
    let mut index = first.index + 1;
    let port = loop {
        match port_with_the_tag_of(first.far(), index) {
            Some(port) => break port,
            // An index that has none goes to another virtual server.
            None => index = setup.virtual_server(at(net.other_vip, index), TCP).index + 1,
        }
    };
    let second = setup.virtual_server(SocketAddr::new(net.vip.ip(), port), TCP);
    for (vip_port, next_hop_mac) in [first, second].iter().zip(MACS) {
        let server = Server {
            next_hop_mac,
            ..Server::new(ForwardingMode::Dr, net.server, net.own)
        };
        setup.only_server(vip_port, &server);
    }
    let mut case = Case::new(format!("{} two ends of one tag", net.family), setup);
    for number in 1..40 {
        let client = SocketAddr::new(net.client.ip(), number);
        for flags in [SYN, ACK, PSH | ACK, ACK] {
            for (vip_port, mac) in [first, second].iter().zip(MACS) {
                let packet = tcp(client, vip_port.vip, flags);
                let ttl = packet.ip.ttl - 1;
                let sent = packet.clone().macs(DIRECTOR_MAC, mac).ttl(ttl);
                case = case.xdp(&packet, Verdict::Tx, &sent);
            }
        }
    }
    case
}
