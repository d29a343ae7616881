use sluice_api::{RollbackReason, RolloutAnalysis};

use super::*;

#[test]
fn exceptions_are_told_and_hold_a_rollout() {
    let mut sim = served();
    sim.apply(POLICY);
    let exception = NodeException {
        kind: ExceptionKind::RealServerPool,
        namespace: "default".to_owned(),
        name: "v2".to_owned(),
        reason: "NotOnLink".to_owned(),
        message: "server b is not on the link of eth0".to_owned(),
    };
    sim.world.nodes.get_mut("d1").expect("d1").status.exceptions = vec![exception];
    sim.settle();
    assert_eq!(sim.ready("web").1, "NodeException");
    assert!(
        sim.ready("web")
            .2
            .contains("d1: RealServerPool v2: NotOnLink"),
        "{:?}",
        sim.ready("web")
    );
    assert_eq!(sim.weights("web"), [90, 10]);
    sim.seconds += i64::from(sluice_rollout::STEP_DEADLINE_SECONDS);
    sim.settle();
    let (_, reason, message) = sim.policy_ready("roll");
    assert_eq!(reason, "DeadlineExceeded");
    assert!(message.contains("NotOnLink"), "{message}");
    sim.world
        .nodes
        .get_mut("d1")
        .expect("d1")
        .status
        .exceptions
        .clear();
    sim.settle();
    assert_eq!(sim.weights("web"), [50, 50]);
}

/// A node with more exceptions than its status has room for.
#[test]
fn what_a_node_does_not_list_is_not_in_force() {
    let mut sim = served();
    sim.apply(POLICY);
    let status = &mut sim.world.nodes.get_mut("d1").expect("d1").status;
    status.exception_count = 3;
    status.exceptions = vec![NodeException {
        kind: ExceptionKind::RealServerPool,
        namespace: "other".to_owned(),
        name: "v2".to_owned(),
        reason: "NoServers".to_owned(),
        message: "no server".to_owned(),
    }];
    // An agent that does not say for which: any object may be among them.
    sim.settle();
    let (_, reason, message) = sim.ready("web");
    assert_eq!(reason, "NodeException");
    assert!(message.contains("d1: has exceptions for more"), "{message}");
    assert_eq!(sim.weights("web"), [90, 10], "the step waits");
    // One that does: what is left out concerns those that are.
    let of = |name: &str| ExceptionKind::RealServerPool.hash_of(&key(name));
    for (left_out, is_told) in [(["x", "y"], false), (["x", "v1"], true)] {
        let mut numbers = left_out.map(of);
        numbers.sort_unstable();
        let status = &mut sim.world.nodes.get_mut("d1").expect("d1").status;
        status.unlisted_exceptions = numbers.to_vec();
        sim.settle();
        let reason = sim.ready("web").1;
        assert_eq!(reason == "NodeException", is_told, "{left_out:?}: {reason}");
    }
}

/// It has acknowledged everything, and packets miss its programs.
#[test]
fn a_node_whose_programs_are_not_attached_is_an_exception_for_every_virtual_server() {
    let mut sim = served();
    let mail = MANIFESTS.replace("name: web", "name: mail");
    sim.apply(&mail.replace("203.0.113.10", "203.0.113.11"));
    sim.apply(POLICY);
    sim.node("d2", &["10.0.0.251"]);
    let missed = "eth1: there is no interface eth1: create it, or correct spec.interfaces";
    sim.miss("d2", missed);
    sim.settle();
    for name in ["web", "mail"] {
        let (status, reason, message) = sim.ready(name);
        let told = format!("d2: LoadBalancerNode d2: AttachFailed: {missed}");
        let expected = ("False", "NodeException", told.as_str());
        assert_eq!((&*status, &*reason, &*message), expected, "{name}");
        let told = condition_of(&sim, name, ConditionType::NodeExceptions);
        assert_eq!(told.0, "True", "{name}");
    }
    assert_eq!(sim.pool_ready("v1").1, "Live", "it is in the node's maps");
    assert_eq!(sim.weights("web"), [90, 10], "the step waits");
    let statuses = |sim: &Sim| {
        let world = &sim.world;
        (world.virtual_servers.clone(), world.pools.clone())
    };
    let rest = statuses(&sim);
    for _ in 0..60 {
        sim.tick();
    }
    assert_eq!(statuses(&sim), rest, "nothing is written meanwhile");

    sim.miss("d2", "");
    sim.settle();
    assert_eq!(sim.ready("mail").1, "Live");
    assert_eq!(sim.weights("web"), [50, 50]);
    sim.miss("d2", missed);
    sim.world.nodes.get_mut("d2").expect("d2").live = false;
    sim.settle();
    assert_eq!(
        sim.ready("mail").1,
        "Live",
        "nobody waits for a silent node"
    );
}

