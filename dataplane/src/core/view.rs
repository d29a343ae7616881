//! What the planner is told of this node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use sluice_api::{LoadBalancerNodeSpec, NodeRole};
use sluice_planner::{NodeView, Role};

use crate::netlink::{Resolver, Surroundings};
use crate::source::Decisions;

/// Addresses to which the way must be known: servers, and other directors for their Ethernet addresses.
pub(super) fn addresses_to_reach(
    decisions: Option<&Decisions>,
    peers: &BTreeMap<String, BTreeSet<IpAddr>>,
) -> BTreeSet<IpAddr> {
    let pools = decisions
        .iter()
        .flat_map(|decisions| decisions.snapshot.pools.values());
    let servers = pools.flat_map(|pool| pool.servers.iter().map(|server| server.address));
    let peers = peers.values().flatten().copied();
    servers.chain(peers).collect()
}

/// The node as it is now.
pub(super) fn node_view(
    name: &str,
    spec: &LoadBalancerNodeSpec,
    around: Surroundings<'_>,
    resolver: &Resolver,
    peers: &BTreeMap<String, BTreeSet<IpAddr>>,
    now: Instant,
) -> NodeView {
    let mut addresses = around.table.addresses();
    addresses.extend(resolver.own());
    let peers = peers
        .values()
        .flatten()
        .filter(|address| !addresses.contains(address))
        .filter_map(|&address| resolver.mac_on_link(around, address));
    NodeView {
        name: name.to_owned(),
        role: role(spec),
        peers: peers.collect(),
        next_hops: resolver.next_hops(around, now),
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
