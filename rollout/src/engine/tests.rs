mod rollback;

use proptest::prelude::*;
use sluice_api::jiff::Timestamp;
use sluice_api::{
    CanaryStrategy, DecidedPool, Gate, MAX_POOL_WEIGHT, RolloutStrategy, SignalAnalysis,
};

use super::*;
use crate::split;

/// Seconds of the bake.
const BAKE: u32 = 60;

fn at(seconds: i64) -> Time {
    Time(Timestamp::from_second(1_700_000_000 + seconds).expect("in range"))
}

fn spec(steps: Vec<CanaryStep>) -> RolloutPolicySpec {
    RolloutPolicySpec {
        virtual_server_name: "web".to_owned(),
        stable_pool_name: "web-v1".to_owned(),
        candidate_pool_name: "web-v2".to_owned(),
        strategy: RolloutStrategy {
            canary: CanaryStrategy { steps },
        },
        signal_analysis: SignalAnalysis::RollBack,
        bake_seconds: BAKE,
    }
}

fn step(weight: u8, pause: u32, gate: bool) -> CanaryStep {
    CanaryStep {
        weight,
        pause_seconds: (pause > 0).then_some(pause),
        gate: gate.then_some(Gate::Manual),
    }
}

/// One tick at `seconds`.
fn tick(
    spec: &RolloutPolicySpec,
    status: &mut RolloutPolicyStatus,
    seconds: i64,
    live: bool,
    command: Option<&str>,
) {
    let now = at(seconds);
    let observed = Observation {
        live,
        command,
        ..observation(&now, status)
    };
    let advanced = advance(spec, status, observed);
    *status = advanced.status;
    assert_eq!(advanced.lacks_servers, None);
}

/// Everything is as it should be.
fn observation<'a>(now: &'a Time, status: &RolloutPolicyStatus) -> Observation<'a> {
    let step = status.step.as_ref();
    let since = step.and_then(|step| step.pause_start_time.as_ref());
    let passed = since.map_or(0, |since| now.0.as_second() - since.0.as_second());
    Observation {
        now,
        passed_seconds: u32::try_from(passed).expect("time goes on"),
        live: true,
        command: None,
        weight: status.step.as_ref().map_or(0, |step| step.weight),
        ready: Sides {
            stable: true,
            candidate: true,
        },
        unserved_seconds: 0,
        fault: None,
        doubtful: false,
    }
}

/// One tick in which these sides have servers that take flows. Returns who lacks them.
fn tick_with(
    spec: &RolloutPolicySpec,
    status: &mut RolloutPolicyStatus,
    seconds: i64,
    (stable, candidate): (bool, bool),
    command: Option<&str>,
) -> Option<Side> {
    let now = at(seconds);
    let observed = Observation {
        command,
        ready: Sides { stable, candidate },
        ..observation(&now, status)
    };
    let advanced = advance(spec, status, observed);
    *status = advanced.status;
    advanced.lacks_servers
}

fn index(status: &RolloutPolicyStatus) -> u32 {
    status.step.as_ref().expect("has a step").index
}

fn weight(status: &RolloutPolicyStatus) -> u8 {
    status.step.as_ref().expect("has a step").weight
}

fn command(status: &RolloutPolicyStatus, verb: &str) -> String {
    let run = &status.run.as_ref().expect("has a run").id;
    format!("{verb}/{run}/{}", index(status))
}

fn result(status: &RolloutPolicyStatus) -> CommandResult {
    status.last_command.as_ref().expect("has a command").result
}

