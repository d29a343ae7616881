//! Runs that roll back by themselves.

use sluice_api::{RollbackReason, SignalAnalysis};

use super::*;
use crate::command::CommandVerb;

fn fault() -> Fault {
    Fault {
        reason: RollbackReason::ClientsFailed,
        message: "half of the clients failed".to_owned(),
    }
}

/// One tick in which something speaks against the candidate.
fn tick_failing(
    spec: &RolloutPolicySpec,
    status: &mut RolloutPolicyStatus,
    seconds: i64,
    command: Option<&str>,
) -> Option<Side> {
    let (now, fault) = (at(seconds), fault());
    let observed = Observation {
        command,
        fault: Some(&fault),
        ..observation(&now, status)
    };
    let advanced = advance(spec, status, observed);
    *status = advanced.status;
    advanced.lacks_servers
}

/// A run in each state in which the candidate has a share, and the name of the state.
fn states(spec: &RolloutPolicySpec) -> Vec<(&'static str, RolloutPolicyStatus)> {
    let mut states = Vec::new();
    let mut s = RolloutPolicyStatus::default();
    tick(spec, &mut s, 0, false, None);
    states.push(("a step that comes into force", s.clone()));
    tick(spec, &mut s, 1, true, None);
    states.push(("a pause", s.clone()));
    let pause = command(&s, "pause");
    let mut paused = s.clone();
    tick(spec, &mut paused, 2, true, Some(&pause));
    states.push(("a run that was paused", paused));
    tick(spec, &mut s, 31, true, None);
    states.push(("a gate", s.clone()));
    let promote = command(&s, "promote");
    tick(spec, &mut s, 32, false, Some(&promote));
    states.push(("a step that was promoted", s.clone()));
    tick(spec, &mut s, 33, true, None);
    states.push(("the last step", s.clone()));
    tick(spec, &mut s, 34, true, None);
    assert_eq!(s.phase, Some(RolloutPhase::Completed));
    states.push(("the bake", s.clone()));
    states
}

#[test]
fn a_candidate_that_fails_is_rolled_back_in_every_state() {
    let spec = spec(vec![step(10, 30, true)]);
    for (name, mut s) in states(&spec) {
        let before = weight(&s);
        assert_eq!(tick_failing(&spec, &mut s, 40, None), None, "{name}");
        assert_eq!(s.phase, Some(RolloutPhase::RolledBack), "{name}");
        assert_eq!(weight(&s), 0, "{name}");
        let rollback = s.rollback.as_ref().expect("a reason");
        assert_eq!((rollback.weight, &rollback.time), (before, &at(40)));
        assert_eq!(rollback.message, fault().message);
        let events: Vec<RolloutEvent> = s.history.iter().map(|entry| entry.event).collect();
        assert_eq!(events.last(), Some(&RolloutEvent::RolledBack), "{name}");
        // It stays, and is told as in force.
        tick_failing(&spec, &mut s, 41, None);
        tick_failing(&spec, &mut s, 5_000, None);
        assert_eq!((weight(&s), s.phase), (0, Some(RolloutPhase::RolledBack)));
        assert!(s.step.as_ref().expect("step").live_time.is_some());
        assert_eq!(s.history.len(), events.len() + 1, "{name}");
    }
}

#[test]
fn whoever_only_observes_goes_on() {
    for mode in [SignalAnalysis::Observe, SignalAnalysis::Off] {
        let spec = RolloutPolicySpec {
            signal_analysis: mode,
            ..spec(vec![step(10, 30, true)])
        };
        for (name, mut s) in states(&spec) {
            tick_failing(&spec, &mut s, 40, None);
            assert_ne!(s.phase, Some(RolloutPhase::RolledBack), "{name}");
            assert_eq!(s.rollback, None);
        }
    }
}

