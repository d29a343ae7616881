//! Commands to a run: whether one can work in the present phase, and what the operator answered.

use sluice_api::{
    CommandResult, ObjectKey, ROLLOUT_COMMAND_ANNOTATION, Reason, RolloutPhase, RolloutPolicy,
    STALLED,
};
use sluice_rollout::{Command, CommandVerb, Refusal, answered, check};

/// A command that may be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prepared {
    /// The annotation's value.
    pub command: Command,
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
    let (Some(command), Some(phase)) = (Command::new(verb, &status), status.phase) else {
        return Err(format!(
            "no run of RolloutPolicy {key} has begun: see that the operator is running, then {}",
            line("get")
        ));
    };
    let promoted = status.step.as_ref().is_some_and(|step| step.promoted);
    possible(verb, phase, promoted).map_err(|(why, next)| format!("{why}: {}", line(next)))?;
    let last = answered(&command.to_string(), &status);
    match last.map(|last| last.result) {
        Some(CommandResult::Accepted) => Err(format!(
            "{command} was accepted already: see how the run goes on with {}",
            line("get")
        )),
        other => Ok(Prepared {
            command,
            remove_first: other.is_some(),
        }),
    }
}

/// A policy that is refused is not driven: the operator looks at no command for it.
fn not_driven(policy: &RolloutPolicy) -> Option<String> {
    let key = ObjectKey::of(policy);
    let status = policy.status.as_ref()?;
    let goes_on = [
        Reason::AwaitingServers,
        Reason::DeadlineExceeded,
        Reason::RolloutProgressing,
        Reason::RolloutWaiting,
        Reason::RolloutCompleted,
        Reason::RolloutAborted,
        Reason::RolledBack,
        Reason::RollbackImpossible,
        Reason::AnalysisInconclusive,
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
) -> Result<(), (&'static str, &'static str)> {
    check(verb, phase).map_err(|refusal| remedy(refusal, phase))?;
    if verb == CommandVerb::Promote && promoted {
        return Err((
            "the step is promoted already and goes on once every live node has it; see how with",
            "get",
        ));
    }
    Ok(())
}

/// The meaning of a refusal in this phase, and the command that would work.
const fn remedy(refusal: Refusal, phase: RolloutPhase) -> (&'static str, &'static str) {
    match (refusal, phase) {
        (Refusal::AlreadyAborted, _) => (
            "the stable pool has the whole share already; this begins a new run",
            "retry",
        ),
        (Refusal::NotAborted, RolloutPhase::Completed) => (
            "only a run that was aborted or rolled back can be tried again, and this one is completed; this gives everything back first",
            "abort",
        ),
        (Refusal::NotAborted, _) => (
            "only a run that was aborted or rolled back can be tried again; this aborts it",
            "abort",
        ),
        (Refusal::Over, RolloutPhase::Aborted) => (
            "the run is over: it was aborted; this begins a new one",
            "retry",
        ),
        (Refusal::Over, RolloutPhase::RolledBack) => (
            "the run is over: it was rolled back; this begins a new one",
            "retry",
        ),
        (Refusal::Over, _) => (
            "the run is over: the candidate has the whole share; this gives it back",
            "abort",
        ),
        (Refusal::NotPaused, RolloutPhase::Gated) => (
            "the run is not paused: it waits at a gate; this opens it",
            "promote",
        ),
        (Refusal::NotPaused, _) => (
            "the run is not paused, it goes on by itself; see how with",
            "get",
        ),
        (Refusal::CandidateWithoutServers, _) => (
            "the candidate pool has no server that takes new flows; see how the run stands with",
            "get",
        ),
        (Refusal::StableWithoutServers, _) => (
            "the stable pool has no server that takes new flows; this gives it everything all the same",
            "abort --force",
        ),
        (Refusal::Paused, _) => ("the run is paused; this lets it go on first", "resume"),
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

/// The policy's answer to a command that was written; `None`: none yet.
pub fn answer(command: &Command, policy: &RolloutPolicy) -> Option<Answer> {
    let key = ObjectKey::of(policy);
    let text = command.to_string();
    let status = policy.status.as_ref();
    if let Some(last) = status.and_then(|status| answered(&text, status)) {
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
        Some(other) if *other == text => None,
        Some(other) => Some(Answer::Replaced(format!(
            "the command {other} took the place of {text} before the operator saw it: see where the run is and give the \
             command again"
        ))),
        None => Some(Answer::Replaced(format!(
            "the annotation with {text} was removed before the operator saw it: give the command again"
        ))),
    }
}
