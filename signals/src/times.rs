//! Times in classes that are fine enough to tell a server from one that is half as fast.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How many classes of times there are. The last one has no upper bound.
pub const TIME_CLASSES: usize = 32;

/// Upper bound of the first class, in microseconds.
const FIRST_US: u64 = 500;

/// The upper bound of a class: 0.5 ms for the first, and the square root of 2 more with each. The last one's is none.
pub const fn class_bound(class: usize) -> Duration {
    let even = FIRST_US << (class / 2);
    let bound = if class.is_multiple_of(2) {
        even
    } else {
        even * 1_414_214 / 1_000_000
    };
    Duration::from_micros(bound)
}

/// The class of a time: the first whose bound it does not exceed.
pub fn class_of(time: Duration) -> usize {
    let fits = (0..TIME_CLASSES).find(|&class| time <= class_bound(class));
    fits.unwrap_or(TIME_CLASSES - 1)
}

/// How many times there were in each class.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(try_from = "Vec<(usize, u32)>", into = "Vec<(usize, u32)>")]
pub struct Times(pub [u32; TIME_CLASSES]);

impl Default for Times {
    fn default() -> Self {
        Self([0; TIME_CLASSES])
    }
}

impl Times {
    /// Counts a time.
    pub fn add(&mut self, time: Duration) {
        let count = &mut self.0[class_of(time)];
        *count = count.saturating_add(1);
    }

    /// Adds others.
    pub fn join(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count = count.saturating_add(more);
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|&count| u64::from(count)).sum()
    }

    /// How many are in classes after this one.
    pub fn above(&self, class: usize) -> u64 {
        let above = self.0.iter().skip(class.saturating_add(1));
        above.map(|&count| u64::from(count)).sum()
    }
}

impl From<Times> for Vec<(usize, u32)> {
    fn from(times: Times) -> Self {
        let classes = times.0.into_iter().enumerate();
        classes.filter(|(_, count)| *count > 0).collect()
    }
}

impl TryFrom<Vec<(usize, u32)>> for Times {
    type Error = String;

    fn try_from(classes: Vec<(usize, u32)>) -> Result<Self, String> {
        let mut times = Self::default();
        for (class, count) in classes {
            let place = times.0.get_mut(class);
            *place.ok_or_else(|| format!("there is no class {class} of times"))? = count;
        }
        Ok(times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_rise_by_the_square_root_of_two() {
        for class in 1..TIME_CLASSES {
            let ratio = class_bound(class).as_secs_f64() / class_bound(class - 1).as_secs_f64();
            assert!((ratio - std::f64::consts::SQRT_2).abs() < 0.001, "{class}");
        }
        assert_eq!(class_bound(22), Duration::from_millis(1024));
    }

    #[test]
    fn each_time_is_in_the_class_that_holds_it() {
        assert_eq!(class_of(Duration::ZERO), 0);
        assert_eq!(class_of(Duration::from_micros(500)), 0);
        assert_eq!(class_of(Duration::from_micros(501)), 1);
        assert_eq!(class_of(Duration::from_hours(1)), TIME_CLASSES - 1);
        let mut times = Times::default();
        for milliseconds in [0, 1, 1, 700] {
            times.add(Duration::from_millis(milliseconds));
        }
        assert_eq!(times.count(), 4);
        assert_eq!(times.above(class_of(Duration::from_millis(1))), 1);
        assert_eq!(times.above(TIME_CLASSES - 1), 0);
    }
}
