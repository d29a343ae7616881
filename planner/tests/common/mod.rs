//! Builders of the planner's input.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary has its own copy and uses a part"
)]

pub mod damage;
pub mod maps;
pub mod met;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use sluice_api::{
    DecidedPool, DecidedPort, DecidedSources, DecidedVirtualServer, ExternalTrafficPolicy,
    ForwardingMode, ObjectKey, PoolSelection, Protocol, ServerSelection, WhenAllDown,
};
use sluice_planner::{
    Announced, Hop, Image, Limits, Mac, NextHop, NodeView, Planner, Role, Server, ServerPorts,
    Tenths, Via,
};

pub const ROOMY: Limits = Limits {
    vips: 4096,
    replies: 4096,
    locals: 4096,
    peers: 64,
    peer_nets: 64,
    sources: 1024,
    announced: 64,
    heads: 4096,
    rings: 4096,
    ring_slots: 1 << 22,
    servers: 65_536,
    records: 65_536,
    servers_each: 1 << 14,
    ring_slots_each: 1 << 20,
    sources_each: 512,
};

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn name(text: &str) -> ObjectKey {
    ObjectKey::new("shop", text)
}

pub fn tcp(name: &str, port: u16) -> DecidedPort {
    DecidedPort {
        name: name.into(),
        protocol: Protocol::Tcp,
        port,
    }
}

pub fn udp(name: &str, port: u16) -> DecidedPort {
    DecidedPort {
        protocol: Protocol::Udp,
        ..tcp(name, port)
    }
}

pub fn server(name: &str, address: &str, weight: u32) -> Server {
    Server {
        name: name.into(),
        address: ip(address),
        node: None,
        weight,
        is_meant: weight > 0,
        is_last_resort: false,
        resets: sluice_planner::Resets::Never,
        is_sampled: false,
        ports: Arc::default(),
    }
}

/// Ports of a server by the names of the virtual server's.
pub fn ports(by_name: &[(&str, u16)]) -> Arc<ServerPorts> {
    let by_name = by_name.iter();
    Arc::new(ServerPorts {
        by_name: by_name
            .map(|&(name, port)| (name.into(), Some(port)))
            .collect(),
        default: None,
    })
}

/// A virtual server on TCP port 80.
pub fn virtual_server(
    mode: ForwardingMode,
    vip: &str,
    pools: &[(&str, u32)],
) -> DecidedVirtualServer {
    DecidedVirtualServer {
        addresses: vec![ip(vip)],
        ports: vec![tcp("http", 80)],
        mode,
        pool_selection: PoolSelection::Flow,
        server_selection: ServerSelection::Flow,
        external_traffic_policy: ExternalTrafficPolicy::Cluster,
        when_all_down: WhenAllDown::LastKnown,
        fallback: None,
        sources: None,
        pools: pools
            .iter()
            .map(|&(name, weight)| share(name, weight))
            .collect(),
        groups: Vec::new(),
    }
}

/// Clients' blocks, in any order.
pub fn sources(blocks: &[&str]) -> DecidedSources {
    let allow = blocks.iter().map(|block| block.parse().expect("a block"));
    DecidedSources {
        allow: allow.collect(),
    }
}

pub fn share(pool: &str, weight: u32) -> DecidedPool {
    DecidedPool {
        name: pool.into(),
        weight,
        spec_weight: weight,
    }
}

pub type PoolEntry = (&'static str, Vec<Server>);

pub fn snapshot(
    virtual_servers: Vec<(&str, DecidedVirtualServer)>,
    pools: Vec<(&str, Vec<Server>)>,
) -> Snapshot {
    Snapshot {
        virtual_servers: virtual_servers
            .into_iter()
            .map(|(n, v)| (name(n), Arc::new(v)))
            .collect(),
        pools: pools.into_iter().map(|(n, p)| (name(n), p)).collect(),
    }
}

/// Everything that is decided at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    pub virtual_servers: BTreeMap<ObjectKey, Arc<DecidedVirtualServer>>,
    pub pools: BTreeMap<ObjectKey, Vec<Server>>,
}

/// Everything that a node sees at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct View {
    pub node: NodeView,
    pub next_hops: BTreeMap<IpAddr, NextHop>,
    pub announced: BTreeMap<IpAddr, Announced>,
    /// By pool.
    pub tenths: BTreeMap<ObjectKey, Tenths>,
}

