//! Pauses after failures.

use std::time::{Duration, Instant};

/// First and longest pause after a failure.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Pauses between attempts, longer each time.
#[derive(Debug, Default)]
pub(super) struct BackOff {
    failures: u32,
    until: Option<Instant>,
}

impl BackOff {
    pub(super) fn fail(&mut self, now: Instant) {
        let (first, longest) = BACK_OFF;
        let pause = first
            .saturating_mul(1 << self.failures.min(10))
            .min(longest);
        self.failures += 1;
        self.until = Some(now + pause);
    }

    pub(super) fn succeed(&mut self) {
        *self = Self::default();
    }

    /// When the next attempt may be made; `None`: at any time.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Whether the last attempt failed.
    pub(super) fn is_failing(&self) -> bool {
        self.failures > 0
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_end_with_success() {
        let (first, longest) = BACK_OFF;
        let mut back_off = BackOff::default();
        let now = Instant::now();
        assert!(back_off.is_over(now));
        back_off.fail(now);
        assert!(!back_off.is_over(now) && back_off.is_over(now + first));
        for _ in 0..40 {
            back_off.fail(now);
        }
        assert_eq!(back_off.until, Some(now + longest));
        back_off.succeed();
        assert!(back_off.is_over(now));
    }
}
