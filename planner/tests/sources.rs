//! Which clients the maps admit: source sets come, are shared, change by another one, and go.

mod common;

use std::sync::Arc;

use common::maps::Maps;
use common::met::admitted;
use common::{
    DIRECTOR, ROOMY, Snapshot, Told, View, hop, ip, name, node, server, sources, tcp,
    virtual_server,
};
use proptest::prelude::*;
use proptest::sample::subsequence;
use sluice_abi::{EVERYBODY, FIRST_SOURCE_SET, NOBODY};
use sluice_api::{DecidedVirtualServer, ForwardingMode};
use sluice_planner::{Image, Limits, MapOp, Prefix, Problem, Reason, Socket, Via};

const V4: &str = "192.0.2.1";
const V6: &str = "2001:db8::1";

/// A virtual server with a server of each family, that takes flows of these blocks; `None`: of everybody.
fn limited(vips: &[&str], blocks: Option<&[&str]>) -> DecidedVirtualServer {
    DecidedVirtualServer {
        addresses: vips.iter().copied().map(ip).collect(),
        sources: blocks.map(sources),
        ..virtual_server(ForwardingMode::Dr, vips[0], &[("pool", 1)])
    }
}

fn view() -> View {
    let mut view = node(DIRECTOR, &[]);
    for address in ["10.0.0.1", "fd00::1"].map(ip) {
        view.next_hops.insert(address, hop(Via::Link, address));
    }
    view
}

fn snapshot(all: &[(&str, DecidedVirtualServer)]) -> Snapshot {
    let servers = vec![server("a", "10.0.0.1", 1), server("b", "fd00::1", 1)];
    let virtual_servers = all.iter().cloned();
    Snapshot {
        virtual_servers: virtual_servers
            .map(|(of, decided)| (name(of), Arc::new(decided)))
            .collect(),
        pools: [(name("pool"), servers)].into(),
    }
}

/// Maps, and the planner that looks after them.
struct Node {
    maps: Maps,
    planner: Told,
}

impl Node {
    fn new(limits: Limits) -> Self {
        let mut planner = Told::new(limits, &Image::default());
        planner.set_view(view());
        let maps = Maps::new(limits);
        Self { maps, planner }
    }

    /// Plans, and applies the operations one by one up to the one with this number.
    fn plan(&mut self, cut: usize) -> Vec<MapOp> {
        let ops = self.planner.plan();
        for op in ops.iter().take(cut) {
            let applied = self.maps.apply(op);
            assert_eq!(applied, Ok(()), "{op:?} of {ops:?}");
        }
        ops
    }

    /// Takes in decisions, and plans until nothing is left to do.
    fn settle(&mut self, all: &[(&str, DecidedVirtualServer)]) -> Vec<MapOp> {
        self.planner.set_snapshot(&snapshot(all));
        let mut ops = Vec::new();
        for _ in 0..10 {
            let more = self.plan(usize::MAX);
            if more.is_empty() {
                break;
            }
            ops.extend(more);
        }
        assert_eq!(self.planner.plan(), [], "ten plans do not arrive");
        assert!(self.maps.image() == *self.planner.image(), "not as planned");
        ops
    }

    /// The agent starts anew with the maps as they are.
    fn restart(&mut self, limits: Limits) {
        assert_eq!(self.maps.apply(&MapOp::Grace), Ok(()));
        self.planner = Told::new(limits, &self.maps.image());
        self.planner.set_view(view());
    }

    /// The sets that the heads of port 80 of a VIP name.
    fn set(&self, vip: &str) -> u32 {
        let key = Socket::new(ip(vip), sluice_api::Protocol::Tcp, 80);
        let image = self.planner.image();
        image.heads[&image.vips[&key].head()].source_set
    }

    /// The blocks whose clients may begin flows to port 80 of a VIP, as text; `None`: everybody may.
    fn admitted(&self, vip: &str) -> Option<Vec<String>> {
        let key = Socket::new(ip(vip), sluice_api::Protocol::Tcp, 80);
        let of_heads = admitted(&self.maps, self.planner.image().vips[&key])?;
        let blocks = of_heads.into_iter().flatten();
        Some(blocks.map(|block| block.to_string()).collect())
    }

