//! The agent's logic, without I/O and without a clock: news and outcomes in, effects out.
//!
//! ```text
//!                        ┌► intent    what the sources say of decisions and of this node
//!                        │     ▼
//! Input ──► Core::on() ──┼► network   links, neighbours, routes: the way to each server
//!             ▲          │     ▼
//!             │          ├► health    which servers are checked, and which are down
//!             │          │     ▼
//!             │          ├► program   the maps, and what is attached to interfaces
//!             │          │     ▼
//!             │          ├► announce  which VIPs may be announced here, and by whom else
//!             │          │     ▼
//!             │          └► report    status, heartbeat, what the admin endpoint shows
//!             └── outcomes ◄── the shell carries effects out ◄── Vec<Effect>
//! ```
//!
//! A room has a state of its own and is told of news as it comes. It works when there is a [`Input::Turn`] and after each
//! outcome: the rooms follow each other in the order above, and one that awaits an outcome holds up those after it. So the
//! program is planned from a network that is known, and the report is made of what was written. What fails is tried again
//! later, while the rest goes on. [`Core::next_deadline`] says when a turn is due without any news.

mod advice;
mod announce;
mod back_off;
mod checked;
mod decided;
mod drained;
mod health;
mod intent;
mod io;
mod network;
mod program;
mod report;
#[cfg(test)]
mod tests;

use std::time::Instant;

use sluice_api::LoadBalancerNodeStatus;
use sluice_planner::Limits;
use tracing::{error, info};

use crate::health::Memory;

use advice::Advice;
use announce::Announce;
pub use announce::AnnounceOptions;
use back_off::BackOff;
use health::Health;
use intent::Intent;
pub use io::{Attachment, Effect, Input, LeaveError, Now, Place, Wanted};
use network::Network;
use program::Program;
use report::{Detached, Report, Rooms};

/// The agent's decisions and all it knows.
#[derive(Debug)]
pub struct Core(Phase);

#[derive(Debug)]
enum Phase {
    Working(Box<Working>),
    /// Nothing is on the node any more.
    Detached(Box<Detached>),
}

#[derive(Debug)]
struct Working {
    intent: Intent,
    network: Network,
    health: Health,
    program: Program,
    announce: Announce,
    advice: Advice,
    report: Report,
    leaving: Leaving,
}

/// How far the node is left.
#[derive(Debug, Default)]
struct Leaving {
    /// Whether an outcome is awaited.
    waiting: bool,
    /// Why it could not be left clean.
    failure: Option<String>,
    retry: BackOff,
}

impl Core {
    /// Nothing is known yet. `before` is the status that an earlier agent of this node wrote last, `health` what it knew of servers.
    pub fn new(
        node: &str,
        kernel_release: String,
        limits: Limits,
        before: LoadBalancerNodeStatus,
        announce: AnnounceOptions,
        health: Memory,
    ) -> Self {
        Self(Phase::Working(Box::new(Working {
            intent: Intent::default(),
            network: Network::new(),
            health: Health::new(health),
            program: Program::new(node, limits),
            announce: Announce::new(node, announce),
            advice: Advice::default(),
            report: Report::new(node, kernel_release, before),
            leaving: Leaving::default(),
        })))
    }

    /// The node is detached, by a spec of this generation. `before` is its status until then.
    pub fn detached(before: LoadBalancerNodeStatus, generation: i64) -> Self {
        Self(Phase::Detached(Box::new(Detached::new(before, generation))))
    }

    /// Takes in an input. Returns what is to be done, in order.
    pub fn on(&mut self, input: Input, now: Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        let generation = match &mut self.0 {
            Phase::Working(working) => working.on(input, now, &mut effects),
            Phase::Detached(detached) => {
                detached.turn(now, &mut effects);
                None
            }
        };
        if let (Some(generation), Phase::Working(working)) = (generation, &mut self.0) {
            let mut detached = Detached::new(working.report.last_status().clone(), generation);
            detached.turn(now, &mut effects);
            self.0 = Phase::Detached(Box::new(detached));
        }
        effects
    }

    /// When the next turn is due without any news; `None`: not before there is news.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        match &self.0 {
            Phase::Working(working) => working.next_deadline(now),
            Phase::Detached(detached) => Some(detached.deadline().unwrap_or(now)),
        }
    }
}

