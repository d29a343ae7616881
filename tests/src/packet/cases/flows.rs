//! Flow tables: who stays with which server, and for how long.
//!
//! Each case has two servers, `old` and `new`. The ring names `old` when the flow begins and `new` afterwards: whichever
//! gets a packet tells whether the flow was still known.

use std::net::SocketAddr;

use sluice_abi::{ConfigWord, FlowState, ForwardingMode, Path, ServerWord, Stat, TCP, UDP};
use sluice_packet::Verdict;

use super::refused::reset_of;
use super::{Net, first, nets};
use crate::packet::{
    case::Case,
    frame::{ACK, DIRECTOR_MAC, FIN, Frame, PSH, RST, SYN, tcp, udp},
    machine::{Entry, Program, State, Table},
    setup::{Server, Setup, VipPort},
};

/// The cases of this module.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in nets() {
        cases.extend([
            established(&net),
            syn_again(&net),
            what_confirms(&net),
            middle_of_a_connection(&net),
            udp_flow(&net),
            reuse_after(&net, FIN | ACK, "FIN"),
            reuse_after(&net, RST, "RST"),
        ]);
        cases.extend([
            no_reuse_while_established(&net),
            draining(&net),
            draining_udp(&net),
            resetting(&net),
            epoch(&net),
            reuse_after_the_server_is_gone(&net),
            clock_of_another_cpu(&net),
            flood(&net),
            nat_both_ways(&net),
            second_pool(&net),
        ]);
        cases.extend(timeouts(&net));
    }
    cases
}

const OLD_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 1];
const NEW_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 2];

struct Pair {
    setup: Setup,
    vip_port: VipPort,
    old: u32,
    new: u32,
}

fn pair(net: &Net, protocol: u8) -> Pair {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, protocol);
    let server = |address, next_hop_mac| Server {
        next_hop_mac,
        ..Server::new(ForwardingMode::Dr, address, net.own)
    };
    let old = setup.only_server(&vip_port, &server(net.server, OLD_MAC));
    let new = setup.server(&vip_port, &server(net.other_server, NEW_MAC));
    Pair {
        setup,
        vip_port,
        old,
        new,
    }
}

impl Pair {
    fn case(&self, title: String) -> Case {
        Case::new(title, self.setup.clone())
    }

    /// The change that makes the ring name the new server.
    fn flip(&self) -> impl FnOnce(&mut Setup) + use<> {
        let (ring, new) = (self.vip_port.head, self.new);
        move |setup| setup.ring(ring, &[new])
    }
}

/// Steps in which a packet goes to one server or the other.
trait Sent {
    fn to_old(self, frame: &Frame) -> Self;
    fn to_new(self, frame: &Frame) -> Self;
}

fn sent(frame: &Frame, mac: [u8; 6]) -> Frame {
    let ttl = frame.ip.ttl - 1;
    frame.clone().macs(DIRECTOR_MAC, mac).ttl(ttl)
}

impl Sent for Case {
    fn to_old(self, frame: &Frame) -> Self {
        self.xdp(frame, Verdict::Tx, &sent(frame, OLD_MAC))
    }
    fn to_new(self, frame: &Frame) -> Self {
        self.xdp(frame, Verdict::Tx, &sent(frame, NEW_MAC))
    }
}

fn is(table: Table, server: u32, state: FlowState) -> impl Fn(Option<Entry>) -> bool {
    move |entry| {
        entry
            .is_some_and(|entry| (entry.table, entry.server, entry.state) == (table, server, state))
    }
}

/// A check that the client's flow has such an entry.
fn entry(
    client: SocketAddr,
    vip_port: &VipPort,
    table: Table,
    server: u32,
    state: FlowState,
) -> impl Fn(&State) -> bool + 'static {
    let (far, is) = (vip_port.far(), is(table, server, state));
    move |tables| is(tables.flow(client, far))
}

