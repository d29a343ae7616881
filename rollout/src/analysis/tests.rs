use proptest::prelude::*;
use sluice_api::{AnalysisVerdict, RolloutAnalysis};
use sluice_signals::{Outcome, Tally, class_of};

use super::metric::enough;
use super::*;
use std::time::Duration;

/// So many clients, of which so many are refused; the others wait so many milliseconds.
fn tally(asked: u32, refused: u32, milliseconds: u64) -> Tally {
    let mut tally = Tally::default();
    tally.outcomes[Outcome::Refused as usize] = refused;
    tally.outcomes[Outcome::Replied as usize] = asked - refused;
    tally.first_bytes.0[class_of(Duration::from_millis(milliseconds))] = asked - refused;
    tally
}

fn good(asked: u32) -> Tally {
    tally(asked, 0, 5)
}

/// Both pools have been seen for so many seconds, in which nothing was wrong.
fn known(seconds: u32) -> Analysis {
    let mut analysis = Analysis::begin();
    for _ in 0..seconds {
        analysis.take(Some(&good(5)), Some(&good(95)), 1, 5);
    }
    assert_eq!(analysis.verdict(), Verdict::Pass);
    analysis
}

fn take(analysis: &mut Analysis, seconds: u32, candidate: &Tally, stable: &Tally, weight: u8) {
    for _ in 0..seconds {
        analysis.take(Some(candidate), Some(stable), 1, weight);
    }
}

/// Whether it passes, is inconclusive, or which metric fails.
fn found(analysis: &Analysis) -> Option<Metric> {
    match analysis.verdict() {
        Verdict::Fail { metric, .. } => Some(metric),
        _ => None,
    }
}

fn is_inconclusive(analysis: &Analysis) -> bool {
    matches!(analysis.verdict(), Verdict::Inconclusive { .. })
}

/// Reads what was stored as the API server would give it.
fn restarted(analysis: &Analysis) -> Analysis {
    let text = serde_json::to_string(&analysis.stored()).expect("json");
    let stored: RolloutAnalysis = serde_json::from_str(&text).expect("an analysis");
    let restored = Analysis::restored(&stored);
    assert_eq!(restored.stored(), analysis.stored());
    restored
}

#[test]
fn nothing_known_is_no_reason() {
    let mut analysis = Analysis::begin();
    for _ in 0..1_000 {
        analysis.take(None, None, 1, 100);
        analysis.take(None, Some(&good(95)), 1, 5);
        analysis.take(Some(&Tally::default()), None, 1, 100);
        analysis.take(Some(&Tally::default()), Some(&Tally::default()), 1, 0);
    }
    assert_eq!(analysis.verdict(), Verdict::Pass);
    assert_eq!(restarted(&Analysis::begin()).verdict(), Verdict::Pass);
}

#[test]
fn silence_of_nodes_changes_nothing() {
    let mut analysis = known(100);
    take(&mut analysis, 2, &tally(5, 1, 5), &good(95), 5);
    let before = analysis.stored();
    for _ in 0..1_000 {
        analysis.take(None, None, 60, 5);
    }
    assert_eq!(analysis.stored(), before);
}

#[test]
fn a_candidate_that_refuses_all_is_found_at_once_and_says_how_many() {
    let mut analysis = known(300);
    analysis.take(Some(&tally(5, 5, 5)), Some(&tally(95, 1, 5)), 1, 5);
    let message = "failures: 5 of the candidate's 5 clients failed (5 refused), of the stable pool's 95 it was 1";
    let verdict = Verdict::Fail {
        metric: Metric::Failures,
        message: message.to_owned(),
    };
    assert_eq!(analysis.verdict(), verdict);
    take(&mut analysis, 1_000, &good(5), &good(95), 5);
    assert_eq!(analysis.verdict(), verdict, "it stays");
    assert_eq!(restarted(&analysis).verdict(), verdict);
}

#[test]
fn kinds_of_failures_are_told_the_most_frequent_first() {
    let mut analysis = known(300);
    let mut bad = good(20);
    bad.outcomes[Outcome::Silent as usize] = 2_000;
    bad.outcomes[Outcome::Refused as usize] = 3;
    bad.outcomes[Outcome::Unasked as usize] = 1_000;
    analysis.take(Some(&bad), Some(&good(95)), 1, 5);
    let Verdict::Fail { message, .. } = analysis.verdict() else {
        panic!("nothing was found");
    };
    let begin =
        "failures: 2,003 of the candidate's 2,023 clients failed (2,000 silent, 3 refused), ";
    assert!(message.starts_with(begin), "{message}");
}

