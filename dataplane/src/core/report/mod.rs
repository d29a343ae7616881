//! The room of the report: status, heartbeat, and what the admin endpoint shows. It tells what is, never what was intended.

mod detached;
mod exceptions;
mod lost;
mod room;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_api::{
    Capabilities, CapacityEntry, ConditionType, GroupRole, LoadBalancerNodeStatus,
    MAX_DOWN_SERVERS, MAX_EXCEPTIONS, MAX_NEW_ADDRESSES, MAX_NODE_ADDRESSES, MAX_UNHELD_GROUPS,
    NodeException, Reason, Time, set_condition,
};
use sluice_planner::Problem;

use super::announce::Announce;
use super::health::Health;
use super::intent::Intent;
use super::io::{Effect, Now};
use super::network::Network;
use super::program::{Program, Revisions};
use crate::state::{Capacity, Published};

pub(super) use detached::Detached;
use exceptions::{exceptions, unlisted};
use room::NearlyFull;

/// Time between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Time without another change after which a changed status is written, so that changes close together share one write.
const GATHER: Duration = Duration::from_millis(200);
/// Time since the first change after which the status is written though it still changes.
const GATHER_AT_MOST: Duration = Duration::from_secs(1);

/// The rooms that are reported on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rooms<'a> {
    pub(super) intent: &'a Intent,
    pub(super) network: &'a Network,
    pub(super) program: &'a Program,
    pub(super) announce: &'a Announce,
    pub(super) health: &'a Health,
    /// What is wrong with the settings of the node's network.
    pub(super) advice: &'a [String],
    /// Why the node could not be left clean.
    pub(super) not_left: Option<&'a str>,
}

/// The room of the report.
#[derive(Debug)]
pub(super) struct Report {
    node: String,
    kernel_release: String,
    /// As last written, by this process or an earlier one.
    status: LoadBalancerNodeStatus,
    last_write: Option<Instant>,
    /// Another status than the one last written.
    changed: Option<Changed>,
    exceptions: Arc<Vec<NodeException>>,
    /// The summary that the exceptions were made of, and the replies that are lost.
    summary: u64,
    lost: Vec<Problem>,
    capacity: Vec<Capacity>,
    nearly_full: NearlyFull,
    /// Why the admin endpoint cannot listen where it should.
    pub(super) closed_doors: Vec<String>,
}

/// A status that is to be written.
#[derive(Debug)]
struct Changed {
    status: LoadBalancerNodeStatus,
    /// When the first change came, and the last.
    first: Instant,
    last: Instant,
}

impl Changed {
    /// Whether this is the status, however late a condition changed.
    fn is(&self, status: &LoadBalancerNodeStatus) -> bool {
        let mut known = self.status.clone();
        for (known, now) in known.conditions.iter_mut().zip(&status.conditions) {
            known.last_transition_time = now.last_transition_time.clone();
        }
        known == *status
    }

    fn due(&self) -> Instant {
        (self.last + GATHER).min(self.first + GATHER_AT_MOST)
    }
}

impl Report {
    pub(super) fn new(
        node: &str,
        kernel_release: String,
        mut before: LoadBalancerNodeStatus,
    ) -> Self {
        // The others are of an agent that left, or the operator's.
        let own = ConditionType::Ready.name();
        before.conditions.retain(|c| c.type_ == own);
        Self {
            node: node.to_owned(),
            kernel_release,
            status: before,
            last_write: None,
            changed: None,
            exceptions: Arc::default(),
            summary: 0,
            lost: Vec::new(),
            capacity: Vec::new(),
            nearly_full: NearlyFull::default(),
            closed_doors: Vec::new(),
        }
    }

    /// Shows what is, and has it written when it has changed or the heart must beat.
    pub(super) fn turn(&mut self, rooms: Rooms<'_>, now: Now, effects: &mut Vec<Effect>) {
        let (summary, number) = rooms.program.tables.summary();
        let lost = lost::problems(rooms.network, rooms.program);
        if self.summary != number || self.lost != lost {
            let problems = summary.not_live.iter().chain(&lost);
            self.exceptions = Arc::new(exceptions(problems));
            self.summary = number;
            self.lost = lost;
        }
        self.capacity = Capacity::of(&rooms.program.tables.planner().read());
        self.nearly_full.look(&self.capacity);
        let not_ready = self.not_ready(rooms);
        let published = self.published(rooms, not_ready.clone());
        effects.push(Effect::Publish(Box::new(published)));
        if let Some(status) = self.due_status(rooms, &not_ready, now) {
            effects.push(Effect::WriteStatus(Box::new(status)));
        }
    }

