//! Playing many cases, and saying all that is wrong.

use std::time::{Duration, Instant};

use super::{case::Case, host::Host, machine::Machine};

/// Plays `cases` on the host and on `kernel`, and compares what packets left in the tables. Returns one text per failure.
pub fn play(cases: &[Case], kernel: &mut dyn Machine) -> Vec<String> {
    let mut host = Host::new();
    let mut failures = Vec::new();
    for case in cases {
        if case.needs_full_headroom() && !kernel.fills_headroom() {
            println!(
                "not here, since a test run always has headroom: {}",
                case.name()
            );
            continue;
        }
        let on_host = case
            .play(&mut host)
            .map_err(|error| format!("host: {error:#}"));
        let in_kernel = case
            .play(kernel)
            .map_err(|error| format!("kernel: {error:#}"));
        match (on_host, in_kernel) {
            (Ok(on_host), Ok(in_kernel)) if on_host == in_kernel => {}
            (Ok(on_host), Ok(in_kernel)) => failures.push(format!(
                "{}: host and kernel end differently\n{on_host:#?}\n{in_kernel:#?}",
                case.name()
            )),
            (on_host, in_kernel) => {
                failures.extend(on_host.err());
                failures.extend(in_kernel.err());
            }
        }
    }
    failures
}

/// Runs `work` and says how long it took.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let began = Instant::now();
    (work(), began.elapsed())
}
