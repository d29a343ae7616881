//! Rollout policies: which one drives a virtual server, one step of its run, and the weights it asks for.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use sluice_api::{
    DecidedPool, DecidedVirtualServer, FieldError, ObjectKey, ROLLOUT_COMMAND_ANNOTATION, Reason,
    RolloutPolicy, RolloutPolicySpec, RolloutPolicyStatus, SignalAnalysis, Time, Validate,
};
use sluice_rollout::{self as rollout, Fault, Observation, Side, Sides};

use super::admission::Refusal;
use super::analyses::Analysed;
use super::nodes::{self, Asker};
use super::servers::Servers;
use super::world::World;

/// A policy's status after this tick, and the refusals that hold its run.
pub(super) struct Driven {
    /// The run after this tick; conditions are those of before.
    pub(super) status: RolloutPolicyStatus,
    /// Why the run does not move.
    pub(super) refusals: Vec<Refusal>,
    /// The pool that has to have servers before the run moves.
    pub(super) lacks_servers: Option<String>,
    /// Seconds for which the step has stood as it does.
    pub(super) stood_seconds: u32,
    /// What speaks against the candidate.
    pub(super) fault: Option<Fault>,
    /// Why nobody can tell whether the candidate alone fails.
    pub(super) doubt: Option<String>,
}

/// The results of all policies, and the weights that they give virtual servers.
pub(super) struct Rollouts {
    pub(super) policies: BTreeMap<ObjectKey, Driven>,
    /// The weights of the virtual servers that a policy drives.
    pub(super) weights: BTreeMap<ObjectKey, Vec<DecidedPool>>,
}

/// Smaller drives: whoever has a run comes before those without, whose beginning is `None`.
type Rank<'a> = (Reverse<Option<&'a Time>>, Option<&'a Time>, &'a ObjectKey);

/// `served` holds what each virtual server is served by from now on; those without any are absent.
pub(super) fn drive(
    world: &World,
    servers: Servers<'_>,
    served: &BTreeMap<ObjectKey, DecidedVirtualServer>,
    now: &Time,
) -> Rollouts {
    let drivers = drivers(world);
    let mut rollouts = Rollouts {
        policies: BTreeMap::new(),
        weights: BTreeMap::new(),
    };
    for (key, policy) in &world.policies {
        let target = key.sibling(&policy.spec.virtual_server_name);
        let virtual_server = served.get(&target);
        let refusals = refusals(world, key, policy, virtual_server, &drivers);
        let mut status = policy.status.clone().unwrap_or_default();
        let mut lacks_servers = None;
        let stood = world.stood.get(key).copied().unwrap_or_default();
        let Analysed {
            noted,
            fault,
            doubt,
        } = world.analysed.get(key).cloned().unwrap_or_default();
        status.analysis = noted.map(Box::new);
        // Who only observes is told of it by the analysis alone.
        let rolls_back = policy.spec.signal_analysis == SignalAnalysis::RollBack;
        let (fault, doubt) = (fault.filter(|_| rolls_back), doubt.filter(|_| rolls_back));
        if let (Some(virtual_server), true) = (virtual_server, refusals.is_empty()) {
            let takes_flows = |pool: &str| {
                servers
                    .unserved(&key.sibling(pool), virtual_server)
                    .is_none()
            };
            let spec = &policy.spec;
            let observed = Observation {
                now,
                passed_seconds: stood.seconds,
                live: is_live(world, &target, virtual_server, &status),
                command: command(policy),
                weight: weight_in_force(world, &target, spec),
                ready: Sides {
                    stable: takes_flows(&spec.stable_pool_name),
                    candidate: takes_flows(&spec.candidate_pool_name),
                },
                unserved_seconds: stood.unserved_seconds,
                fault: fault.as_ref(),
                doubtful: doubt.is_some(),
            };
            let advanced = rollout::advance(spec, &status, observed);
            status = advanced.status;
            lacks_servers = advanced.lacks_servers.map(|side| match side {
                Side::Stable => spec.stable_pool_name.clone(),
                Side::Candidate => spec.candidate_pool_name.clone(),
            });
        }
        // A policy that is refused now still holds what its run has reached.
        if let Some(target) = driven_target(key, &status, &drivers)
            && let Some(virtual_server) = served.get(&target)
            && let Some(weights) = weights(virtual_server, &status)
        {
            rollouts.weights.insert(target, weights);
        }
        let driven = Driven {
            status,
            refusals,
            lacks_servers,
            stood_seconds: stood.seconds,
            fault,
            doubt,
        };
        rollouts.policies.insert(key.clone(), driven);
    }
    rollouts
}

/// The candidate's percentage of the share of both pools, as decided.
fn weight_in_force(world: &World, target: &ObjectKey, spec: &RolloutPolicySpec) -> u8 {
    let pools = world
        .decision(target)
        .map(|decision| &decision.content.pools);
    let weight = |name: &str| {
        let mut pools = pools.into_iter().flatten();
        let pool = pools.find(|pool| pool.name == name);
        pool.map_or(0, |pool| u64::from(pool.weight))
    };
    let candidate = weight(&spec.candidate_pool_name);
    let share = candidate + weight(&spec.stable_pool_name);
    let percent = (candidate * 100).checked_div(share).unwrap_or_default();
    u8::try_from(percent).unwrap_or(100)
}

