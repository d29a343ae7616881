//! A rollout policy and its run.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use serde::Serialize;
use sluice_api::{
    AnalysisVerdict, Gate, HistoryEntry, LastCommand, ObjectKey, Reason, Rollback, RolloutPhase,
    RolloutPolicy, RolloutPolicySpec, RolloutPolicyStatus, SampleCount, Time, VirtualServer,
    VirtualServerStatus,
};
use sluice_rollout::{Command, CommandVerb, is_baking, paused_seconds};

use super::nodes::{Nodes, Wanted};
use super::{FORMAT_VERSION, StateView};

/// The output of `kubectl sluice rollout get`.
#[derive(Serialize, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct RolloutView {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The policy's namespace.
    pub namespace: String,
    /// The policy's name.
    pub name: String,
    /// The virtual server that the run is about.
    pub virtual_server_name: String,
    /// The pool that gives.
    pub stable_pool_name: String,
    /// The pool that takes.
    pub candidate_pool_name: String,
    /// The condition `Ready`, and whether the policy is stalled.
    pub state: StateView,
    /// Where the run is; absent: no run has begun.
    pub phase: Option<RolloutPhase>,
    /// Names the run in commands.
    pub run: Option<String>,
    /// When it began.
    pub start_time: Option<Time>,
    /// The step in force.
    pub step: Option<StepView>,
    /// The steps as they are walked: those of the spec, and a final one with 100 %.
    pub steps: Vec<PlannedStep>,
    /// On how many of the live nodes the step's weights are in force; absent: the virtual server is not served, or nodes may
    /// not be listed.
    pub live: Option<LiveNodes>,
    /// Seconds for which the completed run is still rolled back if the candidate fails its clients, by the clock here.
    pub bake_remaining_seconds: u32,
    /// Why it was rolled back.
    pub rollback: Option<Rollback>,
    /// How the candidate does beside the stable pool, as the operator noted it last.
    pub judged: Vec<JudgedMetric>,
    /// The last command that the operator looked at.
    pub last_command: Option<LastCommand>,
    /// The command without which the run does not go on.
    pub next: Option<NextCommand>,
    /// The events of this run and of those before it, the newest last.
    pub history: Vec<HistoryEntry>,
}

/// The step in force.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct StepView {
    /// Counts from 0.
    pub index: u32,
    /// The candidate's percentage.
    pub weight: u8,
    /// When it was entered.
    pub start_time: Time,
    /// When every live node had acknowledged it.
    pub live_time: Option<Time>,
    /// Length of its pause.
    pub pause_seconds: u32,
    /// Seconds left of the pause, by the clock here; 0 unless the pause runs or stands still.
    pub remaining_seconds: u32,
    /// Whether the command `promote` was given for it.
    pub promoted: bool,
}

/// A step of the policy.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct PlannedStep {
    /// The candidate's percentage.
    pub weight: u8,
    /// Length of its pause.
    pub pause_seconds: u32,
    /// The gate that must open before the next step.
    pub gate: Option<Gate>,
}

/// How the candidate does by a metric.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct JudgedMetric {
    /// The metric.
    pub name: String,
    /// What it says of the candidate.
    pub verdict: AnalysisVerdict,
    /// Clients of the candidate in this run.
    pub candidate: SampleCount,
    /// Those of the stable pool meanwhile.
    pub stable: SampleCount,
}

/// On how many nodes.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct LiveNodes {
    /// Live nodes on which the weights of the step are in force.
    pub nodes: u32,
    /// Live nodes.
    pub live_nodes: u32,
}

/// The command without which the run does not go on.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct NextCommand {
    /// As one types it.
    pub command_line: String,
    /// The same as an annotation.
    pub annotation: String,
}

/// The policy that drives a virtual server: the one whose run it is, else the oldest, and none that the operator refuses for
/// another one's sake.
pub fn driver<'a>(
    policies: &'a [RolloutPolicy],
    virtual_server: &ObjectKey,
) -> Option<&'a RolloutPolicy> {
    policies
        .iter()
        .filter(|policy| {
            ObjectKey::of(*policy).sibling(&policy.spec.virtual_server_name) == *virtual_server
        })
        .min_by_key(|policy| {
            let status = policy.status.as_ref();
            let conflict = status.is_some_and(|status| {
                status.conditions.iter().any(|condition| {
                    condition.type_ == sluice_api::STALLED
                        && condition.status == "True"
                        && condition.reason == Reason::PolicyConflict.to_string()
                })
            });
            let run = status.and_then(|status| status.run.as_ref());
            let run = run.filter(|run| run.virtual_server_name == virtual_server.name);
            let began = run.map(|run| run.start_time.clone());
            let created = policy.metadata.creation_timestamp.clone();
            (conflict, Reverse(began), created, ObjectKey::of(*policy))
        })
}