#[test]
fn a_slow_candidate_is_found_once_it_is_warm() {
    let mut analysis = known(300);
    take(&mut analysis, 3, &tally(5, 0, 505), &good(95), 5);
    let Verdict::Fail { metric, message } = analysis.verdict() else {
        panic!("nothing was found");
    };
    assert_eq!(metric, Metric::FirstByte);
    let expected = "waited more than 128 ms for the first byte, of the stable pool's";
    assert!(message.contains(expected), "{message}");

    analysis = known(300);
    analysis.candidate_changed();
    take(&mut analysis, 10, &tally(5, 0, 505), &good(95), 5);
    take(&mut analysis, 1_000, &good(5), &good(95), 5);
    assert_eq!(analysis.verdict(), Verdict::Pass, "it was cold");

    analysis.candidate_changed();
    take(&mut analysis, 14, &tally(5, 0, 505), &good(95), 5);
    assert_eq!(found(&analysis), Some(Metric::FirstByte));
}

#[test]
fn what_both_have_is_inconclusive_and_ends_with_its_cause() {
    for weight in [5, 50] {
        let (ours, theirs) = (u32::from(weight), 100 - u32::from(weight));
        let mut analysis = known(300);
        for _ in 0..60 {
            let bad = (tally(ours, ours / 2, 5), tally(theirs, theirs / 2, 5));
            analysis.take(Some(&bad.0), Some(&bad.1), 1, weight);
            analysis = restarted(&analysis);
        }
        assert!(is_inconclusive(&analysis));
        take(&mut analysis, 200, &good(ours), &good(theirs), weight);
        assert_eq!(analysis.verdict(), Verdict::Pass);
        take(&mut analysis, 300, &good(100), &Tally::default(), 100);
        assert_eq!(analysis.verdict(), Verdict::Pass);
    }
}

#[test]
fn a_fault_of_the_candidate_is_found_after_a_common_one() {
    let mut analysis = known(300);
    take(&mut analysis, 60, &tally(5, 5, 5), &tally(95, 95, 5), 5);
    take(&mut analysis, 10, &good(5), &good(95), 5);
    take(&mut analysis, 5, &tally(5, 5, 5), &good(95), 5);
    assert_eq!(found(&analysis), Some(Metric::Failures));
}

#[test]
fn a_common_fault_teaches_the_baseline_nothing_until_it_is_usual() {
    let mut analysis = known(300);
    take(&mut analysis, 500, &tally(5, 5, 5), &tally(95, 95, 5), 5);
    assert_eq!(analysis.baseline.failures.failing, 0);
    take(&mut analysis, 500, &tally(5, 5, 5), &tally(95, 95, 5), 5);
    assert!(analysis.baseline.failures.failing > 30_000);
}

#[test]
fn what_was_seen_beside_the_stable_pool_is_void_without_it() {
    let mut analysis = known(300);
    take(&mut analysis, 5, &tally(50, 20, 5), &tally(50, 20, 5), 50);
    assert!(is_inconclusive(&analysis));
    analysis.take(Some(&good(100)), None, 1, 100);
    assert_eq!(analysis.verdict(), Verdict::Pass);
}

#[test]
fn alone_the_candidate_is_judged_by_the_frozen_baseline() {
    let mut analysis = known(300);
    let before = analysis.stored().baseline;
    take(
        &mut analysis,
        300,
        &tally(1_000, 8, 5),
        &tally(3, 3, 5),
        100,
    );
    assert_eq!(
        analysis.verdict(),
        Verdict::Pass,
        "0.8 % is within the absolute limit"
    );
    assert_eq!(analysis.stored().baseline, before);
    take(&mut analysis, 5, &tally(5, 2, 5), &Tally::default(), 100);
    let Verdict::Fail { message, .. } = analysis.verdict() else {
        panic!("nothing was found");
    };
    assert!(
        message.ends_with("of the stable pool's it was usually 0.00 %"),
        "{message}"
    );
}

