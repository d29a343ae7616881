//! Conditions, from what nodes report and what was refused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_api::{
    Acknowledged, ConditionType, DecidedVirtualServer, Decision, ExternalTrafficPolicy,
    ForwardingMode, NODE_SILENT_SECONDS, ObjectKey, PoolDecision, RealServerPoolStatus, Reason,
    RolloutPhase, RolloutPolicy, RolloutPolicySpec, RolloutPolicyStatus, Time, VirtualServerStatus,
    find_condition,
};
use sluice_planner::{Server, Slices};
use sluice_rollout::{Fault, STEP_DEADLINE_SECONDS};

use super::admission::{Refusal, told};
use super::conditions::{Conditions, State};
use super::ledger::Assignment;
use super::nodes::{self, Acknowledgement, Asker};
use super::policies::Driven;
use super::pools::Checked;
use super::servers::{Lacking, Servers};
use super::world::World;

/// What the status of a virtual server follows from.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) world: &'a World,
    pub(super) checked: &'a Checked,
    pub(super) servers: Servers<'a>,
    /// The pool that other weights in the spec wait for.
    pub(super) awaited: Option<&'a Lacking>,
    pub(super) now: &'a Time,
}

pub(super) fn virtual_server(
    seen: Seen<'_>,
    key: &ObjectKey,
    decision: Option<Decision>,
) -> VirtualServerStatus {
    let Seen {
        world,
        checked,
        servers,
        awaited,
        now,
    } = seen;
    let object = &world.virtual_servers[key];
    let refusals = checked.admitted[key].as_ref().err();
    let refusals = refusals.map_or(&[][..], Vec::as_slice);
    let last = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation.unwrap_or_default();
    let mut conditions = Conditions {
        list: last.conditions,
        generation,
        now,
    };
    let acknowledgement = decision
        .as_ref()
        .map(|decision| nodes::of_decision(world, key, decision, Asker::Condition))
        .unwrap_or_default();
    conditions.state(&match (&decision, refusals) {
        (_, [first]) if first.reason == Reason::AwaitingNodes => {
            State::Reconciling(first.reason, first.error.to_string())
        }
        (decision, [first, ..]) => State::Stalled(
            first.reason,
            refused(
                refusals,
                decision.as_ref().map(|d| (d.generation, d.revision)),
            ),
        ),
        (Some(decision), []) => match (awaited, lacking_pool(key, decision, servers)) {
            (Some(lacking), _) => State::Reconciling(Reason::AwaitingServers, awaiting(lacking)),
            (None, Some(message)) if acknowledgement.is_complete() => {
                State::Reconciling(Reason::AwaitingServers, message)
            }
            _ => in_force(&acknowledgement),
        },
        (None, []) => State::Reconciling(Reason::AwaitingNodes, String::new()),
    });
    tell_silent(&mut conditions, world, key, decision.as_ref());
    if acknowledgement.exceptions.is_empty() {
        conditions.clear(ConditionType::NodeExceptions);
    } else {
        let message = exceptions(&acknowledgement);
        conditions.set(
            ConditionType::NodeExceptions,
            true,
            Reason::NodeException,
            &message,
        );
    }
    advise(&mut conditions, world, key, decision.as_ref());
    tell_kept(&mut conditions, world, key);
    VirtualServerStatus {
        observed_generation: generation,
        conditions: conditions.list,
        acknowledged: decision
            .as_ref()
            .map(|decision| acknowledged(last.acknowledged, decision, &acknowledgement)),
        decision,
        claim: checked.claims.get(key).cloned(),
    }
}

/// Names the nodes that fell silent before they acknowledged what is decided.
fn tell_silent(
    conditions: &mut Conditions<'_>,
    world: &World,
    key: &ObjectKey,
    decision: Option<&Decision>,
) {
    let kind = ConditionType::NodesSilent;
    let silent = decision.map(|decision| nodes::silent(world, key, decision));
    let silent = silent.unwrap_or_default();
    if silent.is_empty() {
        return conditions.clear(kind);
    }
    let message = format!(
        "no report for more than {NODE_SILENT_SECONDS} s from {}, and no acknowledgement of what was decided: start the \
         agent there or remove the LoadBalancerNode; it is not waited for",
        silent.join(", ")
    );
    conditions.set(kind, true, Reason::NodeSilent, &message);
}

