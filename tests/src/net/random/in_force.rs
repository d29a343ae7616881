//! Whether all nodes have what a plan wants.

use std::collections::BTreeSet;

use crate::net::address::Family;
use crate::net::sluice::Sluice;

use super::plan::agents;
use super::service::{Addresses, Service};

/// Revisions of virtual servers and of pools.
pub(super) type Revisions = [u64; 2];

/// Up to which revisions every node has what was decided.
pub(super) fn acknowledged(sluice: &Sluice) -> Revisions {
    let revisions = agents().into_iter().map(|node| {
        // A node whose status is not there has nothing.
        let status = sluice.node(node).unwrap_or_default();
        [
            status.acknowledged_revision,
            status.acknowledged_pool_revision,
        ]
    });
    let least = revisions.reduce(|[a, b], [c, d]| [a.min(c), b.min(d)]);
    least.unwrap_or_default()
}

/// The highest revisions of a service's decisions; `None` unless these are what is wanted.
pub(super) fn decided(
    service: &Service,
    sluice: &Sluice,
    addresses: &Addresses,
) -> Option<Revisions> {
    let mut revisions = [0; 2];
    let shares: BTreeSet<_> = service.shares().into_iter().collect();
    for name in service.virtual_servers() {
        let decision = sluice.virtual_server(&name)?.decision?;
        let pools = decision.content.pools.into_iter();
        let decided: BTreeSet<_> = pools.map(|pool| (pool.name, pool.weight)).collect();
        let ports = decision.content.ports.iter().map(|port| port.port);
        if decided != shares || !ports.eq(service.ports().iter().map(|port| port.port)) {
            return None;
        }
        revisions[0] = decision.revision.max(revisions[0]);
    }
    for (index, name) in service.pools().iter().enumerate() {
        let decision = sluice.pool(name)?.decision?;
        let servers = decision.content.servers.iter();
        let decided: BTreeSet<_> = servers.map(|s| (s.address, s.weight)).collect();
        let members = service.members(index, addresses).into_iter();
        let wanted: BTreeSet<_> = members
            .flat_map(|(_, dual, weight)| Family::BOTH.map(|family| (dual.of(family), weight)))
            .collect();
        if decided != wanted {
            return None;
        }
        revisions[1] = decision.revision.max(revisions[1]);
    }
    Some(revisions)
}
