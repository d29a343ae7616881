//! Where decisions come from. [`Event`] is all that the agent's core sees of a source.

pub mod file;
pub mod kube;
mod state;

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_api::{
    DecidedL2, Decision, EndpointSource, LoadBalancerNode, ObjectKey, Peers, PoolDecision,
};
use sluice_planner::{Problem, Slice};

pub use state::{KindState, SourceState};

/// News for the core. But for [`Event::Decided`] each event says all there is of its kind, so the last one of a kind counts.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// Decisions and EndpointSlices that have changed.
    Decided(Changes),
    /// This node's object: what it is to be, and the generation of that.
    Node(Box<LoadBalancerNode>),
    /// The newest spec of this node breaks a rule, so the one before stays in force. The message names the field and the
    /// remedy.
    NodeRefused(String),
    /// The other directors.
    Peers(Peers),
    /// Whether this node may hold VIP groups.
    MayHold(bool),
    /// How the addresses of address pools are announced.
    Announcing(Announcing),
    /// Why the source withholds the decisions that it reads, so that those in force stay; `None`: it does not any more.
    Held(Option<String>),
    /// This node is to be left: everything comes off it, and stays off for as long as the process lives.
    Detach {
        /// The generation of the spec that the node had.
        generation: i64,
    },
}

/// How addresses are announced.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Announcing {
    /// Those of address pools, by the pool's name. Those of pools that are not here are not announced.
    pub pools: BTreeMap<String, DecidedL2>,
    /// Whether all addresses are announced on the uplinks in whose subnets they are, since there are no pools to say otherwise.
    pub all_on_link: bool,
}

/// An EndpointSlice, by whose it is.
pub type SliceKey = (EndpointSource, ObjectKey);

/// Objects that have changed since the event before; the first event has all. Objects that are gone are `None`.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Changes {
    /// Decisions on virtual servers.
    pub virtual_servers: BTreeMap<ObjectKey, Option<Arc<Decision>>>,
    /// Decisions on pools.
    pub pools: BTreeMap<ObjectKey, Option<Arc<PoolDecision>>>,
    /// EndpointSlices.
    pub slices: BTreeMap<SliceKey, Option<Arc<Slice>>>,
    /// How far the source has read.
    pub mark: Mark,
}

/// How far a source has read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mark {
    /// Once what was told is live, every decision on a virtual server up to this revision is, those that were missed aside.
    pub revision: u64,
    /// The same for decisions on pools.
    pub pool_revision: u64,
    /// Problems with objects that could not be taken over: each stays as it was, or is not served. Those with decisions are
    /// exceptions.
    pub missed: Vec<Problem>,
}

impl Changes {
    /// Whether no object has changed.
    pub fn is_empty(&self) -> bool {
        self.virtual_servers.is_empty() && self.pools.is_empty() && self.slices.is_empty()
    }

    /// Adds what has changed after these.
    pub fn extend(&mut self, later: Self) {
        self.virtual_servers.extend(later.virtual_servers);
        self.pools.extend(later.pools);
        self.slices.extend(later.slices);
        self.mark = later.mark;
    }
}
