//! The whole core in order.

use std::collections::BTreeSet;

use sluice_api::{ObjectKey, Time};

use super::decide;
use super::world::{Outcome, World};
use super::{policies, pools, status};

/// The new status of every object. Called again with that status it gives the same, until something changes.
pub fn reconcile(world: &World, now: &Time) -> Outcome {
    let checked = pools::check(world);
    let served = decide::served(world, &checked.admitted, &checked.withdrawn);
    let rollouts = policies::drive(world, &checked, &served, now);
    let decided = decide::decide(world, &checked, served, rollouts.weights);

    let mut outcome = Outcome::default();
    let used: BTreeSet<ObjectKey> = decided
        .virtual_servers
        .iter()
        .flat_map(|(key, decision)| {
            decision
                .content
                .pools
                .iter()
                .map(|pool| key.sibling(&pool.name))
        })
        .collect();
    for (key, _) in decide::orphans(world, &decided) {
        let status = status::orphan(world, &key, now);
        outcome.pools.insert(key, status);
    }
    let slices = world.slices();
    for key in world.pools.keys() {
        let refusals = checked
            .refused_pools
            .get(key)
            .map_or(&[][..], Vec::as_slice);
        let decision = decided.pools.get(key).cloned();
        let status = status::pool(world, key, decision, refusals, &used, &slices, now);
        outcome.pools.insert(key.clone(), status);
    }
    for key in world.virtual_servers.keys() {
        let decision = decided.virtual_servers.get(key).cloned();
        let status = status::virtual_server(world, key, decision, &checked, now);
        outcome.virtual_servers.insert(key.clone(), status);
    }
    for (key, driven) in rollouts.policies {
        let status = status::policy(world, &key, driven, now);
        outcome.policies.insert(key, status);
    }
    outcome
}
