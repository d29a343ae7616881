//! How a server gets its share of new flows.

use std::time::{Duration, Instant};

/// Tenths of a share that are added after the first.
const STEPS: u32 = 9;

/// A server that begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Warming {
    since: Instant,
    /// The tenths of its share that it has: 1 to 9.
    pub(super) tenths: u8,
    /// When it gets the next.
    pub(super) next: Instant,
}

impl Warming {
    /// A server that begins now, and has its whole share after this time.
    pub(super) fn begin(now: Instant, time: Duration) -> Self {
        Self {
            since: now,
            tenths: 1,
            next: now + time / STEPS,
        }
    }

    /// The same later; `None`: it has its whole share.
    pub(super) fn at(self, now: Instant, time: Duration) -> Option<Self> {
        let elapsed = now.saturating_duration_since(self.since);
        let steps = elapsed.as_nanos() * u128::from(STEPS) / time.as_nanos().max(1);
        let steps = u8::try_from(steps).ok();
        let steps = steps.filter(|steps| u32::from(*steps) < STEPS)?;
        Some(Self {
            tenths: steps + 1,
            next: self.since + time * (u32::from(steps) + 1) / STEPS,
            ..self
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_grows_by_equal_steps() {
        let start = Instant::now();
        let time = Duration::from_secs(9);
        let mut warming = Warming::begin(start, time);
        let mut steps = vec![(0, warming.tenths)];
        while let Some(later) = warming.at(warming.next, time) {
            assert!(later.next > warming.next);
            steps.push((warming.next.duration_since(start).as_secs(), later.tenths));
            warming = later;
        }
        let expected: Vec<(u64, u8)> = (0..9).zip(1..10).collect();
        assert_eq!(steps, expected);
        assert_eq!(warming.next, start + time);
    }

    #[test]
    fn a_share_is_what_the_time_says_however_late_one_looks() {
        let start = Instant::now();
        let warming = Warming::begin(start, Duration::from_secs(10));
        let tenths = |seconds, time| {
            let time = Duration::from_secs(time);
            let later = warming.at(start + Duration::from_secs(seconds), time);
            later.map_or(10, |warming| warming.tenths)
        };
        assert_eq!(
            [tenths(0, 10), tenths(5, 10), tenths(9, 10), tenths(10, 10)],
            [1, 5, 9, 10]
        );
        assert_eq!(tenths(5, 90), 1, "another time was asked for");
    }
}
