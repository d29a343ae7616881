//! The effects of commands on a run.

use sluice_api::{CommandResult, RolloutEvent, RolloutPhase};

use super::Run;
use crate::command::{Command, CommandVerb, Refusal, answered, check};

impl Run<'_> {
    /// Carries out a command unless it was looked at before. `in_force` is the candidate's percentage. Returns whether the weight
    /// changes by the command.
    pub(super) fn command(&mut self, text: &str, in_force: u8) -> bool {
        if answered(text, &self.status).is_some() {
            return false;
        }
        let command = match text.parse::<Command>() {
            Ok(command) => command,
            Err(error) => {
                self.acknowledge(text, CommandResult::Invalid, &error.to_string());
                return false;
            }
        };
        if !command.is_for(&self.status) {
            let run = self.status.run.as_ref().map(|run| run.id.as_str());
            let step = self.status.step.as_ref().map(|step| step.index);
            let message = format!(
                "not for this run and step, which are {}/{}: remove the annotation before you give this command again",
                run.unwrap_or_default(),
                step.unwrap_or_default()
            );
            self.acknowledge(text, CommandResult::Ignored, &message);
            return false;
        }
        let weight = self.weight();
        let held = self.lacks_servers;
        let outcome = self.carry_out(command.verb, in_force);
        // A command that is refused holds nothing, and one that is carried out goes before what is held.
        self.lacks_servers = held.filter(|_| self.weight() == weight);
        let (result, message) = match outcome {
            Ok(()) => (CommandResult::Accepted, String::new()),
            Err(refusal) => (CommandResult::Ignored, refusal.to_string()),
        };
        self.acknowledge(text, result, &message);
        self.weight() != weight
    }

    /// Once the annotation is gone, a command that was not carried out may be given again.
    pub(super) fn forget_ignored(&mut self) {
        let last = self.status.last_command.as_ref();
        if last.is_some_and(|last| last.result != CommandResult::Accepted) {
            self.status.last_command = None;
        }
    }

    pub(super) fn weight(&self) -> Option<u8> {
        self.status.step.as_ref().map(|step| step.weight)
    }

    fn carry_out(&mut self, verb: CommandVerb, in_force: u8) -> Result<(), Refusal> {
        check(verb, self.status.phase.unwrap_or(RolloutPhase::Progressing))?;
        let now = self.weight().unwrap_or_default();
        match verb {
            CommandVerb::Abort if !self.may_change(now, 0) => {
                return Err(Refusal::StableWithoutServers);
            }
            CommandVerb::Abort | CommandVerb::AbortForce => {
                self.give_back(RolloutPhase::Aborted, RolloutEvent::Aborted);
            }
            CommandVerb::Retry => {
                if !self.start(in_force) {
                    return Err(Refusal::CandidateWithoutServers);
                }
            }
            CommandVerb::Resume => self.resume(),
            CommandVerb::Pause => self.pause(),
            CommandVerb::Promote => {
                self.promote();
                self.note(RolloutEvent::Promoted);
            }
            CommandVerb::PromoteFull if !self.may_change(now, 100) => {
                return Err(Refusal::CandidateWithoutServers);
            }
            CommandVerb::PromoteFull => {
                self.enter(self.last(), RolloutEvent::PromotedFull);
                self.promote();
            }
        }
        Ok(())
    }

    fn promote(&mut self) {
        if let Some(step) = &mut self.status.step {
            step.promoted = true;
        }
    }

    fn pause(&mut self) {
        let seconds = self.paused_seconds();
        if let Some(step) = &mut self.status.step {
            step.paused_seconds = seconds;
            step.pause_start_time = None;
        }
        self.passed_seconds = 0;
        self.status.phase = Some(RolloutPhase::Paused);
        self.note(RolloutEvent::Paused);
    }

    fn resume(&mut self) {
        let now = self.now.clone();
        self.passed_seconds = 0;
        if let Some(step) = &mut self.status.step
            && step.live_time.is_some()
        {
            step.pause_start_time = Some(now);
        }
        self.status.phase = Some(RolloutPhase::Progressing);
        self.note(RolloutEvent::Resumed);
    }
}
