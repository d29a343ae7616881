//! Random tables: virtual servers of every mode, family and protocol, in good and in bad order.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
};

use sluice_abi::{
    AnnouncedWord, ClaimData, ClaimState, ConfigWord, FIRST_SOURCE_SET, FULLNAT_PORT_MIN, FarEnd,
    ForwardingMode, NET_SENDS, NET_TUNNELS, NOBODY, Path, REFUSES, RingWord,
    SERVER_BY_CLIENT_ADDRESS, ServerWord, TCP, UDP, VipWord,
};
use sluice_packet::{AlignedMac, Route};

use super::Rng;
use crate::packet::{
    frame::{DIRECTOR_MAC, PEER_MAC, ROUTER_MAC},
    layout,
    machine::State,
    setup::{ALWAYS_FRESH, Claim, IFINDEX, Server, Setup, VipPort},
};

/// Address family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Aim of a packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Target {
    /// Of the virtual server.
    pub mode: ForwardingMode,
    /// Of the virtual server.
    pub family: Family,
    /// Of the virtual server: [`TCP`] or [`UDP`].
    pub protocol: u8,
}

impl Target {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for mode in [
            ForwardingMode::Nat,
            ForwardingMode::FullNat,
            ForwardingMode::Dr,
            ForwardingMode::Tun,
        ] {
            for family in [Family::V4, Family::V6] {
                for protocol in [TCP, UDP] {
                    all.push(Self {
                        mode,
                        family,
                        protocol,
                    });
                }
            }
        }
        all
    }

    /// Whether nothing but a SYN begins a flow, so that most packets without one end in one way. Worlds have more of these virtual servers,
    /// and packets to them are more often SYNs, so that all other ways are met as often as with the rest.
    pub(super) fn needs_syn(self) -> bool {
        self.mode == ForwardingMode::FullNat && self.protocol == TCP
    }
}

/// In what order a virtual server is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Condition {
    Healthy,
    Bridge,
    Local,
    Mixed,
    NoServer,
    Gone,
    Unresolved,
    BadTable,
    PortsTaken,
}

const CONDITIONS: [Condition; 12] = [
    Condition::Healthy,
    Condition::Healthy,
    Condition::Bridge,
    Condition::Local,
    Condition::Local,
    Condition::Mixed,
    Condition::Mixed,
    Condition::NoServer,
    Condition::Gone,
    Condition::Unresolved,
    Condition::BadTable,
    Condition::PortsTaken,
];

/// A virtual server of a [`World`].
pub(super) struct Virtual {
    pub(super) target: Target,
    pub(super) vip_port: VipPort,
    /// Its servers: ids and addresses.
    pub(super) servers: Vec<(u32, SocketAddr)>,
    /// Whether all ports that a random number of 0 leads to are taken.
    pub(super) ports_taken: bool,
    /// Whether clients' addresses alone choose its servers.
    by_client_address: bool,
}

/// Tables with what is in them.
pub struct World {
    /// The tables.
    pub setup: Setup,
    pub(super) virtuals: Vec<Virtual>,
    /// Which virtual servers get packets.
    busy: Range<usize>,
}

/// Client addresses of a family, and ports of each.
pub(super) const CLIENTS: u32 = 6;
pub(super) const CLIENT_PORTS: u16 = 3;

pub(super) fn client(family: Family, number: u32, port: u16) -> SocketAddr {
    SocketAddr::new(address(family, [198, 51, 100], 0x1, number), 40_000 + port)
}

fn server_address(family: Family, number: u32, port: u16) -> SocketAddr {
    SocketAddr::new(address(family, [10, 0, 0], 0x3, 10 + number), 8080 + port)
}

/// The director's own address.
pub(super) fn own(family: Family) -> IpAddr {
    address(family, [10, 0, 0], 0x3, 1)
}

pub(super) fn vip(family: Family, number: u32, port: u16) -> SocketAddr {
    SocketAddr::new(address(family, [203, 0, 113], 0x2, number), port)
}

fn address(family: Family, v4: [u8; 3], net: u16, number: u32) -> IpAddr {
    let host = u16::try_from(number).unwrap_or(u16::MAX);
    match family {
        Family::V4 => Ipv4Addr::new(v4[0], v4[1], v4[2], host.to_be_bytes()[1]).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, host).into(),
    }
}

