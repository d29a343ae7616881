//! FullNAT's ports: claimed by new flows, followed both ways, given up.

use std::net::SocketAddr;

use sluice_abi::{FULLNAT_PORT_MIN, FlowState, ForwardingMode, Stat, TCP, UDP};
use sluice_packet::{Route, Verdict};

use super::{Net, forwarded, nets};
use crate::packet::{
    case::Case,
    frame::{ACK, DIRECTOR_MAC, FIN, Frame, ROUTER_MAC, SERVER_MAC, SYN, tcp, udp},
    machine::{Program, State},
    setup::{IFINDEX, Server, Setup},
};

/// The cases of this module.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in nets() {
        cases.extend([
            one_source_port(&net),
            claim_follows(&net),
            claim_freed(&net),
            kept_after_the_server_is_gone(&net),
            replies_keep_the_port(&net),
            two_protocols(&net),
        ]);
    }
    cases
}

fn setup_with(net: &Net, protocols: &[u8]) -> Setup {
    let mut setup = Setup::director();
    for protocol in protocols {
        let vip_port = setup.virtual_server(net.vip, *protocol);
        setup.only_server(
            &vip_port,
            &Server::new(ForwardingMode::FullNat, net.server, net.own),
        );
    }
    for client in [net.client, net.other_client] {
        setup.route(
            client.ip(),
            Route::Resolved {
                ifindex: IFINDEX,
                source_mac: DIRECTOR_MAC,
                next_hop_mac: ROUTER_MAC,
            },
        );
    }
    setup
}

fn from_port(net: &Net, frame: &Frame, port: u16) -> Frame {
    forwarded(frame)
        .to(net.server)
        .from(SocketAddr::new(net.own, port))
}

/// The server's answer to what it got, and what the client gets of it.
fn answer(net: &Net, request: &Frame, at_server: &Frame, flags: u8) -> (Frame, Frame) {
    let reply = at_server
        .answer()
        .macs(SERVER_MAC, DIRECTOR_MAC)
        .ttl(64)
        .flags(flags);
    let client = SocketAddr::new(request.ip.source, request.source_port);
    let restored = reply
        .clone()
        .macs(DIRECTOR_MAC, ROUTER_MAC)
        .ttl(63)
        .from(net.vip)
        .to(client);
    (reply, restored)
}

fn claims(state: &State) -> Vec<(u16, Option<FlowState>)> {
    let v4 = state.v4.claims.values().map(|claim| claim.data);
    let v6 = state.v6.claims.values().map(|claim| claim.data);
    v4.chain(v6)
        .map(|data| (data.port(), data.state()))
        .collect()
}

/// Two clients with one source port get a port each, even when chance points both at the same one, and the answers come
/// to the right ones.
fn one_source_port(net: &Net) -> Case {
    let other = SocketAddr::new(net.other_client.ip(), net.client.port());
    let (one, two) = (tcp(net.client, net.vip, SYN), tcp(other, net.vip, SYN));
    let one_at_server = from_port(net, &one, FULLNAT_PORT_MIN);
    let two_at_server = from_port(net, &two, FULLNAT_PORT_MIN + 1);
    let (one_reply, one_restored) = answer(net, &one, &one_at_server, SYN | ACK);
    let (two_reply, two_restored) = answer(net, &two, &two_at_server, SYN | ACK);
    Case::new(
        format!("{} one source port", net.family),
        setup_with(net, &[TCP]),
    )
    .xdp(&one, Verdict::Tx, &one_at_server)
    .xdp(&two, Verdict::Tx, &two_at_server)
    .xdp(&two_reply, Verdict::Tx, &two_restored)
    .xdp(&one_reply, Verdict::Tx, &one_restored)
    .xdp(&two.flags(ACK), Verdict::Tx, &two_at_server.flags(ACK))
    .xdp(&one.flags(ACK), Verdict::Tx, &one_at_server.flags(ACK))
    .check("two ports", |state| {
        state.stat(Stat::PortClaimed) == 2 && state.half_open_ports == 0
    })
    // The port next to those claimed belongs to nobody.
    .passes(
        Program::Xdp,
        &one_reply.to(SocketAddr::new(net.own, FULLNAT_PORT_MIN + 2)),
    )
}

/// A flow whose server alone sends keeps its port: its replies keep both the claim and the client's entry.
fn replies_keep_the_port(net: &Net) -> Case {
    let request = udp(net.client, net.vip);
    let at_server = from_port(net, &request, FULLNAT_PORT_MIN);
    let (reply, restored) = answer(net, &request, &at_server, 0);
    let mut case = Case::new(
        format!("{} replies alone", net.family),
        setup_with(net, &[UDP]),
    )
    .xdp(&request, Verdict::Tx, &at_server)
    .after_seconds(3)
    .xdp(&request, Verdict::Tx, &at_server);
    for _ in 0..3 {
        case = case.after_seconds(200).xdp(&reply, Verdict::Tx, &restored);
    }
    case.xdp(&request, Verdict::Tx, &at_server)
        .check("one port", |state| state.stat(Stat::PortClaimed) == 1)
}