fn established(net: &Net) -> Case {
    let pair = pair(net, TCP);
    let (client, vip_port, old) = (net.client, pair.vip_port, pair.old);
    let packet = |flags| tcp(client, net.vip, flags);
    pair.case(format!("{} an established connection stays", net.family))
        .to_old(&packet(SYN))
        .check(
            "the SYN made a half-open entry",
            entry(client, &vip_port, Table::HalfOpen, old, FlowState::Syn),
        )
        .then(pair.flip())
        .to_old(&packet(ACK))
        .check(
            "the ACK confirmed it",
            entry(
                client,
                &vip_port,
                Table::Established,
                old,
                FlowState::Established,
            ),
        )
        .check("it moved", |state| {
            state.flows().len() == 1
                && state.stat(Stat::HalfOpen) == 1
                && state.stat(Stat::Promoted) == 1
        })
        .to_old(&packet(PSH | ACK))
        .to_new(&tcp(net.other_client, net.vip, SYN))
        .after_seconds(3000)
        .to_old(&packet(ACK))
        .after_seconds(3000)
        .to_old(&packet(ACK))
}

/// The ring may flip between a SYN and its repetition, or the ACK: the answer to the first one is on its way.
fn syn_again(net: &Net) -> Case {
    let pair = pair(net, TCP);
    let packet = |flags| tcp(net.client, net.vip, flags);
    pair.case(format!("{} a repeated SYN", net.family))
        .to_old(&packet(SYN))
        .then(pair.flip())
        .after_seconds(1)
        .to_old(&packet(SYN))
        .after_seconds(3)
        .to_old(&packet(SYN))
        .check("half-open all the time", |state| {
            state.stat(Stat::Promoted) == 0
        })
        .to_old(&packet(ACK))
}

/// Only an ACK that is no SYN and no RST shows that the client got the server's answer.
fn what_confirms(net: &Net) -> Case {
    let pair = pair(net, TCP);
    let packet = |flags| tcp(net.client, net.vip, flags);
    let (client, vip_port, old) = (net.client, pair.vip_port, pair.old);
    pair.case(format!("{} what confirms a SYN", net.family))
        .to_old(&packet(SYN))
        .to_old(&packet(RST))
        .to_old(&packet(RST | ACK))
        .to_old(&packet(SYN | ACK))
        .to_old(&packet(FIN))
        .to_old(&packet(PSH))
        .check(
            "none of these does",
            entry(client, &vip_port, Table::HalfOpen, old, FlowState::Syn),
        )
        .to_old(&packet(FIN | ACK))
        .check(
            "an ACK does, and closes",
            entry(
                client,
                &vip_port,
                Table::Established,
                old,
                FlowState::Closing,
            ),
        )
}

/// A packet of a connection that began elsewhere, after a failover: followed, but not trusted at once.
fn middle_of_a_connection(net: &Net) -> Case {
    let pair = pair(net, TCP);
    let packet = |flags| tcp(net.client, net.vip, flags);
    let (client, vip_port, old) = (net.client, pair.vip_port, pair.old);
    let half_open = || {
        entry(
            client,
            &vip_port,
            Table::HalfOpen,
            old,
            FlowState::Unconfirmed,
        )
    };
    pair.case(format!("{} the middle of a connection", net.family))
        .to_old(&packet(ACK))
        .check("unconfirmed", half_open())
        .then(pair.flip())
        .to_old(&packet(ACK))
        .to_old(&packet(PSH | ACK))
        .check("a burst does not confirm", half_open())
        .after_seconds(2)
        .to_old(&packet(ACK))
        .check(
            "a packet later does",
            entry(
                client,
                &vip_port,
                Table::Established,
                old,
                FlowState::Established,
            ),
        )
}

fn udp_flow(net: &Net) -> Case {
    let pair = pair(net, UDP);
    let packet = udp(net.client, net.vip);
    let (client, vip_port, old) = (net.client, pair.vip_port, pair.old);
    pair.case(format!("{} a UDP flow", net.family))
        .to_old(&packet)
        .check(
            "unconfirmed",
            entry(
                client,
                &vip_port,
                Table::HalfOpen,
                old,
                FlowState::Unconfirmed,
            ),
        )
        .then(pair.flip())
        .to_old(&packet)
        .after_seconds(2)
        .to_old(&packet)
        .check(
            "confirmed",
            entry(client, &vip_port, Table::Established, old, FlowState::Udp),
        )
        .after_seconds(100)
        .to_old(&packet)
        .after_seconds(100)
        .to_old(&packet)
}

