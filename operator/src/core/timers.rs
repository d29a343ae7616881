//! How long the steps of rollouts have stood as they do, on the own monotonic clock.
//!
//! A point of time that another host wrote says nothing here: clocks differ. What an operator saw pass of a pause is stored
//! as seconds now and then, so that of a pause that outlives it at most the part since the last time is waited for again.

use std::collections::BTreeMap;

use sluice_api::{ObjectKey, RolloutPolicyStatus, Time};

/// When the steps of policies began to stand as they do.
#[derive(Debug, Default)]
pub struct Timers(BTreeMap<ObjectKey, Timer>);

#[derive(Debug)]
struct Timer {
    stand: Stand,
    /// Seconds of the pause that the status counts.
    counted_seconds: u32,
    since_ms: u64,
}

/// How a step stands.
#[derive(PartialEq, Eq, Debug)]
struct Stand {
    run: String,
    index: u32,
    start: Time,
    is_live: bool,
    is_pausing: bool,
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
        })
    }
}

impl Timers {
    /// Seconds for which a policy's step has stood as it does, beyond those that its status counts.
    pub fn look(
        &mut self,
        policy: &ObjectKey,
        status: Option<&RolloutPolicyStatus>,
        now_ms: u64,
    ) -> u32 {
        let Some(stand) = status.and_then(Stand::of) else {
            self.forget(policy);
            return 0;
        };
        let step = status.and_then(|status| status.step.as_ref());
        let counted_seconds = step.map_or(0, |step| step.paused_seconds);
        match self.0.get_mut(policy) {
            Some(timer) if timer.stand == stand => {
                // What the status counts by now is not counted twice.
                let more = counted_seconds.saturating_sub(timer.counted_seconds);
                timer.since_ms = (timer.since_ms + u64::from(more) * 1000).min(now_ms);
                timer.counted_seconds = counted_seconds;
                let passed_ms = now_ms - timer.since_ms;
                u32::try_from(passed_ms / 1000).unwrap_or(u32::MAX)
            }
            _ => {
                let timer = Timer {
                    stand,
                    counted_seconds,
                    since_ms: now_ms,
                };
                self.0.insert(policy.clone(), timer);
                0
            }
        }
    }

    /// Forgets a policy that is gone.
    pub fn forget(&mut self, policy: &ObjectKey) {
        self.0.remove(policy);
    }
}
