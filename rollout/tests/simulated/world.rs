//! What nodes would see of two pools, second by second.

use std::collections::VecDeque;
use std::time::Duration;

use sluice_signals::{Outcome, Tally, class_of};

use super::random::Random;

/// Milliseconds until the first byte, and of how many of those that are left.
const TIMES: [(u64, f64); 5] = [(2, 0.3), (5, 0.7), (20, 0.75), (80, 0.9), (300, 1.0)];
/// A server is silent after so many seconds, so it is told later.
const SILENT_AFTER: usize = 5;

/// How a pool serves in a second.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Service {
    /// The share of clients that it fails.
    pub(crate) failing: f64,
    /// Whether they hear nothing, and not a refusal.
    pub(crate) is_silent: bool,
    /// The share of clients that wait longer.
    pub(crate) slow: f64,
    /// By how many milliseconds.
    pub(crate) slower_ms: u64,
}

/// A pool, and what is not told of it yet.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    silent: VecDeque<u32>,
}

impl Pool {
    /// What is told of a second in which so many clients came. Each is independent of the others.
    pub(crate) fn serve(&mut self, random: &mut Random, clients: u32, service: Service) -> Tally {
        let mut tally = Tally::default();
        let failing = random.binomial(clients, service.failing);
        let mut silent = 0;
        if service.is_silent {
            silent = failing;
        } else {
            tally.outcomes[Outcome::Refused as usize] = failing;
        }
        self.silent.push_back(silent);
        if self.silent.len() > SILENT_AFTER {
            tally.outcomes[Outcome::Silent as usize] = self.silent.pop_front().unwrap_or(0);
        }
        let replied = clients - failing;
        tally.outcomes[Outcome::Replied as usize] = replied;
        let slow = random.binomial(replied, service.slow);
        wait(random, &mut tally, replied - slow, 0);
        wait(random, &mut tally, slow, service.slower_ms);
        tally
    }
}

fn wait(random: &mut Random, tally: &mut Tally, clients: u32, slower_ms: u64) {
    let mut left = clients;
    for (milliseconds, share) in TIMES {
        let some = random.binomial(left, share);
        left -= some;
        let class = class_of(Duration::from_millis(milliseconds + slower_ms));
        tally.first_bytes.0[class] += some;
    }
}
