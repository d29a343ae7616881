//! Which nodes count, and what they acknowledged.

use std::collections::BTreeMap;

use sluice_api::{
    Decision, ExceptionKind, LoadBalancerNodeStatus, MAX_REVISION, NODE_SILENT_SECONDS,
    NodeException, ObjectKey, Reason, Time,
};

use super::world::{Node, Standing, Trust, World};

/// Tells live nodes from silent ones by the change of their heartbeat on the own monotonic clock. What a heartbeat says is
/// never compared with the own time: clocks differ.
#[derive(Debug, Default)]
pub struct Liveness {
    heard: BTreeMap<String, Heard>,
}

#[derive(Debug)]
struct Heard {
    heartbeat: Option<Time>,
    at_ms: u64,
    first_ms: u64,
    /// For how long the heartbeat had been this one when it was first seen, as far as that counts.
    before_ms: u64,
    /// Whether the node was there before anything was decided, and has acknowledged nothing since.
    was_first: bool,
    /// Since when it has acknowledged nothing of what was decided before it came.
    joining_ms: Option<u64>,
    /// The revisions of the last acknowledgement that was believed, of virtual servers and of pools.
    believed: Option<(u64, u64)>,
    /// Since when it has acknowledged more than is known to have been given.
    ahead_ms: Option<u64>,
}

impl Heard {
    fn is_silent(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.at_ms) + self.before_ms > NODE_SILENT_SECONDS * 1000
    }
}

/// How long the first report of a node is waited for before VIPs are admitted without knowing its addresses.
const FIRST_REPORT_MS: u64 = 5_000;

/// By how much the first acknowledgement of a node may be beyond all revisions that are known: decisions may be gone, with a
/// backup that was restored or with their objects, and what nodes acknowledge is all that is left of them.
const MAX_LOST_REVISIONS: u64 = 1_000_000_000;

/// For how long a node may acknowledge more than is known to have been given: each kind of objects is heard of by a watch of its
/// own, and an operator that was held up has yet to hear what another one decided meanwhile.
const AHEAD_MS: u64 = 10_000;

/// How long rollouts wait for the first acknowledgement of a node.
const JOIN_MS: u64 = 40_000;

/// How long a node is listened to in any case before it is taken for silent: agents renew every 5 s.
const SURE_MS: u64 = 10_000;

impl Liveness {
    /// Notes a node's heartbeat and says whether it counts: until it has been silent for [`NODE_SILENT_SECONDS`]. `before_ms`
    /// is for how long the heartbeat is known to have been this one; it counts when a node is seen for the first time, and
    /// never so much that a node which lives had no time to say so: after a restart nobody is taken for dead too soon.
    pub fn observe(
        &mut self,
        node: &str,
        heartbeat: Option<&Time>,
        before_ms: u64,
        now_ms: u64,
    ) -> bool {
        let heard = self.heard.entry(node.to_owned()).or_insert_with(|| Heard {
            heartbeat: heartbeat.cloned(),
            at_ms: now_ms,
            first_ms: now_ms,
            before_ms: before_ms.min(NODE_SILENT_SECONDS * 1000 - SURE_MS),
            was_first: false,
            joining_ms: None,
            believed: None,
            ahead_ms: None,
        });
        if heard.heartbeat.as_ref() != heartbeat {
            heard.heartbeat = heartbeat.cloned();
            heard.at_ms = now_ms;
            heard.before_ms = 0;
        }
        !heard.is_silent(now_ms)
    }

    /// Whether a node that counts would no longer do so at this time, if its heartbeat stays what it is.
    pub fn is_about_to_fall_silent(
        &self,
        node: &str,
        heartbeat: Option<&Time>,
        now_ms: u64,
    ) -> bool {
        self.heard
            .get(node)
            .is_some_and(|heard| heard.is_silent(now_ms) && heard.heartbeat.as_ref() == heartbeat)
    }

    /// For how long a node was observed to give no sign of life.
    pub fn silent_ms(&self, node: &str, now_ms: u64) -> u64 {
        let heard = self.heard.get(node);
        heard.map_or(0, |heard| now_ms.saturating_sub(heard.at_ms))
    }

    /// Whether a node has given a sign of life since it was first observed.
    pub fn was_heard(&self, node: &str) -> bool {
        let heard = self.heard.get(node);
        heard.is_some_and(|heard| heard.at_ms > heard.first_ms)
    }

