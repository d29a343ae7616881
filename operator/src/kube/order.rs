//! What is written before what.

use sluice_api::{
    Kind, ObjectKey, RealServerPool, RolloutPolicyStatus, VirtualServer, VirtualServerStatus,
};

use super::index::Index;
use crate::core::Outcome;
use crate::managed::Managed;

/// Changed decisions by their revisions.
pub(super) fn changed_decisions(index: &Index, outcome: &Outcome) -> Vec<(u64, Kind, ObjectKey)> {
    let mut changed = Vec::new();
    for (key, status) in &outcome.pools {
        let Some(object) = index.pools.objects.get(key) else {
            continue;
        };
        let last = object.status.as_ref().and_then(|s| s.decision.as_ref());
        if last != status.decision.as_ref() {
            let revision = RealServerPool::revision(status);
            changed.push((revision, Kind::RealServerPool, key.clone()));
        }
    }
    for (key, status) in &outcome.virtual_servers {
        let Some(object) = index.virtual_servers.objects.get(key) else {
            continue;
        };
        let last = object.status.as_ref().and_then(|s| s.decision.as_ref());
        if last != status.decision.as_ref() {
            let revision = VirtualServer::revision(status);
            changed.push((revision, Kind::VirtualServer, key.clone()));
        }
    }
    // Of what has the same revision, or none, pools come first.
    let rank = |kind: Kind| kind != Kind::RealServerPool;
    changed.sort_by(|a, b| (a.0, rank(a.1), &a.2).cmp(&(b.0, rank(b.1), &b.2)));
    changed
}

/// The last revision that every live node acknowledged.
pub(super) fn acknowledged(status: Option<&VirtualServerStatus>) -> u64 {
    status
        .and_then(|status| status.acknowledged.as_ref())
        .map_or(0, |acknowledged| acknowledged.revision)
}

/// The pools that a decision sends flows to.
pub(super) fn needed<'a>(
    key: &'a ObjectKey,
    status: &'a VirtualServerStatus,
) -> impl Iterator<Item = ObjectKey> + 'a {
    let decisions = status.decision.iter();
    let pools = decisions.flat_map(|decision| &decision.content.pools);
    pools
        .filter(|pool| pool.weight > 0)
        .map(|pool| key.sibling(&pool.name))
}

/// The virtual server that a policy drives.
pub(super) fn targets(key: &ObjectKey, status: &RolloutPolicyStatus) -> Option<(Kind, ObjectKey)> {
    let run = status.run.as_ref()?;
    Some((Kind::VirtualServer, key.sibling(&run.virtual_server_name)))
}