#[test]
fn without_any_baseline_there_are_absolute_limits() {
    let mut analysis = Analysis::begin();
    take(
        &mut analysis,
        600,
        &tally(100, 4, 9_000),
        &Tally::default(),
        100,
    );
    assert_eq!(
        analysis.verdict(),
        Verdict::Pass,
        "4 % are within the limit, and no time is"
    );
    take(&mut analysis, 10, &tally(5, 5, 5), &Tally::default(), 100);
    assert_eq!(found(&analysis), Some(Metric::Failures));
}

#[test]
fn a_stable_pool_that_nobody_looks_at_does_not_protect_the_candidate() {
    let mut analysis = Analysis::begin();
    for _ in 0..9 {
        analysis.take(Some(&tally(5, 5, 5)), None, 1, 5);
    }
    assert!(is_inconclusive(&analysis));
    analysis.take(Some(&tally(5, 5, 5)), None, 1, 5);
    assert_eq!(found(&analysis), Some(Metric::Failures));
}

#[test]
fn three_failing_clients_are_too_few() {
    let mut analysis = known(3_600);
    take(&mut analysis, 1, &tally(3, 3, 5), &good(95), 5);
    assert_eq!(analysis.verdict(), Verdict::Pass);
    take(&mut analysis, 1, &tally(1, 1, 5), &good(95), 5);
    assert_eq!(found(&analysis), Some(Metric::Failures));
}

#[test]
fn huge_counts_are_borne() {
    let mut analysis = Analysis::begin();
    let most = u32::MAX / 2;
    for _ in 0..3_000 {
        analysis.take(Some(&good(most)), Some(&good(most)), u32::MAX, 50);
        analysis.take(Some(&good(10_000)), Some(&good(990_000)), 1, 1);
    }
    assert_eq!(analysis.verdict(), Verdict::Pass);
    let bad = tally(most, most / 5, 5);
    analysis.take(Some(&bad), Some(&good(most)), 1, 50);
    assert_eq!(found(&analysis), Some(Metric::Failures));
    assert_eq!(restarted(&analysis).stored(), analysis.stored());
}

#[test]
fn another_candidate_has_a_new_budget_and_the_same_baseline() {
    let mut analysis = known(300);
    let baseline = analysis.baseline.clone();
    take(&mut analysis, 5, &tally(5, 5, 5), &good(95), 5);
    analysis.candidate_changed();
    assert_eq!(analysis.verdict(), Verdict::Pass);
    assert_eq!(analysis.baseline, baseline);
    let judges = analysis.judges.iter();
    assert!(
        judges
            .flat_map(|judge| &judge.watchers)
            .all(|watcher| watcher.starts == 0)
    );
}

#[test]
fn a_restart_does_not_renew_the_budget() {
    let mut analysis = known(300);
    for _ in 0..20 {
        take(&mut analysis, 1, &tally(100, 1, 5), &good(95), 5);
        take(&mut analysis, 20, &good(1_000), &good(95), 5);
        analysis = restarted(&analysis);
    }
    let watchers = &analysis.judges[0].watchers;
    assert!(
        watchers.iter().any(|watcher| watcher.starts == 20),
        "{watchers:?}"
    );
}

#[test]
fn status_is_readable() {
    let mut analysis = known(300);
    take(&mut analysis, 1, &tally(5, 1, 5), &good(95), 5);
    let stored = analysis.stored();
    assert_eq!(stored.verdict, AnalysisVerdict::Pass);
    let failures = serde_json::to_value(&stored.metrics[0]).expect("json");
    let expected = serde_json::json!({
        "name": "failures", "verdict": "Pass",
        "candidate": {"samples": 1505, "failing": 1}, "stable": {"samples": 28595, "failing": 0},
        "baselinePpm": 17, "limitPpm": 2000,
    });
    for (field, value) in expected.as_object().expect("an object") {
        assert_eq!(&failures[field], value, "{field}");
    }
    let text = serde_json::to_string(&stored).expect("json");
    assert!(text.len() < 3_000, "{}", text.len());
}