impl World {
    /// Tables made by `rng`.
    pub fn new(rng: &mut Rng) -> Self {
        let mut world = Self {
            setup: Setup::director(),
            virtuals: Vec::new(),
            busy: 0..0,
        };
        world.setup.config(ConfigWord::FlowSeed, rng.bits());
        // One flow in longer than all packets take, a few, and many.
        let ms = *rng.pick(&[10_000_000_000_u64, 10_000_000_000, 2000, 1, 1, 1]);
        let interval = ms * 1_000_000;
        world.setup.config(ConfigWord::NewFlowInterval, interval);
        let refresh = rng.below(3);
        world
            .setup
            .config(ConfigWord::NextHopRefresh, refresh.into());
        world.setup.peer(PEER_MAC);
        if rng.percent(30) {
            // The first two clients.
            let flags = *rng.pick(&[NET_SENDS, NET_SENDS | NET_TUNNELS]);
            world
                .setup
                .peer_net(client(Family::V4, 0, 0).ip(), 31, flags);
            world
                .setup
                .peer_net(client(Family::V6, 0, 0).ip(), 127, flags);
        }
        if rng.percent(30) {
            world.setup.no_strangers();
        }
        for (number, target) in (1..).zip(Target::all()) {
            let (ports, twins) = if target.needs_syn() {
                (&[80, 443, 8080, 8443][..], 30)
            } else {
                (&[80, 443][..], 50)
            };
            let twins = rng.percent(twins);
            for port in ports {
                let vip = vip(target.family, number, *port);
                if twins {
                    world.add_twin(target, vip);
                } else {
                    world.add(rng, target, vip);
                }
            }
            world.announce(rng, vip(target.family, number, 0).ip());
        }
        for this in &mut world.virtuals {
            this.by_client_address = rng.percent(40);
            if this.by_client_address {
                let head = world.setup.heads.entry(this.vip_port.head).or_default();
                head.flags = SERVER_BY_CLIENT_ADDRESS;
            }
        }
        world.limit_sources(rng);
        for head in 1..=u32::try_from(world.virtuals.len()).unwrap_or(0) {
            let mut rs_head = world.setup.heads.get(&head).copied().unwrap_or_default();
            rs_head.pools[0].ring = head + RS_HEADS;
            rs_head.pools[0].threshold = sluice_abi::SHARE_WHOLE;
            world.setup.heads.insert(head + RS_HEADS, rs_head);
        }
        for family in [Family::V4, Family::V6] {
            for number in 0..CLIENTS {
                let route = random_route(rng);
                world.setup.route(client(family, number, 0).ip(), route);
            }
        }
        // In some worlds few of them get it all, so that flow tables fill up.
        world.busy = 0..world.virtuals.len();
        if rng.percent(15) {
            let first = rng.below(u32::try_from(world.virtuals.len()).unwrap_or(1)) as usize;
            world.busy = first..(first + 4).min(world.virtuals.len());
        }
        world
    }

    /// Announces an address in a group that is held, in one that is not, or in one that is held for some time; a few elsewhere.
    fn announce(&mut self, rng: &mut Rng, address: IpAddr) {
        let group = *rng.pick(&[0, 0, 1, 1, 2, 5000]);
        let word = layout::announced_word(DIRECTOR_MAC, group, rng.percent(20));
        let ifindex = if rng.percent(95) { IFINDEX } else { 9 };
        self.setup.announce(address, ifindex, AnnouncedWord(word));
        self.setup.groups = [(0, u64::MAX), (2, rng.bits() >> 14)].into();
    }

    /// Lets some virtual servers take flows of certain clients alone: of the first ones, of all, or of nobody.
    fn limit_sources(&mut self, rng: &mut Rng) {
        for (set, number, lengths) in [
            (FIRST_SOURCE_SET, 0, [31, 127]),
            (FIRST_SOURCE_SET, 5, [32, 128]),
            (FIRST_SOURCE_SET + 1, 0, [0, 0]),
        ] {
            for (family, length) in [Family::V4, Family::V6].into_iter().zip(lengths) {
                self.setup
                    .source(set, client(family, number, 0).ip(), length);
            }
        }
        for this in &self.virtuals {
            if rng.percent(12) {
                let head = self.setup.heads.entry(this.vip_port.head).or_default();
                head.source_set = NOBODY + rng.below(4);
            }
        }
    }

    /// The virtual servers that get packets.
    pub(super) fn busy(&self) -> &[Virtual] {
        &self.virtuals[self.busy.clone()]
    }

    /// A virtual server whose only server is another one's too: their clients' ports collide.
    fn add_twin(&mut self, target: Target, vip: SocketAddr) {
        let vip_port = self.setup.virtual_server(vip, target.protocol);
        let address = server_address(target.family, 10 * target.mode as u32 + 5, 0);
        let path = match target.mode {
            ForwardingMode::Nat => Path::Xdp,
            _ => Path::Local,
        };
        let server = Server::new(target.mode, address, own(target.family)).by(path);
        let id = self.setup.only_server(&vip_port, &server);
        self.virtuals.push(Virtual {
            target,
            vip_port,
            servers: vec![(id, address)],
            ports_taken: false,
            by_client_address: false,
        });
    }

