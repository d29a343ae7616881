//! Content of the maps before packets come, without saying whose maps they are, and a way to write it down in few words.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use sluice_abi::{
    AnnouncedKey, AnnouncedWord, ClaimData, ConfigWord, FIRST_REPLY_INDEX, FarEnd, FlowClock,
    ForwardingMode, Head, HeadPool, LocalKey, MacKey, NET_TUNNELS, Path, PortKey, PrefixKey,
    RingWord, SHARE_WHOLE, ServerFacts, ServerRecord, ServerWord, SourceKey, Timeouts, VipWord,
    mac_number,
};
use sluice_packet::Route;

use super::frame::{DIRECTOR_MAC, Mac, SERVER_MAC};

/// Sizes of the tables: small, so that packets reach their limits.
pub mod sizes {
    /// Slots of `HEADS`.
    pub const HEADS: u32 = 128;
    /// Entries of `RINGS`.
    pub const RINGS: u32 = 128;
    /// Slots of `RING_SLOTS`.
    pub const RING_SLOTS: u32 = 2048;
    /// Entries of `SERVERS` and `COUNTERS`.
    pub const SERVERS: u32 = 256;
    /// Slots of `RECORDS`.
    pub const RECORDS: u32 = 256;
    /// Buckets of each flow table.
    pub const FLOWS: u32 = 8;
    /// Buckets of each half-open table.
    pub const HALF_OPEN: u32 = 4;
    /// Slots of each FullNAT table.
    pub const CLAIMS: u32 = 512;
    /// Words of `NEW_FLOWS` that VIP ports of tests have.
    pub const NEW_FLOWS: u32 = 256;
    /// Slots of `SAMPLES`, a power of two.
    pub const SAMPLES: u32 = 32;
    /// Entries of each of the other hashes.
    pub const HASHES: u32 = 256;
}

/// The interface that test packets come by: the loopback device, which `BPF_PROG_TEST_RUN` uses by itself.
pub const IFINDEX: u32 = 1;

/// The tables of one address family.
#[derive(Clone, PartialEq, Debug)]
pub struct Family<const A: usize> {
    /// `VIPS*`.
    pub vips: BTreeMap<PortKey<A>, VipWord>,
    /// `REPLIES*`.
    pub replies: BTreeMap<PortKey<A>, u32>,
    /// `LOCALS*`.
    pub locals: BTreeMap<LocalKey<A>, u32>,
    /// `PEER_NETS*`.
    pub peer_nets: BTreeMap<PrefixKey<A>, u32>,
    /// `SOURCES*`.
    pub sources: BTreeSet<SourceKey<A>>,
    /// `ANNOUNCED*`.
    pub announced: BTreeMap<AnnouncedKey<A>, AnnouncedWord>,
    /// Claims that are in `FULLNAT*` before the first packet.
    pub claims: Vec<Claim>,
    /// The routing table, by destination address.
    pub routes: BTreeMap<[u8; A], Route>,
}

impl<const A: usize> Default for Family<A> {
    /// No director is known.
    fn default() -> Self {
        let all = PrefixKey {
            length: 0,
            addr: [0; A],
        };
        Self {
            vips: BTreeMap::new(),
            replies: BTreeMap::new(),
            locals: BTreeMap::new(),
            peer_nets: [(all, NET_TUNNELS)].into(),
            sources: BTreeSet::new(),
            announced: BTreeMap::new(),
            claims: Vec::new(),
            routes: BTreeMap::new(),
        }
    }
}

/// Contents of all tables that the agent writes. Flow tables and counters begin empty.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Setup {
    /// IPv4.
    pub v4: Family<4>,
    /// IPv6.
    pub v6: Family<16>,
    /// `CONFIG`, but for the clock and the random number, which a run takes as arguments.
    pub config: BTreeMap<u32, u64>,
    /// `PEERS`.
    pub peers: BTreeSet<MacKey>,
    /// `MACS`.
    pub macs: BTreeMap<u32, u64>,
    /// `GROUPS`: deadlines.
    pub groups: BTreeMap<u32, u64>,
    /// `HEADS`.
    pub heads: BTreeMap<u32, Head>,
    /// `RINGS`.
    pub rings: BTreeMap<u32, RingWord>,
    /// `RING_SLOTS`.
    pub ring_slots: BTreeMap<u32, u32>,
    /// `SERVERS`.
    pub servers: BTreeMap<u32, ServerWord>,
    /// `RECORDS`.
    pub records: BTreeMap<u32, ServerRecord>,
}

