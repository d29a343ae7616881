//! Samples: what is seen of TCP connections while they begin.

use std::net::SocketAddr;

use sluice_abi::{
    FlowState, SAMPLE_DATA, SAMPLE_SLOTS, SAMPLE_TIME_NS, SAMPLE_TIMES, SampleData, SampleState,
};
use sluice_packet::{AlignedMac, Route};

use super::ways_back::Way;
use super::{Net, nets};
use crate::packet::{
    case::Case,
    frame::{ACK, DIRECTOR_MAC, FIN, Frame, ROUTER_MAC, RST, SYN, tcp},
    machine::State,
    setup::{IFINDEX, Setup, sizes},
};

/// The client's first number, and the server's.
const CLIENT: u32 = 0xffff_fffd;
const SERVER: u32 = 500;
/// What they send next.
const CLIENT_NEXT: u32 = CLIENT.wrapping_add(1);
const SERVER_NEXT: u32 = SERVER + 1;
/// A number that nobody has sent.
const FORGED: u32 = 77;

/// The cases of this module.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in nets() {
        for way in [Way::Nat, Way::FullNat, Way::OwnAddress, Way::Tunnel] {
            let talk = |what: &str| Talk::new(net, way, what);
            cases.extend([
                replies(talk("replies")),
                speaks_first(talk("speaks first")),
                refuses(talk("refuses")),
                resets(talk("resets")),
                half_closed(talk("replies late")),
                closes(talk("closes")),
                client_leaves(talk("is left")),
                forged(talk("is not fooled")),
                port_again(talk("by a port used again")),
                not_sampled(talk("is not sampled any more")),
            ]);
        }
        cases.push(one_slot(Talk::new(net, Way::Nat, "has one slot")));
        cases.push(another_server(Talk::new(net, Way::Nat, "is another one")));
    }
    cases
}

/// A client's connection to a server that is sampled.
struct Talk {
    net: Net,
    way: Way,
    client: SocketAddr,
    case: Case,
    id: u32,
}

impl Talk {
    fn new(net: Net, way: Way, what: &str) -> Self {
        let mut setup = Setup::director();
        let route = Route::Resolved {
            ifindex: IFINDEX,
            source_mac: AlignedMac(DIRECTOR_MAC),
            next_hop_mac: AlignedMac(ROUTER_MAC),
        };
        setup.route(net.client.ip(), route);
        let (_, id) = way.virtual_server(&mut setup, &net, net.vip);
        setup.change_server(id, |word| word.sampling(true));
        let name = format!("{} {way:?}: a sampled server {what}", net.family);
        Self {
            net,
            way,
            client: net.client,
            case: Case::new(name, setup),
            id,
        }
    }

    fn frame(&self, from_client: bool, flags: u8, numbers: (u32, u32), data: &[u8]) -> Frame {
        let (source, destination) = if from_client {
            (self.client, self.net.vip)
        } else {
            (self.net.server, self.client)
        };
        Frame {
            sequence: numbers.0,
            acknowledgement: numbers.1,
            ..tcp(source, destination, flags).payload(data)
        }
    }

    /// The client's segment arrives at the server.
    fn client(mut self, flags: u8, numbers: (u32, u32), data: &[u8]) -> Self {
        let frame = self.frame(true, flags, numbers, data);
        self.case = self.way.arrives(self.case, &self.net, &frame);
        self
    }

    /// The server's segment arrives at the client.
    fn server(mut self, flags: u8, numbers: (u32, u32), data: &[u8]) -> Self {
        let frame = self.frame(false, flags, numbers, data);
        self.case = self
            .way
            .hands_back(self.case, &self.net, self.net.vip, &frame);
        self
    }

    fn after(mut self, seconds: u64) -> Self {
        self.case = self.case.after_seconds(seconds);
        self
    }

    fn is(mut self, wanted: SampleState) -> Self {
        let id = self.id;
        self.case = self.case.check("the sample's state", move |state| {
            states(state) == [(id, wanted)]
        });
        self
    }

