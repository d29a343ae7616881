//! Which clients may begin flows.

use std::net::SocketAddr;

use sluice_abi::{
    DropReason, EVERYBODY, FIRST_SOURCE_SET, ForwardingMode, NOBODY, Path, TCP, VipWord,
};
use sluice_packet::Verdict;

use super::{MODES, Net, PROTOCOLS, at_server, first, forwarded, nets};
use crate::packet::{
    case::Case,
    frame::{ACK, DIRECTOR_MAC, FIN, Frame, PEER_MAC, transport},
    machine::Program,
    setup::{Server, Setup, VipPort},
};

/// The cases of this module.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in nets() {
        for (protocol, name) in PROTOCOLS {
            for mode in MODES {
                let title = format!("{mode:?} {} {name}", net.family);
                cases.push(allowed(&title, &net, mode, protocol));
                cases.push(narrowed(&title, &net, mode, protocol));
            }
            cases.push(blocks(&net, protocol));
            cases.push(other_family(&net, protocol));
            cases.push(balanced(&net, protocol));
        }
        cases.push(over(&net));
    }
    cases
}

const SET: u32 = FIRST_SOURCE_SET + 3;

fn setup_with(net: &Net, mode: ForwardingMode, protocol: u8) -> (Setup, VipPort) {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, protocol);
    setup.only_server(&vip_port, &Server::new(mode, net.server, net.own));
    (setup, vip_port)
}

/// Has a virtual server take flows of a set.
fn limit(setup: &mut Setup, vip_port: &VipPort, set: u32) {
    let head = setup.heads.entry(vip_port.head).or_default();
    head.source_set = set;
}

/// Bits of an address.
fn bits(net: &Net) -> u32 {
    if net.vip.is_ipv6() { 128 } else { 32 }
}

/// As from a certain client.
fn from(net: &Net, client: SocketAddr, protocol: u8) -> Frame {
    first(client, net.vip, protocol)
}

/// A client whose address is in the set, and one whose is not, at both hooks.
fn allowed(title: &str, net: &Net, mode: ForwardingMode, protocol: u8) -> Case {
    let (mut setup, vip_port) = setup_with(net, mode, protocol);
    setup.source(SET, net.client.ip(), bits(net));
    limit(&mut setup, &vip_port, SET);
    let allowed = from(net, net.client, protocol);
    let other = from(net, net.other_client, protocol);
    Case::new(format!("{title} from allowed clients"), setup)
        .drops(Program::Xdp, &other, DropReason::SourceNotAllowed)
        .drops(Program::Ingress, &other, DropReason::SourceNotAllowed)
        .check("what is dropped leaves nothing", |state| {
            state.flows().is_empty() && state.claims().is_empty() && state.new_flows.is_empty()
        })
        .xdp(&allowed, Verdict::Tx, &at_server(net, mode, &allowed))
}

/// An open flow goes on when its client is allowed no more; a new one of the same client does not begin, nor does any once the list
/// admits nobody.
fn narrowed(title: &str, net: &Net, mode: ForwardingMode, protocol: u8) -> Case {
    let (mut setup, vip_port) = setup_with(net, mode, protocol);
    setup.source(SET, net.client.ip(), bits(net));
    setup.source(SET + 1, net.other_client.ip(), bits(net));
    limit(&mut setup, &vip_port, SET);
    let open = from(net, net.client, protocol);
    let later = transport(net.client, net.vip, protocol).payload(b"more data");
    let again = SocketAddr::new(net.client.ip(), net.client.port() + 1);
    let again = from(net, again, protocol);
    let sent = at_server(net, mode, &later);
    Case::new(format!("{title} narrowed"), setup)
        .xdp(&open, Verdict::Tx, &at_server(net, mode, &open))
        .then(|setup| limit(setup, &vip_port, SET + 1))
        .xdp(&later, Verdict::Tx, &sent)
        .drops(Program::Xdp, &again, DropReason::SourceNotAllowed)
        .then(|setup| limit(setup, &vip_port, NOBODY))
        .xdp(&later, Verdict::Tx, &sent)
        .drops(Program::Xdp, &again, DropReason::SourceNotAllowed)
        .then(|setup| limit(setup, &vip_port, EVERYBODY))
        .xdp(&later, Verdict::Tx, &sent)
        .after_seconds(1)
        .xdp(&later, Verdict::Tx, &sent)
}

