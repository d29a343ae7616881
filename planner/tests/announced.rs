//! Which addresses a node announces, and in what order that is written.

mod common;

use std::net::IpAddr;

use common::maps::Maps;
use common::{
    DIRECTOR, REAL_SERVER, ROOMY, Snapshot, Told, View, ip, node, server, snapshot, tcp,
    virtual_server, with_hops,
};
use sluice_abi::AnnouncedWord;
use sluice_api::{DecidedPort, ForwardingMode};
use sluice_planner::{Announced, AnnouncedAt, Image, Limits, Mac, MapOp, Reason, Via};

const VIP: &str = "192.0.2.1";
const OTHER: &str = "192.0.2.2";
const GATEWAY: &str = "10.0.0.250";

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

fn how(group: u16, on: &[u32]) -> Announced {
    Announced {
        group,
        on: on.iter().map(|&ifindex| (ifindex, mac(9))).collect(),
        router: false,
    }
}

/// What a director sees that announces these.
fn director(announced: &[(&str, Announced)]) -> View {
    let mut view = with_hops(node(DIRECTOR, &[]), &[("10.0.0.1", Via::Link)]);
    let announced = announced.iter().cloned();
    view.announced = announced.map(|(vip, how)| (ip(vip), how)).collect();
    view
}

fn web(vip: &str, ports: Vec<DecidedPort>) -> Snapshot {
    let mut web = virtual_server(ForwardingMode::Nat, vip, &[("web", 1)]);
    web.ports = ports;
    let pool = vec![server("a", "10.0.0.1", 1)];
    snapshot(vec![("web", web)], vec![("web", pool)])
}

fn http() -> Snapshot {
    web(VIP, vec![tcp("http", 80)])
}

/// Applies plans until there is none, each prefix judged; returns all operations.
fn settle(planner: &mut Told, maps: &mut Maps) -> Vec<MapOp> {
    let mut all = Vec::new();
    loop {
        let ops = planner.plan();
        if ops.is_empty() {
            assert_eq!(maps.image(), *planner.image());
            return all;
        }
        for op in &ops {
            maps.apply(op).expect("safe");
        }
        all.extend(ops);
    }
}

/// A planner and maps that are as it wants them.
fn settled(limits: Limits, snapshot: &Snapshot, view: &View) -> (Told, Maps) {
    let mut maps = Maps::new(limits);
    let mut planner = common::planner(snapshot, view, &Image::default(), &limits);
    settle(&mut planner, &mut maps);
    (planner, maps)
}

fn entries(maps: &Maps) -> Vec<(String, u32)> {
    let image = maps.image();
    let entries = image.announced.iter();
    entries
        .map(|(at, word)| (at.to_string(), word.group()))
        .collect()
}

fn at(vip: &str, ifindex: u32) -> String {
    let address: IpAddr = ip(vip);
    AnnouncedAt { address, ifindex }.to_string()
}

fn position(ops: &[MapOp], is: impl Fn(&MapOp) -> bool) -> usize {
    ops.iter().position(is).expect("there is such an operation")
}

#[test]
fn a_vip_is_announced_once_it_is_balanced() {
    let view = director(&[(VIP, how(3, &[2, 4])), (OTHER, how(1, &[2]))]);
    let mut maps = Maps::new(ROOMY);
    let mut planner = common::planner(&http(), &view, &Image::default(), &ROOMY);
    let ops = settle(&mut planner, &mut maps);
    assert_eq!(entries(&maps), [(at(VIP, 2), 3), (at(VIP, 4), 3)]);
    let vip = position(&ops, |op| matches!(op, MapOp::SetVip { .. }));
    let first = position(&ops, |op| matches!(op, MapOp::SetAnnounced { .. }));
    assert!(vip < first, "{ops:?}");
    let word = *maps.image().announced.values().next().expect("two entries");
    assert_eq!(word, AnnouncedWord::new(mac(9).0, 3, false));

    planner.set_snapshot(&Snapshot::default());
    let ops = settle(&mut planner, &mut maps);
    assert_eq!(entries(&maps), []);
    let vip = position(&ops, |op| matches!(op, MapOp::RemoveVip { .. }));
    let last = ops
        .iter()
        .rposition(|op| matches!(op, MapOp::RemoveAnnounced { .. }));
    assert!(last.expect("two went") < vip, "{ops:?}");
}

/// One word, and no port of it.
#[test]
fn a_change_writes_its_entry_alone() {
    let (mut planner, mut maps) = settled(ROOMY, &http(), &director(&[(VIP, how(3, &[2, 4]))]));
    let mut changed = how(3, &[2, 4]);
    changed.on[1].1 = mac(8);
    planner.set_announced(ip(VIP), Some(changed));
    let ops = settle(&mut planner, &mut maps);
    assert!(
        matches!(ops[..], [MapOp::SetAnnounced { .. }, MapOp::Grace]),
        "{ops:?}"
    );
    planner.set_announced(ip(VIP), None);
    assert_eq!(settle(&mut planner, &mut maps).len(), 3);
    assert_eq!(entries(&maps), []);
}

