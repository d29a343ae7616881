//! Which troubles of connections are promised not to be, and what a run was.
//!
//! | excuse | for | what docs/failures.md says |
//! |---|---|---|
//! | server out | connections to a server that was in no pool of its virtual server meanwhile | its flows go to the other servers, which reset them |
//! | port away | connections to a port that the virtual server did not have meanwhile | they are no service's |
//! | director lost | NAT and FullNAT | flows of a director that was lost break |
//! | another director | DR and TUN, where routing took another director *and* the tables are not those of the beginning | others choose the same servers by the same tables |
//! | outage | new connections, and late answers, by way of a link that is or was down | packets are lost |

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::net::fabric::DIRECTORS;
use crate::net::lab::Mode;

use super::history::{Disturbance, History};
use super::ledger::{Account, Record, Style, Trouble};
use super::service::SPARE_PORT;

/// How far back the actions are told that preceded a loss.
const TOLD: Duration = Duration::from_secs(12);
/// Losses that are told in words.
const LOSSES_TOLD: usize = 20;

/// Why a trouble breaks no promise.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Excuse {
    ServerOut,
    PortAway,
    DirectorLost(Mode),
    AnotherDirector,
    Outage,
}

impl fmt::Display for Excuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServerOut => f.write_str("server out of its pool"),
            Self::PortAway => f.write_str("port away"),
            Self::DirectorLost(mode) => write!(f, "director lost, {mode}"),
            Self::AnotherDirector => f.write_str("another director with newer tables"),
            Self::Outage => f.write_str("link down"),
        }
    }
}

/// The excuse of a trouble; `None`: a promise is broken.
pub(super) fn excuse(history: &History, record: &Record) -> Option<Excuse> {
    let talk = &record.talk;
    let mode = talk.mode;
    // Where nobody has answered, it may be any of the mode's servers.
    let served_by = |name: &str| talk.server.as_deref().is_none_or(|server| server == name);
    let servers: Vec<_> = mode
        .servers()
        .into_iter()
        .filter(|name| served_by(name))
        .collect();
    let life = |holds: &dyn Fn(Disturbance) -> bool| history.touched(talk.begun, record.at, holds);

    if life(&|d| matches!(d, Disturbance::ServerOut(name) if servers.contains(&name))) {
        return Some(Excuse::ServerOut);
    }
    if talk.target.port() == SPARE_PORT && life(&|d| d == Disturbance::SpareAway(mode)) {
        return Some(Excuse::PortAway);
    }
    if mode.replies_through_director() {
        if life(&|d| d == Disturbance::Lost(DIRECTORS[0])) {
            return Some(Excuse::DirectorLost(mode));
        }
    } else if life(&|d| d == Disturbance::Diverted) && life(&|d| d == Disturbance::Edited(mode)) {
        return Some(Excuse::AnotherDirector);
    }
    let on_the_way = |node| {
        let directors = if mode.replies_through_director() {
            &DIRECTORS[..1]
        } else {
            &DIRECTORS
        };
        directors.contains(&node) || servers.contains(&node)
    };
    let may_wait = talk.server.is_none() || record.trouble == Trouble::Slow;
    let outage = |d| matches!(d, Disturbance::Outage(node) if on_the_way(node));
    (may_wait && history.touched(talk.asked, record.at, outage)).then_some(Excuse::Outage)
}

/// What a run was.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Actions by kind.
    pub(super) actions: BTreeMap<&'static str, u32>,
    begun: BTreeMap<Style, u64>,
    well: BTreeMap<Style, u64>,
    lost: BTreeMap<Excuse, u64>,
    late: BTreeMap<Excuse, u64>,
    /// Packets that servers sent in their own names, after they were taken out or their NAT director was lost.
    pub(super) strays_excused: u64,
    /// Broken promises.
    broken: Vec<String>,
}

impl Verdict {
    /// Judges all that is written.
    pub(super) fn judge(&mut self, account: Account, history: &History) {
        self.begun = account.begun;
        self.well = account.well;
        for record in account.records {
            match (excuse(history, &record), record.trouble) {
                (Some(excuse), Trouble::Slow) => *self.late.entry(excuse).or_default() += 1,
                (Some(excuse), _) => *self.lost.entry(excuse).or_default() += 1,
                (None, _) => self.broken.push(describe(&record, history)),
            }
        }
    }

    /// A promise is broken that is none of a single connection.
    pub(super) fn breaks(&mut self, what: String) {
        self.broken.push(what);
    }

