//! Measures nanoseconds per packet of the data plane: `docs/benchmarks.md`.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use sluice_tests::bench::{
    case::Case,
    compare,
    measure::{self, Bench, Options},
    report,
    stats::Summary,
    worker::Worker,
};
use sluice_tests::figures;
use std::{
    env,
    path::{Path, PathBuf},
};

/// Measures nanoseconds per packet of the data plane, beside a program that only sends frames back and one that adds a
/// constant outer header.
#[derive(Parser)]
struct Arguments {
    /// Rounds of all cases; medians are taken over them
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Packets of each run
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(2..=1 << 21))]
    repeat: u32,
    /// Only cases whose name (kind/mode/family/protocol/flows) contains this; several are alternatives
    #[arg(long)]
    case: Vec<String>,
    /// Where to write the figures
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
    /// Directory of sluice.o and bench.o
    #[arg(long, default_value = "target/bpf")]
    objects: PathBuf,
    /// Compares with another commit: directory of what `cargo xtask build-base` made of it. Writes no JSON
    #[arg(long)]
    base: Option<PathBuf>,
}

/// Established flows of the hit cases.
const FLOWS: [u32; 3] = [1, 1 << 16, 1 << 20];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(base) = &arguments.base {
        return compare(&arguments, base);
    }
    figures::remove(&arguments.json)?;
    let cases = choose(&arguments.case)?;
    let options = Options {
        object: arguments.objects.join("sluice.o"),
        wrapper: arguments.objects.join("bench.o"),
        repeat: arguments.repeat,
        flows: FLOWS.to_vec(),
    };
    let cpu = measure::pin()?;
    eprintln!("{} cases on processor {cpu}; loading", cases.len());
    let mut bench = Bench::prepare(options, &cases)?;
    let samples = measure::rounds(&mut bench, &cases, arguments.rounds, |round| {
        eprintln!("round {} of {}", round + 1, arguments.rounds);
    })?;
    let mut figures = Vec::with_capacity(cases.len());
    for (case, samples) in cases.iter().zip(&samples) {
        figures.push((*case, Summary::of(samples).context("no samples")?));
    }
    let lines = report::lines(&figures);
    print!("{}", report::table(&lines));
    report::check(&figures, arguments.rounds).context("void")?;
    figures::write(&arguments.json, &lines)
}

/// Measures this tree's build and the one in `base` beside each other; an error if a case became worse.
fn compare(arguments: &Arguments, base: &Path) -> Result<()> {
    let mut cases = choose(&arguments.case)?;
    let own = env::current_exe()?.with_file_name("bench_worker");
    let sides = [
        (base.join("bench_worker"), base.join("bpf")),
        (own, arguments.objects.clone()),
    ];
    let start = |side: usize| {
        let (program, objects) = &sides[side];
        Worker::start(program, objects, arguments.repeat, &FLOWS)
    };
    // Both workers run on this processor.
    let cpu = measure::pin()?;
    for side in [0, 1] {
        let known = start(side)?.prepare(&cases)?;
        cases.retain(|case| known.contains(&case.to_string()));
    }
    eprintln!("{} cases of both builds on processor {cpu}", cases.len());
    let prepared = |first: usize| {
        let mut workers = [start(0)?, start(1)?];
        for side in [first, 1 - first] {
            workers[side].prepare(&cases)?;
        }
        Ok(workers)
    };
    let samples = compare::rounds(prepared, &cases, arguments.rounds, |round| {
        eprintln!("round {} of {}", round + 1, arguments.rounds);
    })?;
    let pairs = compare::pairs(&cases, &samples);
    print!("{}", compare::table(&pairs));
    compare::check(&cases, &samples, arguments.rounds).context("void")?;
    ensure!(
        !pairs.iter().any(compare::Pair::is_worse),
        "slower than before"
    );
    Ok(())
}

/// The cases whose names contain one of `filters`, and the floors of their families.
fn choose(filters: &[String]) -> Result<Vec<Case>> {
    let all = Case::all(&FLOWS);
    let wanted = |case: &Case| {
        let name = case.to_string();
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    };
    let families: Vec<_> = all
        .iter()
        .filter(|case| wanted(case))
        .map(|case| case.family())
        .collect();
    ensure!(!families.is_empty(), "no case is called {filters:?}");
    let floor = |case: &Case| case.is_floor() && families.contains(&case.family());
    Ok(all
        .into_iter()
        .filter(|case| wanted(case) || floor(case))
        .collect())
}