    /// When something is to be written without any news.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let beat = self.last_write.map(|at| at + HEARTBEAT);
        let change = self.changed.as_ref().map(Changed::due);
        beat.into_iter().chain(change).min()
    }

    /// The status as last written.
    pub(super) fn last_status(&self) -> &LoadBalancerNodeStatus {
        &self.status
    }

    fn due_status(
        &mut self,
        rooms: Rooms<'_>,
        not_ready: &[String],
        now: Now,
    ) -> Option<LoadBalancerNodeStatus> {
        let status = self.status(rooms, not_ready, now)?;
        self.notice(&status, now.instant);
        let beat = self.last_write.map(|at| at + HEARTBEAT);
        let change = self.changed.as_ref().map(Changed::due);
        if beat.is_some_and(|at| now.instant < at) && change.is_none_or(|at| now.instant < at) {
            return None;
        }
        self.last_write = Some(now.instant);
        self.changed = None;
        self.status = LoadBalancerNodeStatus {
            heartbeat_time: Some(Time(now.time)),
            ..status
        };
        Some(self.status.clone())
    }

    /// Notes whether the status is to be written, and when it last changed.
    fn notice(&mut self, status: &LoadBalancerNodeStatus, now: Instant) {
        if *status == self.status {
            self.changed = None;
            return;
        }
        let before = self.changed.as_ref();
        if before.is_some_and(|changed| changed.is(status)) {
            return;
        }
        self.changed = Some(Changed {
            status: status.clone(),
            first: before.map_or(now, |changed| changed.first),
            last: now,
        });
    }

    /// The status of now, but for the heartbeat; `None` while nothing is known of this node.
    fn status(
        &self,
        rooms: Rooms<'_>,
        not_ready: &[String],
        now: Now,
    ) -> Option<LoadBalancerNodeStatus> {
        let node = rooms.intent.node.as_ref()?;
        let generation = node.metadata.generation.unwrap_or_default();
        let acknowledged = self.acknowledged(rooms);
        let (summary, _) = rooms.program.tables.summary();
        let exceptions = &self.exceptions;
        let mut status = LoadBalancerNodeStatus {
            observed_generation: generation,
            conditions: self.status.conditions.clone(),
            addresses: own_addresses(rooms.network)
                .take(MAX_NODE_ADDRESSES)
                .copied()
                .collect(),
            acknowledged_revision: acknowledged.virtual_servers,
            acknowledged_pool_revision: acknowledged.pools,
            exception_count: u32::try_from(exceptions.len()).unwrap_or(u32::MAX),
            exceptions: exceptions.iter().take(MAX_EXCEPTIONS).cloned().collect(),
            unlisted_exceptions: unlisted(exceptions),
            heartbeat_time: self.status.heartbeat_time.clone(),
            interfaces: rooms
                .program
                .attachments
                .uplinks()
                .map(|uplink| {
                    rooms
                        .announce
                        .told_uplink(uplink, rooms.network, now.instant)
                })
                .collect(),
            groups: rooms.announce.groups().collect(),
            unheld_groups: rooms.announce.unheld().take(MAX_UNHELD_GROUPS).collect(),
            new_addresses: rooms
                .announce
                .new_addresses()
                .take(MAX_NEW_ADDRESSES)
                .collect(),
            address_claims: rooms.announce.claims().collect(),
            down_servers: rooms.health.down().take(MAX_DOWN_SERVERS).collect(),
            capabilities: Some(self.capabilities(rooms)),
            capacity: self.capacity.iter().map(entry).collect(),
        };
        let (reason, message) = if not_ready.is_empty() {
            // It serves without the admin endpoint, so the node is ready.
            let of_groups = rooms.announce.problem();
            let notes = self.closed_doors.iter().chain([&summary.notes]);
            let notes = notes.chain(&of_groups);
            let notes: Vec<&str> = notes
                .map(String::as_str)
                .filter(|note| !note.is_empty())
                .collect();
            (Reason::AsExpected, notes.join("; "))
        } else {
            (Reason::NotInForce, not_ready.join("; "))
        };
        set_condition(
            &mut status.conditions,
            ConditionType::Ready,
            not_ready.is_empty(),
            reason,
            &message,
            generation,
            &Time(now.time),
        );
        self.warn(rooms, &mut status, &Time(now.time));
        Some(status)
    }

    /// Says in conditions what is amiss though the node may be ready.
    fn warn(&self, rooms: Rooms<'_>, status: &mut LoadBalancerNodeStatus, now: &Time) {
        let missed = rooms.program.attachments.missed_uplinks();
        let nearly_full = self.nearly_full.texts(&self.capacity);
        let (claimed_reason, claimed) = rooms.announce.claimed();
        let (down_reason, down) = rooms.health.complaints();
        for (kind, reason, amiss) in [
            (
                ConditionType::NotAttached,
                Reason::AttachFailed,
                &missed[..],
            ),
            (
                ConditionType::NearlyFull,
                Reason::LimitNear,
                &nearly_full[..],
            ),
            (
                ConditionType::NetworkAdvice,
                Reason::NetworkSettings,
                rooms.advice,
            ),
            (ConditionType::AddressClaimed, claimed_reason, &claimed[..]),
            (ConditionType::ServersDown, down_reason, &down[..]),
        ] {
            warn_of(status, (kind, reason), amiss, now);
        }
    }

    fn published(&self, rooms: Rooms<'_>, not_ready: Vec<String>) -> Published {
        let (neighbours, neighbours_unresolved) = rooms.network.neighbours();
        let acknowledged = self.acknowledged(rooms);
        let uplinks = rooms.program.attachments.uplinks();
        Published {
            planner: Some(rooms.program.tables.planner().clone()),
            acknowledged_revision: acknowledged.virtual_servers,
            acknowledged_pool_revision: acknowledged.pools,
            exceptions: Arc::clone(&self.exceptions),
            groups: rooms
                .announce
                .groups()
                .map(|group| (group.name, group.role == GroupRole::Holder))
                .collect(),
            groups_without_holder: rooms.announce.unheld().count(),
            checked: rooms.health.counts(),
            interfaces: uplinks
                .map(|uplink| (uplink.name.clone(), uplink.attach_mode))
                .collect(),
            neighbours,
            neighbours_unresolved,
            not_ready,
        }
    }

    fn acknowledged(&self, rooms: Rooms<'_>) -> Revisions {
        if rooms.intent.held.is_some() {
            // The decisions in force are another world's, with revisions of its own, or some were never read by this agent.
            return Revisions::default();
        }
        // The decisions that were live before stay in the maps while the newest ones cannot be applied.
        let before = Revisions {
            virtual_servers: self.status.acknowledged_revision,
            pools: self.status.acknowledged_pool_revision,
        };
        rooms.program.tables.revisions().unwrap_or(before)
    }

    fn capabilities(&self, rooms: Rooms<'_>) -> Capabilities {
        let mut features = Vec::new();
        match rooms.program.attachments.uses_tcx() {
            Some(true) => features.push("Tcx".to_owned()),
            Some(false) => features.push("Clsact".to_owned()),
            None => {}
        }
        if rooms.network.sees_managed() {
            features.push("ManagedNeighbours".to_owned());
        }
        Capabilities {
            kernel_release: self.kernel_release.clone(),
            features,
        }
    }

    /// Why the node does not do what it should; empty if it does.
    fn not_ready(&self, rooms: Rooms<'_>) -> Vec<String> {
        let intent = rooms.intent;
        let failures = [rooms.program.tables.failure(), rooms.not_left];
        let failures = failures.into_iter().flatten().map(str::to_owned);
        let mut reasons: Vec<String> = intent.held.iter().cloned().collect();
        if intent.node.is_none() {
            reasons.extend(failures);
            if intent.held.is_none() {
                reasons.push(self.unknown(intent));
            }
            return reasons;
        }
        let attachments = &rooms.program.attachments;
        if attachments.uplinks().next().is_none() {
            reasons.push("no program is attached yet".to_owned());
        }
        reasons.extend(attachments.missed_uplinks());
        reasons.extend(attachments.bridge_problems().values().cloned());
        let count = own_addresses(rooms.network).count();
        if count > MAX_NODE_ADDRESSES {
            reasons.push(format!(
                "the node has {count} addresses on uplinks and loopback, and its status holds {MAX_NODE_ADDRESSES}: take \
                 some off, since a virtual server may be given one of the others"
            ));
        }
        reasons.extend(failures);
        reasons.extend(intent.refused.clone());
        reasons
    }

    /// Why nothing is known of this node.
    fn unknown(&self, intent: &Intent) -> String {
        let node = &self.node;
        if intent.synced {
            return format!("there is no LoadBalancerNode {node}: create it");
        }
        format!(
            "what the LoadBalancerNode {node} asks for is not known yet: the source could not be read completely, see the \
             log"
        )
    }
}

/// Says in a condition what is amiss, if anything is.
fn warn_of(
    status: &mut LoadBalancerNodeStatus,
    (kind, reason): (ConditionType, Reason),
    amiss: &[String],
    now: &Time,
) {
    let generation = status.observed_generation;
    let conditions = &mut status.conditions;
    if amiss.is_empty() {
        conditions.retain(|condition| condition.type_ != kind.name());
        return;
    }
    let message = amiss.join("; ");
    set_condition(conditions, kind, true, reason, &message, generation, now);
}

fn own_addresses(network: &Network) -> impl Iterator<Item = &IpAddr> {
    let addresses = network.interface_addresses().iter();
    addresses.filter(|address| match address {
        IpAddr::V4(address) => !address.is_link_local(),
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    })
}

fn entry(capacity: &Capacity) -> CapacityEntry {
    CapacityEntry {
        name: capacity.name.to_owned(),
        limit: capacity.limit,
    }
}
