//! Commands to a run, and which of them fit its phase.

use std::fmt;
use std::str::FromStr;

use sluice_api::{LastCommand, MAX_COMMAND_LENGTH, RolloutPhase, RolloutPolicyStatus};

/// The verb of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommandVerb {
    /// Ends the step's pause and opens its gate.
    Promote,
    /// Goes to the last step.
    PromoteFull,
    /// Gives everything back to the stable pool.
    Abort,
    /// The same, though that has no server that takes new flows.
    AbortForce,
    /// Stops the run.
    Pause,
    /// Lets it go on.
    Resume,
    /// Begins a new run after an abort.
    Retry,
}

impl CommandVerb {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Promote,
        Self::PromoteFull,
        Self::Abort,
        Self::AbortForce,
        Self::Pause,
        Self::Resume,
        Self::Retry,
    ];

    /// As a command has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Promote => "promote",
            Self::PromoteFull => "promote-full",
            Self::Abort => "abort",
            Self::AbortForce => "abort-force",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Retry => "retry",
        }
    }
}

impl fmt::Display for CommandVerb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A command as the annotation has it, `<verb>/<run>/<step>`: it counts for this run and step alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Command {
    /// The verb.
    pub verb: CommandVerb,
    /// The run's id.
    pub run: String,
    /// The step's index.
    pub step: u32,
}

/// A text that is no command.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
#[error(
    "must be <verb>/<run>/<step> with the verb promote, promote-full, abort, abort-force, pause, resume or retry and run and \
     step as in status.run.id and status.step.index"
)]
pub struct FormatError;

impl Command {
    /// The command for the run and step in force; `None` before a run has begun.
    pub fn new(verb: CommandVerb, status: &RolloutPolicyStatus) -> Option<Self> {
        Some(Self {
            verb,
            run: status.run.as_ref()?.id.clone(),
            step: status.step.as_ref()?.index,
        })
    }

    /// Whether its run and step are those in force.
    pub fn is_for(&self, status: &RolloutPolicyStatus) -> bool {
        Self::new(self.verb, status).as_ref() == Some(self)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.verb, self.run, self.step)
    }
}

impl FromStr for Command {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let mut parts = text.split('/');
        let (Some(verb), Some(run), Some(step), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(FormatError);
        };
        let verb = CommandVerb::ALL.into_iter().find(|v| v.name() == verb);
        Ok(Self {
            verb: verb.ok_or(FormatError)?,
            run: run.to_owned(),
            step: step.parse().map_err(|_| FormatError)?,
        })
    }
}

/// A command as status keeps it.
pub(crate) fn cut(text: &str) -> String {
    text.chars().take(MAX_COMMAND_LENGTH).collect()
}

/// The engine's answer to this text, if it was the last that it looked at. It looks at no text twice in a row.
pub fn answered<'a>(text: &str, status: &'a RolloutPolicyStatus) -> Option<&'a LastCommand> {
    let last = status.last_command.as_ref()?;
    (last.command == cut(text)).then_some(last)
}

/// Why a command does not fit the phase of a run.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// `abort` for a run that was aborted or rolled back.
    #[error("the stable pool has the whole share already")]
    AlreadyAborted,
    /// `retry` for any other run than one that was aborted or rolled back.
    #[error("only a run that was aborted or rolled back can be tried again")]
    NotAborted,
    /// A run that is completed, aborted or rolled back goes nowhere.
    #[error("the run is over")]
    Over,
    /// `resume` for a run that goes on by itself.
    #[error("the run is not paused")]
    NotPaused,
    /// A paused run has to be resumed first.
    #[error("the run is paused: resume it first")]
    Paused,
    /// The candidate would gain, and has nobody to serve it.
    #[error(
        "the candidate pool has no server that takes new flows, and its share would be dropped: see that its servers are ready"
    )]
    CandidateWithoutServers,
    /// The stable pool would gain, and has nobody to serve it.
    #[error(
        "the stable pool has no server that takes new flows, and the share that it gets back would be dropped: see that its \
         servers are ready, or give abort-force (kubectl sluice rollout abort --force)"
    )]
    StableWithoutServers,
}

/// Whether a run in this phase takes the command.
pub const fn check(verb: CommandVerb, phase: RolloutPhase) -> Result<(), Refusal> {
    use CommandVerb::{Abort, AbortForce, Pause, Promote, PromoteFull, Resume, Retry};
    use RolloutPhase::{Aborted, Completed, Paused, RolledBack};
    match (verb, phase) {
        (Abort | AbortForce, Aborted | RolledBack) => Err(Refusal::AlreadyAborted),
        (Abort | AbortForce, _) | (Retry, Aborted | RolledBack) | (Resume, Paused) => Ok(()),
        (Retry, _) => Err(Refusal::NotAborted),
        (_, Completed | Aborted | RolledBack) => Err(Refusal::Over),
        (Resume, _) => Err(Refusal::NotPaused),
        (_, Paused) => Err(Refusal::Paused),
        (Promote | PromoteFull | Pause, _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_comes_back_from_its_text() {
        for verb in CommandVerb::ALL {
            let command = Command {
                verb,
                run: "1f0c77ab".to_owned(),
                step: 3,
            };
            assert_eq!(command.to_string().parse(), Ok(command));
        }
        for text in [
            "",
            "promote",
            "promote/a",
            "promote/a/x",
            "promote/a/1/",
            "go/a/1",
        ] {
            assert_eq!(text.parse::<Command>(), Err(FormatError), "{text}");
        }
    }

    #[test]
    fn a_command_is_for_one_step_of_one_run() {
        let mut status: RolloutPolicyStatus = serde_json::from_value(serde_json::json!({
            "run": {"id": "1f0c77ab", "virtualServerName": "vip", "stablePoolName": "v1",
                    "candidatePoolName": "v2", "startTime": "2026-01-01T00:00:00Z"},
            "step": {"index": 1, "weight": 50, "startTime": "2026-01-01T00:00:00Z",
                     "pausedSeconds": 0, "promoted": false},
        }))
        .expect("is a status");
        let command = Command::new(CommandVerb::Promote, &status).expect("a run has begun");
        assert_eq!(command.to_string(), "promote/1f0c77ab/1");
        assert!(command.is_for(&status));
        status.step.as_mut().expect("has a step").index = 2;
        assert!(!command.is_for(&status));
        status.step.as_mut().expect("has a step").index = 1;
        status.run.as_mut().expect("has a run").id = "00000000".to_owned();
        assert!(!command.is_for(&status));
        assert!(!command.is_for(&RolloutPolicyStatus::default()));
    }

    #[test]
    fn commands_fit_phases() {
        use CommandVerb::{Abort, AbortForce, Pause, Promote, PromoteFull, Resume, Retry};
        use RolloutPhase::{Aborted, Completed, Gated, Paused, Pausing, Progressing, RolledBack};
        let running: &[CommandVerb] = &[Promote, PromoteFull, Abort, AbortForce, Pause];
        for (phase, allowed) in [
            (Progressing, running),
            (Pausing, running),
            (Gated, running),
            (Paused, &[Abort, AbortForce, Resume]),
            (Completed, &[Abort, AbortForce]),
            (Aborted, &[Retry]),
            (RolledBack, &[Retry]),
        ] {
            for verb in CommandVerb::ALL {
                let fits = check(verb, phase).is_ok();
                assert_eq!(fits, allowed.contains(&verb), "{verb} in {phase:?}");
            }
        }
    }
}
