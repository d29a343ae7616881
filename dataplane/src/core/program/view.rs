//! What the planner is told of this node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use sluice_api::{LoadBalancerNodeSpec, NodeRole};
use sluice_planner::{NodeView, Role};

use crate::core::network::Network;

/// The node as it is now.
pub(super) fn node_view(
    name: &str,
    spec: &LoadBalancerNodeSpec,
    network: &Network,
    peers: &BTreeMap<String, BTreeSet<IpAddr>>,
    now: Instant,
) -> NodeView {
    let addresses = network.own_addresses();
    let peers = peers
        .values()
        .flatten()
        .filter(|address| !addresses.contains(address))
        .filter_map(|&address| network.mac_on_link(address));
    NodeView {
        name: name.to_owned(),
        role: role(spec),
        peers: peers.collect(),
        next_hops: network.next_hops(now),
        addresses,
    }
}

/// What a node of this role does. A director also takes what other directors send to servers at its own addresses.
fn role(spec: &LoadBalancerNodeSpec) -> Role {
    Role {
        director: spec.role == NodeRole::Director,
        real_server: true,
    }
}
