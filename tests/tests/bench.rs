//! The benchmark does what its cases say: one short round of each, untimed.
//!
//! Needs root (it loads BPF programs) and the objects of `cargo xtask build-bpf`.

use anyhow::{Context as _, Result};
use sluice_tests::bench::{
    case::Case,
    measure::{Bench, Options},
};
use std::path::Path;

const FLOWS: [u32; 3] = [1, 64, 4096];

fn options() -> Options {
    let objects = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf");
    Options {
        object: objects.join("sluice.o"),
        wrapper: objects.join("bench.o"),
        repeat: 2000,
        flows: FLOWS.to_vec(),
    }
}

#[test]
fn every_case_does_what_it_says() -> Result<()> {
    let cases = Case::all(&FLOWS);
    let mut bench = Bench::prepare(options(), &cases)?;
    for case in cases {
        let ns = bench.sample(case).with_context(|| case.to_string())?;
        assert!(ns > 0.0, "{case} took no time");
    }
    Ok(())
}

#[test]
fn flows_that_are_not_established_do_not_pass_for_hits() -> Result<()> {
    let few = Options {
        flows: vec![64],
        ..options()
    };
    let cases = Case::all(&FLOWS);
    let hit = |flows| {
        let name = format!("hit/TUN/IPv4/TCP/{flows}");
        cases
            .iter()
            .copied()
            .find(move |case| case.to_string() == name)
    };
    let established = hit(64).context("no such case")?;
    let more = hit(4096).context("no such case")?;
    let mut bench = Bench::prepare(few, &[established])?;
    bench.sample(established)?;
    let refused = bench.sample(more);
    assert!(
        refused.is_err_and(|error| format!("{error:#}").contains("not every packet hit")),
        "4096 flows, of which 64 are established, were taken for hits"
    );
    Ok(())
}
