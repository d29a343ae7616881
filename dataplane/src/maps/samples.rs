//! Taking samples of connections out of `SAMPLES`: those that have ended, and those whose server has let its client wait for too long.
//!
//! Programs use the slots at the same time. A slot is freed as an entry of the flow tables is: its key is exchanged for the marker of a slot
//! being written, the state is read once more, and only then the slot becomes free.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sluice_abi::{
    SAMPLE_ASKED, SAMPLE_BEGUN, SAMPLE_DATA, SAMPLE_KEY, SAMPLE_STALE_NS, SAMPLE_TIME_NS,
    SAMPLE_TIMES, SAMPLE_WORDS, SLOT_BUSY, SLOT_FREE, SampleData, SampleState,
};
use sluice_signals::Outcome;

use super::{Error, Maps, clock};

/// After this time without an answer to its SYN a connection counts as unanswered. A client that sends it again does so after a second.
const UNANSWERED_NS: u64 = 3_000_000_000;
/// After this time without data of the server a connection whose client has sent some counts as silent.
const SILENT_NS: u64 = 5_000_000_000;
/// A connection that is open for so long and was not asked anything is not waited for any more.
const IDLE_NS: u64 = 5_000_000_000;

/// The outcome of a sample in this state, which began and whose client sent data so many nanoseconds ago; `None`: it is waited for.
const fn outcome(state: SampleState, age_ns: u64, asked_ns: u64) -> Option<Outcome> {
    Some(match state {
        SampleState::Replied => Outcome::Replied,
        SampleState::Refused => Outcome::Refused,
        SampleState::Reset => Outcome::Reset,
        SampleState::Closed => Outcome::Closed,
        SampleState::Left => Outcome::Unasked,
        SampleState::Opening if age_ns >= UNANSWERED_NS => Outcome::Unanswered,
        SampleState::Asked if asked_ns >= SILENT_NS => Outcome::Silent,
        SampleState::Answered | SampleState::Open if age_ns >= IDLE_NS => Outcome::Unasked,
        _ => return None,
    })
}

/// What was seen of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// Id and epoch of the server.
    pub server: (u32, u8),
    /// The client's address.
    pub client: IpAddr,
    /// Follows from addresses and ports: by it connections of a client are told apart without regard to how they went.
    pub hash: u64,
    /// How the server met it.
    pub outcome: Outcome,
    /// Time from the client's SYN to the server's answer; `None`: there was none.
    pub handshake: Option<Duration>,
    /// Time from the client's first data to the server's; `None`: either sent none.
    pub first_byte: Option<Duration>,
}

impl Maps {
    /// Takes out the samples of which nothing more is to be expected. Those that began more than a minute ago are left out: nobody took
    /// them out in time.
    ///
    /// # Errors
    /// The clock cannot be read.
    pub fn take_samples(&self) -> Result<Vec<Sample>, Error> {
        let now = clock::now()?;
        let slots = self.samples.words().chunks_exact(SAMPLE_WORDS);
        Ok(slots.filter_map(|slot| take(slot, now)).collect())
    }
}

/// Takes the sample out of a slot if it is over.
fn take(slot: &[AtomicU64], now: u64) -> Option<Sample> {
    let word = |index: usize| slot[index].load(Ordering::Acquire);
    let key = word(SAMPLE_KEY);
    if key <= SLOT_BUSY {
        return None;
    }
    let (data, begun, asked) = (word(SAMPLE_DATA), word(SAMPLE_BEGUN), word(SAMPLE_ASKED));
    let (times, address) = (word(SAMPLE_TIMES), [word(1), word(2)]);
    let state = SampleData(data).state();
    let age = |since: u64| now.saturating_sub(since);
    let outcome = state.and_then(|state| outcome(state, age(begun), age(asked)));
    let is_stale = age(begun) > SAMPLE_STALE_NS;
    if outcome.is_none() && !is_stale && state.is_some() {
        return None;
    }
    let own = &slot[SAMPLE_KEY];
    own.compare_exchange(key, SLOT_BUSY, Ordering::AcqRel, Ordering::Acquire)
        .ok()?;
    if word(SAMPLE_DATA) != data {
        own.store(key, Ordering::Release);
        return None;
    }
    own.store(SLOT_FREE, Ordering::Release);
    let data = SampleData(data);
    let client = if data.is_ipv6() {
        let mut octets = [0; 16];
        octets[..8].copy_from_slice(&address[0].to_le_bytes());
        octets[8..].copy_from_slice(&address[1].to_le_bytes());
        Ipv6Addr::from(octets).into()
    } else {
        let [a, b, c, d, ..] = key.to_le_bytes();
        Ipv4Addr::new(a, b, c, d).into()
    };
    Some(Sample {
        server: (data.server(), data.epoch()),
        client,
        hash: scattered(key),
        outcome: outcome.filter(|_| !is_stale)?,
        handshake: measured(times & 0xffff_ffff),
        first_byte: measured(times >> 32),
    })
}

