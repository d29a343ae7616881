//! `RolloutPolicy`: how a virtual server's share moves from a stable to a candidate pool.

use std::fmt;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::{Condition, Time};
use crate::limits::{
    MAX_COMMAND_LENGTH, MAX_CONDITIONS, MAX_HISTORY, MAX_MESSAGE_LENGTH, MAX_NAME_LENGTH,
    MAX_PAUSE_SECONDS, MAX_STEPS,
};
use crate::load_balancer_node::is_false;
use crate::rollout_analysis::RolloutAnalysis;
use crate::rules;

/// Moves the share of two pools of a virtual server from the stable to the candidate one, step by step.
///
/// Commands to a run are the annotation `sluice.dev/rollout-command: <verb>/<run>/<step>`; verbs are `promote`,
/// `promote-full`, `abort`, `abort-force`, `pause`, `resume` and `retry`.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, PartialEq, Debug)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "RolloutPolicy",
    plural = "rolloutpolicies",
    shortname = "rop",
    category = "sluice",
    namespaced,
    status = "RolloutPolicyStatus",
    derive = "PartialEq",
    doc = "Moves the share of two pools of a virtual server from the stable to the candidate one, step by step.",
    printcolumn(
        name = "VirtualServer",
        type_ = "string",
        json_path = ".spec.virtualServerName"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Step", type_ = "integer", json_path = ".status.step.index"),
    printcolumn(name = "Weight", type_ = "integer", json_path = ".status.step.weight"),
    printcolumn(
        name = "Run",
        type_ = "string",
        json_path = ".status.run.id",
        priority = 1
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::two_pools()))]
pub struct RolloutPolicySpec {
    /// Name of a VirtualServer in the same namespace. Another name begins a new run.
    #[schemars(length(min = 1, max = MAX_NAME_LENGTH), regex(pattern = rules::SUBDOMAIN))]
    pub virtual_server_name: String,
    /// The pool of the virtual server that serves now. Another name begins a new run.
    #[schemars(length(min = 1, max = MAX_NAME_LENGTH), regex(pattern = rules::SUBDOMAIN))]
    pub stable_pool_name: String,
    /// The pool of the virtual server that is to take over. Another name begins a new run.
    #[schemars(length(min = 1, max = MAX_NAME_LENGTH), regex(pattern = rules::SUBDOMAIN))]
    pub candidate_pool_name: String,
    /// How it takes over.
    pub strategy: RolloutStrategy,
    /// What becomes of a run whose candidate fails its clients.
    #[serde(default)]
    pub signal_analysis: SignalAnalysis,
    /// For so long after completion a candidate that fails its clients is still rolled back.
    #[serde(default = "default_bake_seconds")]
    #[schemars(range(max = MAX_PAUSE_SECONDS))]
    pub bake_seconds: u32,
}

/// The default of `bakeSeconds`.
pub const fn default_bake_seconds() -> u32 {
    300
}

/// What becomes of a run whose candidate fails its clients, as nodes see it in the packets that pass them.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SignalAnalysis {
    /// The stable pool gets the whole share back.
    #[default]
    RollBack,
    /// The status tells of it, and nothing else happens.
    Observe,
    /// Nobody looks.
    Off,
}

/// How the candidate takes over.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStrategy {
    /// In ordered steps.
    pub canary: CanaryStrategy,
}

/// Ordered steps. After the last one the candidate gets 100 %.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct CanaryStrategy {
    /// The steps; weights must not go down. Editing them does not restart a run.
    #[schemars(length(min = 1, max = MAX_STEPS))]
    #[schemars(extend("x-kubernetes-validations" = rules::steps_rise()))]
    pub steps: Vec<CanaryStep>,
}

/// One step: done when every live node has acknowledged its weights, then the pause has passed, then the gate is open.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct CanaryStep {
    /// The candidate's percentage of the share of stable and candidate together.
    #[schemars(range(max = 100))]
    pub weight: u8,
    /// Time to stay in the step once every live node has acknowledged it; absent means none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = MAX_PAUSE_SECONDS))]
    pub pause_seconds: Option<u32>,
    /// The gate that must open before the next step; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
}

/// A gate that must open before the next step.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gate {
    /// The command `promote`.
    Manual,
}

/// How far a rollout is. Everything the engine knows of a run is here, so a restart changes nothing.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct RolloutPolicyStatus {
    /// The generation that this status is about.
    #[serde(default)]
    pub observed_generation: i64,
    /// `Ready`, `Reconciling`, `Stalled`.
    #[serde(default)]
    #[schemars(length(max = MAX_CONDITIONS))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Where the run is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<RolloutPhase>,
    /// The run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RolloutRun>,
    /// The step in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<RolloutStep>,
    /// How the candidate does beside the stable pool, as nodes see it; noted now and then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<Box<RolloutAnalysis>>,
    /// Why the run was rolled back; absent: it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Rollback>,
    /// The last command that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_command: Option<LastCommand>,
    /// The events of this run and of those before it, the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_HISTORY))]
    pub history: Vec<HistoryEntry>,
}