    /// So many seconds for the handshake, and until the first byte.
    fn took(mut self, handshake: u64, first_byte: u64) -> Self {
        let units = |seconds: u64| (seconds * 1_000_000_000 / SAMPLE_TIME_NS).max(1);
        let first_byte = if first_byte == 0 {
            0
        } else {
            units(first_byte)
        };
        let wanted = units(handshake) | first_byte << 32;
        self.case = self.case.check("the times", move |state| {
            let mut samples = state.samples.values();
            samples.all(|slot| slot[SAMPLE_TIMES] == wanted)
        });
        self
    }

    /// The client's entries are those of a flow that is being sampled, or of any other.
    fn flow(mut self, wanted: FlowState) -> Self {
        self.case = self.case.check("the flow's state", move |state| {
            let flows = state.flows();
            !flows.is_empty() && flows.iter().all(|(_, entry)| entry.state == wanted)
        });
        self
    }

    fn opens(self) -> Self {
        self.client(SYN, (CLIENT, 0), b"")
            .is(SampleState::Opening)
            .after(1)
            .server(SYN | ACK, (SERVER, CLIENT_NEXT), b"")
            .is(SampleState::Answered)
            .client(ACK, (CLIENT_NEXT, SERVER_NEXT), b"")
            .is(SampleState::Open)
            .took(1, 0)
            .flow(FlowState::Young)
    }

    fn asks(self) -> Self {
        self.opens()
            .client(ACK, (CLIENT_NEXT, SERVER_NEXT), b"GET")
            .is(SampleState::Asked)
    }
}

/// Servers and states of all samples.
fn states(state: &State) -> Vec<(u32, SampleState)> {
    let samples = state.samples.values();
    let samples = samples.map(|slot| SampleData(slot[SAMPLE_DATA]));
    samples
        .map(|data| (data.server(), data.state().expect("a state")))
        .collect()
}

fn replies(talk: Talk) -> Case {
    let next = CLIENT_NEXT.wrapping_add(3);
    talk.asks()
        .server(ACK, (SERVER_NEXT, next), b"")
        .is(SampleState::Asked)
        .flow(FlowState::Young)
        .after(2)
        .server(ACK, (SERVER_NEXT, next), b"OK")
        .is(SampleState::Replied)
        .took(1, 2)
        .client(ACK, (next, SERVER_NEXT + 2), b"")
        .flow(FlowState::Established)
        .server(RST, (SERVER_NEXT + 2, 0), b"")
        .is(SampleState::Replied)
        .took(1, 2)
        .case
}

fn speaks_first(talk: Talk) -> Case {
    talk.opens()
        .after(2)
        .server(ACK, (SERVER_NEXT, CLIENT_NEXT), b"220")
        .is(SampleState::Replied)
        .took(1, 0)
        .case
}

fn refuses(talk: Talk) -> Case {
    talk.client(SYN, (CLIENT, 0), b"")
        // Sent again, it is the same attempt.
        .after(1)
        .client(SYN, (CLIENT, 0), b"")
        .server(RST | ACK, (0, FORGED), b"")
        .is(SampleState::Opening)
        .server(RST | ACK, (0, CLIENT_NEXT), b"")
        .is(SampleState::Refused)
        .case
}

fn resets(talk: Talk) -> Case {
    talk.asks()
        .server(RST, (FORGED, 0), b"")
        .is(SampleState::Asked)
        .server(RST, (SERVER_NEXT, 0), b"")
        .is(SampleState::Reset)
        .case
}

/// A client that sends nothing more may wait for its answer all the same.
fn half_closed(talk: Talk) -> Case {
    let next = CLIENT_NEXT.wrapping_add(4);
    talk.asks()
        .client(FIN | ACK, (CLIENT_NEXT.wrapping_add(3), SERVER_NEXT), b"")
        .is(SampleState::Asked)
        .flow(FlowState::Closing)
        .after(2)
        .server(ACK, (SERVER_NEXT, next), b"OK")
        .is(SampleState::Replied)
        .took(1, 2)
        .case
}

