//! The room of the program: the maps and what is attached to interfaces.
//!
//! The tables come first: no packet finds them half full.

mod attachments;
mod tables;
mod view;

use std::time::Instant;

use sluice_planner::Limits;

use super::announce::Announce;
use super::health::Health;
use super::intent::Intent;
use super::io::Effect;
use super::network::Network;

pub(super) use attachments::Attachments;
pub(super) use tables::{Revisions, Tables};
pub(super) use view::is_director;

/// The room of the program.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) tables: Tables,
    pub(super) attachments: Attachments,
}

impl Program {
    pub(super) fn new(node: &str, limits: Limits) -> Self {
        Self {
            tables: Tables::new(node, limits),
            attachments: Attachments::default(),
        }
    }

    /// Has written and attached whatever is to be.
    pub(super) fn turn(
        &mut self,
        intent: &mut Intent,
        network: &mut Network,
        changed: (&mut Announce, &mut Health),
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        self.tables.turn((intent, network), changed, now, effects);
        if self.tables.is_waiting() {
            return;
        }
        let Some(node) = &intent.node else {
            return;
        };
        let bridges = self.tables.bridges();
        self.attachments
            .turn(network.table(), &node.spec, bridges, now, effects);
    }

    /// Whether the rooms after this one have to wait.
    pub(super) fn is_waiting(&self) -> bool {
        self.tables.is_waiting() || self.attachments.is_waiting()
    }

    /// When something is to be tried again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let times = [self.tables.retry_at(), self.attachments.deadline()];
        times.into_iter().flatten().min()
    }
}
