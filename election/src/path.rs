//! Probes on one path, and what they tell: who answers, since when nobody does, and whether the path itself works.

use std::time::Duration;

use crate::{Settings, Target, Time, WITNESS_ANSWERS};

/// A path on which nobody answers for so long does not work.
pub(crate) const PATH_GAP: Duration = Duration::from_secs(1);
/// A witness that answered within this time is there: candidates ask it once a second.
const WITNESS_MEMORY: Duration = Duration::from_millis(2500);
/// Probes by broadcast without an answer before nobody at all is taken to answer.
const BROADCASTS: u32 = 5;
/// Probes beyond those that suspicion needs before a silence is asked into less often.
const LONG_SILENCE: u32 = 50;
/// Time between probes in a long silence.
const LONG_INTERVAL: Duration = Duration::from_millis(100);

/// How much silence a candidate bears.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub(crate) time: Duration,
    pub(crate) probes: u32,
}

/// Unanswered probes.
#[derive(Clone, Debug)]
struct Silence {
    /// When the first was sent.
    since: Time,
    last: Time,
    probes: u32,
    broadcasts: u32,
    /// Answers of the witness and of other peers meanwhile.
    witnessed: u32,
}

/// An announcing interface with an address family.
#[derive(Clone, Debug, Default)]
pub(crate) struct Path {
    silence: Option<Silence>,
    sent: Option<Time>,
    /// The believed holder answered here since it took the group.
    is_proven: bool,
    /// When a director last answered for a VIP of the group.
    heard: Option<Time>,
    next_broadcast: Time,
    is_broadcasting: bool,
    witness: Option<Time>,
    next_test: Time,
    trial: Option<Time>,
    /// The last proof that the path works, and since when such proofs follow each other.
    proof: Option<(Time, Time)>,
}

/// A silence that ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) time: Duration,
    pub(crate) probes: u32,
    pub(crate) is_witnessed: bool,
}

impl Path {
    /// Another node is believed to hold: what was heard says nothing of it.
    pub(crate) fn forget_holder(&mut self) {
        self.is_proven = false;
        self.silence = None;
        self.is_broadcasting = false;
    }

    pub(crate) fn forget_silence(&mut self) {
        self.silence = None;
        self.is_broadcasting = false;
    }

    pub(crate) fn is_proven(&self) -> bool {
        self.is_proven
    }

    pub(crate) fn heard(&self) -> Option<Time> {
        self.heard
    }

    /// A director answers for a VIP. `is_holder`: the believed one.
    pub(crate) fn on_peer(&mut self, is_holder: bool, now: Time) -> Option<Ended> {
        self.prove(now);
        self.heard = Some(now);
        if !is_holder {
            self.count_witness(now);
            return None;
        }
        let ended = self.silence.take().map(|silence| Ended {
            time: now.since(silence.since),
            probes: silence.probes,
            is_witnessed: silence.witnessed >= WITNESS_ANSWERS,
        });
        let ended = ended.filter(|_| self.is_proven);
        self.is_proven = true;
        self.is_broadcasting = false;
        ended
    }

    /// The witness answers.
    pub(crate) fn on_witness(&mut self, now: Time) {
        self.prove(now);
        self.count_witness(now);
        self.trial = None;
    }

    fn count_witness(&mut self, now: Time) {
        self.witness = Some(now);
        if let Some(silence) = &mut self.silence {
            silence.witnessed = silence.witnessed.saturating_add(1);
        }
    }

    fn prove(&mut self, now: Time) {
        let since = match self.proof {
            Some((last, since)) if now.since(last) <= PATH_GAP => since,
            _ => now,
        };
        self.proof = Some((now, since));
    }

    /// Since when the path has worked without a gap.
    pub(crate) fn works_since(&self, now: Time) -> Option<Time> {
        let (last, since) = self.proof?;
        (now.since(last) <= PATH_GAP).then_some(since)
    }

    /// Whether the silence is as long as this, and nobody's probes are still under way.
    pub(crate) fn is_silent(&self, bound: Bound, settings: &Settings, now: Time) -> bool {
        self.silence.as_ref().is_some_and(|silence| {
            let under_way = now.since(silence.last) < settings.retry_interval;
            silence.probes.saturating_sub(u32::from(under_way)) >= bound.probes
                && now.since(silence.since) >= bound.time
        })
    }

