//! The newest word of the sources: the decisions, and the spec of this node.

use std::time::Instant;

use sluice_api::{LoadBalancerNode, ObjectKey, Peer, Peers};
use sluice_planner::Server;
use tracing::{debug, info};

use super::announce::Vips;
use super::decided::{Addresses, Changed, Decided};
use crate::source::{Announcing, Event};

/// The newest word of the sources.
#[derive(Debug, Default)]
pub(super) struct Intent {
    /// Whether the source knows the newest of everything.
    pub(super) synced: bool,
    pub(super) node: Option<Box<LoadBalancerNode>>,
    /// Why the newest spec of this node is not in force.
    pub(super) refused: Option<String>,
    /// Why the source withholds decisions.
    pub(super) held: Option<String>,
    /// The generation of the spec under which everything is to be taken off the node.
    pub(super) detach: Option<i64>,
    pub(super) decided: Option<Decided>,
    /// Counts changes of what is decided.
    pub(super) version: u64,
    /// The other directors.
    pub(super) peers: Peers,
    /// Counts changes of them.
    pub(super) peers_version: u64,
    /// Whether this node may hold VIP groups.
    pub(super) may_hold: bool,
    /// How addresses are announced.
    pub(super) announcing: Announcing,
    /// The VIPs of groups.
    pub(super) vips: Vips,
    /// Decisions that have changed, until the program knows.
    changed: Changed,
    /// Addresses of servers that came and went, until the network knows.
    addresses: Addresses,
    peers_changed: bool,
}

impl Intent {
    /// Takes in an event.
    pub(super) fn take(&mut self, event: Event, now: Instant) {
        match event {
            Event::Decided(changes) => {
                debug!(revision = changes.mark.revision, "new decisions");
                for (key, decision) in &changes.virtual_servers {
                    let decision = decision.as_ref().map(|decision| &decision.content);
                    self.vips.set(key, decision);
                }
                let first = self.decided.is_none();
                let decided = self.decided.get_or_insert_default();
                let differs = decided.apply(changes, &mut self.changed, &mut self.addresses, now);
                self.version += u64::from(differs || first);
            }
            Event::Node(node) => {
                info!(role = ?node.spec.role, interfaces = ?node.spec.interfaces, "this node's spec");
                self.node = Some(node);
                self.refused = None;
            }
            Event::NodeRefused(message) => self.refused = Some(message),
            Event::Held(reason) => self.held = reason,
            Event::Detach { generation } => self.detach = Some(generation),
            Event::MayHold(may_hold) => self.may_hold = may_hold,
            Event::Announcing(announcing) => {
                self.vips.group_all(announcing.all_on_link);
                self.vips.set_gateways(&announcing.pools);
                self.announcing = announcing;
            }
            Event::Peers(peers) => {
                self.peers_version += 1;
                self.peers = peers;
                self.peers_changed = true;
            }
        }
    }

    /// Lets servers go that are drained and whose time is over. Returns whether any went.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let Some(decided) = &mut self.decided else {
            return false;
        };
        let differs = decided.expire(&mut self.changed, &mut self.addresses, now);
        self.version += u64::from(differs);
        differs
    }

    /// When the next of them is to go.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.decided.as_ref().and_then(Decided::deadline)
    }

    /// The servers of these pools that take flows.
    pub(super) fn servers_of<'a>(
        &'a self,
        pools: &'a [ObjectKey],
    ) -> impl Iterator<Item = &'a Server> {
        let decided = self.decided.iter();
        let servers =
            decided.flat_map(move |decided| pools.iter().map(|it| decided.servers_of(it)));
        servers.flatten().filter(|server| server.weight > 0)
    }

    /// Names of the interfaces that carry XDP.
    pub(super) fn interfaces(&self) -> impl Iterator<Item = &str> {
        let nodes = self.node.iter();
        nodes.flat_map(|node| node.spec.interfaces.iter().map(String::as_str))
    }

    /// Decisions that have changed since they were last taken.
    pub(super) fn take_changed(&mut self) -> Changed {
        std::mem::take(&mut self.changed)
    }

    /// Addresses of servers that came and went since they were last taken.
    pub(super) fn take_addresses(&mut self) -> Addresses {
        std::mem::take(&mut self.addresses)
    }

    /// The addresses of all the other directors, if they have changed since they were last taken.
    pub(super) fn take_peers(&mut self) -> Option<Peer> {
        let changed = std::mem::take(&mut self.peers_changed);
        let peers = || self.peers.values();
        changed.then(|| Peer {
            addresses: peers().flat_map(|peer| &peer.addresses).copied().collect(),
            pod_cidrs: peers().flat_map(|peer| &peer.pod_cidrs).copied().collect(),
            ..Peer::default()
        })
    }
}
