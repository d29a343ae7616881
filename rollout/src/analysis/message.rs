//! What a metric says of the candidate, in words.

use sluice_signals::class_bound;

use super::Verdict;
use super::baseline::Baseline;
use super::bets::{Trials, real};
use super::metric::{FAILURES, Judge, Metric, enough};
use super::watcher::{Beside, Suspicion};

impl Judge {
    /// What this metric says of the candidate.
    pub(super) fn verdict(&self, baseline: &Baseline, beside: Beside) -> Verdict {
        let enough = enough(self.metric);
        let all = self.watchers.iter();
        let suspicions = all.filter_map(|watcher| watcher.suspicion.as_ref());
        let mut suspicions: Vec<_> = suspicions.filter(|each| each.is_enough(enough)).collect();
        suspicions.sort_by_key(|each| (!each.is_candidates(beside), -each.evidence));
        let Some(suspicion) = suspicions.first() else {
            return Verdict::Pass;
        };
        let mut message = self.message(suspicion, baseline, beside);
        if suspicion.is_candidates(beside) {
            Verdict::Fail {
                metric: self.metric,
                message,
            }
        } else {
            message.push_str("; the cause may be common to both");
            Verdict::Inconclusive { message }
        }
    }

    fn message(&self, suspicion: &Suspicion, baseline: &Baseline, beside: Beside) -> String {
        let Trials { asked, failing } = suspicion.candidate;
        let metric = self.metric;
        let what = match metric {
            Metric::Failures => format!("failed ({})", kinds(suspicion)),
            Metric::FirstByte => match baseline.slow_class().map(class_bound) {
                Some(bound) => {
                    let bound = bound.as_millis();
                    format!("waited more than {bound} ms for the first byte")
                }
                None => "waited too long for the first byte".to_owned(),
            },
        };
        let (asked, failing) = (grouped(asked), grouped(failing));
        let mut text = format!("{metric}: {failing} of the candidate's {asked} clients {what}, ");
        let compared = if beside == Beside::Nobody {
            match metric.usual(baseline) {
                Some(usual) => format!("of the stable pool's it was usually {}", percent(usual)),
                None => "and nothing is known of the stable pool".to_owned(),
            }
        } else {
            let Trials { asked, failing } = suspicion.stable;
            let (asked, failing) = (grouped(asked), grouped(failing));
            format!("of the stable pool's {asked} it was {failing}")
        };
        text.push_str(&compared);
        text
    }
}

/// The kinds of failures, the most frequent first.
fn kinds(suspicion: &Suspicion) -> String {
    let kinds = FAILURES.iter().zip(suspicion.kinds);
    let mut kinds: Vec<_> = kinds.filter(|(_, count)| *count > 0).collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let kinds = kinds.iter();
    let kinds: Vec<_> = kinds
        .map(|(kind, count)| format!("{} {}", grouped(*count), kind.name()))
        .collect();
    kinds.join(", ")
}

/// A rate, to a hundredth of a percent.
fn percent(usual: Trials) -> String {
    let percent = 100.0 * real(usual.failing) / real(usual.asked.max(1));
    format!("{percent:.2} %")
}

/// A number with a comma between its thousands.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_140), "1,140");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(percent(Trials::new(1000, 1)), "0.10 %");
        assert_eq!(percent(Trials::default()), "0.00 %");
    }
}