    /// Who waits for a node that was observed. `is_decided`: there is a decision that it could acknowledge. A node that no
    /// longer acknowledges anything, as after a reboot, joins anew.
    pub fn standing(
        &mut self,
        node: &str,
        status: &LoadBalancerNodeStatus,
        is_decided: bool,
        now_ms: u64,
    ) -> Standing {
        let Some(heard) = self.heard.get_mut(node) else {
            return Standing::Joined;
        };
        let has_acknowledged = has_acknowledged(status);
        if has_acknowledged || !is_decided || heard.was_first {
            heard.was_first = !has_acknowledged;
            heard.joining_ms = None;
            return Standing::Joined;
        }
        let since_ms = *heard.joining_ms.get_or_insert(now_ms);
        if now_ms.saturating_sub(since_ms) < JOIN_MS {
            Standing::Joining
        } else {
            Standing::Late
        }
    }

    /// Takes an acknowledgement that cannot be true out of an observed node's report: new revisions go on above what nodes
    /// acknowledge, so that a node could use the numbers up. `given` is the highest revision that is known. Another operator may
    /// have given more, which is heard of a little later: until [`AHEAD_MS`] have passed the last acknowledgement that was
    /// believed stands, and then none. Returns the revision that is not believed by then.
    pub fn disbelieve(
        &mut self,
        node: &str,
        status: &mut LoadBalancerNodeStatus,
        given: u64,
        now_ms: u64,
    ) -> Option<u64> {
        let heard = self.heard.get_mut(node)?;
        let told = (
            status.acknowledged_revision,
            status.acknowledged_pool_revision,
        );
        let claimed = told.0.max(told.1);
        let most = if heard.believed.is_some() {
            given
        } else {
            given.saturating_add(MAX_LOST_REVISIONS).min(MAX_REVISION)
        };
        if claimed <= most {
            heard.ahead_ms = None;
            if claimed > 0 {
                heard.believed = Some(told);
            }
            return None;
        }
        let since_ms = *heard.ahead_ms.get_or_insert(now_ms);
        let is_accused = now_ms.saturating_sub(since_ms) >= AHEAD_MS;
        let stands = heard.believed.filter(|_| !is_accused);
        (
            status.acknowledged_revision,
            status.acknowledged_pool_revision,
        ) = stands.unwrap_or_default();
        is_accused.then_some(claimed)
    }

    /// Whether a node that has not reported yet may still be starting.
    pub fn is_starting(&self, node: &str, now_ms: u64) -> bool {
        self.heard.get(node).is_some_and(|heard| {
            heard.heartbeat.is_none() && now_ms.saturating_sub(heard.first_ms) < FIRST_REPORT_MS
        })
    }

    /// Forgets the nodes for which `keep` is false.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.heard.retain(|node, _| keep(node));
    }
}

fn has_acknowledged(status: &LoadBalancerNodeStatus) -> bool {
    status.acknowledged_revision > 0 || status.acknowledged_pool_revision > 0
}

/// Who asks what nodes say of a decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asker {
    /// A condition. A node that is only joining makes nothing less ready than it was.
    Condition,
    /// A rollout.
    Rollout,
}

impl Asker {
    /// Whether this one waits for such a node, as long as there are others.
    fn waits_for(self, standing: Standing) -> bool {
        match standing {
            Standing::Joined => true,
            Standing::Joining => self == Self::Rollout,
            Standing::Late => false,
        }
    }
}

/// The live nodes' answer to one decision.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Acknowledgement<'a> {
    /// Whether any node is live.
    pub(super) is_any_live: bool,
    /// Nodes that have not acknowledged the revision.
    pub(super) awaited: Vec<&'a str>,
    /// Names of nodes with an exception, each with its text.
    pub(super) exceptions: Vec<(&'a str, String)>,
}

impl Acknowledgement<'_> {
    /// Whether the decision is in force on every live node that counts, of which there is at least one.
    pub(super) fn is_complete(&self) -> bool {
        self.is_any_live && self.awaited.is_empty() && self.exceptions.is_empty()
    }
}

/// The live nodes' answer to a virtual server's decision; pools with a weight belong to it.
pub(super) fn of_decision<'a>(
    world: &'a World,
    key: &ObjectKey,
    decision: &Decision,
    asker: Asker,
) -> Acknowledgement<'a> {
    let wanted = Wanted::of(world, key, decision);
    let pools = decision.content.pools.iter().filter(|pool| pool.weight > 0);
    let pools = pools.map(|pool| (ExceptionKind::RealServerPool, key.sibling(&pool.name)));
    let own = (ExceptionKind::VirtualServer, key.clone());
    let objects: Vec<_> = [own].into_iter().chain(pools).collect();
    of_revision(world, wanted, asker, &objects)
}

/// The live nodes' answer to a pool's decision.
pub(super) fn of_pool<'a>(world: &'a World, key: &ObjectKey, revision: u64) -> Acknowledgement<'a> {
    let wanted = Wanted {
        revision: 0,
        pool_revision: revision,
    };
    let objects = [(ExceptionKind::RealServerPool, key.clone())];
    of_revision(world, wanted, Asker::Condition, &objects)
}