/// When a claim was written that never expires: after all packets of tests.
pub const ALWAYS_FRESH: FlowClock = FlowClock(1 << 30);

/// A FullNAT claim.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Claim {
    /// The server.
    pub server: SocketAddr,
    /// The director's own address and the claimed port.
    pub own: SocketAddr,
    /// The client.
    pub client: SocketAddr,
    /// Where it connected to.
    pub vip: SocketAddr,
    /// [`sluice_abi::TCP`] or [`sluice_abi::UDP`].
    pub protocol: u8,
    /// Server, state and time.
    pub data: ClaimData,
}

/// A port of a virtual server in a [`Setup`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VipPort {
    /// Its index.
    pub index: u32,
    /// Where clients connect.
    pub vip: SocketAddr,
    /// [`sluice_abi::TCP`] or [`sluice_abi::UDP`].
    pub protocol: u8,
    /// Slot of its head, and its ring's id.
    pub head: u32,
}

impl VipPort {
    /// The end of its flows that is not the client.
    pub fn far(&self) -> FarEnd {
        FarEnd {
            index: self.index,
            port: self.vip.port().to_be_bytes(),
        }
    }
}

/// A real server to be put into a [`Setup`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Server {
    /// How packets reach it.
    pub mode: ForwardingMode,
    /// Which hook delivers.
    pub path: Path,
    /// Its own address and port.
    pub address: SocketAddr,
    /// FullNAT: the director's address; TUN: the outer source.
    pub own: IpAddr,
    /// Interface that leads to it.
    pub ifindex: u32,
    /// Next hop.
    pub next_hop_mac: Mac,
    /// Largest IP packet on the way.
    pub mtu: u16,
    /// Reuse counter of its id.
    pub epoch: u8,
}

impl Server {
    /// A server one hop behind the interface that clients' packets come by.
    pub fn new(mode: ForwardingMode, address: SocketAddr, own: IpAddr) -> Self {
        Self {
            mode,
            path: Path::Xdp,
            address,
            own,
            ifindex: IFINDEX,
            next_hop_mac: SERVER_MAC,
            mtu: 1500,
            epoch: 1,
        }
    }

    /// Reached by this path.
    #[must_use]
    pub fn by(mut self, path: Path) -> Self {
        self.path = path;
        self
    }

    /// Behind another interface.
    #[must_use]
    pub fn behind(mut self, ifindex: u32) -> Self {
        self.ifindex = ifindex;
        self
    }
}

/// A key of either family.
pub enum AnyKey {
    /// IPv4.
    V4(PortKey<4>),
    /// IPv6.
    V6(PortKey<16>),
}

/// The key that names `address` with `protocol`.
pub fn key_of(address: SocketAddr, protocol: u8) -> AnyKey {
    let port = address.port().to_be_bytes();
    match address.ip() {
        IpAddr::V4(ip) => AnyKey::V4(PortKey {
            addr: ip.octets(),
            port,
            protocol,
            pad: 0,
        }),
        IpAddr::V6(ip) => AnyKey::V6(PortKey {
            addr: ip.octets(),
            port,
            protocol,
            pad: 0,
        }),
    }
}

