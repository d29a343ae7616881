//! FullNAT's ports: claimed by new flows, followed both ways, taken over.

use std::{net::SocketAddr, ops::Range};

use sluice_abi::{
    ClaimData, ClaimState, DropReason, FULLNAT_PORT_MIN, ForwardingMode, Stat, TCP, UDP,
};
use sluice_packet::{AlignedMac, Route, Verdict};

use super::{Net, forwarded, nets};
use crate::packet::{
    case::Case,
    frame::{ACK, DIRECTOR_MAC, FIN, Frame, ROUTER_MAC, RST, SERVER_MAC, SYN, tcp, udp},
    machine::{Program, State},
    setup::{ALWAYS_FRESH, Claim, IFINDEX, Server, Setup},
};

/// The cases of this module.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in nets() {
        cases.extend([
            one_source_port(&net),
            claim_follows(&net),
            free_after_both_fins(&net),
            servers_that_wait_come_last(&net),
            resets_free_nothing(&net),
            half_open_flows_give_way(&net),
            strays_claim_nothing(&net),
            an_hour_without_an_agent(&net),
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
                source_mac: AlignedMac(DIRECTOR_MAC),
                next_hop_mac: AlignedMac(ROUTER_MAC),
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

fn claims(state: &State) -> Vec<(u16, Option<ClaimState>)> {
    let claims = state.claims().into_iter();
    claims
        .map(|claim| (claim.own.port(), claim.data.state()))
        .collect()
}

fn has(port: u16, claim: ClaimState) -> impl Fn(&State) -> bool {
    move |state| claims(state).contains(&(port, Some(claim)))
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
        let is_open = |(_, state)| state == Some(ClaimState::Established);
        state.stat(Stat::PortClaimed) == 2 && claims(state).into_iter().all(is_open)
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

/// A connection: what comes from the client, and from its server.
struct Connection {
    request: Frame,
    at_server: Frame,
    reply: Frame,
    restored: Frame,
}

impl Connection {
    fn new(net: &Net, client: SocketAddr, port: u16) -> Self {
        let request = tcp(client, net.vip, SYN);
        let at_server = from_port(net, &request, port);
        let (reply, restored) = answer(net, &request, &at_server, SYN | ACK);
        Self {
            request,
            at_server,
            reply,
            restored,
        }
    }

    fn client(&self, case: Case, flags: u8) -> Case {
        let request = self.request.clone().flags(flags);
        case.xdp(&request, Verdict::Tx, &self.at_server.clone().flags(flags))
    }

    fn server(&self, case: Case, flags: u8) -> Case {
        let reply = self.reply.clone().flags(flags);
        case.xdp(&reply, Verdict::Tx, &self.restored.clone().flags(flags))
    }

    fn open(&self, mut case: Case) -> Case {
        case = self.client(case, SYN);
        case = self.server(case, SYN | ACK);
        self.client(case, ACK)
    }
}

/// The last port that a new flow tries with a random number of 0; it tries all from the first one on.
const LAST_TRIED: u16 = FULLNAT_PORT_MIN + 12;

/// All ports that a connection from `net.other_client` tries with a random number of 0 are held, but for the first.
fn one_port_left(net: &Net) -> Setup {
    let mut setup = setup_with(net, &[TCP]);
    hold(net, &mut setup, FULLNAT_PORT_MIN + 1..LAST_TRIED + 1);
    setup
}

fn hold(net: &Net, setup: &mut Setup, ports: Range<u16>) {
    for port in ports {
        setup.claim(Claim {
            server: net.server,
            own: SocketAddr::new(net.own, port),
            client: net.client,
            vip: net.vip,
            protocol: TCP,
            data: ClaimData::new(1, 1, ClaimState::Established, ALWAYS_FRESH),
        });
    }
}

/// The claim goes through the flow's states, whichever side's packets say so.
fn claim_follows(net: &Net) -> Case {
    let connection = Connection::new(net, net.client, FULLNAT_PORT_MIN);
    let is = |expected| has(FULLNAT_PORT_MIN, expected);
    let mut case = Case::new(
        format!("{} a claim's states", net.family),
        setup_with(net, &[TCP]),
    );
    case = connection.client(case, SYN);
    case = case.check("SYN", is(ClaimState::HalfOpen));
    case = connection.server(case, SYN | ACK);
    case = case.check("a reply confirms nothing", is(ClaimState::HalfOpen));
    case = connection.client(case, ACK);
    case = case
        .check("open", is(ClaimState::Established))
        .after_seconds(10);
    case = connection.server(case, FIN | ACK);
    case = case.check("the server ended", is(ClaimState::ServerEnded));
    case = connection.server(case, FIN | ACK);
    case = case.check("a FIN sent again", is(ClaimState::ServerEnded));
    case = connection.client(case, FIN | ACK);
    case.check("the server waits", is(ClaimState::ServerWaits))
}

/// A port is free a second or two after both FINs, and packets that come late are translated until then.
fn free_after_both_fins(net: &Net) -> Case {
    let connection = Connection::new(net, net.client, FULLNAT_PORT_MIN);
    let other = Connection::new(net, net.other_client, FULLNAT_PORT_MIN);
    let mut case = Case::new(
        format!("{} a port after both FINs", net.family),
        one_port_left(net),
    );
    case = connection.open(case);
    case = connection.client(case, FIN | ACK);
    case = connection.server(case, FIN | ACK);
    case = case.check("over", has(FULLNAT_PORT_MIN, ClaimState::OverForServer));
    case = connection.client(case, ACK);
    case = case.after_seconds(1);
    case = case.drops(Program::Xdp, &other.request, DropReason::NoPort);
    case = connection.server(case, FIN | ACK);
    case = connection.client(case, ACK);
    case = case.after_seconds(3);
    case = other.open(case);
    // The old connection's packets are nobody's now.
    case.drops(
        Program::Xdp,
        &connection.request.flags(ACK),
        DropReason::NoFlow,
    )
}

/// Where the server closed first it waits: all ports are tried before one of those, and the one that ended first comes before
/// others.
fn servers_that_wait_come_last(net: &Net) -> Case {
    let first = Connection::new(net, net.client, FULLNAT_PORT_MIN);
    let second = SocketAddr::new(net.client.ip(), net.client.port() + 1);
    let second = Connection::new(net, second, FULLNAT_PORT_MIN + 1);
    let third = Connection::new(net, net.other_client, LAST_TRIED);
    let other = |n| SocketAddr::new(net.other_client.ip(), net.other_client.port() + n);
    let mut setup = setup_with(net, &[TCP]);
    hold(net, &mut setup, FULLNAT_PORT_MIN + 2..LAST_TRIED);
    let mut case = Case::new(format!("{} servers that wait", net.family), setup);
    for connection in [&first, &second] {
        case = connection.open(case);
        case = connection.server(case, FIN | ACK);
        case = connection.client(case, FIN | ACK).after_seconds(1);
    }
    case = case.after_seconds(4);
    case = third.open(case);
    case = Connection::new(net, other(1), FULLNAT_PORT_MIN).client(case, SYN);
    case = Connection::new(net, other(2), FULLNAT_PORT_MIN + 1).client(case, SYN);
    case.after_seconds(1)
}

/// A reset, which may be forged, frees nothing while packets follow.
fn resets_free_nothing(net: &Net) -> Case {
    let connection = Connection::new(net, net.client, FULLNAT_PORT_MIN);
    let other = Connection::new(net, net.other_client, FULLNAT_PORT_MIN);
    let mut case = Case::new(format!("{} resets", net.family), one_port_left(net));
    case = connection.open(case);
    case = connection.client(case, RST);
    for _ in 0..4 {
        case = case.after_seconds(6);
        case = case.drops(Program::Xdp, &other.request, DropReason::NoPort);
        case = connection.client(case, ACK);
        case = connection.server(case, ACK);
    }
    other.client(case.after_seconds(10), SYN)
}

/// A half-open flow gives its port up after five seconds, if another one wants it. Its client's next SYN claims another
/// port, and any other packet of it none.
fn half_open_flows_give_way(net: &Net) -> Case {
    let slow = Connection::new(net, net.client, FULLNAT_PORT_MIN);
    let other = Connection::new(net, net.other_client, FULLNAT_PORT_MIN);
    let mut case = Case::new(
        format!("{} half-open flows give way", net.family),
        one_port_left(net),
    );
    case = slow.client(case, SYN).after_seconds(4);
    case = case.drops(Program::Xdp, &other.request, DropReason::NoPort);
    case = case.after_seconds(2);
    // Nobody has wanted it yet.
    case = slow.client(case, SYN);
    case = slow.server(case, SYN | ACK);
    case = other.open(case);
    case = case.drops(
        Program::Xdp,
        &slow.request.clone().flags(ACK),
        DropReason::NoFlow,
    );
    Connection::new(net, net.client, 17_048).open(case.random(0x8000))
}

/// Packets of no known connection claim nothing.
fn strays_claim_nothing(net: &Net) -> Case {
    let mut case = Case::new(format!("{} strays", net.family), setup_with(net, &[TCP]));
    for flags in [ACK, RST, RST | ACK, FIN | ACK, SYN | ACK] {
        let stray = tcp(net.client, net.vip, flags);
        case = case.drops(Program::Xdp, &stray, DropReason::NoFlow);
    }
    case.check("no claim", |state| state.claims().is_empty())
}

/// Without an agent, flows come and go in one port for an hour: packets alone free it.
fn an_hour_without_an_agent(net: &Net) -> Case {
    let mut case = Case::new(format!("{} an hour alone", net.family), one_port_left(net));
    for n in 0..120 {
        let client = SocketAddr::new(net.client.ip(), 2000 + n);
        let connection = Connection::new(net, client, FULLNAT_PORT_MIN);
        case = connection.open(case);
        case = connection.client(case, FIN | ACK);
        case = connection.server(case, FIN | ACK).after_seconds(30);
    }
    case.check("a port for each", |state| {
        state.stat(Stat::PortClaimed) == 120
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