/// A node that is no director any more keeps the VIP's word for servers of its own, and announces nothing.
#[test]
fn only_directors_announce() {
    let (mut planner, mut maps) = settled(ROOMY, &http(), &director(&[(VIP, how(3, &[2]))]));
    let mut view = director(&[(VIP, how(3, &[2]))]);
    view.node.role = REAL_SERVER;
    planner.set_view(view);
    settle(&mut planner, &mut maps);
    assert_eq!(entries(&maps), []);
}

/// Between its old port and its new one a VIP is not balanced.
#[test]
fn a_port_takes_the_place_of_another() {
    let view = director(&[(VIP, how(3, &[2]))]);
    let (mut planner, mut maps) = settled(ROOMY, &http(), &view);
    planner.set_snapshot(&web(VIP, vec![tcp("https", 443)]));
    settle(&mut planner, &mut maps);
    assert_eq!(entries(&maps), [(at(VIP, 2), 3)]);
    planner.set_snapshot(&web(VIP, vec![tcp("http", 80), tcp("https", 443)]));
    let ops = settle(&mut planner, &mut maps);
    let touches = |op: &MapOp| {
        matches!(
            op,
            MapOp::SetAnnounced { .. } | MapOp::RemoveAnnounced { .. }
        )
    };
    assert!(!ops.iter().any(touches), "{ops:?}");
}

#[test]
fn a_gateway_needs_no_virtual_server() {
    let gateway = Announced {
        router: true,
        ..how(5, &[3])
    };
    let view = director(&[(GATEWAY, gateway)]);
    let (_, maps) = settled(ROOMY, &Snapshot::default(), &view);
    assert_eq!(entries(&maps), [(at(GATEWAY, 3), 5)]);
    let text = maps.image().to_string();
    let line = "announced 10.0.0.250 at interface 3: 02:00:00:00:00:09, group 5, router";
    assert_eq!(text.lines().next(), Some(line), "{text}");
}

/// What is there stays; the rest is named, and gets room that is made.
#[test]
fn without_room_an_address_is_named() {
    let limits = Limits {
        announced: 2,
        ..ROOMY
    };
    let gateway = |ifindices: &[u32]| Announced {
        router: true,
        ..how(5, ifindices)
    };
    let view = director(&[(GATEWAY, gateway(&[3, 4]))]);
    let (mut planner, mut maps) = settled(limits, &http(), &view);
    let changes = planner.trouble_changes();
    planner.set_announced(ip("10.0.0.2"), Some(gateway(&[3])));
    planner.set_announced(ip(VIP), Some(how(3, &[2])));
    settle(&mut planner, &mut maps);
    assert_eq!(entries(&maps), [(at(GATEWAY, 3), 5), (at(GATEWAY, 4), 5)]);
    let full: Vec<_> = planner.full().into_iter().cloned().collect();
    assert_eq!(full.len(), 1);
    assert_eq!(full[0].reason, Reason::LimitExceeded);
    assert!(
        full[0]
            .message
            .starts_with("ANNOUNCED4 is full (2 entries)"),
        "{}",
        full[0].message
    );
    assert_ne!(planner.trouble_changes(), changes);
    assert_eq!(planner.usage().announced, 2);

    planner.set_announced(ip(GATEWAY), None);
    settle(&mut planner, &mut maps);
    assert_eq!(entries(&maps), [(at("10.0.0.2", 3), 5), (at(VIP, 2), 3)]);
    assert!(planner.full().is_empty());
}

/// An agent that starts anew with the same decisions disturbs nothing, and removes what nobody wants.
#[test]
fn a_restart_changes_nothing() {
    let view = director(&[(VIP, how(3, &[2])), (OTHER, how(1, &[2]))]);
    let (_, maps) = settled(ROOMY, &http(), &view);
    let image = maps.image();
    let mut again = common::planner(&http(), &view, &image, &ROOMY);
    assert_eq!(again.plan(), []);

    let mut damaged = image.clone();
    let other = AnnouncedAt {
        address: ip(OTHER),
        ifindex: 2,
    };
    damaged
        .announced
        .insert(other, AnnouncedWord::new([2; 6], 1, false));
    let mut again = common::planner(&http(), &view, &damaged, &ROOMY);
    let ops = again.plan();
    assert_eq!(ops[0], MapOp::RemoveAnnounced { at: other });
    while !again.plan().is_empty() {}
    assert_eq!(*again.image(), image);
}

/// The judge sees a VIP that is announced too early, and one that goes too early.
#[test]
fn faults_are_found() {
    let view = director(&[(VIP, how(3, &[2]))]);
    let is_set = |op: &MapOp| matches!(op, MapOp::SetAnnounced { .. });
    let mut planner = common::planner(&http(), &view, &Image::default(), &ROOMY);
    let mut ops = planner.plan();
    ops.sort_by_key(|op| !is_set(op));
    let mut maps = Maps::new(ROOMY);
    assert!(ops.iter().any(|op| maps.apply(op).is_err()), "too early");

    let (mut planner, mut maps) = settled(ROOMY, &http(), &view);
    planner.set_snapshot(&Snapshot::default());
    let mut ops = planner.plan();
    ops.sort_by_key(|op| matches!(op, MapOp::RemoveAnnounced { .. }));
    assert!(ops.iter().any(|op| maps.apply(op).is_err()), "too late");
}
