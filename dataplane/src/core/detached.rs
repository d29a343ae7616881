//! What is left of the loop once the node is detached: it says so, and does nothing else until the process ends.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

use sluice_api::jiff::Timestamp;
use sluice_api::{AttachMode, ConditionType, LoadBalancerNodeStatus, Reason, Time, set_condition};

use super::{HEARTBEAT, Input, TURN};
use crate::report::Mailbox;
use crate::state::{Published, State};

const MESSAGE: &str = "every program, map and pin is off this node; an agent that starts without the annotation \
                       sluice.dev/detach on its LoadBalancerNode attaches again";

/// The loop of a detached node.
#[derive(Debug)]
pub struct Detached {
    state: Arc<State>,
    mailbox: Mailbox,
    status: LoadBalancerNodeStatus,
}

impl Detached {
    /// Everything is off the node. `before` is its status until then, and `generation` that of the spec by which it was
    /// detached.
    pub fn new(
        state: Arc<State>,
        mailbox: Mailbox,
        before: LoadBalancerNodeStatus,
        generation: i64,
    ) -> Self {
        let status = detached(before, generation, &Time(Timestamp::now()));
        Self {
            state,
            mailbox,
            status,
        }
    }

    /// Goes round until all senders of `inbox` are gone.
    pub fn run(mut self, inbox: &Receiver<Input>) {
        self.state.publish(Published {
            not_ready: vec![format!("detached: {MESSAGE}")],
            ..Published::default()
        });
        let mut reported: Option<Instant> = None;
        loop {
            self.state.turn();
            let now = Instant::now();
            if reported.is_none_or(|at| now >= at + HEARTBEAT) {
                reported = Some(now);
                self.status.heartbeat_time = Some(Time(Timestamp::now()));
                self.mailbox.put(self.status.clone());
            }
            if let Err(RecvTimeoutError::Disconnected) = inbox.recv_timeout(TURN) {
                return;
            }
        }
    }
}

/// The status of a node that forwards nothing any more.
fn detached(before: LoadBalancerNodeStatus, generation: i64, now: &Time) -> LoadBalancerNodeStatus {
    let mut status = LoadBalancerNodeStatus {
        observed_generation: generation,
        acknowledged_revision: 0,
        acknowledged_pool_revision: 0,
        exceptions: Vec::new(),
        exception_count: 0,
        capacity: Vec::new(),
        ..before
    };
    for interface in &mut status.interfaces {
        interface.attach_mode = AttachMode::None;
        interface.reason = Some("detached".to_owned());
    }
    for (kind, value) in [
        (ConditionType::Ready, false),
        (ConditionType::Detached, true),
    ] {
        let conditions = &mut status.conditions;
        let reason = Reason::DetachRequested;
        set_condition(conditions, kind, value, reason, MESSAGE, generation, now);
    }
    status
}

#[cfg(test)]
mod tests {
    use sluice_api::{InterfaceStatus, find_condition};

    use super::*;

    #[test]
    fn a_detached_node_acknowledges_and_attaches_nothing() {
        let before = LoadBalancerNodeStatus {
            acknowledged_revision: 7,
            acknowledged_pool_revision: 6,
            interfaces: vec![InterfaceStatus {
                name: "eth0".to_owned(),
                attach_mode: AttachMode::Native,
                reason: None,
            }],
            ..LoadBalancerNodeStatus::default()
        };
        let status = detached(before, 3, &Time(Timestamp::UNIX_EPOCH));
        assert_eq!(status.observed_generation, 3);
        assert_eq!(status.acknowledged_revision, 0);
        assert_eq!(status.acknowledged_pool_revision, 0);
        assert_eq!(status.interfaces[0].attach_mode, AttachMode::None);
        for (kind, value) in [
            (ConditionType::Ready, "False"),
            (ConditionType::Detached, "True"),
        ] {
            let condition = find_condition(&status.conditions, kind).unwrap();
            assert_eq!(condition.status, value, "{kind:?}");
            assert_eq!(condition.reason, "DetachRequested");
        }
    }
}
