//! The steps of a run.

use sluice_api::{CanaryStep, RolloutPolicySpec, RolloutStep, Time};

/// The steps as they are walked: the given ones, and a final one with 100 % unless the last has that.
pub fn steps(spec: &RolloutPolicySpec) -> Vec<CanaryStep> {
    let mut steps = spec.strategy.canary.steps.clone();
    if steps.last().is_none_or(|step| step.weight < 100) {
        steps.push(CanaryStep {
            weight: 100,
            pause_seconds: None,
            gate: None,
        });
    }
    steps
}

/// About how many seconds of a step's pause have passed, those in which the run was paused not counted. The operator's clock may
/// differ from that of `now`; it counts by itself and does not go by this.
pub fn paused_seconds(step: &RolloutStep, now: &Time) -> u32 {
    let running = step.pause_start_time.as_ref().map_or(0, |since| {
        let seconds = now.0.as_second() - since.0.as_second();
        u32::try_from(seconds.max(0)).unwrap_or(u32::MAX)
    });
    step.paused_seconds.saturating_add(running)
}
