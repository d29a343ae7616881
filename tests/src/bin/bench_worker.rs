//! Measures one case at a time, whenever it is asked: one of the two sides of `bench --base`.
//!
//! Arguments: the directory of sluice.o and bench.o, the packets of a run, the numbers of established flows (`1,65536`).
//! Names of cases come in on standard input, one a line, up to an empty line; it answers with those that it knows and an
//! empty line once they are prepared. Each further line names a case to run once; the answer is nanoseconds per packet.
//!
//! `cargo xtask build-base` builds this file within commits that have none, so it is all of one file and asks of the
//! library no more than cases by name, `prepare` and `sample`.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result};
use sluice_tests::bench::{
    case::Case,
    measure::{self, Bench, Options},
};
use std::{
    collections::BTreeMap,
    env,
    io::{self, BufRead, Write as _},
    path::PathBuf,
};

fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let mut argument = |what: &str| arguments.next().with_context(|| format!("no {what}"));
    let objects = PathBuf::from(argument("directory of objects")?);
    let repeat = argument("number of packets")?.parse()?;
    let flows = argument("numbers of flows")?;
    let flows: Vec<u32> = flows.split(',').map(str::parse).collect::<Result<_, _>>()?;

    let mut lines = io::stdin().lock().lines();
    let mut known: BTreeMap<String, Case> = Case::all(&flows)
        .into_iter()
        .map(|case| (case.to_string(), case))
        .collect();
    let mut cases = BTreeMap::new();
    for name in lines.by_ref() {
        let name = name?;
        if name.is_empty() {
            break;
        }
        cases.extend(known.remove_entry(&name));
    }
    measure::pin()?;
    let options = Options {
        object: objects.join("sluice.o"),
        wrapper: objects.join("bench.o"),
        repeat,
        flows,
    };
    let wanted: Vec<Case> = cases.values().copied().collect();
    let mut bench = Bench::prepare(options, &wanted)?;
    let mut answers = io::stdout().lock();
    for name in cases.keys() {
        writeln!(answers, "{name}")?;
    }
    writeln!(answers)?;
    answers.flush()?;
    for name in lines {
        let name = name?;
        let case = cases.get(&name).context("no such case")?;
        writeln!(answers, "{}", bench.sample(*case)?)?;
        answers.flush()?;
    }
    Ok(())
}
