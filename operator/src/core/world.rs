//! The core's input and its answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_api::{
    Decision, LoadBalancerNodeStatus, ObjectKey, PoolDecision, RealServerPool,
    RealServerPoolStatus, RolloutPolicy, RolloutPolicyStatus, VirtualServer, VirtualServerSpec,
    VirtualServerStatus,
};
use sluice_planner::{Slice, Slices};

use super::addresses::Addresses;
use super::analyses::Analysed;
use super::ledger::Assignment;
use super::timers::Stood;

/// All objects, with the status last written for them.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct World {
    /// Virtual servers.
    pub virtual_servers: BTreeMap<ObjectKey, VirtualServer>,
    /// Pools.
    pub pools: BTreeMap<ObjectKey, RealServerPool>,
    /// Rollout policies.
    pub policies: BTreeMap<ObjectKey, RolloutPolicy>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// Decisions of pools whose objects are gone; they stay while a virtual server's decision refers to them.
    pub orphans: BTreeMap<ObjectKey, RealServerPoolStatus>,
    /// The highest revision of decisions that are gone: given again, an acknowledgement of the old one would be taken for
    /// one of the new.
    pub revision_floor: u64,
    /// Services and EndpointSlices of the cluster; `None` in standalone mode.
    pub cluster: Option<Cluster>,
    /// For how long each policy's step has been as it is (see [`Timers`](super::Timers)).
    pub stood: BTreeMap<ObjectKey, Stood>,
    /// What is seen of the pools of policies (see [`Analyses`](super::Analyses)). One that is not here is not looked at.
    pub analysed: BTreeMap<ObjectKey, Analysed>,
    /// Who has which addresses, the nodes' own reports aside.
    pub addresses: Addresses,
    /// What each virtual server has of the addresses that it asks for. One that is not here has those that it names.
    pub assigned: BTreeMap<ObjectKey, Assignment>,
}

/// The objects beside Sluice's own kinds that the core needs of a Kubernetes cluster.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cluster {
    /// Services.
    pub services: BTreeSet<ObjectKey>,
    /// The EndpointSlices of Services and of pools that select pods.
    pub slices: BTreeMap<ObjectKey, Slice>,
}

/// Who waits for a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Standing {
    /// It has acknowledged something, or was there before anything was decided: everything waits for it.
    #[default]
    Joined,
    /// It came after something was decided, and has acknowledged nothing yet: rollouts wait for it, conditions do not.
    Joining,
    /// It has been joining for too long: nothing waits for it until it acknowledges something.
    Late,
}

/// Whether a node's acknowledgements can be true.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Trust {
    /// As far as can be told.
    #[default]
    Believed,
    /// It acknowledges a revision that was never given. Its status says instead that it has acknowledged nothing.
    Disbelieved,
}

/// A node.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// The last report of its agent.
    pub status: LoadBalancerNodeStatus,
    /// Whether its agent reported lately. The others' acknowledgements are not waited for.
    pub live: bool,
    /// Whether somebody asked for this node. A node that is only a leftover report is not told as silent.
    pub wanted: bool,
    /// Whether its first report is still waited for: its addresses are not known.
    pub starting: bool,
    /// Who waits for it while it is live.
    pub standing: Standing,
    /// Whether what it acknowledges can be true.
    pub trust: Trust,
}

impl Node {
    /// How the node does, in one word for metrics.
    pub fn state(&self) -> &'static str {
        match (self.live, self.standing) {
            (false, _) => "silent",
            (true, Standing::Joined) => "live",
            (true, Standing::Joining | Standing::Late) => "joining",
        }
    }
}

/// The new status of every object.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Outcome {
    /// Of virtual servers.
    pub virtual_servers: BTreeMap<ObjectKey, VirtualServerStatus>,
    /// Of pools, including those whose objects are gone but still in use.
    pub pools: BTreeMap<ObjectKey, RealServerPoolStatus>,
    /// Of rollout policies. To be written before the decisions: a decision never runs ahead of its rollout.
    pub policies: BTreeMap<ObjectKey, RolloutPolicyStatus>,
}

