//! Rolling back by itself, and the bake.

use sluice_api::{
    Rollback, RollbackReason, RolloutEvent, RolloutPhase, RolloutPolicyStatus, SignalAnalysis,
};

use super::Run;

/// A candidate that has a share and no server that takes new flows is rolled back after this time, as the operator saw it pass.
pub const UNSERVED_SECONDS: u32 = 10;

/// What speaks against a candidate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// In one word.
    pub reason: RollbackReason,
    /// For people.
    pub message: String,
}

/// Whether a run is completed and still rolled back if its candidate fails its clients.
pub fn is_baking(status: &RolloutPolicyStatus) -> bool {
    let step = status.step.as_ref();
    status.phase == Some(RolloutPhase::Completed)
        && step.is_some_and(|step| step.pause_start_time.is_some())
}

/// The candidate's percentage, while it has a share that may be taken from it: from when the run begins until the bake is over.
pub fn judged_weight(status: &RolloutPolicyStatus) -> Option<u8> {
    let is_judged = match status.phase? {
        RolloutPhase::Aborted | RolloutPhase::RolledBack => false,
        RolloutPhase::Completed => is_baking(status),
        RolloutPhase::Progressing
        | RolloutPhase::Pausing
        | RolloutPhase::Gated
        | RolloutPhase::Paused => true,
    };
    let weight = status.step.as_ref()?.weight;
    (is_judged && weight > 0).then_some(weight)
}

impl Run<'_> {
    /// Rolls back if something speaks against the candidate, whatever the run does just now. Returns whether something does: a stable
    /// pool that cannot take the share back holds the run.
    pub(super) fn judge(&mut self, fault: Option<&Fault>, unserved_seconds: u32) -> bool {
        let is_judged = judged_weight(&self.status).is_some();
        let is_unserved = is_judged && !self.ready.candidate;
        let was_unserved = self.status.step.as_mut().is_some_and(|step| {
            let was_unserved = step.unserved;
            step.unserved = is_unserved;
            was_unserved
        });
        if !is_judged || self.spec.signal_analysis != SignalAnalysis::RollBack {
            return false;
        }
        let is_lost = is_unserved && was_unserved && unserved_seconds >= UNSERVED_SECONDS;
        let lost = is_lost.then(|| Fault {
            reason: RollbackReason::NoServers,
            message: format!(
                "the candidate has had no server that takes new flows for {UNSERVED_SECONDS} s"
            ),
        });
        let Some(fault) = fault.cloned().or(lost) else {
            return false;
        };
        self.lacks_servers = None;
        if self.may_change(self.weight().unwrap_or_default(), 0) {
            self.roll_back(fault);
        }
        true
    }

    fn roll_back(&mut self, fault: Fault) {
        self.status.rollback = Some(Rollback {
            time: self.now.clone(),
            reason: fault.reason,
            message: fault.message,
            weight: self.weight().unwrap_or_default(),
        });
        self.give_back(RolloutPhase::RolledBack, RolloutEvent::RolledBack);
    }

    /// Gives the whole share to the stable pool.
    pub(super) fn give_back(&mut self, phase: RolloutPhase, event: RolloutEvent) {
        self.passed_seconds = 0;
        if let Some(step) = &mut self.status.step {
            step.weight = 0;
            step.start_time = self.now.clone();
            step.live_time = None;
            step.pause_start_time = None;
            step.unserved = false;
        }
        self.status.phase = Some(phase);
        self.note(event);
    }

    /// The last step is in force: what is left is the bake, unless nobody looks.
    pub(super) fn complete(&mut self) {
        self.passed_seconds = 0;
        let bakes = self.spec.bake_seconds > 0 && self.spec.signal_analysis != SignalAnalysis::Off;
        let since = bakes.then(|| self.now.clone());
        if let Some(step) = &mut self.status.step {
            step.paused_seconds = 0;
            step.pause_start_time = since;
        }
        self.status.phase = Some(RolloutPhase::Completed);
        self.note(RolloutEvent::Completed);
    }

    /// Ends the bake when it has lasted long enough.
    pub(super) fn bake(&mut self) {
        if !is_baking(&self.status) {
            return;
        }
        if self.paused_seconds() < self.spec.bake_seconds {
            return self.note_pause(self.spec.bake_seconds);
        }
        if let Some(step) = &mut self.status.step {
            step.pause_start_time = None;
        }
        self.note(RolloutEvent::Baked);
    }
}
