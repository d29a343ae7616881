//! Random numbers that one seed reproduces.

/// A generator: SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// Between 0 and 1, neither of them.
    #[expect(clippy::cast_precision_loss, reason = "52 bits fit")]
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.next() >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
    }

    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// A whole number from `low` to `high`.
    pub(crate) fn whole(&mut self, low: u32, high: u32) -> u32 {
        let span = u64::from(high - low) + 1;
        low + u32::try_from(self.next() % span).expect("below the span")
    }

    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        let last = u32::try_from(choices.len() - 1).expect("a few");
        choices[usize::try_from(self.whole(0, last)).expect("a few")]
    }

    /// So that each factor is as likely as any other.
    pub(crate) fn log_between(&mut self, low: f64, high: f64) -> f64 {
        self.between(low.ln(), high.ln()).exp()
    }

    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.unit().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// How many of events that come at `rate`.
    pub(crate) fn poisson(&mut self, rate: f64) -> u32 {
        if rate > 50.0 {
            return count(rate + rate.sqrt() * self.normal());
        }
        let mut left = rate;
        let mut events = 0;
        loop {
            left += self.unit().ln();
            if left <= 0.0 {
                return events;
            }
            events += 1;
        }
    }

    /// How many of `asked` have what each has by `chance`.
    pub(crate) fn binomial(&mut self, asked: u32, chance: f64) -> u32 {
        if chance > 0.5 {
            return asked - self.binomial(asked, 1.0 - chance);
        }
        if asked == 0 || chance <= 0.0 {
            return 0;
        }
        let mean = f64::from(asked) * chance;
        if mean > 50.0 {
            let spread = (mean * (1.0 - chance)).sqrt();
            return count(mean + spread * self.normal()).min(asked);
        }
        let scale = (1.0 - chance).ln();
        let (mut passed, mut hits) = (0.0, 0);
        loop {
            passed += (self.unit().ln() / scale).floor() + 1.0;
            if passed > f64::from(asked) {
                return hits;
            }
            hits += 1;
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast from a float saturates"
)]
fn count(number: f64) -> u32 {
    number.round() as u32
}