/// 257 pools without servers filled every node's list, and then nothing counted as in force any more.
#[test]
fn pools_without_servers_are_nobody_elses_concern() {
    let mut sim = served();
    let none = MANIFESTS
        .replace("name: web", "name: empty")
        .replace("name: v1", "name: none")
        .replace("203.0.113.10", "203.0.113.11")
        .replace("address: 10.0.0.1", "address: 10.0.0.9, weight: 0");
    sim.apply(&none);
    sim.settle();
    assert_eq!(sim.ready("web").1, "Live");
    for (status, reason, message) in [sim.ready("empty"), sim.pool_ready("none")] {
        let found = (status.as_str(), reason.as_str());
        assert_eq!(found, ("False", "AwaitingServers"));
        assert!(message.contains("no"), "{message}");
    }
    assert!(
        sim.ready("empty")
            .2
            .contains("RealServerPool none has a share")
    );
    assert_eq!(
        condition_of(&sim, "empty", ConditionType::NodeExceptions).0,
        "False"
    );
    sim.apply(&none.replace("10.0.0.9, weight: 0", "10.0.0.9"));
    sim.settle();
    assert_eq!(sim.ready("empty").1, "Live");
}

#[test]
fn a_rollout_moves_the_share_and_ends_with_the_candidate() {
    let mut sim = served();
    sim.apply(POLICY);
    sim.tick();
    assert_eq!(sim.weights("web"), [90, 10]);
    for _ in 0..3 {
        sim.tick();
        assert_eq!(sim.weights("web"), [90, 10], "not acknowledged");
    }
    sim.settle();
    assert_eq!(sim.weights("web"), [50, 50]);
    assert_eq!(sim.policy_ready("roll").1, "RolloutWaiting");
    let run = sim.world.policies[&key("roll")]
        .status
        .clone()
        .expect("status")
        .run
        .expect("run")
        .id;
    assert!(
        sim.policy_ready("roll")
            .2
            .contains(&format!("promote/{run}/1"))
    );
    let annotations = &mut sim
        .world
        .policies
        .get_mut(&key("roll"))
        .expect("roll")
        .metadata
        .annotations;
    annotations.get_or_insert_default().insert(
        ROLLOUT_COMMAND_ANNOTATION.to_owned(),
        format!("promote/{run}/1"),
    );
    sim.settle();
    assert_eq!(sim.weights("web"), [0, 100]);
    assert_eq!(sim.policy_ready("roll").1, "RolloutCompleted");
    // Without the policy the weights stay until those of the spec change.
    sim.world.policies.clear();
    let revision = sim.revision("web");
    sim.settle();
    assert_eq!(
        (sim.weights("web"), sim.revision("web")),
        (vec![0, 100], revision)
    );
    sim.edit("port: 80}", "port: 82}");
    sim.settle();
    assert_eq!(sim.weights("web"), [0, 100]);
    sim.edit("name: v2, weight: 0", "name: v2, weight: 5");
    sim.settle();
    assert_eq!(sim.weights("web"), [100, 5]);
}

/// A canary whose first step lasts a hundred seconds, in that step on every node.
fn pausing() -> Sim {
    let mut sim = served();
    sim.apply(&POLICY.replace("{weight: 10}", "{weight: 10, pauseSeconds: 100}"));
    sim.settle();
    let status = sim.world.policies[&key("roll")].status.clone();
    assert_eq!(status.expect("status").phase, Some(RolloutPhase::Pausing));
    sim
}

/// Seconds until the first step is left.
fn left(sim: &mut Sim) -> i64 {
    let began = sim.seconds;
    while sim.weights("web") == [90, 10] {
        assert!(sim.seconds - began < 1_000, "it never is");
        sim.tick();
        sim.acknowledge();
    }
    sim.seconds - began
}

