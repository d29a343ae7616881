//! Every prefix of every plan is safe, and every plan arrives.
//!
//! Random inputs follow one another; operations are applied one by one to maps whose judge
//! ([`common::maps`]) refuses whatever could harm a packet; some plans are cut short. `faults_are_found` puts operations
//! into harmful orders on purpose and expects the judge to see each.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use common::maps::Maps;
use common::{
    DIRECTOR, REAL_SERVER, ROOMY, hop, ip, name, node, ports, server, share, snapshot, tcp, udp,
    virtual_server, with_hops,
};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use sluice_abi::{Path, RingWord, ServerWord, VipWord};
use sluice_api::{DecidedVirtualServer, ForwardingMode, Protocol};
use sluice_planner::{
    Endpoint, Image, Limits, Mac, MapOp, NextHop, NodeView, Reason, Ring, RingCache, Server,
    Snapshot, Via, diff, live, node_config, plan, plan_with,
};

const ADDRESSES: [&str; 7] = [
    "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "fd00::1", "fd00::2", "fd00::3",
];
const VIPS: [&str; 3] = ["192.0.2.1", "192.0.2.2", "2001:db8::1"];
const POOLS: [&str; 3] = ["blue", "green", "red"];

/// One moment: what is decided and what the node sees.
type Moment = (Snapshot, NodeView);

fn modes() -> impl Strategy<Value = ForwardingMode> {
    use ForwardingMode::{Dr, FullNat, Nat, Tun};
    select(vec![Nat, FullNat, Dr, Tun])
}

fn virtual_servers() -> impl Strategy<Value = DecidedVirtualServer> {
    let ports = vec![tcp("http", 80), tcp("https", 443), udp("dns", 53)];
    let shares = (
        subsequence(POOLS.to_vec(), 1..=3),
        prop::collection::vec(0_u32..4, 3),
    );
    let addresses = subsequence(VIPS.to_vec(), 1..=2);
    (addresses, subsequence(ports, 1..=2), modes(), shares).prop_map(
        |(addresses, ports, mode, (pools, weights))| DecidedVirtualServer {
            addresses: addresses.into_iter().map(ip).collect(),
            ports,
            pools: pools
                .into_iter()
                .zip(weights)
                .map(|(name, weight)| share(name, weight))
                .collect(),
            ..virtual_server(mode, VIPS[0], &[])
        },
    )
}

fn pools() -> impl Strategy<Value = Vec<Server>> {
    let members = prop::collection::vec((select(ADDRESSES.to_vec()), 0_u32..4, 0_u16..2), 0..5);
    members.prop_map(|members| {
        let numbered = members.into_iter().enumerate();
        numbered
            .map(|(i, (address, weight, port))| Server {
                ports: ports(&[("http", 8080 + port)]),
                ..server(&format!("s{i}"), address, weight)
            })
            .collect()
    })
}

fn next_hops(address: IpAddr) -> impl Strategy<Value = NextHop> {
    let via = |via| Just(hop(via, address));
    prop_oneof![
        6 => via(Via::Link),
        2 => via(Via::Router),
        2 => via(Via::Bridge),
        1 => Just(NextHop::Pending),
        1 => Just(NextHop::Overdue),
        1 => Just(NextHop::Unreachable),
    ]
}

fn views() -> impl Strategy<Value = NodeView> {
    let role = select(vec![DIRECTOR, DIRECTOR, DIRECTOR, REAL_SERVER]);
    let own = subsequence(ADDRESSES.to_vec(), 0..=2);
    let hops: Vec<_> = ADDRESSES
        .iter()
        .map(|address| next_hops(ip(address)))
        .collect();
    let peers = prop::collection::btree_set((0_u8..3).prop_map(|i| Mac([2, 0, 0, 0, 0, i])), 0..3);
    (role, own, hops, peers).prop_map(|(role, own, hops, peers)| NodeView {
        next_hops: ADDRESSES.iter().copied().map(ip).zip(hops).collect(),
        peers,
        ..node(role, &own)
    })
}

fn moments() -> impl Strategy<Value = Moment> {
    let servers =
        prop::collection::btree_map(select(vec!["a", "b", "c"]), virtual_servers(), 0..=3);
    let pools = prop::collection::btree_map(select(POOLS.to_vec()), pools(), 0..=3);
    (servers, pools, views()).prop_map(|(servers, pools, view)| {
        let input = snapshot(servers.into_iter().collect(), pools.into_iter().collect());
        (input, view)
    })
}

