//! Beyond the uplink: servers of this node, servers behind a bridge, packets that other directors send here.

use std::net::IpAddr;

use sluice_abi::{
    ConfigWord, DropReason, FlowState, ForwardingMode, NET_SENDS, NET_TUNNELS, Path, Stat, TCP,
    UDP, VipWord,
};
use sluice_packet::{AlignedMac, Route, Verdict};

use super::{MODES, Net, PROTOCOLS, at_server, first, forwarded, nets};
use crate::packet::{
    case::Case,
    frame::{
        ACK, Checksum, DIRECTOR_MAC, Frame, MORE_FRAGMENTS, PEER_MAC, ROUTER_MAC, SERVER_MAC, SYN,
        tcp, transport, udp,
    },
    machine::{Program, Table},
    setup::{IFINDEX, Server, Setup},
};

/// The cases of this module.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in nets() {
        for (protocol, _) in PROTOCOLS {
            for mode in MODES {
                cases.push(own_address(&net, mode, protocol));
                cases.push(behind_a_bridge(&net, mode, protocol));
            }
            cases.push(unwrapped(&net, protocol));
            cases.push(real_server_of_dr(&net, protocol));
        }
        cases.extend([
            from_a_peer(&net),
            bridge_replies(&net),
            congestion(&net),
            other_tunnels(&net),
            tunnels_to_a_vip(&net),
            tunnels_of_strangers(&net),
            not_ours(&net),
            reply_by_the_stack(&net),
            next_hops_are_refreshed(&net),
        ]);
    }
    cases.push(other_traffic());
    cases
}

/// A server at the node's own address, in every mode: the stack gets the packet as if it had been sent to the server,
/// the client's source kept, TTL and MAC addresses untouched; tc egress restores the VIP.
fn own_address(net: &Net, mode: ForwardingMode, protocol: u8) -> Case {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, protocol);
    let server = Server::new(mode, net.server, net.own).by(Path::Local);
    let id = setup.only_server(&vip_port, &server);
    let request = first(net.client, net.vip, protocol).ttl(1);
    let reply = transport(net.server, net.client, protocol)
        .macs(DIRECTOR_MAC, ROUTER_MAC)
        .flags(if protocol == TCP { SYN | ACK } else { 0 });
    let bytes = u64::try_from(reply.inner_packet().len()).unwrap_or(0);
    Case::new(
        format!("{mode:?} {} own address, {protocol}", net.family),
        setup,
    )
    .passes(Program::Egress, &reply)
    .xdp(&request, Verdict::Up, &request.clone().to(net.server))
    // A packet that arrives with the server's address as its source is not a reply that the stack sends.
    .passes(Program::Xdp, &reply)
    .run(
        Program::Egress,
        &reply,
        Verdict::Up,
        &reply.clone().from(net.vip),
    )
    .passes(Program::Egress, &reply.clone().to(net.other_client))
    .check("both directions are counted", move |state| {
        state
            .counters
            .get(&id)
            .is_some_and(|counters| counters[3..] == [1, bytes] && counters[0] == 1)
    })
}

/// A server behind a bridge or overlay: XDP leaves the packet alone and makes no entry, tc rewrites it and leaves the MAC
/// addresses to the stack. TUN is not done there.
fn behind_a_bridge(net: &Net, mode: ForwardingMode, protocol: u8) -> Case {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, protocol);
    let server = Server::new(mode, net.server, net.own)
        .by(Path::Tc)
        .behind(7);
    setup.only_server(&vip_port, &server);
    let request = first(net.client, net.vip, protocol);
    let again = transport(net.client, net.vip, protocol);
    let title = format!("{mode:?} {} behind a bridge, {protocol}", net.family);
    let case = Case::new(title, setup).passes(Program::Xdp, &request);
    if mode == ForwardingMode::Tun {
        return case.drops(Program::Ingress, &request, DropReason::NoHeadroom);
    }
    let rewritten = |frame: &Frame| at_server(net, mode, frame).macs(ROUTER_MAC, DIRECTOR_MAC);
    case.check("no entry yet", |state| {
        state.flows().is_empty() && state.counters.is_empty()
    })
    .run(
        Program::Ingress,
        &request,
        Verdict::Neigh(7),
        &rewritten(&request),
    )
    .passes(Program::Xdp, &again)
    .run(
        Program::Ingress,
        &again,
        Verdict::Neigh(7),
        &rewritten(&again),
    )
    .drops(Program::Ingress, &again.ttl(1), DropReason::TtlExceeded)
}

