//! Nodes: whether each lives, and which of them a decision is in force on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::coordination::v1::Lease;
use serde::Serialize;
use sluice_api::{
    Authority, ConditionType, GroupRole, GroupStatus, LoadBalancerNode, LoadBalancerNodeStatus,
    NODE_LABEL, NODE_SILENT_SECONDS, ObjectKey, UnheldGroup, is_true, node_label,
};
use sluice_kube::lease::LeaseFacts;

use super::{DownView, StateView};

/// A node.
#[derive(Serialize, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// `Director` or `RealServer`.
    pub role: String,
    /// Whether it reports: `Live`, `Silent`, `Detached`, `NeverReported` or `Unknown`.
    pub presence: Presence,
    /// Its condition `Ready`, as its agent reports it.
    pub state: StateView,
    /// Its uplinks.
    pub interfaces: Vec<InterfaceView>,
    /// The VIP groups that it takes part in, as its agent reports them, by name.
    pub groups: Vec<GroupView>,
    /// Whether it is to hold no VIP group.
    pub drain: bool,
    /// Everything on virtual servers up to this revision is live there.
    pub acknowledged_revision: u64,
    /// Everything on pools up to this revision is live there.
    pub acknowledged_pool_revision: u64,
    /// Number of its exceptions, in all namespaces.
    pub exception_count: u32,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// Its kernel.
    pub kernel_release: Option<String>,
}

/// Whether a node reports.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// Its Lease was renewed in time.
    Live,
    /// Its Lease cannot be read, and the operator does not call it silent.
    Unknown,
    /// Its Lease was not renewed in time, or the operator calls it silent.
    Silent,
    /// It has taken everything off.
    Detached,
    /// Its agent has not reported anything.
    NeverReported,
}

/// An uplink.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceView {
    /// Its name.
    pub name: String,
    /// `Native`, `Generic` or `None`.
    pub attach_mode: String,
    /// Why.
    pub reason: Option<String>,
}

/// A VIP group that a node takes part in.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct GroupView {
    /// Its name.
    pub name: String,
    /// `Holder` or `Candidate`.
    pub role: GroupRole,
    /// By what a holder holds it: `Lease` or `Peers`.
    pub authority: Option<Authority>,
}

/// When the nodes' Leases were written, all by the API server's clock.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leases {
    now: i64,
    /// By the nodes' labels.
    written: BTreeMap<String, i64>,
}

impl Leases {
    /// Reads Leases. `now` is in seconds since 1970; without it the newest Lease tells how late it is at least.
    pub fn new(leases: Vec<Lease>, now: Option<i64>) -> Self {
        let of_node = |lease: Lease| {
            let labels = lease.metadata.labels.as_ref();
            let node = labels.and_then(|labels| labels.get(NODE_LABEL)).cloned()?;
            Some((node, LeaseFacts::of(lease).written?))
        };
        let written: BTreeMap<String, i64> = leases.into_iter().filter_map(of_node).collect();
        let newest = written.values().max().copied();
        Self {
            now: now.or(newest).unwrap_or_default(),
            written,
        }
    }

    fn presence(&self, node: &str) -> Presence {
        let limit = i64::try_from(NODE_SILENT_SECONDS).unwrap_or(i64::MAX);
        match self.written.get(&node_label(node)) {
            Some(written) if self.now - written > limit => Presence::Silent,
            Some(_) => Presence::Live,
            None => Presence::Unknown,
        }
    }
}

/// The nodes and their Leases.
#[derive(Clone, Copy, Debug)]
pub struct Nodes<'a> {
    /// All of them.
    pub objects: &'a [LoadBalancerNode],
    /// Their Leases; `None`: they may not be listed.
    pub leases: Option<&'a Leases>,
}

/// Revisions that a node has to acknowledge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    pub(super) revision: u64,
    pub(super) pool_revision: u64,
}

/// The nodes on which a decision is in force, and those on which it is not yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct InForce {
    pub(super) nodes: u32,
    pub(super) live_nodes: u32,
    pub(super) awaited: Vec<String>,
}

impl<'a> Nodes<'a> {
    /// Where a decision is in force. Nodes in `excepted` have it, but not as decided; packets miss it on those whose programs
    /// are not attached.
    pub(super) fn in_force(&self, wanted: Wanted, excepted: &BTreeSet<&str>) -> InForce {
        let live: Vec<(String, LoadBalancerNodeStatus)> = self.live().collect();
        let has_joined = |status: &LoadBalancerNodeStatus| {
            status.acknowledged_revision > 0 || status.acknowledged_pool_revision > 0
        };
        // Like the operator: a node counts from its first acknowledgement on, where any has acknowledged something.
        let is_any_joined = live.iter().any(|(_, status)| has_joined(status));
        let counted = live
            .iter()
            .filter(|(_, status)| !is_any_joined || has_joined(status));
        let (mut nodes, mut live_nodes, mut awaited) = (0, 0, Vec::new());
        for (name, status) in counted {
            live_nodes += 1;
            let is_behind = status.acknowledged_revision < wanted.revision
                || status.acknowledged_pool_revision < wanted.pool_revision;
            if is_behind {
                awaited.push(name.clone());
            } else if !excepted.contains(name.as_str()) && status.not_attached().is_none() {
                nodes += 1;
            }
        }
        awaited.sort();
        InForce {
            nodes,
            live_nodes,
            awaited,
        }
    }