/// The moments of a run, and after how many operations each plan is cut short.
fn runs() -> impl Strategy<Value = Vec<(Moment, usize)>> {
    let cut = prop_oneof![3 => Just(usize::MAX), 2 => 0_usize..40];
    prop::collection::vec((moments(), cut), 1..6)
}

fn tight() -> impl Strategy<Value = Limits> {
    let keyed = (1_u32..8, 0_u32..6, 0_u32..3, 0_u32..3);
    (keyed, 1_u32..12, 1_u32..12, 0_u32..8, 1_u32..24, 1_u32..24).prop_map(
        |((vips, backends, locals, peers), heads, rings, arena, servers, records)| Limits {
            vips,
            backends,
            locals,
            peers,
            heads,
            rings,
            ring_slots: arena * 4096 + 3,
            servers,
            records,
        },
    )
}

/// Something wrong in the maps.
#[derive(Clone, Debug)]
enum Damage {
    Vip(Endpoint, u64),
    Server(u32, u64),
    Ring(u32, u32, u8),
    NoRecord(u32),
    NoHead(u32),
    Backend(u8, u16),
}

impl Damage {
    fn apply(self, image: &mut Image) {
        match self {
            Self::Vip(endpoint, word) => {
                image.vips.insert(endpoint, VipWord(word));
            }
            Self::Server(id, word) => {
                image.servers.insert(id, ServerWord(word));
            }
            Self::Ring(ring, offset, log2_slots) => {
                let word = RingWord::new(offset, log2_slots);
                let slots = vec![1; word.slots() as usize].into();
                image.rings.insert(ring, Ring { word, slots });
            }
            Self::NoRecord(slot) => {
                image.records.remove(&slot);
            }
            Self::NoHead(slot) => {
                image.heads.remove(&slot);
            }
            Self::Backend(last, index) => {
                let endpoint = Endpoint::new([10, 0, 0, last].into(), Protocol::Tcp, 80);
                image.backends.insert(endpoint, index);
            }
        }
    }
}

fn damages() -> impl Strategy<Value = Vec<Damage>> {
    let endpoint = (select(VIPS.to_vec()), select(vec![0, 80, 443]));
    let endpoint = endpoint.prop_map(|(vip, port)| match port {
        0 => Endpoint::marker(ip(vip)),
        port => Endpoint::new(ip(vip), Protocol::Tcp, port),
    });
    let near_or_any = prop_oneof![0_u64..8, any::<u64>()];
    let server = prop_oneof![
        any::<u64>(),
        (0_u32..8, any::<u8>())
            .prop_map(|(slot, epoch)| { ServerWord::new(slot, epoch, Path::Xdp, false).0 })
    ];
    let damage = prop_oneof![
        (endpoint, near_or_any).prop_map(|(endpoint, word)| Damage::Vip(endpoint, word)),
        (0_u32..12, server).prop_map(|(id, word)| Damage::Server(id, word)),
        (0_u32..8, 0_u32..20_000, 0_u8..14)
            .prop_map(|(r, offset, log2)| Damage::Ring(r, offset, log2)),
        (1_u32..8).prop_map(Damage::NoRecord),
        (1_u32..8).prop_map(Damage::NoHead),
        (1_u8..5, 32_766_u16..32_772).prop_map(|(last, index)| Damage::Backend(last, index)),
    ];
    prop::collection::vec(damage, 1..6)
}

/// Applies operations to `maps`; a refusal shows what came before.
fn apply(maps: &mut Maps, ops: &[MapOp]) -> Result<(), TestCaseError> {
    for (i, op) in ops.iter().enumerate() {
        if let Err(reason) = maps.apply(op) {
            let op = format!("{op:?}");
            return Err(TestCaseError::fail(format!(
                "operation {i}, {op:.200}: {reason}"
            )));
        }
    }
    Ok(())
}

