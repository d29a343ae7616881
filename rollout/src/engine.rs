//! The rollout engine: moves a run one state further. Pure; all it knows is in [`RolloutPolicyStatus`].
//!
//! ```text
//!             every live node            pause over             gate open
//! enter(step) ─────────────► Pausing ─────────────► Gated ─────────────► enter(next) … ► Completed
//! Progressing    acknowledged    │  ▲ resume          │ promote, promote-full
//!                          pause ▼  │                 ▼
//!                               Paused        from any state: abort ► Aborted ─ retry ► a new run
//!                                             from any state, and in the bake after completion:
//!                                             the candidate fails its clients ► RolledBack ─ retry ► a new run
//! ```
//!
//! A step that the nodes no longer all run (a node joined, a weight was edited) is not left before they do. Neither pool gains
//! weight before it has a server that takes new flows, and no step is left while both pools may fail for a common cause: until then the
//! run stays as it is.

mod carry_out;
mod judge;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;

use sluice_api::{
    CanaryStep, CommandResult, HistoryEntry, LastCommand, MAX_HISTORY, RolloutEvent, RolloutPhase,
    RolloutPolicySpec, RolloutPolicyStatus, RolloutRun, RolloutStep, SignalAnalysis, Time,
};

pub use self::judge::{Fault, UNSERVED_SECONDS, is_baking, judged_weight};
use crate::command::cut;
use crate::steps::steps;

/// A step that the nodes have not acknowledged after this time is told as stalled. It goes on when they do.
pub const STEP_DEADLINE_SECONDS: u32 = 600;
/// A pause that runs is noted after this part of it, but within these seconds: that much of it is waited for again after a
/// restart at most.
const NOTED_PART: u32 = 10;
const NOTED_SECONDS: (u32, u32) = (10, 600);

/// The engine's input besides spec and status.
#[derive(Clone, Copy, Debug)]
pub struct Observation<'a> {
    /// For people to read: hosts' clocks differ. Whole seconds count.
    pub now: &'a Time,
    /// Seconds that the operator saw pass while the step stood as it does, beyond those that the status counts.
    pub passed_seconds: u32,
    /// Every live node runs the weights that the status asks for, and there is a live node.
    pub live: bool,
    /// The command annotation.
    pub command: Option<&'a str>,
    /// The candidate's percentage of the share in force.
    pub weight: u8,
    /// Which pools have servers that take new flows.
    pub ready: Sides,
    /// Seconds that the operator saw pass since the status first said that the candidate is unserved.
    pub unserved_seconds: u32,
    /// What speaks against the candidate.
    pub fault: Option<&'a Fault>,
    /// Whether the candidate fails, and so may the stable pool: nobody gains weight before that is known.
    pub doubtful: bool,
}

/// One of the two pools of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The stable pool.
    Stable,
    /// The candidate.
    Candidate,
}

/// What holds for each of the two pools.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sides {
    /// For the stable pool.
    pub stable: bool,
    /// For the candidate.
    pub candidate: bool,
}

/// The outcome of [`advance`].
#[derive(Clone, PartialEq, Debug)]
pub struct Advanced {
    /// The run as it is now.
    pub status: RolloutPolicyStatus,
    /// The pool that is to gain weight next, and waits for a server that takes new flows.
    pub lacks_servers: Option<Side>,
}

/// Moves the run one state further: at most one step.
pub fn advance(
    spec: &RolloutPolicySpec,
    status: &RolloutPolicyStatus,
    observed: Observation<'_>,
) -> Advanced {
    let mut run = Run {
        steps: steps(spec),
        spec,
        now: observed.now,
        passed_seconds: observed.passed_seconds,
        ready: observed.ready,
        doubtful: observed.doubtful && spec.signal_analysis == SignalAnalysis::RollBack,
        status: status.clone(),
        lacks_servers: None,
    };
    run.go_on(observed);
    Advanced {
        status: run.status,
        lacks_servers: run.lacks_servers,
    }
}

struct Run<'a> {
    spec: &'a RolloutPolicySpec,
    steps: Vec<CanaryStep>,
    now: &'a Time,
    passed_seconds: u32,
    ready: Sides,
    doubtful: bool,
    status: RolloutPolicyStatus,
    lacks_servers: Option<Side>,
}

