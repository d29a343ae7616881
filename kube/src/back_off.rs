//! Pauses between attempts.

use std::time::Duration;

/// Pauses that double, from the first to the longest.
#[derive(Clone, Debug)]
pub struct BackOff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl BackOff {
    /// No attempt has failed yet.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            failures: 0,
        }
    }

    /// The pause after one more failure, with up to half as much again by chance.
    pub fn next_pause(&mut self) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        jittered(doubled.min(self.longest))
    }

    /// It works again.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Up to half as much again, by chance: what all nodes do is not to be done by all at once.
pub fn jittered(time: Duration) -> Duration {
    let chance = getrandom::u32().unwrap_or_default();
    time + time.mul_f64(f64::from(chance) / f64::from(u32::MAX) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let ms = Duration::from_millis;
        let mut back_off = BackOff::new(ms(100), ms(1000));
        for least in [100, 200, 400, 800, 1000, 1000] {
            let pause = back_off.next_pause();
            assert!(
                (ms(least)..=ms(least * 3 / 2)).contains(&pause),
                "{pause:?}"
            );
        }
        for _ in 0..100 {
            back_off.next_pause();
        }
        assert!(back_off.next_pause() <= ms(1500));
        back_off.reset();
        assert!(back_off.next_pause() <= ms(150));
    }
}
