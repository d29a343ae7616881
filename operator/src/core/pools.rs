//! Which pools take their new content.
//!
//! A pool's new servers are accepted together with the new specs of the virtual servers that use it. If such a spec is
//! refused, the virtual server goes on with its last decision, and the pool keeps the servers that fit *that*.

use std::collections::{BTreeMap, BTreeSet};

use sluice_api::{
    Claim, DecidedRealServerPool, DrainedServer, ObjectKey, RealServerPool, Reason, SignalAnalysis,
    Time, drained_servers,
};

use super::admission::{self, Refusal, View};
use super::claims::{self, Admitted, Claims};
use super::vips;
use super::world::World;

/// Pools and virtual servers, checked together.
pub(super) struct Checked {
    /// The content that each existing pool has from now on, in the order of keys; absent: it has none yet.
    pub(super) contents: BTreeMap<ObjectKey, DecidedRealServerPool>,
    /// Why a pool's newest spec is not what it has.
    pub(super) refused_pools: BTreeMap<ObjectKey, Vec<Refusal>>,
    /// Each virtual server's newest spec.
    pub(super) admitted: Admitted,
    /// Virtual servers whose last decision cannot stay.
    pub(super) withdrawn: BTreeSet<ObjectKey>,
    /// The claims of the virtual servers that wait for VIP ports.
    pub(super) claims: BTreeMap<ObjectKey, Claim>,
}

pub(super) fn check(world: &World, now: &Time) -> Checked {
    let slices = world.slices();
    let mut contents = BTreeMap::new();
    let mut refused = BTreeMap::new();
    let unusable = vips::unusable(world);
    for (key, pool) in &world.pools {
        let accepted = admission::accept(key, &pool.spec, world);
        match accepted.and_then(|new| Ok((new, drained(pool, now)?))) {
            Ok((mut new, drained)) => {
                new.drained = drained;
                contents.insert(key.clone(), new);
            }
            Err(refusals) => {
                refuse(world, now, key, &mut contents);
                refused.insert(key.clone(), refusals);
            }
        }
    }
    // Each round refuses at least one pool more, so there are at most as many rounds as pools.
    loop {
        let view = View {
            contents: &contents,
            slices: &slices,
            unusable: &unusable,
        };
        let mut admitted = admit_all(world, &view);
        let Claims { lost, waiting } = claims::resolve(world, &mut admitted);
        let misfits = misfits(world, &view, &admitted, &refused);
        if misfits.is_empty() {
            let sampled = sampled(world);
            for (key, content) in &mut contents {
                content.sampled = sampled.contains(key);
            }
            let withdrawn = withdraw(lost, &unusable, &mut admitted);
            return Checked {
                contents,
                refused_pools: refused,
                admitted,
                withdrawn,
                claims: waiting,
            };
        }
        for (key, refusals) in misfits {
            refuse(world, now, &key, &mut contents);
            refused.insert(key, refusals);
        }
    }
}

/// The pools whose servers rollouts are to know of: those that a policy names, of the virtual server that it names.
fn sampled(world: &World) -> BTreeSet<ObjectKey> {
    let mut sampled = BTreeSet::new();
    let policies = world.policies.iter();
    let looking = policies.filter(|(_, it)| it.spec.signal_analysis != SignalAnalysis::Off);
    for (key, policy) in looking {
        let spec = &policy.spec;
        let target = key.sibling(&spec.virtual_server_name);
        let Some(virtual_server) = world.virtual_servers.get(&target) else {
            continue;
        };
        let own = virtual_server.spec.pools.iter().map(|pool| &pool.name);
        let decided = world.decision(&target).into_iter();
        let decided = decided.flat_map(|it| it.content.pools.iter().map(|pool| &pool.name));
        let names: BTreeSet<&String> = own.chain(decided).collect();
        let both = [&spec.stable_pool_name, &spec.candidate_pool_name];
        let both = both.into_iter().filter(|name| names.contains(name));
        sampled.extend(both.map(|name| key.sibling(name)));
    }
    sampled
}

/// The servers that a pool's annotation has drained now.
fn drained(pool: &RealServerPool, now: &Time) -> Result<Vec<DrainedServer>, Vec<Refusal>> {
    let drained = drained_servers(pool).map_err(|error| {
        vec![Refusal {
            reason: Reason::InvalidSpec,
            error,
        }]
    });
    let mut drained = drained?;
    drained.retain(|server| !server.is_over(now.0));
    Ok(drained)
}

/// Has a pool keep its last content, and drain the servers that are to be drained now. Where nobody can read which these are, they stay
/// until their time is over.
fn refuse(
    world: &World,
    now: &Time,
    key: &ObjectKey,
    contents: &mut BTreeMap<ObjectKey, DecidedRealServerPool>,
) {
    let Some(last) = world.pool_decision(key) else {
        contents.remove(key);
        return;
    };
    let mut content = last.content.clone();
    match drained(&world.pools[key], now) {
        Ok(drained) => content.drained = drained,
        Err(_) => content.drained.retain(|server| !server.is_over(now.0)),
    }
    contents.insert(key.clone(), content);
}

/// The virtual servers whose last decision cannot stay. Says why, where the refusal of the newest spec does not.
fn withdraw(
    mut lost: BTreeSet<ObjectKey>,
    unusable: &vips::Unusable,
    admitted: &mut Admitted,
) -> BTreeSet<ObjectKey> {
    lost.extend(unusable.keys().cloned());
    for key in unusable.keys() {
        let Some(Err(refusals)) = admitted.get_mut(key) else {
            continue;
        };
        for refusal in vips::withdrawal(key, unusable) {
            let message = &refusal.error.message;
            if refusals.iter().all(|other| other.error.message != *message) {
                refusals.push(refusal);
            }
        }
    }
    lost
}

fn admit_all(world: &World, view: &View<'_>) -> Admitted {
    world
        .virtual_servers
        .iter()
        .map(|(key, object)| {
            let result = admission::admit(key, &object.spec, view, world);
            (key.clone(), result)
        })
        .collect()
}

/// Pools with new servers that would break a decision which stays, while their last ones would not.
fn misfits(
    world: &World,
    view: &View<'_>,
    admitted: &Admitted,
    refused: &BTreeMap<ObjectKey, Vec<Refusal>>,
) -> BTreeMap<ObjectKey, Vec<Refusal>> {
    let mut found: BTreeMap<ObjectKey, Vec<Refusal>> = BTreeMap::new();
    for (key, result) in admitted {
        let (Err(_), Some(decision)) = (result, world.decision(key)) else {
            continue;
        };
        if view.unusable.contains_key(key) {
            continue;
        }
        let served = &decision.content;
        for pool in &served.pools {
            let pool = key.sibling(&pool.name);
            let (Some(new), Some(last)) = (view.contents.get(&pool), world.pool_decision(&pool))
            else {
                continue;
            };
            let last = &last.content;
            if refused.contains_key(&pool) || new == last {
                continue;
            }
            let before = admission::fit(served, &pool, last, view.slices, world);
            let problems = admission::fit(served, &pool, new, view.slices, world);
            let new_problems = problems
                .into_iter()
                .filter(|(reason, _)| before.iter().all(|(other, _)| other != reason))
                .map(|(reason, message)| {
                    let message = format!("VirtualServer {key} uses this pool: {message}");
                    Refusal::new(reason, "spec.servers", message)
                });
            let mut new_problems = new_problems.peekable();
            if new_problems.peek().is_some() {
                found.entry(pool).or_default().extend(new_problems);
            }
        }
    }
    found
}
