//! The plugin's output: one structure for the table and for programs (JSON and YAML, camelCase). It is documented in
//! docs/kubectl-sluice.md; fields are added, never renamed or removed within a `formatVersion`.

mod build;
mod groups;
mod nodes;
mod rollout;
mod servers;
mod vips;

use serde::Serialize;
use sluice_api::{Condition, ConditionType, ExternalTrafficPolicy, find_condition, is_true};

pub use build::{Objects, status};
pub use groups::{AnnouncementView, GroupLeases, HoldState};
pub use nodes::{GroupView, InterfaceView, Leases, NodeView, Nodes, Presence};
pub use rollout::{LiveNodes, NextCommand, PlannedStep, RolloutView, StepView, driver, rollout};
pub use servers::{DownView, ServerState, ServerView, SourceView};
pub use vips::{VipView, VipsView, vips};

/// Version of the structure.
pub const FORMAT_VERSION: u32 = 2;

/// The output of `kubectl sluice status`.
#[derive(Serialize, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct StatusView {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// By namespace, then name.
    pub virtual_servers: Vec<VirtualServerView>,
    /// By name; absent: they may not be listed.
    pub nodes: Option<Vec<NodeView>>,
}

/// A virtual server.
#[derive(Serialize, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct VirtualServerView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Of the newest spec.
    pub generation: i64,
    /// The VIPs: those decided, else those of the spec.
    pub addresses: Vec<String>,
    /// Who announces the decided VIPs, in the same order; empty: nothing is decided.
    pub vips: Vec<AnnouncementView>,
    /// The ports: those decided, else those of the spec.
    pub ports: Vec<PortView>,
    /// Forwarding mode.
    pub mode: String,
    /// The key that is hashed to choose the pool of a new flow.
    pub pool_selection: String,
    /// The key that is hashed to choose the server of a new flow within its pool.
    pub server_selection: String,
    /// Which directors take packets, and for which servers.
    pub external_traffic_policy: ExternalTrafficPolicy,
    /// The blocks whose clients may begin flows; absent: everybody may.
    pub sources: Option<Vec<String>>,
    /// Whether the newest spec is in force.
    pub state: StateView,
    /// Conditions that say that something is amiss.
    pub warnings: Vec<WarningView>,
    /// The decision that nodes are to forward by; absent: it is not served.
    pub decision: Option<DecisionView>,
    /// The nodes' acknowledgements of the decision; absent: nothing is decided.
    pub acknowledged: Option<AcknowledgedView>,
    /// In the order of the decision, then those that only the spec has.
    pub pools: Vec<PoolView>,
    /// The exceptions that nodes report for it, for one of its pools, or for all virtual servers.
    pub exceptions: Vec<ExceptionView>,
    /// The rollout policy that drives it.
    pub rollout: Option<RolloutView>,
}

/// A port that clients connect to.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct PortView {
    /// Its name.
    pub name: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// Its number.
    pub port: u16,
}

/// The condition `Ready`, and whether the object is stalled.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct StateView {
    /// `True`, `False` or `Unknown`.
    pub ready: String,
    /// Whether something has to be done; the message says what.
    pub stalled: bool,
    /// Reason of the condition `Ready`; empty: the operator has not looked at the object.
    pub reason: String,
    /// Its message.
    pub message: String,
    /// Whether this is about an older spec than the newest.
    pub outdated: bool,
}

impl StateView {
    /// `generation` is the object's, `observed` what its status is about.
    fn new(conditions: &[Condition], generation: Option<i64>, observed: i64) -> Self {
        let ready = find_condition(conditions, ConditionType::Ready);
        Self {
            ready: ready.map_or("Unknown", |c| c.status.as_str()).to_owned(),
            stalled: is_true(conditions, ConditionType::Stalled),
            reason: ready.map(|c| c.reason.clone()).unwrap_or_default(),
            message: ready.map(|c| c.message.clone()).unwrap_or_default(),
            outdated: ready.is_some() && generation.is_some_and(|g| g > observed),
        }
    }

    /// Whether the newest spec is in force.
    pub fn is_ready(&self) -> bool {
        self.ready == "True" && !self.outdated
    }
}

/// A condition that says that something is amiss.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct WarningView {
    /// Type of the condition.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its reason.
    pub reason: String,
    /// Its message.
    pub message: String,
}

/// The decision on a virtual server.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct DecisionView {
    /// From the cluster's counter.
    pub revision: u64,
    /// Of the spec that it was resolved from.
    pub generation: i64,
}

/// The nodes' acknowledgements of a virtual server's decision.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct AcknowledgedView {
    /// The last revision that every live node had; 0 = none yet.
    pub revision: u64,
    /// Live nodes on which the current decision is in force; absent: nodes may not be listed.
    pub nodes: Option<u32>,
    /// Live nodes that count: a node does from its first acknowledgement on.
    pub live_nodes: Option<u32>,
    /// Those of them that have not acknowledged the current decision.
    pub awaited: Option<Vec<String>>,
}

/// A weight and its share of all.
#[derive(Serialize, Clone, Copy, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct WeightView {
    /// The weight.
    pub weight: u32,
    /// Its percentage of the sum, to two decimals.
    pub percent: f64,
}

impl WeightView {
    fn new(weight: u32, sum: u64) -> Self {
        let basis = (u64::from(weight) * 10_000 + sum / 2)
            .checked_div(sum)
            .unwrap_or_default();
        let percent = f64::from(u32::try_from(basis).unwrap_or(10_000)) / 100.0;
        Self { weight, percent }
    }
}

/// A pool of a virtual server.
#[derive(Serialize, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct PoolView {
    /// Its name.
    pub name: String,
    /// The weight of the virtual server's newest spec; absent: the spec no longer has the pool.
    pub spec_weight: Option<u32>,
    /// The weight that is decided.
    pub decided: Option<WeightView>,
    /// The weight that every live node has acknowledged.
    pub acknowledged: Option<WeightView>,
    /// Whether there is such a RealServerPool.
    pub exists: bool,
    /// Whether its newest spec is in force.
    pub state: StateView,
    /// Revision of the decision on the pool.
    pub revision: Option<u64>,
    /// Where its servers come from.
    pub source: Option<SourceView>,
    /// Number of its servers as the operator counts them.
    pub server_count: u32,
    /// Those that take new flows as the operator counts them.
    pub ready_server_count: u32,
    /// The servers; absent: EndpointSlices may not be listed.
    pub servers: Option<Vec<ServerView>>,
}

/// Something that a node cannot do as decided.
#[derive(Serialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "camelCase")]
pub struct ExceptionView {
    /// The node.
    pub node: String,
    /// Kind of the object.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
    /// The problem and the remedy.
    pub message: String,
}
