//! The state machine.

use crate::{Action, Event, Hindrance, Role, Settings, State, Time};

/// Decides for one VIP group on one node. [`Elector::on`] takes news in, [`Elector::tick`] says what is due.
#[derive(Clone, Debug)]
pub struct Elector {
    #[expect(dead_code, reason = "for the rank")]
    group: String,
    #[expect(dead_code, reason = "for the rank")]
    node: String,
    #[expect(dead_code, reason = "for all that waits")]
    settings: Settings,
    wake: Option<Time>,
}

impl Elector {
    /// Knows nothing yet and holds nothing. `group` and `node` are names as in the Lease and the peers' records.
    pub fn new(group: &str, node: &str, settings: Settings, now: Time) -> Self {
        Self {
            group: group.to_owned(),
            node: node.to_owned(),
            settings,
            wake: Some(now),
        }
    }

    /// Takes news in. Nothing is due before [`Elector::tick`].
    pub fn on(&mut self, _event: Event, now: Time) {
        self.wake = Some(now);
    }

    /// What is due: to be called after each [`Elector::on`] and at [`Elector::next_deadline`]. The actions are to be carried
    /// out in their order.
    pub fn tick(&mut self, _now: Time) -> Vec<Action> {
        self.wake = None;
        Vec::new()
    }

    /// When [`Elector::tick`] has something to do though no news comes.
    pub fn next_deadline(&self) -> Option<Time> {
        self.wake
    }

    /// For status and metrics.
    pub fn state(&self) -> State {
        State {
            role: Role::Bystander,
            authority: None,
            until: None,
            holder: None,
            hindrance: Some(Hindrance::Unknown),
            heard: None,
            is_finished: false,
        }
    }
}
