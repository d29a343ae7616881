//! Commands against phases, answers, and the lines of `--watch`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a fixture that is broken ends the test"
)]

use kubectl_sluice::command::{Answer, answer, prepare};
use kubectl_sluice::view::{Nodes, RolloutView, driver, rollout};
use kubectl_sluice::watch::{End, diff, end};
use serde_json::{Value, json};
use sluice_api::{LoadBalancerNode, ObjectKey, RolloutPhase, RolloutPolicy, Time, VirtualServer};
use sluice_rollout::{Command, CommandVerb, check};

const RUN: &str = "1f0c77ab";

fn command(verb: CommandVerb, step: u32) -> Command {
    Command {
        verb,
        run: RUN.to_owned(),
        step,
    }
}

fn time(second: i64) -> Time {
    Time(sluice_api::jiff::Timestamp::from_second(1_772_000_000 + second).unwrap())
}

/// A policy with the steps 10 % (60 s), 50 % (gate), 100 %.
struct Given {
    phase: RolloutPhase,
    step: u32,
    weight: u8,
    live: bool,
    promoted: bool,
    annotation: Option<String>,
    last: Option<(String, &'static str)>,
    stalled: Option<&'static str>,
    /// Live nodes that acknowledge, of 2.
    nodes: u32,
    /// The candidate's decided weight, of 100.
    decided: u32,
}

fn given(phase: RolloutPhase, step: u32, weight: u8) -> Given {
    Given {
        phase,
        step,
        weight,
        live: phase != RolloutPhase::Progressing,
        promoted: false,
        annotation: None,
        last: None,
        stalled: None,
        nodes: 2,
        decided: u32::from(weight),
    }
}

impl Given {
    fn policy(&self) -> RolloutPolicy {
        let pausing = self.phase == RolloutPhase::Pausing;
        let reason = self.stalled.unwrap_or("RolloutProgressing");
        let kind = if self.stalled.is_some() {
            "Stalled"
        } else {
            "Reconciling"
        };
        let condition = |kind: &str, status: &str| {
            json!({"type": kind, "status": status, "reason": reason, "message": "why",
                   "lastTransitionTime": time(0)})
        };
        let annotations: Value = match &self.annotation {
            Some(text) => json!({"sluice.dev/rollout-command": text}),
            None => json!({}),
        };
        let mut status = json!({
            "observedGeneration": 1,
            "conditions": [condition("Ready", "False"), condition(kind, "True")],
            "phase": self.phase,
            "run": {"id": RUN, "virtualServerName": "vip", "stablePoolName": "v1",
                    "candidatePoolName": "v2", "startTime": time(0)},
            "step": {"index": self.step, "weight": self.weight, "startTime": time(0),
                     "liveTime": self.live.then(|| time(10)),
                     "pauseStartTime": pausing.then(|| time(10)),
                     "pausedSeconds": 0, "promoted": self.promoted},
        });
        if let Some((command, result)) = &self.last {
            status["lastCommand"] = json!({"command": command, "result": result, "message": "because", "time": time(1)});
        }
        serde_json::from_value(json!({
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "RolloutPolicy",
            "metadata": {"name": "web", "namespace": "shop", "generation": 1, "annotations": annotations},
            "spec": {"virtualServerName": "vip", "stablePoolName": "v1", "candidatePoolName": "v2",
                     "strategy": {"canary": {"steps": [
                        {"weight": 10, "pauseSeconds": 60}, {"weight": 50, "gate": "Manual"}]}}},
            "status": status,
        }))
        .unwrap()
    }

    fn virtual_server(&self) -> VirtualServer {
        let pools = json!([{"name": "v1", "weight": 100 - self.decided, "specWeight": 100},
                           {"name": "v2", "weight": self.decided, "specWeight": 0}]);
        serde_json::from_value(json!({
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "VirtualServer",
            "metadata": {"name": "vip", "namespace": "shop"},
            "spec": {"addresses": [{"ip": "203.0.113.1"}], "ports": [], "forwarding": {"mode": "NAT"},
                     "pools": [{"name": "v1", "weight": 100}, {"name": "v2", "weight": 0}]},
            "status": {
                "decision": {"revision": 7, "generation": 1, "addresses": ["203.0.113.1"], "ports": [],
                             "mode": "NAT", "poolSelection": "Flow", "pools": pools},
                "acknowledged": {"revision": 6, "pools": []},
            },
        }))
        .unwrap()
    }