/// Replies from behind a bridge come by tc ingress on that bridge.
fn bridge_replies(net: &Net) -> Case {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, UDP);
    let server = Server::new(ForwardingMode::Nat, net.server, net.own).by(Path::Tc);
    setup.only_server(&vip_port, &server.behind(7));
    setup.route(
        net.client.ip(),
        Route::Resolved {
            ifindex: 9,
            source_mac: AlignedMac(DIRECTOR_MAC),
            next_hop_mac: AlignedMac(ROUTER_MAC),
        },
    );
    setup.route(net.other_client.ip(), Route::NoNeighbour { ifindex: 8 });
    let mut case = Case::new(format!("{} replies from a bridge", net.family), setup);
    for (client, ifindex) in [(net.client, 9), (net.other_client, 8)] {
        let request = udp(client, net.vip);
        let reply = udp(net.server, client).macs(SERVER_MAC, DIRECTOR_MAC);
        case = case
            .run(
                Program::Ingress,
                &request,
                Verdict::Neigh(7),
                &at_server(net, ForwardingMode::Nat, &request).macs(ROUTER_MAC, DIRECTOR_MAC),
            )
            .run(
                Program::Ingress,
                &reply,
                Verdict::Neigh(ifindex),
                &reply.clone().ttl(63).from(net.vip),
            );
    }
    case
}

/// A reply whose way to the client has no known neighbour: XDP leaves it alone, tc restores the VIP and has the stack find
/// the neighbour.
fn reply_by_the_stack(net: &Net) -> Case {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, UDP);
    setup.only_server(
        &vip_port,
        &Server::new(ForwardingMode::Nat, net.server, net.own),
    );
    setup.route(net.client.ip(), Route::NoNeighbour { ifindex: 3 });
    let request = udp(net.client, net.vip);
    let reply = udp(net.server, net.client).macs(SERVER_MAC, DIRECTOR_MAC);
    Case::new(format!("{} a reply by the stack", net.family), setup)
        .xdp(
            &request,
            Verdict::Tx,
            &at_server(net, ForwardingMode::Nat, &request),
        )
        .passes(Program::Xdp, &reply)
        .check("it is counted once, by who sends it", |state| {
            state.stat(Stat::ToStack) == 1
                && state.counters.values().all(|counters| counters[3] == 0)
        })
        .run(
            Program::Ingress,
            &reply,
            Verdict::Neigh(3),
            &reply.clone().ttl(63).from(net.vip),
        )
}

