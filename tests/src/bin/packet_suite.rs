//! Loads the programs into the running kernel and plays the packet tables there: what a guest runs.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use sluice_tests::packet::{
    cases,
    kernel::Kernel,
    suite::{play, timed},
};

fn main() -> Result<()> {
    let release =
        std::fs::read_to_string("/proc/sys/kernel/osrelease").context("which kernel is this?")?;
    println!("Linux {}", release.trim());
    let (kernel, took) = timed(Kernel::load);
    let mut kernel = kernel?;
    println!("programs loaded in {took:.1?}");
    let cases = cases::all();
    let (failures, took) = timed(|| play(&cases, &mut kernel));
    println!("{} cases played in {took:.1?}", cases.len());
    ensure!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.join("\n\n")
    );
    Ok(())
}
