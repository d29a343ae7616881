//! The whole core in order.

use std::collections::BTreeMap;

use sluice_api::{ObjectKey, Time};

use super::decide;
use super::servers::Servers;
use super::world::{Outcome, World};
use super::{policies, pools, status};

/// The new status of every object. Called again with that status it gives the same, until something changes.
pub fn reconcile(world: &World, now: &Time) -> Outcome {
    let checked = pools::check(world, now);
    let served = decide::served(world, &checked.admitted, &checked.withdrawn);
    let slices = world.slices();
    let servers = Servers {
        contents: &checked.contents,
        slices: &slices,
    };
    let rollouts = policies::drive(world, servers, &served, now);
    let decided = decide::decide(world, &checked, servers, served, rollouts.weights);

    let mut outcome = Outcome::default();
    let mut used: BTreeMap<ObjectKey, u32> = BTreeMap::new();
    for (key, decision) in &decided.virtual_servers {
        for pool in &decision.content.pools {
            let is_covered = servers.is_covered(key, &pool.name, &decision.content);
            let share = if is_covered { 0 } else { pool.weight };
            let weight = used.entry(key.sibling(&pool.name)).or_default();
            *weight = share.max(*weight);
        }
    }
    for (key, _) in decide::orphans(world, &decided) {
        let status = status::orphan(world, &key, now);
        outcome.pools.insert(key, status);
    }
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
        let seen = status::Seen {
            world,
            checked: &checked,
            servers,
            awaited: decided.awaited.get(key),
            now,
        };
        let status = status::virtual_server(seen, key, decision);
        outcome.virtual_servers.insert(key.clone(), status);
    }
    for (key, driven) in rollouts.policies {
        let status = status::policy(world, &key, driven, now);
        outcome.policies.insert(key, status);
    }
    outcome
}
