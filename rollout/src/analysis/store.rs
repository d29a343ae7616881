//! An analysis as a policy's status has it.

use sluice_api::{
    AnalysedMetric, AnalysisBaseline, AnalysisVerdict, ClassCount, MAX_MESSAGE_LENGTH,
    RolloutAnalysis, SampleCount,
};
use sluice_signals::TIME_CLASSES;

use super::baseline::{Baseline, rate};
use super::bets::milli_nats;
use super::metric::{Judge, Metric};
use super::watcher::{Beside, Watcher, count, trials};
use super::{Analysis, Verdict};

pub(super) fn stored(analysis: &Analysis) -> RolloutAnalysis {
    let Analysis {
        baseline,
        judges,
        candidate_weight,
        warm_seconds,
        warm_samples,
        unlearnt_seconds,
        verdict,
    } = analysis;
    let message = match verdict {
        Verdict::Pass => "",
        Verdict::Inconclusive { message } | Verdict::Fail { message, .. } => message,
    };
    let beside = Beside::of(*candidate_weight);
    let metrics = judges.iter().map(|judge| {
        let now = match verdict {
            Verdict::Fail { metric, .. } if *metric == judge.metric => verdict.clone(),
            _ => judge.verdict(baseline, beside),
        };
        stored_judge(judge, &now, baseline, beside)
    });
    RolloutAnalysis {
        verdict: stored_verdict(verdict),
        message: message.chars().take(MAX_MESSAGE_LENGTH).collect(),
        metric: match verdict {
            Verdict::Fail { metric, .. } => Some(metric.name().to_owned()),
            _ => None,
        },
        candidate_weight: *candidate_weight,
        candidate_seconds: *warm_seconds,
        candidate_samples: *warm_samples,
        unlearnt_seconds: *unlearnt_seconds,
        metrics: metrics.collect(),
        baseline: stored_baseline(baseline),
    }
}

fn stored_verdict(verdict: &Verdict) -> AnalysisVerdict {
    match verdict {
        Verdict::Pass => AnalysisVerdict::Pass,
        Verdict::Inconclusive { .. } => AnalysisVerdict::Inconclusive,
        Verdict::Fail { .. } => AnalysisVerdict::Fail,
    }
}

fn stored_judge(
    judge: &Judge,
    verdict: &Verdict,
    baseline: &Baseline,
    beside: Beside,
) -> AnalysedMetric {
    let metric = judge.metric;
    AnalysedMetric {
        name: metric.name().to_owned(),
        verdict: stored_verdict(verdict),
        candidate: count(judge.candidate),
        stable: count(judge.stable),
        baseline_ppm: metric.usual(baseline).map(rate).map(ppm),
        limit_ppm: metric.limit(baseline, beside).map(ppm),
        watchers: judge.watchers.iter().map(Watcher::stored).collect(),
    }
}

/// Of a million.
fn ppm(rate: f64) -> u32 {
    u32::try_from(milli_nats(rate * 1000.0)).unwrap_or(0)
}

fn stored_baseline(baseline: &Baseline) -> AnalysisBaseline {
    let classes = (0_u32..).zip(baseline.first_bytes);
    let classes = classes.filter(|(_, count)| *count > 0);
    AnalysisBaseline {
        failures: count(baseline.failures),
        first_bytes: classes
            .map(|(class, count)| ClassCount { class, count })
            .collect(),
        seconds: baseline.seconds,
    }
}

pub(super) fn restored(stored: &RolloutAnalysis) -> Analysis {
    let RolloutAnalysis {
        verdict,
        message,
        metric,
        candidate_weight,
        candidate_seconds,
        candidate_samples,
        unlearnt_seconds,
        metrics,
        baseline,
    } = stored;
    let named = |metric: Metric| metrics.iter().find(|stored| stored.name == metric.name());
    let mut all = Metric::ALL.into_iter();
    let failed = all.find(|each| metric.as_deref() == Some(each.name()));
    let message = message.clone();
    let verdict = match verdict {
        AnalysisVerdict::Pass => Verdict::Pass,
        AnalysisVerdict::Inconclusive => Verdict::Inconclusive { message },
        AnalysisVerdict::Fail => Verdict::Fail {
            metric: failed.unwrap_or(Metric::Failures),
            message,
        },
    };
    let judges = Metric::ALL.map(|metric| match named(metric) {
        Some(stored) => restored_judge(metric, stored),
        None => Judge::new(metric),
    });
    Analysis {
        baseline: restored_baseline(baseline),
        judges: judges.into(),
        candidate_weight: *candidate_weight,
        warm_seconds: *candidate_seconds,
        warm_samples: *candidate_samples,
        unlearnt_seconds: *unlearnt_seconds,
        verdict,
    }
}

/// A list that is shorter than it should be begins with what it has; the rest begins anew.
fn restored_judge(metric: Metric, stored: &AnalysedMetric) -> Judge {
    let mut judge = Judge::new(metric);
    judge.candidate = trials(stored.candidate);
    judge.stable = trials(stored.stable);
    for (watcher, stored) in judge.watchers.iter_mut().zip(&stored.watchers) {
        *watcher = Watcher::restored(stored);
    }
    judge
}

fn restored_baseline(stored: &AnalysisBaseline) -> Baseline {
    let mut first_bytes = [0; TIME_CLASSES];
    for &ClassCount { class, count } in &stored.first_bytes {
        let place = usize::try_from(class).ok();
        if let Some(place) = place.and_then(|class| first_bytes.get_mut(class)) {
            *place = count;
        }
    }
    let SampleCount { samples, failing } = stored.failures;
    Baseline {
        failures: super::bets::Trials::new(samples, failing),
        first_bytes,
        seconds: stored.seconds,
    }
}
