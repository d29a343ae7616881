//! Decisions and their revisions.

use std::collections::{BTreeMap, BTreeSet};

use sluice_api::{
    DecidedPool, DecidedRealServerPool, DecidedVirtualServer, Decision, ObjectKey, PoolDecision,
};

use super::claims::Admitted;
use super::pools::Checked;
use super::servers::{Lacking, Servers};
use super::world::World;

/// The decisions from now on.
pub(super) struct Decided {
    pub(super) pools: BTreeMap<ObjectKey, PoolDecision>,
    pub(super) virtual_servers: BTreeMap<ObjectKey, Decision>,
    /// By virtual server, the pool that other weights in its spec wait for.
    pub(super) awaited: BTreeMap<ObjectKey, Lacking>,
}

/// Each virtual server's content: its newest spec if admitted, else its last decision unless that was `withdrawn`,
/// with the VIP groups of its addresses.
pub(super) fn served(
    world: &World,
    admitted: &Admitted,
    withdrawn: &BTreeSet<ObjectKey>,
) -> BTreeMap<ObjectKey, DecidedVirtualServer> {
    admitted
        .iter()
        .filter_map(|(key, result)| {
            let mut content = match result {
                Ok(wanted) => wanted.clone(),
                Err(_) if withdrawn.contains(key) => return None,
                Err(_) => world.decision(key)?.content.clone(),
            };
            // Whatever becomes of the spec, the pools say who announces the addresses.
            if let Some(assignment) = world.assigned.get(key) {
                content.groups = assignment.groups(&content.addresses);
            }
            Some((key.clone(), content))
        })
        .collect()
}

/// Gives every decision that changes a revision higher than all before: pools first, since virtual servers refer to them.
/// Whoever writes them may give higher ones, in the order of writing (see [`crate::order`]).
pub(super) fn decide(
    world: &World,
    checked: &Checked,
    servers: Servers<'_>,
    served: BTreeMap<ObjectKey, DecidedVirtualServer>,
    mut weights: BTreeMap<ObjectKey, Vec<DecidedPool>>,
) -> Decided {
    let mut highest = world.highest_revision();
    let mut decided = Decided {
        pools: BTreeMap::new(),
        virtual_servers: BTreeMap::new(),
        awaited: BTreeMap::new(),
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
            &mut highest,
        );
        decided.pools.insert(key.clone(), decision);
    }
    for (key, mut content) in served {
        let last = world.decision(&key);
        let mut generation = match &checked.admitted[&key] {
            Ok(_) => world.virtual_servers[&key].metadata.generation,
            Err(_) => last.map(|last| last.generation),
        };
        if let Some(weights) = weights.remove(&key) {
            content.pools = weights;
        } else {
            let wanted = weights_without_rollout(content.pools, last);
            let before = last.map_or(&[][..], |last| &last.content.pools);
            let lacking = servers.lacking(&key, &content.addresses, before, &wanted);
            content.pools = if let Some(lacking) = lacking {
                generation = last.map(|last| last.generation);
                decided.awaited.insert(key.clone(), lacking);
                before.to_vec()
            } else {
                wanted
            };
        }
        let (revision, complete_revision) = match last {
            Some(last) if last.content == content => (last.revision, last.complete_revision),
            _ => (next(&mut highest), 0),
        };
        let decision = Decision {
            revision,
            complete_revision,
            generation: generation.unwrap_or_default(),
            content,
        };
        decided.virtual_servers.insert(key, decision);
    }
    decided
}

fn next(revision: &mut u64) -> u64 {
    *revision += 1;
    *revision
}

fn pool(
    last: Option<&PoolDecision>,
    content: &DecidedRealServerPool,
    generation: i64,
    highest: &mut u64,
) -> PoolDecision {
    let (revision, complete_revision) = match last {
        Some(last) if last.content == *content => (last.revision, last.complete_revision),
        _ => (next(highest), 0),
    };
    PoolDecision {
        revision,
        complete_revision,
        generation,
        content: content.clone(),
    }
}

/// The spec's weights; but what was decided stays as long as the spec's weights do: a policy that is removed leaves
/// the weights where it brought them.
fn weights_without_rollout(
    mut pools: Vec<DecidedPool>,
    last: Option<&Decision>,
) -> Vec<DecidedPool> {
    let same_spec =
        |(a, b): (&DecidedPool, &DecidedPool)| a.name == b.name && a.spec_weight == b.spec_weight;
    if let Some(last) = last.map(|last| &last.content.pools)
        && last.len() == pools.len()
        && last.iter().zip(&pools).all(same_spec)
    {
        return last.clone();
    }
    for pool in &mut pools {
        pool.weight = pool.spec_weight;
    }
    pools
}

/// Decisions of pools whose objects are gone, as far as `decided` refers to them.
pub(super) fn orphans<'a>(
    world: &'a World,
    decided: &'a Decided,
) -> impl Iterator<Item = (ObjectKey, &'a PoolDecision)> {
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
        .filter(|pool| !world.pools.contains_key(pool))
        .collect();
    used.into_iter().filter_map(|key| {
        let decision = world.pool_decision(&key)?;
        Some((key, decision))
    })
}