#[test]
fn a_status_that_somebody_has_cut_or_made_up_is_borne() {
    let mut stored = known(10).stored();
    stored.metrics.truncate(1);
    stored.metrics[0].watchers.truncate(1);
    stored.baseline.failures.failing = u64::MAX;
    stored.baseline.first_bytes[0].class = 99;
    stored.baseline.first_bytes[0].count = u64::MAX;
    let mut analysis = Analysis::restored(&stored);
    take(&mut analysis, 10, &tally(5, 5, 5), &good(95), 5);
    assert_eq!(analysis.stored().metrics.len(), 2);
}

/// A second: the candidate's clients and failing ones, and the stable pool's.
fn second() -> impl Strategy<Value = (Tally, Tally)> {
    let pool = (0_u32..20, 0_u32..=100, 1_u64..2_000);
    let pool = pool.prop_map(|(asked, percent, milliseconds)| {
        let refused = if percent < 70 {
            0
        } else {
            asked * percent / 100
        };
        tally(asked, refused, milliseconds)
    });
    (pool.clone(), pool)
}

proptest! {
    #[test]
    fn a_restart_at_any_time_changes_no_verdict(
        seconds in prop::collection::vec((second(), any::<bool>()), 1..80), weights in (0_u8..=100, 0_u8..=100),
    ) {
        let mut steady = known(60);
        let mut restarting = steady.clone();
        for (place, ((candidate, stable), restart)) in seconds.iter().enumerate() {
            let weight = if place < 40 { weights.0 } else { weights.1 };
            steady.take(Some(candidate), Some(stable), 1, weight);
            restarting.take(Some(candidate), Some(stable), 1, weight);
            prop_assert_eq!(steady.stored(), restarting.stored());
            if *restart {
                restarting = restarted(&restarting);
            }
            prop_assert_eq!(steady.verdict(), restarting.verdict());
        }
    }

    #[test]
    fn the_order_in_which_nodes_tell_does_not_matter(
        (one, other) in (second(), second()),
    ) {
        let joined = |first: &Tally, second: &Tally| {
            let mut sum = first.clone();
            sum.join(second);
            sum
        };
        let (mut forth, mut back) = (known(60), known(60));
        forth.take(Some(&joined(&one.0, &other.0)), Some(&joined(&one.1, &other.1)), 1, 5);
        back.take(Some(&joined(&other.0, &one.0)), Some(&joined(&other.1, &one.1)), 1, 5);
        prop_assert_eq!(forth, back);
    }

    #[test]
    fn the_order_of_seconds_does_not_matter_to_the_baseline(
        seconds in prop::collection::vec(second(), 0..40),
    ) {
        let (mut forth, mut back) = (Analysis::begin(), Analysis::begin());
        for (_, stable) in &seconds {
            forth.take(None, Some(stable), 1, 5);
        }
        for (_, stable) in seconds.iter().rev() {
            back.take(None, Some(stable), 1, 5);
        }
        prop_assert_eq!(forth, back);
    }

    #[test]
    fn more_failing_clients_are_no_better(
        failing in 0_u32..20, more in 0_u32..20,
    ) {
        let evidence = |failing: u32| {
            let mut analysis = known(100);
            take(&mut analysis, 1, &tally(40, failing, 5), &good(95), 5);
            let watchers = analysis.judges[0].watchers.iter();
            let suspicions = watchers.filter_map(|watcher| watcher.suspicion.clone());
            suspicions.map(|each| each.evidence).max()
        };
        prop_assert!(evidence(failing) <= evidence(failing + more));
    }
}

#[test]
fn a_candidate_at_its_limit_is_seldom_above_it() {
    let fault = watcher::Fault {
        limit: 0.02,
        rate: 0.2,
        stable_rate: 0.02,
        enough: enough(Metric::Failures),
    };
    // A linear congruential generator is good enough for a coin (Knuth's constants).
    let mut state = 1_u64;
    let mut fails = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % 100 < 2
    };
    let mut above = 0;
    for _ in 0..2_000 {
        let mut watcher = watcher::Watcher::default();
        let is_above = (0..1_000).any(|_| {
            let news = watcher::News {
                candidate: bets::Trials::new(1, u64::from(fails())),
                ..watcher::News::default()
            };
            watcher.take(&fault, &news);
            let suspicion = watcher.suspicion.as_ref();
            suspicion.is_some_and(|suspicion| suspicion.evidence >= 2_996)
        });
        above += u32::from(is_above);
    }
    assert!(above <= 100, "{above} of 2,000 are above 1 in 20");
}