/// Where a run is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum RolloutPhase {
    /// Nodes have not all acknowledged the step.
    Progressing,
    /// The step's pause runs.
    Pausing,
    /// The step's gate waits for the command `promote`.
    Gated,
    /// Stopped by the command `pause`.
    Paused,
    /// The candidate has the whole share.
    Completed,
    /// The stable pool has the whole share again, by the command `abort`.
    Aborted,
    /// The stable pool has the whole share again, since the candidate failed its clients.
    RolledBack,
}

/// Why a run was rolled back.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Rollback {
    /// When.
    pub time: Time,
    /// What spoke against the candidate.
    pub reason: RollbackReason,
    /// What was seen.
    #[schemars(length(max = MAX_MESSAGE_LENGTH))]
    pub message: String,
    /// The candidate's percentage until then.
    pub weight: u8,
}

/// What speaks against a candidate.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum RollbackReason {
    /// It refuses connections, leaves clients without an answer, or ends connections before it has answered.
    ClientsFailed,
    /// Its first answers come late.
    FirstByteSlow,
    /// It has no server that takes new flows.
    NoServers,
}

impl fmt::Display for RollbackReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The objects that a run is about. A change of any name begins a new run.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct RolloutRun {
    /// Names this run in commands.
    #[schemars(length(max = 16))]
    pub id: String,
    /// The virtual server.
    #[schemars(length(max = MAX_NAME_LENGTH))]
    pub virtual_server_name: String,
    /// The stable pool.
    #[schemars(length(max = MAX_NAME_LENGTH))]
    pub stable_pool_name: String,
    /// The candidate pool.
    #[schemars(length(max = MAX_NAME_LENGTH))]
    pub candidate_pool_name: String,
    /// When it began.
    pub start_time: Time,
}

/// The step in force.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStep {
    /// Counts from 0. One past the given steps is the final one with 100 %.
    pub index: u32,
    /// The candidate's percentage.
    pub weight: u8,
    /// When it was entered.
    pub start_time: Time,
    /// When every live node had acknowledged it; absent: not yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_time: Option<Time>,
    /// Since when the pause has been running, or when `pausedSeconds` was last counted; absent: it does not run. It is for people:
    /// the operator counts by its own clock. Once the run is completed this is the bake, in which it is still rolled back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_start_time: Option<Time>,
    /// Seconds of the pause, or the bake, that an operator saw pass until `pauseStartTime`; counted now and then.
    #[serde(default)]
    pub paused_seconds: u32,
    /// Whether the command `promote` was given for this step.
    #[serde(default)]
    pub promoted: bool,
    /// Whether the candidate has a share and no server that takes new flows.
    #[serde(default, skip_serializing_if = "is_false")]
    pub unserved: bool,
}

/// A command and what became of it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct LastCommand {
    /// The annotation's value, cut to its maximum.
    #[schemars(length(max = MAX_COMMAND_LENGTH))]
    pub command: String,
    /// The command's result.
    pub result: CommandResult,
    /// Why.
    #[schemars(length(max = MAX_MESSAGE_LENGTH))]
    pub message: String,
    /// When it was looked at.
    pub time: Time,
}

/// The result of a command.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommandResult {
    /// Carried out.
    Accepted,
    /// For another run or step, or not possible in this phase: nothing was done.
    Ignored,
    /// Not a command.
    Invalid,
}

/// Something that happened to a run.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// When.
    pub time: Time,
    /// The run.
    #[schemars(length(max = 16))]
    pub run: String,
    /// The event.
    pub event: RolloutEvent,
    /// The step it happened in or led to.
    pub step: u32,
    /// The candidate's percentage from then on.
    pub weight: u8,
}

/// An event of a run.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum RolloutEvent {
    /// The run began.
    Started,
    /// The next step was entered.
    StepEntered,
    /// Every live node acknowledged the step.
    StepLive,
    /// The command `promote` opened the step.
    Promoted,
    /// The command `promote-full` led to the last step.
    PromotedFull,
    /// The command `pause` stopped the run.
    Paused,
    /// The command `resume` let it go on.
    Resumed,
    /// The command `abort` gave everything back to the stable pool.
    Aborted,
    /// The candidate has the whole share.
    Completed,
    /// The bake is over: the run is not rolled back any more.
    Baked,
    /// The candidate failed its clients, and everything was given back to the stable pool.
    RolledBack,
    /// Another run took the place of this one.
    Superseded,
}
