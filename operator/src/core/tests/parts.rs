//! The core on what changed gives what the core on everything gives, and its cost follows the change.

use std::collections::BTreeSet;

use proptest::prelude::*;
use sluice_api::Kind;

use super::properties::{VIPS, act, any_action};
use super::*;

/// Takes what all objects of a world are linked to, and notes which of them changed since the world before.
fn notice(links: &mut Links, dirty: &mut Dirty, before: &World, now: &World) {
    for key in before
        .virtual_servers
        .keys()
        .chain(now.virtual_servers.keys())
    {
        let object = now.virtual_servers.get(key);
        if before.virtual_servers.get(key) != object {
            let decision: Vec<_> = now.decision(key).into_iter().collect();
            dirty.extend(links.virtual_server(key, object, now.addresses_of(key), &decision));
            dirty.extend([(Kind::VirtualServer, key.clone())]);
        }
    }
    let pools = before.pools.keys().chain(now.pools.keys());
    for key in pools.chain(before.orphans.keys()).chain(now.orphans.keys()) {
        let object = now.pools.get(key);
        let orphan = now.orphans.get(key);
        if (before.pools.get(key), before.orphans.get(key)) != (object, orphan) {
            let decision: Vec<_> = now.pool_decision(key).into_iter().collect();
            dirty.extend(links.pool(key, object, &decision));
            dirty.extend([(Kind::RealServerPool, key.clone())]);
        }
    }
    for key in before.policies.keys().chain(now.policies.keys()) {
        let object = now.policies.get(key);
        if before.policies.get(key) != object {
            dirty.extend(links.policy(key, object));
        }
        // Its time may have come.
        dirty.extend([(Kind::RolloutPolicy, key.clone())]);
    }
    for vip in VIPS.map(|vip| vip.parse().expect("an address")) {
        let changed = before.addresses.holders(vip).ne(now.addresses.holders(vip));
        if changed {
            dirty.extend(links.within(IpNet::from(vip)).cloned());
        }
    }
    for name in before.nodes.keys().chain(now.nodes.keys()) {
        let (before, now) = (before.nodes.get(name), now.nodes.get(name));
        if before != now {
            dirty.node_changed(links, before, now);
        }
    }
}

/// An outcome whose new revisions are all the same.
fn unnumbered(mut outcome: Outcome, given: u64) -> Outcome {
    let flatten = |revision: &mut u64| *revision = (*revision).min(given + 1);
    for status in outcome.virtual_servers.values_mut() {
        status
            .decision
            .iter_mut()
            .for_each(|decision| flatten(&mut decision.revision));
    }
    for status in outcome.pools.values_mut() {
        status
            .decision
            .iter_mut()
            .for_each(|decision| flatten(&mut decision.revision));
    }
    outcome
}

/// The statuses that have to be written: those that do not stand already.
fn news(world: &World, mut outcome: Outcome) -> Outcome {
    let servers = &world.virtual_servers;
    outcome.virtual_servers.retain(|key, status| {
        servers
            .get(key)
            .is_none_or(|object| object.status.as_ref() != Some(status))
    });
    outcome.pools.retain(|key, status| {
        let object = world.pools.get(key).and_then(|pool| pool.status.as_ref());
        let stands = if world.pools.contains_key(key) {
            object
        } else {
            world.orphans.get(key)
        };
        stands != Some(status)
    });
    let policies = &world.policies;
    outcome.policies.retain(|key, status| {
        policies
            .get(key)
            .is_none_or(|object| object.status.as_ref() != Some(status))
    });
    outcome
}

proptest! {
    // Each decides everything anew with each of its actions.
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_changed_is_decided_as_if_all_were(actions in prop::collection::vec(any_action(), 1..40)) {
        let mut sim = Sim::new("");
        let mut links = Links::default();
        let mut before = World::default();
        for action in &actions {
            sim.world.revision_floor = sim.world.highest_revision();
            act(&mut sim, action);
            sim.world.revision_floor = sim.world.highest_revision();
            let mut dirty = Dirty::default();
            notice(&mut links, &mut dirty, &before, &sim.world);
            let roots = match dirty {
                Dirty::Objects(objects) => objects,
                Dirty::All => links.all(),
            };
            let now = Time(Timestamp::from_second(1_700_000_001 + sim.seconds).expect("time"));
            let given = sim.world.revision_floor;
            let whole = unnumbered(news(&sim.world, reconcile(&sim.world, &now)), given);
            let mut world = sim.world.clone();
            let some = reconcile_parts(&mut world, &links, &links.parts(&roots), &now);
            world.revision_floor = given;
            prop_assert_eq!(&world, &sim.world, "all is put back");
            prop_assert_eq!(unnumbered(news(&world, some), given), whole, "after {:?}", action);
            before = sim.world.clone();
            sim.tick();
        }
    }
}

