//! Following a run: from two views to the lines that tell what changed, and whether it is over.

use sluice_api::{CommandResult, Reason, RolloutPhase};

use crate::text::{duration, phase_line};
use crate::view::{LiveNodes, RolloutView};

/// One line for each change from `previous` to `current`; without `previous` one that says where the run is.
pub fn diff(previous: Option<&RolloutView>, current: &RolloutView) -> Vec<String> {
    let mut lines = Vec::new();
    match previous {
        None => {
            let run = current.run.as_deref().unwrap_or("none");
            lines.push(format!("run {run}: {}", phase_line(current)));
            if waits(current) && current.next.is_some() {
                lines.extend(phase(current));
            }
        }
        Some(previous) => {
            lines.extend(command(previous, current));
            let entered = entered(previous, current);
            let new_step = entered.is_some();
            lines.extend(entered);
            if let (Some(live), Some(step)) = (live(previous, current, new_step), &current.step) {
                lines.push(format!(
                    "step {} ({} %): live on {}/{} nodes",
                    step.index, step.weight, live.nodes, live.live_nodes
                ));
            }
            let went_back = |view: &RolloutView| {
                view.step
                    .as_ref()
                    .is_some_and(|step| step.live_time.is_some())
            };
            let gives_back = gives_back(current);
            if previous.phase != current.phase
                || new_step && waits(current)
                || gives_back && went_back(previous) != went_back(current)
            {
                lines.extend(phase(current));
            }
        }
    }
    let lacking = |view: &RolloutView| {
        let state = &view.state;
        let lacks = state.reason == Reason::AwaitingServers.to_string();
        lacks.then(|| format!("waiting: {}", state.message))
    };
    let now = lacking(current);
    if now != previous.and_then(lacking) {
        lines.extend(now);
    }
    let stalled = |view: &RolloutView| {
        let state = view.state.stalled.then_some(&view.state)?;
        Some(format!("stalled: {}: {}", state.reason, state.message))
    };
    let now = stalled(current);
    if now != previous.and_then(stalled) {
        lines.push(now.unwrap_or_else(|| "no longer stalled".to_owned()));
    }
    lines
}

fn command(previous: &RolloutView, current: &RolloutView) -> Option<String> {
    let command = current.last_command.as_ref()?;
    if previous.last_command.as_ref() == Some(command) {
        return None;
    }
    Some(match command.result {
        CommandResult::Accepted => format!("command {}: accepted", command.command),
        CommandResult::Ignored | CommandResult::Invalid => format!(
            "command {}: {}: {}",
            command.command,
            format!("{:?}", command.result).to_lowercase(),
            command.message
        ),
    })
}

fn entered(previous: &RolloutView, current: &RolloutView) -> Option<String> {
    let step = current.step.as_ref()?;
    let at = format!("step {} ({} %) entered", step.index, step.weight);
    if previous.run != current.run {
        let run = current.run.as_deref().unwrap_or_default();
        return Some(format!("run {run} began: {at}"));
    }
    if gives_back(current) {
        return None;
    }
    let before = previous.step.as_ref();
    let same = before.is_some_and(|old| (old.index, old.weight) == (step.index, step.weight));
    (!same).then_some(at)
}

/// On how many nodes the step is live, where that changed. The policy's status is written before the virtual server's: once
/// it says that the step is live, it is so on all of them, and only what falls behind again is news.
fn live(previous: &RolloutView, current: &RolloutView, new_step: bool) -> Option<LiveNodes> {
    let reached = |view: &RolloutView| {
        view.step
            .as_ref()
            .is_some_and(|step| step.live_time.is_some())
    };
    let counted = |view: &RolloutView| {
        let live = view.live?;
        let nodes = if reached(view) {
            live.live_nodes
        } else {
            live.nodes
        };
        Some(LiveNodes { nodes, ..live })
    };
    let (before, now) = (counted(previous), counted(current)?);
    if new_step || previous.run != current.run {
        return (now.nodes > 0).then_some(now);
    }
    if gives_back(current) && previous.phase != current.phase {
        return None;
    }
    let fell_behind = |before: LiveNodes, live: LiveNodes| {
        reached(previous) && reached(current) && live.nodes < before.nodes
    };
    match (previous.live, current.live) {
        (Some(before), Some(live)) if fell_behind(before, live) => Some(live),
        _ => (before != Some(now)).then_some(now),
    }
}

/// Whether the stable pool has, or gets, everything back.
fn gives_back(view: &RolloutView) -> bool {
    matches!(
        view.phase,
        Some(RolloutPhase::Aborted | RolloutPhase::RolledBack)
    )
}

fn waits(view: &RolloutView) -> bool {
    matches!(
        view.phase,
        Some(RolloutPhase::Pausing | RolloutPhase::Gated | RolloutPhase::Paused)
    )
}

fn phase(view: &RolloutView) -> Option<String> {
    let step = view.step.as_ref()?;
    let next = view.next.as_ref().map(|next| next.command_line.as_str());
    let next = next.unwrap_or_default();
    Some(match view.phase? {
        RolloutPhase::Progressing => return None,
        RolloutPhase::Pausing => format!(
            "step {}: pausing, {} of {} left",
            step.index,
            duration(step.remaining_seconds),
            duration(step.pause_seconds)
        ),
        RolloutPhase::Gated => format!("step {}: gated; go on with: {next}", step.index),
        RolloutPhase::Paused => format!("step {}: paused; go on with: {next}", step.index),
        RolloutPhase::Completed | RolloutPhase::Aborted | RolloutPhase::RolledBack => {
            lower_first(&phase_line(view))
        }
    })
}

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The candidate has the whole share.
    Completed,
    /// The stable pool has the whole share again, on every live node.
    Aborted,
    /// Something has to be done before it goes on.
    Stalled,
}

/// How the run ended, if it did.
pub fn end(view: &RolloutView) -> Option<End> {
    if view.state.stalled {
        return Some(End::Stalled);
    }
    let live = view.step.as_ref().is_some_and(|s| s.live_time.is_some());
    match view.phase? {
        RolloutPhase::Completed => Some(End::Completed),
        RolloutPhase::Aborted if live => Some(End::Aborted),
        _ => None,
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(chars).collect()
}
