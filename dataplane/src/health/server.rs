//! The state of a server: what the outcomes of its checks come to.

use std::time::{Duration, Instant};

/// A server that was up for so long since it fell is trusted as at first.
const CALM: Duration = Duration::from_mins(10);
/// Falls that are remembered: each doubles what a server has to pass to be up again.
const MAX_DOUBLINGS: u32 = 3;

/// What checks say of a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Nothing yet.
    Unknown,
    /// It passes.
    Up,
    /// It fails.
    Down,
}

/// How many outcomes in a row change a verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Thresholds {
    pub(super) rise: u32,
    pub(super) fall: u32,
}

/// A server that is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Server {
    verdict: Verdict,
    /// Outcomes in a row that speak against the verdict.
    against: u32,
    /// How often it fell lately, and when it did last.
    falls: u32,
    fell: Option<Instant>,
}

impl Server {
    /// `verdict` is what is known from before.
    pub(super) const fn new(verdict: Verdict) -> Self {
        Self {
            verdict,
            against: 0,
            falls: 0,
            fell: None,
        }
    }

    pub(super) const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Takes the outcome of a check in. Returns whether the verdict is another one.
    pub(super) fn on(&mut self, passed: bool, thresholds: Thresholds, now: Instant) -> bool {
        let (verdict, needed) = match (self.verdict, passed) {
            (Verdict::Unknown, true) => (Verdict::Up, 1),
            (Verdict::Unknown | Verdict::Up, false) => (Verdict::Down, thresholds.fall),
            (Verdict::Down, true) => (Verdict::Up, self.rise(thresholds)),
            (Verdict::Up, true) | (Verdict::Down, false) => {
                self.against = 0;
                return false;
            }
        };
        self.against += 1;
        if self.against < needed {
            return false;
        }
        if verdict == Verdict::Down {
            let is_calm = self
                .fell
                .is_none_or(|at| now.saturating_duration_since(at) >= CALM);
            self.falls = if is_calm { 1 } else { self.falls + 1 };
            self.fell = Some(now);
        }
        (self.verdict, self.against) = (verdict, 0);
        true
    }

    /// What a server that is down has to pass.
    fn rise(&self, thresholds: Thresholds) -> u32 {
        let doublings = self.falls.saturating_sub(1).min(MAX_DOUBLINGS);
        thresholds.rise << doublings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLDS: Thresholds = Thresholds { rise: 2, fall: 3 };

    /// The verdicts after each outcome: `+` passed, `-` failed; `u`, `d` or `?`.
    fn run(server: &mut Server, outcomes: &str, at: Instant) -> String {
        let outcomes = outcomes.chars();
        let verdicts = outcomes.map(|outcome| {
            let before = server.verdict();
            let changed = server.on(outcome == '+', THRESHOLDS, at);
            assert_eq!(changed, before != server.verdict());
            match server.verdict() {
                Verdict::Unknown => '?',
                Verdict::Up => 'u',
                Verdict::Down => 'd',
            }
        });
        verdicts.collect()
    }

    #[test]
    fn outcomes_in_a_row_change_the_verdict() {
        let now = Instant::now();
        let mut server = Server::new(Verdict::Unknown);
        assert_eq!(
            run(&mut server, "+--+---+-++", now),
            "uuuuuudddd u".replace(' ', "")
        );
        let mut other = Server::new(Verdict::Unknown);
        assert_eq!(run(&mut other, "--+", now), "??u", "not known is not down");
        let mut dead = Server::new(Verdict::Unknown);
        assert_eq!(run(&mut dead, "---", now), "??d");
    }

    #[test]
    fn who_falls_often_has_to_pass_more() {
        let now = Instant::now();
        let mut server = Server::new(Verdict::Up);
        for needed in [2, 4, 8, 16, 16] {
            assert_eq!(run(&mut server, "---", now), "uud");
            let passes = "+".repeat(needed);
            let expected = format!("{}u", "d".repeat(needed - 1));
            assert_eq!(run(&mut server, &passes, now), expected);
        }
        let later = now + CALM;
        assert_eq!(
            run(&mut server, "---++", later),
            "uuddu",
            "after ten quiet minutes"
        );
    }

    #[test]
    fn a_verdict_from_before_stands_until_outcomes_speak_against_it() {
        let now = Instant::now();
        let mut server = Server::new(Verdict::Down);
        assert_eq!(run(&mut server, "-+-++", now), "ddddu");
    }
}