    fn assert_admits(&self, vip: &str, blocks: &[&str]) {
        let blocks = blocks.iter().map(|block| (*block).to_owned());
        assert_eq!(self.admitted(vip), Some(blocks.collect()), "{vip}");
    }

    /// The reasons for which something has no room, and what is told of the last one.
    fn refused(&self) -> (Vec<Reason>, String) {
        let full: Vec<&Problem> = self.planner.full().into_iter().collect();
        let message = full.last().map(|problem| problem.message.clone());
        let reasons = full.iter().map(|problem| problem.reason).collect();
        (reasons, message.unwrap_or_default())
    }
}

#[test]
fn another_list_is_another_set() {
    let mut node = Node::new(ROOMY);
    let with = |blocks: &[&str]| [("web", limited(&[V4], Some(blocks)))];
    node.settle(&with(&["10.1.0.0/16", "10.2.0.0/16"]));
    let before = node.set(V4);
    node.assert_admits(V4, &["10.1.0.0/16", "10.2.0.0/16"]);

    let ops = node.settle(&with(&["10.1.0.0/16"]));
    let expected = matches!(
        &ops[..],
        [
            MapOp::WriteSources { .. },
            MapOp::WriteHead { .. },
            MapOp::SetVip { .. },
            MapOp::Grace,
            MapOp::RemoveSources { .. },
            MapOp::Grace,
        ]
    );
    assert!(expected, "{ops:?}");
    assert_ne!(node.set(V4), before);
    node.assert_admits(V4, &["10.1.0.0/16"]);
    // The same blocks in another order, and one of them twice.
    let same = with(&["10.1.0.0/16", "10.1.0.0/16"]);
    assert_eq!(node.settle(&same), []);

    node.settle(&[("web", limited(&[V4], None))]);
    assert_eq!(node.set(V4), EVERYBODY);
    assert!(node.maps.image().sources.is_empty());
    assert_eq!(node.planner.usage().sources, 0);
}

#[test]
fn equal_lists_share_a_set_of_each_family() {
    let blocks: &[&str] = &["10.1.0.0/16", "2001:db8:1::/48", "2001:db8:2::/48"];
    let mut web = limited(&[V4, V6], Some(blocks));
    web.ports.push(tcp("https", 443));
    let other = limited(&["192.0.2.2"], Some(&["10.1.0.0/16"]));
    let mut node = Node::new(ROOMY);
    node.settle(&[("web", web.clone()), ("other", other.clone())]);
    assert_eq!(node.maps.image().sources.len(), 2);
    assert_eq!(node.planner.usage().sources, 2, "of the fuller map");
    assert_eq!(node.set(V4), node.set("192.0.2.2"));
    node.assert_admits(V6, &["2001:db8:1::/48", "2001:db8:2::/48"]);

    // It stays for the one when the other has it no more.
    let ops = node.settle(&[("other", other.clone())]);
    let sets = ops
        .iter()
        .filter(|op| matches!(op, MapOp::RemoveSources { .. }));
    assert_eq!(sets.count(), 1, "{ops:?}");
    node.assert_admits("192.0.2.2", &["10.1.0.0/16"]);
    let ops = node.settle(&[("web", web), ("other", other)]);
    let sets = ops
        .iter()
        .filter(|op| matches!(op, MapOp::WriteSources { .. }));
    assert_eq!(sets.count(), 1, "{ops:?}");
}

#[test]
fn a_list_without_a_family_admits_nobody_of_it() {
    let mut node = Node::new(ROOMY);
    node.settle(&[("web", limited(&[V4, V6], Some(&["10.1.0.0/16"])))]);
    assert_eq!(node.set(V6), NOBODY);
    node.assert_admits(V6, &[]);
    node.assert_admits(V4, &["10.1.0.0/16"]);
    assert!(node.planner.exceptions().is_empty());
}