#[test]
fn a_pause_lasts_as_long_on_a_host_with_another_clock() {
    let (before, mut sim) = (left(&mut pausing()), pausing());
    for offset in [900, -900, 0] {
        sim.clock_offset = offset;
        sim.tick();
        assert_eq!(sim.weights("web"), [90, 10]);
    }
    assert_eq!(left(&mut sim), before - 3);
}

#[test]
fn of_a_pause_little_is_waited_for_again_after_a_restart() {
    let mut sim = pausing();
    let whole = left(&mut pausing());
    for _ in 0..50 {
        sim.tick();
    }
    sim.timers = Timers::default();
    // While it was away nobody saw time pass.
    sim.seconds += 500;
    sim.tick();
    let rest = left(&mut sim);
    assert!(
        (whole - 51..=whole - 39).contains(&rest),
        "{rest} of {whole}"
    );
}

/// A deadline is a span of time, too.
#[test]
fn a_step_is_not_late_for_another_hosts_clock() {
    let mut sim = served();
    sim.apply(POLICY);
    sim.tick();
    sim.clock_offset = 900;
    sim.tick();
    assert_eq!(sim.policy_ready("roll").1, "RolloutProgressing");
    sim.seconds += i64::from(sluice_rollout::STEP_DEADLINE_SECONDS);
    sim.tick();
    assert_eq!(sim.policy_ready("roll").1, "DeadlineExceeded");
    sim.timers = Timers::default();
    sim.tick();
    assert_eq!(
        sim.policy_ready("roll").1,
        "DeadlineExceeded",
        "is still so"
    );
    sim.settle();
    assert_eq!(sim.policy_ready("roll").1, "RolloutWaiting");
}

/// Gives `roll` a command for its run and step.
fn command(sim: &mut Sim, verb: &str) {
    let policy = sim.world.policies.get_mut(&key("roll")).expect("roll");
    let status = policy.status.as_ref().expect("status");
    let run = &status.run.as_ref().expect("run").id;
    let step = status.step.as_ref().expect("step").index;
    let annotations = policy.metadata.annotations.get_or_insert_default();
    annotations.insert(
        ROLLOUT_COMMAND_ANNOTATION.to_owned(),
        format!("{verb}/{run}/{step}"),
    );
}

const LAST_SERVER: &str = "address: 10.0.0.2, weight: 3";

#[test]
fn a_candidate_without_servers_gets_no_share() {
    let mut sim = served();
    sim.edit(LAST_SERVER, "address: 10.0.0.2, weight: 0");
    sim.apply(POLICY);
    sim.settle();
    sim.settle();
    assert_eq!(sim.weights("web"), [100, 0]);
    let (status, reason, message) = sim.policy_ready("roll");
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", "AwaitingServers")
    );
    assert!(message.contains("RealServerPool v2"), "{message}");
    sim.apply(MANIFESTS);
    sim.tick();
    assert_eq!(sim.weights("web"), [90, 10]);
    sim.edit(LAST_SERVER, "address: 10.0.0.2, weight: 0");
    for _ in 1..sluice_rollout::UNSERVED_SECONDS {
        sim.tick();
        sim.acknowledge();
    }
    assert_eq!(sim.weights("web"), [90, 10], "it may come back");
    assert_eq!(sim.policy_ready("roll").1, "AwaitingServers");
    sim.apply(MANIFESTS);
    sim.settle();
    assert_eq!(sim.weights("web"), [50, 50]);
}

#[test]
fn a_candidate_that_loses_its_servers_is_rolled_back() {
    let mut sim = served();
    sim.apply(POLICY);
    sim.settle();
    assert_eq!(sim.weights("web"), [50, 50]);
    let run = sim.world.policies[&key("roll")].status.clone();
    let run = run.and_then(|status| status.run).expect("a run").id;
    sim.edit(LAST_SERVER, "address: 10.0.0.2, weight: 0");
    sim.settle();
    assert_eq!(sim.weights("web"), [100, 0]);
    let (status, reason, message) = sim.policy_ready("roll");
    assert_eq!((&*status, &*reason), ("False", "RolledBack"));
    let told = format!(
        "the candidate has had no server that takes new flows for 10 s; everything was given back to the stable pool; \
         retry/{run}/1 begins a new run"
    );
    assert_eq!(message, told);

    // A new run has not lost anything.
    sim.apply(MANIFESTS);
    sim.settle();
    assert_eq!(sim.weights("web"), [100, 0], "it is over");
    command(&mut sim, "retry");
    sim.settle();
    assert_eq!(sim.weights("web"), [50, 50]);

    let observing = POLICY.replace("strategy:", "signalAnalysis: Observe\n  strategy:");
    let mut sim = served();
    sim.apply(&observing);
    sim.settle();
    sim.edit(LAST_SERVER, "address: 10.0.0.2, weight: 0");
    sim.settle();
    assert_eq!(sim.weights("web"), [50, 50], "what it has it keeps");
}