    fn add(&mut self, rng: &mut Rng, target: Target, vip: SocketAddr) {
        let mut condition = *rng.pick(&CONDITIONS);
        if condition == Condition::PortsTaken && target.mode != ForwardingMode::FullNat {
            condition = Condition::Healthy;
        }
        let setup = &mut self.setup;
        let vip_port = setup.virtual_server(vip, target.protocol);
        let log2 = rng.below(3);
        let mut servers = Vec::new();
        for _ in 0..1 << log2 {
            let path = match condition {
                Condition::Bridge => Path::Tc,
                Condition::Local => Path::Local,
                Condition::Unresolved => Path::Unresolved,
                Condition::Mixed => *rng.pick(&[Path::Xdp, Path::Xdp, Path::Tc, Path::Local]),
                _ => Path::Xdp,
            };
            servers.push(add_server(setup, rng, target, &vip_port, path));
        }
        let ids: Vec<u32> = servers.iter().map(|(id, _)| *id).collect();
        setup.ring(vip_port.head, &ids);
        match condition {
            Condition::NoServer => {
                no_server(setup, rng, &vip_port);
                if rng.percent(50) {
                    setup.heads.entry(vip_port.head).or_default().flags |= REFUSES;
                }
            }
            Condition::Gone => ids.iter().for_each(|id| gone(setup, rng, &vip_port, *id)),
            Condition::BadTable => bad_table(setup, rng, &vip_port, &ids),
            Condition::PortsTaken => take_ports(setup, target, &vip_port, &servers),
            _ => {}
        }
        if rng.percent(if target.mode == ForwardingMode::Tun {
            70
        } else {
            25
        }) {
            let here = add_server(setup, rng, target, &vip_port, Path::Local);
            if target.mode != ForwardingMode::Tun {
                real_server_side(setup, &vip_port, here.0);
            }
            servers.push(here);
        }
        for (id, _) in &servers {
            if rng.percent(50) {
                setup.change_server(*id, |word| word.sampling(true));
            }
        }
        self.virtuals.push(Virtual {
            target,
            vip_port,
            servers,
            ports_taken: condition == Condition::PortsTaken,
            by_client_address: false,
        });
    }

    /// How many flows got a server by the client's address alone.
    pub fn flows_by_client_address(&self, state: &State) -> Vec<(Target, u64)> {
        let flows =
            |(id, _): &(u32, SocketAddr)| state.counters.get(id).map(|counters| counters[2]);
        let by_client_address = self.virtuals.iter().filter(|this| this.by_client_address);
        by_client_address
            .map(|this| (this.target, this.servers.iter().filter_map(flows).sum()))
            .collect()
    }

    /// Whose server's port has this tag, and which server it is.
    pub(super) fn replier(&self, tag: u16) -> Option<(Target, SocketAddr)> {
        let is = |index: u32, port: [u8; 2]| layout::tag(FarEnd { index, port }) == tag;
        let (v4, v6) = (&self.setup.v4.replies, &self.setup.v6.replies);
        let v4 = v4.iter().find(|(key, index)| is(**index, key.port));
        let v6 = v6.iter().find(|(key, index)| is(**index, key.port));
        let (address, protocol) = match (v4, v6) {
            (Some((key, _)), _) => {
                let port = u16::from_be_bytes(key.port);
                (SocketAddr::new(key.addr.into(), port), key.protocol)
            }
            (None, Some((key, _))) => {
                let port = u16::from_be_bytes(key.port);
                (SocketAddr::new(key.addr.into(), port), key.protocol)
            }
            (None, None) => return None,
        };
        self.virtuals
            .iter()
            .find(|this| {
                this.target.protocol == protocol
                    && this.servers.iter().any(|(_, server)| *server == address)
            })
            .map(|this| (this.target, address))
    }

