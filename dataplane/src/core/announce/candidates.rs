//! Which directors may hold a VIP group.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use sluice_api::Peer;
use sluice_election::Candidate;
use sluice_planner::Server;

use super::ways::Pool;
use super::{Announce, subnets, uplinks};
use crate::core::intent::Intent;
use crate::core::network::Network;
use crate::netlink::{Prefix, is_within};

impl Announce {
    /// The directors that may hold the groups of a pool. `whole` are this node's uplinks that are.
    ///
    /// Who has lost an uplink that the pool is not announced on, and that another candidate has, reaches fewer servers: no group
    /// returns to it, and if it is this node it is no candidate. Nor is anybody who is not in the networks of the pool's gateways.
    pub(super) fn candidates(
        &self,
        intent: &Intent,
        network: &Network,
        pool: &Pool<'_>,
        (whole, now): (&BTreeSet<String>, Instant),
    ) -> Vec<Candidate> {
        let own_networks = networks_of_gateways(pool, intent, network);
        let is_there = |peer: &Peer| {
            let mut networks = own_networks.iter().flatten();
            networks.all(|(_, subnets)| peer.addresses.iter().any(|it| is_within(*it, subnets)))
        };
        let others = intent.peers.iter().filter(|(name, peer)| {
            let mut interfaces = peer.interfaces.keys();
            let is_candidate = peer.candidate && pool.names(name) && is_there(peer);
            is_candidate && interfaces.any(|name| pool.announces_on(name))
        });
        let others: Vec<(&String, &Peer)> = others.collect();
        let interfaces = others.iter().flat_map(|(_, peer)| &peer.interfaces);
        let to_servers = interfaces.filter(|(name, it)| it.steady && !pool.announces_on(name));
        let to_servers: BTreeSet<&str> = to_servers.map(|(name, _)| name.as_str()).collect();
        let to_gateways = own_networks.iter().flatten();
        let to_gateways: BTreeSet<&str> = to_gateways.map(|(name, _)| *name).collect();
        let matters = |name: &str| {
            pool.announces_on(name) || to_servers.contains(name) || to_gateways.contains(name)
        };
        let other = |(name, peer): (&String, &Peer)| {
            let mut interfaces = peer.interfaces.iter();
            Candidate {
                name: name.clone(),
                steady: interfaces.all(|(name, interface)| interface.steady || !matters(name)),
            }
        };
        let mut candidates: Vec<Candidate> = others.into_iter().map(other).collect();
        let drains = intent.node.as_ref().is_none_or(|node| node.spec.drain);
        let mut interfaces = intent.interfaces();
        let is_short = interfaces.any(|name| to_servers.contains(name) && !whole.contains(name));
        let is_at_gateways = own_networks.iter().all(Option::is_some);
        if intent.may_hold && !drains && !is_short && is_at_gateways {
            let mut on = uplinks(intent, network)
                .map(|(name, ..)| name)
                .filter(|name| matters(name));
            candidates.push(Candidate {
                name: self.node.clone(),
                steady: on.all(|name| self.steady.is(name, now)),
            });
        }
        candidates
    }

    /// Keeps those directors that have a server for every VIP of a group, if only these may hold it. What stands there keeps the
    /// group as long as it has one: another director has other servers, so every flow ends when the group moves.
    pub(super) fn keep_serving(
        &self,
        candidates: &mut Vec<Candidate>,
        intent: &Intent,
        network: &Network,
        group: &str,
    ) {
        let local = intent.vips.local_pools(group);
        if local.is_empty() {
            return;
        }
        let vips = self
            .vips
            .get(group)
            .into_iter()
            .flat_map(|vips| vips.iter());
        let families: BTreeSet<bool> = vips.map(IpAddr::is_ipv4).collect();
        for pools in local {
            for is_ipv4 in &families {
                let of_family = |server: &&Server| server.address.is_ipv4() == *is_ipv4;
                let servers = intent.servers_of(pools).filter(of_family);
                let nodes = servers.filter_map(|server| self.node_of(server, intent, network));
                let nodes: BTreeSet<&str> = nodes.collect();
                candidates.retain(|candidate| nodes.contains(candidate.name.as_str()));
            }
        }
        for candidate in candidates {
            candidate.steady = false;
        }
    }

    /// The director that a server runs on: by its endpoint, or by its address.
    fn node_of<'a>(
        &'a self,
        server: &'a Server,
        intent: &'a Intent,
        network: &Network,
    ) -> Option<&'a str> {
        if let Some(node) = &server.node {
            return Some(node);
        }
        if network.is_own(server.address) {
            return Some(&self.node);
        }
        let mut peers = intent.peers.iter();
        let peer = peers.find(|(_, peer)| peer.addresses.contains(&server.address));
        peer.map(|(name, _)| name.as_str())
    }
}

/// For each gateway of a pool the name of an uplink that has it in a subnet, and that uplink's subnets with it; `None`: none has.
fn networks_of_gateways<'a>(
    pool: &Pool<'_>,
    intent: &'a Intent,
    network: &'a Network,
) -> Vec<Option<(&'a str, Vec<Prefix>)>> {
    let networks = pool.gateways().map(|gateway| {
        uplinks(intent, network).find_map(|(name, ifindex, ..)| {
            let mut subnets = subnets(network, ifindex);
            subnets.retain(|subnet| subnet.contains(gateway));
            (!subnets.is_empty()).then_some((name, subnets))
        })
    });
    networks.collect()
}