/// Tells what other weights wait for.
fn awaiting(lacking: &Lacking) -> String {
    format!(
        "spec.pools: the weights of before stay until RealServerPool {} has an {} server that takes new flows to {}, since its \
         share would be dropped: see that its servers are ready",
        lacking.pool,
        family(lacking.vip),
        lacking.vip
    )
}

fn family(vip: IpAddr) -> &'static str {
    if vip.is_ipv6() { "IPv6" } else { "IPv4" }
}

/// Tells of a pool with a share that has no server for it.
fn lacking_pool(key: &ObjectKey, decision: &Decision, servers: Servers<'_>) -> Option<String> {
    let content = &decision.content;
    let mut pools = content.pools.iter().filter(|pool| pool.weight > 0);
    pools.find_map(|pool| {
        let vip = servers.dropped(key, &pool.name, content)?;
        Some(format!(
            "RealServerPool {} has a share and no {} server that takes new flows, so that its share of those to {vip} \
             is dropped: see that its servers are ready, or set its weight in spec.pools to 0",
            pool.name,
            family(vip)
        ))
    })
}

/// Behind NAT replies must come back to the director that the client's packets went through.
fn advise(
    conditions: &mut Conditions<'_>,
    world: &World,
    key: &ObjectKey,
    decision: Option<&Decision>,
) {
    let kind = ConditionType::ForwardingAdvice;
    // By the policy `Local` servers are on the director.
    let is_concerned = |content: &&DecidedVirtualServer| {
        content.mode == ForwardingMode::Nat
            && content.external_traffic_policy == ExternalTrafficPolicy::Cluster
    };
    let content = decision.map(|decision| &decision.content);
    let Some(content) = content.filter(is_concerned) else {
        return conditions.clear(kind);
    };
    // Pods send replies by way of their own node, unless the network is told to do otherwise.
    let mut names = content.pools.iter().map(|pool| &pool.name);
    let pool_of_pods = names.find(|name| {
        let pool = world.pool_decision(&key.sibling(name));
        pool.is_some_and(|pool| pool.content.endpoints.is_some())
    });
    if let Some(name) = pool_of_pods {
        let message = format!(
            "spec.forwarding.mode: NAT needs the replies of the pods of {name} to come back through the director that the client's \
             packets went through, and pods on other nodes answer directly: use FullNAT unless your network sees to it"
        );
        return conditions.set(kind, true, Reason::PodsAnswerDirectly, &message);
    }
    let assignment = world.assigned.get(key);
    let mut fixed = assignment.into_iter().flat_map(Assignment::without_gateway);
    let Some((vip, pool)) = fixed.next() else {
        return conditions.clear(kind);
    };
    let message = format!(
        "spec.forwarding.mode: servers of NAT reply through their gateway, and none moves with {vip} when another director takes it \
         over: give AddressPool {pool} gateways of the {} servers in spec.announce.l2.gateways, or use FullNAT",
        family(*vip)
    );
    conditions.set(kind, true, Reason::GatewayStays, &message);
}

/// Names the addresses that no pool would give.
fn tell_kept(conditions: &mut Conditions<'_>, world: &World, key: &ObjectKey) {
    let kind = ConditionType::AddressAdvice;
    let kept = world.assigned.get(key).map(Assignment::kept);
    let kept: Vec<String> = kept
        .unwrap_or_default()
        .iter()
        .map(ToString::to_string)
        .collect();
    if kept.is_empty() {
        // Hardly any virtual server ever has it, and each condition is in every reader's memory.
        if find_condition(&conditions.list, kind).is_some() {
            conditions.clear(kind);
        }
        return;
    }
    let message = format!(
        "no AddressPool gives {} to namespace {}: it stays as long as it is asked for; have it added to a pool that allows the \
         namespace, or ask for another one",
        kept.join(", "),
        key.namespace
    );
    conditions.set(kind, true, Reason::AddressKept, &message);
}

