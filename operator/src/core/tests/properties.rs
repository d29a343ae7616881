//! Whatever users and nodes do, in whatever order: what is served stays served, and nothing is served twice.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use sluice_api::{DecidedServer, Decision};

use super::*;

#[derive(Clone, Debug)]
pub(super) enum Action {
    Server {
        name: usize,
        ip: usize,
        port: u16,
        mode: usize,
        weights: [u32; 2],
    },
    RemoveServer(usize),
    Pool {
        name: usize,
        servers: Vec<usize>,
        target: bool,
    },
    RemovePool(usize),
    Policy {
        name: usize,
        server: usize,
        steps: [u8; 2],
    },
    RemovePolicy(usize),
    Acknowledge,
    Node {
        live: bool,
        address: usize,
    },
    /// Whether somebody has one of the addresses.
    Hold {
        kind: HolderKind,
        ip: usize,
        there: bool,
    },
    /// A second node: how it stands, whether it lives, how far behind the newest revision it is, and whether its programs are
    /// attached.
    Second {
        standing: Standing,
        live: bool,
        behind: u64,
        attached: bool,
    },
}

const HOLDERS: [HolderKind; 4] = [
    HolderKind::Node,
    HolderKind::ClusterIp,
    HolderKind::PodCidr,
    HolderKind::Service,
];
pub(super) const VIPS: [&str; 6] = [
    "203.0.113.1",
    "203.0.113.2",
    "2001:db8::1",
    "10.0.0.1",
    "127.0.0.1",
    "10.9.9.9",
];
const SERVERS: [&str; 5] = [
    "10.0.0.1",
    "10.0.0.2",
    "2001:db8::9",
    "203.0.113.1",
    "169.254.0.1",
];
const MODES: [&str; 4] = ["NAT", "FullNAT", "DR", "TUN"];

pub(super) fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        5 => (0..3_usize, 0..VIPS.len(), 80_u16..82, 0..MODES.len(), prop::array::uniform2(0_u32..3))
            .prop_map(|(name, ip, port, mode, weights)| Action::Server { name, ip, port, mode, weights }),
        1 => (0..3_usize).prop_map(Action::RemoveServer),
        4 => (0..2_usize, prop::collection::vec(0..SERVERS.len(), 1..4), any::<bool>())
            .prop_map(|(name, servers, target)| Action::Pool { name, servers, target }),
        1 => (0..2_usize).prop_map(Action::RemovePool),
        2 => (0..2_usize, 0..3_usize, prop::array::uniform2(0_u8..=100))
            .prop_map(|(name, server, steps)| Action::Policy { name, server, steps }),
        1 => (0..2_usize).prop_map(Action::RemovePolicy),
        3 => Just(Action::Acknowledge),
        1 => (any::<bool>(), 0..3_usize).prop_map(|(live, address)| Action::Node { live, address }),
        2 => (0..HOLDERS.len(), 0..VIPS.len(), any::<bool>()).prop_map(|(kind, ip, there)| Action::Hold {
            kind: HOLDERS[kind],
            ip,
            there,
        }),
        2 => (0..3_usize, any::<bool>(), 0..3_u64, any::<bool>()).prop_map(|(standing, live, behind, attached)| {
            let standing = [Standing::Joined, Standing::Joining, Standing::Late][standing];
            Action::Second { standing, live, behind, attached }
        }),
    ]
}

pub(super) fn act(sim: &mut Sim, action: &Action) {
    match action {
        Action::Server { name, ip, port, mode, weights } => sim.apply(&format!(
            "{{apiVersion: sluice.dev/v1alpha1, kind: VirtualServer, metadata: {{name: s{name}}}, spec: {{addresses: \
             [{{ip: \"{}\"}}], ports: [{{name: a, protocol: TCP, port: {port}}}], forwarding: {{mode: {}}}, pools: \
             [{{name: p0, weight: {}}}, {{name: p1, weight: {}}}]}}}}",
            VIPS[*ip], MODES[*mode], weights[0], weights[1]
        )),
        Action::RemoveServer(name) => {
            sim.world.virtual_servers.remove(&key(&format!("s{name}")));
        }
        Action::Pool { name, servers, target } => {
            let servers: Vec<String> = servers
                .iter()
                .enumerate()
                .map(|(i, server)| format!("{{name: s{i}, address: \"{}\"}}", SERVERS[*server]))
                .collect();
            let target = if *target { ", targetPorts: [{name: a, port: 8080}]" } else { "" };
            sim.apply(&format!(
                "{{apiVersion: sluice.dev/v1alpha1, kind: RealServerPool, metadata: {{name: p{name}}}, spec: {{servers: \
                 {{static: [{}]}}{target}}}}}",
                servers.join(", ")
            ));
        }
        Action::RemovePool(name) => {
            let key = key(&format!("p{name}"));
            if let Some(status) = sim.world.pools.remove(&key).and_then(|pool| pool.status) {
                sim.world.orphans.insert(key, status);
            }
        }
        Action::Policy { name, server, steps } => sim.apply(&format!(
            "{{apiVersion: sluice.dev/v1alpha1, kind: RolloutPolicy, metadata: {{name: r{name}}}, spec: \
             {{virtualServerName: s{server}, stablePoolName: p0, candidatePoolName: p1, strategy: {{canary: {{steps: \
             [{{weight: {}}}, {{weight: {}}}]}}}}}}}}",
            steps[0], steps[1]
        )),
        Action::RemovePolicy(name) => {
            sim.world.policies.remove(&key(&format!("r{name}")));
        }
        Action::Acknowledge => sim.acknowledge(),
        Action::Node { live, address } => {
            let addresses = [&["10.9.9.9"][..], &["10.9.9.9", "10.0.0.2"], &["10.0.0.1"]][*address];
            let acknowledged = sim.world.nodes["d1"].status.acknowledged_revision;
            let pools = sim.world.nodes["d1"].status.acknowledged_pool_revision;
            sim.node("d1", addresses);
            let node = sim.world.nodes.get_mut("d1").expect("d1");
            node.live = *live;
            node.status.acknowledged_revision = acknowledged;
            node.status.acknowledged_pool_revision = pools;
        }
        Action::Hold { kind, ip, there } => {
            let length = if VIPS[*ip].contains(':') { 128 } else { 32 };
            let block = format!("{}/{length}", VIPS[*ip]);
            let blocks = [block.as_str()];
            sim.hold(*kind, "x", if *there { &blocks } else { &[] });
        }
        Action::Second { standing, live, behind, attached } => {
            sim.node("d2", &["10.9.9.8"]);
            sim.miss("d2", if *attached { "" } else { "eth0: there is no interface eth0" });
            let newest = sim.world.highest_revision().saturating_sub(*behind);
            let node = sim.world.nodes.get_mut("d2").expect("d2");
            (node.live, node.standing) = (*live, *standing);
            if *standing == Standing::Joined {
                node.status.acknowledged_revision = newest;
                node.status.acknowledged_pool_revision = newest;
            }
        }
    }
}

