//! A holder: renews or extends its deadline, meets rivals, hands over.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::contest::{CONTEST_INTERVAL, Rival};
use crate::elector::Elector;
use crate::lease::News;
use crate::path::Path;
use crate::{
    Action, Authority, Coordination, GiveBack, Hindrance, LeaseView, Settings, Time, Witness,
};

/// The old holder goes on for so long after its successor's renewal: the successor arms when it has the answer.
const HANDOVER_LINGER: Duration = Duration::from_millis(100);
/// A successor that has not renewed by then is replaced by the old holder, if this may hold.
const TAKE_BACK: Duration = Duration::from_millis(600);
/// Time between reads while a successor has not renewed.
const HANDOVER_READ: Duration = Duration::from_millis(250);

/// What a holder knows of its hold.
#[derive(Clone, Debug)]
pub(crate) struct Hold {
    pub(crate) until: Time,
    pub(crate) authority: Authority,
    pub(crate) since: Time,
    /// When the last successful renewal was sent.
    renewed: Time,
    pub(crate) handing: Option<Handing>,
    /// Other directors that answer, and for how long they have.
    pub(crate) rivals: BTreeMap<String, Rival>,
    /// Since when it would leave, if there were somebody to leave to.
    pub(crate) leaving: Option<Time>,
    /// Whom it suspected when it claimed without a Lease. Answers on paths other than those where that one was silent refute
    /// nothing: it answered there all the time.
    pub(crate) accused: Option<String>,
}

/// A handover under way.
#[derive(Clone, Debug)]
pub(crate) struct Handing {
    pub(crate) to: String,
    sent: Time,
    /// `renewed` of the Lease as this node wrote it; another value is the successor's renewal.
    pub(crate) written: Option<String>,
    is_confirmed: bool,
    next_read: Time,
}

impl Hold {
    /// Whether this node claimed because that director was silent, and it still is.
    pub(crate) fn is_accused(&self, name: &str) -> bool {
        self.accused.as_deref() == Some(name)
    }
}

/// Until when a Lease gives the right to answer whose renewal was sent at that time.
pub(crate) fn deadline(sent: Time, duration: Duration, settings: &Settings) -> Time {
    sent + duration
        .min(settings.lease_duration)
        .saturating_sub(settings.margin)
}

impl Elector {
    /// Forgets a hold whose deadline has passed: the kernel has stopped by itself.
    pub(crate) fn lapse(&mut self, now: Time) {
        let until = self.hold.as_ref().map(|hold| hold.until);
        if until.is_some_and(|until| self.due(until, now)) {
            self.hold = None;
        }
    }

    /// Stops at once.
    pub(crate) fn stop(&mut self) {
        if self.hold.take().is_some() {
            // A renewal under way must not begin a hold anew.
            self.void = self.lease.pending().map(|write| write.id);
            self.out.push(Action::Disarm);
        }
    }

    fn arm(&mut self, until: Time) {
        if let Some(hold) = &mut self.hold {
            hold.until = until;
            self.out.push(Action::Arm { until });
        }
    }

    /// Begins to hold.
    pub(crate) fn start(&mut self, authority: Authority, sent: Time, until: Time, now: Time) {
        self.may_be_armed = false;
        let accused = self.suspected.as_ref();
        let accused = accused.filter(|_| authority == Authority::Peers);
        let accused = accused.map(|suspicion| suspicion.name.clone());
        let may_ask = self.settings.witness == Witness::Asked && self.settings.probes();
        let has_trial = may_ask && !self.is_alone();
        self.hold = Some(Hold {
            until,
            authority,
            since: now,
            renewed: sent,
            handing: None,
            rivals: BTreeMap::new(),
            leaving: None,
            accused,
        });
        (self.claim, self.gave_to, self.lost) = (None, None, None);
        (self.is_named, self.has_tried) = (false, false);
        if authority == Authority::Lease {
            self.believe(None);
        }
        for path in &mut self.paths {
            path.forget_silence();
            path.broadcast_by(now);
            path.begin_trial(has_trial, now);
        }
        self.out.extend([Action::Arm { until }, Action::Announce]);
    }

    /// This node's name was written into the Lease.
    pub(crate) fn granted(&mut self, sent: Time, now: Time) {
        let Some(duration) = self.lease.view().map(|view| view.duration) else {
            return;
        };
        #[cfg(test)]
        let sent = self.flawed_sent(sent, now);
        let until = deadline(sent, duration, &self.settings);
        if until <= now || self.inability().is_some() || !self.is_named_here() {
            return;
        }
        let Some(hold) = &mut self.hold else {
            return self.start(Authority::Lease, sent, until, now);
        };
        (hold.authority, hold.renewed, hold.handing) = (Authority::Lease, sent, None);
        hold.accused = None;
        self.gave_to = None;
        self.arm(until);
    }