/// The bytes of `address`, zeros behind an IPv4 one.
pub fn address_field(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(ip) => {
            let mut field = [0; 16];
            field[..4].copy_from_slice(&ip.octets());
            field
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

impl Setup {
    /// Tables of a director that knows nothing but its own Ethernet address; a VIP port may begin 5000 FullNAT
    /// flows at once, and 1000 in a second.
    pub fn director() -> Self {
        let mut setup = Self::default();
        setup.config(ConfigWord::AbiVersion, sluice_abi::ABI_VERSION);
        setup.config(ConfigWord::FlowSeed, 0x5eed_5eed_5eed_5eed);
        setup.config(ConfigWord::NewFlowInterval, 1_000_000);
        setup.config(ConfigWord::HalfOpenTimeouts, Timeouts::HALF_OPEN.0);
        setup.config(ConfigWord::EstablishedTimeouts, Timeouts::ESTABLISHED.0);
        setup.own_mac(DIRECTOR_MAC);
        setup
    }

    /// The flow tables' seed.
    pub fn seed(&self) -> u64 {
        let seed = self.config.get(&(ConfigWord::FlowSeed as u32));
        seed.copied().unwrap_or(0)
    }

    /// Sets a word of `CONFIG`.
    pub fn config(&mut self, word: ConfigWord, value: u64) {
        self.config.insert(word as u32, value);
    }

    /// Adds a port of a virtual server with one pool and no server, and its address's marker.
    pub fn virtual_server(&mut self, vip: SocketAddr, protocol: u8) -> VipPort {
        let head = next_key(&self.heads);
        let vip_port = VipPort {
            index: head,
            vip,
            protocol,
            head,
        };
        let word = VipWord::new(vip_port.index, vip_port.head, 0);
        self.set_vip(vip, protocol, word);
        self.set_vip(SocketAddr::new(vip.ip(), 0), 0, VipWord(0));
        let mut new = Head {
            seed: 7 * head,
            index: vip_port.index,
            pool_count: 1,
            ..Head::default()
        };
        new.pools[0] = HeadPool {
            threshold: SHARE_WHOLE,
            ring: head,
            tag: 0,
        };
        self.heads.insert(head, new);
        vip_port
    }

    /// Sets an entry of `VIPS*`.
    pub fn set_vip(&mut self, vip: SocketAddr, protocol: u8, word: VipWord) {
        match key_of(vip, protocol) {
            AnyKey::V4(key) => drop(self.v4.vips.insert(key, word)),
            AnyKey::V6(key) => drop(self.v6.vips.insert(key, word)),
        }
    }

    /// Adds a real server of `vip_port` and whatever replies need; returns its id. It is in no ring yet.
    pub fn server(&mut self, vip_port: &VipPort, server: &Server) -> u32 {
        let id = next_key(&self.servers);
        let slot = next_key(&self.records);
        let rewrites_replies = server.mode == ForwardingMode::Nat || server.path == Path::Local;
        let reply_index = if rewrites_replies {
            self.reply_index(server.address, vip_port.protocol)
        } else {
            0
        };
        let alt = match server.mode {
            _ if rewrites_replies => vip_port.vip.ip(),
            ForwardingMode::FullNat | ForwardingMode::Tun => server.own,
            _ => IpAddr::from([0; 4]),
        };
        let local = server.path == Path::Local;
        let keeps_port = matches!(server.mode, ForwardingMode::Dr | ForwardingMode::Tun) && !local;
        let port = if keeps_port {
            vip_port.vip.port()
        } else {
            server.address.port()
        };
        self.records.insert(
            slot,
            ServerRecord {
                addr: address_field(server.address.ip()),
                alt: address_field(alt),
                next_hop_mac: server.next_hop_mac,
                source_mac: DIRECTOR_MAC,
                ifindex: server.ifindex,
                port: port.to_be_bytes(),
                vip_port: vip_port.vip.port().to_be_bytes(),
                tag: 0,
                facts: ServerFacts::new(
                    vip_port.index,
                    reply_index,
                    server.mode,
                    server.address.is_ipv6(),
                )
                .with_mtu(server.mtu),
            },
        );
        self.servers
            .insert(id, ServerWord::new(slot, server.epoch, server.path, false));
        if server.mode == ForwardingMode::Tun && local {
            self.local(server.address.ip(), vip_port.index, id);
        }
        id
    }

    /// Adds a real server and makes it the only one in the ring of `vip_port`.
    pub fn only_server(&mut self, vip_port: &VipPort, server: &Server) -> u32 {
        let id = self.server(vip_port, server);
        self.ring(vip_port.head, &[id]);
        id
    }

    /// Sets an entry of `LOCALS*`.
    pub fn local(&mut self, address: IpAddr, index: u32, id: u32) {
        match address {
            IpAddr::V4(ip) => {
                let addr = ip.octets();
                self.v4.locals.insert(LocalKey { addr, index }, id);
            }
            IpAddr::V6(ip) => {
                let addr = ip.octets();
                self.v6.locals.insert(LocalKey { addr, index }, id);
            }
        }
    }

    /// The index of a real server's port, a new one if it has none.
    pub fn reply_index(&mut self, address: SocketAddr, protocol: u8) -> u32 {
        let new = FIRST_REPLY_INDEX
            + u32::try_from(self.v4.replies.len() + self.v6.replies.len()).unwrap_or(0);
        match key_of(address, protocol) {
            AnyKey::V4(key) => *self.v4.replies.entry(key).or_insert(new),
            AnyKey::V6(key) => *self.v6.replies.entry(key).or_insert(new),
        }
    }

    /// The end of flows' ways back that a real server's port is.
    pub fn reply_end(&mut self, address: SocketAddr, protocol: u8) -> FarEnd {
        FarEnd {
            index: self.reply_index(address, protocol),
            port: address.port().to_be_bytes(),
        }
    }

    /// Makes ring `ring` consist of these server ids, whose number is a power of two of at most 16.
    pub fn ring(&mut self, ring: u32, ids: &[u32]) {
        let log2 = u8::try_from(ids.len().trailing_zeros()).unwrap_or(0);
        let offset = ring * 16;
        self.rings.insert(ring, RingWord::new(offset, log2));
        for (slot, id) in (offset..).zip(ids) {
            self.ring_slots.insert(slot, *id);
        }
    }

    /// Changes the word of a server.
    pub fn change_server(&mut self, id: u32, change: impl FnOnce(ServerWord) -> ServerWord) {
        let word = self.servers.entry(id).or_default();
        *word = change(*word);
    }

    /// Changes the record of a server in place, which only tests may do.
    pub fn change_record(&mut self, id: u32, change: impl FnOnce(&mut ServerRecord)) {
        let slot = self.servers.get(&id).copied().unwrap_or_default().slot();
        change(self.records.entry(slot).or_default());
    }

    /// Sets the route to `destination`.
    pub fn route(&mut self, destination: IpAddr, route: Route) {
        match destination {
            IpAddr::V4(ip) => drop(self.v4.routes.insert(ip.octets(), route)),
            IpAddr::V6(ip) => drop(self.v6.routes.insert(ip.octets(), route)),
        }
    }

    /// Adds an own Ethernet address of the interface that test packets come by.
    pub fn own_mac(&mut self, mac: Mac) {
        let word = sluice_abi::own_mac(mac_number(&mac), IFINDEX);
        let first = sluice_abi::own_bucket(word);
        let mut places = first..first + sluice_abi::OWN_BUCKET;
        let free = places.find(|place| !self.macs.contains_key(place));
        self.macs.insert(free.expect("a bucket with room"), word);
    }

    /// Adds another director.
    pub fn peer(&mut self, mac: Mac) {
        self.peers.insert(MacKey { mac, pad: [0; 2] });
        let (index, bit) = sluice_abi::peer_bit(mac_number(&mac));
        *self.macs.entry(index).or_default() |= bit;
    }

    /// Sets the flags of addresses, by their first `length` bits; 0 = none.
    pub fn peer_net(&mut self, address: IpAddr, length: u32, flags: u32) {
        fn set<const A: usize>(family: &mut Family<A>, key: PrefixKey<A>, flags: u32) {
            if flags == 0 {
                family.peer_nets.remove(&key);
            } else {
                family.peer_nets.insert(key, flags);
            }
        }
        match address {
            IpAddr::V4(ip) => {
                let addr = ip.octets();
                set(&mut self.v4, PrefixKey { length, addr }, flags);
            }
            IpAddr::V6(ip) => {
                let addr = ip.octets();
                set(&mut self.v6, PrefixKey { length, addr }, flags);
            }
        }
    }

    /// Adds a block of clients' addresses, by their first `length` bits, to a source set.
    pub fn source(&mut self, set: u32, address: IpAddr, length: u32) {
        match address {
            IpAddr::V4(ip) => {
                let key = SourceKey::new(set, ip.octets(), length);
                self.v4.sources.insert(key);
            }
            IpAddr::V6(ip) => {
                let key = SourceKey::new(set, ip.octets(), length);
                self.v6.sources.insert(key);
            }
        }
    }

    /// Announces an address at an interface.
    pub fn announce(&mut self, address: IpAddr, ifindex: u32, word: AnnouncedWord) {
        match address {
            IpAddr::V4(ip) => {
                let addr = ip.octets();
                let key = AnnouncedKey { addr, ifindex };
                self.v4.announced.insert(key, word);
            }
            IpAddr::V6(ip) => {
                let addr = ip.octets();
                let key = AnnouncedKey { addr, ifindex };
                self.v6.announced.insert(key, word);
            }
        }
    }

    /// Empty tables.
    pub fn empty() -> Self {
        let mut setup = Self::default();
        setup.no_strangers();
        setup
    }

    /// Takes tunnels from nobody any more but those whom [`Self::peer_net`] names.
    pub fn no_strangers(&mut self) {
        self.peer_net(Ipv4Addr::UNSPECIFIED.into(), 0, 0);
        self.peer_net(Ipv6Addr::UNSPECIFIED.into(), 0, 0);
    }

    /// Puts a claim into `FULLNAT*` as if a flow had made it.
    pub fn claim(&mut self, claim: Claim) {
        if claim.own.is_ipv4() {
            self.v4.claims.push(claim);
        } else {
            self.v6.claims.push(claim);
        }
    }
}

/// Keys are counted from 1: 0 means none everywhere.
fn next_key<V>(map: &BTreeMap<u32, V>) -> u32 {
    map.last_key_value().map_or(1, |(key, _)| key + 1)
}
