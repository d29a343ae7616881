//! Many seeds, and one.

use std::time::Duration;

use super::SECOND;
use super::check::{Check, Worst};
use super::faults;
use super::rng::Rng;
use super::segment::Loss;
use super::world::{Setup, World};
use crate::tests::Flaw;
use crate::{Coordination, GiveBack, Probing, Settings};

/// Runs of one test, unless `SLUICE_RUNS` says otherwise; `SLUICE_SEED` repeats one, and `SLUICE_TRACE` is the number of lines that it prints.
const RUNS: u64 = 600;
/// Seeds in which a wrong elector has to fail.
const FLAWED_RUNS: u64 = 1000;
/// Lines of a trace that are printed.
const TRACE_LINES: usize = 120;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    let text = text.trim();
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn setup(rng: &mut Rng, flaw: Option<Flaw>) -> Setup {
    let stable_s = [3, 6][rng.index(2)];
    let is_standalone = rng.chance(150);
    let settings = Settings {
        coordination: if is_standalone {
            Coordination::Peers
        } else {
            Coordination::Lease
        },
        give_back: if rng.chance(300) {
            GiveBack::Never
        } else {
            GiveBack::AfterStableTime
        },
        probing: if rng.chance(150) {
            Probing::Off
        } else {
            Probing::On
        },
        stable_time: Duration::from_secs(stable_s),
        ..Settings::default()
    };
    Setup {
        group: format!("pool-{}", rng.below(16)),
        nodes: 2 + rng.index(4),
        paths: 1 + rng.index(2),
        settings,
        has_watch: rng.chance(700),
        server_faults: [0, 0, 10, 50][rng.index(4)],
        skew: 3000,
        flaw,
    }
}

/// One run. Says how bad it got.
fn run(seed: u64, flaw: Option<Flaw>, is_traced: bool) -> (World, Result<(), String>) {
    let mut rng = Rng::new(seed);
    let setup = setup(&mut rng, flaw);
    let settle_ns = 3 * u64::try_from(setup.settings.stable_time.as_nanos()).unwrap();
    let mut world = World::new(setup, rng.next(), is_traced);
    let end_ns = 45 * SECOND;
    faults::plan(&mut world, end_ns, rng.chance(700));
    let mut result = world.run(end_ns + settle_ns + 12 * SECOND);
    // Lost writes cost a moment even in the end.
    let may_fail = if world.setup.server_faults > 0 { 39 } else { 0 };
    let mut failures = 0;
    for _ in 0..40 {
        let rest = Check::at_rest(&world);
        failures += u32::from(rest.is_err());
        if failures > may_fail {
            result = result.and(rest);
        }
        let next_ns = world.now_ns + SECOND / 10;
        result = result.and_then(|()| world.run(next_ns));
        if result.is_err() {
            break;
        }
    }
    (world, result)
}

fn print_failure(seed: u64, flaw: Option<Flaw>) -> String {
    let (world, result) = run(seed, flaw, true);
    let trace = world.trace.unwrap_or_default();
    println!("{:?}", world.setup);
    let lines = number("SLUICE_TRACE").map_or(TRACE_LINES, |lines| usize::try_from(lines).unwrap());
    for line in &trace[trace.len().saturating_sub(lines)..] {
        println!("{line}");
    }
    format!("SLUICE_SEED={seed:#x}: {}", result.unwrap_err())
}

fn seed(number: u64) -> u64 {
    Rng::new(number).next()
}

#[test]
fn bounds_hold_whatever_fails() {
    if let Some(seed) = number("SLUICE_SEED") {
        let (_, result) = run(seed, None, false);
        assert!(result.is_ok(), "{}", print_failure(seed, None));
        return;
    }
    let mut worst = Worst::default();
    let mut failed = Vec::new();
    for seed in (0..number("SLUICE_RUNS").unwrap_or(RUNS)).map(seed) {
        let (world, result) = run(seed, None, false);
        worst.add(world.check.worst);
        if let Err(text) = result {
            failed.push((seed, text));
        }
    }
    println!("{worst:?}");
    for (seed, text) in &failed {
        println!("SLUICE_SEED={seed:#x}: {text}");
    }
    if let Some((seed, _)) = failed.first() {
        panic!("{}", print_failure(*seed, None));
    }
}

#[test]
fn wrong_electors_are_caught() {
    for flaw in [
        Flaw::DeadlineFromReply,
        Flaw::SwapWithoutVersion,
        Flaw::ArmBeforeSwap,
        Flaw::NoWitnessRule,
    ] {
        let mut seeds = (0..FLAWED_RUNS).map(seed);
        let caught = seeds.find(|seed| run(*seed, Some(flaw), false).1.is_err());
        assert!(
            caught.is_some(),
            "{flaw:?} is not caught in {FLAWED_RUNS} runs"
        );
        println!("{flaw:?}: {:?}", run(caught.unwrap(), Some(flaw), false).1);
    }
}

/// Hours of loss without a single fault. Returns takeovers after the first.
fn endure(loss: Loss, hours: u64, seed: u64) -> (u32, World) {
    let setup = Setup {
        group: "pool-0".to_owned(),
        nodes: 3,
        paths: 1,
        settings: Settings {
            give_back: GiveBack::Never,
            ..Settings::default()
        },
        has_watch: true,
        server_faults: 0,
        skew: 3000,
        flaw: None,
    };
    let mut world = World::new(setup, seed, false);
    world.run(20 * SECOND).unwrap();
    for segment in &mut world.segments {
        segment.loss = loss;
    }
    world.check.lost = 0;
    world.run(hours * 3600 * SECOND).unwrap();
    assert_eq!(Check::at_rest(&world), Ok(()));
    (world.check.takeovers - 1, world)
}

/// The holder is d0, d1 or d2; bursts hit each of them in turn.
#[test]
fn lost_probes_move_nothing() {
    let hours = number("SLUICE_HOURS").unwrap_or(1);
    let bursts = |node, spares_gateway| Loss::Bursts {
        per_mille: 300,
        node,
        spares_gateway,
    };
    for (loss, name) in [
        (Loss::Random(300), "at random"),
        (bursts(0, false), "in bursts of d0, all packets"),
        (bursts(1, false), "in bursts of d1, all packets"),
        (bursts(2, false), "in bursts of d2, all packets"),
        (bursts(0, true), "in bursts of d0, not the gateway's"),
        (bursts(1, true), "in bursts of d1, not the gateway's"),
        (bursts(2, true), "in bursts of d2, not the gateway's"),
    ] {
        let (takeovers, world) = endure(loss, hours, 1);
        let (lost, probes) = (world.check.lost, world.check.probes);
        println!("{hours} h, 30 % lost {name}: {takeovers} takeovers, {lost} of {probes} lost");
        assert!(lost > 0 || name.contains("bursts"), "nothing was lost");
        assert!(takeovers <= 1, "{takeovers} takeovers with losses {name}");
    }
}