/// The view of a policy; `virtual_server` is the one that it names. Without `nodes` nothing is said of them.
pub fn rollout(
    policy: &RolloutPolicy,
    virtual_server: Option<&VirtualServer>,
    nodes: Option<Nodes<'_>>,
    now: &Time,
) -> RolloutView {
    let key = ObjectKey::of(policy);
    let status = policy.status.clone().unwrap_or_default();
    let steps = steps(&policy.spec);
    let run = status.run.clone();
    let spec = &policy.spec;
    let name = |of_run: Option<&String>, of_spec: &String| of_run.unwrap_or(of_spec).clone();
    RolloutView {
        format_version: FORMAT_VERSION,
        virtual_server_name: name(
            run.as_ref().map(|run| &run.virtual_server_name),
            &spec.virtual_server_name,
        ),
        stable_pool_name: name(
            run.as_ref().map(|run| &run.stable_pool_name),
            &spec.stable_pool_name,
        ),
        candidate_pool_name: name(
            run.as_ref().map(|run| &run.candidate_pool_name),
            &spec.candidate_pool_name,
        ),
        state: StateView::new(
            &status.conditions,
            policy.metadata.generation,
            status.observed_generation,
        ),
        phase: status.phase,
        step: step(&status, &steps, now),
        live: virtual_server
            .and_then(|object| object.status.as_ref())
            .and_then(|served| live(served, &status, nodes?)),
        bake_remaining_seconds: bake_remaining_seconds(spec, &status, now),
        judged: judged(&status),
        rollback: status.rollback.clone(),
        steps,
        next: next(&key, &status),
        start_time: run.as_ref().map(|run| run.start_time.clone()),
        run: run.map(|run| run.id),
        last_command: status.last_command,
        history: status.history,
        namespace: key.namespace,
        name: key.name,
    }
}

fn steps(spec: &RolloutPolicySpec) -> Vec<PlannedStep> {
    let steps = sluice_rollout::steps(spec).into_iter();
    steps
        .map(|step| PlannedStep {
            weight: step.weight,
            pause_seconds: step.pause_seconds.unwrap_or_default(),
            gate: step.gate,
        })
        .collect()
}

fn bake_remaining_seconds(
    spec: &RolloutPolicySpec,
    status: &RolloutPolicyStatus,
    now: &Time,
) -> u32 {
    let step = status.step.as_ref();
    let baking = step.filter(|_| is_baking(status));
    baking.map_or(0, |step| {
        spec.bake_seconds.saturating_sub(paused_seconds(step, now))
    })
}

fn judged(status: &RolloutPolicyStatus) -> Vec<JudgedMetric> {
    let metrics = status.analysis.iter().flat_map(|it| &it.metrics);
    let metrics = metrics.map(|metric| JudgedMetric {
        name: metric.name.clone(),
        verdict: metric.verdict,
        candidate: metric.candidate,
        stable: metric.stable,
    });
    metrics.collect()
}

fn step(status: &RolloutPolicyStatus, steps: &[PlannedStep], now: &Time) -> Option<StepView> {
    let step = status.step.as_ref()?;
    let pause_seconds = steps
        .get(step.index as usize)
        .map_or(0, |planned| planned.pause_seconds);
    let waits = matches!(
        status.phase,
        Some(RolloutPhase::Pausing | RolloutPhase::Paused)
    );
    let remaining_seconds = if waits && step.live_time.is_some() {
        pause_seconds.saturating_sub(paused_seconds(step, now))
    } else {
        0
    };
    Some(StepView {
        index: step.index,
        weight: step.weight,
        start_time: step.start_time.clone(),
        live_time: step.live_time.clone(),
        pause_seconds,
        remaining_seconds,
        promoted: step.promoted,
    })
}

/// A decision with other weights than the step's says nothing of the step: no node has it yet.
fn live(
    served: &VirtualServerStatus,
    status: &RolloutPolicyStatus,
    nodes: Nodes<'_>,
) -> Option<LiveNodes> {
    let decision = served.decision.as_ref()?;
    // The pools' decisions are not at hand here: whoever knows better is the operator, which says when the step is live.
    let wanted = Wanted {
        revision: decision.revision,
        pool_revision: 0,
    };
    let in_force = nodes.in_force(wanted, &BTreeSet::new());
    let (run, step) = (status.run.as_ref()?, status.step.as_ref()?);
    let weight = |name: &str| {
        let pool = decision.content.pools.iter().find(|pool| pool.name == name);
        pool.map_or(0, |pool| u64::from(pool.weight))
    };
    let (stable, candidate) = (
        weight(&run.stable_pool_name),
        weight(&run.candidate_pool_name),
    );
    let decided = candidate * 100 == (stable + candidate) * u64::from(step.weight);
    Some(LiveNodes {
        nodes: if decided { in_force.nodes } else { 0 },
        live_nodes: in_force.live_nodes,
    })
}

fn next(key: &ObjectKey, status: &RolloutPolicyStatus) -> Option<NextCommand> {
    let verb = match status.phase? {
        RolloutPhase::Gated => CommandVerb::Promote,
        RolloutPhase::Paused => CommandVerb::Resume,
        RolloutPhase::Aborted | RolloutPhase::RolledBack => CommandVerb::Retry,
        RolloutPhase::Progressing | RolloutPhase::Pausing | RolloutPhase::Completed => return None,
    };
    Some(NextCommand {
        command_line: format!(
            "kubectl sluice rollout {verb} {} -n {}",
            key.name, key.namespace
        ),
        annotation: Command::new(verb, status)?.to_string(),
    })
}
