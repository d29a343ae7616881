//! Every prefix of every plan is safe, and every plan arrives.
//!
//! Random inputs follow one another; operations are applied one by one to maps whose judge
//! ([`common::maps`]) refuses whatever could harm a packet; some plans are cut short. `faults_are_found` puts operations
//! into harmful orders on purpose and expects the judge to see each.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use common::damage::damages;
use common::maps::Maps;
use common::met::{met, owners};
use common::{
    DIRECTOR, REAL_SERVER, ROOMY, Snapshot, Told, View, hop, ip, name, node, planner, ports,
    server, share, snapshot, sources, tcp, udp, virtual_server, with_hops,
};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use sluice_abi::{AnnouncedWord, NET_SENDS, NET_TUNNELS, VipWord};
use sluice_api::{DecidedVirtualServer, ForwardingMode, ObjectKey};
use sluice_planner::{
    Announced, AnnouncedAt, Image, Limits, Mac, MapOp, NextHop, Prefix, Problem, Reason, Server,
    Socket, Tenths, Via,
};

const ADDRESSES: [&str; 7] = [
    "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "fd00::1", "fd00::2", "fd00::3",
];
const VIPS: [&str; 3] = ["192.0.2.1", "192.0.2.2", "2001:db8::1"];
const BLOCKS: [&str; 4] = [
    "198.51.100.0/24",
    "198.51.100.7/32",
    "2001:db8:1::/48",
    "::/0",
];
const POOLS: [&str; 3] = ["blue", "green", "red"];