/// One run: the plan of each moment, whole or cut short, and at last the last one's until nothing is left to do.
fn run(run: &[(Moment, usize)], limits: &Limits) -> Result<Maps, TestCaseError> {
    let mut maps = Maps::new(*limits);
    let mut cache = RingCache::default();
    for ((snapshot, view), cut) in run {
        let config = node_config(snapshot, view);
        let actual = maps.image();
        let planned = plan_with(&config, &actual, limits, &mut cache);
        prop_assert!(
            planned == plan(&config, &actual, limits),
            "the cache changes the plan"
        );
        let ops = diff(&actual, &planned.desired);
        if *cut < ops.len() {
            apply(&mut maps, &ops[..*cut])?;
            apply(&mut maps, &[MapOp::Grace])?;
            continue;
        }
        apply(&mut maps, &ops)?;
        prop_assert!(
            maps.image() == planned.desired,
            "the maps are not as planned"
        );
        prop_assert_eq!(diff(&planned.desired, &planned.desired), vec![]);
    }
    let Some(((snapshot, view), _)) = run.last() else {
        return Ok(maps);
    };
    let config = node_config(snapshot, view);
    for _ in 0..10 {
        let actual = maps.image();
        let ops = diff(&actual, &plan(&config, &actual, limits).desired);
        if ops.is_empty() {
            return Ok(maps);
        }
        apply(&mut maps, &ops)?;
    }
    Err(TestCaseError::fail("ten plans do not arrive"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_prefix_is_safe_and_every_plan_arrives(moments in runs()) {
        let maps = run(&moments, &ROOMY)?;
        let Some(((snapshot, view), _)) = moments.last() else { return Ok(()); };
        let config = node_config(snapshot, view);
        let actual = maps.image();
        let planned = plan(&config, &actual, &ROOMY);
        prop_assert!(planned.desired == actual, "a plan of its own result changes it");
        prop_assert_eq!(planned.problems, vec![]);

        let served: BTreeSet<Endpoint> = config.vip_ports.keys().copied().map(Endpoint::from).collect();
        let found: BTreeSet<Endpoint> = actual.vips.keys().filter(|e| !e.is_marker()).copied().collect();
        prop_assert_eq!(&found, &served);
        let addresses: BTreeSet<IpAddr> = served.iter().map(|e| e.address).collect();
        let markers: BTreeSet<IpAddr> =
            actual.vips.keys().filter(|e| e.is_marker()).map(|e| e.address).collect();
        prop_assert_eq!(markers, addresses);
        for problem in live(&config, &actual) {
            let expected = config.problems.contains(&problem) || problem.reason == Reason::NextHopPending;
            prop_assert!(expected, "{problem}");
        }
    }

    #[test]
    fn full_maps_harm_nobody(moments in runs(), limits in tight()) {
        run(&moments, &limits)?;
    }

    /// Whatever their own addresses and pasts, two directors send a hash to the same server.
    #[test]
    fn directors_agree(
        (snapshot, _) in moments(),
        own in [subsequence(ADDRESSES.to_vec(), 0..=2), subsequence(ADDRESSES.to_vec(), 0..=2)],
        pasts in [runs(), runs()],
    ) {
        let mut found = Vec::new();
        for (own, mut past) in own.into_iter().zip(pasts) {
            let view = with_hops(node(DIRECTOR, &own), &ADDRESSES.map(|address| (address, Via::Link)));
            past.push(((snapshot.clone(), view), usize::MAX));
            found.push(owners(&run(&past, &ROOMY)?.image()));
        }
        prop_assert!(found[0] == found[1], "two directors disagree");
    }

    /// Maps with words that no plan would write: the planner stays calm, and its plan leads to nothing that is missing.
    #[test]
    fn damaged_maps_are_repaired(past in runs(), damage in damages(), (snapshot, view) in moments()) {
        let mut actual = run(&past, &ROOMY)?.image();
        for damage in damage {
            damage.apply(&mut actual);
        }
        let config = node_config(&snapshot, &view);
        for limits in [ROOMY, Limits { ring_slots: 8192, records: 8, ..ROOMY }] {
            diff(&actual, &plan(&config, &actual, &limits).desired);
        }
        let desired = plan(&config, &actual, &ROOMY).desired;
        let mut maps = Maps::new(ROOMY);
        maps.load(&desired);
        prop_assert!(maps.check().is_ok(), "{:?}", maps.check());
        prop_assert!(plan(&config, &desired, &ROOMY).desired == desired, "a plan of its own result changes it");
    }

    /// The order in which users list things is no input.
    #[test]
    fn the_order_of_lists_changes_nothing((snapshot, view) in moments()) {
        let mut reversed = snapshot.clone();
        for virtual_server in reversed.virtual_servers.values_mut() {
            let virtual_server = Arc::make_mut(virtual_server);
            virtual_server.addresses.reverse();
            virtual_server.ports.reverse();
        }
        for servers in reversed.pools.values_mut() {
            servers.reverse();
        }
        let [listed, reversed] = [snapshot, reversed].map(|snapshot| node_config(&snapshot, &view));
        prop_assert_eq!(&listed.problems, &reversed.problems);
        let [listed, reversed] =
            [listed, reversed].map(|config| plan(&config, &Image::default(), &ROOMY));
        prop_assert!(listed == reversed, "the maps differ");
    }
}

/// What packets see of the directors' heads: thresholds, and each slot's server as it is known everywhere.
type Owners = BTreeMap<Endpoint, Vec<(u32, Vec<([u8; 16], [u8; 2])>)>>;

fn owners(image: &Image) -> Owners {
    let owner = |id: &u32| {
        let record = image.records[&image.servers[id].slot()];
        let by_address = matches!(
            sluice_abi::ForwardingMode::from_u8(record.mode),
            Some(sluice_abi::ForwardingMode::Dr | sluice_abi::ForwardingMode::Tun)
        );
        (record.addr, if by_address { [0; 2] } else { record.port })
    };
    let pools = |slot| image.heads[&slot].pools;
    let ring = |ring| {
        image
            .rings
            .get(&ring)
            .map_or(vec![], |ring| ring.slots.iter().map(owner).collect())
    };
    let service = |(endpoint, word): (&Endpoint, &VipWord)| {
        let pools = pools(word.head()).into_iter();
        (
            *endpoint,
            pools
                .map(|pool| (pool.threshold, ring(pool.ring)))
                .collect(),
        )
    };
    image
        .vips
        .iter()
        .filter(|(endpoint, _)| !endpoint.is_marker())
        .map(service)
        .collect()
}

/// A director's plan for `servers` of one pool.
fn web(servers: &[(&str, u32)], weights: &[(&str, u32)]) -> Moment {
    let members = servers
        .iter()
        .map(|&(address, weight)| server(address, address, weight));
    let web = virtual_server(ForwardingMode::Nat, "192.0.2.1", weights);
    let input = snapshot(
        vec![("web", web)],
        vec![
            ("blue", members.collect()),
            ("green", vec![server("g", "10.0.0.4", 1)]),
        ],
    );
    let hops: Vec<(&str, Via)> = ADDRESSES
        .iter()
        .map(|&address| (address, Via::Link))
        .collect();
    (input, with_hops(node(DIRECTOR, &[]), &hops))
}

/// The operations from one moment to another, with the maps at the first.
fn step(from: &Moment, to: &Moment) -> (Maps, Vec<MapOp>) {
    let maps = run(&[(from.clone(), usize::MAX)], &ROOMY).expect("the first moment is safe");
    let actual = maps.image();
    let config = node_config(&to.0, &to.1);
    let ops = diff(&actual, &plan(&config, &actual, &ROOMY).desired);
    (maps, ops)
}

fn is_write(op: &MapOp) -> bool {
    matches!(
        op,
        MapOp::WriteRecord { .. } | MapOp::WriteRingSlots { .. } | MapOp::WriteHead { .. }
    )
}

/// Puts operations into a harmful order.
type Fault = fn(&mut Vec<MapOp>);

#[test]
fn faults_are_found() {
    let from = web(
        &[("10.0.0.1", 1), ("10.0.0.2", 1)],
        &[("blue", 1), ("green", 1)],
    );
    let to = web(&[("10.0.0.2", 1), ("10.0.0.3", 1)], &[("blue", 1)]);
    let faults: [(&str, Fault); 6] = [
        ("flip before write", |ops| ops.sort_by_key(is_write)),
        ("no grace", |ops| ops.retain(|op| *op != MapOp::Grace)),
        ("a ring before its servers", |ops| {
            ops.sort_by_key(|op| matches!(op, MapOp::SetServer { .. }));
        }),
        ("a head before its ring", |ops| {
            ops.retain(|op| !matches!(op, MapOp::WriteRingSlots { .. }));
        }),
        ("a ring in place of another", |ops| {
            for op in ops {
                if let MapOp::WriteRingSlots { offset, .. } = op {
                    *offset = 0;
                }
            }
        }),
        ("a server without its backend", |ops| {
            ops.retain(|op| !matches!(op, MapOp::SetBackend { .. }));
        }),
    ];
    let (mut maps, ops) = step(&from, &to);
    apply(&mut maps, &ops).expect("the right order is safe");
    for (fault, make) in faults {
        let (mut maps, mut ops) = step(&from, &to);
        make(&mut ops);
        assert!(apply(&mut maps, &ops).is_err(), "{fault} was not found");
    }
}

/// A canary step changes shares alone: one head and one word, no ring and no server.
#[test]
fn a_weight_step_writes_one_head() {
    let servers = [("10.0.0.1", 1), ("10.0.0.2", 1)];
    let from = web(&servers, &[("blue", 90), ("green", 10)]);
    let to = web(&servers, &[("blue", 50), ("green", 50)]);
    let (_, ops) = step(&from, &to);
    let expected = |ops: &[MapOp]| {
        matches!(
            ops,
            [MapOp::WriteHead { .. }, MapOp::SetVip { .. }, MapOp::Grace]
        )
    };
    assert!(expected(&ops), "{ops:?}");
}

/// A server that comes back gets another epoch, so flows of its earlier life do not count.
#[test]
fn a_reused_id_has_a_new_epoch() {
    let limits = Limits {
        servers: 3,
        ..ROOMY
    };
    let both = web(&[("10.0.0.1", 1)], &[("blue", 1), ("green", 1)]);
    let green = web(&[], &[("blue", 1), ("green", 1)]);
    let moments: Vec<_> = [&both, &green, &both]
        .map(|m| (m.clone(), usize::MAX))
        .into();
    let image = run(&moments, &limits).expect("safe").image();
    let epochs: Vec<u8> = image.servers.values().map(|word| word.epoch()).collect();
    assert_eq!(epochs, [2, 1]);
}

/// An agent that starts anew knows no next hop yet and disturbs nothing.
#[test]
fn a_restart_changes_nothing() {
    let before = web(&[("10.0.0.1", 1), ("10.0.0.2", 1)], &[("blue", 1)]);
    let mut after = before.clone();
    after.1.next_hops.clear();
    assert_eq!(step(&before, &after).1, []);
}

/// A lost next hop flips one word, and so does its return.
#[test]
fn a_lost_next_hop_flips_one_word() {
    let before = web(&[("10.0.0.1", 1), ("10.0.0.2", 1)], &[("blue", 1)]);
    let mut lost = before.clone();
    lost.1
        .next_hops
        .insert(ip("10.0.0.1"), NextHop::Unreachable);
    let one_word = |ops: &[MapOp]| matches!(ops, [MapOp::SetServer { .. }, MapOp::Grace]);
    let (_, ops) = step(&before, &lost);
    assert!(one_word(&ops), "{ops:?}");
    let (mut maps, ops) = step(&before, &lost);
    apply(&mut maps, &ops).expect("safe");
    let actual = maps.image();
    let config = node_config(&before.0, &before.1);
    let ops = diff(&actual, &plan(&config, &actual, &ROOMY).desired);
    assert!(one_word(&ops), "{ops:?}");
}

/// Without room for a new ring the old one goes on, with the servers it names.
#[test]
fn a_ring_without_room_stays() {
    let limits = Limits {
        ring_slots: 4096 + 100,
        ..ROOMY
    };
    let from = web(&[("10.0.0.1", 1), ("10.0.0.2", 1)], &[("blue", 1)]);
    let to = web(&[("10.0.0.2", 1), ("10.0.0.3", 1)], &[("blue", 1)]);
    let maps = run(&[(from, usize::MAX)], &limits).expect("safe");
    let (before, config) = (maps.image(), node_config(&to.0, &to.1));
    let planned = plan(&config, &before, &limits);
    assert_eq!(planned.desired.rings, before.rings);
    let reasons: Vec<_> = planned
        .problems
        .iter()
        .map(|p| (p.reason, &p.object))
        .collect();
    assert_eq!(reasons, [(Reason::LimitExceeded, &name("web"))]);
    assert!(
        planned.problems[0]
            .message
            .starts_with("RING_SLOTS is full (4196 entries)")
    );
    let not_live = live(&config, &planned.desired);
    assert!(
        not_live.iter().any(|p| p.reason == Reason::RingNotInPlace),
        "{not_live:?}"
    );
}
