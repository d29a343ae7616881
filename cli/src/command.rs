//! Commands to a run: whether one can work in the present phase, and what the operator answered.

use std::fmt;

use sluice_api::{
    CommandResult, ObjectKey, ROLLOUT_COMMAND_ANNOTATION, Reason, RolloutPhase, RolloutPolicy,
    STALLED,
};

/// What a command does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommandVerb {
    /// Ends the step's pause and opens its gate.
    Promote,
    /// Goes to the last step.
    PromoteFull,
    /// Gives everything back to the stable pool.
    Abort,
    /// Stops the run.
    Pause,
    /// Lets it go on.
    Resume,
    /// Begins a new run after an abort.
    Retry,
}

impl fmt::Display for CommandVerb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Promote => "promote",
            Self::PromoteFull => "promote-full",
            Self::Abort => "abort",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Retry => "retry",
        })
    }
}

/// A command that may be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prepared {
    /// The annotation's value.
    pub text: String,
    /// The operator has answered the same text before without carrying it out: it looks at it again only once the
    /// annotation has been gone.
    pub remove_first: bool,
}

/// Checks a command against what the operator last said of the run, by the rules of its rollout engine. The error says why
/// it cannot work and what would.
pub fn prepare(verb: CommandVerb, policy: &RolloutPolicy) -> Result<Prepared, String> {
    let key = ObjectKey::of(policy);
    let line = |verb: &str| {
        format!(
            "kubectl sluice rollout {verb} {} -n {}",
            key.name, key.namespace
        )
    };
    let status = policy.status.clone().unwrap_or_default();
    if let Some(why) = not_driven(policy) {
        return Err(why);
    }
    let (Some(run), Some(step), Some(phase)) = (&status.run, &status.step, status.phase) else {
        return Err(format!(
            "no run of RolloutPolicy {key} has begun: see that the operator is running, then {}",
            line("get")
        ));
    };
    possible(verb, phase, step.promoted).map_err(|(why, next)| match next {
        Some(next) => format!("{why}: {}", line(next)),
        None => why.to_owned(),
    })?;
    let text = format!("{verb}/{}/{}", run.id, step.index);
    let last = status.last_command.filter(|last| last.command == text);
    match last.as_ref().map(|last| last.result) {
        Some(CommandResult::Accepted) => Err(format!(
            "{text} was accepted already: see how the run goes on with {}",
            line("get")
        )),
        other => Ok(Prepared {
            text,
            remove_first: other.is_some(),
        }),
    }
}

/// A policy that is refused is not driven: the operator looks at no command for it.
fn not_driven(policy: &RolloutPolicy) -> Option<String> {
    let key = ObjectKey::of(policy);
    let status = policy.status.as_ref()?;
    let goes_on = [
        Reason::DeadlineExceeded,
        Reason::RolloutProgressing,
        Reason::RolloutWaiting,
        Reason::RolloutCompleted,
        Reason::RolloutAborted,
    ]
    .map(|reason| reason.to_string());
    let held = status.conditions.iter().find(|condition| {
        [STALLED, sluice_api::RECONCILING].contains(&condition.type_.as_str())
            && condition.status == "True"
            && !goes_on.contains(&condition.reason)
    })?;
    Some(format!(
        "RolloutPolicy {key} takes no commands while it is {} with reason {}: {}",
        held.type_, held.reason, held.message
    ))
}

/// Why not, and the command that would work.
fn possible(
    verb: CommandVerb,
    phase: RolloutPhase,
    promoted: bool,
) -> Result<(), (&'static str, Option<&'static str>)> {
    use RolloutPhase::{Aborted, Completed, Paused};
    match (verb, phase) {
        (CommandVerb::Abort, Aborted) => Err((
            "the run is aborted already; this begins a new one",
            Some("retry"),
        )),
        (CommandVerb::Retry, Aborted) | (CommandVerb::Resume, Paused) | (CommandVerb::Abort, _) => {
            Ok(())
        }
        (CommandVerb::Retry, Completed) => Err((
            "only an aborted run can be tried again, and this one is completed; this gives everything back first",
            Some("abort"),
        )),
        (CommandVerb::Retry, _) => Err((
            "only an aborted run can be tried again; this aborts it",
            Some("abort"),
        )),
        (_, Aborted) => Err((
            "the run is over: it was aborted; this begins a new one",
            Some("retry"),
        )),
        (_, Completed) => Err((
            "the run is over: the candidate has the whole share; this gives it back",
            Some("abort"),
        )),
        (CommandVerb::Resume, RolloutPhase::Gated) => Err((
            "the run is not paused: it waits at a gate; this opens it",
            Some("promote"),
        )),
        (CommandVerb::Resume, _) => Err((
            "the run is not paused, it goes on by itself; see how with",
            Some("get"),
        )),
        (_, Paused) => Err((
            "the run is paused; this lets it go on first",
            Some("resume"),
        )),
        (CommandVerb::Promote, _) if promoted => Err((
            "the step is promoted already and goes on once every live node has it; see how with",
            Some("get"),
        )),
        _ => Ok(()),
    }
}

/// The operator's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Carried out.
    Accepted,
    /// Not carried out, for this reason.
    Refused(String),
    /// Another command has taken its place in the annotation.
    Replaced(String),
}

/// What the policy says of a command that was written; `None`: nothing yet.
pub fn answer(text: &str, policy: &RolloutPolicy) -> Option<Answer> {
    let key = ObjectKey::of(policy);
    let last = policy.status.as_ref().and_then(|s| s.last_command.as_ref());
    if let Some(last) = last.filter(|last| last.command == text) {
        let remedy = format!(
            "see where the run is with kubectl sluice rollout get {} -n {}",
            key.name, key.namespace
        );
        return Some(match last.result {
            CommandResult::Accepted => Answer::Accepted,
            CommandResult::Ignored => Answer::Refused(format!(
                "the operator ignored {text}: {}; {remedy}",
                last.message
            )),
            CommandResult::Invalid => Answer::Refused(format!(
                "the operator takes {text} for no command: {}; are this program and the operator of one version?",
                last.message
            )),
        });
    }
    let annotation = policy
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(ROLLOUT_COMMAND_ANNOTATION));
    match annotation {
        Some(other) if other == text => None,
        Some(other) => Some(Answer::Replaced(format!(
            "the command {other} took the place of {text} before the operator saw it: see where the run is and give the \
             command again"
        ))),
        None => Some(Answer::Replaced(format!(
            "the annotation with {text} was removed before the operator saw it: give the command again"
        ))),
    }
}

/// Whether run or step are others than those that a command was made for.
pub fn has_moved(text: &str, policy: &RolloutPolicy) -> bool {
    let status = policy.status.as_ref();
    let now = status.and_then(|status| {
        let (run, step) = (status.run.as_ref()?, status.step.as_ref()?);
        Some(format!("/{}/{}", run.id, step.index))
    });
    now.is_none_or(|now| !text.ends_with(&now))
}