impl Working {
    /// Takes in news, which change nothing before the next turn. Returns any other input.
    fn note(&mut self, input: Input, now: Instant) -> Option<Input> {
        match input {
            Input::Source(event) => {
                let (intent, network) = (&mut self.intent, &mut self.network);
                intent.take(event, now);
                network.follow(intent.take_addresses(), intent.take_peers());
            }
            Input::SourceSynced(synced) => self.intent.synced = synced,
            Input::DoorsClosed(reasons) => self.report.closed_doors = reasons,
            Input::Netlink(message) => {
                if self.network.hear(&message) {
                    self.program.attachments.interfaces_changed();
                }
            }
            Input::NetlinkLost => self.network.lose(),
            Input::Announcer(told) => self.announce.tell(*told),
            Input::Checker(told) => self.health.tell(*told),
            other => return Some(other),
        }
        None
    }

    /// Returns the generation of the spec by which the node is detached, once nothing is on it any more.
    fn on(&mut self, input: Input, now: Now, effects: &mut Vec<Effect>) -> Option<i64> {
        let input = self.note(input, now.instant)?;
        let Self {
            intent,
            network,
            program: Program {
                tables,
                attachments,
            },
            ..
        } = self;
        match input {
            Input::Source(_)
            | Input::SourceSynced(_)
            | Input::DoorsClosed(_)
            | Input::Netlink(_)
            | Input::NetlinkLost
            | Input::Announcer(_)
            | Input::Checker(_)
            | Input::Turn => {}
            Input::TableRead(read) => {
                network.table_read(read, now.instant);
                attachments.interfaces_changed();
            }
            Input::GatewaysRead(read) => network.gateways_read(read, now.instant),
            Input::RoutesFound(found) => {
                network.routes_found(found, intent, now.instant, effects);
            }
            Input::SettingsRead(settings) => {
                let rooms = (&self.intent, &self.network, &self.program);
                self.advice.settings_read(&settings, rooms);
            }
            Input::ImageRead(read) => tables.image_read(read, intent, now.instant, effects),
            Input::Applied(outcome) => tables.applied(outcome, intent, now.instant, effects),
            Input::ProgramsGone(gone) => attachments.programs_gone(gone),
            Input::Attached {
                attachment,
                outcome,
            } => attachments.attached(&attachment, outcome),
            Input::AttachedListed(listed) => {
                attachments.listed(listed, network.table(), now.instant, effects);
            }
            Input::Detached(outcome) => attachments.detached(outcome, now.instant),
            Input::NodeLeft(Ok(removed)) => {
                let removed = removed.len();
                info!(removed, "detached, as the LoadBalancerNode asks for");
                return intent.detach;
            }
            Input::NodeLeft(Err(error)) => self.leaving.fail(&error, now.instant),
        }
        self.advance(now, effects);
        None
    }

    /// Has each room do what is due, up to one that has to wait.
    fn advance(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.intent.detach.is_some() {
            self.leaving.turn(now.instant, effects);
        } else {
            if self.intent.expire(now.instant) {
                let addresses = self.intent.take_addresses();
                self.network.follow(addresses, None);
            }
            self.network.turn(&self.intent, now.instant, effects);
            if !self.network.is_waiting() {
                let (intent, network) = (&mut self.intent, &mut self.network);
                self.health.turn(intent, effects);
                self.announce.prepare(intent, network);
                let changed = (&mut self.announce, &mut self.health);
                self.program
                    .turn(intent, network, changed, now.instant, effects);
                if !self.program.is_waiting() {
                    let rooms = (&self.intent, &self.network, &self.program);
                    self.announce.turn(rooms, now.instant, effects);
                    self.advice.turn(&self.intent, now.instant, effects);
                }
            }
        }
        let waiting = self.network.is_waiting()
            || self.program.is_waiting()
            || self.advice.is_waiting()
            || self.leaving.waiting;
        if waiting {
            return;
        }
        let rooms = Rooms {
            intent: &self.intent,
            network: &self.network,
            program: &self.program,
            announce: &self.announce,
            health: &self.health,
            advice: self.advice.complaints(),
            not_left: self.leaving.failure.as_deref(),
        };
        self.report.turn(rooms, now, effects);
    }

    fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let times = [
            self.intent.deadline(),
            self.network.deadline(),
            self.program.deadline(),
            self.announce.deadline(now),
            self.leaving.retry.until(),
            self.report.deadline(),
        ];
        times.into_iter().flatten().min()
    }
}

impl Leaving {
    fn turn(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if !self.waiting && self.retry.is_over(now) {
            self.waiting = true;
            effects.push(Effect::LeaveNode);
        }
    }

    fn fail(&mut self, error: &LeaveError, now: Instant) {
        self.waiting = false;
        let failure = format!("cannot detach: {error}");
        if !self.retry.is_failing() {
            error!("{failure}");
        }
        self.failure = Some(failure);
        self.retry.fail(now);
    }
}