fn closes(talk: Talk) -> Case {
    talk.asks()
        .server(FIN | ACK, (FORGED, CLIENT_NEXT), b"")
        .is(SampleState::Asked)
        .server(FIN | ACK, (SERVER_NEXT, CLIENT_NEXT), b"")
        .is(SampleState::Closed)
        .flow(FlowState::Closing)
        .case
}

fn client_leaves(talk: Talk) -> Case {
    talk.opens()
        .client(RST, (CLIENT_NEXT, 0), b"")
        .is(SampleState::Left)
        .flow(FlowState::Closed)
        .case
}

/// Who sees no answer of the server's has no handshake, and what it provokes is no fault.
fn forged(talk: Talk) -> Case {
    talk.client(SYN, (CLIENT, 0), b"")
        .server(SYN | ACK, (SERVER, FORGED), b"")
        .is(SampleState::Opening)
        .server(SYN | ACK, (SERVER, CLIENT_NEXT), b"")
        .client(ACK, (CLIENT_NEXT, FORGED), b"GET")
        .is(SampleState::Answered)
        .server(RST, (FORGED, 0), b"")
        .is(SampleState::Answered)
        .server(RST, (SERVER_NEXT, 0), b"")
        .is(SampleState::Left)
        .case
}

fn port_again(talk: Talk) -> Case {
    talk.client(SYN, (CLIENT, 0), b"")
        .after(5)
        .client(SYN, (CLIENT + 1, 0), b"")
        .is(SampleState::Opening)
        .server(SYN | ACK, (SERVER, CLIENT_NEXT), b"")
        .is(SampleState::Opening)
        .after(1)
        .server(SYN | ACK, (SERVER, CLIENT_NEXT + 1), b"")
        .is(SampleState::Answered)
        .took(1, 0)
        .case
}

fn not_sampled(talk: Talk) -> Case {
    let mut talk = talk.opens();
    let id = talk.id;
    talk.case = talk.case.then(move |setup| {
        setup.change_server(id, |word| word.sampling(false));
    });
    talk.client(ACK, (CLIENT_NEXT, SERVER_NEXT), b"GET")
        .is(SampleState::Open)
        .flow(FlowState::Established)
        .case
}

/// Of connections with the same slot the first one is sampled, until its sample is stale.
fn one_slot(talk: Talk) -> Case {
    const CLIENTS: u16 = 300;
    assert!(sizes::SAMPLES < u32::from(CLIENTS) && sizes::SAMPLES < SAMPLE_SLOTS);
    let open_all = |mut talk: Talk| {
        for port in 1..=CLIENTS {
            talk.client.set_port(port);
            talk = talk.client(SYN, (u32::from(port), 0), b"");
        }
        talk
    };
    let mut talk = open_all(talk);
    let ports = |state: &State| -> Vec<u64> {
        let samples = state.samples.values();
        samples.map(|slot| slot[0] >> 32 & 0xffff).collect()
    };
    talk.case = talk.case.check("the first ones", move |state| {
        let ports = ports(state);
        ports.len() == sizes::SAMPLES as usize && ports.contains(&1) && !ports.contains(&300)
    });
    let mut talk = open_all(talk.after(61));
    talk.case = talk.case.check("all begin anew", move |state| {
        let begun: Vec<u64> = state.samples.values().map(|slot| slot[4]).collect();
        begun.len() == sizes::SAMPLES as usize && begun.windows(2).all(|two| two[0] == two[1])
    });
    talk.case
}

/// What another server with the same address answers is not the sampled one's.
fn another_server(talk: Talk) -> Case {
    let mut talk = talk.client(SYN, (CLIENT, 0), b"");
    let id = talk.id;
    talk.case = talk.case.then(move |setup| {
        setup.change_server(id, |word| {
            let epoch = word.epoch().wrapping_add(1);
            let other = sluice_abi::ServerWord::new(word.slot(), epoch, word.path(), false);
            other.sampling(true)
        });
    });
    talk.client(SYN, (CLIENT, 0), b"")
        .server(SYN | ACK, (SERVER, CLIENT_NEXT), b"")
        .is(SampleState::Answered)
        .took(0, 0)
        .case
}