/// The claim goes through the flow's states, whichever side's packets say so.
fn claim_follows(net: &Net) -> Case {
    let request = tcp(net.client, net.vip, SYN);
    let at_server = from_port(net, &request, FULLNAT_PORT_MIN);
    let is = |expected| move |state: &State| claims(state) == [(FULLNAT_PORT_MIN, Some(expected))];
    let (reply, restored) = answer(net, &request, &at_server, SYN | ACK);
    Case::new(
        format!("{} a claim's states", net.family),
        setup_with(net, &[TCP]),
    )
    .xdp(&request, Verdict::Tx, &at_server)
    .check("SYN", is(FlowState::Syn))
    .check("a half-open port", |state| state.half_open_ports == 1)
    .xdp(&reply, Verdict::Tx, &restored)
    .check("a reply confirms nothing", is(FlowState::Syn))
    .xdp(
        &request.clone().flags(ACK),
        Verdict::Tx,
        &at_server.clone().flags(ACK),
    )
    .check("established", is(FlowState::Established))
    .check("no half-open port", |state| state.half_open_ports == 0)
    .after_seconds(10)
    .xdp(
        &reply.flags(FIN | ACK),
        Verdict::Tx,
        &restored.flags(FIN | ACK),
    )
    .check("closing", is(FlowState::Closing))
}

/// The sweep freed the port of a flow that had been quiet: the flow gets another one instead of sending from a port that
/// someone else may hold by now.
fn claim_freed(net: &Net) -> Case {
    let request = tcp(net.client, net.vip, SYN);
    let at_server = from_port(net, &request, FULLNAT_PORT_MIN);
    let ack = request.clone().flags(ACK);
    Case::new(
        format!("{} a freed port", net.family),
        setup_with(net, &[TCP]),
    )
    .xdp(&request, Verdict::Tx, &at_server)
    .xdp(&ack, Verdict::Tx, &at_server.clone().flags(ACK))
    .free_ports()
    .after_seconds(10)
    .random(0x8000)
    .xdp(&ack, Verdict::Tx, &from_port(net, &ack, 17_048))
    .check("another claim", |state| {
        claims(state) == [(17_048, Some(FlowState::Unconfirmed))]
    })
}

/// A connection from a port whose last one went to a server that is gone keeps the port that its SYN got.
fn kept_after_the_server_is_gone(net: &Net) -> Case {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, TCP);
    let other = SocketAddr::new(net.server.ip(), net.server.port() + 1);
    let server = |address| Server::new(ForwardingMode::FullNat, address, net.own);
    let new = setup.server(&vip_port, &server(net.server));
    let old = setup.only_server(&vip_port, &server(other));
    let request = tcp(net.client, net.vip, SYN);
    let at = |frame: &Frame, port| {
        forwarded(frame)
            .to(net.server)
            .from(SocketAddr::new(net.own, port))
    };
    let at_old = |flags| {
        let frame = request.clone().flags(flags);
        (
            frame.clone(),
            from_port(net, &frame, FULLNAT_PORT_MIN).to(other),
        )
    };
    let ring = vip_port.head;
    let mut case = Case::new(
        format!("{} a port kept after a lost server", net.family),
        setup,
    );
    for flags in [SYN, ACK, FIN | ACK] {
        let (frame, expected) = at_old(flags);
        case = case.xdp(&frame, Verdict::Tx, &expected);
    }
    let ack = request.clone().flags(ACK);
    case.then(move |setup| {
        setup.ring(ring, &[new]);
        setup.change_server(old, |word| sluice_abi::ServerWord::absent(word.epoch()));
    })
    .xdp(&request, Verdict::Tx, &at(&request, FULLNAT_PORT_MIN))
    .random(0x8000)
    .xdp(&ack, Verdict::Tx, &at(&ack, FULLNAT_PORT_MIN))
}

/// TCP and UDP do not share ports.
fn two_protocols(net: &Net) -> Case {
    let (one, two) = (tcp(net.client, net.vip, SYN), udp(net.client, net.vip));
    Case::new(
        format!("{} TCP and UDP", net.family),
        setup_with(net, &[TCP, UDP]),
    )
    .xdp(&one, Verdict::Tx, &from_port(net, &one, FULLNAT_PORT_MIN))
    .xdp(&two, Verdict::Tx, &from_port(net, &two, FULLNAT_PORT_MIN))
}
