//! The short form of `make simulate-rollouts`: few rollouts, and the bounds that follow from so few.

#[expect(dead_code, reason = "the long form uses the rest")]
mod simulated;

use simulated::faulty::Fault;
use simulated::healthy::{Healthy, Scenario};
use simulated::upper_bound;
use simulated::world::Service;
use sluice_rollout::Metric;

/// Of all scenarios together. Without a false one the bound is 1 %.
const ROLLOUTS: u64 = 300;
/// Seconds of a step: shorter than those of the long form, to save time.
const LONGEST_PAUSE: u32 = 150;

#[test]
fn healthy_rollouts_are_not_rolled_back() {
    let mut wrong = Vec::new();
    let scenarios = Scenario::ALL.into_iter().cycle();
    for (seed, scenario) in (0..ROLLOUTS).zip(scenarios) {
        if Healthy::new(scenario, seed, LONGEST_PAUSE)
            .run()
            .rolled_back
        {
            wrong.push((scenario, seed));
        }
    }
    let count = u32::try_from(wrong.len()).expect("a few");
    let all = u32::try_from(ROLLOUTS).expect("a few");
    let bound = upper_bound(count, all);
    assert!(bound <= 0.01, "{wrong:?}: up to {bound}");
}

#[test]
fn faults_are_found_in_time() {
    let failing = Service {
        failing: 0.2,
        ..Service::default()
    };
    let slow = Service {
        slow: 1.0,
        slower_ms: 500,
        ..Service::default()
    };
    for (service, weight, median, metric) in [
        (failing, 5, 5, Metric::Failures),
        (failing, 100, 9, Metric::Failures),
        (slow, 5, 4, Metric::FirstByte),
        (slow, 100, 5, Metric::FirstByte),
    ] {
        let fault = Fault {
            load: 500.0 / f64::from(weight),
            weight,
            base: 0.0,
            service,
            learn_seconds: 300,
            seconds: 60,
        };
        let mut seconds = Vec::new();
        for seed in 0..40 {
            let found = fault.run(seed);
            let (after, by) = found.expect("the fault is found within a minute");
            assert_eq!(by, metric);
            seconds.push(after);
        }
        seconds.sort_unstable();
        assert!(
            seconds[20] <= median,
            "{service:?} at {weight} %: {seconds:?}"
        );
        assert!(seconds[39] <= 23, "{service:?} at {weight} %: {seconds:?}");
    }
}

#[test]
fn five_percent_instead_of_one_are_found_within_a_step() {
    let fault = Fault {
        load: 100.0,
        weight: 5,
        base: 0.01,
        service: Service {
            failing: 0.05,
            ..Service::default()
        },
        learn_seconds: 0,
        seconds: 300,
    };
    let found = (0..100).filter(|&seed| fault.run(seed).is_some()).count();
    assert!(found >= 97, "{found} of 100");
}

#[test]
fn bounds_are_those_of_clopper_and_pearson() {
    let is_near = |bound: f64, expected: f64| (bound - expected).abs() < 1e-4;
    assert!(is_near(upper_bound(0, 300), 0.009_936));
    assert!(is_near(upper_bound(0, 10_000), 0.000_3));
    assert!(is_near(upper_bound(5, 100), 0.102_253));
    assert!(is_near(upper_bound(3, 3), 1.0));
}
