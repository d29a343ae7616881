//! What the node reports: what is, never what was intended.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use sluice_api::jiff::Timestamp;
use sluice_api::{
    AttachMode, Capabilities, CapacityEntry, ConditionType, ExceptionKind, LoadBalancerNodeStatus,
    MAX_EXCEPTIONS, MAX_MESSAGE_LENGTH, MAX_NODE_ADDRESSES, NodeException, Reason, Time,
    set_condition,
};
use sluice_planner::{Image, Limits, ObjectKind, ObjectName, Problem, live};

use super::{Core, HEARTBEAT, Revisions, labels};
use crate::maps::kernel_release;
use crate::state::{Published, ServerLabels, Usages};

/// Characters that a message needs to say that there is more.
const ROOM_FOR_MORE: usize = 24;

/// What follows from configuration and maps.
#[derive(Debug, Default)]
pub(super) struct Summary {
    exceptions: Vec<NodeException>,
    servers: Arc<BTreeMap<u32, ServerLabels>>,
    capacity: Vec<CapacityEntry>,
    /// What is not as described, though the decisions are in force.
    notes: Vec<String>,
}

impl Core {
    /// To be called when configuration or maps have changed.
    pub(super) fn summarize(&self) -> Summary {
        let actual = self.actual.clone().unwrap_or_default();
        // What was missed and limits say more than what follows from them, so they come first.
        let missed = self
            .decisions
            .iter()
            .flat_map(|decisions| &decisions.missed);
        let limits = self.limit_problems.iter().filter(|p| p.exception);
        let not_live = live(&self.config, &actual);
        let exceptions = exceptions(missed.chain(limits).chain(&not_live));
        let servers = match &self.decisions {
            Some(decisions) => labels::of_servers(&actual, &self.config, &decisions.snapshot),
            None => BTreeMap::new(),
        };
        let problems = self.config.problems.iter().chain(&self.limit_problems);
        let is_note =
            |problem: &&Problem| !problem.exception || problem.kind == ObjectKind::LoadBalancerNode;
        Summary {
            exceptions,
            servers: Arc::new(servers),
            capacity: capacity(&actual, &self.limits),
            notes: problems.filter(is_note).map(ToString::to_string).collect(),
        }
    }

    /// Publishes what is, and has it written when it changed or the heart must beat.
    pub(super) fn report(&mut self, now: Instant) {
        let not_ready = self.not_ready();
        self.publish(not_ready.clone());
        let Some(node) = &self.node else {
            return;
        };
        let exceptions = &self.summary.exceptions;
        let mut status = LoadBalancerNodeStatus {
            observed_generation: node.generation,
            conditions: self.status.conditions.clone(),
            addresses: self.own_addresses(),
            acknowledged_revision: self.acknowledged().virtual_servers,
            acknowledged_pool_revision: self.acknowledged().pools,
            exception_count: u32::try_from(exceptions.len()).unwrap_or(u32::MAX),
            exceptions: exceptions.iter().take(MAX_EXCEPTIONS).cloned().collect(),
            heartbeat_time: self.status.heartbeat_time.clone(),
            interfaces: self.attachments.uplinks().cloned().collect(),
            capabilities: Some(self.capabilities()),
            capacity: self.summary.capacity.clone(),
        };
        let time = Time(Timestamp::now());
        let (reason, message) = self.readiness(&not_ready);
        set_condition(
            &mut status.conditions,
            ConditionType::Ready,
            not_ready.is_empty(),
            reason,
            &message,
            node.generation,
            &time,
        );
        let beat = self.last_report.is_none_or(|last| now >= last + HEARTBEAT);
        if status != self.status || beat {
            status.heartbeat_time = Some(time);
            self.last_report = Some(now);
            self.status = status.clone();
            self.mailbox.put(status);
        }
    }

