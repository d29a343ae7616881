//! Which pools have servers that take new flows: the same on every node, so the operator tells it once.

use std::collections::BTreeMap;
use std::net::IpAddr;

use sluice_api::{DecidedRealServerPool, DecidedVirtualServer, ObjectKey};
use sluice_planner::Slices;

/// The content of pools, and the endpoints that there are.
#[derive(Clone, Copy)]
pub(super) struct Servers<'a> {
    pub(super) contents: &'a BTreeMap<ObjectKey, DecidedRealServerPool>,
    pub(super) slices: &'a Slices<'a>,
}

impl Servers<'_> {
    /// The first VIP for which a pool has no server that takes new flows.
    pub(super) fn unserved(
        &self,
        pool: &ObjectKey,
        virtual_server: &DecidedVirtualServer,
    ) -> Option<IpAddr> {
        let content = self.contents.get(pool);
        let servers = content.map(|content| self.slices.servers(&pool.namespace, content));
        let servers = servers.unwrap_or_default();
        let is_served = |vip: &IpAddr| {
            servers
                .iter()
                .any(|server| server.weight > 0 && server.address.is_ipv6() == vip.is_ipv6())
        };
        let mut vips = virtual_server.addresses.iter();
        vips.find(|vip| !is_served(vip)).copied()
    }
}
