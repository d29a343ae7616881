//! Figures, and what they are taken from.

use std::fmt;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A measured figure.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub(crate) struct Figure {
    /// The measurement in words, its subject first, such as `agent: memory`.
    pub(crate) case: String,
    /// Among how many virtual servers.
    pub(crate) objects: u32,
    /// The figure.
    pub(crate) value: f64,
    /// Its unit: `ms` of processor time, `s` on the clock, `MB` of 10^6 bytes, or a count.
    pub(crate) unit: String,
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            case,
            objects,
            value,
            unit,
        } = self;
        write!(f, "{case:58} {objects:6} {value:10.2} {unit}")
    }
}

/// Figures of so many virtual servers.
pub(crate) struct Figures {
    objects: u32,
    list: Vec<Figure>,
}

impl Figures {
    pub(crate) const fn among(objects: u32) -> Self {
        Self {
            objects,
            list: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, case: &str, value: f64, unit: &str) {
        self.list.push(Figure {
            case: case.to_owned(),
            objects: self.objects,
            value,
            unit: unit.to_owned(),
        });
    }

    /// Adds the median of these.
    pub(crate) fn add_median(&mut self, case: &str, mut values: Vec<f64>, unit: &str) {
        values.sort_by(f64::total_cmp);
        self.add(case, values[values.len() / 2], unit);
    }

    pub(crate) fn list(self) -> Vec<Figure> {
        self.list
    }
}

/// Milliseconds of processor time that this thread has had.
pub(crate) fn processor_ms() -> f64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has it");
    Duration::from(time).as_secs_f64() * 1e3
}

/// The result of some work, and the milliseconds of processor time that it took.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = processor_ms();
    let result = work();
    (result, processor_ms() - start)
}

/// Memory of a process in MB, as this field of its status tells: `VmRSS` now, `VmHWM` at most.
pub(crate) fn memory_mb(process: u32, field: &str) -> f64 {
    let path = format!("/proc/{process}/status");
    let text = std::fs::read_to_string(path).expect("the process runs");
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.find(|(name, _)| *name == field).expect("it is there");
    let kilobytes = value.trim().trim_end_matches(" kB");
    kilobytes.parse::<f64>().expect("a number") * 1024.0 / 1e6
}
