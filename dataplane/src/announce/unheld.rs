//! VIP groups that nobody holds, as the first two in the order of their candidates find: they ask for each group's VIPs all the time.

use std::collections::BTreeMap;
use std::time::Duration;

use sluice_api::jiff::Timestamp;
use sluice_election::{Hindrance, Obstacle, Role, State, Time, ranked};

use super::plan::Group;
use super::worker::{Worker, now};

/// The first so many candidates of a group watch it. All others would only say the same.
const WATCHERS: usize = 2;
/// A group for whose VIPs no director has answered for so long has no holder. A takeover that waits until a Lease has expired takes up
/// to 6.5 s.
const AFTER: Duration = Duration::from_secs(7);

/// A group that nobody holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unheld {
    /// When somebody last answered, or this node began to watch, by this host's clock.
    pub since: Timestamp,
    /// Why, if it is known.
    pub cause: Option<Cause>,
}

/// Why nobody holds a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The elector finds this.
    Obstacle(Obstacle),
    /// All of its VIPs are new, and other hosts have them.
    AddressInUse,
}

/// The groups that this node watches.
#[derive(Debug, Default)]
pub(super) struct Watch(BTreeMap<String, Silence>);

#[derive(Debug)]
struct Silence {
    since: Time,
    told: Option<Unheld>,
}

impl Watch {
    /// This node watches a group, of which it last heard then. Returns since when nobody has answered, if that is too long.
    fn look(&mut self, group: &str, heard: Option<Time>, now: Time) -> Option<Time> {
        let silence = self.0.entry(group.to_owned()).or_insert(Silence {
            since: now,
            told: None,
        });
        if let Some(heard) = heard.filter(|heard| *heard > silence.since) {
            (silence.since, silence.told) = (heard, None);
        }
        (now.since(silence.since) >= AFTER).then_some(silence.since)
    }

    /// What is told of a group that nobody holds: it stays the same, but for a cause that was not known before.
    fn tell(&mut self, group: &str, since: Timestamp, cause: Option<Cause>) {
        if let Some(silence) = self.0.get_mut(group) {
            let told = silence.told.get_or_insert(Unheld { since, cause });
            told.cause = told.cause.or(cause);
        }
    }

    /// Only these groups are watched.
    fn keep(&mut self, is_watched: impl Fn(&str) -> bool) {
        self.0.retain(|group, _| is_watched(group));
    }

    /// The groups that nobody holds.
    pub(super) fn unheld(&self) -> BTreeMap<String, Unheld> {
        let groups = self.0.iter();
        let told = groups.filter_map(|(group, silence)| Some((group.clone(), silence.told?)));
        told.collect()
    }
}

impl Worker {
    /// Looks which of the groups that this node watches nobody holds.
    pub(super) fn watch_groups(&mut self) {
        let time = now();
        let mut watched = BTreeMap::new();
        for (name, seat) in &self.electors {
            let state = seat.elector.state();
            if let Some(group) = self.plan.groups.get(name)
                && self.watches(name, group, &state)
            {
                watched.insert(name.as_str(), (seat, group, state.heard));
            }
        }
        self.watch.keep(|group| watched.contains_key(group));
        for (name, (seat, group, heard)) in watched {
            if let Some(since) = self.watch.look(name, heard, time) {
                let wall = Timestamp::now().checked_sub(time.since(since));
                let cause = if group.vips.is_subset(&group.new) {
                    Some(Cause::AddressInUse)
                } else {
                    seat.elector.obstacle(time).map(Cause::Obstacle)
                };
                self.watch
                    .tell(name, wall.unwrap_or(Timestamp::UNIX_EPOCH), cause);
            }
        }
    }

    /// Whether this node watches a group. One that no director may hold is watched by the first of all.
    fn watches(&self, name: &str, group: &Group, state: &State) -> bool {
        let hears = matches!(
            state.hindrance,
            None | Some(Hindrance::Suspected | Hindrance::NotListed)
        );
        // One without a VIP has nothing to hold.
        if group.vips.is_empty() || state.role == Role::Holder || !hears {
            return false;
        }
        if !group.candidates.is_empty() {
            return self.settings.probes() && state.rank.is_some_and(|rank| rank < WATCHERS);
        }
        let peers = self.plan.peers.keys().map(String::as_str);
        let order = ranked(name, peers.chain([self.node.as_str()]));
        order.iter().take(WATCHERS).any(|it| *it == self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::default() + Duration::from_millis(ms)
    }

    const WALL: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn a_group_is_unheld_when_nobody_has_answered_for_a_while() {
        let mut watch = Watch::default();
        assert_eq!(watch.look("a", None, at(0)), None);
        assert_eq!(watch.look("a", None, at(6_999)), None);
        assert_eq!(watch.look("a", None, at(7_000)), Some(at(0)));
        assert_eq!(watch.look("a", Some(at(6_000)), at(7_500)), None);
        assert_eq!(
            watch.look("a", Some(at(6_000)), at(13_000)),
            Some(at(6_000))
        );
        // What was heard before it was watched proves nothing.
        watch.keep(|_| false);
        assert_eq!(watch.look("a", Some(at(6_000)), at(20_000)), None);
    }

    #[test]
    fn what_is_told_stays_until_somebody_answers() {
        let refused = Some(Cause::Obstacle(Obstacle::LeaseRefused));
        let mut watch = Watch::default();
        let tell = |watch: &mut Watch, second, cause| {
            let since = WALL.checked_add(Duration::from_secs(second));
            watch.tell("a", since.unwrap(), cause);
        };
        watch.look("a", None, at(0));
        assert!(watch.unheld().is_empty());
        tell(&mut watch, 1, None);
        tell(&mut watch, 2, refused);
        tell(&mut watch, 3, Some(Cause::AddressInUse));
        let since = WALL.checked_add(Duration::from_secs(1)).unwrap();
        let told = Unheld {
            since,
            cause: refused,
        };
        assert_eq!(watch.unheld(), [("a".to_owned(), told)].into());
        watch.look("a", Some(at(500)), at(600));
        assert!(watch.unheld().is_empty());
    }
}