    /// Whether the believed holder, who did answer here, is silent.
    pub(crate) fn is_holder_silent(&self, bound: Bound, settings: &Settings, now: Time) -> bool {
        self.is_proven && self.is_silent(bound, settings, now)
    }

    /// Whether no director at all answers.
    pub(crate) fn is_quiet(&self, bound: Bound, settings: &Settings, now: Time) -> bool {
        let is_asked = self
            .silence
            .as_ref()
            .is_some_and(|silence| silence.broadcasts >= BROADCASTS);
        let is_heard = self
            .heard
            .is_some_and(|heard| now.since(heard) < bound.time);
        is_asked && !is_heard && self.is_silent(bound, settings, now)
    }

    /// Whether others answered here during the silence, and lately: the holder is silent, not this path. True without a
    /// silence.
    pub(crate) fn is_witnessed(&self, settings: &Settings, now: Time) -> bool {
        let Some(silence) = &self.silence else {
            return true;
        };
        let is_recent = self
            .witness
            .is_some_and(|witness| now.since(witness) <= settings.suspicion);
        is_recent && silence.witnessed >= WITNESS_ANSWERS
    }

    /// When a candidate's next probe is due.
    pub(crate) fn next_probe(&self, interval: Duration, bound: Bound, settings: &Settings) -> Time {
        let Some(sent) = self.sent else {
            return Time::default();
        };
        match &self.silence {
            None => (sent + interval).min(self.next_broadcast.max(sent + settings.retry_interval)),
            Some(silence) if silence.probes >= bound.probes.saturating_add(LONG_SILENCE) => {
                sent + LONG_INTERVAL
            }
            Some(_) => sent + settings.retry_interval,
        }
    }

    /// Sends a candidate's probe. A silence is asked into by unicast until suspicion is possible, and by broadcast from then
    /// on; one that began with a broadcast goes on so, since unicast answers would hide that broadcasts get lost.
    pub(crate) fn probe(
        &mut self,
        holder: Option<&str>,
        settings: &Settings,
        now: Time,
    ) -> (Target, Option<Target>) {
        if self.next_broadcast <= now {
            self.next_broadcast = now + settings.candidate_broadcast;
            self.is_broadcasting |= self.silence.is_none();
        }
        let is_second = self.silence.is_some();
        let silence = self.silence.get_or_insert(Silence {
            since: now,
            last: now,
            probes: 0,
            broadcasts: 0,
            witnessed: 0,
        });
        let unicast =
            holder.filter(|_| !self.is_broadcasting && silence.probes < settings.suspicion_probes);
        let target = unicast.map_or(Target::Broadcast, |name| Target::Peer(name.to_owned()));
        silence.broadcasts += u32::from(unicast.is_none());
        silence.probes += 1;
        silence.last = now;
        self.sent = Some(now);
        (target, is_second.then_some(Target::Witness))
    }

    /// When the witness is asked next though nobody is silent.
    pub(crate) fn next_test(&self) -> Time {
        self.next_test
    }

    pub(crate) fn test(&mut self, interval: Duration, now: Time) {
        self.next_test = now + interval;
    }

    /// Begins a hold. Where the witness answered lately, it is to answer again.
    pub(crate) fn begin_trial(&mut self, has_trial: bool, now: Time) {
        let is_there = self
            .witness
            .is_some_and(|witness| now.since(witness) <= WITNESS_MEMORY);
        self.trial = (has_trial && is_there).then_some(now);
        self.next_test = now;
    }

    /// Since when the witness has been silent in a trial.
    pub(crate) fn trial(&self) -> Option<Time> {
        self.trial
    }

    /// A holder asks for its own VIPs by [`Target::Broadcast`].
    pub(crate) fn next_broadcast(&self) -> Time {
        self.next_broadcast
    }

    pub(crate) fn broadcast(&mut self, interval: Duration, now: Time) {
        self.next_broadcast = now + interval;
    }

    pub(crate) fn broadcast_by(&mut self, time: Time) {
        self.next_broadcast = self.next_broadcast.min(time);
    }
}
