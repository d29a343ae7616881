//! Whose a frame is: for others, for this node, from a director that has balanced it.

use std::net::SocketAddr;

use sluice_abi::{
    DropReason, FULLNAT_PORT_MIN, ForwardingMode, NET_SENDS, NET_TUNNELS, Path, TCP, UDP, VipWord,
};
use sluice_packet::{AlignedMac, Route, Verdict};

use super::{Net, at_server, forwarded, nets};
use crate::packet::{
    case::Case,
    frame::{ACK, DIRECTOR_MAC, Frame, Mac, PEER_MAC, ROUTER_MAC, SERVER_MAC, SYN, tcp, udp},
    machine::Program,
    setup::{IFINDEX, Server, Setup, VipPort},
};

/// The cases of this module.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in nets() {
        cases.extend([
            for_others(&net),
            replies_for_others(&net, ForwardingMode::Nat),
            replies_for_others(&net, ForwardingMode::FullNat),
            tunnels_for_others(&net),
            address_of_an_upper_device(&net),
            directors_that_disagree(&net),
            directors_that_disagree_over_an_own_server(&net),
            directors_as_clients(&net),
        ]);
    }
    cases
}

const OTHERS: [Mac; 3] = [
    [0x02, 0, 0, 0, 9, 9],
    [0xff; 6],
    // RFC 7042, section 2.1.1: multicast.
    [0x01, 0, 0x5e, 0, 0, 1],
];

fn to(frame: &Frame, mac: Mac) -> Frame {
    frame.clone().macs(ROUTER_MAC, mac)
}

/// A switch floods frames for others: every director sees them, and none may serve them.
fn for_others(net: &Net) -> Case {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, TCP);
    setup.only_server(
        &vip_port,
        &Server::new(ForwardingMode::Dr, net.server, net.own),
    );
    let frame = tcp(net.client, net.vip, SYN);
    let no_port = udp(net.client, net.vip);
    let mut case = Case::new(format!("{} frames for others", net.family), setup);
    for mac in OTHERS {
        for program in [Program::Xdp, Program::Ingress] {
            case = case.passes(program, &to(&frame, mac));
            case = case.passes(program, &to(&no_port, mac));
        }
    }
    case.check("nothing was recorded", |state| {
        state.flows().is_empty() && state.drops.is_empty() && state.counters.is_empty()
    })
    .xdp(&frame, Verdict::Tx, &forwarded(&frame))
}

fn replies_for_others(net: &Net, mode: ForwardingMode) -> Case {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, UDP);
    setup.only_server(&vip_port, &Server::new(mode, net.server, net.own));
    setup.route(
        net.client.ip(),
        Route::Resolved {
            ifindex: IFINDEX,
            source_mac: AlignedMac(DIRECTOR_MAC),
            next_hop_mac: AlignedMac(ROUTER_MAC),
        },
    );
    let request = udp(net.client, net.vip);
    let sender = if mode == ForwardingMode::FullNat {
        SocketAddr::new(net.own, FULLNAT_PORT_MIN)
    } else {
        net.client
    };
    let reply = udp(net.server, sender).macs(SERVER_MAC, DIRECTOR_MAC);
    let title = format!("{mode:?} {} replies for others", net.family);
    let mut case =
        Case::new(title, setup).xdp(&request, Verdict::Tx, &at_server(net, mode, &request));
    for mac in OTHERS {
        case = case.passes(Program::Xdp, &reply.clone().macs(SERVER_MAC, mac));
    }
    let at_client = reply.clone().ttl(63).from(net.vip).to(net.client);
    case.xdp(
        &reply,
        Verdict::Tx,
        &at_client.macs(DIRECTOR_MAC, ROUTER_MAC),
    )
}

fn tunnels_for_others(net: &Net) -> Case {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, UDP);
    let server = Server::new(ForwardingMode::Tun, net.server, net.own).by(Path::Local);
    setup.server(&vip_port, &server);
    setup.set_vip(net.vip, UDP, VipWord::new(vip_port.index, 0, 0));
    let frame = udp(net.client, net.vip);
    let wrapped = |mac| to(&frame, mac).wrapped(net.own, net.server.ip());
    let mut case = Case::new(format!("{} tunnels for others", net.family), setup);
    for mac in OTHERS {
        case = case.passes(Program::Xdp, &wrapped(mac));
    }
    case.xdp(
        &wrapped(DIRECTOR_MAC),
        Verdict::Up,
        &frame.clone().to(net.server),
    )
}