/// A client uses its port again for another connection: the old one's server is of no matter then.
fn reuse_after(net: &Net, end: u8, name: &str) -> Case {
    let pair = pair(net, TCP);
    let packet = |flags| tcp(net.client, net.vip, flags);
    let (client, vip_port, new) = (net.client, pair.vip_port, pair.new);
    pair.case(format!("{} port reuse after {name}", net.family))
        .to_old(&packet(SYN))
        .to_old(&packet(ACK))
        .to_old(&packet(end))
        .then(pair.flip())
        .to_old(&packet(ACK))
        .to_new(&packet(SYN))
        .check(
            "one entry, half-open",
            entry(client, &vip_port, Table::HalfOpen, new, FlowState::Syn),
        )
        .check("one entry", |state| state.flows().len() == 1)
        .to_new(&packet(ACK))
}

/// RFC 9293, section 3.10.7.4: a SYN within a connection gets a challenge ACK from the server that has it.
fn no_reuse_while_established(net: &Net) -> Case {
    let pair = pair(net, TCP);
    let packet = |flags| tcp(net.client, net.vip, flags);
    pair.case(format!("{} a SYN within a connection", net.family))
        .to_old(&packet(SYN))
        .to_old(&packet(ACK))
        .then(pair.flip())
        .to_old(&packet(SYN))
        .to_old(&packet(ACK))
}

fn drain(id: u32) -> impl FnOnce(&mut Setup) {
    move |setup| {
        setup.change_server(id, |word| {
            ServerWord::new(word.slot(), word.epoch(), word.path(), true)
        });
    }
}

fn draining(net: &Net) -> Case {
    let pair = pair(net, TCP);
    let packet = |flags| tcp(net.client, net.vip, flags);
    pair.case(format!("{} draining", net.family))
        .to_old(&packet(SYN))
        .to_old(&packet(ACK))
        .then(pair.flip())
        .then(drain(pair.old))
        .to_old(&packet(ACK))
        .to_old(&packet(PSH | ACK))
        .to_new(&packet(SYN))
        .to_new(&packet(ACK))
}

/// The server's connections are reset: clients are told at their next packet, and may connect anew. What they reset themselves the
/// server hears of.
fn resetting(net: &Net) -> Case {
    let pair = pair(net, TCP);
    let packet = |flags| tcp(net.client, net.vip, flags);
    let other = |flags| tcp(net.other_client, net.vip, flags);
    let end = |setup: &mut Setup| {
        setup.change_server(pair.old, |word| {
            ServerWord::new(word.slot(), word.epoch(), word.path(), true).resetting(true)
        });
    };
    let told = |frame: &Frame| reset_of(frame, 2_000, 0, RST);
    let (data, half_open) = (packet(PSH | ACK), other(ACK));
    pair.case(format!("{} resetting", net.family))
        .to_old(&packet(SYN))
        .to_old(&packet(ACK))
        .to_old(&other(SYN))
        .then(pair.flip())
        .then(end)
        .xdp(&data, Verdict::Tx, &told(&data))
        .xdp(&data, Verdict::Tx, &told(&data))
        .xdp(&half_open, Verdict::Tx, &told(&half_open))
        .to_old(&packet(RST))
        .check("three are told", |state| state.stat(Stat::Refused) == 3)
        .to_new(&packet(SYN))
        .to_new(&packet(ACK))
        .to_new(&other(SYN))
}

fn draining_udp(net: &Net) -> Case {
    let pair = pair(net, UDP);
    let packet = udp(net.client, net.vip);
    pair.case(format!("{} draining UDP", net.family))
        .to_old(&packet)
        .after_seconds(2)
        .to_old(&packet)
        .then(pair.flip())
        .then(drain(pair.old))
        .to_old(&packet)
        .to_new(&udp(net.other_client, net.vip))
}

