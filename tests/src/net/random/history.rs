//! What was disturbed, from when to when.

use std::time::Duration;

use crate::net::lab::Mode;

/// Something that connections may suffer from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Disturbance {
    /// A server is in no pool that its virtual servers name, or may not be yet or any more on some node.
    ServerOut(&'static str),
    /// The spare port of a mode's VIPs is another one, or may be on some node.
    SpareAway(Mode),
    /// Nodes may differ in a mode's tables, or have them of before and after an edit.
    Edited(Mode),
    /// What goes by a node's link is lost.
    Outage(&'static str),
    /// The router sends flows to another director than before.
    Diverted,
    /// A director forgets its flows.
    Lost(&'static str),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Open,
    /// Once all nodes have what is wanted of the mode.
    InForce(Mode),
    At(Duration),
}

#[derive(Debug)]
struct Entry {
    what: Disturbance,
    from: Duration,
    end: End,
}

/// All that was done, and what it disturbed. Times are from the beginning of the run.
#[derive(Debug, Default)]
pub(super) struct History {
    entries: Vec<Entry>,
    done: Vec<(Duration, String)>,
}

impl History {
    /// Something was done.
    pub(super) fn tell(&mut self, now: Duration, what: String) {
        self.done.push((now, what));
    }

    /// What was done in the time before `at`.
    pub(super) fn told(&self, at: Duration, before: Duration) -> impl Iterator<Item = String> {
        let done = self.done.iter();
        let done = done.filter(move |(when, _)| *when <= at && *when + before >= at);
        done.map(|(when, what)| format!("{:.1} s {what}", when.as_secs_f64()))
    }

    /// A disturbance begins.
    pub(super) fn begin(&mut self, now: Duration, what: Disturbance) {
        self.entries.push(Entry {
            what,
            from: now,
            end: End::Open,
        });
    }

    /// It is over at a time, which may be to come.
    pub(super) fn end(&mut self, at: Duration, what: Disturbance) {
        self.close(what, End::At(at));
    }

    /// It is over once all nodes have what is wanted of the mode.
    pub(super) fn end_in_force(&mut self, what: Disturbance, mode: Mode) {
        self.close(what, End::InForce(mode));
    }

    /// All nodes have what is wanted of the mode.
    pub(super) fn in_force(&mut self, now: Duration, mode: Mode) {
        for entry in &mut self.entries {
            if entry.end == End::InForce(mode) {
                entry.end = End::At(now);
            }
        }
    }

    /// Whether something waits for all nodes to have what is wanted of the mode.
    pub(super) fn awaits(&self, mode: Mode) -> bool {
        let mut entries = self.entries.iter();
        entries.any(|entry| entry.end == End::InForce(mode))
    }

    /// Whether a disturbance of which this holds touches the time.
    pub(super) fn touched(
        &self,
        from: Duration,
        to: Duration,
        holds: impl Fn(Disturbance) -> bool,
    ) -> bool {
        self.entries.iter().any(|entry| {
            let over = matches!(entry.end, End::At(end) if end < from);
            holds(entry.what) && entry.from <= to && !over
        })
    }

    fn close(&mut self, what: Disturbance, end: End) {
        for entry in &mut self.entries {
            if entry.what == what && entry.end == End::Open {
                entry.end = end;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn a_disturbance_lasts_until_it_is_over() {
        let mut history = History::default();
        let out = Disturbance::ServerOut("a");
        history.begin(s(10), out);
        let touched = |history: &History, from, to| history.touched(s(from), s(to), |d| d == out);
        assert!(touched(&history, 0, 10) && touched(&history, 50, 60));
        assert!(!touched(&history, 0, 9));
        history.end_in_force(out, Mode::Nat);
        history.in_force(s(20), Mode::Dr);
        assert!(touched(&history, 50, 60) && history.awaits(Mode::Nat));
        history.in_force(s(20), Mode::Nat);
        assert!(touched(&history, 20, 60) && !touched(&history, 21, 60));
        history.begin(s(30), out);
        assert!(touched(&history, 40, 41));
    }

    #[test]
    fn what_was_done_before_is_told() {
        let mut history = History::default();
        for second in [1, 5, 9] {
            history.tell(s(second), format!("n{second}"));
        }
        let told: Vec<_> = history.told(s(6), s(3)).collect();
        assert_eq!(told, ["5.0 s n5"]);
    }
}
