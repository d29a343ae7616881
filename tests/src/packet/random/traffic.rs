//! Random packets: to virtual servers, back from servers, through tunnels, damaged in every way, and unrelated ones.

use std::net::SocketAddr;

use sluice_abi::{ForwardingMode, TCP, UDP};

use super::{
    Rng, Target, World, asks,
    world::{CLIENT_PORTS, CLIENTS, Family, Virtual, client, own, vip},
};
use crate::packet::{
    frame::{
        ACK, Checksum, DIRECTOR_MAC, FIN, Frame, IpHeader, MORE_FRAGMENTS, PEER_MAC, PSH,
        ROUTER_MAC, RST, SERVER_MAC, SYN, transport,
    },
    machine::{Input, Program, State},
};

/// A packet that is going to be run.
pub struct Shot {
    /// Which program gets it.
    pub program: Program,
    /// The clock.
    pub now_ns: u64,
    /// The random number.
    pub random: u32,
    /// Whether there is room for an outer header.
    pub headroom: bool,
    /// The frame.
    pub frame: Vec<u8>,
    /// Which kind of virtual server it has to do with.
    pub target: Option<Target>,
    /// Whether its destination, inside a tunnel if it is in one, is a VIP.
    pub to_vip: bool,
}

impl Shot {
    /// Without a target if that is not clear.
    fn aimed(mut self, clear: bool) -> Self {
        self.target = self.target.filter(|_| clear);
        self
    }

    /// For a [`crate::packet::machine::Machine`].
    pub fn input(&self) -> Input<'_> {
        Input {
            program: self.program,
            now_ns: self.now_ns,
            random: self.random,
            frame: &self.frame,
            headroom: self.headroom,
        }
    }
}

/// Makes packets for a world.
pub struct Traffic {
    now_ns: u64,
    /// Flows that a server may reply to, with the server and the client.
    ways_back: Vec<(Target, SocketAddr, SocketAddr)>,
    /// The same for FullNAT: the server and the director's own address.
    claims: Vec<(SocketAddr, SocketAddr, u8)>,
}

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Frames are not cut to fewer bytes than this: an IPv4 header is whole.
const SHORTEST: usize = 34;
/// A test run of a tc program wants a whole IPv6 header.
const SHORTEST_AT_TC: usize = 54;

impl Traffic {
    /// Packets from this moment on.
    pub fn new(rng: &mut Rng) -> Self {
        Self {
            now_ns: rng.bits() >> 14,
            ways_back: Vec::new(),
            claims: Vec::new(),
        }
    }

    /// Tells what is in the tables, so that replies can belong to flows.
    pub fn look(&mut self, state: &State, world: &World) {
        let flows = state.flows().into_iter();
        let way_back = |((client, tag), _)| {
            let (target, server) = world.replier(tag)?;
            Some((target, server, client))
        };
        self.ways_back = flows.filter_map(way_back).collect();
        let claims = state.claims().into_iter();
        self.claims = claims
            .map(|claim| (claim.server, claim.own, claim.protocol))
            .collect();
    }

    /// The next packet.
    pub fn next(&mut self, rng: &mut Rng, world: &World) -> Shot {
        self.pass_time(rng);
        let this = rng.pick(world.busy());
        match rng.below(100) {
            0..8 => self.unrelated(rng, this),
            8..30 => self.reply(rng, this),
            30..34 => self.beside(rng, this),
            34..42 => self.tunnelled(rng, this, &world.virtuals),
            42..50 => self.asked(rng, this),
            _ => self.request(rng, this),
        }
    }

    fn pass_time(&mut self, rng: &mut Rng) {
        const MS: u64 = 1_000_000;
        let step = match rng.below(400) {
            0 => 40_000 * MS,
            1 => 300_000 * MS,
            2 => 5_000_000 * MS,
            3..20 => 1_500 * MS,
            20..100 => 100 * MS,
            _ => MS,
        };
        // Another CPU's clock may not have ticked yet.
        if rng.percent(2) {
            self.now_ns -= 1 << sluice_abi::HALF_OPEN_SHIFT;
        } else {
            self.now_ns += step;
        }
    }

    fn shot(&self, rng: &mut Rng, program: Program, mut frame: Vec<u8>, target: Target) -> Shot {
        if program != Program::Xdp && frame.len() < SHORTEST_AT_TC {
            frame.resize(SHORTEST_AT_TC, 0);
        }
        Shot {
            program,
            now_ns: self.now_ns,
            random: *rng.pick(&[0, 0, 0x8000, 0x1234_0000, 0x0777_c000]),
            headroom: true,
            frame,
            target: Some(target),
            to_vip: true,
        }
    }

