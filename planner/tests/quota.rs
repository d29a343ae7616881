//! One virtual server leaves room for others, and keeps what it has.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{
    DIRECTOR, ROOMY, Snapshot, Told, View, hop, ip, name, node, server, tcp, virtual_server,
};
use sluice_api::{DecidedVirtualServer, ForwardingMode, ObjectKey};
use sluice_planner::{Image, Limits, Problem, Reason, Via};

/// Room for 30 servers, of which one virtual server gets 10.
const LIMITS: Limits = Limits {
    servers: 31,
    servers_each: 10,
    ..ROOMY
};

/// A virtual server, and the last octets of its servers.
type Served = (&'static str, DecidedVirtualServer, Vec<u8>);

fn big(mode: ForwardingMode, servers: impl IntoIterator<Item = u8>) -> Served {
    let decided = virtual_server(mode, "192.0.2.1", &[("big", 1)]);
    ("big", decided, servers.into_iter().collect())
}

fn small() -> Served {
    let mode = ForwardingMode::FullNat;
    let decided = virtual_server(mode, "192.0.2.2", &[("small", 1)]);
    ("small", decided, (101..=105).collect())
}

/// Tells a planner what is decided, and plans until nothing is left to do.
fn settle(planner: &mut Told, all: &[Served]) {
    tell(planner, all);
    while !planner.plan().is_empty() {}
}

fn tell(planner: &mut Told, all: &[Served]) {
    let mut snapshot = Snapshot::default();
    let mut view: View = node(DIRECTOR, &["10.0.0.254"]);
    for (of, decided, servers) in all {
        let addresses = servers.iter().map(|last| format!("10.0.0.{last}"));
        let addresses: Vec<String> = addresses.collect();
        for address in addresses.iter().map(|address| ip(address)) {
            view.next_hops.insert(address, hop(Via::Link, address));
        }
        let servers = addresses.iter().map(|address| server(address, address, 1));
        snapshot.pools.insert(name(of), servers.collect());
        let decided = Arc::new(decided.clone());
        snapshot.virtual_servers.insert(name(of), decided);
    }
    planner.set_view(view);
    planner.set_snapshot(&snapshot);
}

/// The last octets of the servers in the maps.
fn served(planner: &Told, of: &str) -> Vec<u8> {
    let all = planner.servers();
    let of = name(of);
    let addresses = all.filter(|info| *info.virtual_server == of);
    let mut last: Vec<u8> = addresses
        .map(|info| match info.address {
            std::net::IpAddr::V4(address) => address.octets()[3],
            std::net::IpAddr::V6(_) => unreachable!("IPv4 alone"),
        })
        .collect();
    last.sort_unstable();
    last
}

fn range(numbers: std::ops::RangeInclusive<u8>) -> Vec<u8> {
    numbers.collect()
}

/// What has no room, by reason and object, with the message of the last one.
fn refused(planner: &Told) -> (BTreeMap<(Reason, ObjectKey), usize>, String) {
    let mut refused: BTreeMap<(Reason, ObjectKey), usize> = BTreeMap::new();
    let full: Vec<&Problem> = planner.full().into_iter().collect();
    for problem in &full {
        let key = (problem.reason, problem.object.clone());
        *refused.entry(key).or_default() += 1;
    }
    let message = full.last().map(|problem| problem.message.clone());
    (refused, message.unwrap_or_default())
}

fn over_quota(of: &str) -> BTreeMap<(Reason, ObjectKey), usize> {
    [((Reason::QuotaExceeded, name(of)), 1)].into()
}

#[test]
fn one_virtual_server_leaves_room_for_others() {
    let mut planner = Told::new(LIMITS, &Image::default());
    let big = big(ForwardingMode::FullNat, 1..=40);
    settle(&mut planner, &[big, small()]);
    assert_eq!(served(&planner, "small"), range(101..=105));
    assert_eq!(served(&planner, "big"), range(1..=10));
    let (refused, message) = refused(&planner);
    assert_eq!(refused, over_quota("big"));
    assert!(
        message.contains("SERVERS (10 entries, a quarter), so some of its servers take no flows"),
        "{message}"
    );
    let not_live = planner.exceptions();
    assert!(!not_live.is_empty());
    assert!(
        not_live.iter().all(|problem| problem.object == name("big")),
        "{not_live:?}"
    );
}

#[test]
fn what_is_beyond_its_quota_stays_and_may_be_replaced() {
    use ForwardingMode::FullNat;
    let without_quotas = Limits {
        servers_each: 31,
        ..LIMITS
    };
    let mut planner = Told::new(without_quotas, &Image::default());
    settle(&mut planner, &[big(FullNat, 1..=20)]);
    assert_eq!(served(&planner, "big"), range(1..=20));

    // An agent with quotas takes over.
    let mut planner = Told::new(LIMITS, planner.image());
    for (wanted, expected) in [
        (1..=20, 1..=20),
        (6..=25, 6..=25),
        (6..=30, 6..=25),
        (6..=12, 6..=12),
        (6..=30, 6..=15),
    ] {
        let is_refused = wanted != expected;
        settle(&mut planner, &[big(FullNat, wanted.clone())]);
        assert_eq!(served(&planner, "big"), range(expected), "{wanted:?}");
        let (refused, _) = refused(&planner);
        let told = if is_refused {
            over_quota("big")
        } else {
            BTreeMap::new()
        };
        assert_eq!(refused, told, "{wanted:?}");
    }
}

#[test]
fn a_full_quota_can_be_exchanged_at_once() {
    use ForwardingMode::{FullNat, Nat};
    let mut planner = Told::new(LIMITS, &Image::default());
    settle(&mut planner, &[big(FullNat, 1..=10)]);
    for (mode, servers) in [(FullNat, 11..=20), (Nat, 11..=20), (Nat, 14..=23)] {
        tell(&mut planner, &[big(mode, servers.clone())]);
        planner.plan();
        assert_eq!(served(&planner, "big"), range(servers), "{mode:?}");
        while !planner.plan().is_empty() {}
    }
    // By another pool's name the servers are the same, and the ring a new one.
    let (of, mut decided, servers) = big(Nat, 14..=23);
    decided.pools[0].name = "small".to_owned();
    let (_, other, _) = small();
    tell(
        &mut planner,
        &[(of, decided, Vec::new()), ("small", other, servers.clone())],
    );
    planner.plan();
    assert_eq!(served(&planner, "big"), servers);
}

/// Ports of the virtual server that have a ring.
fn with_ring(planner: &Told) -> usize {
    let heads = planner.image().heads.values();
    heads.filter(|head| head.pools[0].ring != 0).count()
}

#[test]
fn rings_have_a_quota_that_lets_them_be_replaced() {
    let limits = Limits {
        ring_slots: 8 * 4096,
        ring_slots_each: 2 * 4096,
        ..ROOMY
    };
    let with_ports = |ports: &[u16], servers: Vec<u8>| {
        let (of, mut decided, _) = big(ForwardingMode::FullNat, []);
        decided.ports = ports
            .iter()
            .map(|port| tcp(&format!("p{port}"), *port))
            .collect();
        (of, decided, servers)
    };
    let mut planner = Told::new(limits, &Image::default());
    settle(
        &mut planner,
        &[with_ports(&[80, 81, 82], range(1..=2)), small()],
    );
    assert_eq!(with_ring(&planner), 3, "two of one, and the other's");
    let (told, message) = refused(&planner);
    assert_eq!(told, over_quota("big"));
    assert!(message.contains("RING_SLOTS (8192 entries"), "{message}");
    // Other rings in the place of those, and other ports.
    for ports in [&[80, 81][..], &[90, 91]] {
        for servers in [range(1..=2), range(2..=3)] {
            settle(&mut planner, &[with_ports(ports, servers.clone()), small()]);
            assert_eq!(refused(&planner).0, BTreeMap::new(), "{ports:?}");
            assert_eq!(with_ring(&planner), 3, "{ports:?}");
            assert!(planner.exceptions().is_empty(), "{ports:?} {servers:?}");
        }
    }
}

#[test]
fn a_ring_that_may_not_grow_follows_its_servers() {
    let limits = Limits {
        ring_slots_each: 4096,
        ..ROOMY
    };
    let mut planner = Told::new(limits, &Image::default());
    settle(&mut planner, &[big(ForwardingMode::FullNat, 1..=2)]);
    for servers in [1..=20, 11..=30, 31..=50] {
        settle(
            &mut planner,
            &[big(ForwardingMode::FullNat, servers.clone())],
        );
        assert_eq!(served(&planner, "big"), range(servers));
        let (told, message) = refused(&planner);
        assert_eq!(told, over_quota("big"));
        assert!(message.contains("has fewer slots than"), "{message}");
        let sizes = planner.image().rings.values().map(|ring| ring.word.slots());
        assert_eq!(sizes.collect::<Vec<_>>(), [4096]);
        assert!(
            planner.exceptions().is_empty(),
            "each has its part of the ring"
        );
    }
}
