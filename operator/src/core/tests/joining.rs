//! Nodes that come and go: who waits for them, and what of it is written.

use proptest::prelude::*;

use super::properties::{act, any_action};
use super::*;

fn standing(sim: &mut Sim, name: &str, standing: Standing) {
    sim.world.nodes.get_mut(name).expect("a node").standing = standing;
}

#[test]
fn a_joining_node_makes_nothing_less_ready_and_holds_a_rollout() {
    let mut sim = served();
    let before = sim.world.virtual_servers.clone();
    sim.node("d2", &["10.0.0.251"]);
    standing(&mut sim, "d2", Standing::Joining);
    sim.tick();
    assert_eq!(sim.world.virtual_servers, before);
    sim.apply(POLICY);
    sim.tick();
    assert_eq!(sim.weights("web"), [90, 10]);
    for _ in 0..3 {
        // All but the new node.
        let status = sim.world.nodes["d2"].status.clone();
        sim.acknowledge();
        let node = sim.world.nodes.get_mut("d2").expect("d2");
        (node.status, node.standing) = (status, Standing::Joining);
        sim.tick();
    }
    assert_eq!(sim.ready("web").1, "Live");
    assert_eq!(sim.weights("web"), [90, 10], "the rollout waits");
    standing(&mut sim, "d2", Standing::Late);
    sim.tick();
    sim.tick();
    assert_eq!(sim.weights("web"), [50, 50], "not for ever");
}

#[test]
fn where_all_nodes_are_joining_they_are_awaited() {
    let mut sim = Sim::new(MANIFESTS);
    standing(&mut sim, "d1", Standing::Joining);
    sim.tick();
    assert_eq!(sim.ready("web").1, "AwaitingNodes");
    standing(&mut sim, "d1", Standing::Late);
    sim.tick();
    assert_eq!(sim.ready("web").1, "AwaitingNodes");
    sim.settle();
    assert_eq!(sim.ready("web").1, "Live");
}

#[test]
fn the_message_stays_while_one_node_after_the_other_acknowledges() {
    let mut sim = served();
    for name in ["d2", "d3"] {
        sim.node(name, &[]);
    }
    sim.settle();
    sim.edit("weight: 0", "weight: 7");
    sim.tick();
    let decided = sim.world.virtual_servers.clone();
    let revision = sim.revision("web");
    for name in ["d3", "d1"] {
        let node = sim.world.nodes.get_mut(name).expect("a node");
        node.status.acknowledged_revision = revision;
        sim.tick();
        assert_eq!(sim.world.virtual_servers, decided, "{name}");
    }
    sim.settle();
    assert_eq!(sim.ready("web").1, "Live");
}

#[test]
fn a_node_that_fell_silent_is_named_where_it_would_hold_up() {
    let mut sim = served();
    sim.node("d2", &["10.0.0.251"]);
    sim.settle();
    let before = sim.world.virtual_servers.clone();
    sim.world.nodes.get_mut("d2").expect("d2").live = false;
    sim.tick();
    assert_eq!(sim.world.virtual_servers, before);
    sim.edit("weight: 0", "weight: 7");
    sim.settle();
    assert_eq!(sim.ready("web").1, "Live");
    let (status, message) = condition(&sim, ConditionType::NodesSilent);
    assert_eq!(status, "True");
    assert!(message.contains("from d2,"), "{message}");
    // One that never acknowledged anything would hold up nothing.
    sim.node("d3", &[]);
    let node = sim.world.nodes.get_mut("d3").expect("d3");
    (node.live, node.standing) = (false, Standing::Late);
    sim.tick();
    assert_eq!(condition(&sim, ConditionType::NodesSilent).1, message);
    sim.world.nodes.get_mut("d2").expect("d2").live = true;
    sim.settle();
    assert_eq!(condition(&sim, ConditionType::NodesSilent).0, "False");
}

