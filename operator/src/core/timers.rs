//! How long the steps of rollouts have stood as they do, on the own monotonic clock.
//!
//! A point of time that another host wrote says nothing here: clocks differ. What an operator saw pass of a pause is stored
//! as seconds now and then, so that of a pause that outlives it at most the part since the last time is waited for again.

use std::collections::BTreeMap;

use sluice_api::{ObjectKey, RolloutPhase, RolloutPolicyStatus, Time};

/// When the steps of policies began to stand as they do.
#[derive(Debug, Default)]
pub struct Timers(BTreeMap<ObjectKey, Timer>);

/// For how long the step of a policy has been so.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stood {
    /// Seconds for which it has stood as it does, beyond those that the status counts.
    pub seconds: u32,
    /// Seconds for which the status has said that the candidate is unserved.
    pub unserved_seconds: u32,
}

#[derive(Debug)]
struct Timer {
    stand: Stand,
    /// Seconds of the pause that the status counts.
    counted_seconds: u32,
    since_ms: u64,
    /// Since when the candidate has been unserved.
    unserved_ms: Option<u64>,
}

/// How a step stands.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Stand {
    run: String,
    index: u32,
    start: Time,
    is_live: bool,
    is_pausing: bool,
    is_completed: bool,
}

impl Stand {
    fn of(status: &RolloutPolicyStatus) -> Option<Self> {
        let (run, step) = (status.run.as_ref()?, status.step.as_ref()?);
        Some(Self {
            run: run.id.clone(),
            index: step.index,
            start: step.start_time.clone(),
            is_live: step.live_time.is_some(),
            is_pausing: step.pause_start_time.is_some(),
            is_completed: status.phase == Some(RolloutPhase::Completed),
        })
    }
}

impl Timers {
    /// For how long a policy's step has been as it is.
    pub fn look(
        &mut self,
        policy: &ObjectKey,
        status: Option<&RolloutPolicyStatus>,
        now_ms: u64,
    ) -> Stood {
        let Some(stand) = status.and_then(Stand::of) else {
            self.forget(policy);
            return Stood::default();
        };
        let step = status.and_then(|status| status.step.as_ref());
        let counted_seconds = step.map_or(0, |step| step.paused_seconds);
        let is_unserved = step.is_some_and(|step| step.unserved);
        let timer = self.0.entry(policy.clone()).or_insert_with(|| Timer {
            stand: stand.clone(),
            counted_seconds,
            since_ms: now_ms,
            unserved_ms: None,
        });
        if timer.stand == stand {
            // What the status counts by now is not counted twice.
            let more = counted_seconds.saturating_sub(timer.counted_seconds);
            timer.since_ms = (timer.since_ms + u64::from(more) * 1000).min(now_ms);
        } else {
            timer.stand = stand;
            timer.since_ms = now_ms;
        }
        timer.counted_seconds = counted_seconds;
        timer.unserved_ms = is_unserved.then(|| timer.unserved_ms.unwrap_or(now_ms));
        Stood {
            seconds: seconds(now_ms - timer.since_ms),
            unserved_seconds: seconds(now_ms - timer.unserved_ms.unwrap_or(now_ms)),
        }
    }

    /// Forgets a policy that is gone.
    pub fn forget(&mut self, policy: &ObjectKey) {
        self.0.remove(policy);
    }
}

fn seconds(ms: u64) -> u32 {
    u32::try_from(ms / 1000).unwrap_or(u32::MAX)
}