/// A planner that is told what changes from moment to moment.
pub struct Told {
    planner: Planner,
    snapshot: Snapshot,
    next_hops: BTreeMap<IpAddr, NextHop>,
    announced: BTreeMap<IpAddr, Announced>,
    tenths: BTreeMap<ObjectKey, Tenths>,
}

impl Told {
    pub fn new(limits: Limits, image: &Image) -> Self {
        Self {
            planner: Planner::new(limits, image),
            snapshot: Snapshot::default(),
            next_hops: BTreeMap::new(),
            announced: BTreeMap::new(),
            tenths: BTreeMap::new(),
        }
    }

    pub fn set_snapshot(&mut self, snapshot: &Snapshot) {
        let old = std::mem::replace(&mut self.snapshot, snapshot.clone());
        for key in changed(&old.virtual_servers, &snapshot.virtual_servers) {
            let decided = snapshot.virtual_servers.get(key);
            self.planner.set_virtual_server(key, decided.cloned());
        }
        for key in changed(&old.pools, &snapshot.pools) {
            let servers = snapshot.pools.get(key).cloned();
            self.planner.set_servers(key, servers.map(Arc::from));
        }
    }

    pub fn set_view(&mut self, view: View) {
        self.planner.set_view(view.node);
        let old = std::mem::replace(&mut self.next_hops, view.next_hops);
        for address in changed(&old, &self.next_hops) {
            let next_hop = self.next_hops.get(address);
            self.planner.set_next_hop(*address, next_hop.copied());
        }
        let old = std::mem::replace(&mut self.announced, view.announced);
        for address in changed(&old, &self.announced) {
            let announced = self.announced.get(address);
            self.planner.set_announced(*address, announced.cloned());
        }
        let old = std::mem::replace(&mut self.tenths, view.tenths);
        for pool in changed(&old, &self.tenths) {
            let tenths = self.tenths.get(pool);
            self.planner.set_tenths(pool, tenths.cloned().map(Arc::new));
        }
    }
}

impl Deref for Told {
    type Target = Planner;

    fn deref(&self) -> &Planner {
        &self.planner
    }
}

impl DerefMut for Told {
    fn deref_mut(&mut self) -> &mut Planner {
        &mut self.planner
    }
}

/// The keys whose values differ.
fn changed<'a, K: Ord, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    let gone = old.keys().filter(|key| !new.contains_key(key));
    let other = new
        .iter()
        .filter(|(key, value)| old.get(key) != Some(*value));
    gone.chain(other.map(|(key, _)| key))
}

/// A planner that knows all this.
pub fn planner(snapshot: &Snapshot, view: &View, image: &Image, limits: &Limits) -> Told {
    let mut planner = Told::new(*limits, image);
    planner.set_view(view.clone());
    planner.set_snapshot(snapshot);
    planner
}

pub const DIRECTOR: Role = Role {
    director: true,
    real_server: true,
};

pub const REAL_SERVER: Role = Role {
    director: false,
    real_server: true,
};

pub fn node(role: Role, addresses: &[&str]) -> View {
    let node = NodeView {
        name: "node".into(),
        role,
        addresses: addresses.iter().copied().map(ip).collect(),
        ..NodeView::default()
    };
    View {
        node,
        ..View::default()
    }
}

/// A way whose MAC addresses come from the last octet.
pub fn hop(via: Via, address: IpAddr) -> NextHop {
    let (last, source) = match address {
        IpAddr::V4(a) => (a.octets()[3], ip("10.0.0.254")),
        IpAddr::V6(a) => (a.octets()[15], ip("fd00::fe")),
    };
    NextHop::Resolved(Hop {
        via,
        ifindex: 2,
        source_mac: Mac([2, 0, 0, 0, 0, 0xfe]),
        next_hop_mac: Mac([2, 0, 0, 0, 0, last]),
        mtu: 1500,
        source,
    })
}

pub fn with_hops(mut view: View, hops: &[(&str, Via)]) -> View {
    for &(address, via) in hops {
        view.next_hops.insert(ip(address), hop(via, ip(address)));
    }
    view
}