    /// Broken promises.
    pub(super) fn broken(&self) -> usize {
        self.broken.len()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: u32 = self.actions.values().sum();
        writeln!(f, "{all} actions")?;
        for (kind, count) in &self.actions {
            writeln!(f, "  {count:>6}  {kind}")?;
        }
        writeln!(f, "connections begun, ended well")?;
        for (style, begun) in &self.begun {
            let well = self.well.get(style).copied().unwrap_or_default();
            writeln!(f, "  {begun:>6}  {well:>6}  {style}")?;
        }
        writeln!(f, "lost as may be")?;
        for (excuse, count) in &self.lost {
            writeln!(f, "  {count:>6}  {excuse}")?;
        }
        writeln!(f, "answered late as may be")?;
        for (excuse, count) in &self.late {
            writeln!(f, "  {count:>6}  {excuse}")?;
        }
        let strays = self.strays_excused;
        writeln!(
            f,
            "  {strays:>6}  packets in the names of servers that were out, or whose NAT director was lost"
        )?;
        writeln!(f, "lost otherwise: {}", self.broken.len())?;
        for loss in self.broken.iter().take(LOSSES_TOLD) {
            writeln!(f, "{loss}")?;
        }
        Ok(())
    }
}

fn describe(record: &Record, history: &History) -> String {
    let talk = &record.talk;
    let source = talk
        .source
        .map_or_else(|| "?".to_owned(), |s| s.to_string());
    let server = talk.server.as_deref().unwrap_or("nobody");
    let [at, begun] = [record.at, talk.begun].map(|time| time.as_secs_f64());
    let before: Vec<_> = history.told(record.at, TOLD).collect();
    format!(
        "- {at:.1} s, {:?}, {}, {source} to {}, served by {server} since {begun:.1} s: {}\n    {}",
        talk.style,
        talk.mode,
        talk.target,
        record.what,
        before.join("\n    ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::address::Family;
    use crate::net::random::ledger::Talk;

    const fn s(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    /// A connection from 10 s on that broke at 20 s.
    fn broken(mode: Mode, server: Option<&str>) -> Record {
        let talk = Talk {
            style: Style::Kept,
            mode,
            source: None,
            target: mode.target(Family::V4),
            server: server.map(str::to_owned),
            begun: s(10),
            asked: s(19),
        };
        Record {
            talk,
            trouble: Trouble::Broken,
            what: "reset".to_owned(),
            at: s(20),
        }
    }

    fn history(entries: &[(Disturbance, u64, u64)]) -> History {
        let mut history = History::default();
        for &(what, from, to) in entries {
            history.begin(s(from), what);
            history.end(s(to), what);
        }
        history
    }

    #[test]
    fn only_what_concerns_the_connection_excuses_it() {
        let record = broken(Mode::Dr, Some("dr-1"));
        for (what, excused) in [
            (Disturbance::ServerOut("dr-1"), Some(Excuse::ServerOut)),
            (Disturbance::ServerOut("dr-2"), None),
            (Disturbance::SpareAway(Mode::Dr), None),
            (Disturbance::Edited(Mode::Dr), None),
            (Disturbance::Diverted, None),
            (Disturbance::Lost("director-1"), None),
            (Disturbance::Outage("director-1"), None),
        ] {
            let history = history(&[(what, 12, 13)]);
            assert_eq!(excuse(&history, &record), excused, "{what:?}");
        }
        let early = history(&[(Disturbance::ServerOut("dr-1"), 2, 3)]);
        assert_eq!(excuse(&early, &record), None);
    }

    #[test]
    fn modes_with_state_break_with_their_director_and_the_others_by_newer_tables() {
        let lost = history(&[(Disturbance::Lost(DIRECTORS[0]), 12, 13)]);
        let record = broken(Mode::FullNat, Some("fullnat-1"));
        let expected = Some(Excuse::DirectorLost(Mode::FullNat));
        assert_eq!(excuse(&lost, &record), expected);
        let edited = (Disturbance::Edited(Mode::Tun), 11, 12);
        let moved = history(&[edited, (Disturbance::Diverted, 13, 14)]);
        let record = broken(Mode::Tun, Some("tun-1"));
        assert_eq!(excuse(&moved, &record), Some(Excuse::AnotherDirector));
    }

    #[test]
    fn outages_excuse_who_is_not_served_yet() {
        let down = history(&[(Disturbance::Outage("nat-2"), 18, 19)]);
        let excuse = |server| super::excuse(&down, &broken(Mode::Nat, server));
        assert_eq!(excuse(None), Some(Excuse::Outage));
        assert_eq!(excuse(Some("nat-2")), None);
    }
}