/// Ports that follow on each other are far apart by it.
const fn scattered(key: u64) -> u64 {
    let mixed = (key ^ key >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ mixed >> 33
}

fn measured(units: u64) -> Option<Duration> {
    (units != 0).then(|| Duration::from_nanos(units * SAMPLE_TIME_NS))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    /// When the connection began.
    const BEGUN: u64 = 100 * SECOND;
    const SERVER: u64 = 3 | 7 << 20;

    fn slot(state: SampleState, asked: u64, times: u64) -> Vec<AtomicU64> {
        let key = u64::from(u32::from_le_bytes([198, 51, 100, 7])) | 0x8000_9c41 << 32;
        let data = SampleData::new(SERVER, false, BEGUN).in_state(state).0;
        let words = [key, 0, 0, data, BEGUN, 0, times, asked];
        words.map(AtomicU64::new).into()
    }

    fn hash_of_port(port: u64) -> u64 {
        let slot = slot(SampleState::Replied, BEGUN, 0);
        let key = slot[0].load(Ordering::Relaxed) ^ port << 32;
        slot[0].store(key, Ordering::Relaxed);
        take(&slot, BEGUN).expect("a sample").hash
    }

    #[test]
    fn connections_of_a_client_are_told_apart_by_their_ports() {
        let [a, b, c] = [1, 2, 3].map(hash_of_port);
        assert!(a != b && b != c && a.abs_diff(b) > 1 << 32 && b.abs_diff(c) > 1 << 32);
    }

    #[test]
    fn a_sample_that_has_ended_is_taken_out_once() {
        for (state, outcome) in [
            (SampleState::Replied, Outcome::Replied),
            (SampleState::Refused, Outcome::Refused),
            (SampleState::Reset, Outcome::Reset),
            (SampleState::Closed, Outcome::Closed),
            (SampleState::Left, Outcome::Unasked),
        ] {
            let slot = slot(state, BEGUN, 0x3e8 | 0xbb8 << 32);
            let expected = Sample {
                server: (3, 7),
                client: Ipv4Addr::new(198, 51, 100, 7).into(),
                hash: scattered(slot[0].load(Ordering::Relaxed)),
                outcome,
                handshake: Some(Duration::from_micros(1_024)),
                first_byte: Some(Duration::from_micros(3_072)),
            };
            assert_eq!(take(&slot, BEGUN + SECOND), Some(expected));
            assert_eq!(take(&slot, BEGUN + SECOND), None);
            assert_eq!(slot[0].load(Ordering::Relaxed), SLOT_FREE);
        }
    }

    #[test]
    fn who_waits_is_waited_for() {
        for (state, asked, seconds, outcome) in [
            (SampleState::Opening, 0, 3, Outcome::Unanswered),
            (SampleState::Answered, 0, 5, Outcome::Unasked),
            (SampleState::Open, 0, 5, Outcome::Unasked),
            (SampleState::Asked, BEGUN + 4 * SECOND, 9, Outcome::Silent),
        ] {
            let slot = slot(state, asked, 0);
            let end = BEGUN + seconds * SECOND;
            assert_eq!(take(&slot, end - 1), None, "{state:?}");
            let sample = take(&slot, end).expect("it has waited for too long");
            assert_eq!(sample.outcome, outcome, "{state:?}");
            assert_eq!((sample.handshake, sample.first_byte), (None, None));
        }
    }

    #[test]
    fn what_nobody_took_out_in_time_says_nothing() {
        for state in [SampleState::Opening, SampleState::Replied] {
            let slot = slot(state, 0, 0);
            assert_eq!(take(&slot, BEGUN + 61 * SECOND), None);
            assert_eq!(slot[0].load(Ordering::Relaxed), SLOT_FREE);
        }
    }

    #[test]
    fn a_clock_that_is_a_moment_behind_harms_nothing() {
        let slot = slot(SampleState::Opening, 0, 0);
        assert_eq!(take(&slot, BEGUN - 1), None);
    }
}