/// One reply a second to each next hop leaves by the stack, so that its neighbour table notices changes.
fn next_hops_are_refreshed(net: &Net) -> Case {
    let mut setup = Setup::director();
    setup.config(ConfigWord::NextHopRefresh, 1);
    let vip_port = setup.virtual_server(net.vip, UDP);
    setup.only_server(
        &vip_port,
        &Server::new(ForwardingMode::Nat, net.server, net.own),
    );
    let hops = [(net.client, ROUTER_MAC), (net.other_client, PEER_MAC)];
    for (client, next_hop_mac) in hops {
        setup.route(
            client.ip(),
            Route::Resolved {
                ifindex: IFINDEX,
                source_mac: AlignedMac(DIRECTOR_MAC),
                next_hop_mac: AlignedMac(next_hop_mac),
            },
        );
    }
    let reply = |client| udp(net.server, client).macs(SERVER_MAC, DIRECTOR_MAC);
    let mut case = Case::new(format!("{} next hops are refreshed", net.family), setup);
    for (client, _) in hops {
        let request = udp(client, net.vip);
        let sent = at_server(net, ForwardingMode::Nat, &request);
        case = case.xdp(&request, Verdict::Tx, &sent);
    }
    for wait in [0, 3] {
        case = case.after_seconds(wait);
        for (client, next_hop) in hops {
            let reply = reply(client);
            let translated = reply.clone().ttl(63).from(net.vip);
            let at_client = translated.clone().macs(DIRECTOR_MAC, next_hop);
            case = case
                .passes(Program::Xdp, &reply)
                .run(
                    Program::Ingress,
                    &reply,
                    Verdict::Neigh(IFINDEX),
                    &translated,
                )
                .xdp(&reply, Verdict::Tx, &at_client);
        }
    }
    case.check("counted", |state| state.stat(Stat::ToStack) == 4)
        .then(|setup| setup.config(ConfigWord::NextHopRefresh, 0))
        .after_seconds(3)
        .xdp(
            &reply(net.client),
            Verdict::Tx,
            &reply(net.client)
                .ttl(63)
                .from(net.vip)
                .macs(DIRECTOR_MAC, ROUTER_MAC),
        )
}

/// A frame of another director is for this node's own servers: it is never balanced again.
fn from_a_peer(net: &Net) -> Case {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, TCP);
    setup.only_server(
        &vip_port,
        &Server::new(ForwardingMode::Dr, net.other_server, net.own),
    );
    let local = Server::new(ForwardingMode::Dr, net.server, net.own).by(Path::Local);
    let local = setup.server(&vip_port, &local);
    let rs_head = 30;
    let mut head = setup.heads[&vip_port.head];
    head.pools[0].ring = rs_head;
    setup.heads.insert(rs_head, head);
    setup.ring(rs_head, &[local]);
    setup.set_vip(
        net.vip,
        TCP,
        VipWord::new(vip_port.index, vip_port.head, rs_head),
    );
    setup.peer(PEER_MAC);
    let from_router = tcp(net.client, net.vip, SYN);
    let from_peer = tcp(net.other_client, net.vip, SYN).macs(PEER_MAC, DIRECTOR_MAC);
    let ack = from_peer.clone().flags(ACK);
    let (vip, vip_neighbour) = (net.vip, net.other_server);
    Case::new(format!("{} from a peer", net.family), setup)
        .xdp(&from_router, Verdict::Tx, &forwarded(&from_router))
        .xdp(&from_peer, Verdict::Up, &from_peer.clone().to(net.server))
        .xdp(&ack, Verdict::Up, &ack.clone().to(net.server))
        .then(move |setup| setup.set_vip(vip, TCP, VipWord::new(vip_port.index, vip_port.head, 0)))
        .drops(
            Program::Xdp,
            &tcp(vip_neighbour, vip, SYN).macs(PEER_MAC, DIRECTOR_MAC),
            DropReason::NotMyServer,
        )
}

/// A node that only has servers: whatever comes to the VIP is for them.
fn real_server_of_dr(net: &Net, protocol: u8) -> Case {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, protocol);
    let server = Server::new(ForwardingMode::Dr, net.server, net.own).by(Path::Local);
    setup.only_server(&vip_port, &server);
    setup.set_vip(
        net.vip,
        protocol,
        VipWord::new(vip_port.index, 0, vip_port.head),
    );
    let request = first(net.client, net.vip, protocol);
    let reply = transport(net.server, net.client, protocol).macs(DIRECTOR_MAC, ROUTER_MAC);
    Case::new(
        format!("{} real server of DR, {protocol}", net.family),
        setup,
    )
    .xdp(&request, Verdict::Up, &request.clone().to(net.server))
    .run(
        Program::Egress,
        &reply,
        Verdict::Up,
        &reply.clone().from(net.vip),
    )
}

