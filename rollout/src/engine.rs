//! The rollout engine: moves a run one state further. Pure; all it knows is in [`RolloutPolicyStatus`].
//!
//! ```text
//!             every live node            pause over             gate open
//! enter(step) ─────────────► Pausing ─────────────► Gated ─────────────► enter(next) … ► Completed
//! Progressing    acknowledged    │  ▲ resume          │ promote, promote-full
//!                          pause ▼  │                 ▼
//!                               Paused        from any state: abort ► Aborted ─ retry ► a new run
//! ```
//!
//! A step that the nodes no longer all run (a node joined, a weight was edited) is not left before they do.

mod carry_out;
#[cfg(test)]
mod tests;

use sluice_api::{
    CanaryStep, CommandResult, HistoryEntry, LastCommand, MAX_HISTORY, RolloutEvent, RolloutPhase,
    RolloutPolicySpec, RolloutPolicyStatus, RolloutRun, RolloutStep, Time,
};

use crate::command::cut;
use crate::steps::{paused_seconds, steps};

/// A step that the nodes have not acknowledged after this time is told as stalled. It goes on when they do.
pub const STEP_DEADLINE_SECONDS: i64 = 600;

/// The engine's input besides spec and status.
#[derive(Clone, Copy, Debug)]
pub struct Observation<'a> {
    /// Whole seconds count.
    pub now: &'a Time,
    /// Every live node runs the weights that the status asks for, and there is a live node.
    pub live: bool,
    /// The command annotation.
    pub command: Option<&'a str>,
}

/// Moves the run one state further: at most one step.
pub fn advance(
    spec: &RolloutPolicySpec,
    status: &RolloutPolicyStatus,
    observed: Observation<'_>,
) -> RolloutPolicyStatus {
    let mut run = Run {
        steps: steps(spec),
        spec,
        now: observed.now,
        status: status.clone(),
    };
    let mut live = observed.live;
    if !run.is_current() {
        run.start();
        live = false;
    } else if run.follow_edits() {
        live = false;
    }
    match observed.command {
        Some(text) => live &= !run.command(text),
        None => run.forget_ignored(),
    }
    run.progress(live);
    run.status
}

struct Run<'a> {
    spec: &'a RolloutPolicySpec,
    steps: Vec<CanaryStep>,
    now: &'a Time,
    status: RolloutPolicyStatus,
}

impl Run<'_> {
    fn is_current(&self) -> bool {
        self.status.step.is_some()
            && self.status.run.as_ref().is_some_and(|run| {
                run.virtual_server_name == self.spec.virtual_server_name
                    && run.stable_pool_name == self.spec.stable_pool_name
                    && run.candidate_pool_name == self.spec.candidate_pool_name
            })
    }

    fn start(&mut self) {
        let previous = self.status.run.as_ref().map(|run| run.id.clone());
        let finished = matches!(
            self.status.phase,
            None | Some(RolloutPhase::Completed | RolloutPhase::Aborted)
        );
        if previous.is_some() && !finished {
            self.note(RolloutEvent::Superseded);
        }
        self.status.run = Some(RolloutRun {
            id: self.new_id(previous.as_deref().unwrap_or_default()),
            virtual_server_name: self.spec.virtual_server_name.clone(),
            stable_pool_name: self.spec.stable_pool_name.clone(),
            candidate_pool_name: self.spec.candidate_pool_name.clone(),
            start_time: self.now.clone(),
        });
        self.enter(0, RolloutEvent::Started);
    }

    /// FNV-1a, short enough to be typed.
    fn new_id(&self, previous: &str) -> String {
        let text = format!(
            "{}/{}/{}/{}/{previous}",
            self.spec.virtual_server_name,
            self.spec.stable_pool_name,
            self.spec.candidate_pool_name,
            self.now.0.as_second(),
        );
        let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        format!("{hash:08x}")
    }

    fn last(&self) -> u32 {
        u32::try_from(self.steps.len() - 1).unwrap_or(u32::MAX)
    }

    fn enter(&mut self, index: u32, event: RolloutEvent) {
        let index = index.min(self.last());
        let weight = self.steps[index as usize].weight;
        self.status.step = Some(RolloutStep {
            index,
            weight,
            start_time: self.now.clone(),
            live_time: None,
            pause_start_time: None,
            paused_seconds: 0,
            promoted: false,
        });
        self.status.phase = Some(RolloutPhase::Progressing);
        self.note(event);
    }

    /// Takes over edited steps without a restart. Returns whether the weight in force changes by it.
    fn follow_edits(&mut self) -> bool {
        if self.is_over() {
            return false;
        }
        let last = self.last();
        let Some(step) = &mut self.status.step else {
            return false;
        };
        let index = step.index.min(last);
        let weight = self.steps[index as usize].weight;
        if step.index == index && step.weight == weight {
            return false;
        }
        step.index = index;
        step.weight = weight;
        step.live_time = None;
        step.pause_start_time = None;
        step.paused_seconds = 0;
        step.start_time = self.now.clone();
        self.note(RolloutEvent::StepEntered);
        true
    }

    fn is_over(&self) -> bool {
        matches!(
            self.status.phase,
            Some(RolloutPhase::Completed | RolloutPhase::Aborted)
        )
    }

    fn progress(&mut self, live: bool) {
        let paused = self.status.phase == Some(RolloutPhase::Paused);
        let aborted = self.status.phase == Some(RolloutPhase::Aborted);
        let now = self.now.clone();
        let Some(step) = &mut self.status.step else {
            return;
        };
        if live && step.live_time.is_none() {
            step.live_time = Some(now.clone());
            if !paused && !aborted {
                step.pause_start_time = Some(now);
            }
            self.note(RolloutEvent::StepLive);
        }
        if paused || self.is_over() {
            return;
        }
        let Some(step) = &self.status.step else {
            return;
        };
        let (index, promoted) = (step.index, step.promoted);
        let plan = &self.steps[index.min(self.last()) as usize];
        let phase = if step.live_time.is_none() {
            RolloutPhase::Progressing
        } else if !promoted
            && paused_seconds(step, self.now) < plan.pause_seconds.unwrap_or_default()
        {
            RolloutPhase::Pausing
        } else if !promoted && plan.gate.is_some() {
            RolloutPhase::Gated
        } else if !live {
            RolloutPhase::Progressing
        } else if index < self.last() {
            return self.enter(index + 1, RolloutEvent::StepEntered);
        } else {
            self.note(RolloutEvent::Completed);
            RolloutPhase::Completed
        };
        self.status.phase = Some(phase);
    }

    fn note(&mut self, event: RolloutEvent) {
        let (Some(run), Some(step)) = (&self.status.run, &self.status.step) else {
            return;
        };
        let entry = HistoryEntry {
            time: self.now.clone(),
            run: run.id.clone(),
            event,
            step: step.index,
            weight: step.weight,
        };
        let history = &mut self.status.history;
        history.push(entry);
        let excess = history.len().saturating_sub(MAX_HISTORY);
        history.drain(..excess);
    }

    fn acknowledge(&mut self, text: &str, result: CommandResult, message: &str) {
        self.status.last_command = Some(LastCommand {
            command: cut(text),
            result,
            message: message.to_owned(),
            time: self.now.clone(),
        });
    }
}