#[test]
fn a_node_is_joining_until_it_acknowledges_or_forty_seconds_have_passed() {
    let mut liveness = Liveness::default();
    let mut standing = |acknowledged_revision, is_decided, now_ms| {
        liveness.observe("d1", None, 0, now_ms);
        let status = LoadBalancerNodeStatus {
            acknowledged_revision,
            ..LoadBalancerNodeStatus::default()
        };
        liveness.standing("d1", &status, is_decided, now_ms)
    };
    assert_eq!(standing(0, true, 1_000), Standing::Joining);
    assert_eq!(standing(0, true, 40_999), Standing::Joining);
    assert_eq!(standing(0, true, 41_000), Standing::Late);
    assert_eq!(standing(5, true, 42_000), Standing::Joined);
    // After a reboot.
    assert_eq!(standing(0, true, 50_000), Standing::Joining);
    assert_eq!(standing(0, true, 90_000), Standing::Late);
    // There is nothing to acknowledge any more, and what is decided next is awaited.
    assert_eq!(standing(0, false, 91_000), Standing::Joined);
    assert_eq!(standing(0, true, 200_000), Standing::Joined);
    assert_eq!(standing(9, true, 201_000), Standing::Joined);
    assert_eq!(standing(0, true, 202_000), Standing::Joining);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever stands, a node that comes, acknowledges everything and goes again changes no status.
    #[test]
    fn a_node_that_comes_and_goes_is_written_nowhere(actions in prop::collection::vec(any_action(), 1..30)) {
        let mut sim = Sim::new("");
        for action in &actions {
            sim.world.revision_floor = sim.world.highest_revision();
            act(&mut sim, action);
            sim.tick();
        }
        sim.world.nodes.get_mut("d1").expect("d1").live = true;
        sim.settle();
        let statuses = |sim: &Sim| {
            let World { virtual_servers, pools, policies, .. } = sim.world.clone();
            (virtual_servers, pools, policies)
        };
        let rest = statuses(&sim);
        sim.node("d9", &["10.9.9.7"]);
        standing(&mut sim, "d9", Standing::Joining);
        sim.tick();
        prop_assert_eq!(&statuses(&sim), &rest, "it comes");
        standing(&mut sim, "d9", Standing::Late);
        sim.tick();
        prop_assert_eq!(&statuses(&sim), &rest, "it is late");
        sim.acknowledge();
        sim.tick();
        prop_assert_eq!(&statuses(&sim), &rest, "it acknowledges");
        sim.world.nodes.get_mut("d9").expect("d9").live = false;
        sim.tick();
        prop_assert_eq!(&statuses(&sim), &rest, "it falls silent");
        sim.world.nodes.remove("d9");
        sim.tick();
        prop_assert_eq!(&statuses(&sim), &rest, "it is gone");
    }
}

fn claim(revision: u64, pool_revision: u64) -> LoadBalancerNodeStatus {
    LoadBalancerNodeStatus {
        acknowledged_revision: revision,
        acknowledged_pool_revision: pool_revision,
        ..LoadBalancerNodeStatus::default()
    }
}

#[test]
fn what_was_never_given_is_not_believed() {
    let mut liveness = Liveness::default();
    liveness.observe("d1", None, 0, 0);
    let mut now_ms = 0;
    let mut check = |status: &LoadBalancerNodeStatus, given| {
        let mut early = status.clone();
        liveness.disbelieve("d1", &mut early, given, now_ms);
        // Long enough for what another operator has given to be heard of.
        now_ms += 10_000;
        let mut status = status.clone();
        let claimed = liveness.disbelieve("d1", &mut status, given, now_ms);
        let left = (
            status.acknowledged_revision,
            status.acknowledged_pool_revision,
        );
        (claimed, left)
    };
    assert_eq!(check(&claim(0, 0), 7), (None, (0, 0)));
    assert_eq!(check(&claim(u64::MAX, 3), 7), (Some(u64::MAX), (0, 0)));
    assert_eq!(check(&claim(5, u64::MAX), 7), (Some(u64::MAX), (0, 0)));
    // What was given may be forgotten, but not so much.
    assert_eq!(check(&claim(5_000, 4_000), 7), (None, (5_000, 4_000)));
    // From then on it is known.
    assert_eq!(check(&claim(5_001, 0), 5_000), (Some(5_001), (0, 0)));
    assert_eq!(check(&claim(5_001, 0), 5_001), (None, (5_001, 0)));
}

/// An operator that was paused hears of the node before it hears of what another one has decided.
#[test]
fn what_another_operator_gave_is_not_held_against_a_node() {
    let mut liveness = Liveness::default();
    liveness.observe("d1", None, 0, 0);
    let mut check = |revision, given, now_ms| {
        let mut status = claim(revision, 2);
        let claimed = liveness.disbelieve("d1", &mut status, given, now_ms);
        (claimed, status.acknowledged_revision)
    };
    assert_eq!(check(5, 7, 0), (None, 5));
    // What stood stands: nothing waits anew, and nothing goes on.
    assert_eq!(check(135, 38, 1_000), (None, 5));
    assert_eq!(check(135, 100, 10_900), (None, 5));
    assert_eq!(check(135, 135, 10_999), (None, 135));
    // Whoever goes on with it is believed no more.
    assert_eq!(check(200, 135, 12_000), (None, 135));
    assert_eq!(check(200, 135, 22_000), (Some(200), 0));
    assert_eq!(check(135, 135, 23_000), (None, 135));
}

#[test]
fn a_node_that_is_not_believed_is_named_and_raises_no_revision() {
    let mut sim = served();
    let revision = sim.revision("web");
    let node = sim.world.nodes.get_mut("d1").expect("d1");
    let mut liveness = Liveness::default();
    liveness.observe("d1", None, 0, 0);
    node.status.acknowledged_revision = u64::MAX;
    let mut early = node.status.clone();
    liveness.disbelieve("d1", &mut early, revision, 0);
    let claimed = liveness.disbelieve("d1", &mut node.status, revision, 10_000);
    assert_eq!(claimed, Some(u64::MAX));
    node.trust = Trust::Disbelieved;
    sim.edit("weight: 0", "weight: 7");
    sim.tick();
    let (status, reason, message) = sim.ready("web");
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", "NodeException")
    );
    assert!(
        message.contains("d1: acknowledges a revision that was never given"),
        "{message}"
    );
    assert_eq!(condition(&sim, ConditionType::NodeExceptions).0, "True");
    assert_eq!(sim.revision("web"), revision + 1);
}