#[test]
fn walks_through_all_steps() {
    let spec = spec(vec![step(10, 30, false), step(50, 0, true)]);
    let mut s = RolloutPolicyStatus::default();
    tick(&spec, &mut s, 0, true, None);
    assert_eq!(
        (index(&s), weight(&s), s.phase),
        (0, 10, Some(RolloutPhase::Progressing))
    );
    tick(&spec, &mut s, 5, false, None);
    assert_eq!(s.phase, Some(RolloutPhase::Progressing));
    tick(&spec, &mut s, 10, true, None);
    assert_eq!(s.phase, Some(RolloutPhase::Pausing));
    tick(&spec, &mut s, 39, true, None);
    assert_eq!(s.phase, Some(RolloutPhase::Pausing));
    tick(&spec, &mut s, 40, false, None);
    assert_eq!(index(&s), 0, "a node does not run the step any more");
    tick(&spec, &mut s, 41, true, None);
    assert_eq!((index(&s), weight(&s)), (1, 50));
    tick(&spec, &mut s, 42, true, None);
    tick(&spec, &mut s, 9_000, true, None);
    assert_eq!(s.phase, Some(RolloutPhase::Gated));
    let promote = command(&s, "promote");
    tick(&spec, &mut s, 9_001, true, Some(&promote));
    assert_eq!(
        (index(&s), weight(&s), result(&s)),
        (2, 100, CommandResult::Accepted)
    );
    tick(&spec, &mut s, 9_002, true, Some(&promote));
    assert_eq!(s.phase, Some(RolloutPhase::Completed));
    tick(&spec, &mut s, 9_999, true, Some(&promote));
    assert_eq!((weight(&s), s.phase), (100, Some(RolloutPhase::Completed)));
    let last = s.history.iter().rev().map(|entry| entry.event);
    let expected = [RolloutEvent::Baked, RolloutEvent::Completed];
    assert_eq!(last.take(2).collect::<Vec<_>>(), expected);
}

#[test]
fn a_pause_stops_the_clock() {
    let spec = spec(vec![step(10, 30, false)]);
    let mut s = RolloutPolicyStatus::default();
    tick(&spec, &mut s, 0, false, None);
    tick(&spec, &mut s, 1, true, None);
    let pause = command(&s, "pause");
    tick(&spec, &mut s, 11, true, Some(&pause));
    tick(&spec, &mut s, 1_000, true, Some(&pause));
    assert_eq!((index(&s), s.phase), (0, Some(RolloutPhase::Paused)));
    let promote = command(&s, "promote");
    tick(&spec, &mut s, 1_001, true, Some(&promote));
    assert_eq!(result(&s), CommandResult::Ignored);
    let resume = command(&s, "resume");
    tick(&spec, &mut s, 1_002, true, Some(&resume));
    tick(&spec, &mut s, 1_021, true, Some(&resume));
    assert_eq!(s.phase, Some(RolloutPhase::Pausing));
    tick(&spec, &mut s, 1_022, true, Some(&resume));
    assert_eq!(index(&s), 1);
}

#[test]
fn abort_gives_everything_back_and_retry_begins_anew() {
    let spec = spec(vec![step(10, 0, true)]);
    let mut s = RolloutPolicyStatus::default();
    tick(&spec, &mut s, 0, false, None);
    tick(&spec, &mut s, 1, true, None);
    let abort = command(&s, "abort");
    tick(&spec, &mut s, 2, true, Some(&abort));
    assert_eq!((weight(&s), s.phase), (0, Some(RolloutPhase::Aborted)));
    assert!(s.step.as_ref().expect("step").live_time.is_none());
    tick(&spec, &mut s, 3, true, Some(&abort));
    assert!(s.step.as_ref().expect("step").live_time.is_some());
    tick(&spec, &mut s, 9_000, true, Some(&abort));
    assert_eq!((weight(&s), s.phase), (0, Some(RolloutPhase::Aborted)));
    let first = s.run.clone().expect("run").id;
    let retry = command(&s, "retry");
    tick(&spec, &mut s, 9_001, true, Some(&retry));
    assert_eq!((weight(&s), s.phase), (10, Some(RolloutPhase::Progressing)));
    assert_ne!(s.run.clone().expect("run").id, first);
    tick(&spec, &mut s, 9_002, true, Some(&retry));
    assert_eq!(s.phase, Some(RolloutPhase::Gated), "not retried twice");
}

