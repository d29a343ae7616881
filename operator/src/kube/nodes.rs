//! Which nodes count: by the renewal of their agents' Leases, as far as Leases can be heard of.

use std::collections::{BTreeMap, BTreeSet};

use sluice_api::{ConditionType, LoadBalancerNode, ObjectKey, Time, is_true, node_lease};
use sluice_kube::Item;
use sluice_kube::lease::LeaseFacts;
use sluice_kube::watched::Watched as _;
use tracing::{debug, info, warn};

use super::index::Index;
use super::silence::is_reported;
use super::watch::Leases;
use crate::core::{Node, Trust};

/// A question about silent nodes that found no answer is asked again after this time.
const DOUBT_MS: u64 = 2_000;

/// Whether a node's agent has taken everything off the node, as it was asked to.
fn is_detached(node: &LoadBalancerNode) -> bool {
    let status = node.status.as_ref();
    status.is_some_and(|status| is_true(&status.conditions, ConditionType::Detached))
}

/// Logs an acknowledgement that is not believed any more, or again.
fn tell_claim(node: &str, before: Option<&Node>, claimed: Option<u64>, given: u64) {
    let was_disbelieved = before.is_some_and(|before| before.trust == Trust::Disbelieved);
    match claimed {
        Some(claimed) if !was_disbelieved => warn!(
            node,
            claimed, given, "acknowledges a revision that was never given, and is not believed"
        ),
        None if was_disbelieved => info!(node, "acknowledges what was given again"),
        _ => {}
    }
}

impl Index {
    /// Whether a node is about to be taken for silent, which the API server should be asked about first: a watch that
    /// hangs tells nothing either.
    pub(super) fn is_in_doubt(&mut self, now_ms: u64) -> bool {
        self.heard_before_ms = self.heard_ms;
        if !self.lost.contains_key(Leases::NAME) {
            self.heard_ms += now_ms.saturating_sub(self.looked_ms);
        }
        self.looked_ms = now_ms;
        self.nodes.objects.iter().any(|(key, object)| {
            let live = self
                .known_nodes
                .get(&key.name)
                .is_some_and(|node| node.live);
            let renewed = self.heartbeat(&key.name, object);
            live && self.liveness.is_about_to_fall_silent(
                &key.name,
                renewed.as_ref(),
                self.heard_ms,
            )
        })
    }

    /// Takes the answer to the question that [`Self::is_in_doubt`] raises. Without one no node gets any older, and it is asked
    /// again a little later.
    pub(super) fn leases_read(&mut self, answer: Result<Vec<Item<LeaseFacts>>, String>) {
        match answer {
            Ok(leases) => {
                for lease in leases {
                    self.leases.apply(lease);
                }
            }
            Err(error) => {
                debug!(error, "cannot ask for Leases; asks again");
                self.heard_ms = self.heard_before_ms.saturating_sub(DOUBT_MS);
            }
        }
    }

    /// When the node's agent last renewed its Lease, which counts once it has reported.
    fn heartbeat(&self, node: &str, object: &LoadBalancerNode) -> Option<Time> {
        is_reported(object).then_some(())?;
        self.lease(node)?.renewed.clone()
    }

    pub(super) fn lease(&self, node: &str) -> Option<&LeaseFacts> {
        let key = ObjectKey::new(self.namespace.clone(), node_lease(node));
        self.leases.objects.get(&key)
    }

    /// Looks at the nodes.
    pub(super) fn look_at_nodes(&mut self) {
        let mut nodes = BTreeMap::new();
        // The API server's clock cannot be read, but it was this late at least.
        let newest = self.leases.objects.values().filter_map(|l| l.written).max();
        let is_decided = self.links.has_decisions();
        for (key, object) in &self.nodes.objects {
            let name = &key.name;
            if is_detached(object) {
                // It was asked to go, so nobody waits for it or misses it.
                continue;
            }
            let renewed = self.heartbeat(name, object);
            let unwritten = self.lease(name).and_then(|l| l.written).zip(newest);
            let seconds = unwritten.map_or(0, |(written, newest)| newest - written);
            let before_ms = u64::try_from(seconds).unwrap_or_default() * 1000;
            let live = self
                .liveness
                .observe(name, renewed.as_ref(), before_ms, self.heard_ms);
            let mut status = object.status.clone().unwrap_or_default();
            let standing = self
                .liveness
                .standing(name, &status, is_decided, self.heard_ms);
            let given = self.revision_floor;
            let claimed = self
                .liveness
                .disbelieve(name, &mut status, given, self.heard_ms);
            let before = self.known_nodes.get(name);
            tell_claim(name, before, claimed, given);
            let node = Node {
                status,
                live,
                wanted: true,
                starting: self.liveness.is_starting(name, self.heard_ms),
                standing,
                trust: claimed.map_or(Trust::Believed, |_| Trust::Disbelieved),
            };
            if before.is_some_and(|before| before.live) && !live {
                warn!(node = name, "is silent and no longer waited for");
            } else if before.is_some_and(|before| !before.live) && live {
                info!(node = name, "reports again");
            }
            nodes.insert(name.clone(), node);
        }
        self.liveness.retain(|name| nodes.contains_key(name));
        let names: BTreeSet<&String> = nodes.keys().chain(self.known_nodes.keys()).collect();
        let mut is_any_news = false;
        for name in names {
            let (before, now) = (self.known_nodes.get(name), nodes.get(name));
            if before != now {
                self.dirty.node_changed(&self.links, before, now);
                is_any_news = true;
            }
        }
        let status = nodes.values().map(|node| &node.status);
        let acknowledged = status.map(|status| {
            let pools = status.acknowledged_pool_revision;
            status.acknowledged_revision.max(pools)
        });
        let highest = acknowledged.max().unwrap_or_default();
        self.raise_floor(highest);
        self.known_nodes = nodes;
        if is_any_news {
            self.reports_changed();
        }
    }
}
