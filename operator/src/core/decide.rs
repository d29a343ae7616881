//! Decisions and their revisions.

use std::collections::{BTreeMap, BTreeSet};

use sluice_api::{DecidedPool, Decision, ObjectKey, PoolDecision};

use super::admission::{PoolContent, Refusal, Service};
use super::pools::Checked;
use super::world::World;

/// The decisions from now on.
pub(super) struct Decided {
    pub(super) pools: BTreeMap<ObjectKey, PoolDecision>,
    pub(super) virtual_servers: BTreeMap<ObjectKey, Decision>,
}

/// What each virtual server is served by: its newest spec if admitted, else its last decision unless that was `withdrawn`.
pub(super) fn services(
    world: &World,
    admitted: &BTreeMap<ObjectKey, Result<Service, Vec<Refusal>>>,
    withdrawn: &BTreeSet<ObjectKey>,
) -> BTreeMap<ObjectKey, Service> {
    admitted
        .iter()
        .filter_map(|(key, result)| {
            let service = match result {
                Ok(service) => service.clone(),
                Err(_) if withdrawn.contains(key) => return None,
                Err(_) => Service::of_decision(world.decision(key)?),
            };
            Some((key.clone(), service))
        })
        .collect()
}

/// Raises the revision for every decision that changes: pools first, since virtual servers refer to them.
pub(super) fn decide(
    world: &World,
    checked: &Checked,
    services: &BTreeMap<ObjectKey, Service>,
    mut weights: BTreeMap<ObjectKey, Vec<DecidedPool>>,
) -> Decided {
    let mut revision = world.highest_revision();
    let mut decided = Decided {
        pools: BTreeMap::new(),
        virtual_servers: BTreeMap::new(),
    };
    for (key, content) in &checked.contents {
        let generation = if checked.refused_pools.contains_key(key) {
            world.pool_decision(key).map(|last| last.generation)
        } else {
            world.pools.get(key).and_then(|p| p.metadata.generation)
        };
        let decision = pool(
            world.pool_decision(key),
            content,
            generation.unwrap_or_default(),
            &mut revision,
        );
        decided.pools.insert(key.clone(), decision);
    }
    for (key, service) in services {
        let last = world.decision(key);
        let generation = match &checked.services[key] {
            Ok(_) => world.virtual_servers[key].metadata.generation,
            Err(_) => last.map(|last| last.generation),
        };
        let mut new = Decision {
            revision: 0,
            generation: generation.unwrap_or_default(),
            addresses: service.addresses.clone(),
            ports: service.ports.clone(),
            mode: service.mode,
            pool_selection: service.pool_selection,
            pools: weights
                .remove(key)
                .unwrap_or_else(|| weights_without_rollout(service, last)),
        };
        new.revision = match last {
            Some(last) if last.same_service(&new) => last.revision,
            _ => {
                revision += 1;
                revision
            }
        };
        decided.virtual_servers.insert(key.clone(), new);
    }
    decided
}

fn pool(
    last: Option<&PoolDecision>,
    content: &PoolContent,
    generation: i64,
    revision: &mut u64,
) -> PoolDecision {
    let mut new = PoolDecision {
        revision: 0,
        generation,
        servers: content.servers.clone(),
        endpoints: content.endpoints.clone(),
    };
    new.revision = match last {
        Some(last) if last.same_servers(&new) => last.revision,
        _ => {
            *revision += 1;
            *revision
        }
    };
    new
}

/// The spec's weights; but what was decided stays as long as the spec's weights do: a policy that is removed leaves
/// the weights where it brought them.
fn weights_without_rollout(service: &Service, last: Option<&Decision>) -> Vec<DecidedPool> {
    if let Some(last) = last {
        let decided_from = last.pools.iter().map(|pool| (&pool.name, pool.spec_weight));
        if decided_from.eq(service.pools.iter().map(|(name, weight)| (name, *weight))) {
            return last.pools.clone();
        }
    }
    service
        .pools
        .iter()
        .map(|(name, weight)| DecidedPool {
            name: name.clone(),
            weight: *weight,
            spec_weight: *weight,
        })
        .collect()
}

/// Decisions of pools whose objects are gone, as far as `decided` refers to them.
pub(super) fn orphans<'a>(
    world: &'a World,
    decided: &'a Decided,
) -> impl Iterator<Item = (ObjectKey, &'a PoolDecision)> {
    let used: BTreeSet<ObjectKey> = decided
        .virtual_servers
        .iter()
        .flat_map(|(key, decision)| decision.pools.iter().map(|pool| key.sibling(&pool.name)))
        .filter(|pool| !world.pools.contains_key(pool))
        .collect();
    used.into_iter().filter_map(|key| {
        let decision = world.pool_decision(&key)?;
        Some((key, decision))
    })
}