/// The id was given to another server: flows of the earlier one must not go there unless the ring says so.
fn epoch(net: &Net) -> Case {
    let pair = pair(net, TCP);
    let packet = |flags| tcp(net.client, net.vip, flags);
    let old = pair.old;
    pair.case(format!("{} an id in another epoch", net.family))
        .to_old(&packet(SYN))
        .to_old(&packet(ACK))
        .then(pair.flip())
        .then(move |setup| {
            setup.change_server(old, |word| {
                ServerWord::new(word.slot(), 2, Path::Xdp, false)
            });
        })
        .to_new(&packet(ACK))
        .to_new(&packet(ACK))
}

/// A client uses its port again after the server of its last connection is gone: what is left of that must not hide the
/// new connection.
fn reuse_after_the_server_is_gone(net: &Net) -> Case {
    let pair = pair(net, TCP);
    let packet = |flags| tcp(net.client, net.vip, flags);
    let (client, vip_port, old, new) = (net.client, pair.vip_port, pair.old, pair.new);
    pair.case(format!("{} a port used again after its server", net.family))
        .to_old(&packet(SYN))
        .to_old(&packet(ACK))
        .to_old(&packet(FIN | ACK))
        .then(pair.flip())
        .then(move |setup| {
            setup.change_server(old, |word| ServerWord::absent(word.epoch()));
        })
        .to_new(&packet(SYN))
        .check("one entry", |state| state.flows().len() == 1)
        .to_new(&packet(ACK))
        .check(
            "established",
            entry(
                client,
                &vip_port,
                Table::Established,
                new,
                FlowState::Established,
            ),
        )
}

/// Clocks of two CPUs tick at different moments: an entry may come from the future.
fn clock_of_another_cpu(net: &Net) -> Case {
    let pair = pair(net, TCP);
    let packet = |flags| tcp(net.client, net.vip, flags);
    let (client, vip_port, old) = (net.client, pair.vip_port, pair.old);
    pair.case(format!("{} the clock of another CPU", net.family))
        .to_old(&packet(ACK))
        .then(pair.flip())
        .one_tick_back()
        .to_old(&packet(ACK))
        .check(
            "no time has passed",
            entry(
                client,
                &vip_port,
                Table::HalfOpen,
                old,
                FlowState::Unconfirmed,
            ),
        )
        .after_seconds(4)
        .to_old(&packet(ACK))
        .one_tick_back()
        .to_old(&packet(ACK))
}

/// Idle times after which a flow is no more, from the ABI: still there a little before, gone as much later. Times of
/// established flows count units of 8.6 s, so their end has that play.
fn timeouts(net: &Net) -> Vec<Case> {
    let cases: [(&str, u8, &[u8], [u64; 2]); 6] = [
        ("SYN", TCP, &[SYN], [32, 36]),
        ("unconfirmed TCP", TCP, &[ACK], [32, 36]),
        ("unconfirmed UDP", UDP, &[0], [32, 36]),
        ("established", TCP, &[SYN, ACK], [4396, 4408]),
        ("closing", TCP, &[SYN, ACK, FIN | ACK], [67, 79]),
        ("closed", TCP, &[SYN, ACK, RST], [7, 19]),
    ];
    let mut result = Vec::new();
    for (name, protocol, packets, waits) in cases {
        for (late, wait) in [false, true].into_iter().zip(waits) {
            let pair = pair(net, protocol);
            let title = format!("{} {name}, idle for {wait} s", net.family);
            result.push(idle(net, &pair, pair.case(title), (packets, wait, late)));
        }
    }
    result.extend(other_timeouts(net));
    result
}

/// Timeouts are settings.
fn other_timeouts(net: &Net) -> Vec<Case> {
    let cases: [(&str, &[u8], [u64; 2]); 2] = [
        ("SYN", &[SYN], [4, 7]),
        ("closing", &[SYN, ACK, FIN | ACK], [16, 27]),
    ];
    let mut result = Vec::new();
    for (name, packets, waits) in cases {
        for (late, wait) in [false, true].into_iter().zip(waits) {
            let mut pair = pair(net, TCP);
            let half_open = 10 << 16;
            let established = 512 | 2 << 16 | 1 << 32 | 32 << 48;
            pair.setup.config(ConfigWord::HalfOpenTimeouts, half_open);
            pair.setup
                .config(ConfigWord::EstablishedTimeouts, established);
            let title = format!("{} a shorter timeout, {name}, {wait} s", net.family);
            result.push(idle(net, &pair, pair.case(title), (packets, wait, late)));
        }
    }
    result
}