fn tunnel_setup(net: &Net, protocol: u8) -> (Setup, u32) {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, protocol);
    let server = Server::new(ForwardingMode::Tun, net.server, net.own).by(Path::Local);
    let id = setup.server(&vip_port, &server);
    setup.set_vip(net.vip, protocol, VipWord::new(vip_port.index, 0, 0));
    (setup, id)
}

/// RFC 2003, section 3, and RFC 2473, section 3: the outer header goes, the inner TTL stays as it came.
fn unwrapped(net: &Net, protocol: u8) -> Case {
    let (mut setup, id) = tunnel_setup(net, protocol);
    let reply_end = setup.reply_end(net.server, protocol);
    let client = net.client;
    let request = first(client, net.vip, protocol).ttl(63);
    let second = transport(client, net.vip, protocol).ttl(63);
    let no_checksum = second.clone().checksum(Checksum::Fixed(0));
    let wrapped = |frame: &Frame| frame.clone().wrapped(net.own, net.server.ip());
    let reply = transport(net.server, client, protocol).macs(DIRECTOR_MAC, ROUTER_MAC);
    let mut case = Case::new(format!("{} unwrapped, {protocol}", net.family), setup)
        .passes(Program::Egress, &reply)
        .xdp(
            &wrapped(&request),
            Verdict::Up,
            &request.clone().to(net.server),
        )
        .run(
            Program::Egress,
            &reply,
            Verdict::Up,
            &reply.clone().from(net.vip),
        )
        .after_seconds(3)
        .xdp(
            &wrapped(&second),
            Verdict::Up,
            &second.clone().to(net.server),
        );
    if protocol == UDP {
        case = case.xdp(
            &wrapped(&no_checksum),
            Verdict::Up,
            &no_checksum.clone().to(net.server),
        );
    }
    case.check(
        "the way back is known, the way there needs no entry",
        move |state| {
            let flows = state.flows();
            flows.len() == 1
                && state.flow(client, reply_end).is_some_and(|entry| {
                    let udp_or_tcp = [FlowState::Udp, FlowState::Established];
                    entry.server == id
                        && entry.table == Table::Established
                        && udp_or_tcp.contains(&entry.state)
                })
        },
    )
    .check("counted", move |state| {
        state.stat(Stat::Unwrapped) >= 2
            && state
                .counters
                .get(&id)
                .is_some_and(|counters| counters[2] == 1)
    })
}

/// RFC 6040, section 4.2: the outer header's ECN field (rows) meets the inner one's (columns).
fn congestion(net: &Net) -> Case {
    let (setup, _) = tunnel_setup(net, UDP);
    let mut case = Case::new(format!("{} congestion in the tunnel", net.family), setup);
    let (not, ect0, ect1, ce) = (0, 2, 1, 3);
    // The figure's column "ECT(0)" under outer ECT(1) may also stay as it is; here only CE is taken over.
    let table = [
        (not, [Some(not), Some(ect0), Some(ect1), Some(ce)]),
        (ect0, [Some(not), Some(ect0), Some(ect1), Some(ce)]),
        (ce, [None, Some(ce), Some(ce), Some(ce)]),
    ];
    for (outer, results) in table {
        for (inner, result) in [not, ect0, ect1, ce].into_iter().zip(results) {
            let frame = udp(net.client, net.vip).traffic_class(0xb8 | inner);
            let mut wrapped = frame.clone().wrapped(net.own, net.server.ip());
            if let Some(header) = &mut wrapped.outer {
                header.traffic_class = outer;
            }
            case = match result {
                None => case.drops(Program::Xdp, &wrapped, DropReason::NotEcnCapable),
                Some(ecn) => {
                    let expected = frame.traffic_class(0xb8 | ecn).to(net.server);
                    case.xdp(&wrapped, Verdict::Up, &expected)
                }
            };
        }
    }
    case
}