/// Frames to a VLAN or macvlan device on top of the uplink come by the uplink.
fn address_of_an_upper_device(net: &Net) -> Case {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, TCP);
    setup.only_server(
        &vip_port,
        &Server::new(ForwardingMode::Dr, net.server, net.own),
    );
    let [upper, ..] = OTHERS;
    let frame = to(&tcp(net.client, net.vip, SYN), upper);
    Case::new(format!("{} an upper device's address", net.family), setup)
        .passes(Program::Xdp, &frame)
        .then(move |setup| setup.own_mac(upper))
        .xdp(&frame, Verdict::Tx, &forwarded(&frame))
        .then(|setup| {
            setup.macs.clear();
            setup.own_mac(DIRECTOR_MAC);
        })
        .passes(Program::Xdp, &frame)
}

/// A virtual server with a server elsewhere; DR frames of other directors are told by their sender.
fn director(net: &Net) -> (Setup, VipPort) {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, TCP);
    setup.only_server(
        &vip_port,
        &Server::new(ForwardingMode::Dr, net.other_server, net.own),
    );
    setup.peer(PEER_MAC);
    (setup, vip_port)
}

/// Each of two directors holds the other for the server of a flow: no frame may go to and fro.
fn directors_that_disagree(net: &Net) -> Case {
    let (setup, _) = director(net);
    let packet = |flags| tcp(net.client, net.vip, flags);
    let from_peer = |flags| packet(flags).macs(PEER_MAC, DIRECTOR_MAC);
    let mut case = Case::new(format!("{} directors that disagree", net.family), setup);
    // Half-open, established, and of the common kind that changes nothing.
    for flags in [SYN, ACK, ACK] {
        case = case
            .xdp(&packet(flags), Verdict::Tx, &forwarded(&packet(flags)))
            .drops(Program::Xdp, &from_peer(flags), DropReason::NotMyServer);
    }
    case.xdp(&packet(ACK), Verdict::Tx, &forwarded(&packet(ACK)))
        .check("the flow stays", |state| state.flows().len() == 1)
}

/// The peer is right: the flow's server is on this node.
fn directors_that_disagree_over_an_own_server(net: &Net) -> Case {
    let (mut setup, vip_port) = director(net);
    let local = Server::new(ForwardingMode::Dr, net.server, net.own).by(Path::Local);
    let local = setup.server(&vip_port, &local);
    let rs_head = 30;
    let mut head = setup.heads[&vip_port.head];
    head.pools[0].ring = rs_head;
    setup.heads.insert(rs_head, head);
    setup.ring(rs_head, &[local]);
    let word = VipWord::new(vip_port.index, vip_port.head, rs_head);
    setup.set_vip(net.vip, TCP, word);
    let packet = |flags| tcp(net.client, net.vip, flags);
    let from_peer = |flags| packet(flags).macs(PEER_MAC, DIRECTOR_MAC);
    let case = Case::new(
        format!("{} directors that disagree over an own server", net.family),
        setup,
    );
    case.xdp(&packet(SYN), Verdict::Tx, &forwarded(&packet(SYN)))
        .xdp(&packet(ACK), Verdict::Tx, &forwarded(&packet(ACK)))
        .xdp(&from_peer(ACK), Verdict::Up, &from_peer(ACK).to(net.server))
        .check("one flow and its way back", |state| {
            state.flows().len() == 2
        })
        .xdp(&from_peer(ACK), Verdict::Up, &from_peer(ACK).to(net.server))
}

/// A director, or a pod on its node, may be a client: its frames have the director's address as their sender.
fn directors_as_clients(net: &Net) -> Case {
    let (setup, _) = director(net);
    let (own, pods) = (net.client.ip(), net.other_client.ip());
    let length = if own.is_ipv4() { 32 } else { 128 };
    let from_node = tcp(net.client, net.vip, SYN).macs(PEER_MAC, DIRECTOR_MAC);
    let from_pod = tcp(net.other_client, net.vip, SYN).macs(PEER_MAC, DIRECTOR_MAC);
    let case = Case::new(format!("{} directors as clients", net.family), setup);
    case.drops(Program::Xdp, &from_node, DropReason::NotMyServer)
        .then(move |setup| setup.peer_net(own, length, NET_SENDS | NET_TUNNELS))
        .xdp(&from_node, Verdict::Tx, &forwarded(&from_node))
        .drops(Program::Xdp, &from_pod, DropReason::NotMyServer)
        .then(move |setup| setup.peer_net(pods, length - 4, NET_SENDS))
        .xdp(&from_pod, Verdict::Tx, &forwarded(&from_pod))
}