fn acknowledged(
    last: Option<Acknowledged>,
    decision: &Decision,
    acknowledgement: &Acknowledgement<'_>,
) -> Acknowledged {
    let last = last.unwrap_or_default();
    let (revision, pools) = if acknowledgement.is_complete() {
        (decision.revision, decision.content.pools.clone())
    } else {
        (last.revision, last.pools)
    };
    Acknowledged { revision, pools }
}

/// How many names there are among servers of at least this weight: a pod with addresses in both families is one server.
fn named(servers: &[Server], least_weight: u32) -> u32 {
    let names: BTreeSet<&str> = servers
        .iter()
        .filter(|server| server.weight >= least_weight)
        .map(|server| server.name.as_str())
        .collect();
    count(names.len())
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The message for a refused spec: its errors, and the generation that stays in force, if any.
fn refused(refusals: &[Refusal], decision: Option<(i64, u64)>) -> String {
    let instead = match decision {
        Some((generation, revision)) => {
            format!("generation {generation} (revision {revision}) stays in force")
        }
        None => "nothing is in force".to_owned(),
    };
    format!("{}; {instead}", told(refusals))
}

/// Names no revision: a decision gets its own when it is written. Names no node and counts none: one after the other
/// acknowledges, and none of that is to be written.
fn in_force(acknowledgement: &Acknowledgement<'_>) -> State {
    if !acknowledgement.is_any_live {
        let message = "decided; waits for a node: start an agent".to_owned();
        State::Reconciling(Reason::NoLiveNode, message)
    } else if !acknowledgement.awaited.is_empty() {
        let message = "decided; not yet in force on every live node: see `kubectl sluice status`, or acknowledgedRevision of \
                       the nodes";
        State::Reconciling(Reason::AwaitingNodes, message.to_owned())
    } else if !acknowledgement.exceptions.is_empty() {
        State::Reconciling(Reason::NodeException, exceptions(acknowledgement))
    } else {
        let message = "in force on every live node".to_owned();
        State::Ready(Reason::Live, message)
    }
}

/// Names the first few.
fn awaited(acknowledgement: &Acknowledgement<'_>) -> String {
    const NAMED: usize = 5;
    let mut nodes: Vec<String> = acknowledgement
        .awaited
        .iter()
        .take(NAMED)
        .map(|node| (*node).to_owned())
        .collect();
    let further = acknowledgement.awaited.len() - nodes.len();
    if further > 0 {
        nodes.push(format!("{further} more"));
    }
    nodes.join(", ")
}

fn exceptions(acknowledgement: &Acknowledgement<'_>) -> String {
    let exceptions = acknowledgement.exceptions.iter();
    let texts: Vec<String> = exceptions
        .map(|(node, text)| format!("{node}: {text}"))
        .collect();
    texts.join("; ")
}

pub(super) fn pool(
    world: &World,
    key: &ObjectKey,
    decision: Option<PoolDecision>,
    refusals: &[Refusal],
    used: &BTreeMap<ObjectKey, u32>,
    slices: &Slices<'_>,
    now: &Time,
) -> RealServerPoolStatus {
    let object = &world.pools[key];
    let generation = object.metadata.generation.unwrap_or_default();
    let last = object.status.clone().unwrap_or_default();
    let mut conditions = Conditions {
        list: last.conditions,
        generation,
        now,
    };
    let servers = decision
        .as_ref()
        .map(|decision| slices.servers(&key.namespace, &decision.content))
        .unwrap_or_default();
    let ready_servers = named(&servers, 1);
    conditions.state(&match (&decision, refusals) {
        (decision, [first, ..]) => State::Stalled(
            first.reason,
            refused(
                refusals,
                decision.as_ref().map(|d| (d.generation, d.revision)),
            ),
        ),
        (Some(_), []) if !used.contains_key(key) => State::Ready(
            Reason::Unused,
            "accepted; no virtual server in force uses it".to_owned(),
        ),
        (Some(decision), []) => {
            let acknowledgement = nodes::of_pool(world, key, decision.revision);
            let has_share = used.get(key).is_some_and(|weight| *weight > 0);
            if acknowledgement.is_complete() && has_share && ready_servers == 0 {
                let message = "has a share and no server that takes new flows, so that its share is dropped: see that its \
                               servers are ready";
                State::Reconciling(Reason::AwaitingServers, message.to_owned())
            } else {
                in_force(&acknowledgement)
            }
        }
        (None, []) => State::Reconciling(Reason::AwaitingNodes, String::new()),
    });
    RealServerPoolStatus {
        observed_generation: generation,
        conditions: conditions.list,
        servers: named(&servers, 0),
        ready_servers,
        decision,
    }
}

/// The status of a pool whose object is gone.
pub(super) fn orphan(world: &World, key: &ObjectKey, now: &Time) -> RealServerPoolStatus {
    let last = world.orphans.get(key).cloned().unwrap_or_default();
    let mut conditions = Conditions {
        list: last.conditions,
        generation: last.observed_generation,
        now,
    };
    let message = format!(
        "RealServerPool {key} is gone while a virtual server's decision refers to it: create it again, or remove it from \
         spec.pools there"
    );
    conditions.state(&State::Stalled(Reason::Deleted, message));
    RealServerPoolStatus {
        conditions: conditions.list,
        ..last
    }
}

pub(super) fn policy(
    world: &World,
    key: &ObjectKey,
    driven: Driven,
    now: &Time,
) -> RolloutPolicyStatus {
    let object = &world.policies[key];
    let generation = object.metadata.generation.unwrap_or_default();
    let Driven {
        mut status,
        refusals,
        lacks_servers,
        stood_seconds,
        fault,
        doubt,
    } = driven;
    let mut conditions = Conditions {
        list: std::mem::take(&mut status.conditions),
        generation,
        now,
    };
    let target = key.sibling(&object.spec.virtual_server_name);
    conditions.state(&match refusals.first() {
        Some(first) if first.reason == Reason::AwaitingNodes => {
            State::Reconciling(first.reason, first.error.to_string())
        }
        Some(first) => State::Stalled(first.reason, told(&refusals)),
        None => match &lacks_servers {
            Some(pool) => lacking(&object.spec, &status, pool, fault.as_ref()),
            None if is_overdue(object, &status, stood_seconds) => overdue(world, &target, &status),
            None => progress(&status, doubt.as_deref()),
        },
    });
    RolloutPolicyStatus {
        observed_generation: generation,
        conditions: conditions.list,
        ..status
    }
}

fn lacking(
    spec: &RolloutPolicySpec,
    status: &RolloutPolicyStatus,
    pool: &str,
    fault: Option<&Fault>,
) -> State {
    if pool == spec.stable_pool_name
        && let Some(fault) = fault
    {
        let message = format!(
            "the candidate fails its clients ({}), and the stable pool {pool} has no server that could take the share back: see that \
             its servers are ready",
            fault.message
        );
        return State::Stalled(Reason::RollbackImpossible, message);
    }
    let what = status.step.as_ref().map_or_else(
        || "the run begins".to_owned(),
        |step| format!("step {} ({} %) is left", step.index, step.weight),
    );
    let message = format!(
        "{what} once RealServerPool {pool} has a server that takes new flows in each family of the VIPs: see that its servers \
         are ready"
    );
    State::Reconciling(Reason::AwaitingServers, message)
}

/// Whether a step has waited too long for nodes. An operator that starts anew sees no more of that than what was told before.
fn is_overdue(policy: &RolloutPolicy, status: &RolloutPolicyStatus, stood_seconds: u32) -> bool {
    let before = policy.status.as_ref();
    let began = |status: &RolloutPolicyStatus| {
        let step = status.step.as_ref()?;
        let waits = step.live_time.is_none() && status.phase != Some(RolloutPhase::Paused);
        waits.then(|| (step.index, step.start_time.clone()))
    };
    let now = began(status);
    if now.is_none() || before.and_then(began) != now {
        return false;
    }
    let conditions = before.map_or(&[][..], |before| &before.conditions);
    let was_told = find_condition(conditions, ConditionType::Stalled)
        .is_some_and(|stalled| stalled.reason == Reason::DeadlineExceeded.to_string());
    was_told || stood_seconds > STEP_DEADLINE_SECONDS
}

fn overdue(world: &World, target: &ObjectKey, status: &RolloutPolicyStatus) -> State {
    let step = status.step.as_ref();
    let (index, weight) = step.map_or((0, 0), |step| (step.index, step.weight));
    let message = format!(
        "step {index} ({weight} %) is not in force on every live node {STEP_DEADLINE_SECONDS} s after it began: {}",
        obstacle(world, target)
    );
    State::Stalled(Reason::DeadlineExceeded, message)
}

fn progress(status: &RolloutPolicyStatus, doubt: Option<&str>) -> State {
    let Some(step) = &status.step else {
        return State::Reconciling(Reason::RolloutProgressing, String::new());
    };
    let (index, weight) = (step.index, step.weight);
    let run = status.run.as_ref().map_or("", |run| run.id.as_str());
    match status.phase {
        Some(RolloutPhase::Completed) => State::Ready(
            Reason::RolloutCompleted,
            "the candidate has the whole share".to_owned(),
        ),
        Some(RolloutPhase::RolledBack) => State::Stalled(
            Reason::RolledBack,
            format!(
                "{}; everything was given back to the stable pool; retry/{run}/{index} begins a new run",
                status
                    .rollback
                    .as_ref()
                    .map_or("", |rollback| &rollback.message)
            ),
        ),
        Some(RolloutPhase::Aborted) if step.live_time.is_some() => State::Ready(
            Reason::RolloutAborted,
            format!("the stable pool has the whole share; retry/{run}/{index} begins a new run"),
        ),
        Some(RolloutPhase::Aborted) => State::Reconciling(
            Reason::RolloutAborted,
            "the share goes back to the stable pool".to_owned(),
        ),
        Some(RolloutPhase::Paused) => State::Reconciling(
            Reason::RolloutWaiting,
            format!("step {index} ({weight} %) is paused until the command resume/{run}/{index}"),
        ),
        Some(RolloutPhase::Gated) => State::Reconciling(
            Reason::RolloutWaiting,
            format!("step {index} ({weight} %) waits for the command promote/{run}/{index}"),
        ),
        Some(RolloutPhase::Pausing) => State::Reconciling(
            Reason::RolloutProgressing,
            format!("step {index} ({weight} %) is in force on every live node; its pause runs"),
        ),
        Some(RolloutPhase::Progressing)
            if step.live_time.is_some()
                && let Some(doubt) = doubt =>
        {
            let message = format!(
                "step {index} ({weight} %) is left once it is known that the stable pool does not fail alike: {doubt}"
            );
            State::Reconciling(Reason::AnalysisInconclusive, message)
        }
        Some(RolloutPhase::Progressing) | None => State::Reconciling(
            Reason::RolloutProgressing,
            format!("step {index} ({weight} %) comes into force on the nodes"),
        ),
    }
}

fn obstacle(world: &World, target: &ObjectKey) -> String {
    let Some(decision) = world.decision(target) else {
        return format!("VirtualServer {target} has no decision");
    };
    let acknowledgement = nodes::of_decision(world, target, decision, Asker::Rollout);
    if !acknowledgement.is_any_live {
        "no agent reports: start one".to_owned()
    } else if acknowledgement.awaited.is_empty() {
        exceptions(&acknowledgement)
    } else {
        format!(
            "look at the agents of {} (revision {} is wanted)",
            awaited(&acknowledgement),
            decision.revision
        )
    }
}
