//! The core of a detached node: it reports that the node is detached, and does nothing else until the process ends.

use std::time::Instant;

use sluice_api::{AttachMode, ConditionType, LoadBalancerNodeStatus, Reason, Time, set_condition};

use super::HEARTBEAT;
use crate::core::io::{Effect, Now};
use crate::state::Published;

const MESSAGE: &str = "every program, map and pin is off this node; an agent that starts without the annotation \
                       sluice.dev/detach on its LoadBalancerNode attaches again";

/// The core of a detached node.
#[derive(Debug)]
pub(in crate::core) struct Detached {
    before: LoadBalancerNodeStatus,
    generation: i64,
    /// The status written last, and when.
    written: Option<(LoadBalancerNodeStatus, Instant)>,
}

impl Detached {
    /// Everything is off the node. `before` is its status until then, and `generation` that of the spec by which it was
    /// detached.
    pub(in crate::core) fn new(before: LoadBalancerNodeStatus, generation: i64) -> Self {
        Self {
            before,
            generation,
            written: None,
        }
    }

    /// Shows once that the node is detached, and has it written with every heartbeat.
    pub(in crate::core) fn turn(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.deadline().is_some_and(|at| now.instant < at) {
            return;
        }
        let mut status = if let Some((status, _)) = self.written.take() {
            status
        } else {
            let published = Published {
                not_ready: vec![format!("detached: {MESSAGE}")],
                ..Published::default()
            };
            effects.push(Effect::Publish(Box::new(published)));
            detached(self.before.clone(), self.generation, &Time(now.time))
        };
        status.heartbeat_time = Some(Time(now.time));
        self.written = Some((status.clone(), now.instant));
        effects.push(Effect::WriteStatus(Box::new(status)));
    }

    /// When the heart must beat; `None`: at once.
    pub(in crate::core) fn deadline(&self) -> Option<Instant> {
        let written = self.written.as_ref();
        written.map(|(_, at)| *at + HEARTBEAT)
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
        unlisted_exceptions: Vec::new(),
        capacity: Vec::new(),
        ..before
    };
    let own = [ConditionType::Ready.name(), ConditionType::Detached.name()];
    let conditions = &mut status.conditions;
    conditions.retain(|condition| own.contains(&condition.type_.as_str()));
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
    use sluice_api::jiff::Timestamp;
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
                mac_address: None,
                steady: false,
                gateways: Vec::new(),
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