/// Tunnels to a VIP port without a server here, or to no VIP port of a VIP.
fn not_ours(net: &Net) -> Case {
    let (mut setup, id) = tunnel_setup(net, UDP);
    let other = setup.virtual_server(net.other_vip, UDP);
    let local = Server::new(ForwardingMode::Tun, net.server, net.own).by(Path::Local);
    setup.server(&other, &local);
    let wrapped = |frame: Frame| frame.wrapped(net.own, net.server.ip());
    let ours = udp(net.client, net.vip);
    let elsewhere = ours.clone().wrapped(net.own, net.other_server.ip());
    let mut cut = wrapped(ours.clone()).bytes();
    cut.pop();
    Case::new(format!("{} tunnels that are not ours", net.family), setup)
        .drops(Program::Xdp, &elsewhere, DropReason::NotMyServer)
        .drops(
            Program::Xdp,
            &wrapped(tcp(net.client, net.vip, SYN)),
            DropReason::NoVirtualServer,
        )
        .drops(Program::Xdp, &cut, DropReason::Truncated)
        .xdp(
            &wrapped(ours.clone()),
            Verdict::Up,
            &ours.clone().to(net.server),
        )
        // The servers of both VIP ports are one: its replies to this client port are the first flow's.
        .drops(
            Program::Xdp,
            &wrapped(udp(net.client, net.other_vip)),
            DropReason::PortInUse,
        )
        .then(move |setup| {
            setup.change_server(id, |word| {
                sluice_abi::ServerWord::new(word.slot(), word.epoch(), Path::Xdp, false)
            });
        })
        .drops(Program::Xdp, &wrapped(ours.clone()), DropReason::BadTable)
        .then(move |setup| {
            setup.change_server(id, |word| sluice_abi::ServerWord::absent(word.epoch()));
        })
        .drops(Program::Xdp, &wrapped(ours), DropReason::ServerGone)
}

/// A VIP is no end of a tunnel. What is inside does not matter.
fn tunnels_to_a_vip(net: &Net) -> Case {
    let (setup, _) = tunnel_setup(net, UDP);
    let wrapped = |frame: Frame| frame.wrapped(net.other_client.ip(), net.vip.ip());
    let to_nobody = wrapped(udp(net.client, net.other_client));
    let to_vip = wrapped(udp(net.client, net.vip));
    let not_transport = wrapped(transport(net.client, net.other_client, 1));
    let mut case = Case::new(format!("{} tunnels to a VIP", net.family), setup);
    for frame in [&to_nobody, &to_vip, &not_transport] {
        case = case.drops(Program::Xdp, frame, DropReason::NoVirtualServer);
    }
    case = case.drops(
        Program::Xdp,
        &to_nobody.bytes()[..if net.vip.is_ipv4() { 50 } else { 70 }].to_vec(),
        DropReason::NoVirtualServer,
    );
    if net.vip.is_ipv4() {
        let (mut fragment, mut options) = (to_nobody.clone(), to_nobody.clone());
        if let (Some(fragment), Some(options)) = (&mut fragment.outer, &mut options.outer) {
            fragment.fragment = MORE_FRAGMENTS;
            options.options = vec![1; 4];
        }
        case = case
            .drops(Program::Xdp, &fragment, DropReason::Fragment)
            .drops(Program::Xdp, &options, DropReason::NoVirtualServer);
    }
    case.passes(
        Program::Xdp,
        &udp(net.client, net.other_client).wrapped(net.other_client.ip(), net.other_vip.ip()),
    )
}

