//! What nodes see of the two pools of each rollout, judged as it comes in.
//!
//! Evidence is kept here, and a policy's status notes it now and then: an operator that starts anew goes on from there.

use std::collections::{BTreeMap, BTreeSet};

use sluice_api::{
    AnalysisVerdict, ObjectKey, RollbackReason, RolloutAnalysis, RolloutPolicy, RolloutRun,
    SignalAnalysis,
};
use sluice_rollout::{Analysis, Fault, Metric, Verdict, judged_weight};
use sluice_signals::Tally;

/// Time between two notes of what is seen, while the verdict stays.
const NOTED_MS: u64 = 10_000;

/// What is seen of a rollout's pools.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Analysed {
    /// As the status is to note it; `None`: nothing was seen yet.
    pub noted: Option<RolloutAnalysis>,
    /// What speaks against the candidate of the run in the status.
    pub fault: Option<Fault>,
    /// Why nobody can tell whether the candidate alone fails.
    pub doubt: Option<String>,
}

/// The analysis of each policy whose pools are looked at.
#[derive(Debug, Default)]
pub struct Analyses {
    policies: BTreeMap<ObjectKey, Judged>,
    /// Up to when time has been counted; `None`: not yet.
    heard_ms: Option<u64>,
}

#[derive(Debug)]
struct Judged {
    /// Whose candidate is looked at; `None`: no run has begun.
    run: Option<RolloutRun>,
    stable: String,
    analysis: Analysis,
    noted: Option<RolloutAnalysis>,
    noted_ms: u64,
}

impl Analyses {
    /// Takes what nodes have told of pools since the last call. Returns the policies of which there is something new to note.
    pub fn hear(
        &mut self,
        policies: &BTreeMap<ObjectKey, RolloutPolicy>,
        news: &BTreeMap<ObjectKey, Tally>,
        now_ms: u64,
    ) -> Vec<ObjectKey> {
        let since = *self.heard_ms.get_or_insert(now_ms);
        let elapsed = now_ms.saturating_sub(since) / 1000;
        if elapsed == 0 && news.is_empty() {
            return Vec::new();
        }
        self.heard_ms = Some(since + elapsed * 1000);
        let elapsed_seconds = u32::try_from(elapsed).unwrap_or(u32::MAX);
        self.policies.retain(|key, _| policies.contains_key(key));
        let mut changed = Vec::new();
        for (key, policy) in policies {
            if policy.spec.signal_analysis == SignalAnalysis::Off {
                self.policies.remove(key);
                continue;
            }
            let status = policy.status.as_ref();
            let judged = self.policies.entry(key.clone());
            let judged = judged.or_insert_with(|| Judged::new(policy, now_ms));
            judged.follow(policy);
            let of = |pool: &str| news.get(&key.sibling(pool));
            let weight = status.and_then(judged_weight);
            let candidate = weight.and_then(|_| of(&policy.spec.candidate_pool_name));
            let stable = of(&policy.spec.stable_pool_name);
            let weight = weight.unwrap_or_default();
            judged
                .analysis
                .take(candidate, stable, elapsed_seconds, weight);
            if judged.note(now_ms) {
                changed.push(key.clone());
            }
        }
        changed
    }

    /// The pools of these policies, as far as they are looked at.
    pub fn pools(policies: &BTreeMap<ObjectKey, RolloutPolicy>) -> BTreeSet<ObjectKey> {
        let looked = policies.iter();
        let looked = looked.filter(|(_, it)| it.spec.signal_analysis != SignalAnalysis::Off);
        let pools = looked.flat_map(|(key, policy)| {
            let spec = &policy.spec;
            [&spec.stable_pool_name, &spec.candidate_pool_name].map(|name| key.sibling(name))
        });
        pools.collect()
    }

    /// What is seen of the pools of these policies, as far as they are looked at.
    pub fn all(
        &self,
        policies: &BTreeMap<ObjectKey, RolloutPolicy>,
    ) -> BTreeMap<ObjectKey, Analysed> {
        let looked = policies.iter();
        let looked =
            looked.filter_map(|(key, policy)| Some((key.clone(), self.look(key, policy)?)));
        looked.collect()
    }