#[test]
fn a_restart_adopts_sets_and_removes_what_nobody_names() {
    let blocks: &[&str] = &["10.1.0.0/16", "2001:db8:1::/48"];
    let all = [("web", limited(&[V4, V6], Some(blocks)))];
    let mut node = Node::new(ROOMY);
    node.settle(&all);
    node.restart(ROOMY);
    assert_eq!(node.settle(&all), []);

    // The next list is written, and the agent ends before a head names it.
    let next = [("web", limited(&[V4, V6], Some(&["10.9.0.0/16"])))];
    node.planner.set_snapshot(&snapshot(&next));
    let ops = node.plan(1);
    assert!(matches!(ops[0], MapOp::WriteSources { .. }), "{ops:?}");
    assert_eq!(node.maps.image().sources.len(), 3);
    node.restart(ROOMY);
    let ops = node.settle(&all);
    let removed = matches!(&ops[..], [MapOp::RemoveSources { .. }, MapOp::Grace]);
    assert!(removed, "{ops:?}");
    node.assert_admits(V4, &["10.1.0.0/16"]);
}

/// Room for six blocks, of which one virtual server gets four.
const TIGHT: Limits = Limits {
    sources: 6,
    sources_each: 4,
    ..ROOMY
};

const MANY: [&str; 5] = [
    "10.1.0.0/16",
    "10.2.0.0/16",
    "10.3.0.0/16",
    "10.4.0.0/16",
    "10.5.0.0/16",
];

#[test]
fn without_room_for_its_list_a_virtual_server_takes_no_flows() {
    let web = |blocks: &[&str]| ("web", limited(&[V4], Some(blocks)));
    let other = ("other", limited(&["192.0.2.2"], Some(&MANY[1..5])));
    let mut node = Node::new(TIGHT);
    node.settle(&[web(&MANY[..4])]);
    node.settle(&[web(&MANY[..4]), other.clone()]);
    assert_eq!(node.set("192.0.2.2"), NOBODY);
    node.assert_admits(V4, &MANY[..4]);
    let (reasons, message) = node.refused();
    assert_eq!(reasons, [Reason::LimitExceeded]);
    let told = "SOURCES4 is full (6 entries), so it takes no new flows";
    assert!(message.starts_with(told), "{message}");
    let exceptions = node.planner.exceptions();
    let of_other = |problem: &&Problem| problem.object == name("other");
    assert!(!exceptions.is_empty() && exceptions.iter().copied().all(|p| of_other(&p)));

    // A list in the place of another one: nobody is admitted while both have no room.
    node.settle(&[web(&["10.9.0.0/16", "10.8.0.0/16"]), other]);
    node.assert_admits("192.0.2.2", &MANY[1..5]);
    node.assert_admits(V4, &["10.8.0.0/16", "10.9.0.0/16"]);
    assert!(node.planner.exceptions().is_empty());
    node.settle(&[web(&MANY[..3])]);
    node.settle(&[web(&[
        "10.6.0.0/16",
        "10.7.0.0/16",
        "10.8.0.0/16",
        "10.9.0.0/16",
    ])]);
    assert!(node.planner.exceptions().is_empty());
}

#[test]
fn one_virtual_server_leaves_room_for_others() {
    let web = |blocks: &[&str]| [("web", limited(&[V4, V6], Some(blocks)))];
    let mut node = Node::new(TIGHT);
    node.settle(&web(&MANY));
    assert_eq!(node.set(V4), NOBODY);
    let (reasons, message) = node.refused();
    assert_eq!(reasons, [Reason::QuotaExceeded]);
    let told = "SOURCES4 (4 entries, a quarter), so it takes no new flows";
    assert!(message.contains(told), "{message}");

    // What an agent without quotas gave it stays, and may be replaced by as much.
    let mut node = Node::new(Limits {
        sources_each: 6,
        ..TIGHT
    });
    node.settle(&web(&MANY));
    node.restart(TIGHT);
    assert_eq!(node.settle(&web(&MANY)), []);
    assert!(node.planner.exceptions().is_empty());
}

/// Names, VIPs, and blocks that three virtual servers may have.
const SERVERS: [(&str, &str); 3] = [("a", V4), ("b", "192.0.2.2"), ("c", V6)];
const BLOCKS: [&str; 5] = [
    "10.1.0.0/16",
    "10.2.0.0/16",
    "10.2.3.0/24",
    "2001:db8:1::/48",
    "::/0",
];