/// Has nodes tell that the candidate fails its clients.
fn accuse(sim: &mut Sim) {
    let fault = sluice_rollout::Fault {
        reason: RollbackReason::ClientsFailed,
        message: "6 of the candidate's 6 clients failed".to_owned(),
    };
    let analysed = Analysed {
        noted: Some(RolloutAnalysis::default()),
        fault: Some(fault),
        doubt: None,
    };
    sim.world.analysed.insert(key("roll"), analysed);
}

#[test]
fn a_candidate_that_fails_its_clients_is_rolled_back() {
    let mut sim = served();
    sim.apply(POLICY);
    sim.settle();
    accuse(&mut sim);
    sim.tick();
    assert_eq!(sim.weights("web"), [100, 0], "at once");
    let status = sim.world.policies[&key("roll")].status.clone();
    let status = status.expect("a status");
    let rollback = status.rollback.expect("a reason");
    assert_eq!(rollback.message, "6 of the candidate's 6 clients failed");
    assert_eq!((rollback.weight, status.analysis.is_some()), (50, true));
    let (_, reason, message) = sim.policy_ready("roll");
    assert_eq!(reason, "RolledBack");
    assert!(message.starts_with(&rollback.message), "{message}");
}

#[test]
fn while_both_pools_may_fail_a_step_is_not_left() {
    let mut sim = served();
    sim.apply(POLICY);
    sim.tick();
    let analysed = Analysed {
        doubt: Some("9 of the candidate's 9 clients failed, and 20 of 20".to_owned()),
        ..Analysed::default()
    };
    sim.world.analysed.insert(key("roll"), analysed);
    sim.settle();
    assert_eq!(sim.weights("web"), [90, 10]);
    let (_, reason, message) = sim.policy_ready("roll");
    assert_eq!(reason, "AnalysisInconclusive");
    assert!(message.ends_with("and 20 of 20"), "{message}");
    sim.world.analysed.clear();
    sim.settle();
    assert_eq!(sim.weights("web"), [50, 50]);
}

#[test]
fn who_cannot_be_rolled_back_is_told() {
    let mut sim = served();
    sim.apply(POLICY);
    sim.settle();
    sim.edit("address: 10.0.0.1", "address: 10.0.0.1, weight: 0");
    accuse(&mut sim);
    sim.settle();
    assert_eq!(sim.weights("web"), [50, 50]);
    let (_, reason, message) = sim.policy_ready("roll");
    assert_eq!(reason, "RollbackImpossible");
    assert!(
        message.contains("the stable pool v1 has no server"),
        "{message}"
    );
    sim.apply(MANIFESTS);
    sim.settle();
    assert_eq!(sim.weights("web"), [100, 0]);
}

#[test]
fn nothing_goes_back_to_a_stable_pool_without_servers_but_by_force() {
    let mut sim = served();
    sim.apply(POLICY);
    sim.settle();
    sim.edit("address: 10.0.0.1", "address: 10.0.0.1, weight: 0");
    command(&mut sim, "abort");
    sim.settle();
    assert_eq!(sim.weights("web"), [50, 50]);
    let status = sim.world.policies[&key("roll")].status.as_ref();
    let last = status.and_then(|status| status.last_command.clone());
    let message = last.expect("a command").message;
    assert!(message.contains("abort --force"), "{message}");
    command(&mut sim, "abort-force");
    sim.settle();
    assert_eq!(sim.weights("web"), [100, 0]);
}