    /// What is seen of a policy's pools, if they are looked at.
    pub fn look(&self, key: &ObjectKey, policy: &RolloutPolicy) -> Option<Analysed> {
        let judged = self.policies.get(key)?;
        let run = policy
            .status
            .as_ref()
            .and_then(|status| status.run.as_ref());
        let verdict = if judged.run.as_ref() == run {
            judged.analysis.verdict()
        } else {
            Verdict::Pass
        };
        let (fault, doubt) = match verdict {
            Verdict::Pass => (None, None),
            Verdict::Inconclusive { message } => (None, Some(message)),
            Verdict::Fail { metric, message } => {
                let reason = match metric {
                    Metric::Failures => RollbackReason::ClientsFailed,
                    Metric::FirstByte => RollbackReason::FirstByteSlow,
                };
                (Some(Fault { reason, message }), None)
            }
        };
        Some(Analysed {
            noted: judged.noted.clone(),
            fault,
            doubt,
        })
    }
}

impl Judged {
    fn new(policy: &RolloutPolicy, now_ms: u64) -> Self {
        let status = policy.status.as_ref();
        let noted = status.and_then(|status| status.analysis.as_deref().cloned());
        let analysis = noted
            .as_ref()
            .map_or_else(Analysis::begin, Analysis::restored);
        let run = status.and_then(|status| status.run.clone());
        let stable = run.as_ref().map(|run| run.stable_pool_name.clone());
        Self {
            run,
            stable: stable.unwrap_or_else(|| policy.spec.stable_pool_name.clone()),
            noted,
            analysis,
            noted_ms: now_ms,
        }
    }

    /// What was seen of another candidate, or another stable pool, says nothing of these.
    fn follow(&mut self, policy: &RolloutPolicy) {
        if self.stable != policy.spec.stable_pool_name {
            self.stable.clone_from(&policy.spec.stable_pool_name);
            self.analysis = Analysis::begin();
        }
        let run = policy
            .status
            .as_ref()
            .and_then(|status| status.run.as_ref());
        if self.run.as_ref() != run {
            self.run = run.cloned();
            self.analysis.candidate_changed();
        }
    }

    /// Notes what is seen, if it is time to. Returns whether that is something new.
    fn note(&mut self, now_ms: u64) -> bool {
        let stored = self.analysis.stored();
        let is_due = now_ms.saturating_sub(self.noted_ms) >= NOTED_MS;
        let is_news = match &self.noted {
            None => self.analysis != Analysis::begin(),
            Some(noted) if is_due => *noted != stored,
            Some(noted) => verdicts(noted).ne(verdicts(&stored)),
        };
        if !is_news {
            return false;
        }
        self.noted = Some(stored);
        self.noted_ms = now_ms;
        true
    }
}