    /// From a client to the virtual server.
    fn request(&self, rng: &mut Rng, this: &Virtual) -> Shot {
        let program = if rng.percent(30) {
            Program::Ingress
        } else {
            Program::Xdp
        };
        let from_peer = rng.percent(6);
        let for_others = rng.percent(3);
        let frame = from_client(rng, this).macs(
            if from_peer { PEER_MAC } else { ROUTER_MAC },
            if for_others { SERVER_MAC } else { DIRECTOR_MAC },
        );
        let (frame, clear) = spoiled(rng, frame);
        let mut shot = self.shot(rng, program, frame, this.target);
        shot = shot.aimed(clear && !for_others);
        if this.ports_taken && rng.percent(80) {
            shot.random = 0;
        }
        shot.headroom = !(program == Program::Xdp && rng.percent(8));
        shot
    }

    /// To another port or protocol of the VIP.
    fn beside(&self, rng: &mut Rng, this: &Virtual) -> Shot {
        let mut frame = from_client(rng, this);
        match rng.below(3) {
            0 => frame.destination_port = 81,
            1 => {
                frame.protocol = *rng.pick(&[1, 58, 132]);
                frame.destination_port = 0;
            }
            _ => frame.destination_port = 0,
        }
        let program = if rng.percent(20) {
            Program::Ingress
        } else {
            Program::Xdp
        };
        self.shot(rng, program, frame.bytes(), this.target)
    }

    /// From a server to a client, or to a port of the director's own address.
    fn reply(&self, rng: &mut Rng, this: &Virtual) -> Shot {
        let kind = rng.below(10);
        if kind < 7 && !self.ways_back.is_empty() {
            let (target, server, client) = *rng.pick(&self.ways_back);
            return self.reply_from(rng, target, server, client);
        }
        if kind < 9 && !self.claims.is_empty() {
            let (server, own, protocol) = *rng.pick(&self.claims);
            let target = Target {
                mode: ForwardingMode::FullNat,
                family: if own.is_ipv4() {
                    Family::V4
                } else {
                    Family::V6
                },
                protocol,
            };
            return self.reply_from(rng, target, server, own);
        }
        let (_, server) = *rng.pick(&this.servers);
        let client = some_client(rng, this.target.family);
        self.reply_from(rng, this.target, server, client)
    }

    fn reply_from(
        &self,
        rng: &mut Rng,
        target: Target,
        server: SocketAddr,
        to: SocketAddr,
    ) -> Shot {
        let mut frame = transport(server, to, target.protocol)
            .macs(SERVER_MAC, DIRECTOR_MAC)
            .ttl(ttl(rng))
            .payload(&payload(rng));
        if frame.protocol == TCP {
            frame.flags = flags(rng);
            (frame.sequence, frame.acknowledgement) = numbers(rng, frame.flags, 2_000, 1_000);
        }
        let program = *rng.pick(&[
            Program::Xdp,
            Program::Xdp,
            Program::Ingress,
            Program::Egress,
        ]);
        let mut bytes = frame.bytes();
        if rng.percent(5) {
            bytes.pop();
        }
        Shot {
            to_vip: false,
            ..self.shot(rng, program, bytes, target)
        }
    }

    /// From another director, by tunnel.
    fn tunnelled(&self, rng: &mut Rng, this: &Virtual, all: &[Virtual]) -> Shot {
        // Half of them go to a virtual server that does use tunnels.
        let tunnels: Vec<&Virtual> = all
            .iter()
            .filter(|other| {
                other.target.mode == ForwardingMode::Tun
                    && (other.target.family, other.target.protocol)
                        == (this.target.family, this.target.protocol)
            })
            .collect();
        let this = if rng.percent(75) {
            *rng.pick(&tunnels)
        } else {
            this
        };
        let (_, server) = *rng.pick(&this.servers);
        let mut frame = from_client(rng, this).macs(PEER_MAC, DIRECTOR_MAC);
        let mut outer = IpHeader::new(own(this.target.family), server.ip());
        outer.traffic_class = rng.byte();
        if rng.percent(50) {
            outer.traffic_class |= 3;
        }
        if rng.percent(4) {
            outer.fragment = MORE_FRAGMENTS;
        }
        frame.outer = Some(outer);
        let (bytes, clear) = spoiled(rng, frame);
        self.shot(rng, Program::Xdp, bytes, this.target)
            .aimed(clear)
    }

    /// About who has the VIP.
    fn asked(&self, rng: &mut Rng, this: &Virtual) -> Shot {
        let asks::Ask {
            program,
            frame,
            clear,
        } = asks::ask(rng, this);
        let mut shot = Shot {
            to_vip: false,
            ..self.shot(rng, program, frame, this.target)
        };
        shot.headroom = !(program == Program::Xdp && rng.percent(8));
        let clear = clear && shot.headroom;
        shot.aimed(clear)
    }