#[test]
fn a_share_that_does_not_divide_is_scaled() {
    let mut sim = served();
    sim.edit(
        "{name: v1, weight: 100}, {name: v2, weight: 0}",
        "{name: v1, weight: 7}, {name: v2, weight: 0}",
    );
    sim.apply(POLICY);
    sim.settle();
    sim.tick();
    assert_eq!(sim.weights("web"), [350, 350]);
}

#[test]
fn the_second_policy_of_a_virtual_server_waits() {
    let mut sim = served();
    sim.apply(POLICY);
    sim.settle();
    sim.apply(&POLICY.replace("name: roll", "name: a-second"));
    sim.settle();
    let (status, reason, message) = sim.policy_ready("a-second");
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", "PolicyConflict")
    );
    assert!(
        message.contains("spec.virtualServerName") && message.contains("default/roll"),
        "{message}"
    );
    assert_eq!(sim.policy_ready("roll").1, "RolloutWaiting");
    assert_eq!(sim.weights("web"), [50, 50]);
    assert!(
        sim.world.policies[&key("a-second")]
            .status
            .as_ref()
            .expect("status")
            .run
            .is_none()
    );
}

/// The age of a policy says nothing of when it named this virtual server.
#[test]
fn an_older_policy_that_is_edited_takes_no_run_over() {
    let mut sim = served();
    let at = |seconds| Some(Time(Timestamp::from_second(seconds).expect("time")));
    let old = POLICY.replace("name: roll", "name: old");
    sim.apply(&old.replace("virtualServerName: web", "virtualServerName: shop"));
    sim.apply(POLICY);
    sim.settle();
    sim.apply(&old);
    for (name, seconds) in [("old", 10), ("roll", 20)] {
        let policy = sim.world.policies.get_mut(&key(name)).expect("a policy");
        policy.metadata.creation_timestamp = at(seconds);
    }
    sim.settle();
    assert_eq!(sim.policy_ready("old").1, "PolicyConflict");
    assert_eq!(sim.policy_ready("roll").1, "RolloutWaiting");
    assert_eq!(sim.weights("web"), [50, 50]);
    sim.world.policies.remove(&key("roll"));
    sim.settle();
    assert_eq!(sim.policy_ready("old").1, "RolloutWaiting");
}

#[test]
fn policies_that_fit_no_virtual_server_are_told_so() {
    let cases = [
        (
            "virtualServerName: web",
            "virtualServerName: shop",
            "VirtualServerNotFound",
            "spec.virtualServerName",
        ),
        (
            "candidatePoolName: v2",
            "candidatePoolName: v3",
            "PoolNotInVirtualServer",
            "spec.candidatePoolName",
        ),
        (
            "candidatePoolName: v2",
            "candidatePoolName: v1",
            "InvalidSpec",
            "spec.candidatePoolName",
        ),
        (
            "{weight: 10}",
            "{weight: 60}",
            "InvalidSpec",
            "spec.strategy.canary.steps[1].weight",
        ),
    ];
    for (from, to, reason, path) in cases {
        let mut sim = served();
        sim.apply(&POLICY.replace(from, to));
        sim.settle();
        let (_, found, message) = sim.policy_ready("roll");
        assert_eq!(found, reason, "{message}");
        assert!(message.contains(path), "{message}");
        assert_eq!(sim.weights("web"), [100, 0]);
    }
}

#[test]
fn a_policy_that_becomes_invalid_holds_what_it_reached() {
    let mut sim = served();
    sim.apply(POLICY);
    sim.settle();
    sim.apply(&POLICY.replace("{weight: 10}", "{weight: 60}"));
    sim.settle();
    assert_eq!(sim.policy_ready("roll").1, "InvalidSpec");
    assert_eq!(sim.weights("web"), [50, 50]);
    assert_eq!(
        sim.world.policies[&key("roll")]
            .status
            .as_ref()
            .expect("status")
            .phase,
        Some(RolloutPhase::Gated)
    );
}

#[test]
fn a_refused_virtual_server_does_not_stop_its_rollout() {
    let mut sim = served();
    sim.apply(POLICY);
    sim.tick();
    sim.edit("203.0.113.10", "127.0.0.1");
    sim.settle();
    assert_eq!(sim.ready("web").1, "AddressNotUsable");
    assert_eq!(sim.weights("web"), [50, 50]);
}