type Lists = Vec<Option<Option<Vec<&'static str>>>>;

fn lists() -> impl Strategy<Value = Lists> {
    let list = prop::option::of(subsequence(BLOCKS.to_vec(), 1..=4));
    prop::collection::vec(prop::option::weighted(0.8, list), SERVERS.len())
}

fn decided(lists: &Lists) -> Vec<(&'static str, DecidedVirtualServer)> {
    let servers = SERVERS.iter().zip(lists);
    let decided = servers.filter_map(|(&(of, vip), list)| {
        let blocks = list.as_ref()?.as_deref();
        Some((of, limited(&[vip], blocks)))
    });
    decided.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever lists follow each other and wherever plans are cut short: each operation is safe, and in the end everybody admits whom
    /// the list names, or nobody where there is no room.
    #[test]
    fn sets_come_and_go(
        runs in prop::collection::vec((lists(), prop_oneof![2 => Just(usize::MAX), 1 => 0_usize..12]), 1..8),
        room in 0_u32..8,
        is_roomy in any::<bool>(),
    ) {
        let tight = Limits { sources: room, sources_each: room.div_ceil(2), ..ROOMY };
        let limits = if is_roomy { ROOMY } else { tight };
        let mut node = Node::new(limits);
        let mut last = Vec::new();
        for (lists, cut) in runs {
            last = lists;
            node.planner.set_snapshot(&snapshot(&decided(&last)));
            if cut < node.plan(cut).len() {
                node.restart(limits);
            }
        }
        node.settle(&decided(&last));
        let (reasons, _) = node.refused();
        for ((_, vip), list) in SERVERS.iter().zip(&last) {
            let Some(list) = list else { continue };
            let is_v4 = ip(vip).is_ipv4();
            let mut wanted = list.as_deref().map(|blocks| {
                let blocks = sources(blocks).allow.into_iter().map(|block| Prefix::from(&block));
                blocks.filter(|block| block.address.is_ipv4() == is_v4).collect::<Vec<_>>()
            });
            if let Some(wanted) = &mut wanted {
                wanted.sort_unstable();
            }
            let wanted = wanted.map(|blocks| blocks.iter().map(ToString::to_string).collect::<Vec<_>>());
            let found = node.admitted(vip);
            let is_refused = !reasons.is_empty() && node.set(vip) == NOBODY;
            prop_assert!(is_refused || found == wanted, "{vip}: {found:?} and not {wanted:?}");
        }
        prop_assert!(!is_roomy || reasons.is_empty());
        let sets = &node.planner.image().sources;
        prop_assert!(sets.keys().all(|set| *set >= FIRST_SOURCE_SET));
    }
}

/// Puts operations into a harmful order.
type Fault = fn(&mut Vec<MapOp>);

#[test]
fn faults_are_found() {
    let with = |blocks: &[&str]| [("web", limited(&[V4], Some(blocks)))];
    let faults: [(&str, Fault); 4] = [
        ("a head before its set", |ops| {
            ops.sort_by_key(|op| matches!(op, MapOp::WriteSources { .. }));
        }),
        ("no grace", |ops| ops.retain(|op| *op != MapOp::Grace)),
        ("a set that goes too early", |ops| {
            ops.sort_by_key(|op| !matches!(op, MapOp::RemoveSources { .. }));
        }),
        ("a set that changes", |ops| {
            for op in ops {
                if let MapOp::WriteSources { set, .. } = op {
                    *set = FIRST_SOURCE_SET;
                }
            }
        }),
    ];
    for (fault, make) in faults {
        let mut node = Node::new(ROOMY);
        node.settle(&with(&MANY[..2]));
        node.planner.set_snapshot(&snapshot(&with(&MANY[2..])));
        let mut ops = node.planner.plan();
        make(&mut ops);
        let found = ops.iter().any(|op| node.maps.apply(op).is_err());
        assert!(found, "{fault} was not found");
    }
}
