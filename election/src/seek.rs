//! A candidate: probes the holder, suspects it, and takes what nobody holds.

use std::time::Duration;

use crate::elector::{Elector, Suspicion};
use crate::path::{Bound, Path};
use crate::{
    Action, Authority, Coordination, GiveBack, Obstacle, PROBING_RANKS, Target, Time, Witness,
};

/// A candidate that hears only on some of its paths lets others go first for so long.
const DEAF_WAIT: Duration = Duration::from_millis(500);
/// Time between a candidate's probes of the witness.
const TEST_INTERVAL: Duration = Duration::from_secs(1);
/// The same while it waits to be trusted again.
const RECOVERY_INTERVAL: Duration = Duration::from_millis(100);
/// Unanswered probes after which a path without a witness counts as deaf.
const DEAF_PROBES: u32 = 5;
/// A suspected holder that answers within this time was suspected wrongly.
const REFUTATION: Duration = Duration::from_secs(2);

impl Elector {
    /// What a node that does not hold has to do.
    pub(crate) fn seek(&mut self, now: Time) {
        let is_unreachable = self.is_unreachable(now);
        let has_lease = self.settings.coordination == Coordination::Lease;
        let is_able = self.inability().is_none();
        self.stop_former(is_able);
        let is_unfit = !is_able || self.is_deaf_successor(now)
            // A renewal that was under way when this node yielded.
            || (self.lost.is_some() && !self.is_named);
        if has_lease && !is_unreachable && self.is_named_here() && is_unfit {
            self.claim = None;
            if !self.lease.is_busy() && self.due(self.retry_at, now) {
                self.write(None, now);
            }
            return;
        }
        if has_lease && let Some(since) = self.lease.writes_fail_since() {
            let again = since + self.settings.lease_duration;
            if self.due(again, now) && self.lease.pending().is_none() {
                self.lease.forget_failed_writes();
            }
        }
        self.recover(now);
        let wait = if !is_able {
            None
        } else if is_unreachable {
            self.unless_lost(|it| it.may_claim(now))
                .map(|wait| wait + self.settings.claim_step * self.better_ranks())
        } else if self.is_named_here() {
            self.may_resume(now).then_some(Duration::ZERO)
        } else {
            self.unless_lost(|it| it.may_swap(now))
                .map(|wait| wait + self.settings.swap_step * self.better_ranks())
        };
        let Some(wait) = wait else {
            self.claim = None;
            return;
        };
        let due = *self.claim.get_or_insert(now + wait);
        if !self.due(due, now) {
            return;
        }
        if is_unreachable {
            let until = now + self.settings.peers_extension;
            return self.start(Authority::Peers, now, until, now);
        }
        if !self.lease.is_busy() && self.due(self.retry_at, now) {
            #[cfg(test)]
            self.flawed_swap(now);
            self.claim = None;
            self.has_tried = true;
            self.write(Some(self.node.clone()), now);
        }
    }

    /// Stops what a former process armed, if this node may not hold or another does.
    fn stop_former(&mut self, is_able: bool) {
        let is_replaced = self.lease.holder().is_some() && !self.is_named_here();
        if self.may_be_armed && (!is_able || is_replaced) {
            self.may_be_armed = false;
            self.out.push(Action::Disarm);
        }
    }

    fn unless_lost(
        &mut self,
        wait: impl FnOnce(&mut Self) -> Option<Duration>,
    ) -> Option<Duration> {
        match self.lost {
            Some(_) => None,
            None => wait(self),
        }
    }

    /// Whether a Lease in this node's own name may be renewed though it does not hold. One that it was handed, at once;
    /// otherwise somebody may have claimed meanwhile.
    fn may_resume(&mut self, now: Time) -> bool {
        self.is_named || !self.settings.probes() || self.is_quiet(now) || self.is_overdue(now)
    }

    /// Whether the Lease may be swapped, and how long others go first.
    fn may_swap(&mut self, now: Time) -> Option<Duration> {
        let expiry = self.lease.expiry(&self.settings)?;
        if !self.due(expiry, now) {
            let is_holder = self.believed.as_deref() == self.lease.holder();
            return (is_holder && self.suspects(now)).then_some(Duration::ZERO);
        }
        if !self.settings.probes() || self.is_overdue(now) {
            return Some(Duration::ZERO);
        }
        let needs_witness = self.settings.witness == Witness::Asked && !self.is_alone();
        self.takes_quiet(needs_witness, now)
    }