/// Revisions that a node must have acknowledged.
#[derive(Clone, Copy)]
struct Wanted {
    /// Of virtual servers.
    revision: u64,
    /// Of pools.
    pool_revision: u64,
}

impl Wanted {
    /// Of a virtual server's decision. Pools that are gone do not count: no node reads their decisions any more.
    fn of(world: &World, key: &ObjectKey, decision: &Decision) -> Self {
        let pools = decision.content.pools.iter().filter(|pool| pool.weight > 0);
        let pools = pools.map(|pool| key.sibling(&pool.name));
        let pools = pools.filter(|pool| world.pools.contains_key(pool));
        let pool_revision = pools
            .filter_map(|pool| Some(world.pool_decision(&pool)?.revision))
            .max();
        Self {
            revision: decision.revision,
            pool_revision: pool_revision.unwrap_or_default(),
        }
    }

    fn is_met(self, status: &LoadBalancerNodeStatus) -> bool {
        status.acknowledged_revision >= self.revision
            && status.acknowledged_pool_revision >= self.pool_revision
    }
}

/// `objects` are those whose exceptions count. Where a virtual server is among them, packets have to reach the programs; a
/// pool by itself is in force when it is in the maps.
fn of_revision<'a>(
    world: &'a World,
    wanted: Wanted,
    asker: Asker,
    objects: &[(ExceptionKind, ObjectKey)],
) -> Acknowledgement<'a> {
    let concerns = |exception: &&NodeException| {
        objects.iter().any(|(kind, object)| {
            let names = (&exception.namespace, &exception.name);
            *kind == exception.kind && names == (&object.namespace, &object.name)
        })
    };
    let mut kinds = objects.iter().map(|(kind, _)| *kind);
    let meets_packets = kinds.any(|kind| kind == ExceptionKind::VirtualServer);
    let mut result = Acknowledgement::default();
    let live = || world.nodes.iter().filter(|(_, node)| node.live);
    let is_any_joined = live().any(|(_, node)| asker.waits_for(node.standing));
    for (name, node) in live() {
        result.is_any_live = true;
        if is_any_joined && !asker.waits_for(node.standing) {
            continue;
        }
        if node.trust == Trust::Disbelieved {
            result.exceptions.push((name, DISBELIEVED.to_owned()));
        } else if !wanted.is_met(&node.status) {
            result.awaited.push(name);
        }
        if let Some(why) = node.status.not_attached().filter(|_| meets_packets) {
            let text = format!("LoadBalancerNode {name}: {}: {why}", Reason::AttachFailed);
            result.exceptions.push((name, text));
        }
        let exceptions = &node.status.exceptions;
        let concerning = exceptions.iter().filter(concerns).map(told);
        result
            .exceptions
            .extend(concerning.map(|text| (name.as_str(), text)));
        let mut objects = objects.iter();
        if objects.any(|(kind, object)| node.status.has_unlisted(*kind, object)) {
            result.exceptions.push((name, UNLISTED.to_owned()));
        }
    }
    result
}

/// Counts nothing: how many there are changes with other objects.
const UNLISTED: &str = "has exceptions for more objects than its status has room for, and for this one or a pool of it among \
                        them: see its agent's dump, and correct what its status lists";

/// Names no revision, which the node could change as it likes.
const DISBELIEVED: &str = "acknowledges a revision that was never given, so nothing that it acknowledges is believed: restart \
                           its agent, and find out who else writes the status of its LoadBalancerNode";

fn told(exception: &NodeException) -> String {
    let kind = match exception.kind {
        ExceptionKind::VirtualServer => "VirtualServer",
        ExceptionKind::RealServerPool => "RealServerPool",
    };
    let NodeException {
        name,
        reason,
        message,
        ..
    } = exception;
    format!("{kind} {name}: {reason}: {message}")
}

/// Names of the nodes whose first report is waited for.
pub(super) fn starting(world: &World) -> Vec<&str> {
    world
        .nodes
        .iter()
        .filter(|(_, node)| node.starting)
        .map(|(name, _)| name.as_str())
        .collect()
}

/// Names of the nodes that fell silent before they acknowledged this decision: they would hold it up.
pub(super) fn silent<'a>(world: &'a World, key: &ObjectKey, decision: &Decision) -> Vec<&'a str> {
    let wanted = Wanted::of(world, key, decision);
    let is_missed = |node: &Node| {
        let has_joined = node.standing == Standing::Joined;
        node.wanted && !node.live && has_joined && !wanted.is_met(&node.status)
    };
    let nodes = world.nodes.iter();
    let missed = nodes.filter(|(_, node)| is_missed(node));
    missed.map(|(name, _)| name.as_str()).collect()
}