impl Outcome {
    /// The highest revision of its decisions; 0 if there is none.
    pub fn highest_revision(&self) -> u64 {
        let servers = self.virtual_servers.values();
        let servers = servers.filter_map(|status| Some(status.decision.as_ref()?.revision));
        let pools = self.pools.values();
        let pools = pools.filter_map(|status| Some(status.decision.as_ref()?.revision));
        servers.chain(pools).max().unwrap_or_default()
    }
}

impl World {
    /// The decision in force for a virtual server.
    pub fn decision(&self, key: &ObjectKey) -> Option<&Decision> {
        self.virtual_servers
            .get(key)?
            .status
            .as_ref()?
            .decision
            .as_ref()
    }

    /// The decision in force for a pool, its object being there, gone, or made anew.
    pub fn pool_decision(&self, key: &ObjectKey) -> Option<&PoolDecision> {
        let status = self.pools.get(key).and_then(|pool| pool.status.as_ref());
        status.or_else(|| self.orphans.get(key))?.decision.as_ref()
    }

    /// The highest revision that was ever given, as far as anybody remembers.
    pub fn highest_revision(&self) -> u64 {
        let servers = self.virtual_servers.keys();
        let pools = self.pools.keys().chain(self.orphans.keys());
        servers
            .filter_map(|key| Some(self.decision(key)?.revision))
            .chain(pools.filter_map(|key| Some(self.pool_decision(key)?.revision)))
            .chain(
                self.nodes
                    .values()
                    .map(|node| node.status.acknowledged_revision),
            )
            .chain(
                self.nodes
                    .values()
                    .map(|node| node.status.acknowledged_pool_revision),
            )
            .max()
            .unwrap_or_default()
            .max(self.revision_floor)
    }

    /// The EndpointSlices that there are, by owner.
    pub(super) fn slices(&self) -> Slices<'_> {
        Slices::new(
            self.cluster
                .iter()
                .flat_map(|cluster| cluster.slices.values()),
        )
    }

    /// The addresses that a virtual server has of those that it asks for.
    pub(super) fn addresses_of(&self, key: &ObjectKey) -> Vec<IpAddr> {
        if let Some(assignment) = self.assigned.get(key) {
            return assignment.addresses().to_vec();
        }
        let spec = self.virtual_servers.get(key).map(|object| &object.spec);
        spec.map_or_else(Vec::new, VirtualServerSpec::certain_addresses)
    }

    /// The name of the node that has this address as its own.
    pub fn node_with(&self, address: IpAddr) -> Option<&str> {
        self.taken().node_with(address)
    }

    /// The addresses that are somebody else's.
    pub fn taken(&self) -> Taken<'_> {
        Taken {
            nodes: &self.nodes,
            addresses: &self.addresses,
        }
    }
}

/// The addresses that are no virtual server's.
#[derive(Clone, Copy, Debug)]
pub struct Taken<'a> {
    /// Nodes by name.
    pub nodes: &'a BTreeMap<String, Node>,
    /// Who has which addresses, the nodes' own reports aside.
    pub addresses: &'a Addresses,
}

impl<'a> Taken<'a> {
    /// The name of the node that has this address as its own.
    pub fn node_with(self, address: IpAddr) -> Option<&'a str> {
        self.nodes
            .iter()
            .find(|(_, node)| node.status.addresses.contains(&address))
            .map(|(name, _)| name.as_str())
    }

    /// The name of a node that has this address as the gateway of a default route.
    pub fn node_behind(self, address: IpAddr) -> Option<&'a str> {
        let has = |node: &Node| {
            let mut interfaces = node.status.interfaces.iter();
            interfaces.any(|interface| interface.gateways.contains(&address))
        };
        let mut nodes = self.nodes.iter();
        nodes
            .find(|(_, node)| has(node))
            .map(|(name, _)| name.as_str())
    }
}
