//! Rollouts over restarts.

use std::time::Duration;

use sluice_api::{CommandResult, RolloutEvent, RolloutPhase};

use crate::harness::{POLICY, POOLS, Standalone, WEB};

fn with_command(command: &str) -> String {
    let metadata =
        format!("metadata: {{name: roll, annotations: {{sluice.dev/rollout-command: {command}}}}}");
    POLICY.replace("metadata: {name: roll}", &metadata)
}

fn begun() -> (Standalone, String) {
    let mut s = Standalone::started(&[
        ("web.yaml", WEB),
        ("pools.yaml", POOLS),
        ("policy.yaml", POLICY),
    ]);
    s.agent("d1", &[]);
    s.agent("d2", &[]);
    s.wait("gate", |s| {
        (s.policy("roll")?.status.phase? == RolloutPhase::Gated).then_some(())
    });
    assert_eq!(s.weights("web"), Some(vec![90, 10]));
    let run = s.policy("roll").expect("there").status.run.expect("run").id;
    (s, run)
}

fn wait_phase(s: &mut Standalone, phase: RolloutPhase, index: u32) {
    s.wait(&format!("{phase:?} in step {index}"), |s| {
        let status = s.policy("roll")?.status;
        (status.phase? == phase && status.step?.index == index).then_some(())
    });
}

#[test]
fn a_rollout_goes_on_over_restarts_at_every_step() {
    let (mut s, run) = begun();
    s.kill();
    s.start();
    s.pass(Duration::from_millis(800));
    wait_phase(&mut s, RolloutPhase::Gated, 0);
    s.write("policy.yaml", &with_command(&format!("promote/{run}/0")));
    wait_phase(&mut s, RolloutPhase::Pausing, 1);
    assert_eq!(s.weights("web"), Some(vec![50, 50]));
    s.kill();
    s.start();
    wait_phase(&mut s, RolloutPhase::Gated, 2);
    assert_eq!(s.weights("web"), Some(vec![25, 75]));
    assert!(s.stop().success());
    s.write("policy.yaml", &with_command(&format!("promote/{run}/2")));
    s.start();
    wait_phase(&mut s, RolloutPhase::Completed, 3);
    assert_eq!(s.weights("web"), Some(vec![0, 100]));
    let status = s.policy("roll").expect("there").status;
    assert_eq!(status.run.expect("run").id, run);
    let started = status
        .history
        .iter()
        .filter(|entry| entry.event == RolloutEvent::Started)
        .count();
    assert_eq!(started, 1);
    s.assert_quiet_log();
    // Without the policy the weights stay.
    std::fs::remove_file(s.path.join("policy.yaml")).expect("remove");
    s.wait("policy gone", |s| s.policy("roll").is_none().then_some(()));
    s.kill();
    s.start();
    s.pass(Duration::from_millis(800));
    assert_eq!(s.weights("web"), Some(vec![0, 100]));
    s.write("web.yaml", &WEB.replace("weight: 0", "weight: 1"));
    s.wait("spec's weights", |s| {
        (s.weights("web")? == [100, 1]).then_some(())
    });
}

#[test]
fn a_step_waits_for_every_live_node() {
    let (mut s, run) = begun();
    s.freeze("d2");
    s.write("policy.yaml", &with_command(&format!("promote/{run}/0")));
    wait_phase(&mut s, RolloutPhase::Progressing, 1);
    s.pass(Duration::from_secs(3));
    wait_phase(&mut s, RolloutPhase::Progressing, 1);
    let acknowledged = s
        .virtual_server("web")
        .expect("there")
        .status
        .acknowledged
        .expect("told");
    assert_eq!(
        acknowledged.pools[1].weight, 10,
        "what every node runs, not what is intended"
    );
    s.agent("d2", &[]);
    wait_phase(&mut s, RolloutPhase::Gated, 2);
}

#[test]
fn commands_are_acknowledged_and_those_for_another_run_or_step_ignored() {
    let (mut s, run) = begun();
    for command in [
        "promote/00000000/0".to_owned(),
        format!("promote/{run}/1"),
        "promote".to_owned(),
    ] {
        s.write("policy.yaml", &with_command(&command));
        let last = s.wait("acknowledgement", |s| {
            s.policy("roll")?
                .status
                .last_command
                .filter(|last| last.command == command)
        });
        assert_ne!(last.result, CommandResult::Accepted);
        assert_eq!(s.weights("web"), Some(vec![90, 10]));
    }
    s.write("policy.yaml", &with_command(&format!("abort/{run}/0")));
    wait_phase(&mut s, RolloutPhase::Aborted, 0);
    s.wait("everything back", |s| {
        (s.weights("web")? == [100, 0]).then_some(())
    });
    let last = s
        .policy("roll")
        .expect("there")
        .status
        .last_command
        .expect("acknowledged");
    assert_eq!(last.result, CommandResult::Accepted);
    s.wait_live("web");
    s.write("policy.yaml", &with_command(&format!("retry/{run}/0")));
    s.wait("new run", |s| {
        (s.policy("roll")?.status.run?.id != run).then_some(())
    });
    s.wait("first step again", |s| {
        (s.weights("web")? == [90, 10]).then_some(())
    });
}
