//! A host's monotonic clock against true time.

use crate::Time;

const MILLION: u128 = 1_000_000;

/// Starts anywhere, runs a little fast or slow, and stands while its virtual machine is paused.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    pub(crate) offset_ns: u64,
    /// How much it runs fast (over 1,000,000) or slow, in millionths.
    pub(crate) rate: u64,
    pub(crate) stood_ns: u64,
}

impl Clock {
    pub(crate) fn local(&self, true_ns: u64) -> Time {
        let run = u128::from(true_ns - self.stood_ns) * u128::from(self.rate) / MILLION;
        Time::from_nanos(self.offset_ns + u64::try_from(run).unwrap())
    }

    /// The first true time at which the clock shows at least this.
    pub(crate) fn true_ns(&self, local: Time) -> u64 {
        let run = u128::from(local.as_nanos().saturating_sub(self.offset_ns));
        let run = (run * MILLION).div_ceil(u128::from(self.rate));
        u64::try_from(run).unwrap() + self.stood_ns
    }
}

#[test]
fn a_clock_wakes_no_earlier_than_asked() {
    for rate in [997_000, 999_999, 1_000_000, 1_003_000] {
        let clock = Clock {
            offset_ns: 77,
            rate,
            stood_ns: 5,
        };
        for local in (100..10_000).map(Time::from_nanos) {
            let woken = clock.true_ns(local);
            assert!(clock.local(woken) >= local && clock.local(woken - 1) < local);
        }
    }
}