#[test]
fn after_the_bake_nothing_is_rolled_back() {
    let spec = spec(vec![step(100, 0, false)]);
    let mut s = RolloutPolicyStatus::default();
    for seconds in [0, 1, 1 + i64::from(BAKE) - 1] {
        tick(&spec, &mut s, seconds, true, None);
    }
    assert!(s.step.as_ref().expect("step").pause_start_time.is_some());
    tick(&spec, &mut s, 1 + i64::from(BAKE), true, None);
    let events: Vec<RolloutEvent> = s.history.iter().map(|entry| entry.event).collect();
    assert_eq!(events.last(), Some(&RolloutEvent::Baked));
    tick_failing(&spec, &mut s, 2 + i64::from(BAKE), None);
    assert_eq!((weight(&s), s.phase), (100, Some(RolloutPhase::Completed)));
}

#[test]
fn what_an_operator_saw_of_a_bake_is_not_waited_for_again() {
    let spec = spec(vec![step(100, 0, false)]);
    let mut s = RolloutPolicyStatus::default();
    for seconds in [0, 1, 31] {
        tick(&spec, &mut s, seconds, true, None);
    }
    let noted = s.step.as_ref().expect("step").paused_seconds;
    assert!(noted >= 30, "{noted}");
    // Another operator saw nothing pass.
    tick(&spec, &mut s, 31, true, None);
    tick(&spec, &mut s, 31 + i64::from(BAKE - noted), true, None);
    assert!(s.step.as_ref().expect("step").pause_start_time.is_none());
}

#[test]
fn a_stable_pool_without_servers_holds_the_run() {
    let spec = spec(vec![step(10, 30, true)]);
    for (name, mut s) in states(&spec) {
        let before = s.clone();
        let (now, fault) = (at(40), fault());
        let observed = Observation {
            fault: Some(&fault),
            ready: Sides {
                stable: false,
                candidate: true,
            },
            ..observation(&now, &s)
        };
        let advanced = advance(&spec, &s, observed);
        assert_eq!(advanced.lacks_servers, Some(Side::Stable), "{name}");
        assert_eq!(advanced.status, before, "{name}");
        assert_eq!(tick_failing(&spec, &mut s, 50, None), None);
        assert_eq!(s.phase, Some(RolloutPhase::RolledBack), "{name}");
    }
}

#[test]
fn no_step_is_left_while_both_pools_may_fail() {
    for (mode, left) in [(SignalAnalysis::RollBack, 0), (SignalAnalysis::Observe, 1)] {
        let spec = RolloutPolicySpec {
            signal_analysis: mode,
            ..spec(vec![step(10, 30, false), step(50, 30, false)])
        };
        let mut s = RolloutPolicyStatus::default();
        tick(&spec, &mut s, 0, true, None);
        tick(&spec, &mut s, 1, true, None);
        let now = at(40);
        let observed = Observation {
            doubtful: true,
            ..observation(&now, &s)
        };
        s = advance(&spec, &s, observed).status;
        assert_eq!(index(&s), left, "{mode:?}");
        tick(&spec, &mut s, 41, true, None);
        assert_eq!(index(&s), 1, "{mode:?}");
    }
}

#[test]
fn a_run_is_not_judged_by_what_was_seen_of_the_one_before() {
    let spec = spec(vec![step(10, 30, true)]);
    let mut s = RolloutPolicyStatus::default();
    assert_eq!(tick_failing(&spec, &mut s, 0, None), None);
    assert_eq!(s.phase, Some(RolloutPhase::Progressing), "nothing was seen");
    tick_failing(&spec, &mut s, 1, None);
    assert_eq!(s.phase, Some(RolloutPhase::RolledBack));
    let retry = command(&s, "retry");
    tick_failing(&spec, &mut s, 2, Some(&retry));
    assert_eq!((weight(&s), s.phase), (10, Some(RolloutPhase::Progressing)));
    assert_eq!(s.rollback, None);
}

