//! The reports of the nodes' agents.

use std::collections::{BTreeMap, BTreeSet};

use sluice_api::{Kind, LabelSelector, LoadBalancerNodeStatus, NODE_SILENT_SECONDS, ObjectKey};
use sluice_directory::{Directory, DirectoryError, StatusFile};
use tracing::{info, warn};

use crate::core::{Liveness, Node, Trust};

/// Time between two looks counts up to this: while the directory was lost no agent could say that it lives.
const LONGEST_GAP_MS: u64 = 5_000;

/// Labels of a LoadBalancerNode.
pub(super) type Labels = BTreeMap<String, String>;

#[derive(Debug, Default)]
pub(super) struct Nodes {
    /// By name.
    pub(super) known: BTreeMap<String, Node>,
    /// The labels of those that manifests ask for.
    wanted: BTreeMap<String, Labels>,
    liveness: Liveness,
    /// Runs while reports are looked at.
    heard_ms: u64,
    looked_ms: u64,
    /// After how long the report of a silent node goes for which no manifest asks; `None`: never.
    forget_ms: Option<u64>,
    departed: Vec<ObjectKey>,
}

impl Nodes {
    pub(super) fn forget_after(&mut self, seconds: Option<u64>) {
        let least = NODE_SILENT_SECONDS;
        self.forget_ms = seconds.map(|seconds| seconds.max(least).saturating_mul(1000));
    }

    /// The nodes whose reports are to be removed.
    pub(super) fn take_departed(&mut self) -> Vec<ObjectKey> {
        std::mem::take(&mut self.departed)
    }

    /// The nodes that manifests ask for, with their labels.
    pub(super) fn want(&mut self, nodes: BTreeMap<String, Labels>) {
        self.wanted = nodes;
    }

    /// The nodes that manifests ask for, and a selector means.
    pub(super) fn selected(&self, selector: &LabelSelector) -> BTreeSet<String> {
        let nodes = self.wanted.iter();
        let nodes = nodes.filter(|(_, labels)| selector.matches(labels));
        nodes.map(|(name, _)| name.clone()).collect()
    }

    /// Reads all reports. Returns whether anything but heartbeats changed. `given` is the highest revision that is known, and
    /// `is_decided` says whether there is a decision that nodes could acknowledge.
    pub(super) fn look(
        &mut self,
        directory: &Directory,
        given: u64,
        is_decided: bool,
        monotonic_ms: u64,
    ) -> Result<bool, DirectoryError> {
        let reported = directory.list_status(Kind::LoadBalancerNode)?;
        let mut names: BTreeSet<String> = reported.into_iter().map(|key| key.name).collect();
        names.extend(self.wanted.keys().cloned());
        let gap_ms = monotonic_ms.saturating_sub(self.looked_ms);
        self.looked_ms = monotonic_ms;
        self.heard_ms += gap_ms.min(LONGEST_GAP_MS);
        let heard_ms = self.heard_ms;
        let mut changed = false;
        for name in &names {
            let before = self.known.get(name);
            let mut status = self.read(directory, name);
            let heartbeat = status.heartbeat_time.as_ref();
            let live = self.liveness.observe(name, heartbeat, 0, heard_ms);
            let standing = self.liveness.standing(name, &status, is_decided, heard_ms);
            let claimed = self.liveness.disbelieve(name, &mut status, given, heard_ms);
            if let Some(claimed) =
                claimed.filter(|_| before.is_none_or(|before| before.trust == Trust::Believed))
            {
                warn!(
                    node = name,
                    claimed,
                    given,
                    "acknowledges a revision that was never given, and is not believed"
                );
            }
            let wanted = self.wanted.contains_key(name);
            let node = Node {
                status,
                live,
                wanted,
                starting: wanted && self.liveness.is_starting(name, heard_ms),
                standing,
                trust: claimed.map_or(Trust::Believed, |_| Trust::Disbelieved),
            };
            if before.is_some_and(|before| before.live) && !live {
                warn!(node = name, "is silent and no longer waited for");
            } else if before.is_some_and(|before| !before.live) && live {
                info!(node = name, "reports again");
            }
            if node.live || node.wanted {
                changed |= before.is_none_or(|before| !same_but_heartbeat(before, &node));
                self.known.insert(name.clone(), node);
            } else {
                changed |= self.known.remove(name).is_some();
                let silent_ms = self.liveness.silent_ms(name, heard_ms);
                if self.forget_ms.is_some_and(|ms| silent_ms > ms) {
                    self.departed.push(ObjectKey::new("", name));
                }
            }
        }
        let count = self.known.len();
        self.known.retain(|name, _| names.contains(name));
        self.liveness.retain(|name| names.contains(name));
        Ok(changed || self.known.len() != count)
    }

    /// A report that is gone or cannot be read is no news: what the node said before still holds, until it has been silent
    /// for too long.
    fn read(&self, directory: &Directory, name: &str) -> LoadBalancerNodeStatus {
        let key = ObjectKey::new("", name);
        let file: Result<Option<StatusFile<_>>, _> =
            directory.read_status(Kind::LoadBalancerNode, &key);
        let before = self.known.get(name).map(|node| &node.status);
        match file {
            Ok(Some(file)) => return file.status,
            Err(error) if before.is_none() => {
                warn!(%error, "a node's report cannot be read");
            }
            Ok(None) | Err(_) => {}
        }
        before.cloned().unwrap_or_default()
    }
}

fn same_but_heartbeat(a: &Node, b: &Node) -> bool {
    let without = |node: &Node| LoadBalancerNodeStatus {
        heartbeat_time: None,
        ..node.status.clone()
    };
    let flags = |node: &Node| {
        let Node {
            status: _,
            live,
            wanted,
            starting,
            standing,
            trust,
        } = *node;
        (live, wanted, starting, standing, trust)
    };
    flags(a) == flags(b) && without(a) == without(b)
}