    /// Anything else.
    fn unrelated(&self, rng: &mut Rng, this: &Virtual) -> Shot {
        let family = this.target.family;
        let mut frame = match rng.below(3) {
            0 => {
                let length = SHORTEST + rng.below(80) as usize;
                let mut bytes: Vec<u8> = (0..length).map(|_| rng.byte()).collect();
                let ethertype =
                    *rng.pick(&[[0x08, 0x00], [0x86, 0xdd], [0x08, 0x06], [0x81, 0x00]]);
                bytes[12..14].copy_from_slice(&ethertype);
                bytes[14] = *rng.pick(&[0x45, 0x46, 0x60, 0x00]);
                bytes
            }
            1 => transport(
                some_client(rng, family),
                vip(family, 200, 80),
                *rng.pick(&[TCP, UDP, 1]),
            )
            .bytes(),
            _ => transport(some_client(rng, family), some_client(rng, family), TCP).bytes(),
        };
        if rng.percent(10) {
            frame.truncate(SHORTEST + rng.below(20) as usize);
        }
        let program = *rng.pick(&[Program::Xdp, Program::Ingress, Program::Egress]);
        Shot {
            target: None,
            to_vip: false,
            ..self.shot(rng, program, frame, this.target)
        }
    }
}

fn some_client(rng: &mut Rng, family: Family) -> SocketAddr {
    let port = u16::try_from(rng.below(u32::from(CLIENT_PORTS))).unwrap_or(0);
    client(family, rng.below(CLIENTS), port)
}

fn from_client(rng: &mut Rng, this: &Virtual) -> Frame {
    let from = some_client(rng, this.target.family);
    let mut frame = transport(from, this.vip_port.vip, this.target.protocol)
        .ttl(ttl(rng))
        .payload(&payload(rng))
        .traffic_class(if rng.percent(50) { 0 } else { rng.byte() });
    frame.ip.flow_label = u32::from(rng.byte());
    frame.ip.identification = u16::from(rng.byte());
    if frame.protocol == TCP {
        frame.flags = if this.target.needs_syn() && rng.percent(40) {
            SYN
        } else {
            flags(rng)
        };
        (frame.sequence, frame.acknowledgement) = numbers(rng, frame.flags, 1_000, 2_000);
    }
    if rng.percent(6) {
        frame.checksum = Checksum::Fixed(*rng.pick(&[0, 1, 0xfffe, 0xffff]));
    }
    if rng.percent(6) {
        frame.ip.options = vec![1; 4 * rng.below(11) as usize];
    }
    frame
}

fn flags(rng: &mut Rng) -> u8 {
    match rng.below(20) {
        0..7 => SYN,
        7..13 => ACK,
        13 => PSH | ACK,
        14 => SYN | ACK,
        15 => FIN | ACK,
        16 => RST,
        17 => RST | ACK,
        _ => rng.byte(),
    }
}

/// The numbers that follow the first ones of both sides, mostly.
fn numbers(rng: &mut Rng, flags: u8, own: u32, other: u32) -> (u32, u32) {
    let sent = u32::from(flags & SYN == 0);
    let (sequence, acknowledged) = (own + sent, other + 1);
    match rng.below(10) {
        0 => (sequence + 1, acknowledged),
        1 => (sequence, acknowledged + 1),
        _ => (sequence, acknowledged),
    }
}

fn ttl(rng: &mut Rng) -> u8 {
    match rng.below(12) {
        0 => 1,
        1 => *rng.pick(&[0, 2, 255]),
        _ => 64,
    }
}

fn payload(rng: &mut Rng) -> Vec<u8> {
    if rng.percent(15) {
        return Vec::new();
    }
    let longest = *rng.pick(&[4, 60, 60, 600, 1480, 1480]);
    let length = rng.below(longest);
    (0..length).map(|_| rng.byte()).collect()
}

/// The number by which [`spoiled`] flips a bit anywhere.
const FLIP: u32 = 18;

/// The frame's bytes, some of them damaged; and whether it is still clear what they aim at.
fn spoiled(rng: &mut Rng, mut frame: Frame) -> (Vec<u8>, bool) {
    let is_v4 = frame.ip.source.is_ipv4();
    let how = rng.below(100);
    let bytes = match how {
        0..7 => {
            if is_v4 {
                frame.ip.fragment = *rng.pick(&[MORE_FRAGMENTS, 7, MORE_FRAGMENTS | 7]);
            } else {
                frame.protocol = 44;
            }
            frame.bytes()
        }
        7..14 => {
            let mut bytes = frame.bytes();
            let longest = u32::try_from(bytes.len() - SHORTEST).unwrap_or(0);
            bytes.truncate(SHORTEST + rng.below(longest.max(1)) as usize);
            bytes
        }
        14..18 => {
            // A length field that is too large or too small.
            let mut bytes = frame.bytes();
            let at = ETHERNET + if is_v4 { 2 } else { 4 };
            bytes[at + 1] = rng.byte();
            bytes
        }
        FLIP => {
            let mut bytes = frame.bytes();
            let at = rng.below(u32::try_from(bytes.len()).unwrap_or(1)) as usize;
            bytes[at] ^= 1 << rng.below(8);
            bytes
        }
        19..22 => {
            frame.padding = rng.below(20) as usize;
            frame.bytes()
        }
        _ => frame.bytes(),
    };
    (bytes, how != FLIP)
}
