//! Voices of a pool, added up.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::outcome::Outcome;
use crate::times::Times;

/// Clients of a pool that a node hears in a second at most: it looks at that many connections at a time.
const MAX_VOICES: u32 = 65_536;

/// The connection that speaks for a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Voice {
    /// How it went.
    pub outcome: Outcome,
    /// Time from the client's first data to the server's; `None`: either sent none.
    pub first_byte: Option<Duration>,
}

/// How clients fared with the servers of a pool.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// Clients by [`Outcome`].
    pub outcomes: [u32; Outcome::COUNT],
    /// The times until the first byte of those that were answered.
    #[serde(default)]
    pub first_bytes: Times,
}

impl Tally {
    /// Counts a voice.
    pub fn add(&mut self, voice: Voice) {
        let count = &mut self.outcomes[voice.outcome as usize];
        *count = count.saturating_add(1);
        if let Some(time) = voice.first_byte {
            self.first_bytes.add(time);
        }
    }

    /// Adds another one.
    pub fn join(&mut self, other: &Self) {
        for (count, more) in self.outcomes.iter_mut().zip(other.outcomes) {
            *count = count.saturating_add(more);
        }
        self.first_bytes.join(&other.first_bytes);
    }

    /// The same, where no number is above [`MAX_VOICES`].
    #[must_use]
    pub(crate) fn limited(mut self) -> Self {
        let counts = self.outcomes.iter_mut().chain(&mut self.first_bytes.0);
        for count in counts {
            *count = (*count).min(MAX_VOICES);
        }
        self
    }

    /// How many clients had this outcome.
    pub fn of(&self, outcome: Outcome) -> u64 {
        u64::from(self.outcomes[outcome as usize])
    }

    /// How many clients asked a server for something.
    pub fn asked(&self) -> u64 {
        let all = Outcome::ALL.into_iter();
        let asked = all.filter(|outcome| *outcome != Outcome::Unasked);
        asked.map(|outcome| self.of(outcome)).sum()
    }

    /// How many of them a server failed.
    pub fn failed(&self) -> u64 {
        let all = Outcome::ALL.into_iter();
        let failed = all.filter(|outcome| outcome.is_failure());
        failed.map(|outcome| self.of(outcome)).sum()
    }
}