#[test]
fn a_candidate_without_servers_is_rolled_back_after_a_while() {
    let spec = spec(vec![step(10, 3_000, false)]);
    let mut s = RolloutPolicyStatus::default();
    tick(&spec, &mut s, 0, true, None);
    tick(&spec, &mut s, 1, true, None);
    let lose = |s: &mut RolloutPolicyStatus, seconds, unserved_seconds, candidate| {
        let now = at(seconds);
        let observed = Observation {
            unserved_seconds,
            ready: Sides {
                stable: true,
                candidate,
            },
            ..observation(&now, s)
        };
        *s = advance(&spec, s, observed).status;
        (s.phase, s.step.as_ref().expect("step").unserved)
    };
    let (pausing, back) = (Some(RolloutPhase::Pausing), Some(RolloutPhase::RolledBack));
    assert_eq!(lose(&mut s, 2, 0, false), (pausing, true));
    assert_eq!(
        lose(&mut s, 11, UNSERVED_SECONDS - 1, false),
        (pausing, true)
    );
    assert_eq!(lose(&mut s, 12, UNSERVED_SECONDS, true), (pausing, false));
    assert_eq!(lose(&mut s, 13, 0, false), (pausing, true));
    assert_eq!(lose(&mut s, 23, UNSERVED_SECONDS, false), (back, false));
    let rollback = s.rollback.expect("a reason");
    assert_eq!(rollback.reason, RollbackReason::NoServers);
}

/// Commands, edits, faults and lost servers in any order: no step is skipped, and who is rolled back has no weight.
#[derive(Clone, Copy, Debug)]
struct Move {
    live: bool,
    fails: bool,
    sides: (bool, bool),
    verb: Option<usize>,
    seconds: u32,
}

fn any_move() -> impl Strategy<Value = Move> {
    let sides = (any::<bool>(), any::<bool>());
    let verb = prop::option::weighted(0.3, 0..CommandVerb::ALL.len());
    (
        any::<bool>(),
        prop::bool::weighted(0.2),
        sides,
        verb,
        0..40_u32,
    )
        .prop_map(|(live, fails, sides, verb, seconds)| Move {
            live,
            fails,
            sides,
            verb,
            seconds,
        })
}

proptest! {
    #[test]
    fn whatever_happens_a_run_that_is_rolled_back_has_no_share(
        moves in prop::collection::vec(any_move(), 1..60),
    ) {
        let spec = spec(vec![step(10, 30, false), step(50, 0, true)]);
        let mut s = RolloutPolicyStatus::default();
        let mut seconds = 0;
        for Move { live, fails, sides: (stable, candidate), verb, seconds: more } in moves {
            seconds += i64::from(more);
            let before = s.clone();
            let (now, fault) = (at(seconds), fault());
            let text = verb.filter(|_| s.run.is_some());
            let text = text.map(|verb| command(&s, CommandVerb::ALL[verb].name()));
            let observed = Observation {
                live,
                command: text.as_deref(),
                fault: fails.then_some(&fault),
                ready: Sides { stable, candidate },
                unserved_seconds: more,
                ..observation(&now, &s)
            };
            // An operator that is killed before its answer is written decides the same again.
            let first = advance(&spec, &s, observed);
            prop_assert_eq!(&first, &advance(&spec, &s, observed));
            s = first.status;
            let is_back = s.phase == Some(RolloutPhase::RolledBack);
            prop_assert_eq!(is_back, s.rollback.is_some());
            if is_back {
                prop_assert_eq!(weight(&s), 0);
            }
            let same_run = before.run == s.run && before.step.is_some();
            if is_back && before.phase != s.phase {
                prop_assert!(stable, "the share went to nobody");
            }
            if same_run && weight(&s) > weight(&before) && text.is_none() {
                prop_assert!(index(&s) <= index(&before) + 1, "a step was skipped");
                prop_assert!(!is_back);
            }
        }
    }
}
