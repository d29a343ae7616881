//! What all nodes tell, added up by pool.

use std::collections::{BTreeMap, BTreeSet};

use sluice_api::ObjectKey;

use crate::report::{MAX_POOLS, MAX_SECONDS, Report};
use crate::tally::Tally;

/// A node that has told nothing for so long is forgotten.
const FORGET_MS: u64 = 10 * 60 * 1000;

/// Takes reports of nodes, each second of a node once, and keeps what is new until it is taken.
#[derive(Debug, Default)]
pub struct Intake {
    nodes: BTreeMap<String, Heard>,
    /// The pools that somebody asks about. What nodes tell of others is not kept.
    asked: BTreeSet<ObjectKey>,
    news: BTreeMap<ObjectKey, Tally>,
}

/// What was heard of a node.
#[derive(Debug)]
struct Heard {
    session: u64,
    /// The first number that is new.
    next: u64,
    at_ms: u64,
}

impl Intake {
    /// Takes a report. `now_ms` is the reader's own monotonic clock.
    ///
    /// What the first report of a node says is old news: the seconds that it names may be from before somebody asked. A node that
    /// is known and begins a new session has started anew, and all of that counts.
    pub fn take(&mut self, node: &str, report: &Report, now_ms: u64) {
        let Some(last) = report.seconds.last() else {
            return;
        };
        let next = last.number.saturating_add(1);
        let from = match self.nodes.get(node) {
            None => next,
            Some(heard) if heard.session == report.session => heard.next,
            Some(_) => 0,
        };
        let late = report.seconds.len().saturating_sub(MAX_SECONDS);
        let seconds = report.seconds.iter().skip(late);
        for second in seconds.filter(|second| second.number >= from) {
            for pool in second.pools.iter().take(MAX_POOLS) {
                let key = pool.key();
                if self.asked.contains(&key) {
                    let tally = pool.tally.clone().limited();
                    self.news.entry(key).or_default().join(&tally);
                }
            }
        }
        let heard = Heard {
            session: report.session,
            // A number that goes back within a session is a lie; then what it names does not count again.
            next: next.max(from),
            at_ms: now_ms,
        };
        self.nodes.insert(node.to_owned(), heard);
        self.nodes
            .retain(|_, heard| now_ms.saturating_sub(heard.at_ms) <= FORGET_MS);
    }

