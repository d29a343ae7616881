//! The planner's view of this node.

use sluice_api::{LoadBalancerNodeSpec, NodeRole};
use sluice_planner::{NodeView, Prefix, Role};

use crate::core::network::Network;

/// The node as it is now.
pub(super) fn node_view(name: &str, spec: &LoadBalancerNodeSpec, network: &Network) -> NodeView {
    let addresses = network.own_addresses();
    let mut peers = network.peers().cloned().unwrap_or_default();
    peers
        .addresses
        .retain(|address| !addresses.contains(address));
    NodeView {
        name: name.to_owned(),
        role: role(spec),
        keeps_peers: network.peers().is_none(),
        macs: network.own_macs(),
        peers: peers
            .addresses
            .iter()
            .filter_map(|&address| network.mac_on_link(address))
            .collect(),
        peer_nets: Prefix::of_peer(&peers).collect(),
        addresses,
    }
}

/// The role of a node with this spec. A director also takes what other directors send to servers at its own addresses.
pub(super) fn role(spec: &LoadBalancerNodeSpec) -> Role {
    Role {
        director: is_director(spec),
        real_server: true,
    }
}

/// Whether a node with this spec balances packets to VIPs.
pub(in crate::core) fn is_director(spec: &LoadBalancerNodeSpec) -> bool {
    spec.role == NodeRole::Director
}