    /// Whether the Lease has been expired for the stable time while the API server was in reach here: who answers lacks it.
    fn is_overdue(&mut self, now: Time) -> bool {
        let from = self.lease.overdue_from(&self.settings);
        from.is_some_and(|from| self.due(from + self.settings.stable_time, now))
    }

    /// Whether the group may be claimed without a Lease, and how long others go first.
    fn may_claim(&mut self, now: Time) -> Option<Duration> {
        if !self.settings.probes() {
            return None;
        }
        if self.suspects(now) || self.may_replace(now) {
            return Some(Duration::ZERO);
        }
        let holder = self.lease.holder().filter(|name| *name != self.node);
        if holder.is_some() && !self.paths.iter().any(Path::is_proven) {
            let expiry = self.lease.expiry(&self.settings);
            if expiry.is_some_and(|expiry| !self.due(expiry, now)) {
                return None;
            }
        }
        if self.settings.witness == Witness::Absent && self.ranked.len() == 2 {
            let bound = Bound {
                time: self.settings.lease_duration,
                probes: self.settings.suspicion_probes,
            };
            return self.are_all_quiet(bound, now).then_some(Duration::ZERO);
        }
        self.takes_quiet(!self.is_alone(), now)
    }

    /// Whether a living holder is to be replaced where there are no Leases: it is no candidate any more, or ranks worse than
    /// this node, which is steady. It yields when it hears this node.
    fn may_replace(&self, now: Time) -> bool {
        if self.settings.coordination == Coordination::Lease {
            return false;
        }
        let heard = self.believed_heard;
        let Some(holder) = self.believed.as_ref() else {
            return false;
        };
        if heard.is_none_or(|heard| now.since(heard) > self.settings.suspicion) {
            return false;
        }
        let is_candidate = self.ranked.contains(holder);
        let is_better = self.rank(&self.node) < self.rank(holder);
        let gives_back = self.settings.give_back == GiveBack::AfterStableTime;
        !is_candidate || (gives_back && is_better && self.is_steady(&self.node))
    }

    /// Whether nobody answers, and how long those who hear more go first. None if somebody does, or if it cannot be told.
    fn takes_quiet(&mut self, needs_witness: bool, now: Time) -> Option<Duration> {
        if !self.is_quiet(now) {
            return None;
        }
        let (all, any) = self.witnessed(now);
        match (all || !needs_witness, any) {
            (true, _) => Some(Duration::ZERO),
            (false, true) => Some(DEAF_WAIT),
            (false, false) => None,
        }
    }

    fn is_quiet(&self, now: Time) -> bool {
        self.are_all_quiet(self.bound(), now)
    }

    fn are_all_quiet(&self, bound: Bound, now: Time) -> bool {
        let mut paths = self.paths.iter();
        !self.paths.is_empty() && paths.all(|path| path.is_quiet(bound, &self.settings, now))
    }

    /// Whether others answer on all paths, and on any.
    fn witnessed(&self, now: Time) -> (bool, bool) {
        #[cfg(test)]
        if self.flaw == Some(crate::tests::Flaw::NoWitnessRule) {
            return (true, true);
        }
        let is_witnessed = |path: &Path| path.is_witnessed(&self.settings, now);
        let all = self.paths.iter().all(is_witnessed);
        (all, self.paths.iter().any(is_witnessed))
    }

    /// What may keep every director from taking the group over, where nobody holds it.
    pub fn obstacle(&self, now: Time) -> Option<Obstacle> {
        if self.ranked.is_empty() {
            return Some(Obstacle::NoCandidate);
        }
        if self.lease.writes_fail_since().is_some() {
            return Some(Obstacle::LeaseRefused);
        }
        let asks = self.settings.witness == Witness::Asked && self.settings.probes();
        let (_, any) = self.witnessed(now);
        let is_deaf = asks && !self.is_alone() && !self.paths.is_empty() && !any;
        is_deaf.then_some(Obstacle::NoWitness)
    }

    pub(crate) fn is_alone(&self) -> bool {
        self.ranked.iter().all(|name| *name == self.node)
    }

    /// Whether the holder is silent on one of the paths while this node hears on all of them.
    fn suspects(&mut self, now: Time) -> bool {
        let (bound, settings) = (self.bound(), &self.settings);
        let silent = self.paths.iter().enumerate();
        let silent = silent.filter(|(_, path)| path.is_holder_silent(bound, settings, now));
        let silent: Vec<usize> = silent.map(|(index, _)| index).collect();
        if silent.is_empty() || self.is_deaf(now) {
            return false;
        }
        let name = self.believed.clone().unwrap_or_default();
        let is_new = self.suspected.as_ref().is_none_or(|suspicion| {
            suspicion.name != name || now.since(suspicion.since) > REFUTATION
        });
        if is_new {
            self.suspected = Some(Suspicion {
                name,
                since: now,
                paths: silent,
            });
        }
        true
    }