#[test]
fn editing_steps_goes_on_with_the_run() {
    let before = spec(vec![
        step(10, 0, true),
        step(50, 0, true),
        step(70, 0, true),
    ]);
    let mut s = RolloutPolicyStatus::default();
    tick(&before, &mut s, 0, false, None);
    tick(&before, &mut s, 1, true, None);
    let promote = command(&s, "promote");
    tick(&before, &mut s, 2, true, Some(&promote));
    assert_eq!(index(&s), 1);
    let run = s.run.clone();
    let after = spec(vec![step(10, 0, true), step(60, 5, true)]);
    tick(&after, &mut s, 3, true, Some(&promote));
    assert_eq!(
        (index(&s), weight(&s), s.phase),
        (1, 60, Some(RolloutPhase::Progressing))
    );
    tick(&after, &mut s, 4, true, Some(&promote));
    assert_eq!((index(&s), s.phase), (1, Some(RolloutPhase::Pausing)));
    assert_eq!(s.run, run);
    let other = RolloutPolicySpec {
        candidate_pool_name: "web-v3".to_owned(),
        ..after
    };
    tick(&other, &mut s, 5, true, Some(&promote));
    assert_eq!((index(&s), weight(&s)), (0, 10));
    assert_ne!(s.run, run);
    assert!(
        s.history
            .iter()
            .any(|entry| entry.event == RolloutEvent::Superseded)
    );
}

#[test]
fn what_is_no_command_is_told() {
    let spec = spec(vec![step(10, 0, true)]);
    let mut s = RolloutPolicyStatus::default();
    for text in [
        "",
        "promote",
        "promote/x",
        "go/x/0",
        "promote/x/-1",
        "promote/x/0/",
    ] {
        tick(&spec, &mut s, 0, false, Some(text));
        assert_eq!(result(&s), CommandResult::Invalid, "{text}");
    }
}

#[test]
fn a_command_given_too_early_is_not_kept_but_may_be_given_again() {
    let spec = spec(vec![step(10, 0, false), step(50, 0, true)]);
    let mut s = RolloutPolicyStatus::default();
    tick(&spec, &mut s, 0, false, None);
    let run = s.run.clone().expect("run").id;
    let early = format!("promote/{run}/1");
    for seconds in 1..9 {
        tick(&spec, &mut s, seconds, true, Some(&early));
    }
    assert_eq!(
        (s.phase, result(&s)),
        (Some(RolloutPhase::Gated), CommandResult::Ignored)
    );
    tick(&spec, &mut s, 10, true, None);
    assert_eq!(s.last_command, None);
    tick(&spec, &mut s, 11, true, Some(&early));
    assert_eq!((index(&s), result(&s)), (2, CommandResult::Accepted));
    tick(&spec, &mut s, 12, true, None);
    assert_eq!(result(&s), CommandResult::Accepted, "stays to be read");
}

const CANDIDATE: Option<Side> = Some(Side::Candidate);

#[test]
fn the_candidate_gains_nothing_before_it_has_servers() {
    let spec = spec(vec![step(10, 0, false), step(50, 0, true)]);
    let mut s = RolloutPolicyStatus::default();
    for seconds in 0..3 {
        let lacks = tick_with(&spec, &mut s, seconds, (true, false), None);
        assert_eq!(lacks, CANDIDATE);
        assert_eq!(s, RolloutPolicyStatus::default(), "no run has begun");
    }
    assert_eq!(tick_with(&spec, &mut s, 3, (false, true), None), None);
    assert_eq!(weight(&s), 10, "the stable pool gains nothing");
    for seconds in 4..9 {
        let lacks = tick_with(&spec, &mut s, seconds, (true, false), None);
        assert_eq!((lacks, weight(&s)), (CANDIDATE, 10));
    }
    assert!(s.step.as_ref().expect("step").live_time.is_some());
    // A node that comes and has yet to catch up changes nothing of what is waited for.
    let now = at(8);
    let mut observed = observation(&now, &s);
    (observed.live, observed.ready.candidate) = (false, false);
    let advanced = advance(&spec, &s, observed);
    assert_eq!((advanced.lacks_servers, &advanced.status), (CANDIDATE, &s));
    tick(&spec, &mut s, 9, true, None);
    assert_eq!(weight(&s), 50);
    tick(&spec, &mut s, 10, true, None);
    // A gate that was opened stays open.
    let promote = command(&s, "promote");
    let lacks = tick_with(&spec, &mut s, 11, (true, false), Some(&promote));
    assert_eq!((lacks, result(&s)), (CANDIDATE, CommandResult::Accepted));
    assert_eq!(weight(&s), 50);
    tick(&spec, &mut s, 12, true, Some(&promote));
    assert_eq!(weight(&s), 100);
}