/// One moment: what is decided and what the node sees.
type Moment = (Snapshot, View);

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
    let allowed = prop::option::of(subsequence(BLOCKS.to_vec(), 1..=3));
    let ports = subsequence(ports, 1..=2);
    (addresses, ports, modes(), shares, allowed).prop_map(
        |(addresses, ports, mode, (pools, weights), allowed)| DecidedVirtualServer {
            sources: allowed.map(|blocks| sources(&blocks)),
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

fn views() -> impl Strategy<Value = View> {
    let role = select(vec![DIRECTOR, DIRECTOR, DIRECTOR, REAL_SERVER]);
    let own = subsequence(ADDRESSES.to_vec(), 0..=2);
    let hops: Vec<_> = ADDRESSES
        .iter()
        .map(|address| next_hops(ip(address)))
        .collect();
    let peers = prop::collection::btree_set((0_u8..3).prop_map(|i| Mac([2, 0, 0, 0, 0, i])), 0..3);
    let seen = (announced(), tenths());
    (role, own, hops, peers, seen).prop_map(|(role, own, hops, peers, (announced, tenths))| {
        let mut view = node(role, &own);
        let nets = peers.iter().copied().map(peer_net);
        let flags = NET_SENDS | NET_TUNNELS;
        view.node.peer_nets = nets.map(|net| (net, flags)).collect();
        view.node.macs = peers.iter().map(|mac| (2, *mac)).collect();
        view.node.peers = peers;
        view.next_hops = ADDRESSES.iter().copied().map(ip).zip(hops).collect();
        view.announced = announced;
        view.tenths = tenths;
        view
    })
}

/// What checks say of servers.
fn tenths() -> impl Strategy<Value = BTreeMap<ObjectKey, Tenths>> {
    let addresses = select(ADDRESSES.map(ip).to_vec());
    let servers = (addresses, select(vec![53, 80, 443, 8080, 8081]));
    let servers = servers.prop_map(|(address, port)| SocketAddr::new(address, port));
    let tenths = prop_oneof![2 => Just(0_u8), 1 => 0_u8..10];
    let of_pool = prop::collection::btree_map(servers, tenths, 1..12);
    prop::collection::btree_map(select(POOLS.map(name).to_vec()), of_pool, 0..=2)
}

/// Of VIPs and of a gateway.
fn announced() -> impl Strategy<Value = BTreeMap<IpAddr, Announced>> {
    let addresses = VIPS.iter().chain(&["192.0.2.254", "fd00::fe"]);
    let addresses = select(addresses.copied().map(ip).collect::<Vec<_>>());
    let on = subsequence(vec![2, 3, 4], 0..=3);
    let how = (0_u16..3, on, 0_u8..2).prop_map(|(group, on, mac)| (group, on, mac));
    prop::collection::btree_map(addresses, how, 0..=4).prop_map(|announced| {
        let announced = announced.into_iter();
        let entry = |(address, (group, on, mac)): (IpAddr, (u16, Vec<u32>, u8))| {
            let mac = Mac([2, 0, 0, 0, 1, mac]);
            let on = on.into_iter().map(|ifindex| (ifindex, mac)).collect();
            let router = !VIPS.iter().copied().map(ip).any(|vip| vip == address);
            (address, Announced { group, on, router })
        };
        announced.map(entry).collect()
    })
}

fn peer_net(mac: Mac) -> Prefix {
    let address = IpAddr::from([10, 9, 0, mac.0[5]]);
    Prefix::host(address)
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
    let keyed = (1_u32..8, 0_u32..6, 0_u32..3, 0_u32..3, 0_u32..5, 0_u32..6);
    (keyed, 1_u32..12, 1_u32..12, 0_u32..8, 1_u32..24, 1_u32..24).prop_map(
        |(
            (vips, replies, locals, peers, announced, sources),
            heads,
            rings,
            arena,
            servers,
            records,
        )| {
            Limits {
                vips,
                replies,
                locals,
                peers,
                peer_nets: peers,
                sources,
                announced,
                heads,
                rings,
                ring_slots: arena * 4096 + 3,
                servers,
                records,
                servers_each: servers.div_ceil(2),
                ring_slots_each: arena * 2048,
                sources_each: sources.div_ceil(2),
            }
        },
    )
}

/// The entries of `ANNOUNCED*` that follow from a view where there is room.
fn entries(image: &Image, view: &View) -> BTreeMap<AnnouncedAt, AnnouncedWord> {
    let balanced = |address: &IpAddr| {
        let mut vips = image.vips.iter();
        vips.any(|(socket, word)| socket.address == *address && word.head() != 0)
    };
    let announced = view.announced.iter();
    let announced = announced.filter(|(address, how)| how.router || balanced(address));
    let entries = announced.flat_map(|(&address, how)| {
        let entry = |&(ifindex, mac): &(u32, Mac)| {
            let word = AnnouncedWord::new(mac.0, how.group, how.router);
            (AnnouncedAt { address, ifindex }, word)
        };
        how.on.iter().map(entry).collect::<Vec<_>>()
    });
    entries.collect()
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

/// Has a planner go on until nothing is left to do.
fn settle(planner: &mut Told, maps: &mut Maps) -> Result<(), TestCaseError> {
    for _ in 0..10 {
        let ops = planner.plan();
        if ops.is_empty() {
            return Ok(());
        }
        apply(maps, &ops)?;
        prop_assert!(
            maps.image() == *planner.image(),
            "the maps are not as planned"
        );
    }
    Err(TestCaseError::fail("ten plans do not arrive"))
}

/// One run: the plan of each moment, whole or cut short, and at last the last one's until nothing is left to do.
fn run(run: &[(Moment, usize)], limits: &Limits) -> Result<(Maps, Told), TestCaseError> {
    let mut maps = Maps::new(*limits);
    let mut planner = Told::new(*limits, &Image::default());
    for ((snapshot, view), cut) in run {
        planner.set_snapshot(snapshot);
        planner.set_view(view.clone());
        let ops = planner.plan();
        if *cut < ops.len() {
            apply(&mut maps, &ops[..*cut])?;
            apply(&mut maps, &[MapOp::Grace])?;
            planner.adopt(&maps.image());
            continue;
        }
        apply(&mut maps, &ops)?;
        prop_assert!(
            maps.image() == *planner.image(),
            "the maps are not as planned"
        );
    }
    settle(&mut planner, &mut maps)?;
    Ok((maps, planner))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_prefix_is_safe_and_every_plan_arrives(moments in runs()) {
        let (maps, incremental) = run(&moments, &ROOMY)?;
        let Some(((snapshot, view), _)) = moments.last() else { return Ok(()); };
        let actual = maps.image();
        let mut anew = planner(snapshot, view, &actual, &ROOMY);
        prop_assert_eq!(anew.plan(), vec![], "a plan of its own result changes it");
        prop_assert_eq!(anew.full(), BTreeSet::new());
        prop_assert_eq!(anew.problems(), incremental.problems());
        prop_assert_eq!(anew.exceptions(), incremental.exceptions());

        let served: BTreeSet<Socket> = anew.served().map(|(vip_port, _)| vip_port.into()).collect();
        let found: BTreeSet<Socket> = actual.vips.keys().filter(|e| !e.is_marker()).copied().collect();
        prop_assert_eq!(&found, &served);
        let addresses: BTreeSet<IpAddr> = served.iter().map(|e| e.address).collect();
        let markers: BTreeSet<IpAddr> =
            actual.vips.keys().filter(|e| e.is_marker()).map(|e| e.address).collect();
        prop_assert_eq!(markers, addresses);
        prop_assert_eq!(&actual.announced, &entries(&actual, view));
        for problem in anew.exceptions() {
            let expected = anew.problems().contains(problem) || problem.reason == Reason::NextHopPending;
            prop_assert!(expected, "{problem}");
        }
    }

    /// Packets meet the same after many changes as after one plan of the last state on empty maps.
    #[test]
    fn changes_one_by_one_are_all_at_once(moments in runs()) {
        let settled = |(snapshot, view): &Moment| {
            let known = |address: &IpAddr| view.next_hops.get(address) != Some(&NextHop::Pending);
            ADDRESSES.into_iter().map(ip).all(|address| known(&address)) && !snapshot.pools.is_empty()
        };
        let Some((last, _)) = moments.last().filter(|(last, _)| settled(last)) else { return Ok(()); };
        let (one_by_one, _) = run(&moments, &ROOMY)?;
        let (at_once, _) = run(&[(last.clone(), usize::MAX)], &ROOMY)?;
        prop_assert!(met(&one_by_one) == met(&at_once), "packets meet something else");
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
            found.push(owners(&run(&past, &ROOMY)?.0, VipWord::head));
        }
        prop_assert!(found[0] == found[1], "two directors disagree");
    }

    /// Maps with words that no plan would write: the planner stays calm, and its plan leads to nothing that is missing.
    #[test]
    fn damaged_maps_are_repaired(past in runs(), damage in damages(&VIPS), (snapshot, view) in moments()) {
        let mut actual = run(&past, &ROOMY)?.0.image();
        for damage in damage {
            damage.apply(&mut actual);
        }
        for limits in [ROOMY, Limits { ring_slots: 8192, records: 8, ..ROOMY }] {
            let mut planner = planner(&snapshot, &view, &actual, &limits);
            while !planner.plan().is_empty() {}
            let mut maps = Maps::new(ROOMY);
            maps.load(planner.image());
            prop_assert!(maps.check().is_ok(), "{:?}", maps.check());
        }
    }

    /// The order in which users list things is no input.
    #[test]
    fn the_order_of_lists_changes_nothing((snapshot, view) in moments()) {
        let mut reversed = snapshot.clone();
        for virtual_server in reversed.virtual_servers.values_mut() {
            let virtual_server = Arc::make_mut(virtual_server);
            virtual_server.addresses.reverse();
            virtual_server.ports.reverse();
            if let Some(sources) = &mut virtual_server.sources {
                sources.allow.reverse();
            }
        }
        for servers in reversed.pools.values_mut() {
            servers.reverse();
        }
        let [listed, reversed] = [snapshot, reversed].map(|snapshot| {
            let mut planner = planner(&snapshot, &view, &Image::default(), &ROOMY);
            planner.plan();
            planner
        });
        prop_assert_eq!(listed.problems(), reversed.problems());
        prop_assert!(listed.image() == reversed.image(), "the maps differ");
    }
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
    let first = [(from.clone(), usize::MAX)];
    let (maps, mut planner) = run(&first, &ROOMY).expect("the first moment is safe");
    planner.set_snapshot(&to.0);
    planner.set_view(to.1.clone());
    (maps, planner.plan())
}

fn is_write(op: &MapOp) -> bool {
    matches!(
        op,
        MapOp::WriteRecord { .. }
            | MapOp::WriteRingSlots { .. }
            | MapOp::WriteHead { .. }
            | MapOp::WriteSources { .. }
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
        ("a server without its reply", |ops| {
            ops.retain(|op| !matches!(op, MapOp::SetReply { .. }));
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
    let image = run(&moments, &limits).expect("safe").0.image();
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
    let (_, mut planner) = run(&[(before.clone(), usize::MAX)], &ROOMY).expect("safe");
    for view in [lost.1, before.1] {
        planner.set_view(view);
        let ops = planner.plan();
        assert!(one_word(&ops), "{ops:?}");
        assert_eq!(planner.plan(), []);
    }
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
    let (_, mut planner) = run(&[(from, usize::MAX)], &limits).expect("safe");
    let before = planner.image().rings.clone();
    planner.set_snapshot(&to.0);
    planner.set_view(to.1);
    planner.plan();
    assert_eq!(planner.image().rings, before);
    let full: Vec<&Problem> = planner.full().into_iter().collect();
    let reasons: Vec<_> = full.iter().map(|p| (p.reason, &p.object)).collect();
    assert_eq!(reasons, [(Reason::LimitExceeded, &name("web"))]);
    assert!(
        full[0]
            .message
            .starts_with("RING_SLOTS is full (4196 entries)")
    );
    let not_live = planner.exceptions();
    assert!(
        not_live.iter().any(|p| p.reason == Reason::RingNotInPlace),
        "{not_live:?}"
    );
}