    /// Takes the Lease as it was read or written.
    pub(crate) fn learn(&mut self, view: LeaseView, now: Time) {
        let expiry = self.lease.expiry(&self.settings);
        let news = self.lease.observe(view, self.settings.request_timeout, now);
        self.follow_lease(now);
        let News::Changed(before) = news else {
            return;
        };
        let Some(holder) = self.lease.holder().map(str::to_owned) else {
            return;
        };
        let is_first = before.is_none();
        let former = before.and_then(|before| before.holder);
        let is_same = former.as_ref() == Some(&holder);
        if holder == self.node {
            let was_valid = former.is_some() && expiry.is_some_and(|expiry| expiry > now);
            self.is_named |= was_valid && !is_same && !self.has_tried;
            return;
        }
        (self.is_named, self.has_tried) = (false, false);
        if !is_same && self.hold.is_none() && self.believed.as_ref() != Some(&holder) {
            self.believe(Some(&holder));
        }
        let is_handed = self.gave_to.as_ref() == Some(&holder);
        let was_own = former.as_ref() == Some(&self.node);
        if let Some(hold) = &self.hold {
            // Who claimed when the Lease's holder fell silent meets its name when the API server is back. A second change
            // tells that the other lives; without one its Lease expires.
            let is_left_over = hold.authority == Authority::Peers
                && (is_first || is_same)
                && self.lease.changes_in_reach() < 2;
            let is_successor = hold
                .handing
                .as_ref()
                .is_some_and(|handing| handing.to == holder);
            let is_accused = hold.authority == Authority::Peers && hold.is_accused(&holder);
            if is_successor || is_left_over || is_accused {
                return;
            }
            self.lose(&holder, now);
        } else if was_own && !is_handed {
            self.lost = Some(now);
        }
    }

    /// Another holds now.
    pub(crate) fn lose(&mut self, to: &str, now: Time) {
        self.stop();
        if self.believed.as_deref() != Some(to) {
            self.believe(Some(to));
        }
        self.lost = Some(now);
    }

    /// A handover that was not written ends; one whose outcome is not known goes on when the Lease names the successor.
    fn follow_lease(&mut self, now: Time) {
        if self.lease.is_busy() {
            return;
        }
        let (holder, view) = (self.lease.holder(), self.lease.view());
        let Some(hold) = &mut self.hold else {
            return;
        };
        let Some(handing) = &mut hold.handing else {
            return;
        };
        if holder != Some(handing.to.as_str()) {
            // Not at once again: that successor may not hold.
            (hold.handing, hold.since) = (None, now);
        } else if handing.written.is_none() {
            handing.written = view.map(|view| view.renewed.clone());
        }
    }

    /// What a holder has to do.
    pub(crate) fn keep(&mut self, now: Time) {
        let is_unreachable = self.is_unreachable(now);
        if let Some(hold) = &mut self.hold
            && is_unreachable
            && self.settings.probes()
        {
            hold.authority = Authority::Peers;
        }
        if self.inability().is_some() {
            return self.leave(is_unreachable, now);
        }
        if let Some(hold) = &mut self.hold {
            hold.leaving = None;
        }
        if self.is_handing() {
            return self.hand_on(now);
        }
        self.contest(now);
        self.try_paths(now);
        if self.authority() == Some(Authority::Peers) {
            self.extend(now);
        }
        if self.hold.is_some() && self.settings.coordination == Coordination::Lease {
            self.renew(now);
        }
    }

    fn is_handing(&self) -> bool {
        self.hold
            .as_ref()
            .is_some_and(|hold| hold.handing.is_some())
    }

    /// Extends the deadline without a Lease.
    fn extend(&mut self, now: Time) {
        let Some(until) = self.hold.as_ref().map(|hold| hold.until) else {
            return;
        };
        let step = self.settings.peers_extension;
        if self.due(until - step / 2, now) {
            self.arm(now + step);
        }
    }

    /// Wakes before the deadline passes.
    pub(crate) fn await_deadline(&mut self, now: Time) {
        let Some((until, authority)) = self.hold.as_ref().map(|hold| (hold.until, hold.authority))
        else {
            return;
        };
        self.due(until, now);
        if authority == Authority::Peers {
            self.due(until - self.settings.peers_extension / 2, now);
        }
    }

    /// Renews the Lease, takes it when the API server is back, or gives it back.
    fn renew(&mut self, now: Time) {
        let Some(hold) = &self.hold else {
            return;
        };
        let (renewed, authority) = (hold.renewed, hold.authority);
        if self.lease.is_busy() {
            return;
        }
        let due = match authority {
            _ if self.lease.holder().is_none() => now,
            Authority::Lease => renewed + self.settings.renew_interval,
            Authority::Peers if self.is_named_here() => now,
            // Its data path fell silent and still is, though its way to the API server is back.
            Authority::Peers
                if self
                    .lease
                    .holder()
                    .is_some_and(|name| hold.is_accused(name)) =>
            {
                now
            }
            Authority::Peers => self.lease.expiry(&self.settings).unwrap_or(now),
        };
        if self.due(due.max(self.retry_at), now) {
            return self.write(Some(self.node.clone()), now);
        }
        let gives_back = self.settings.give_back == GiveBack::AfterStableTime;
        if authority == Authority::Lease && self.is_named_here() && gives_back {
            self.give_back(now);
        }
    }