fn decisions(sim: &Sim) -> BTreeMap<ObjectKey, Decision> {
    let keys = sim.world.virtual_servers.keys();
    keys.filter_map(|key| Some((key.clone(), sim.world.decision(key)?.clone())))
        .collect()
}

/// Whether packets to an address are a node's or a Service's.
fn is_lost(world: &World, address: IpAddr) -> bool {
    let kinds = [HolderKind::Node, HolderKind::ClusterIp];
    let mut holders = world.addresses.holders(address);
    world.node_with(address).is_some() || holders.any(|holder| kinds.contains(&holder.kind))
}

fn servers(sim: &Sim, pool: &ObjectKey) -> Vec<DecidedServer> {
    sim.world
        .pool_decision(pool)
        .map(|decision| decision.content.servers.clone())
        .unwrap_or_default()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_served_stays_served_and_nothing_is_served_twice(
        actions in prop::collection::vec(any_action(), 1..40),
    ) {
        let mut sim = Sim::new("");
        let mut highest = 0;
        for action in &actions {
            sim.world.revision_floor = sim.world.highest_revision();
            let before = decisions(&sim);
            act(&mut sim, action);
            sim.tick();
            let after = decisions(&sim);

            let mut vip_ports = BTreeSet::new();
            let mut revisions = BTreeSet::new();
            for (key, decision) in &after {
                for vip_port in decision.content.vip_ports() {
                    prop_assert!(vip_ports.insert(vip_port), "{vip_port} is served twice");
                }
                prop_assert!(revisions.insert(decision.revision), "revision given twice");
                prop_assert!(decision.content.pools.iter().any(|pool| pool.weight > 0));
                for pool in &decision.content.pools {
                    let servers = servers(&sim, &key.sibling(&pool.name));
                    for vip in &decision.content.addresses {
                        let reachable = servers.iter().any(|server| server.address.is_ipv6() == vip.is_ipv6());
                        prop_assert!(reachable, "{} has nobody for {vip} after {action:?}", pool.name);
                        prop_assert!(servers.iter().all(|server| server.address != *vip));
                    }
                }
                match before.get(key) {
                    Some(old) if old.content == decision.content => prop_assert_eq!(old.revision, decision.revision),
                    _ => prop_assert!(decision.revision > highest, "a changed decision has a new revision"),
                }
            }
            let there = before.iter().filter(|(key, _)| sim.world.virtual_servers.contains_key(key));
            for (key, last) in there.filter(|(key, _)| !after.contains_key(key)) {
                let mut vips = last.content.addresses.iter();
                let is_withdrawn = vips.any(|vip| is_lost(&sim.world, *vip));
                prop_assert!(is_withdrawn, "{key} lost its decision after {action:?}");
            }
            for (key, decision) in &after {
                let mut vips = decision.content.addresses.iter();
                let lost = vips.find(|vip| is_lost(&sim.world, **vip));
                prop_assert!(lost.is_none(), "{key} has {lost:?} after {action:?}");
            }
            highest = sim.world.highest_revision();
        }
        // Left alone, with nodes that acknowledge, it comes to rest.
        sim.world.nodes.get_mut("d1").expect("d1").live = true;
        sim.settle();
        let mut rest = sim.world.clone();
        sim.tick();
        rest.stood.clone_from(&sim.world.stood);
        prop_assert_eq!(sim.world, rest);
    }
}