/// What is said by each metric.
fn verdicts(analysis: &RolloutAnalysis) -> impl Iterator<Item = AnalysisVerdict> {
    analysis.metrics.iter().map(|metric| metric.verdict)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sluice_signals::{Outcome, Voice};

    use super::*;

    fn key() -> ObjectKey {
        ObjectKey::new("shop", "roll")
    }

    fn policies(phase: &str, run: &str, mode: &str) -> BTreeMap<ObjectKey, RolloutPolicy> {
        let time = "2026-01-01T00:00:00Z";
        let policy = json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "RolloutPolicy",
            "metadata": {"name": "roll", "namespace": "shop"},
            "spec": {
                "virtualServerName": "web", "stablePoolName": "v1", "candidatePoolName": "v2",
                "signalAnalysis": mode,
                "strategy": {"canary": {"steps": [{"weight": 25}]}},
            },
            "status": {
                "phase": phase,
                "run": {
                    "id": run, "virtualServerName": "web", "stablePoolName": "v1",
                    "candidatePoolName": "v2", "startTime": time,
                },
                "step": {"index": 0, "weight": 25, "startTime": time},
            },
        });
        let policy = serde_json::from_value(policy).expect("a policy");
        [(key(), policy)].into()
    }

    /// A second in which ten clients of the stable pool are served, and five of the candidate fare so.
    fn second(candidate: Outcome) -> BTreeMap<ObjectKey, Tally> {
        let tally = |outcome, clients| {
            let mut tally = Tally::default();
            for _ in 0..clients {
                tally.add(Voice {
                    outcome,
                    first_byte: None,
                });
            }
            tally
        };
        let stable = tally(Outcome::Replied, 10);
        let pools = [("v1", stable), ("v2", tally(candidate, 5))];
        let pools = pools.map(|(name, tally)| (ObjectKey::new("shop", name), tally));
        pools.into()
    }

    /// Seconds until there is something against the candidate.
    fn accused(
        analyses: &mut Analyses,
        policies: &BTreeMap<ObjectKey, RolloutPolicy>,
        begin_ms: u64,
    ) -> Option<u64> {
        (1..=20).find(|seconds| {
            let now_ms = begin_ms + seconds * 1000;
            let news = second(Outcome::Refused);
            analyses.hear(policies, &news, now_ms);
            let looked = analyses.look(&key(), &policies[&key()]);
            looked.is_some_and(|looked| looked.fault.is_some())
        })
    }

    #[test]
    fn who_fails_is_accused_and_that_is_noted_at_once() {
        let mut analyses = Analyses::default();
        let policies = policies("Pausing", "a", "RollBack");
        for seconds in 0..5 {
            analyses.hear(&policies, &second(Outcome::Replied), seconds * 1000);
        }
        let looked = |analyses: &Analyses| analyses.look(&key(), &policies[&key()]).expect("it");
        assert_eq!(looked(&analyses).fault, None);
        let seconds = accused(&mut analyses, &policies, 5_000).expect("it fails");
        assert!(seconds <= 5, "{seconds}");
        let noted = looked(&analyses).noted.expect("noted");
        assert_eq!(noted.verdict, AnalysisVerdict::Fail);
    }

    #[test]
    fn what_is_seen_is_noted_now_and_then() {
        let mut analyses = Analyses::default();
        let policies = policies("Pausing", "a", "RollBack");
        let mut notes = 0;
        for seconds in 0..60 {
            let news = second(Outcome::Replied);
            notes += analyses.hear(&policies, &news, seconds * 1000).len();
        }
        assert!((5..=7).contains(&notes), "{notes}");
    }

    #[test]
    fn of_another_run_nothing_is_known() {
        let mut analyses = Analyses::default();
        let first = policies("Pausing", "a", "RollBack");
        accused(&mut analyses, &first, 0).expect("it fails");
        let other = policies("Pausing", "b", "RollBack");
        let looked = analyses.look(&key(), &other[&key()]).expect("it");
        assert_eq!(looked.fault, None, "before anything was heard");
        analyses.hear(&other, &BTreeMap::new(), 100_000);
        let looked = analyses.look(&key(), &other[&key()]).expect("it");
        assert_eq!(looked.fault, None);
        assert_eq!(looked.noted.expect("noted").verdict, AnalysisVerdict::Pass);
    }

    #[test]
    fn a_candidate_without_a_share_is_not_looked_at() {
        for phase in ["Aborted", "RolledBack", "Completed"] {
            let mut analyses = Analyses::default();
            let policies = policies(phase, "a", "RollBack");
            assert_eq!(accused(&mut analyses, &policies, 0), None, "{phase}");
        }
        let mut analyses = Analyses::default();
        let off = policies("Pausing", "a", "Off");
        assert_eq!(accused(&mut analyses, &off, 0), None);
        assert!(analyses.all(&off).is_empty());
    }

    #[test]
    fn an_operator_that_starts_anew_goes_on_with_what_was_noted() {
        let mut analyses = Analyses::default();
        let mut policies = policies("Pausing", "a", "RollBack");
        accused(&mut analyses, &policies, 0).expect("it fails");
        let noted = analyses.look(&key(), &policies[&key()]);
        let policy = policies.get_mut(&key()).expect("it");
        policy.status.as_mut().expect("a status").analysis =
            noted.and_then(|it| it.noted).map(Box::new);
        let mut anew = Analyses::default();
        anew.hear(&policies, &second(Outcome::Replied), 0);
        let looked = anew.look(&key(), &policies[&key()]).expect("it");
        assert!(looked.fault.is_some());
    }
}