    /// A change as the agent makes it: another ring, another list of clients, a draining server, another path, an id given to another server, a VIP group
    /// held or given up.
    pub fn change(&mut self, rng: &mut Rng) {
        let deadline = *rng.pick(&[0, u64::MAX]);
        self.setup.groups.insert(rng.below(3), deadline);
        let this = rng.pick(&self.virtuals);
        let (id, _) = *rng.pick(&this.servers);
        let word = self.setup.servers.get(&id).copied().unwrap_or_default();
        if !word.present() {
            return;
        }
        let with = |path, epoch, draining| ServerWord::new(word.slot(), epoch, path, draining);
        let new = match rng.below(6) {
            0 => {
                let ids = [id];
                self.setup.ring(this.vip_port.head, &ids);
                word
            }
            1 => with(word.path(), word.epoch(), true).resetting(rng.below(2) == 0),
            5 => {
                let head = self.setup.heads.entry(this.vip_port.head).or_default();
                head.source_set = rng.below(FIRST_SOURCE_SET + 2);
                word
            }
            2 => with(word.path(), word.epoch().wrapping_add(1), false),
            3 if word.path() != Path::Local => with(Path::Unresolved, word.epoch(), false),
            3 => ServerWord::absent(word.epoch()),
            _ if word.path() == Path::Unresolved => with(Path::Xdp, word.epoch(), false),
            _ => word,
        };
        self.setup.servers.insert(id, new);
    }
}

fn random_route(rng: &mut Rng) -> Route {
    let ifindex = *rng.pick(&[IFINDEX, IFINDEX, 5]);
    match rng.below(6) {
        0 | 1 => Route::None,
        2 => Route::NoNeighbour { ifindex },
        _ => Route::Resolved {
            ifindex,
            source_mac: AlignedMac(DIRECTOR_MAC),
            next_hop_mac: AlignedMac(ROUTER_MAC),
        },
    }
}

/// Adds a server out of few addresses: virtual servers of one mode share them, so that client ports collide.
fn add_server(
    setup: &mut Setup,
    rng: &mut Rng,
    target: Target,
    vip_port: &VipPort,
    path: Path,
) -> (u32, SocketAddr) {
    // Modes have addresses of their own, so that a reply tells whose it is.
    let number = 10 * target.mode as u32 + rng.below(2);
    let address = server_address(target.family, number, u16::from(rng.percent(20)));
    let server = Server {
        path,
        ifindex: *rng.pick(&[IFINDEX, 7]),
        mtu: *rng.pick(&[300, 300, 300, 576, 1500]),
        epoch: rng.byte(),
        ..Server::new(target.mode, address, own(target.family))
    };
    (setup.server(vip_port, &server), address)
}

fn no_server(setup: &mut Setup, rng: &mut Rng, vip_port: &VipPort) {
    match rng.below(3) {
        0 => setup.ring(vip_port.head, &[0]),
        1 => drop(setup.rings.insert(vip_port.head, RingWord::default())),
        _ => {
            let head = setup.heads.entry(vip_port.head).or_default();
            head.pools[0].threshold = 0;
        }
    }
}

/// Makes a ring name an id that is free, or one that there is not.
fn gone(setup: &mut Setup, rng: &mut Rng, vip_port: &VipPort, id: u32) {
    if rng.percent(50) {
        setup.change_server(id, |word| ServerWord::absent(word.epoch()));
    } else {
        setup.ring(vip_port.head, &[70_000]);
    }
}

fn bad_table(setup: &mut Setup, rng: &mut Rng, vip_port: &VipPort, ids: &[u32]) {
    if rng.percent(25) {
        let word = VipWord::new(vip_port.index, 5000, 0);
        setup.set_vip(vip_port.vip, vip_port.protocol, word);
        return;
    }
    let other_family = rng.percent(50);
    for id in ids {
        setup.change_record(*id, |record| {
            let facts = &mut record.facts.0;
            if other_family {
                *facts ^= 1 << 44;
            } else {
                *facts = *facts & !(15 << 40) | 9 << 40;
            }
        });
    }
}

/// Takes the ports that a random number of 0 leads to: the first ones.
fn take_ports(
    setup: &mut Setup,
    target: Target,
    vip_port: &VipPort,
    servers: &[(u32, SocketAddr)],
) {
    let other = client(target.family, CLIENTS, 0);
    for (id, server) in servers {
        for port in FULLNAT_PORT_MIN..FULLNAT_PORT_MIN + 13 {
            setup.claim(Claim {
                server: *server,
                own: SocketAddr::new(own(target.family), port),
                client: other,
                vip: vip_port.vip,
                protocol: target.protocol,
                data: ClaimData::new(*id, 0, ClaimState::Established, ALWAYS_FRESH),
            });
        }
    }
}

/// How far the heads for packets from other directors are behind those of their virtual servers.
const RS_HEADS: u32 = 50;

/// Adds a head for packets from other directors.
fn real_server_side(setup: &mut Setup, vip_port: &VipPort, id: u32) {
    let rs_head = vip_port.head + RS_HEADS;
    let word = VipWord::new(vip_port.index, vip_port.head, rs_head);
    setup.set_vip(vip_port.vip, vip_port.protocol, word);
    setup.ring(rs_head, &[id]);
}
