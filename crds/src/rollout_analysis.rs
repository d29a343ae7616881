//! What the analysis of a rollout has seen and found: part of a RolloutPolicy's status.
//!
//! All of it is whole numbers, so that an operator that reads it goes on exactly where the one before it was.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::limits::MAX_MESSAGE_LENGTH;

/// Metrics that an analysis tells of.
const MAX_METRICS: usize = 16;
/// Watchers of a metric.
const MAX_WATCHERS: usize = 8;
/// Kinds of failures.
const MAX_KINDS: usize = 8;
/// Classes of times.
const MAX_CLASSES: usize = 32;
/// The last class of times.
const LAST_CLASS: u32 = 31;
/// Characters of a metric's name.
const MAX_METRIC_NAME_LENGTH: usize = 63;
/// Nobody is served more often. It is a whole number for every reader of JSON.
const MAX_SAMPLES: u64 = 1_000_000_000_000_000;
/// Most thousandths of a nat: evidence is cut far below that.
const MAX_EVIDENCE: i32 = 1_000_000;

/// What the analysis of a run has seen and found.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct RolloutAnalysis {
    /// What it says of the candidate: the worst of its metrics' verdicts.
    pub verdict: AnalysisVerdict,
    /// Why, where the verdict is not `Pass`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = MAX_MESSAGE_LENGTH))]
    pub message: String,
    /// The metric that shows it, where the verdict is `Fail`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_METRIC_NAME_LENGTH))]
    pub metric: Option<String>,
    /// The candidate's percentage of the share of both pools when it was judged last.
    #[serde(default)]
    #[schemars(range(max = 100))]
    pub candidate_weight: u8,
    /// Seconds since the candidate answered its first client in this run. First bytes of its first seconds are not judged.
    #[serde(default)]
    pub candidate_seconds: u32,
    /// Clients that the candidate has answered in this run.
    #[serde(default)]
    #[schemars(range(max = MAX_SAMPLES))]
    pub candidate_samples: u64,
    /// Seconds for which the baseline has learnt nothing, because the candidate was under suspicion.
    #[serde(default)]
    pub unlearnt_seconds: u32,
    /// What is judged.
    #[serde(default)]
    #[schemars(length(max = MAX_METRICS))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub metrics: Vec<AnalysedMetric>,
    /// What the stable pool was like for as long as it had a share.
    #[serde(default)]
    pub baseline: AnalysisBaseline,
}

/// What an analysis says.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AnalysisVerdict {
    /// Nothing speaks against the candidate; also where nothing is known.
    #[default]
    Pass,
    /// The candidate fails, but so may the stable pool.
    Inconclusive,
    /// The candidate is worse than the stable pool.
    Fail,
}

/// What was seen by one metric in this run.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct AnalysedMetric {
    /// The metric: `failures` or `firstByte`.
    #[schemars(length(min = 1, max = MAX_METRIC_NAME_LENGTH))]
    pub name: String,
    /// What it says of the candidate.
    pub verdict: AnalysisVerdict,
    /// Clients of the candidate in this run.
    #[serde(default)]
    pub candidate: SampleCount,
    /// Clients of the stable pool in this run.
    #[serde(default)]
    pub stable: SampleCount,
    /// Failing ones of a million clients of the stable pool, by the baseline. Absent: it is not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1_000_000))]
    pub baseline_ppm: Option<u32>,
    /// Failing ones of a million that the candidate may have: the margin is in it. Absent: it is not judged yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1_000_000))]
    pub limit_ppm: Option<u32>,
    /// The evidence, by the size of the fault that is looked for.
    #[serde(default)]
    #[schemars(length(max = MAX_WATCHERS))]
    pub watchers: Vec<AnalysisWatcher>,
}

/// Clients, each counted once in a second.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct SampleCount {
    /// All that were counted.
    #[schemars(range(max = MAX_SAMPLES))]
    pub samples: u64,
    /// Those of them that fared badly.
    #[schemars(range(max = MAX_SAMPLES))]
    pub failing: u64,
}

/// The evidence for a fault of one size.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct AnalysisWatcher {
    /// How often evidence has begun anew in this run. Each time more of it is needed.
    #[serde(default)]
    pub starts: u32,
    /// What has been seen since then. Absent: nothing speaks for such a fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspicion: Option<AnalysisSuspicion>,
}

/// What speaks for a fault since it may have begun.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct AnalysisSuspicion {
    /// Evidence that the candidate is above its limit, in thousandths of a nat.
    #[schemars(range(min = -MAX_EVIDENCE, max = MAX_EVIDENCE))]
    pub evidence: i32,
    /// Evidence that it is worse than the stable pool in the same seconds, in thousandths of a nat.
    #[schemars(range(min = -MAX_EVIDENCE, max = MAX_EVIDENCE))]
    pub against_stable: i32,
    /// For how many seconds there has been enough evidence.
    #[serde(default)]
    pub held_seconds: u32,
    /// Clients of the candidate since then.
    pub candidate: SampleCount,
    /// Clients of the stable pool since then.
    pub stable: SampleCount,
    /// Those of the candidate that are not compared yet, because none of the stable pool came since.
    #[serde(default)]
    pub open_candidate: SampleCount,
    /// Those of the stable pool that are not compared yet.
    #[serde(default)]
    pub open_stable: SampleCount,
    /// The candidate's failing ones: refused, unanswered, reset, closed, silent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_KINDS), inner(range(max = MAX_SAMPLES)))]
    pub kinds: Vec<u64>,
}

/// What the stable pool was like.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct AnalysisBaseline {
    /// Clients that asked for something, and those that failed.
    #[serde(default)]
    pub failures: SampleCount,
    /// How long clients waited for the first byte.
    #[serde(default)]
    #[schemars(length(max = MAX_CLASSES))]
    pub first_bytes: Vec<ClassCount>,
    /// Seconds since the older half was forgotten last.
    #[serde(default)]
    pub seconds: u32,
}

/// How many times were in a class.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct ClassCount {
    /// The class: the first is up to 0.5 ms, each other one up to the square root of 2 times as much.
    #[schemars(range(max = LAST_CLASS))]
    pub class: u32,
    /// How many times.
    #[schemars(range(max = MAX_SAMPLES))]
    pub count: u64,
}
