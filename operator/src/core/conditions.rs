//! Writing conditions.

use sluice_api::{Condition, ConditionType, Reason, Time, set_condition};

/// Writes an object's conditions.
pub(super) struct Conditions<'a> {
    pub(super) list: Vec<Condition>,
    pub(super) generation: i64,
    pub(super) now: &'a Time,
}

/// Where an object stands.
pub(super) enum State {
    Ready(Reason, String),
    Reconciling(Reason, String),
    Stalled(Reason, String),
}

impl Conditions<'_> {
    pub(super) fn set(&mut self, kind: ConditionType, status: bool, reason: Reason, message: &str) {
        set_condition(
            &mut self.list,
            kind,
            status,
            reason,
            message,
            self.generation,
            self.now,
        );
    }

    /// Says that it does not apply.
    pub(super) fn clear(&mut self, kind: ConditionType) {
        self.set(kind, false, Reason::AsExpected, "");
    }

    pub(super) fn state(&mut self, state: &State) {
        let (State::Ready(reason, message)
        | State::Reconciling(reason, message)
        | State::Stalled(reason, message)) = state;
        let ready = matches!(state, State::Ready(..));
        self.set(ConditionType::Ready, ready, *reason, message);
        for (kind, applies) in [
            (
                ConditionType::Reconciling,
                matches!(state, State::Reconciling(..)),
            ),
            (ConditionType::Stalled, matches!(state, State::Stalled(..))),
        ] {
            if applies {
                self.set(kind, true, *reason, message);
            } else {
                self.clear(kind);
            }
        }
    }
}
