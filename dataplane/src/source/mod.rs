//! Where decisions come from. [`Event`] is all that the agent's core sees of a source.

pub mod file;
pub mod kube;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_api::LoadBalancerNodeSpec;
use sluice_planner::{Problem, Snapshot};

pub use state::{KindState, SourceState};

/// News for the core. Each event says all there is of its kind, so the last one of a kind counts.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// The decisions in force.
    Decisions(Decisions),
    /// What this node is to be.
    Node(NodeSpec),
    /// The newest spec of this node breaks a rule, so the one before stays in force. The message names the field and the
    /// remedy.
    NodeRefused(String),
    /// The other directors' own addresses by node name.
    Peers(BTreeMap<String, BTreeSet<IpAddr>>),
    /// Why the source withholds the decisions that it reads, so that those in force stay; `None`: it does not any more.
    Held(Option<String>),
    /// This node is to be left: everything comes off it, and stays off for as long as the process lives.
    Detach {
        /// The generation of the spec that the node had.
        generation: i64,
    },
}

/// The decisions in force.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Decisions {
    /// As the planner takes them.
    pub snapshot: Snapshot,
    /// Once these are live, every decision on a virtual server up to this revision is, those that were missed aside.
    pub revision: u64,
    /// The same for decisions on pools.
    pub pool_revision: u64,
    /// What is decided besides and could not be taken over: it stays as it was, or is not served. Each is an exception.
    pub missed: Vec<Problem>,
}

/// What a node is to be.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeSpec {
    /// As the user wrote it.
    pub spec: LoadBalancerNodeSpec,
    /// The generation of it.
    pub generation: i64,
}
