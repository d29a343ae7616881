//! Loads the programs into the running kernel, plays the packet tables there and compares random packets with the host:
//! what a guest runs.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use sluice_tests::packet::{
    cases,
    differential::{Coverage, compare},
    host::Host,
    kernel::Kernel,
    suite::{play, timed},
};

/// Random tables on which the kernel is compared with the host: each kernel has a verifier of its own, which rewrites the
/// programs in its own way.
const WORLDS: u64 = 30;

fn main() -> Result<()> {
    let release =
        std::fs::read_to_string("/proc/sys/kernel/osrelease").context("which kernel is this?")?;
    println!("Linux {}", release.trim());
    let (accepted, took) = timed(Kernel::accepts_agents_programs);
    accepted?;
    println!("the agent's programs accepted in {took:.1?}");
    let (kernel, took) = timed(Kernel::load);
    let mut kernel = kernel?;
    println!("programs loaded in {took:.1?}");
    let cases = cases::all();
    let (failures, took) = timed(|| play(&cases, &mut kernel));
    println!("{} cases played in {took:.1?}", cases.len());
    let mut coverage = Coverage::default();
    let (same, took) = timed(|| -> Result<()> {
        (0..WORLDS).try_for_each(|seed| compare(&mut Host::new(), &mut kernel, seed, &mut coverage))
    });
    println!("{} random packets compared in {took:.1?}", coverage.packets);
    same?;
    ensure!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.join("\n\n")
    );
    Ok(())
}