/// A flow of these packets, idle for so many seconds: `late` if it is no more then.
fn idle(net: &Net, pair: &Pair, mut case: Case, (packets, wait, late): (&[u8], u64, bool)) -> Case {
    let protocol = pair.vip_port.protocol;
    let packet = |flags| first(net.client, net.vip, protocol).flags(flags);
    for flags in packets {
        case = case.to_old(&packet(*flags));
    }
    case = case.then(pair.flip()).after_seconds(wait);
    let last = packet(if protocol == TCP { ACK } else { 0 });
    if late {
        case.to_new(&last)
    } else {
        case.to_old(&last)
    }
}

/// Far more SYNs, and then far more stray ACKs, than both tables hold: no established flow gives way.
fn flood(net: &Net) -> Case {
    let pair = pair(net, TCP);
    let at = |port| SocketAddr::new(net.client.ip(), port);
    let mut case = pair.case(format!("{} a flood of half-open flows", net.family));
    for port in 1..=12 {
        case = case
            .to_old(&tcp(at(port), net.vip, SYN))
            .to_old(&tcp(at(port), net.vip, ACK));
    }
    case = case.then(pair.flip()).after_seconds(20);
    for port in 1000..1400 {
        let flags = if port < 1200 { SYN } else { ACK };
        case = case.to_new(&tcp(at(port), net.vip, flags));
    }
    case = case.check("the half-open table overflowed", |state| {
        state.stat(Stat::HalfOpenEvicted) > 200
    });
    for port in 1..=12 {
        case = case.to_old(&tcp(at(port), net.vip, ACK));
    }
    case.check("no established flow was evicted", |state| {
        state.stat(Stat::FlowEvicted) == 0
    })
}

/// NAT records the way back beside the way there, and both end together.
fn nat_both_ways(net: &Net) -> Case {
    let mut setup = Setup::director();
    let vip_port = setup.virtual_server(net.vip, TCP);
    let id = setup.only_server(
        &vip_port,
        &Server::new(ForwardingMode::Nat, net.server, net.own),
    );
    let reply_end = setup.reply_end(net.server, TCP);
    let packet = |flags| tcp(net.client, net.vip, flags);
    let at_server = |flags| super::at_server(net, ForwardingMode::Nat, &packet(flags));
    let client = net.client;
    let both = move |table, state| {
        move |tables: &State| {
            let is = is(table, id, state);
            is(tables.flow(client, vip_port.far())) && is(tables.flow(client, reply_end))
        }
    };
    Case::new(format!("{} NAT both ways", net.family), setup)
        .xdp(&packet(SYN), Verdict::Tx, &at_server(SYN))
        .check("half-open both ways", both(Table::HalfOpen, FlowState::Syn))
        .xdp(&packet(ACK), Verdict::Tx, &at_server(ACK))
        .check(
            "established both ways",
            both(Table::Established, FlowState::Established),
        )
        .drops(
            Program::Xdp,
            &tcp(net.server, client, FIN | ACK),
            sluice_abi::DropReason::NoRoute,
        )
        .check(
            "the server closes",
            both(Table::Established, FlowState::Closing),
        )
        .xdp(&packet(RST), Verdict::Tx, &at_server(RST))
        .check(
            "the client resets",
            both(Table::Established, FlowState::Closed),
        )
}

/// A first pool whose share is 0 gets nothing.
fn second_pool(net: &Net) -> Case {
    let mut pair = pair(net, TCP);
    let (head, new) = (pair.vip_port.head, pair.new);
    pair.setup.ring(40, &[new]);
    let entry = pair.setup.heads.entry(head).or_default();
    entry.pool_count = 2;
    entry.pools[1] = entry.pools[0];
    entry.pools[1].ring = 40;
    entry.pools[0].threshold = 0;
    let mut case = pair.case(format!("{} a pool without a share", net.family));
    for port in 1..20 {
        let client = SocketAddr::new(net.client.ip(), port);
        case = case.to_new(&tcp(client, net.vip, SYN));
    }
    case
}