#[test]
fn an_edit_that_gives_one_side_more_waits_for_its_servers() {
    let edited = |weight| spec(vec![step(weight, 0, true)]);
    let mut s = RolloutPolicyStatus::default();
    tick(&edited(10), &mut s, 0, true, None);
    let up = tick_with(&edited(30), &mut s, 1, (true, false), None);
    assert_eq!((up, weight(&s)), (CANDIDATE, 10));
    let down = tick_with(&edited(5), &mut s, 2, (false, true), None);
    assert_eq!((down, weight(&s)), (Some(Side::Stable), 10));
    tick(&edited(5), &mut s, 3, true, None);
    assert_eq!(weight(&s), 5);
}

#[test]
fn commands_that_give_a_side_without_servers_more_are_refused() {
    let spec = spec(vec![step(10, 0, true)]);
    let mut s = RolloutPolicyStatus::default();
    tick(&spec, &mut s, 0, true, None);
    tick(&spec, &mut s, 1, true, None);
    let message = |s: &RolloutPolicyStatus| s.last_command.clone().expect("a command").message;
    let full = command(&s, "promote-full");
    let lacks = tick_with(&spec, &mut s, 2, (true, false), Some(&full));
    assert_eq!((lacks, result(&s)), (None, CommandResult::Ignored));
    assert!(message(&s).contains("the candidate pool has no server"));
    let abort = command(&s, "abort");
    let lacks = tick_with(&spec, &mut s, 3, (false, true), Some(&abort));
    assert_eq!((lacks, result(&s)), (None, CommandResult::Ignored));
    assert!(message(&s).contains("abort --force"));
    assert_eq!((weight(&s), s.phase), (10, Some(RolloutPhase::Gated)));
    let force = command(&s, "abort-force");
    tick_with(&spec, &mut s, 4, (false, true), Some(&force));
    assert_eq!((weight(&s), s.phase), (0, Some(RolloutPhase::Aborted)));
    let retry = command(&s, "retry");
    tick_with(&spec, &mut s, 5, (true, false), Some(&retry));
    assert_eq!((weight(&s), result(&s)), (0, CommandResult::Ignored));
    tick(&spec, &mut s, 6, true, None);
    tick(&spec, &mut s, 7, true, Some(&retry));
    assert_eq!((weight(&s), result(&s)), (10, CommandResult::Accepted));
}

/// What is held holds no command that takes weight away again.
#[test]
fn a_run_that_is_held_can_be_aborted() {
    let spec = spec(vec![step(10, 0, false), step(50, 0, true)]);
    let mut s = RolloutPolicyStatus::default();
    tick(&spec, &mut s, 0, true, None);
    tick_with(&spec, &mut s, 1, (true, false), None);
    let abort = command(&s, "abort");
    let lacks = tick_with(&spec, &mut s, 2, (true, false), Some(&abort));
    assert_eq!((lacks, weight(&s)), (None, 0));
    assert_eq!(s.phase, Some(RolloutPhase::Aborted));
}