    /// What was told since the last call, of the pools that were asked about then and that any node looks at. `asked` are those to be
    /// told of from now on.
    pub fn news(&mut self, asked: BTreeSet<ObjectKey>) -> BTreeMap<ObjectKey, Tally> {
        self.asked = asked;
        std::mem::take(&mut self.news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Outcome;
    use crate::report::Recorder;
    use crate::tally::Voice;

    fn second(replied: u32) -> BTreeMap<ObjectKey, Tally> {
        let mut tally = Tally::default();
        for _ in 0..replied {
            tally.add(Voice {
                outcome: Outcome::Replied,
                first_byte: None,
            });
        }
        [(ObjectKey::new("shop", "blue"), tally)].into()
    }

    fn blue() -> BTreeSet<ObjectKey> {
        [ObjectKey::new("shop", "blue")].into()
    }

    /// Where somebody asks about the pool.
    fn intake() -> Intake {
        let mut intake = Intake::default();
        intake.news(blue());
        intake
    }

    fn asked(intake: &mut Intake) -> u64 {
        intake.news(blue()).values().map(Tally::asked).sum()
    }

    #[test]
    fn of_pools_that_nobody_asks_about_nothing_is_kept() {
        let (mut intake, mut node) = (Intake::default(), Recorder::new(7));
        for _ in 0..2 {
            node.record(second(1));
            intake.take("a", &node.report(), 0);
        }
        assert!(intake.news(blue()).is_empty(), "nobody had asked");
        node.record(second(1));
        intake.take("a", &node.report(), 0);
        assert_eq!(intake.news(BTreeSet::new()).len(), 1);
        node.record(second(1));
        intake.take("a", &node.report(), 0);
        assert!(intake.news(blue()).is_empty(), "nobody asks any more");
    }

    #[test]
    fn each_second_counts_once() {
        let (mut intake, mut node) = (intake(), Recorder::new(7));
        intake.take("a", &node.report(), 0);
        assert!(
            intake.news(blue()).is_empty(),
            "an empty report says nothing"
        );
        node.record(second(100));
        intake.take("a", &node.report(), 0);
        assert_eq!(asked(&mut intake), 0, "is from before anybody asked");
        node.record(second(3));
        node.record(second(4));
        intake.take("a", &node.report(), 1000);
        intake.take("a", &node.report(), 1000);
        assert_eq!(asked(&mut intake), 7);
        assert!(intake.news(blue()).is_empty());
        node.record(second(0));
        intake.take("a", &node.report(), 2000);
        assert_eq!(intake.news(blue()).len(), 1, "the node looks");
    }

    #[test]
    fn an_agent_that_starts_anew_is_heard_from_its_first_second_on() {
        let (mut intake, mut node) = (intake(), Recorder::new(7));
        for _ in 0..50 {
            node.record(second(1));
            intake.take("a", &node.report(), 0);
        }
        assert_eq!(asked(&mut intake), 49);
        let mut node = Recorder::new(8);
        node.record(second(2));
        node.record(second(3));
        intake.take("a", &node.report(), 0);
        assert_eq!(asked(&mut intake), 5);
    }

    #[test]
    fn who_reads_too_seldom_misses_the_oldest() {
        let (mut intake, mut node) = (intake(), Recorder::new(7));
        node.record(second(1));
        intake.take("a", &node.report(), 0);
        for _ in 0..2 * MAX_SECONDS {
            node.record(second(1));
        }
        intake.take("a", &node.report(), 0);
        let most = u64::try_from(MAX_SECONDS).expect("a small number");
        assert_eq!(asked(&mut intake), most);
    }

    #[test]
    fn a_report_that_lies_of_its_size_is_bounded() {
        let (mut intake, mut node) = (intake(), Recorder::new(7));
        node.record(second(1));
        intake.take("a", &node.report(), 0);
        node.record(second(1));
        let mut report = node.report();
        let last = report.seconds.last().cloned().expect("a second");
        let repeated = (0..100_u64).map(|number| crate::report::Second {
            number,
            ..last.clone()
        });
        report.seconds = repeated.collect();
        intake.take("a", &report, 0);
        let most = u64::try_from(MAX_SECONDS).expect("a small number");
        assert_eq!(asked(&mut intake), most);
        report.seconds.truncate(1);
        intake.take("a", &report, 0);
        assert_eq!(asked(&mut intake), 0, "a number that goes back is not news");
    }

    #[test]
    fn a_node_cannot_hear_more_clients_than_it_looks_at() {
        let mut intake = intake();
        let mut node = Recorder::new(7);
        node.record(second(1));
        intake.take("a", &node.report(), 0);
        node.record(second(1));
        let mut report = node.report();
        report.seconds[1].pools[0].tally.outcomes = [u32::MAX; Outcome::COUNT];
        intake.take("a", &report, 0);
        let news = intake.news(blue());
        let tally = news.values().next().expect("a pool");
        assert_eq!(tally.of(Outcome::Silent), 65_536);
    }

    #[test]
    fn a_node_that_has_gone_is_forgotten() {
        let (mut intake, mut node) = (intake(), Recorder::new(7));
        node.record(second(1));
        intake.take("a", &node.report(), 0);
        intake.take("b", &node.report(), FORGET_MS + 1);
        assert_eq!(intake.nodes.keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_report_is_short_and_reads_as_it_was() {
        let mut node = Recorder::new(u64::MAX);
        node.record(second(2));
        let text = serde_json::to_string(&node.report()).expect("json");
        assert_eq!(
            text,
            r#"{"session":18446744073709551615,"seconds":[{"number":0,"pools":[{"namespace":"shop","name":"blue","outcomes":[2,0,0,0,0,0,0],"firstBytes":[]}]}]}"#
        );
        assert_eq!(
            serde_json::from_str::<Report>(&text).expect("a report"),
            node.report()
        );
    }
}