/// A tunnel begins a flow only where its outer source is a director's. Pods of a director's are none, and a flow that is known
/// goes on.
fn tunnels_of_strangers(net: &Net) -> Case {
    let (setup, _) = tunnel_setup(net, TCP);
    let (director, pods) = (net.own, net.other_client.ip());
    let length = if director.is_ipv4() { 32 } else { 128 };
    let tunnel = |frame: &Frame, from: IpAddr| frame.clone().wrapped(from, net.server.ip());
    let syn = tcp(net.client, net.vip, SYN);
    let ack = tcp(net.client, net.vip, ACK);
    let up = |frame: &Frame| frame.clone().to(net.server);
    Case::new(format!("{} tunnels of strangers", net.family), setup)
        .then(move |setup| {
            setup.no_strangers();
            setup.peer_net(director, length, NET_SENDS | NET_TUNNELS);
            setup.peer_net(pods, length - 4, NET_SENDS);
        })
        .drops(
            Program::Xdp,
            &tunnel(&syn, net.client.ip()),
            DropReason::TunnelSource,
        )
        .drops(Program::Xdp, &tunnel(&syn, pods), DropReason::TunnelSource)
        .drops(Program::Xdp, &tunnel(&ack, pods), DropReason::TunnelSource)
        .check("nothing is known of it", |state| state.flows().is_empty())
        .xdp(&tunnel(&syn, director), Verdict::Up, &up(&syn))
        .then(move |setup| setup.peer_net(director, length, 0))
        .xdp(&tunnel(&ack, director), Verdict::Up, &up(&ack))
        .xdp(&tunnel(&ack, pods), Verdict::Up, &up(&ack))
}

/// Tunnels of others pass: the kernel may have a device for them.
fn other_tunnels(net: &Net) -> Case {
    let (setup, _) = tunnel_setup(net, UDP);
    let inside = udp(net.client, net.other_client).wrapped(net.own, net.server.ip());
    let mut fragment = udp(net.client, net.vip).wrapped(net.own, net.server.ip());
    let mut options = fragment.clone();
    let mut case = Case::new(format!("{} other tunnels", net.family), setup)
        .passes(Program::Xdp, &inside)
        .passes(Program::Xdp, &inside.bytes()[..50].to_vec());
    if net.vip.is_ipv4() {
        if let (Some(fragment), Some(options)) = (&mut fragment.outer, &mut options.outer) {
            fragment.fragment = MORE_FRAGMENTS;
            options.options = vec![1; 4];
        }
        case = case
            .passes(Program::Xdp, &fragment)
            .passes(Program::Xdp, &options);
    }
    case
}

/// Packets that are not for a VIP pass, however odd.
fn other_traffic() -> Case {
    let [net, net6] = nets();
    let mut setup = Setup::director();
    for vip in [net.vip, net6.vip] {
        let vip_port = setup.virtual_server(vip, TCP);
        setup.only_server(&vip_port, &Server::new(ForwardingMode::Dr, vip, vip.ip()));
    }
    let to_vip = tcp(net.client, net.vip, SYN);
    let ethernet = |ethertype: [u8; 2], payload: &[u8]| {
        [&DIRECTOR_MAC[..], &ROUTER_MAC, &ethertype, payload].concat()
    };
    // VLAN tag 5, then the packet to the VIP.
    let mut tagged = ethernet([0x81, 0x00], &[0x00, 0x05, 0x08, 0x00]);
    tagged.extend(&to_vip.bytes()[14..]);
    let mut wrong_version = to_vip.bytes();
    wrong_version[14] = 0x65;
    let mut short_header = to_vip.bytes();
    short_header[14] = 0x44;
    let mut options = to_vip.clone();
    options.ip.options = vec![1; 8];
    let mut case = Case::new("other traffic", setup);
    for frame in [
        ethernet([0x08, 0x06], &[0; 46]), // ARP
        ethernet([0x88, 0xcc], &[0; 46]), // LLDP
        ethernet([0x08, 0x00], &[0x45; 20]),
        ethernet([0x86, 0xdd], &[0x60; 40]),
        tagged,
        wrong_version,
        short_header,
        tcp(net.client, net.other_vip, SYN).bytes(),
        tcp(net6.client, net6.other_vip, SYN).bytes(),
        udp(net.client, net.other_vip).bytes(),
    ] {
        for program in [Program::Xdp, Program::Ingress, Program::Egress] {
            case = case.passes(program, &frame);
        }
    }
    // RFC 791: options belong to the header; the ports are behind them.
    case.xdp(&options, Verdict::Tx, &forwarded(&options))
        .check("nothing else was counted", |state| {
            state.drops.is_empty() && state.counters.len() == 1 && IFINDEX == 1
        })
}
