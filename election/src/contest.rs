//! What a holder does when it meets another, or hears nobody.

use std::time::Duration;

use crate::elector::Elector;
use crate::path::Path;
use crate::{Action, Authority, Coordination, GiveBack, Time};

/// Time between a holder's probes while a rival answers.
pub(crate) const CONTEST_INTERVAL: Duration = Duration::from_millis(100);
/// A rival that has not answered for so long is gone.
const CONTEST_END: Duration = Duration::from_millis(1500);
/// A better-ranked holder without a Lease yields to a rival that goes on for so long: it would have yielded, had it no Lease.
/// With the second until its own probe finds the rival this stays below two. So does a holder that is silent on some of its paths
/// where the rival suspected it, and heard on others.
const CONTEST_LIMIT: Duration = Duration::from_millis(800);
/// Who claims at the same moment as another and yields was not suspected. A holder of this age was.
const SETTLED: Duration = Duration::from_secs(2);
/// A new holder on whose paths the witness has fallen silent stops after so long.
const TRIAL: Duration = Duration::from_secs(1);
/// Time between its probes of the witness until then.
const TRIAL_INTERVAL: Duration = Duration::from_millis(50);
/// Rivals that a holder looks at; those beyond have to wait until one of these is gone.
const MAX_RIVALS: usize = 8;

/// Another director that answers for the group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rival {
    first: Time,
    last: Time,
}

impl Elector {
    /// A director answers while this node holds.
    pub(crate) fn meet_rival(&mut self, name: &str, now: Time) {
        let Some(hold) = &mut self.hold else {
            return;
        };
        if hold
            .handing
            .as_ref()
            .is_some_and(|handing| handing.to == name)
        {
            self.stop();
            return self.believe(Some(name));
        }
        let is_known = hold.rivals.contains_key(name);
        if is_known || hold.rivals.len() < MAX_RIVALS {
            let rival = Rival {
                first: now,
                last: now,
            };
            hold.rivals.entry(name.to_owned()).or_insert(rival).last = now;
        }
        self.lease.read_by(now);
        for path in &mut self.paths {
            path.broadcast_by(now + CONTEST_INTERVAL);
        }
    }

    /// Decides between this node and its rivals. Who holds by Lease goes on; of two without, the better-ranked. Neighbours may know
    /// a rival that has stopped: who goes on announces once more.
    pub(crate) fn contest(&mut self, now: Time) {
        let Some(hold) = &mut self.hold else {
            return;
        };
        let met = hold.rivals.len();
        hold.rivals
            .retain(|_, rival| now.since(rival.last) < CONTEST_END);
        if hold.rivals.len() < met {
            self.out.push(Action::Announce);
        }
        let (is_leaving, since) = (hold.leaving.is_some(), hold.since);
        let accused = hold.accused.clone();
        let rivals = hold.rivals.clone();
        if hold.authority == Authority::Lease {
            return;
        }
        for (name, rival) in rivals {
            self.due(rival.last + CONTEST_END, now);
            // Who is silent on one path may answer on another: it hears this node there, and stops.
            let is_accused = accused.as_ref() == Some(&name);
            if is_accused && !is_leaving {
                continue;
            }
            let is_worse = self.rank(&self.node) > self.rank(&name);
            if is_leaving || is_worse {
                let is_settled = rival.first.since(since) >= SETTLED;
                return self.yield_to(&name, is_settled && !is_leaving, now);
            }
            if rival.last.since(rival.first) >= CONTEST_LIMIT {
                return self.lose(&name, now);
            }
        }
    }

    fn yield_to(&mut self, name: &str, was_settled: bool, now: Time) {
        self.stop();
        if self.believed.as_deref() != Some(name) {
            self.believe(Some(name));
        }
        let is_return = self.settings.coordination == Coordination::Peers
            && self.settings.give_back == GiveBack::AfterStableTime
            && self.is_steady(name);
        if was_settled && !is_return {
            self.lost = Some(now);
        }
    }

    /// Whom this node suspected when it claimed was heard on a path where it had been silent.
    pub(crate) fn acquit(&mut self) {
        if let Some(hold) = &mut self.hold {
            hold.accused = None;
        }
    }

    /// A port may die at the moment of a takeover. Others suspect only whom they have heard, so a new holder stops by itself
    /// if the witness falls silent.
    pub(crate) fn try_paths(&mut self, now: Time) {
        let Some(since) = self.paths.iter().filter_map(Path::trial).min() else {
            return;
        };
        if self.hold.is_none() {
            return;
        }
        if !self.due(since + TRIAL, now) {
            return self.test_paths(TRIAL_INTERVAL, now);
        }
        self.stop();
        (self.lost, self.believed) = (Some(now), None);
    }
}