    fn view(&self) -> RolloutView {
        let objects: Vec<LoadBalancerNode> = (0..2)
            .map(|number| {
                let revision = if number < self.nodes { 7 } else { 6 };
                serde_json::from_value(json!({
                    "apiVersion": "sluice.dev/v1alpha1",
                    "kind": "LoadBalancerNode",
                    "metadata": {"name": format!("node-{number}")},
                    "spec": {"interfaces": ["eth0"]},
                    "status": {"acknowledgedRevision": revision},
                }))
                .unwrap()
            })
            .collect();
        let nodes = Nodes {
            objects: &objects,
            leases: None,
        };
        let (policy, served) = (self.policy(), self.virtual_server());
        rollout(&policy, Some(&served), Some(nodes), &time(25))
    }
}

/// A command that the operator would ignore is refused with a way out, every other one is let through.
#[test]
fn commands_fit_phases() {
    use RolloutPhase::{Aborted, Completed, Gated, Paused, Pausing, Progressing};
    for phase in [Progressing, Pausing, Gated, Paused, Completed, Aborted] {
        for verb in CommandVerb::ALL {
            let prepared = prepare(verb, &given(phase, 1, 50).policy());
            assert_eq!(
                prepared.is_ok(),
                check(verb, phase).is_ok(),
                "{verb} in {phase:?}: {prepared:?}"
            );
            match prepared {
                Ok(prepared) => assert_eq!(prepared.command, command(verb, 1)),
                Err(why) => assert!(why.contains("kubectl sluice rollout "), "{why}"),
            }
        }
    }
}

#[test]
fn refusals_name_the_command_that_works() {
    let refusal = |verb, phase| prepare(verb, &given(phase, 1, 50).policy()).unwrap_err();
    let why = refusal(CommandVerb::Resume, RolloutPhase::Gated);
    assert!(
        why.ends_with("kubectl sluice rollout promote web -n shop"),
        "{why}"
    );
    let why = refusal(CommandVerb::Promote, RolloutPhase::Paused);
    assert!(
        why.ends_with("kubectl sluice rollout resume web -n shop"),
        "{why}"
    );
    let why = refusal(CommandVerb::Promote, RolloutPhase::Aborted);
    assert!(
        why.ends_with("kubectl sluice rollout retry web -n shop"),
        "{why}"
    );
}

#[test]
fn a_policy_that_is_not_driven_takes_no_command() {
    let mut held = given(RolloutPhase::Progressing, 0, 10);
    held.stalled = Some("PolicyConflict");
    let why = prepare(CommandVerb::Promote, &held.policy()).unwrap_err();
    assert!(
        why.contains("Stalled with reason PolicyConflict: why"),
        "{why}"
    );
    held.stalled = Some("DeadlineExceeded");
    assert!(prepare(CommandVerb::Abort, &held.policy()).is_ok());
    let mut new = held.policy();
    new.status = None;
    let why = prepare(CommandVerb::Promote, &new).unwrap_err();
    assert!(
        why.contains("no run of RolloutPolicy shop/web has begun"),
        "{why}"
    );
}

/// The operator looks at each text once.
#[test]
fn a_command_that_was_given_before_is_told_from_a_new_one() {
    let text = format!("promote/{RUN}/1");
    let mut policy = given(RolloutPhase::Gated, 1, 50);
    policy.last = Some((text.clone(), "Ignored"));
    assert!(
        prepare(CommandVerb::Promote, &policy.policy())
            .unwrap()
            .remove_first
    );
    policy.last = Some((format!("promote/{RUN}/0"), "Accepted"));
    assert!(
        !prepare(CommandVerb::Promote, &policy.policy())
            .unwrap()
            .remove_first
    );
    policy.last = Some((text, "Accepted"));
    let why = prepare(CommandVerb::Promote, &policy.policy()).unwrap_err();
    assert!(why.contains("accepted already"), "{why}");
    policy.last = None;
    policy.promoted = true;
    let why = prepare(CommandVerb::Promote, &policy.policy()).unwrap_err();
    assert!(why.contains("promoted already"), "{why}");
}

#[test]
fn answers_are_read() {
    let given_command = command(CommandVerb::Promote, 1);
    let text = given_command.to_string();
    let mut policy = given(RolloutPhase::Gated, 1, 50);
    policy.annotation = Some(text.clone());
    policy.last = Some((format!("pause/{RUN}/0"), "Accepted"));
    assert_eq!(answer(&given_command, &policy.policy()), None);
    policy.last = Some((text.clone(), "Accepted"));
    assert_eq!(
        answer(&given_command, &policy.policy()),
        Some(Answer::Accepted)
    );
    for result in ["Ignored", "Invalid"] {
        policy.last = Some((text.clone(), result));
        let Some(Answer::Refused(why)) = answer(&given_command, &policy.policy()) else {
            panic!("{result} is a refusal");
        };
        assert!(why.contains("because"), "{why}");
    }
    policy.last = None;
    for other in [None, Some(format!("abort/{RUN}/1"))] {
        policy.annotation = other;
        assert!(matches!(
            answer(&given_command, &policy.policy()),
            Some(Answer::Replaced(_))
        ));
    }
}

#[test]
fn a_run_is_told_line_by_line() {
    let mut states = vec![given(RolloutPhase::Progressing, 0, 10)];
    states[0].nodes = 0;
    let mut add = |nodes, decided, state: Given| {
        states.push(Given {
            nodes,
            decided,
            ..state
        });
    };
    add(1, 10, given(RolloutPhase::Progressing, 0, 10));
    add(2, 10, given(RolloutPhase::Progressing, 0, 10));
    add(2, 10, given(RolloutPhase::Pausing, 0, 10));
    // The virtual server's status comes later than the policy's: here the nodes' old acknowledgement is none of the new
    // step.
    add(2, 10, given(RolloutPhase::Progressing, 1, 50));
    add(0, 50, given(RolloutPhase::Progressing, 1, 50));
    add(0, 50, given(RolloutPhase::Gated, 1, 50));
    add(2, 50, given(RolloutPhase::Gated, 1, 50));
    add(1, 50, given(RolloutPhase::Gated, 1, 50));
    let mut promoted = given(RolloutPhase::Progressing, 2, 100);
    promoted.last = Some((format!("promote/{RUN}/1"), "Accepted"));
    add(0, 100, promoted);
    let mut completed = given(RolloutPhase::Completed, 2, 100);
    completed.last = Some((format!("promote/{RUN}/1"), "Accepted"));
    add(2, 100, completed);
    let mut lines = Vec::new();
    let mut previous = None;
    for (i, state) in states.iter().enumerate() {
        let view = state.view();
        lines.extend(diff(previous.as_ref(), &view));
        assert!(diff(Some(&view), &view).is_empty());
        let over = i + 1 == states.len();
        assert_eq!(end(&view), over.then_some(End::Completed));
        previous = Some(view);
    }
    assert_eq!(
        lines,
        [
            "run 1f0c77ab: Progressing: step 0 (10 %) in force on 0/2 nodes",
            "step 0 (10 %): live on 1/2 nodes",
            "step 0 (10 %): live on 2/2 nodes",
            "step 0: pausing, 45s of 1m00s left",
            "step 1 (50 %) entered",
            "step 1 (50 %): live on 2/2 nodes",
            "step 1: gated; go on with: kubectl sluice rollout promote web -n shop",
            "step 1 (50 %): live on 1/2 nodes",
            "command promote/1f0c77ab/1: accepted",
            "step 2 (100 %) entered",
            "step 2 (100 %): live on 2/2 nodes",
            "completed: the candidate has the whole share",
        ]
    );
}

#[test]
fn an_abort_and_a_stall_are_told() {
    let running = given(RolloutPhase::Gated, 1, 50).view();
    let mut going_back = given(RolloutPhase::Aborted, 1, 0);
    (going_back.live, going_back.nodes) = (false, 0);
    let going_back = going_back.view();
    assert_eq!(
        diff(Some(&running), &going_back),
        ["aborted: the share goes back to the stable pool, in force on 0/2 nodes"]
    );
    assert_eq!(end(&going_back), None);
    let aborted = given(RolloutPhase::Aborted, 1, 0).view();
    assert_eq!(
        diff(Some(&going_back), &aborted),
        [
            "step 1 (0 %): live on 2/2 nodes",
            "aborted: the stable pool has the whole share"
        ]
    );
    assert_eq!(end(&aborted), Some(End::Aborted));
    let mut stalled = given(RolloutPhase::Gated, 1, 50);
    stalled.stalled = Some("DeadlineExceeded");
    let stalled = stalled.view();
    assert_eq!(
        diff(Some(&running), &stalled),
        ["stalled: DeadlineExceeded: why"]
    );
    assert_eq!(diff(Some(&stalled), &running), ["no longer stalled"]);
    assert_eq!(end(&stalled), Some(End::Stalled));
}

#[test]
fn a_watch_that_begins_at_a_gate_says_how_it_goes_on() {
    let lines = diff(None, &given(RolloutPhase::Gated, 1, 50).view());
    assert_eq!(lines.len(), 2);
    assert!(
        lines[1].ends_with("kubectl sluice rollout promote web -n shop"),
        "{lines:?}"
    );
}

#[test]
fn the_oldest_policy_that_is_not_refused_drives() {
    let mut first = given(RolloutPhase::Gated, 1, 50).policy();
    first.metadata.creation_timestamp = Some(time(1));
    let mut second = first.clone();
    second.metadata.name = Some("second".to_owned());
    second.metadata.creation_timestamp = Some(time(2));
    let key = ObjectKey::new("shop", "vip");
    let policies = [second.clone(), first.clone()];
    assert_eq!(driver(&policies, &key), Some(&first));
    let mut conflict = given(RolloutPhase::Gated, 1, 50);
    conflict.stalled = Some("PolicyConflict");
    let mut conflict = conflict.policy();
    conflict.metadata.creation_timestamp = Some(time(0));
    assert_eq!(driver(&[conflict, second.clone()], &key), Some(&second));
    assert_eq!(driver(&policies, &ObjectKey::new("shop", "other")), None);
}
