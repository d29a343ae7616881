//! Commands to a run.

use std::str::FromStr;

use sluice_api::{CommandResult, MAX_COMMAND_LENGTH, RolloutEvent, RolloutPhase};

use super::Run;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verb {
    Promote,
    PromoteFull,
    Abort,
    Pause,
    Resume,
    Retry,
}

/// `<verb>/<run>/<step>`.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Command {
    verb: Verb,
    run: String,
    step: u32,
}

const FORMAT: &str = "must be <verb>/<run>/<step> with the verb promote, promote-full, abort, pause, resume or retry and run \
                      and step as in status.run.id and status.step.index";

impl FromStr for Command {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('/');
        let (Some(verb), Some(run), Some(step), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(());
        };
        let verb = match verb {
            "promote" => Verb::Promote,
            "promote-full" => Verb::PromoteFull,
            "abort" => Verb::Abort,
            "pause" => Verb::Pause,
            "resume" => Verb::Resume,
            "retry" => Verb::Retry,
            _ => return Err(()),
        };
        Ok(Self {
            verb,
            run: run.to_owned(),
            step: step.parse().map_err(|_| ())?,
        })
    }
}

/// A command as status keeps it.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(MAX_COMMAND_LENGTH).collect()
}

impl Run<'_> {
    /// Carries out a command unless it was looked at before. Returns whether the weight in force changes by it.
    pub(super) fn command(&mut self, text: &str) -> bool {
        let known = self.status.last_command.as_ref();
        if known.is_some_and(|last| last.command == cut(text)) {
            return false;
        }
        let Ok(command) = text.parse::<Command>() else {
            self.acknowledge(text, CommandResult::Invalid, FORMAT);
            return false;
        };
        let id = self.status.run.as_ref().map(|run| run.id.clone());
        let step = self.status.step.as_ref().map(|step| step.index);
        if id.as_deref() != Some(command.run.as_str()) || step != Some(command.step) {
            let message = format!(
                "not for this run and step, which are {}/{}: remove the annotation before you give this command again",
                id.unwrap_or_default(),
                step.unwrap_or_default()
            );
            self.acknowledge(text, CommandResult::Ignored, &message);
            return false;
        }
        let weight = self.weight();
        let outcome = self.carry_out(command.verb);
        let (result, message) = match outcome {
            Ok(()) => (CommandResult::Accepted, ""),
            Err(why) => (CommandResult::Ignored, why),
        };
        self.acknowledge(text, result, message);
        self.weight() != weight
    }

    /// Once the annotation is gone, a command that was not carried out may be given again.
    pub(super) fn forget_ignored(&mut self) {
        let last = self.status.last_command.as_ref();
        if last.is_some_and(|last| last.result != CommandResult::Accepted) {
            self.status.last_command = None;
        }
    }

    fn weight(&self) -> Option<u8> {
        self.status.step.as_ref().map(|step| step.weight)
    }

    fn carry_out(&mut self, verb: Verb) -> Result<(), &'static str> {
        use RolloutPhase::{Aborted, Completed, Paused};
        match (verb, self.status.phase) {
            (Verb::Abort, Some(Aborted)) => Err("the run is aborted already"),
            (Verb::Abort, _) => {
                self.abort();
                Ok(())
            }
            (Verb::Retry, Some(Aborted)) => {
                self.start();
                Ok(())
            }
            (Verb::Retry, _) => Err("only an aborted run can be tried again"),
            (_, Some(Completed | Aborted)) => Err("the run is over"),
            (Verb::Resume, Some(Paused)) => {
                self.resume();
                Ok(())
            }
            (Verb::Resume, _) => Err("the run is not paused"),
            (_, Some(Paused)) => Err("the run is paused: resume it first"),
            (Verb::Pause, _) => {
                self.pause();
                Ok(())
            }
            (Verb::Promote, _) => {
                if let Some(step) = &mut self.status.step {
                    step.promoted = true;
                }
                self.note(RolloutEvent::Promoted);
                Ok(())
            }
            (Verb::PromoteFull, _) => {
                self.enter(self.last(), RolloutEvent::PromotedFull);
                if let Some(step) = &mut self.status.step {
                    step.promoted = true;
                }
                Ok(())
            }
        }
    }

    fn abort(&mut self) {
        if let Some(step) = &mut self.status.step {
            step.weight = 0;
            step.start_time = self.now.clone();
            step.live_time = None;
            step.pause_start_time = None;
        }
        self.status.phase = Some(RolloutPhase::Aborted);
        self.note(RolloutEvent::Aborted);
    }

    fn pause(&mut self) {
        if let Some(step) = self.status.step.clone() {
            let waited = self.waited(&step);
            if let Some(step) = &mut self.status.step {
                step.paused_seconds = waited;
                step.pause_start_time = None;
            }
        }
        self.status.phase = Some(RolloutPhase::Paused);
        self.note(RolloutEvent::Paused);
    }

    fn resume(&mut self) {
        let now = self.now.clone();
        if let Some(step) = &mut self.status.step
            && step.live_time.is_some()
        {
            step.pause_start_time = Some(now);
        }
        self.status.phase = Some(RolloutPhase::Progressing);
        self.note(RolloutEvent::Resumed);
    }
}
