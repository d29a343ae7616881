//! `kubectl sluice rollout get` as text.

use sluice_api::{Reason, RolloutPhase, SampleCount};

use crate::view::RolloutView;

use super::state::state;
use super::{Cell, Paint, Table, Tone, duration, field};

/// Entries of the history that are shown; JSON and YAML have all.
const SHOWN_HISTORY: usize = 8;

/// Where a run is, and how it goes on.
pub fn rollout(view: &RolloutView, paint: Paint) -> String {
    let name = format!("RolloutPolicy {}/{}", view.namespace, view.name);
    let mut out = format!("{}\n", paint.text(Tone::Heading, &name));
    let pools = format!(
        "{} (stable) to {} (candidate) of VirtualServer {}",
        view.stable_pool_name, view.candidate_pool_name, view.virtual_server_name
    );
    out.push_str(&field("Moves", &pools));
    out.push_str(&field("Now", &phase_line(view)));
    if let Some(rollback) = &view.rollback {
        let text = format!(
            "{} at {} %, {}: {}",
            rollback.reason, rollback.weight, rollback.time.0, rollback.message
        );
        out.push_str(&field("Because", &text));
    }
    for metric in &view.judged {
        let of = |count: SampleCount| format!("{} of {}", count.failing, count.samples);
        let text = format!(
            "{} {:?}: {} clients of {}, {} of {}",
            metric.name,
            metric.verdict,
            of(metric.candidate),
            view.candidate_pool_name,
            of(metric.stable),
            view.stable_pool_name
        );
        out.push_str(&field("Judged", &text));
    }
    if let Some(run) = &view.run {
        let since = view.start_time.as_ref().map(|time| time.0.to_string());
        let since = since.unwrap_or_default();
        out.push_str(&field("Run", &format!("{run}, began {since}")));
    }
    out.push_str(&state("Ready", &view.state, paint));
    if let Some(command) = &view.last_command {
        let mut text = format!("{}: {:?}", command.command, command.result);
        if !command.message.is_empty() {
            text = format!("{text}: {}", command.message);
        }
        out.push_str(&field("Command", &text));
    }
    if let Some(next) = &view.next {
        out.push_str(&field("Next", &next.command_line));
    }
    out.push_str(&steps(view, paint));
    if !view.history.is_empty() {
        out.push_str(&history(view, paint));
    }
    out
}

/// Phase and step in one line, without names.
pub fn phase_line(view: &RolloutView) -> String {
    if view.state.reason == Reason::AwaitingServers.to_string() {
        return format!("Waiting: {}", view.state.message);
    }
    let (Some(phase), Some(step)) = (view.phase, &view.step) else {
        return "no run has begun".to_owned();
    };
    let at = format!("step {} ({} %)", step.index, step.weight);
    let on = view.live.map_or_else(
        || "comes into force".to_owned(),
        |live| format!("in force on {}/{} nodes", live.nodes, live.live_nodes),
    );
    match phase {
        RolloutPhase::Progressing => format!("Progressing: {at} {on}"),
        RolloutPhase::Pausing => format!(
            "Pausing: {at}, {} of {} left",
            duration(step.remaining_seconds),
            duration(step.pause_seconds)
        ),
        RolloutPhase::Gated => format!("Gated: {at} waits for promote"),
        RolloutPhase::Paused => format!("Paused: {at} waits for resume"),
        RolloutPhase::Completed if view.bake_remaining_seconds > 0 => format!(
            "Completed: the candidate has the whole share; it is rolled back if it fails within {}",
            duration(view.bake_remaining_seconds)
        ),
        RolloutPhase::Completed => "Completed: the candidate has the whole share".to_owned(),
        RolloutPhase::Aborted if step.live_time.is_some() => {
            "Aborted: the stable pool has the whole share".to_owned()
        }
        RolloutPhase::Aborted => {
            format!("Aborted: the share goes back to the stable pool, {on}")
        }
        RolloutPhase::RolledBack if step.live_time.is_some() => {
            "Rolled back: the stable pool has the whole share".to_owned()
        }
        RolloutPhase::RolledBack => {
            format!("Rolled back: the share goes back to the stable pool, {on}")
        }
    }
}

fn steps(view: &RolloutView, paint: Paint) -> String {
    let mut table = Table::new(2, &["STEP", "CANDIDATE", "PAUSE", "GATE", ""]);
    let current = view.step.as_ref().map(|step| step.index as usize);
    for (i, step) in view.steps.iter().enumerate() {
        let pause = match step.pause_seconds {
            0 => "-".to_owned(),
            seconds => duration(seconds),
        };
        let gate = step
            .gate
            .map_or_else(|| "-".to_owned(), |gate| format!("{gate:?}"));
        let standing = match (view.phase, current) {
            (Some(RolloutPhase::Completed), _) => Cell::new(Tone::Good, "done"),
            (Some(RolloutPhase::Aborted | RolloutPhase::RolledBack) | None, _) | (_, None) => {
                "".into()
            }
            (_, Some(current)) if i < current => Cell::new(Tone::Good, "done"),
            (_, Some(current)) if i == current => Cell::new(Tone::Waiting, "now"),
            _ => "".into(),
        };
        table.row([
            i.to_string().into(),
            format!("{} %", step.weight).into(),
            pause.into(),
            gate.into(),
            standing,
        ]);
    }
    table.render(paint)
}

fn history(view: &RolloutView, paint: Paint) -> String {
    let mut table = Table::new(2, &["TIME", "RUN", "EVENT", "STEP", "CANDIDATE"]);
    let hidden = view.history.len().saturating_sub(SHOWN_HISTORY);
    for entry in &view.history[hidden..] {
        table.row([
            entry.time.0.to_string().into(),
            Cell::from(&entry.run),
            format!("{:?}", entry.event).into(),
            entry.step.to_string().into(),
            format!("{} %", entry.weight).into(),
        ]);
    }
    table.render(paint)
}