    fn give_back(&mut self, now: Time) {
        let own = self.rank(&self.node);
        let mut better = self.ranked[..own].iter();
        let Some(to) = better.find(|name| self.is_steady(name)).cloned() else {
            return;
        };
        let Some(hold) = self.hold.as_ref().filter(|hold| hold.rivals.is_empty()) else {
            return;
        };
        let settled = hold.since + self.settings.stable_time;
        if self.due(settled.max(self.retry_at), now) {
            self.hand_over(to, now);
        }
    }

    /// Writes the successor's name. From here on this node stops after the limit at the latest, whatever comes of it.
    fn hand_over(&mut self, to: String, now: Time) {
        let limit = now + self.settings.handover_limit;
        self.write(Some(to.clone()), now);
        self.gave_to = Some(to.clone());
        let Some(hold) = &mut self.hold else {
            return;
        };
        hold.handing = Some(Handing {
            to,
            sent: now,
            written: None,
            is_confirmed: false,
            next_read: now + HANDOVER_READ,
        });
        let until = hold.until.min(limit);
        self.arm(until);
    }

    /// Stops when the successor has renewed.
    fn hand_on(&mut self, now: Time) {
        let Some(hold) = &mut self.hold else {
            return;
        };
        let until = hold.until;
        let Some(handing) = &mut hold.handing else {
            return;
        };
        let view = self.lease.view();
        let view = view.filter(|view| view.holder.as_ref() == Some(&handing.to));
        let written = handing.written.as_ref();
        let is_renewed = |view: &LeaseView| written.is_some_and(|written| *written != view.renewed);
        if view.is_some_and(is_renewed) {
            if !handing.is_confirmed {
                handing.is_confirmed = true;
                self.arm(until.min(now + HANDOVER_LINGER));
            }
            return;
        }
        if handing.next_read <= now {
            handing.next_read = now + HANDOVER_READ;
            self.lease.read_by(now);
        }
        let (sent, next_read, is_written) = (handing.sent, handing.next_read, written.is_some());
        self.due(next_read, now);
        let may_take_back = is_written && self.inability().is_none() && !self.lease.is_busy();
        if may_take_back && self.due(sent + TAKE_BACK, now) {
            self.gave_to = None;
            if let Some(hold) = &mut self.hold {
                hold.since = now;
            }
            self.write(Some(self.node.clone()), now);
        }
    }

    /// A holder that may not hold: hands over, releases, or waits a while for a peer.
    fn leave(&mut self, is_unreachable: bool, now: Time) {
        let is_broken = self.inability() == Some(Hindrance::Broken);
        if self.is_handing() && !is_broken {
            return self.hand_on(now);
        }
        let may_write = self.settings.coordination == Coordination::Lease
            && !is_unreachable
            && self.is_named_here();
        if may_write && !self.lease.is_busy() && self.due(self.retry_at, now) {
            if let Some(to) = self.successor() {
                self.hand_over(to, now);
            } else {
                self.write(None, now);
                self.stop();
            }
        }
        if is_broken || (self.is_ending && !may_write) {
            return self.stop();
        }
        if may_write {
            return;
        }
        let Some(hold) = &mut self.hold else {
            return;
        };
        let since = *hold.leaving.get_or_insert(now);
        if self.due(since + self.settings.lease_duration, now) {
            return self.stop();
        }
        self.contest(now);
        if self.authority() == Some(Authority::Peers) {
            self.extend(now);
        }
    }

    /// The best other candidate, steady ones first.
    fn successor(&self) -> Option<String> {
        let others = || self.ranked.iter().filter(|name| **name != self.node);
        let steady = others().find(|name| self.is_steady(name));
        steady.or_else(|| others().next()).cloned()
    }

    /// A holder's probes of its own VIPs.
    pub(crate) fn probe_own(&mut self, now: Time) {
        let hold = self.hold.as_ref();
        let interval = if hold.is_some_and(|hold| !hold.rivals.is_empty()) {
            CONTEST_INTERVAL
        } else {
            self.settings.holder_broadcast
        };
        for index in 0..self.paths.len() {
            let next = self.paths[index].next_broadcast();
            if self.due(next, now) {
                Path::broadcast(&mut self.paths[index], interval, now);
                self.due(now + interval, now);
                self.out.push(Action::Probe {
                    path: index,
                    target: crate::Target::Broadcast,
                });
            }
        }
    }
}