    fn publish(&self, not_ready: Vec<String>) {
        let (neighbours, neighbours_unresolved) = self.resolver.counts();
        self.state.publish(Published {
            intended: Arc::clone(&self.intended),
            actual: self.actual.clone().unwrap_or_default(),
            servers: Arc::clone(&self.summary.servers),
            acknowledged_revision: self.acknowledged().virtual_servers,
            acknowledged_pool_revision: self.acknowledged().pools,
            exceptions: self.summary.exceptions.clone(),
            interfaces: self
                .attachments
                .uplinks()
                .map(|uplink| (uplink.name.clone(), uplink.attach_mode))
                .collect(),
            capacity: self.summary.capacity.clone(),
            neighbours,
            neighbours_unresolved,
            not_ready,
        });
    }

    fn acknowledged(&self) -> Revisions {
        if self.held.is_some() {
            // What is in force are decisions of another world, with numbers of their own, or some that were never read.
            return Revisions {
                virtual_servers: 0,
                pools: 0,
            };
        }
        match &self.applied {
            Some(applied) => applied.revisions,
            // What was live before stays in the maps while the newest decisions cannot be applied.
            None => Revisions {
                virtual_servers: self.status.acknowledged_revision,
                pools: self.status.acknowledged_pool_revision,
            },
        }
    }

    fn own_addresses(&self) -> Vec<IpAddr> {
        let addresses = self.table.addresses().into_iter();
        addresses
            .filter(|address| match address {
                IpAddr::V4(address) => !address.is_link_local(),
                IpAddr::V6(address) => !address.is_unicast_link_local(),
            })
            .take(MAX_NODE_ADDRESSES)
            .collect()
    }

    fn capabilities(&self) -> Capabilities {
        let mut features = Vec::new();
        match self.attachments.uses_tcx() {
            Some(true) => features.push("Tcx".to_owned()),
            Some(false) => features.push("Clsact".to_owned()),
            None => {}
        }
        if self.resolver.sees_managed(&self.table) {
            features.push("ManagedNeighbours".to_owned());
        }
        Capabilities {
            kernel_release: kernel_release(),
            features,
        }
    }

    /// Why the node does not do what it should; empty if it does.
    fn not_ready(&self) -> Vec<String> {
        let mut reasons: Vec<String> = self.held.iter().cloned().collect();
        if self.node.is_none() {
            reasons.extend(self.failure.clone());
            if self.held.is_some() {
                return reasons;
            }
            let node = &self.state.node;
            reasons.push(if self.state.source.unsynced().is_zero() {
                format!("there is no LoadBalancerNode {node}: create it")
            } else {
                format!(
                    "what the LoadBalancerNode {node} asks for is not known yet: the source could not be read completely, see \
                     the log"
                )
            });
            return reasons;
        }
        if self.attachments.uplinks().next().is_none() {
            reasons.push("no program is attached yet".to_owned());
        }
        for uplink in self.attachments.uplinks() {
            if uplink.attach_mode == AttachMode::None {
                let reason = uplink.reason.as_deref().unwrap_or("not attached");
                reasons.push(format!("{}: {reason}", uplink.name));
            }
        }
        reasons.extend(self.attachments.bridge_problems().map(str::to_owned));
        reasons.extend(self.failure.clone());
        reasons.extend(self.refused.clone());
        reasons
    }

    fn readiness(&self, not_ready: &[String]) -> (Reason, String) {
        if !not_ready.is_empty() {
            return (Reason::NotInForce, not_ready.join("; "));
        }
        (Reason::AsExpected, self.summary.notes.join("; "))
    }
}

/// One exception an object, in the order in which objects come first. Problems of the node itself are none.
fn exceptions<'a>(problems: impl IntoIterator<Item = &'a Problem>) -> Vec<NodeException> {
    let mut objects = Vec::new();
    let mut by_object: BTreeMap<(ExceptionKind, &ObjectName), Vec<&Problem>> = BTreeMap::new();
    for problem in problems {
        let kind = match problem.kind {
            ObjectKind::VirtualServer => ExceptionKind::VirtualServer,
            ObjectKind::RealServerPool => ExceptionKind::RealServerPool,
            ObjectKind::LoadBalancerNode => continue,
        };
        let object = (kind, &problem.object);
        let of_object = by_object.entry(object).or_insert_with(|| {
            objects.push(object);
            Vec::new()
        });
        of_object.push(problem);
    }
    let exception = |object| {
        let (first, others) = by_object.get(&object)?.split_first()?;
        let (kind, name) = object;
        Some(NodeException {
            kind,
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            reason: first.reason.as_str().to_owned(),
            message: joined(first, others),
        })
    };
    objects.into_iter().filter_map(exception).collect()
}

