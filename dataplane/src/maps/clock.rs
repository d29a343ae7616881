//! The programs' clock: jiffies, which are one load for a program where `bpf_ktime_get_coarse_ns` is a call per packet.
//!
//! The kernel advances jiffies by as many ticks of [`Tick::ns`] nanoseconds as the monotonic clock has passed
//! (`tick_do_update_jiffies64`, also after an idle time without ticks). So jiffies and the monotonic clock differ by a constant,
//! but for the time since the last tick.

use std::io;

use nix::time::{ClockId, clock_getres, clock_gettime};

use super::sys::JiffiesProgram;
use super::{Error, system_error};

/// Tries to read two clocks within one tick.
const TRIES: usize = 16;
const SECOND: u64 = 1_000_000_000;
/// Of kernels with 1000 to 100 ticks a second.
const TICKS_NS: std::ops::RangeInclusive<u64> = SECOND / 1000..=SECOND / 100;

/// How the monotonic clock follows from jiffies: `jiffies × ns + offset`, modulo 2^64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tick {
    /// Nanoseconds between two ticks.
    pub ns: u64,
    /// The monotonic clock when jiffies were 0, modulo 2^64.
    pub offset: u64,
}

impl Tick {
    /// Asks this machine's kernel. The offset is later than the tick by what the kernel's tick was late, at most.
    ///
    /// # Errors
    /// The kernel takes no such program, or the two clocks could not be read within one tick.
    pub fn measure() -> io::Result<Self> {
        // The resolution of the coarse clock is the length of a tick.
        let ns = nanoseconds(clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)?);
        if !TICKS_NS.contains(&ns) {
            return Err(io::Error::other(format!("ticks of {ns} ns are not known")));
        }
        let program = JiffiesProgram::load()?;
        for _ in 0..TRIES {
            let before = nanoseconds(clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?);
            let jiffies = program.run()?;
            let after = nanoseconds(clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?);
            if before == after {
                let offset = before.wrapping_sub(jiffies.wrapping_mul(ns));
                return Ok(Self { ns, offset });
            }
        }
        Err(io::Error::other("each look at the clock took a tick"))
    }
}

/// The present in nanoseconds of CLOCK_MONOTONIC, as `bpf_ktime_get_ns`.
///
/// # Errors
/// The clock cannot be read.
pub(super) fn now() -> Result<u64, Error> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_err(|error| system_error("read the clock")(error.into()))?;
    Ok(nanoseconds(time))
}

/// A reading of a clock that is not negative.
fn nanoseconds(time: nix::sys::time::TimeSpec) -> u64 {
    time.tv_sec().cast_unsigned() * SECOND + time.tv_nsec().cast_unsigned()
}
