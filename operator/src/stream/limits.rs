//! How much is taken, of whom. Pure: times are arguments, in milliseconds of a monotonic clock.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Connections that have proven nothing, in all.
pub(super) const MAX_STRANGERS: usize = 256;
/// The same of one address.
pub(super) const MAX_STRANGERS_OF_ADDRESS: usize = 16;
/// Connections without a proof within [`WINDOW_MS`] until an address is refused unheard for as long.
const MAX_FAILURES: u32 = 20;
/// For how long failures count.
const WINDOW_MS: u64 = 10_000;
/// Addresses whose failures are counted.
const MAX_ADDRESSES: usize = 4096;

/// Thousandths of one that a bucket of [`Rate`] holds.
const WHOLE: u64 = 1000;

/// So many at once at most, and so many a second from then on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rate {
    /// At once.
    pub(super) burst: u64,
    /// A second.
    pub(super) per_second: u64,
}

/// Messages of a node: a stream begins with up to thirty, and goes on with one a second.
pub(super) const MESSAGES: Rate = Rate {
    burst: 60,
    per_second: 3,
};
/// What a stream that begins counts as.
pub(super) const STREAM_COST: u64 = 5;
/// Questions to the API server about tokens.
pub(super) const REVIEWS: Rate = Rate {
    burst: 500,
    per_second: 100,
};

/// What is left of a [`Rate`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Bucket {
    rate: Rate,
    left: u64,
    at_ms: u64,
}

impl Bucket {
    /// A full one.
    pub(super) const fn new(rate: Rate, now_ms: u64) -> Self {
        Self {
            rate,
            left: rate.burst * WHOLE,
            at_ms: now_ms,
        }
    }

    /// Takes so many; `false`: there are fewer, and none is taken.
    pub(super) fn take(&mut self, count: u64, now_ms: u64) -> bool {
        // Thousandths a millisecond are whole ones a second.
        let passed = now_ms.saturating_sub(self.at_ms);
        let more = passed.saturating_mul(self.rate.per_second);
        self.left = self.left.saturating_add(more).min(self.rate.burst * WHOLE);
        self.at_ms = self.at_ms.max(now_ms);
        match self.left.checked_sub(count * WHOLE) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

/// Those who connect and have not proven who they are, by address.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    connected: BTreeMap<IpAddr, usize>,
    failed: BTreeMap<IpAddr, (u32, u64)>,
}

impl Strangers {
    /// Somebody connects; `false`: is not let in.
    pub(super) fn enter(&mut self, address: IpAddr, now_ms: u64) -> bool {
        let address = block(address);
        let all: usize = self.connected.values().sum();
        let own = self.connected.get(&address).copied().unwrap_or_default();
        let has_failed = self.failed.get(&address).is_some_and(|(times, since)| {
            *times >= MAX_FAILURES && now_ms.saturating_sub(*since) < WINDOW_MS
        });
        if all >= MAX_STRANGERS || own >= MAX_STRANGERS_OF_ADDRESS || has_failed {
            return false;
        }
        self.connected.insert(address, own + 1);
        true
    }

    /// Whoever was let in is no stranger any more, or has gone.
    pub(super) fn leave(&mut self, address: IpAddr) {
        let address = block(address);
        if let Some(count) = self.connected.get_mut(&address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.connected.remove(&address);
            }
        }
    }

    /// A proof from there was none.
    pub(super) fn fail(&mut self, address: IpAddr, now_ms: u64) {
        let address = block(address);
        if self.failed.len() >= MAX_ADDRESSES {
            self.failed
                .retain(|_, (_, since)| now_ms.saturating_sub(*since) < WINDOW_MS);
        }
        if self.failed.len() >= MAX_ADDRESSES && !self.failed.contains_key(&address) {
            return;
        }
        let (times, since) = self.failed.entry(address).or_insert((0, now_ms));
        if now_ms.saturating_sub(*since) >= WINDOW_MS {
            (*times, *since) = (0, now_ms);
        }
        *times += 1;
        if *times == MAX_FAILURES {
            *since = now_ms;
        }
    }
}

/// Who has an IPv6 address has all of its /64.
fn block(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            IpAddr::V6(network.into())
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_burst_and_fills_again() {
        let rate = Rate {
            burst: 3,
            per_second: 2,
        };
        let mut bucket = Bucket::new(rate, 1000);
        assert!(bucket.take(3, 1000) && !bucket.take(1, 1000));
        assert!(!bucket.take(1, 1499) && bucket.take(1, 1500));
        assert!(!bucket.take(1, 1400), "a clock that goes back gives none");
        assert!(!bucket.take(4, 100_000), "more than it ever holds");
        assert!(bucket.take(3, 100_000) && !bucket.take(1, 100_000));
    }

    /// Whoever sends one message a second is never refused, and a flood gets no more than the rate.
    #[test]
    fn messages_of_an_honest_node_pass() {
        let mut bucket = Bucket::new(MESSAGES, 0);
        assert!(bucket.take(STREAM_COST, 0) && bucket.take(30, 0));
        for second in 1..1000 {
            assert!(bucket.take(1, second * 1000));
        }
        let taken = (0..100_000)
            .filter(|ms| bucket.take(1, 1_000_000 + ms))
            .count();
        assert!((300..=400).contains(&taken), "{taken} in 100 s");
    }

    fn address(host: u8) -> IpAddr {
        [192, 0, 2, host].into()
    }

    #[test]
    fn strangers_are_few() {
        let mut strangers = Strangers::default();
        for _ in 0..MAX_STRANGERS_OF_ADDRESS {
            assert!(strangers.enter(address(1), 0));
        }
        assert!(!strangers.enter(address(1), 0));
        assert!(strangers.enter(address(2), 0), "others come in");
        strangers.leave(address(1));
        assert!(strangers.enter(address(1), 0));
        let entered = (0..=255_u8).flat_map(|host| vec![host; 20]);
        let entered = entered.filter(|host| strangers.enter(address(*host), 0));
        assert_eq!(
            entered.count(),
            MAX_STRANGERS - MAX_STRANGERS_OF_ADDRESS - 1
        );
    }

    #[test]
    fn addresses_of_an_ipv6_network_are_one() {
        let of = |text: &str| block(text.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), address(1));
    }

    #[test]
    fn who_fails_again_and_again_is_refused_unheard_for_a_while() {
        let mut strangers = Strangers::default();
        for _ in 0..MAX_FAILURES {
            assert!(strangers.enter(address(1), 0));
            strangers.leave(address(1));
            strangers.fail(address(1), 500);
        }
        assert!(!strangers.enter(address(1), 600));
        assert!(strangers.enter(address(2), 600));
        assert!(strangers.enter(address(1), 500 + WINDOW_MS));
        for host in 0..=2 * u16::try_from(MAX_ADDRESSES).expect("a small number") {
            let [high, low] = host.to_be_bytes();
            strangers.fail([10, 0, high, low].into(), 20_000);
        }
        assert!(strangers.failed.len() <= MAX_ADDRESSES);
    }
}