/// All that is wrong with one object, of which the first reason is told beside it; where there is no room for all, how much
/// more there is.
fn joined(first: &Problem, others: &[&Problem]) -> String {
    let mut message = first.message.clone();
    for (told, other) in others.iter().enumerate() {
        let part = if other.reason == first.reason {
            format!("; {}", other.message)
        } else {
            format!("; {}: {}", other.reason.as_str(), other.message)
        };
        let length = message.chars().count() + part.chars().count();
        if length + ROOM_FOR_MORE > MAX_MESSAGE_LENGTH {
            let more = others.len() - told;
            message = format!("{message}; and {more} more");
            break;
        }
        message.push_str(&part);
    }
    message.chars().take(MAX_MESSAGE_LENGTH).collect()
}

/// Limits of the planner's maps and their use. Of a map in two families, the fuller one.
fn capacity(image: &Image, limits: &Limits) -> Vec<CapacityEntry> {
    let usages = Usages::of(image);
    let entry = |name: &str, limit: u32, used: usize| CapacityEntry {
        name: name.to_owned(),
        limit: u64::from(limit),
        used: used as u64,
    };
    vec![
        entry("Backends", limits.backends, usages.backends),
        entry("Heads", limits.heads, usages.heads),
        entry("Locals", limits.locals, usages.locals),
        entry("Peers", limits.peers, usages.peers),
        entry("Records", limits.records, usages.records),
        entry("RingSlots", limits.ring_slots, usages.ring_slots),
        entry("Rings", limits.rings, usages.rings),
        entry("Servers", limits.servers, usages.servers),
        entry("Vips", limits.vips, usages.vips),
    ]
}

#[cfg(test)]
mod tests {
    use sluice_planner::Reason;

    use super::*;

    fn problem(kind: ObjectKind, name: &str, reason: Reason, message: &str) -> Problem {
        Problem {
            kind,
            object: ObjectName::new("shop", name),
            reason,
            message: message.to_owned(),
            exception: true,
        }
    }

    fn no_servers(pool: &str, message: &str) -> Problem {
        problem(ObjectKind::RealServerPool, pool, Reason::NoServers, message)
    }

    #[test]
    fn an_object_is_one_exception() {
        let web = ObjectKind::VirtualServer;
        let pool = ObjectKind::RealServerPool;
        let problems = [
            problem(web, "v1", Reason::LimitExceeded, "no room"),
            no_servers("v1", "no IPv4 server for web"),
            no_servers("v1", "no IPv6 server for web"),
            problem(pool, "v1", Reason::RingNotInPlace, "not decided"),
            problem(
                ObjectKind::LoadBalancerNode,
                "",
                Reason::LimitExceeded,
                "full",
            ),
            no_servers("v2", "no IPv4 server for web"),
        ];
        let found: Vec<String> = exceptions(&problems)
            .into_iter()
            .map(|e| format!("{:?} {} {}: {}", e.kind, e.name, e.reason, e.message))
            .collect();
        let expected = [
            "VirtualServer v1 LimitExceeded: no room",
            "RealServerPool v1 NoServers: no IPv4 server for web; no IPv6 server for web; RingNotInPlace: not decided",
            "RealServerPool v2 NoServers: no IPv4 server for web",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_message_says_how_much_it_leaves_out() {
        let part = "x".repeat(MAX_MESSAGE_LENGTH / 4);
        let problems: Vec<Problem> = (0..9).map(|_| no_servers("v1", &part)).collect();
        let [exception] = &exceptions(&problems)[..] else {
            unreachable!()
        };
        assert!(exception.message.chars().count() <= MAX_MESSAGE_LENGTH);
        assert!(exception.message.ends_with("; and 6 more"));
        let long = no_servers("v1", &"é".repeat(2 * MAX_MESSAGE_LENGTH));
        let message = &exceptions([&long])[0].message;
        assert_eq!(message.chars().count(), MAX_MESSAGE_LENGTH);
    }
}