impl Run<'_> {
    fn go_on(&mut self, observed: Observation<'_>) {
        let run = self.run_id();
        let mut live = observed.live;
        if !self.is_current() {
            // Nothing is begun yet that a command could be for.
            if !self.start(observed.weight) {
                return;
            }
            live = false;
        } else if self.follow_edits() {
            live = false;
        }
        match observed.command {
            Some(text) => live &= !self.command(text, observed.weight),
            None => self.forget_ignored(),
        }
        // Of a run that begins nothing has been seen.
        let fault = observed.fault.filter(|_| self.run_id() == run);
        if self.judge(fault, observed.unserved_seconds) {
            return;
        }
        if self.lacks_servers.is_none() {
            self.progress(live);
        }
    }

    /// Whether the candidate may have this percentage instead of that: whoever gains by it must have servers.
    fn may_change(&mut self, from: u8, to: u8) -> bool {
        let (side, is_ready) = match to.cmp(&from) {
            Ordering::Equal => return true,
            Ordering::Greater => (Side::Candidate, self.ready.candidate),
            Ordering::Less => (Side::Stable, self.ready.stable),
        };
        self.lacks_servers = (!is_ready).then_some(side);
        is_ready
    }

    fn is_current(&self) -> bool {
        self.status.step.is_some()
            && self.status.run.as_ref().is_some_and(|run| {
                run.virtual_server_name == self.spec.virtual_server_name
                    && run.stable_pool_name == self.spec.stable_pool_name
                    && run.candidate_pool_name == self.spec.candidate_pool_name
            })
    }

    /// Begins a run, if the candidate may have the weight of the first step instead of this one.
    fn start(&mut self, weight: u8) -> bool {
        if !self.may_change(weight, self.steps[0].weight) {
            return false;
        }
        let previous = self.run_id();
        let finished = matches!(
            self.status.phase,
            None | Some(RolloutPhase::Completed | RolloutPhase::Aborted | RolloutPhase::RolledBack)
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
        self.status.rollback = None;
        self.enter(0, RolloutEvent::Started);
        true
    }

    fn run_id(&self) -> Option<String> {
        self.status.run.as_ref().map(|run| run.id.clone())
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
        self.passed_seconds = 0;
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
            unserved: false,
        });
        self.status.phase = Some(RolloutPhase::Progressing);
        self.note(event);
    }

    /// Takes over edited steps without a restart, once whoever gains by it has servers. Returns whether the weight in force
    /// changes by it.
    fn follow_edits(&mut self) -> bool {
        if self.is_over() {
            return false;
        }
        let last = self.last();
        let Some((index, before)) = self.status.step.as_ref().map(|s| (s.index, s.weight)) else {
            return false;
        };
        let weight = self.steps[index.min(last) as usize].weight;
        if index <= last && before == weight || !self.may_change(before, weight) {
            return false;
        }
        let index = index.min(last);
        self.passed_seconds = 0;
        let Some(step) = &mut self.status.step else {
            return false;
        };
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
            Some(RolloutPhase::Completed | RolloutPhase::Aborted | RolloutPhase::RolledBack)
        )
    }

    fn progress(&mut self, live: bool) {
        let paused = self.status.phase == Some(RolloutPhase::Paused);
        let is_over = self.is_over();
        let now = self.now.clone();
        let Some(step) = &mut self.status.step else {
            return;
        };
        if live && step.live_time.is_none() {
            step.live_time = Some(now.clone());
            self.passed_seconds = 0;
            if !paused && !is_over {
                step.pause_start_time = Some(now);
            }
            self.note(RolloutEvent::StepLive);
        }
        if paused || is_over {
            return self.bake();
        }
        let Some(step) = &self.status.step else {
            return;
        };
        let (index, promoted) = (step.index, step.promoted);
        let plan = &self.steps[index.min(self.last()) as usize];
        let pause_seconds = plan.pause_seconds.unwrap_or_default();
        let phase = if step.live_time.is_none() {
            RolloutPhase::Progressing
        } else if !promoted && self.paused_seconds() < pause_seconds {
            self.note_pause(pause_seconds);
            RolloutPhase::Pausing
        } else if !promoted && plan.gate.is_some() {
            RolloutPhase::Gated
        } else if index < self.last() {
            let (from, to) = (step.weight, self.steps[index as usize + 1].weight);
            // What lacks is told first: nodes come and go, and the step waits all the same.
            if self.may_change(from, to) && live && !self.doubtful {
                return self.enter(index + 1, RolloutEvent::StepEntered);
            }
            RolloutPhase::Progressing
        } else if !live {
            RolloutPhase::Progressing
        } else {
            return self.complete();
        };
        self.status.phase = Some(phase);
    }

    /// Seconds of the step's pause that have passed.
    fn paused_seconds(&self) -> u32 {
        self.status.step.as_ref().map_or(0, |step| {
            let is_running = step.pause_start_time.is_some();
            let more = if is_running { self.passed_seconds } else { 0 };
            step.paused_seconds.saturating_add(more)
        })
    }

    /// Counts in status what has passed of a pause, if it is enough.
    fn note_pause(&mut self, pause_seconds: u32) {
        let (least, most) = NOTED_SECONDS;
        if self.passed_seconds < (pause_seconds / NOTED_PART).clamp(least, most) {
            return;
        }
        let seconds = self.paused_seconds();
        let now = self.now.clone();
        if let Some(step) = &mut self.status.step {
            step.paused_seconds = seconds;
            step.pause_start_time = Some(now);
        }
        self.passed_seconds = 0;
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
