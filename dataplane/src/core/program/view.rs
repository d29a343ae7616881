//! The planner's view of this node.

use sluice_api::{LoadBalancerNodeSpec, NodeRole};
use sluice_planner::{NodeView, Role};

use crate::core::network::Network;

/// The node as it is now.
pub(super) fn node_view(name: &str, spec: &LoadBalancerNodeSpec, network: &Network) -> NodeView {
    let addresses = network.own_addresses();
    let peers = network.peers().into_iter().flatten();
    let peers = peers.filter(|address| !addresses.contains(address));
    NodeView {
        name: name.to_owned(),
        role: role(spec),
        keeps_peers: network.peers().is_none(),
        peers: peers
            .filter_map(|&address| network.mac_on_link(address))
            .collect(),
        addresses,
    }
}

/// The role of a node with this spec. A director also takes what other directors send to servers at its own addresses.
pub(super) fn role(spec: &LoadBalancerNodeSpec) -> Role {
    Role {
        director: spec.role == NodeRole::Director,
        real_server: true,
    }
}