    /// Whether this node was handed the group and hears nobody on one of its paths. It releases the Lease, since others suspect
    /// only whom they have heard.
    fn is_deaf_successor(&self, now: Time) -> bool {
        let may_ask = self.settings.witness == Witness::Asked && self.settings.probes();
        self.is_named && may_ask && !self.is_alone() && self.is_deaf(now)
    }

    /// Whether one of this node's own paths seems not to work.
    fn is_deaf(&self, now: Time) -> bool {
        #[cfg(test)]
        if self.flaw == Some(crate::tests::Flaw::NoWitnessRule) {
            return false;
        }
        let bound = Bound {
            time: Duration::ZERO,
            probes: DEAF_PROBES,
        };
        let settings = &self.settings;
        self.paths
            .iter()
            .any(|path| path.is_silent(bound, settings, now) && !path.is_witnessed(settings, now))
    }

    /// A director answers, perhaps one that was suspected.
    pub(crate) fn refute(&mut self, name: &str, path: usize, now: Time) {
        let suspicion = self.suspected.as_ref();
        let Some(suspicion) =
            suspicion.filter(|suspicion| suspicion.name == name && suspicion.paths.contains(&path))
        else {
            return;
        };
        if now.since(suspicion.since) <= REFUTATION {
            self.patience.double(&self.settings, now);
        }
        self.suspected = None;
        self.acquit();
    }

    /// Other candidates that may take over and rank better.
    fn better_ranks(&self) -> u32 {
        let lost = self.believed.as_deref().or(self.lease.holder());
        let better = self.ranked[..self.rank(&self.node)].iter();
        let count = better.filter(|name| Some(name.as_str()) != lost).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Trusts this node again when its paths have worked for the stable time since it lost the group.
    fn recover(&mut self, now: Time) {
        // Without probes nobody suspects.
        self.lost = self.lost.filter(|_| self.settings.probes());
        let Some(lost) = self.lost else {
            return;
        };
        let stable = self.settings.stable_time;
        let since = match self.settings.witness {
            Witness::Absent => Some(lost),
            Witness::Asked => {
                let mut works = self.paths.iter().map(|path| path.works_since(now));
                works.try_fold(lost, |latest, since| Some(latest.max(since?)))
            }
        };
        if self.is_alone() || since.is_some_and(|since| self.due(since + stable, now)) {
            self.lost = None;
        }
    }

    /// Sends the probes that are due.
    pub(crate) fn send_probes(&mut self, now: Time) {
        if !self.settings.probes() {
            return;
        }
        if self.hold.is_some() {
            return self.probe_own(now);
        }
        if self.inability().is_some() {
            return;
        }
        if self.settings.witness == Witness::Asked {
            let interval = self.lost.map_or(TEST_INTERVAL, |_| RECOVERY_INTERVAL);
            self.test_paths(interval, now);
        }
        let interval = if self.rank(&self.node) < PROBING_RANKS {
            self.settings.probe_interval
        } else {
            self.settings.candidate_broadcast
        };
        for index in 0..self.paths.len() {
            let next = self.paths[index].next_probe(interval, self.bound(), &self.settings);
            if !self.due(next, now) {
                continue;
            }
            let holder = self.believed.as_deref();
            let (target, witness) = self.paths[index].probe(holder, &self.settings, now);
            let witness = witness.filter(|_| self.settings.witness == Witness::Asked);
            for target in [Some(target), witness].into_iter().flatten() {
                self.out.push(Action::Probe {
                    path: index,
                    target,
                });
            }
            let next = self.paths[index].next_probe(interval, self.bound(), &self.settings);
            self.due(next, now);
        }
    }

    /// Asks the witness on every path.
    pub(crate) fn test_paths(&mut self, interval: Duration, now: Time) {
        for index in 0..self.paths.len() {
            let next = self.paths[index].next_test();
            if self.due(next, now) {
                self.paths[index].test(interval, now);
                self.out.push(Action::Probe {
                    path: index,
                    target: Target::Witness,
                });
                let next = self.paths[index].next_test();
                self.due(next, now);
            }
        }
    }
}