/// The bits beyond a block's length do not count, whether a block lies in another one does not matter, and the blocks of other
/// sets are no concern.
fn blocks(net: &Net, protocol: u8) -> Case {
    let (mut setup, vip_port) = setup_with(net, ForwardingMode::Dr, protocol);
    // The addresses of the clients differ in their last four bits: 7 and 8.
    setup.source(SET, net.client.ip(), bits(net) - 3);
    setup.source(SET, net.client.ip(), bits(net));
    setup.source(SET + 1, net.client.ip(), bits(net) - 4);
    setup.source(SET + 2, net.client.ip(), 0);
    let (one, other) = (
        from(net, net.client, protocol),
        from(net, net.other_client, protocol),
    );
    let elsewhere = from(net, net.server, protocol);
    let sent = [&one, &other, &elsewhere].map(forwarded);
    Case::new(format!("{} {protocol} blocks", net.family), setup)
        .then(|setup| limit(setup, &vip_port, SET))
        .xdp(&one, Verdict::Tx, &sent[0])
        .drops(Program::Xdp, &other, DropReason::SourceNotAllowed)
        .then(|setup| limit(setup, &vip_port, SET + 1))
        .drops(Program::Xdp, &elsewhere, DropReason::SourceNotAllowed)
        .xdp(&other, Verdict::Tx, &sent[1])
        .then(|setup| limit(setup, &vip_port, SET + 2))
        .xdp(&elsewhere, Verdict::Tx, &sent[2])
}

/// A set with blocks of the other family alone admits nobody of this one.
fn other_family(net: &Net, protocol: u8) -> Case {
    let (mut setup, vip_port) = setup_with(net, ForwardingMode::Dr, protocol);
    for other in nets().iter().filter(|other| other.family != net.family) {
        setup.source(SET, other.client.ip(), 0);
    }
    limit(&mut setup, &vip_port, SET);
    let frame = from(net, net.client, protocol);
    Case::new(
        format!("{} {protocol} blocks of the other family", net.family),
        setup,
    )
    .drops(Program::Xdp, &frame, DropReason::SourceNotAllowed)
}

/// What another director has balanced is not judged again; what a client sends to a server's node by itself is.
fn balanced(net: &Net, protocol: u8) -> Case {
    let (mut setup, vip_port) = setup_with(net, ForwardingMode::Dr, protocol);
    let here = Server::new(ForwardingMode::Dr, net.server, net.own).by(Path::Local);
    setup.only_server(&vip_port, &here);
    let word = VipWord::new(vip_port.index, 0, vip_port.head);
    setup.set_vip(net.vip, protocol, word);
    limit(&mut setup, &vip_port, NOBODY);
    setup.peer(PEER_MAC);
    let from_client = from(net, net.client, protocol);
    let from_peer = from_client.clone().macs(PEER_MAC, DIRECTOR_MAC);
    Case::new(format!("{} {protocol} balanced before", net.family), setup)
        .drops(Program::Xdp, &from_client, DropReason::SourceNotAllowed)
        .xdp(&from_peer, Verdict::Up, &from_peer.clone().to(net.server))
}

/// A connection that uses the port of one that is over is a new one.
fn over(net: &Net) -> Case {
    let (mut setup, vip_port) = setup_with(net, ForwardingMode::Dr, TCP);
    setup.source(SET, net.other_client.ip(), bits(net));
    let open = from(net, net.client, TCP);
    let packet = |flags| transport(net.client, net.vip, TCP).flags(flags);
    let (ack, fin) = (packet(ACK), packet(FIN | ACK));
    Case::new(format!("{} a port used again", net.family), setup)
        .xdp(&open, Verdict::Tx, &forwarded(&open))
        .xdp(&ack, Verdict::Tx, &forwarded(&ack))
        .xdp(&fin, Verdict::Tx, &forwarded(&fin))
        .then(|setup| limit(setup, &vip_port, SET))
        .xdp(&ack, Verdict::Tx, &forwarded(&ack))
        .drops(Program::Xdp, &open, DropReason::SourceNotAllowed)
}