/// The operator moves to a host whose clock is 15 minutes ahead, and later to one that is behind.
#[test]
fn a_pause_is_counted_by_no_other_hosts_clock() {
    let spec = spec(vec![step(10, 100, false)]);
    let mut s = RolloutPolicyStatus::default();
    tick(&spec, &mut s, 0, true, None);
    tick(&spec, &mut s, 1, true, None);
    let shown = |status: &mut RolloutPolicyStatus, seconds, passed_seconds| {
        let (now, then) = (at(seconds), at(10_000));
        let observed = Observation {
            now: &now,
            passed_seconds,
            ..observation(&then, status)
        };
        *status = advance(&spec, status, observed).status;
        (index(status), status.phase)
    };
    let pausing = (0, Some(RolloutPhase::Pausing));
    assert_eq!(shown(&mut s, 902, 1), pausing);
    assert_eq!(shown(&mut s, 911, 10), pausing);
    let noted = |s: &RolloutPolicyStatus| s.step.as_ref().expect("a step").paused_seconds;
    assert_eq!(noted(&s), 10, "a tenth is noted");
    assert_eq!(shown(&mut s, 20, 9), pausing);
    assert_eq!(noted(&s), 10, "and less than that is not");
    assert_eq!(shown(&mut s, 20, 89), pausing);
    assert_eq!(noted(&s), 99);
    assert_eq!(shown(&mut s, 20, 1).0, 1);
}

#[derive(Clone, Debug)]
struct Tick {
    seconds: i64,
    live: bool,
    command: Option<(usize, bool, bool)>,
}

const VERBS: [&str; 7] = [
    "promote",
    "promote-full",
    "abort",
    "abort-force",
    "pause",
    "resume",
    "retry",
];

fn any_steps() -> impl Strategy<Value = Vec<CanaryStep>> {
    prop::collection::vec((0_u8..=100, 0_u32..20, any::<bool>()), 1..6).prop_map(|mut steps| {
        steps.sort_by_key(|(weight, ..)| *weight);
        steps
            .into_iter()
            .map(|(weight, pause, gate)| step(weight, pause, gate))
            .collect()
    })
}

/// Ticks with commands: verb, whether for the current run, whether for the current step.
fn any_ticks() -> impl Strategy<Value = Vec<Tick>> {
    let command = prop::option::weighted(0.3, (0..VERBS.len(), any::<bool>(), any::<bool>()));
    let tick = (0_i64..15, any::<bool>(), command);
    prop::collection::vec(tick, 1..60).prop_map(|ticks| {
        let mut seconds = 0;
        ticks
            .into_iter()
            .map(|(passed, live, command)| {
                seconds += passed;
                Tick {
                    seconds,
                    live,
                    command,
                }
            })
            .collect()
    })
}

/// The annotation that a tick sets; without a command the last one stays.
fn annotation(tick: &Tick, status: &RolloutPolicyStatus, last: Option<String>) -> Option<String> {
    match (tick.command, &status.run, &status.step) {
        (Some((verb, this_run, this_step)), Some(run), Some(step)) => {
            let run = if this_run {
                run.id.as_str()
            } else {
                "ffffffff0"
            };
            let index = if this_step {
                step.index
            } else {
                step.index + 1
            };
            Some(format!("{}/{run}/{index}", VERBS[verb]))
        }
        _ => last,
    }
}

