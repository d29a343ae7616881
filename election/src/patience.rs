//! How much silence a candidate bears before it suspects.

use crate::path::{Bound, Ended};
use crate::{Settings, Time};

/// An answered silence was near to suspicion from one half of the first patience on.
const NEAR: u32 = 2;
/// Patience is at least this many times the longest silence that proved harmless.
const RESERVE: u32 = 3;
/// The patience is bounded by the Lease's duration; this bounds the arithmetic.
const MOST_DOUBLINGS: u32 = 16;

/// Doubled by each wrong suspicion, and by silences that were near to one; halved after ten quiet minutes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Patience {
    doublings: u32,
    since: Time,
}

impl Patience {
    /// The silence that is borne.
    pub(crate) fn bound(&self, settings: &Settings) -> Bound {
        let longest = settings.lease_duration.max(settings.suspicion);
        let factor = 1 << self.doublings.min(MOST_DOUBLINGS);
        let time = (settings.suspicion * factor).min(longest);
        let by_time = time.as_nanos() * u128::from(settings.suspicion_probes)
            / settings.suspicion.as_nanos().max(1);
        Bound {
            time,
            probes: u32::try_from(by_time).unwrap_or(u32::MAX),
        }
    }

    /// A suspicion was wrong.
    pub(crate) fn double(&mut self, settings: &Settings, now: Time) {
        self.since = now;
        if self.bound(settings).time < settings.lease_duration {
            self.doublings += 1;
        }
    }

    /// A silence ended with an answer. One that was near to suspicion shows that silences as long as the patience are not far:
    /// bursts of loss would otherwise cost a takeover each time that the patience has to grow.
    pub(crate) fn bear(&mut self, ended: Ended, settings: &Settings, now: Time) {
        let is_near = ended.is_witnessed
            && ended.time >= settings.suspicion / NEAR
            && ended.probes >= settings.suspicion_probes / NEAR;
        if !is_near {
            return;
        }
        let wanted = ended.time * RESERVE;
        if wanted > self.bound(settings).time / 2 {
            self.since = now;
        }
        while self.bound(settings).time < wanted.min(settings.lease_duration) {
            self.doublings += 1;
        }
    }

    /// Halves after a quiet time.
    pub(crate) fn calm(&mut self, settings: &Settings, now: Time) {
        if self.doublings > 0 && now.since(self.since) >= settings.calm {
            self.doublings -= 1;
            self.since = now;
        }
    }
}
