//! How an object's state is told.

use super::{Paint, Tone, field};
use crate::view::StateView;

/// A state with its reason and message.
pub(super) fn state(label: &str, state: &StateView, paint: Paint) -> String {
    named_state(label, "", state, paint)
}

/// The same after a name.
pub(super) fn named_state(label: &str, name: &str, state: &StateView, paint: Paint) -> String {
    let mut text = state.ready.clone();
    if state.reason.is_empty() {
        text.push_str(" (the operator has not looked at it: is it running?)");
    } else {
        text = format!("{text} ({}) {}", state.reason, state.message);
    }
    if state.outdated {
        text.push_str(" (the operator has not looked at the newest spec yet)");
    }
    if !name.is_empty() {
        text = format!("{name}: {text}");
    }
    let tone = tone(state);
    let value = &state.ready;
    let text = field(label, &text);
    text.replacen(value, &paint.text(tone, value), 1)
}

fn tone(state: &StateView) -> Tone {
    if state.is_ready() {
        Tone::Good
    } else if state.stalled {
        Tone::Bad
    } else {
        Tone::Waiting
    }
}