fn restored(status: &RolloutPolicyStatus) -> RolloutPolicyStatus {
    let text = serde_json::to_string(status).expect("encodes");
    serde_json::from_str(&text).expect("decodes")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_split_is_exact_and_conserves_the_sum(
        weights in prop::collection::vec(0..=MAX_POOL_WEIGHT, 2..8),
        percent in 0_u8..=100,
    ) {
        let pool = |(i, &weight): (usize, &u32)| DecidedPool {
            name: format!("p{i}"),
            weight,
            spec_weight: weight,
        };
        let base: Vec<DecidedPool> = weights.iter().enumerate().map(pool).collect();
        let share = u64::from(weights[0] + weights[1]);
        let Some(pools) = split(&base, "p0", "p1", percent) else {
            prop_assert_eq!(share, 0);
            return Ok(());
        };
        let before: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        let after: u64 = pools.iter().map(|p| u64::from(p.weight)).sum();
        prop_assert_eq!(after % before, 0);
        let scale = after / before;
        prop_assert!(scale == 1 || scale == u64::from(sluice_api::WEIGHT_SCALE));
        prop_assert_eq!(u64::from(pools[1].weight) * 100, share * scale * u64::from(percent));
        for (pool, weight) in pools[2..].iter().zip(&weights[2..]) {
            prop_assert_eq!(u64::from(pool.weight), u64::from(*weight) * scale);
        }
        prop_assert!(pools.iter().zip(&weights).all(|(pool, weight)| pool.spec_weight == *weight));
    }

    #[test]
    fn a_restart_at_any_point_changes_nothing(steps in any_steps(), ticks in any_ticks()) {
        let spec = spec(steps);
        let mut kept = RolloutPolicyStatus::default();
        let mut restarted = RolloutPolicyStatus::default();
        let mut text = None;
        for t in &ticks {
            text = annotation(t, &kept, text);
            tick(&spec, &mut kept, t.seconds, t.live, text.as_deref());
            restarted = restored(&restarted);
            tick(&spec, &mut restarted, t.seconds, t.live, text.as_deref());
            prop_assert_eq!(&kept, &restarted);
        }
    }

    #[test]
    fn without_abort_and_retry_weights_only_rise_and_steps_are_not_skipped(
        steps in any_steps(), ticks in any_ticks(),
    ) {
        let spec = spec(steps);
        let mut s = RolloutPolicyStatus::default();
        let mut text = None;
        tick(&spec, &mut s, 0, false, None);
        for t in &ticks {
            if t.command.is_some_and(|(verb, ..)| matches!(VERBS[verb], "abort" | "abort-force" | "retry")) {
                continue;
            }
            text = annotation(t, &s, text);
            let before = s.clone();
            tick(&spec, &mut s, t.seconds, t.live, text.as_deref());
            prop_assert!(weight(&s) >= weight(&before));
            let full = s.last_command != before.last_command
                && text.as_deref().is_some_and(|text| text.starts_with("promote-full"));
            if !full {
                prop_assert!(index(&s) <= index(&before) + 1);
            }
            if index(&s) > index(&before) && !full {
                prop_assert!(t.live, "left a step that was not in force everywhere");
            }
        }
    }

    #[test]
    fn commands_for_another_run_or_step_do_nothing(steps in any_steps(), ticks in any_ticks()) {
        let spec = spec(steps);
        let mut told = RolloutPolicyStatus::default();
        let mut silent = RolloutPolicyStatus::default();
        let mut text = None;
        tick(&spec, &mut told, 0, false, None);
        tick(&spec, &mut silent, 0, false, None);
        for t in &ticks {
            let other = t.command.is_some_and(|(_, run, step)| !run || !step);
            if other {
                text = annotation(t, &told, text);
            }
            // An annotation that stays may come to name the step that is current now: it was looked at already.
            tick(&spec, &mut told, t.seconds, t.live, text.as_deref());
            tick(&spec, &mut silent, t.seconds, t.live, None);
            prop_assert_eq!(RolloutPolicyStatus { last_command: None, ..told.clone() }, silent.clone());
        }
    }

    #[test]
    fn once_nodes_acknowledge_and_gates_are_opened_a_run_ends(steps in any_steps(), ticks in any_ticks()) {
        let spec = spec(steps);
        let mut s = RolloutPolicyStatus::default();
        let mut text = None;
        for t in &ticks {
            text = annotation(t, &s, text);
            tick(&spec, &mut s, t.seconds, t.live, text.as_deref());
        }
        let start = ticks.last().map_or(0, |t| t.seconds);
        tick(&spec, &mut s, start + 1, true, None);
        for i in 1..40 {
            let text = match s.phase {
                Some(RolloutPhase::Paused) => Some(command(&s, "resume")),
                Some(RolloutPhase::Gated) => Some(command(&s, "promote")),
                _ => None,
            };
            tick(&spec, &mut s, start + i * 20, true, text.as_deref());
        }
        prop_assert!(matches!(s.phase, Some(RolloutPhase::Completed | RolloutPhase::Aborted)), "{:?}", s);
    }
}
