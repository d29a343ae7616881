use super::*;

#[test]
fn decides_waits_for_nodes_and_then_rests() {
    let mut sim = Sim::new(MANIFESTS);
    sim.tick();
    assert_eq!(sim.ready("web").1, "AwaitingNodes");
    assert_eq!(sim.weights("web"), [100, 0]);
    let pools: Vec<u64> = sim
        .world
        .pools
        .keys()
        .map(|k| sim.world.pool_decision(k).expect("decided").revision)
        .collect();
    assert_eq!(
        (pools, sim.revision("web")),
        (vec![1, 2], 3),
        "pools come first"
    );
    let v1 = sim.world.pool_decision(&key("v1")).expect("decided");
    let port = &sim
        .world
        .decision(&key("web"))
        .expect("decided")
        .content
        .ports[0];
    assert_eq!(
        (
            v1.content.servers[0].weight,
            v1.content.servers[0].target_port(port)
        ),
        (1, 8080)
    );
    sim.acknowledge();
    sim.tick();
    let (status, reason, message) = sim.ready("web");
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("True", "Live"),
        "{message}"
    );
    let acknowledged = sim.world.virtual_servers[&key("web")]
        .status
        .clone()
        .expect("status")
        .acknowledged
        .expect("told");
    assert_eq!(acknowledged.revision, 3);
    let world = sim.world.clone();
    sim.tick();
    assert_eq!(sim.world, world);
}

#[test]
fn revisions_are_taken_up_from_whoever_knows_the_highest() {
    let mut sim = Sim::new(MANIFESTS);
    sim.world
        .nodes
        .get_mut("d1")
        .expect("d1")
        .status
        .acknowledged_revision = 57;
    sim.tick();
    assert_eq!(sim.revision("web"), 60);
}

#[test]
fn only_a_changed_decision_raises_the_revision() {
    let mut sim = served();
    let revision = sim.revision("web");
    sim.edit("name: v2, weight: 0", "name: v2, weight: 7");
    sim.settle();
    assert_eq!(
        (sim.weights("web"), sim.revision("web")),
        (vec![100, 7], revision + 1)
    );
    sim.apply(
        &MANIFESTS
            .replace("weight: 0", "weight: 7")
            .replace("weight: 3", "weight: 4"),
    );
    sim.settle();
    assert_eq!(sim.revision("web"), revision + 1);
    assert_eq!(
        sim.world
            .pool_decision(&key("v2"))
            .expect("decided")
            .revision,
        revision + 2
    );
}

#[test]
fn silent_nodes_are_named_and_not_waited_for() {
    let mut sim = served();
    sim.node("d2", &["10.0.0.251"]);
    sim.tick();
    assert_eq!(sim.ready("web").1, "AwaitingNodes");
    sim.world.nodes.get_mut("d2").expect("d2").live = false;
    sim.tick();
    assert_eq!(sim.ready("web").1, "Live");
    let silent = condition(&sim, ConditionType::NodesSilent);
    assert_eq!(silent.0, "True");
    assert!(
        silent.1.contains("d2") && silent.1.contains("40 s"),
        "{}",
        silent.1
    );
    sim.world.nodes.get_mut("d1").expect("d1").live = false;
    sim.tick();
    assert_eq!(sim.ready("web").1, "NoLiveNode");
}

#[test]
fn a_silent_node_is_told_by_its_own_heartbeat() {
    let time = |seconds| Time(Timestamp::from_second(seconds).expect("time"));
    let mut liveness = Liveness::default();
    let mut live = |heartbeat: Option<i64>, now_ms| {
        let heartbeat = heartbeat.map(time);
        liveness.observe("d1", heartbeat.as_ref(), 0, now_ms)
    };
    assert!(live(None, 0));
    assert!(live(None, 40_000));
    assert!(!live(None, 40_001));
    assert!(live(Some(5), 50_000), "any change is a sign of life");
    assert!(live(Some(3), 80_000));
    assert!(live(Some(3), 120_000));
    assert!(!live(Some(3), 120_001));
}