/// The weights that a run asks for.
fn weights(
    virtual_server: &DecidedVirtualServer,
    status: &RolloutPolicyStatus,
) -> Option<Vec<DecidedPool>> {
    let (run, step) = (status.run.as_ref()?, status.step.as_ref()?);
    rollout::split(
        &virtual_server.pools,
        &run.stable_pool_name,
        &run.candidate_pool_name,
        step.weight,
    )
}

/// Whether every live node runs what the status asks for.
fn is_live(
    world: &World,
    target: &ObjectKey,
    virtual_server: &DecidedVirtualServer,
    status: &RolloutPolicyStatus,
) -> bool {
    world.decision(target).is_some_and(|decision| {
        weights(virtual_server, status).is_some_and(|wanted| wanted == decision.content.pools)
            && nodes::of_decision(world, target, decision, Asker::Rollout).is_complete()
    })
}

/// The virtual server that the run is about, if this policy is the one that drives it.
fn driven_target(
    key: &ObjectKey,
    status: &RolloutPolicyStatus,
    drivers: &BTreeMap<ObjectKey, &ObjectKey>,
) -> Option<ObjectKey> {
    let target = key.sibling(&status.run.as_ref()?.virtual_server_name);
    (drivers.get(&target) == Some(&key)).then_some(target)
}

/// One policy for each virtual server: the one whose run it is keeps it, of several the one that began last. Where none has a
/// run, the older policy, then the first by name.
fn drivers(world: &World) -> BTreeMap<ObjectKey, &ObjectKey> {
    let mut drivers: BTreeMap<ObjectKey, Rank<'_>> = BTreeMap::new();
    for (key, policy) in &world.policies {
        let name = &policy.spec.virtual_server_name;
        let created = policy.metadata.creation_timestamp.as_ref();
        let run = policy
            .status
            .as_ref()
            .and_then(|status| status.run.as_ref());
        let run = run.filter(|run| run.virtual_server_name == *name);
        let began = run.map(|run| &run.start_time);
        let rank = (Reverse(began), created, key);
        drivers
            .entry(key.sibling(name))
            .and_modify(|best| *best = (*best).min(rank))
            .or_insert(rank);
    }
    drivers
        .into_iter()
        .map(|(target, (.., key))| (target, key))
        .collect()
}

fn refusals(
    world: &World,
    key: &ObjectKey,
    policy: &RolloutPolicy,
    virtual_server: Option<&DecidedVirtualServer>,
    drivers: &BTreeMap<ObjectKey, &ObjectKey>,
) -> Vec<Refusal> {
    let target = &key.sibling(&policy.spec.virtual_server_name);
    let invalid: Vec<Refusal> = policy
        .spec
        .validate()
        .into_iter()
        .map(|error: FieldError| Refusal {
            reason: Reason::InvalidSpec,
            error,
        })
        .collect();
    if !invalid.is_empty() {
        return invalid;
    }
    if let Some(driver) = drivers.get(target).filter(|driver| **driver != key) {
        let message = format!(
            "VirtualServer {target} is driven by RolloutPolicy {driver}: remove one of the two policies or name another \
             virtual server"
        );
        let path = "spec.virtualServerName";
        return vec![Refusal::new(Reason::PolicyConflict, path, message)];
    }
    let Some(virtual_server) = virtual_server else {
        let path = "spec.virtualServerName";
        if world.virtual_servers.contains_key(target) && !nodes::starting(world).is_empty() {
            let message = format!("waits for VirtualServer {target} to be admitted");
            return vec![Refusal::new(Reason::AwaitingNodes, path, message)];
        }
        let message = format!(
            "VirtualServer {target} does not exist or is not served: create it or correct it as its condition Stalled says"
        );
        return vec![Refusal::new(Reason::VirtualServerNotFound, path, message)];
    };
    let mut refusals = Vec::new();
    for (path, name) in [
        ("spec.stablePoolName", &policy.spec.stable_pool_name),
        ("spec.candidatePoolName", &policy.spec.candidate_pool_name),
    ] {
        if virtual_server.pools.iter().all(|pool| pool.name != *name) {
            let message = format!(
                "{name} is no pool of VirtualServer {target}: add it to its spec.pools (the candidate with weight 0) or \
                 correct the name"
            );
            refusals.push(Refusal::new(Reason::PoolNotInVirtualServer, path, message));
        }
    }
    let share = rollout::split(
        &virtual_server.pools,
        &policy.spec.stable_pool_name,
        &policy.spec.candidate_pool_name,
        0,
    );
    if refusals.is_empty() && share.is_none() {
        let message = format!(
            "has no weight in VirtualServer {target}, nor has the candidate: give one of them a weight there"
        );
        refusals.push(Refusal::new(
            Reason::NoShare,
            "spec.stablePoolName",
            message,
        ));
    }
    refusals
}

fn command(policy: &RolloutPolicy) -> Option<&str> {
    policy
        .metadata
        .annotations
        .as_ref()?
        .get(ROLLOUT_COMMAND_ANNOTATION)
        .map(String::as_str)
}
