//! What plans cost with 10,000 virtual servers, 10,000 pools and 100,000 servers: `cargo run --release --example scale`.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use sluice_api::{
    DecidedPool, DecidedPort, DecidedVirtualServer, ForwardingMode, ObjectKey, PoolSelection,
    Protocol,
};
use sluice_planner::{Hop, Image, Limits, Mac, NextHop, NodeView, Planner, Role, Server, Via};

const VIRTUAL_SERVERS: u32 = 10_000;
const SERVERS_OF_POOL: u32 = 10;
const CHANGES: u32 = 200;

const LIMITS: Limits = Limits {
    vips: 65_536,
    backends: 262_144,
    locals: 4096,
    peers: 1024,
    heads: 65_536,
    rings: 65_536,
    ring_slots: 1 << 26,
    servers: 1 << 19,
    records: 1 << 19,
};

fn main() {
    let mut planner = Planner::new(LIMITS, &Image::default());
    let (operations, ms) = timed(|| {
        tell(&mut planner);
        planner.plan().len()
    });
    println!(
        "all from nothing: {operations} operations, {ms:.0} ms, {} MB",
        resident_mb()
    );
    println!("full: {:?}", planner.full().len());
    let image = planner.image().clone();
    let (operations, ms) = timed(|| {
        planner.adopt(&image);
        planner.plan().len()
    });
    println!(
        "all adopted: {operations} operations, {ms:.0} ms, {} MB",
        resident_mb()
    );

    let (operations, ms) = timed(|| {
        let mut operations = 0;
        for change in 0..CHANGES {
            let pool = change * 37 % VIRTUAL_SERVERS;
            let mut servers = servers(pool);
            servers[3].weight = 0;
            planner.set_servers(&key(&format!("pool-{pool}")), Some(servers.into()));
            operations += planner.plan().len();
        }
        operations
    });
    let each = ms / f64::from(CHANGES);
    println!(
        "one server of a pool: {} operations, {each:.3} ms",
        operations / CHANGES as usize
    );
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("scale", name)
}

fn address(server: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + server).into()
}

/// Tells a planner everything.
fn tell(planner: &mut Planner) {
    planner.set_view(NodeView {
        name: "node".into(),
        role: Role {
            director: true,
            real_server: true,
        },
        addresses: BTreeSet::new(),
        ..NodeView::default()
    });
    for number in 0..VIRTUAL_SERVERS {
        let pool = format!("pool-{number}");
        let decided = DecidedVirtualServer {
            addresses: vec![Ipv4Addr::from(0xcb00_0000 + number).into()],
            ports: vec![DecidedPort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: 80,
            }],
            mode: ForwardingMode::FullNat,
            pool_selection: PoolSelection::Flow,
            pools: vec![DecidedPool {
                name: pool.clone(),
                weight: 1,
                spec_weight: 1,
            }],
        };
        planner.set_virtual_server(&key(&format!("web-{number}")), Some(Arc::new(decided)));
        planner.set_servers(&key(&pool), Some(servers(number).into()));
    }
    for server in 0..VIRTUAL_SERVERS * SERVERS_OF_POOL {
        planner.set_next_hop(address(server), Some(next_hop()));
    }
}

fn servers(pool: u32) -> Vec<Server> {
    let server = |i| Server {
        name: format!("pod-{pool}-{i}"),
        address: address(pool * SERVERS_OF_POOL + i),
        weight: 1,
        ports: Arc::default(),
    };
    (0..SERVERS_OF_POOL).map(server).collect()
}

fn next_hop() -> NextHop {
    NextHop::Resolved(Hop {
        via: Via::Router,
        ifindex: 2,
        source_mac: Mac([2, 0, 0, 0, 0, 1]),
        next_hop_mac: Mac([2, 0, 0, 0, 0, 2]),
        mtu: 1500,
        source: Ipv4Addr::new(192, 0, 2, 1).into(),
    })
}

/// The result, and milliseconds of processor time.
fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = processor_ns();
    let result = work();
    (result, (processor_ns() - start) / 1e6)
}

fn processor_ns() -> f64 {
    let text = fs::read_to_string("/proc/self/schedstat").expect("Linux tells it");
    let first = text.split(' ').next().expect("three numbers");
    first.parse().expect("a number")
}

fn resident_mb() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").expect("Linux tells it");
    let pages: u64 = text
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .expect("a number");
    pages * 4096 / 1_000_000
}