    fn live(&self) -> impl Iterator<Item = (String, LoadBalancerNodeStatus)> + 'a {
        let leases = self.leases;
        let live = self.objects.iter().filter(move |object| {
            let presence = Presence::of(object, leases);
            matches!(presence, Presence::Live | Presence::Unknown)
        });
        live.map(|object| {
            let status = object.status.clone().unwrap_or_default();
            (ObjectKey::of(object).name, status)
        })
    }

    /// The VIP groups that nodes say they hold, each with the node's name. What a node said before it fell silent or was taken
    /// off does not count.
    pub(super) fn held(&self) -> impl Iterator<Item = (String, GroupStatus)> + 'a {
        self.live().flat_map(|(node, status)| {
            let groups = status.groups.into_iter();
            let held = groups.filter(|group| group.role == GroupRole::Holder);
            held.map(move |group| (node.clone(), group))
        })
    }

    /// The VIP groups for which nodes hear nobody answer, each with the node's name.
    pub(super) fn unheld(&self) -> impl Iterator<Item = (String, UnheldGroup)> + 'a {
        self.live().flat_map(|(node, status)| {
            let groups = status.unheld_groups.into_iter();
            groups.map(move |group| (node.clone(), group))
        })
    }

    /// The servers that nodes say are down, by pool.
    pub(super) fn down_servers(&self) -> BTreeMap<ObjectKey, Vec<(IpAddr, DownView)>> {
        let mut found: BTreeMap<ObjectKey, Vec<_>> = BTreeMap::new();
        for (node, status) in self.live() {
            for server in status.down_servers {
                let down = DownView {
                    node: node.clone(),
                    port: server.port,
                    reason: server.reason,
                };
                let pool = ObjectKey::new(&server.namespace, &server.pool);
                found.entry(pool).or_default().push((server.address, down));
            }
        }
        found
    }

    /// All of them, by name.
    pub(super) fn views(&self) -> Vec<NodeView> {
        let nodes = self.objects.iter();
        let mut views: Vec<NodeView> = nodes.map(|node| view(node, self.leases)).collect();
        views.sort_by(|a, b| a.name.cmp(&b.name));
        views
    }
}

impl Presence {
    fn of(object: &LoadBalancerNode, leases: Option<&Leases>) -> Self {
        let status = object.status.clone().unwrap_or_default();
        let is = |kind| is_true(&status.conditions, kind);
        let unreported = LoadBalancerNodeStatus {
            conditions: status.conditions.clone(),
            ..LoadBalancerNodeStatus::default()
        };
        let of_operator = ConditionType::Silent.name();
        let mut conditions = status.conditions.iter();
        let is_reported =
            status != unreported || conditions.any(|condition| condition.type_ != of_operator);
        if is(ConditionType::Detached) {
            return Self::Detached;
        }
        if !is_reported {
            return Self::NeverReported;
        }
        let name = ObjectKey::of(object).name;
        let by_lease = leases.map_or(Self::Unknown, |leases| leases.presence(&name));
        if by_lease == Self::Unknown && is(ConditionType::Silent) {
            return Self::Silent;
        }
        by_lease
    }
}

fn view(object: &LoadBalancerNode, leases: Option<&Leases>) -> NodeView {
    let name = ObjectKey::of(object).name;
    let presence = Presence::of(object, leases);
    let status = object.status.clone().unwrap_or_default();
    let interfaces = status.interfaces.iter().map(|interface| InterfaceView {
        name: interface.name.clone(),
        attach_mode: format!("{:?}", interface.attach_mode),
        reason: interface.reason.clone(),
    });
    let groups = status.groups.into_iter().map(|group| GroupView {
        name: group.name,
        role: group.role,
        authority: group.authority,
    });
    let mut groups: Vec<GroupView> = groups.collect();
    groups.sort_by(|a, b| a.name.cmp(&b.name));
    NodeView {
        name,
        role: format!("{:?}", object.spec.role),
        presence,
        state: StateView::new(
            &status.conditions,
            object.metadata.generation,
            status.observed_generation,
        ),
        interfaces: interfaces.collect(),
        groups,
        drain: object.spec.drain,
        acknowledged_revision: status.acknowledged_revision,
        acknowledged_pool_revision: status.acknowledged_pool_revision,
        exception_count: status.exception_count,
        addresses: status.addresses,
        kernel_release: status.capabilities.map(|c| c.kernel_release),
    }
}