#[test]
fn a_node_that_was_silent_before_is_soon_known_to_be() {
    let time = |seconds| Time(Timestamp::from_second(seconds).expect("time"));
    let mut liveness = Liveness::default();
    let mut live = |node: &str, heartbeat, before_ms, now_ms| {
        liveness.observe(node, Some(&time(heartbeat)), before_ms, now_ms)
    };
    assert!(live("d1", 5, 25_000, 0));
    assert!(live("d1", 5, 25_000, 15_000));
    assert!(!live("d1", 5, 25_000, 15_001));
    assert!(
        live("d2", 5, 3_600_000, 0),
        "it may be about to say something"
    );
    assert!(live("d2", 5, 3_600_000, 10_000));
    assert!(!live("d2", 5, 3_600_000, 10_001));
    assert!(live("d2", 6, 3_600_000, 20_000));
    assert!(live("d2", 6, 3_600_000, 60_000), "what was before is over");
    assert!(!live("d2", 6, 3_600_000, 60_001));
}

/// The text with other weights and with servers that take flows or not.
fn weighted(weights: [u32; 2], v1_takes: bool, v2_takes: bool) -> String {
    let [v1, v2] = weights;
    let pools = format!("[{{name: v1, weight: {v1}}}, {{name: v2, weight: {v2}}}]");
    let mut text = MANIFESTS.replace("[{name: v1, weight: 100}, {name: v2, weight: 0}]", &pools);
    if !v1_takes {
        text = text.replace("address: 10.0.0.1}", "address: 10.0.0.1, weight: 0}");
    }
    if !v2_takes {
        text = text.replace("weight: 3}", "weight: 0}");
    }
    text
}

#[test]
fn weights_wait_for_a_server_on_the_side_that_gains() {
    for weights in [[0, 100], [90, 10], [50, 1]] {
        let mut sim = served();
        sim.apply(&weighted(weights, true, false));
        sim.settle();
        assert_eq!(sim.weights("web"), [100, 0], "{weights:?}");
        let (status, reason, message) = sim.ready("web");
        assert_eq!(
            (status.as_str(), reason.as_str()),
            ("False", "AwaitingServers")
        );
        assert!(
            message.contains("RealServerPool v2 has an IPv4 server"),
            "{message}"
        );
        let decision = sim.world.decision(&key("web")).expect("decided");
        assert_eq!(decision.generation, 1, "the edit is not decided");

        sim.apply(&weighted(weights, true, true));
        sim.settle();
        assert_eq!(sim.weights("web"), weights);
        assert_eq!(sim.ready("web").1, "Live");
        // A pool that loses its servers keeps its weight.
        sim.apply(&weighted(weights, true, false));
        sim.settle();
        assert_eq!(sim.weights("web"), weights);
    }
}

#[test]
fn weights_wait_for_nothing_that_is_lost_already() {
    // Neither side serves: nothing is lost by the change.
    let mut sim = served();
    sim.apply(&weighted([100, 0], false, false));
    sim.settle();
    sim.apply(&weighted([0, 100], false, false));
    sim.settle();
    assert_eq!(sim.weights("web"), [0, 100]);
    // Back to the one that serves, from the one that does not.
    sim.apply(&weighted([100, 0], true, false));
    sim.settle();
    assert_eq!(sim.weights("web"), [100, 0]);
    assert_eq!(sim.ready("web").1, "Live");
}

#[test]
fn what_else_is_edited_does_not_wait_with_the_weights() {
    let mut sim = served();
    let text = weighted([0, 100], true, false);
    sim.apply(&text.replace("203.0.113.10", "203.0.113.11"));
    sim.settle();
    let decision = sim.world.decision(&key("web")).expect("decided");
    let vip: IpAddr = "203.0.113.11".parse().expect("an address");
    assert_eq!(decision.content.addresses, [vip]);
    assert_eq!(sim.weights("web"), [100, 0]);
    // A pool that leaves the spec stays as long.
    let renamed = text.replace(
        "[{name: v1, weight: 0}, {name: v2, weight: 100}]",
        "[{name: v2, weight: 1}]",
    );
    sim.apply(&renamed);
    sim.settle();
    assert_eq!(sim.weights("web"), [100, 0]);
    sim.apply(&renamed.replace("weight: 0}]}", "weight: 1}]}"));
    sim.settle();
    assert_eq!(sim.weights("web"), [1]);
}
