//! Which pools take their new content.
//!
//! A pool's new servers are accepted together with the new specs of the virtual servers that use it. If such a spec is
//! refused, the virtual server goes on with its last decision, and the pool keeps the servers that fit *that*.

use std::collections::{BTreeMap, BTreeSet};

use sluice_api::{DecidedServer, ObjectKey};

use super::admission::{self, PoolView, Refusal, Service};
use super::claims;
use super::world::World;

/// Pools and virtual servers, checked together.
pub(super) struct Checked {
    /// What each pool that exists has from now on, in the order of keys; absent: nothing yet.
    pub(super) servers: BTreeMap<ObjectKey, Vec<DecidedServer>>,
    /// Why a pool's newest spec is not what it has.
    pub(super) refused_pools: BTreeMap<ObjectKey, Vec<Refusal>>,
    /// Each virtual server's newest spec.
    pub(super) services: BTreeMap<ObjectKey, Result<Service, Vec<Refusal>>>,
    /// Virtual servers whose last decision cannot stay.
    pub(super) withdrawn: BTreeSet<ObjectKey>,
}

pub(super) fn check(world: &World) -> Checked {
    let mut servers = BTreeMap::new();
    let mut refused = BTreeMap::new();
    for (key, pool) in &world.pools {
        match admission::accept(&pool.spec) {
            Ok(new) => {
                servers.insert(key.clone(), new);
            }
            Err(refusals) => {
                refuse(world, key, refusals, &mut servers, &mut refused);
            }
        }
    }
    // Each round refuses at least one pool more, so there are at most as many rounds as pools.
    loop {
        let mut services = admit_all(world, &servers);
        let withdrawn = claims::resolve(world, &mut services);
        let misfits = misfits(world, &servers, &services, &refused);
        if misfits.is_empty() {
            return Checked {
                servers,
                refused_pools: refused,
                services,
                withdrawn,
            };
        }
        for (key, refusals) in misfits {
            refuse(world, &key, refusals, &mut servers, &mut refused);
        }
    }
}

fn refuse(
    world: &World,
    key: &ObjectKey,
    refusals: Vec<Refusal>,
    servers: &mut BTreeMap<ObjectKey, Vec<DecidedServer>>,
    refused: &mut BTreeMap<ObjectKey, Vec<Refusal>>,
) {
    match world.pool_decision(key) {
        Some(last) => servers.insert(key.clone(), last.servers.clone()),
        None => servers.remove(key),
    };
    refused.insert(key.clone(), refusals);
}

fn admit_all(
    world: &World,
    servers: &BTreeMap<ObjectKey, Vec<DecidedServer>>,
) -> BTreeMap<ObjectKey, Result<Service, Vec<Refusal>>> {
    let view: PoolView<'_> = servers
        .iter()
        .map(|(key, servers)| (key, servers.as_slice()))
        .collect();
    world
        .virtual_servers
        .iter()
        .map(|(key, object)| {
            let result = admission::admit(key, &object.spec, &view, world);
            (key.clone(), result)
        })
        .collect()
}

/// Pools with new servers that would break a decision which stays, while their last ones would not.
fn misfits(
    world: &World,
    servers: &BTreeMap<ObjectKey, Vec<DecidedServer>>,
    services: &BTreeMap<ObjectKey, Result<Service, Vec<Refusal>>>,
    refused: &BTreeMap<ObjectKey, Vec<Refusal>>,
) -> BTreeMap<ObjectKey, Vec<Refusal>> {
    let mut found: BTreeMap<ObjectKey, Vec<Refusal>> = BTreeMap::new();
    for (key, result) in services {
        let (Err(_), Some(decision)) = (result, world.decision(key)) else {
            continue;
        };
        let service = Service::of_decision(decision);
        for (name, _) in &service.pools {
            let pool = key.sibling(name);
            let (Some(new), Some(last)) = (servers.get(&pool), world.pool_decision(&pool)) else {
                continue;
            };
            if refused.contains_key(&pool) || *new == last.servers {
                continue;
            }
            let before = admission::fit(&service, &pool, &last.servers, world);
            let problems = admission::fit(&service, &pool, new, world);
            let new_problems = problems
                .into_iter()
                .filter(|(reason, _)| before.iter().all(|(other, _)| other != reason))
                .map(|(reason, message)| {
                    let message = format!("VirtualServer {key} uses this pool: {message}");
                    Refusal::new(reason, "spec.servers.static", message)
                });
            let mut new_problems = new_problems.peekable();
            if new_problems.peek().is_some() {
                found.entry(pool).or_default().extend(new_problems);
            }
        }
    }
    found
}
