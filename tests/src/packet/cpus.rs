//! Threads on processors of their own, for tests of races.

use anyhow::{Result, ensure};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// Two CPUs that this process may use; an error if it may use fewer.
pub fn two_cpus() -> Result<[usize; 2]> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let mut cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let two = [cpus.next(), cpus.next()];
    ensure!(two[1].is_some(), "this test needs two CPUs");
    Ok(two.map(Option::unwrap_or_default))
}

/// Keeps the calling thread on `cpu`.
pub fn stay_on(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}
