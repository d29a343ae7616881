//! Simulates rollouts, and prints how often the analysis is wrong and how soon it is right: `make simulate-rollouts`.
//!
//! Optional arguments: rollouts per scenario, runs per fault.

#[path = "../tests/simulated/mod.rs"]
mod simulated;

use std::process::ExitCode;

use simulated::faulty::Fault;
use simulated::healthy::{Healthy, Scenario};
use simulated::world::Service;
use simulated::{quantile, upper_bound};

/// Of each scenario; there are seven, and one of which no bound is asked.
const ROLLOUTS: u32 = 2_000;
/// Of each fault.
const RUNS: u32 = 1_000;
/// Seconds of a step.
const LONGEST_PAUSE: u32 = 600;
/// More false rollbacks than this must not be possible.
const MAX_FALSE: f64 = 0.01;

fn main() -> ExitCode {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse().ok());
    let rollouts = numbers.next().flatten().unwrap_or(ROLLOUTS);
    let runs = numbers.next().flatten().unwrap_or(RUNS);
    let bound = healthy(rollouts);
    println!();
    fast(runs);
    println!();
    small(runs);
    if bound <= MAX_FALSE {
        ExitCode::SUCCESS
    } else {
        println!(
            "\nmore false rollbacks are possible than {:.1} %",
            100.0 * MAX_FALSE
        );
        ExitCode::FAILURE
    }
}

fn healthy(rollouts: u32) -> f64 {
    println!(
        "| healthy rollouts | number | judged hours | inconclusive at times | rolled back | upper 95 % bound |"
    );
    println!("|---|---|---|---|---|---|");
    let (mut all, mut wrong) = (0, 0);
    for scenario in Scenario::ALL {
        all += rollouts;
        wrong += scenario_row(scenario, rollouts);
    }
    let bound = upper_bound(wrong, all);
    println!(
        "| all of these | {all} | | | {wrong} | {:.3} % |",
        100.0 * bound
    );
    scenario_row(Scenario::LateCommonOutage, rollouts);
    bound
}

/// How many of a scenario's rollouts were rolled back.
fn scenario_row(scenario: Scenario, rollouts: u32) -> u32 {
    let (mut seconds, mut inconclusive, mut wrong) = (0_u64, 0_u32, 0_u32);
    for seed in 0..rollouts {
        let seed = ((scenario as u64) << 32) + u64::from(seed);
        let fate = Healthy::new(scenario, seed, LONGEST_PAUSE).run();
        seconds += u64::from(fate.seconds);
        inconclusive += u32::from(fate.was_inconclusive);
        wrong += u32::from(fate.rolled_back);
    }
    let bound = 100.0 * upper_bound(wrong, rollouts);
    let hours = seconds / 3_600;
    println!("| {scenario:?} | {rollouts} | {hours} | {inconclusive} | {wrong} | {bound:.2} % |");
    wrong
}

/// Faults that are to be found within seconds, by load and weight.
fn fast(runs: u32) {
    let failing = |failing| Service {
        failing,
        ..Service::default()
    };
    let slow = Service {
        slow: 1.0,
        slower_ms: 500,
        ..Service::default()
    };
    let faults = [
        ("20 % refused", failing(0.2)),
        ("50 % refused", failing(0.5)),
        ("all refused", failing(1.0)),
        ("+500 ms", slow),
    ];
    heading();
    for (name, service) in faults {
        for rate in [0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 1_000.0] {
            for weight in [5, 25, 50, 75, 90, 100_u8] {
                let fault = Fault {
                    load: rate * 100.0 / f64::from(weight),
                    weight,
                    base: 0.0,
                    service,
                    learn_seconds: 900,
                    seconds: 1_800,
                };
                if rate >= 1.0 || weight == 5 || weight == 50 || weight == 100 {
                    row(name, &fault, runs, Fault::run);
                }
            }
        }
    }
}

/// Faults that need many clients.
fn small(runs: u32) {
    heading();
    let rise = |base: f64, failing: f64, weight, seconds| Fault {
        load: 100.0,
        weight,
        base,
        service: Service {
            failing,
            ..Service::default()
        },
        learn_seconds: 0,
        seconds,
    };
    let names = [
        ("5 % instead of 1 %", 0.01, 0.05),
        ("0.5 % instead of 0.1 %", 0.001, 0.005),
    ];
    for (name, base, failing) in names {
        for seconds in [300, 3_600] {
            let name = format!("{name}, one step of {seconds} s");
            row(&name, &rise(base, failing, 5, seconds), runs, Fault::run);
        }
        let name = format!("{name}, steps 1, 5, 10, 25, 50, 100 % of 300 s");
        let steps = [1, 5, 10, 25, 50, 100].map(|weight| (weight, 300));
        row(&name, &rise(base, failing, 5, 0), runs, |fault, seed| {
            fault.run_steps(&steps, seed)
        });
    }
    for base in [0.001, 0.01] {
        let name = format!(
            "20 % refused instead of {} %, after a pause of a day",
            100.0 * base
        );
        let fault = Fault {
            learn_seconds: 86_400,
            ..rise(base, 0.2, 5, 1_800)
        };
        row(&name, &fault, runs.div_ceil(10), Fault::run);
        let name = format!("20 % refused instead of {} %", 100.0 * base);
        let fault = Fault {
            learn_seconds: 900,
            ..rise(base, 0.2, 5, 1_800)
        };
        row(&name, &fault, runs, Fault::run);
    }
}

fn heading() {
    println!("| fault | candidate's connections/s | weight | found | median s | p99 s | max s |");
    println!("|---|---|---|---|---|---|---|");
}

fn row(
    name: &str,
    fault: &Fault,
    runs: u32,
    run: impl Fn(&Fault, u64) -> simulated::faulty::Found,
) {
    let found = (0..u64::from(runs)).filter_map(|seed| run(fault, seed));
    let mut seconds: Vec<u32> = found.map(|(seconds, _)| seconds).collect();
    seconds.sort_unstable();
    let found = f64::from(u32::try_from(seconds.len()).unwrap_or(u32::MAX)) / f64::from(runs);
    let time = |percent| match quantile(&seconds, percent) {
        Some(seconds) => seconds.to_string(),
        None => "–".to_owned(),
    };
    println!(
        "| {name} | {:.1} | {} % | {:.1} % | {} | {} | {} |",
        fault.load * f64::from(fault.weight) / 100.0,
        fault.weight,
        100.0 * found,
        time(50),
        time(99),
        time(100)
    );
}