/// Virtual servers, and as many pools.
const MANY: usize = 200;
const NODES: usize = 20;

/// A world of many virtual servers with a pool of ten servers each, and of nodes that have acknowledged nothing.
fn many() -> Sim {
    let mut sim = Sim::new("");
    for number in 0..MANY {
        let (high, low) = (number / 250, number % 250);
        let servers = (0..10).map(|i| format!("{{name: s{i}, address: 10.{i}.{high}.{low}}}"));
        let servers: Vec<String> = servers.collect();
        sim.apply(&format!(
            "{{apiVersion: sluice.dev/v1alpha1, kind: VirtualServer, metadata: {{name: s{number}}}, spec: {{addresses: \
             [{{ip: 203.0.{high}.{low}}}], ports: [{{name: a, protocol: TCP, port: 80}}], forwarding: {{mode: FullNAT}}, \
             pools: [{{name: p{number}, weight: 1}}]}}}}\n---\n\
             {{apiVersion: sluice.dev/v1alpha1, kind: RealServerPool, metadata: {{name: p{number}}}, spec: {{servers: \
             {{static: [{}]}}}}}}",
            servers.join(", ")
        ));
    }
    for number in 0..NODES {
        let address = format!("192.168.{}.{}", number / 250, number % 250 + 1);
        sim.node(&format!("n{number:03}"), &[&address]);
    }
    sim
}

#[test]
fn all_is_decided_when_a_nodes_programs_come_and_go_and_not_when_its_other_conditions_do() {
    let mut sim = served();
    let links = Links::default();
    let dirty = |before: &World, now: &World| {
        let mut dirty = Dirty::default();
        dirty.node_changed(&links, before.nodes.get("d1"), now.nodes.get("d1"));
        dirty
    };
    let before = sim.world.clone();
    sim.miss("d1", "");
    assert!(dirty(&before, &sim.world).is_empty());
    let before = sim.world.clone();
    sim.miss("d1", "eth0: there is no interface eth0");
    assert_eq!(dirty(&before, &sim.world), Dirty::All);
}

#[test]
fn one_change_among_many_objects_is_decided_alone() {
    let mut sim = many();
    let mut links = Links::default();
    let mut dirty = Dirty::default();
    let now = Time(Timestamp::from_second(1_700_000_000).expect("time"));
    notice(&mut links, &mut dirty, &World::default(), &sim.world);
    let outcome = reconcile_parts(&mut sim.world, &links, &links.parts(&links.all()), &now);
    assert_eq!(
        (outcome.virtual_servers.len(), outcome.pools.len()),
        (MANY, MANY)
    );
    for (key, status) in outcome.virtual_servers {
        sim.world
            .virtual_servers
            .get_mut(&key)
            .expect("known")
            .status = Some(status);
    }
    for (key, status) in outcome.pools {
        sim.world.pools.get_mut(&key).expect("known").status = Some(status);
    }
    let before = sim.world.clone();
    let spec = "{servers: {static: [{name: s0, address: 10.200.0.1}]}}";
    sim.apply(&format!(
        "{{apiVersion: sluice.dev/v1alpha1, kind: RealServerPool, metadata: {{name: p77}}, spec: {spec}}}"
    ));
    let mut dirty = Dirty::default();
    notice(&mut links, &mut dirty, &before, &sim.world);
    let Dirty::Objects(roots) = dirty else {
        panic!("everything is looked at");
    };
    assert_eq!(roots, BTreeSet::from([(Kind::RealServerPool, key("p77"))]));
    let outcome = reconcile_parts(&mut sim.world, &links, &links.parts(&roots), &now);
    assert_eq!((outcome.virtual_servers.len(), outcome.pools.len()), (1, 1));
}
