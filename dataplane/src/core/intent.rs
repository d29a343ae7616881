//! What the sources say: of what was decided, and of what this node is to be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tracing::{debug, info};

use crate::source::{Decisions, Event, NodeSpec};

/// The newest word of the sources.
#[derive(Debug, Default)]
pub(super) struct Intent {
    /// Whether the source knows the newest of everything.
    pub(super) synced: bool,
    pub(super) node: Option<NodeSpec>,
    /// Why the newest spec of this node is not in force.
    pub(super) refused: Option<String>,
    /// Why the source withholds decisions.
    pub(super) held: Option<String>,
    /// The generation of the spec under which everything is to be taken off the node.
    pub(super) detach: Option<i64>,
    pub(super) decisions: Option<Decisions>,
    /// Counts changes of decisions.
    pub(super) version: u64,
    /// The other directors' own addresses by node name.
    pub(super) peers: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Counts changes of the peers.
    pub(super) peers_version: u64,
}

impl Intent {
    /// Takes in an event.
    pub(super) fn take(&mut self, event: Event) {
        match event {
            Event::Decisions(decisions) => {
                debug!(revision = decisions.revision, "new decisions");
                self.decisions = Some(decisions);
                self.version += 1;
            }
            Event::Node(node) => {
                info!(role = ?node.spec.role, interfaces = ?node.spec.interfaces, "this node's spec");
                self.node = Some(node);
                self.refused = None;
            }
            Event::NodeRefused(message) => self.refused = Some(message),
            Event::Held(reason) => self.held = reason,
            Event::Detach { generation } => self.detach = Some(generation),
            Event::Peers(peers) => {
                self.peers = peers;
                self.peers_version += 1;
            }
        }
    }

    /// Names of the interfaces that carry XDP.
    pub(super) fn interfaces(&self) -> impl Iterator<Item = &str> {
        let specs = self.node.iter();
        specs.flat_map(|node| node.spec.interfaces.iter().map(String::as_str))
    }

    /// Addresses to which the way must be known: servers, and other directors for their Ethernet addresses.
    pub(super) fn addresses_to_reach(&self) -> BTreeSet<IpAddr> {
        let decisions = self.decisions.iter();
        let pools = decisions.flat_map(|decisions| decisions.snapshot.pools.values());
        let servers = pools.flat_map(|servers| servers.iter().map(|server| server.address));
        let peers = self.peers.values().flatten().copied();
        servers.chain(peers).collect()
    }
}
