//! What is left of nodes that are gone for good: their LoadBalancerNodes and Leases.
//!
//! An agent that ends cannot tell an upgrade from the end, so it leaves both. They go when there is no Node of their name and
//! the agent is silent: soon if the operator saw the Node go, and else, since agents may run on hosts that are no Nodes,
//! after a time that an option gives. What nobody has ever reported for is its user's, and stays.
//!
//! Silence is what this operator saw pass since it began, while it could hear of Leases. The Lease is deleted first, and only
//! in the version that is known: an agent that lives has renewed it, and then nothing is deleted.

use std::collections::{BTreeMap, BTreeSet};

use sluice_api::{NODE_SILENT_SECONDS, ObjectKey, Time, node_lease};
use sluice_kube::Stamp;
use sluice_kube::watched::Watched as _;

use super::index::Index;
use super::silence::{is_reported, says_silent};
use super::watch::{KubeNodes, Leases, Nodes};

/// An object in the version that is known.
type Version = (ObjectKey, Stamp);

/// What a node has left behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Departed {
    /// The node.
    pub(super) node: String,
    /// Its Lease.
    pub(super) lease: Option<Version>,
    /// Its LoadBalancerNode.
    pub(super) object: Option<Version>,
}

/// The nodes that have no Node.
#[derive(Debug, Default)]
pub(super) struct Departures {
    /// After how long they are forgotten, if the operator did not see their Node go; `None`: never.
    forget_ms: Option<u64>,
    quiet: BTreeMap<String, Quiet>,
    /// Those whose Node the operator saw go.
    left: BTreeSet<String>,
}

/// Since when a node has given no sign of life.
#[derive(Debug)]
struct Quiet {
    renewed: Option<Time>,
    since_ms: u64,
}

impl Departures {
    pub(super) fn forget_after(&mut self, seconds: Option<u64>) {
        self.forget_ms = seconds.map(|seconds| seconds.saturating_mul(1000));
    }

    /// Takes that a Node has come, changed or gone.
    pub(super) fn node_changed(&mut self, name: &str, was_there: bool, is_there: bool) {
        if is_there {
            self.left.remove(name);
        } else if was_there {
            self.left.insert(name.to_owned());
        }
    }

    /// Listens to a node anew.
    pub(super) fn doubt(&mut self, node: &str) {
        self.quiet.remove(node);
    }

    fn observe(&mut self, node: &str, renewed: Option<Time>, now_ms: u64) {
        let quiet = self.quiet.entry(node.to_owned()).or_insert_with(|| Quiet {
            renewed: renewed.clone(),
            since_ms: now_ms,
        });
        // A Lease that is gone is no sign of life.
        if renewed.is_some() && quiet.renewed != renewed {
            *quiet = Quiet {
                renewed,
                since_ms: now_ms,
            };
        }
    }
}

impl Index {
    /// Looks which nodes have no Node, and what was heard of them.
    pub(super) fn look_at_departures(&mut self) {
        let prefix = node_lease("");
        let leases = self.leases.objects.keys();
        let leases = leases.filter_map(|key| key.name.strip_prefix(&prefix));
        let objects = self.nodes.objects.keys().map(|key| key.name.as_str());
        let names: BTreeSet<String> = leases
            .chain(objects)
            .filter(|name| !self.has_kube_node(name))
            .map(str::to_owned)
            .collect();
        for name in &names {
            let renewed = self.lease(name).and_then(|lease| lease.renewed.clone());
            self.departures.observe(name, renewed, self.heard_ms);
        }
        let departures = &mut self.departures;
        departures.quiet.retain(|name, _| names.contains(name));
        departures.left.retain(|name| names.contains(name));
    }

    /// What is to be deleted; nothing while nodes, Nodes or Leases are not heard of.
    pub(super) fn departed(&self) -> Vec<Departed> {
        let kinds = [KubeNodes::NAME, Nodes::NAME, Leases::NAME];
        let is_lost = kinds.iter().any(|kind| self.lost.contains_key(kind));
        if is_lost || !self.kube_nodes.is_complete() {
            return Vec::new();
        }
        let quiet = self.departures.quiet.iter();
        let gone = quiet.filter(|(node, quiet)| self.is_gone(node, quiet));
        gone.map(|(node, _)| self.left_by(node)).collect()
    }

    /// Takes in that this was deleted.
    pub(super) fn forget(&mut self, departed: &Departed) {
        if let Some((key, stamp)) = &departed.lease {
            self.leases.delete(key, stamp);
        }
        if let Some((key, stamp)) = &departed.object {
            self.nodes.delete(key, stamp);
        }
    }

    fn left_by(&self, node: &str) -> Departed {
        let lease = ObjectKey::new(self.namespace.clone(), node_lease(node));
        let object = ObjectKey::new("", node);
        Departed {
            node: node.to_owned(),
            lease: self.leases.stamp(&lease).cloned().map(|at| (lease, at)),
            object: self.nodes.stamp(&object).cloned().map(|at| (object, at)),
        }
    }

    fn is_gone(&self, node: &str, quiet: &Quiet) -> bool {
        let object = self.nodes.objects.get(&ObjectKey::new("", node));
        // One that has detached counts no more. Of any other the object says that it is silent, before it goes.
        let is_told = object.is_some_and(says_silent);
        let known = self.known_nodes.get(node);
        if known.is_some_and(|known| known.live || !is_told) {
            return false;
        }
        let was_heard = self.lease(node).is_some() || object.is_some_and(is_reported);
        let silent_ms = NODE_SILENT_SECONDS * 1000;
        let after_ms = if self.departures.left.contains(node) {
            Some(silent_ms)
        } else {
            let forget_ms = self.departures.forget_ms.filter(|_| was_heard);
            forget_ms.map(|ms| ms.max(silent_ms))
        };
        let passed_ms = self.heard_ms - quiet.since_ms;
        after_ms.is_some_and(|ms| passed_ms > ms)
    }

    /// Whether there is a Node of this name, even if it cannot be read.
    fn has_kube_node(&self, name: &str) -> bool {
        let key = ObjectKey::new("", name);
        self.kube_nodes.stamp(&key).is_some()
    }
}
