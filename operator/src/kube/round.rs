//! The writes of one round, in order: rollouts before the weights they ask for, decisions by their revisions, then what
//! only tells how things stand.
//!
//! Whatever is not taken is left alone for a while (see [`Patience`]) together with what builds on it: a virtual server is
//! not decided ahead of a pool that it sends flows to, nor of the policy that drives it. Everything else goes on, and what
//! was left out gets a later revision when it is decided at last. What the API server failed at the last time comes when
//! nothing else is left to be written: an object whose every write takes long to fail holds nothing up.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures::StreamExt;
use sluice_api::{
    Kind, ObjectKey, RealServerPool, RealServerPoolStatus, RolloutPolicy, VirtualServer,
};
use tracing::{debug, warn};

use super::conflict::WriteError;
use super::events::{About, Events, News};
use super::index::Index;
use super::kept::Kept;
use super::order::{acknowledged, changed_decisions, needed, targets};
use super::patience::Patience;
use super::slices::name_prefix;
use super::writer::Writer;
use crate::core::Outcome;
use crate::managed::tell;
use sluice_kube::{Item, Stamp};

/// After this time a round looks at the news again, with what is left to be written.
const BUDGET: Duration = Duration::from_secs(1);
/// Writes at once where the order does not matter.
const AT_ONCE: usize = 8;

/// Objects that wait, by kind and name.
pub(super) type Waiting = Patience<(Kind, ObjectKey)>;

pub(super) struct Round<'a> {
    pub(super) index: &'a mut Index,
    pub(super) writer: &'a Writer,
    pub(super) waiting: &'a mut Waiting,
    pub(super) events: &'a Events,
    /// Monotonic.
    pub(super) now_ms: u64,
    /// Whether it is the turn of what the API server failed at the last time.
    pub(super) last: bool,
    /// Whether a write was tried.
    pub(super) tried: bool,
}

/// How a round ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "they are independent, and each has its own consequence"
)]
pub(super) struct End {
    /// Something was written, or is left for the next round.
    pub(super) more: bool,
    /// Decisions are left for the next round.
    pub(super) decisions_left: bool,
    /// Something has to wait until it is calm.
    pub(super) calm_left: bool,
    /// The API server does not answer as it should.
    pub(super) unavailable: bool,
    /// Nor did it the last time, to the same write.
    pub(super) still_unavailable: bool,
}

/// What became of one write.
enum Written {
    /// It is as it should be.
    Done,
    /// It stays as it was, and what builds on it waits.
    Withheld,
    /// The order would be broken by going on.
    Stop,
}

impl Round<'_> {
    /// Writes what changed. Without `calm`, what only tells how things stand waits; it also waits for decisions that are
    /// left, unless its `patience_over`.
    pub(super) async fn write(mut self, outcome: Outcome, calm: bool, patience_over: bool) -> End {
        let began = Instant::now();
        let mut end = End::default();
        self.forget_settled(&outcome);
        for last in [false, true] {
            self.last = last;
            if !self.decisions(&outcome, began, &mut end).await {
                return end;
            }
            if end.decisions_left && !patience_over {
                end.calm_left = true;
                return end;
            }
            self.conditions(&outcome, calm, began, &mut end).await;
            if self.tried || end.decisions_left || end.calm_left {
                // What comes last is for a round that has nothing else to do: it gets a later revision there.
                end.more |= self.tried && self.waiting.some_come_last();
                break;
            }
        }
        end
    }

    /// Writes what only tells how things stand.
    async fn conditions(&mut self, outcome: &Outcome, calm: bool, began: Instant, end: &mut End) {
        let mut pools = Vec::new();
        for (key, status) in &outcome.pools {
            let last = self.index.pools.objects.get(key);
            let Some(last) = last else { continue };
            let last = last.status.as_ref();
            if last.and_then(|s| s.decision.as_ref()) == status.decision.as_ref()
                && last != Some(status)
            {
                pools.push((key, status));
            }
        }
        let mut virtual_servers = Vec::new();
        for (key, status) in &outcome.virtual_servers {
            let last = self.index.virtual_servers.objects.get(key);
            let Some(last) = last else { continue };
            let last = last.status.as_ref();
            if last.and_then(|s| s.decision.as_ref()) != status.decision.as_ref()
                || last == Some(status)
            {
                continue;
            }
            if calm || acknowledged(last) != acknowledged(Some(status)) {
                virtual_servers.push((key, status));
            } else {
                end.calm_left = true;
            }
        }
        self.several::<VirtualServer>(virtual_servers, began, end)
            .await;
        if calm {
            self.several::<RealServerPool>(pools, began, end).await;
        } else {
            end.calm_left |= !pools.is_empty();
        }
    }

    /// Nothing of what is as it should be waits any longer, whoever wrote it.
    fn forget_settled(&mut self, outcome: &Outcome) {
        let Index {
            virtual_servers,
            pools,
            policies,
            ..
        } = &*self.index;
        self.waiting.retain(|(kind, key)| match kind {
            Kind::VirtualServer => {
                let last = virtual_servers.objects.get(key).map(|o| o.status.as_ref());
                last != Some(outcome.virtual_servers.get(key))
            }
            Kind::RealServerPool => {
                let last = pools.objects.get(key).map(|o| o.status.as_ref());
                last != Some(outcome.pools.get(key))
            }
            Kind::RolloutPolicy => {
                let last = policies.objects.get(key).map(|o| o.status.as_ref());
                last != Some(outcome.policies.get(key))
            }
            Kind::LoadBalancerNode => false,
        });
    }

    /// Writes policies and changed decisions in order. Returns whether the round may go on.
    async fn decisions(&mut self, outcome: &Outcome, began: Instant, end: &mut End) -> bool {
        let mut withheld = BTreeSet::new();
        for (key, status) in &outcome.policies {
            match self.one::<RolloutPolicy>(key, status, end).await {
                Written::Done => {}
                Written::Withheld => withheld.extend(targets(key, status)),
                Written::Stop => return false,
            }
        }
        for (revision, kind, key) in changed_decisions(self.index, outcome) {
            if began.elapsed() > BUDGET {
                end.more = true;
                end.decisions_left = true;
                return true;
            }
            let object = (kind, key);
            if withheld.contains(&object) {
                continue;
            }
            if kind == Kind::RealServerPool && self.precedes_slices(&object.1, outcome) {
                end.calm_left = true;
                withheld.insert(object);
                continue;
            }
            self.index.raise_floor(revision);
            let key = &object.1;
            let written = if kind == Kind::RealServerPool {
                let status = &outcome.pools[key];
                self.one::<RealServerPool>(key, status, end).await
            } else {
                let status = &outcome.virtual_servers[key];
                let waits = |pool| withheld.contains(&(Kind::RealServerPool, pool));
                if needed(key, status).any(waits) {
                    continue;
                }
                self.one::<VirtualServer>(key, status, end).await
            };
            match written {
                Written::Done => {}
                Written::Withheld => {
                    withheld.insert(object);
                }
                Written::Stop => return false,
            }
        }
        true
    }

    /// Whether a pool's decision is the first to name its slices of pods, which were written just now: nodes watch slices and
    /// decisions apart, and one that hears of the decision first has no servers.
    fn precedes_slices(&self, key: &ObjectKey, outcome: &Outcome) -> bool {
        let of_pods = |status: &RealServerPoolStatus| {
            let decision = status.decision.as_ref();
            decision.is_some_and(|decision| decision.content.selector().is_some())
        };
        let last = self.index.pools.objects.get(key);
        let last = last.and_then(|pool| pool.status.as_ref());
        of_pods(&outcome.pools[key])
            && !last.is_some_and(of_pods)
            && self
                .index
                .slices
                .is_ahead(&key.namespace, &name_prefix(&key.name))
    }

    async fn one<K: Kept>(
        &mut self,
        key: &ObjectKey,
        status: &K::Status,
        end: &mut End,
    ) -> Written {
        let Some(object) = K::store(self.index).objects.get(key) else {
            return Written::Done;
        };
        let waits = (K::KIND, key.clone());
        if object.status() == Some(status) {
            self.waiting.succeeded(&waits);
            return Written::Done;
        }
        let stamp = K::store(self.index).stamp(key).cloned().unwrap_or_default();
        if !self.is_its_turn(&waits, stamp.version) {
            return Written::Withheld;
        }
        self.tried = true;
        let answer = self.writer.status::<K>(key, &stamp, status).await;
        self.settle::<K>(key, &stamp, answer, end)
    }

    /// Whether an object may be written now.
    fn is_its_turn(&self, object: &(Kind, ObjectKey), version: u64) -> bool {
        let allowed = self.waiting.allows(object, version, self.now_ms);
        allowed && (self.last || !self.waiting.comes_last(object))
    }

    async fn several<K: Kept>(
        &mut self,
        statuses: Vec<(&ObjectKey, &K::Status)>,
        began: Instant,
        end: &mut End,
    ) {
        let mut jobs = Vec::new();
        for (key, status) in statuses {
            let stamp = K::store(self.index).stamp(key).cloned().unwrap_or_default();
            if self.is_its_turn(&(K::KIND, key.clone()), stamp.version) {
                jobs.push((key, stamp, status));
            }
        }
        self.tried |= !jobs.is_empty();
        let writer = self.writer.clone();
        let requests = jobs.into_iter().map(|(key, stamp, status)| {
            let writer = &writer;
            async move {
                // Looked at when its turn comes.
                if began.elapsed() > 2 * BUDGET {
                    return None;
                }
                let answer = writer.status::<K>(key, &stamp, status).await;
                Some((key, stamp, answer))
            }
        });
        let mut answers = futures::stream::iter(requests).buffer_unordered(AT_ONCE);
        while let Some(answer) = answers.next().await {
            match answer {
                Some((key, stamp, answer)) => {
                    self.settle::<K>(key, &stamp, answer, end);
                }
                None => end.calm_left = true,
            }
        }
    }

    /// Takes the answer to a write.
    fn settle<K: Kept>(
        &mut self,
        key: &ObjectKey,
        stamp: &Stamp,
        answer: Result<Item<K>, WriteError>,
        end: &mut End,
    ) -> Written {
        let kind = K::KIND;
        let waits = (kind, key.clone());
        let about = About {
            kind: kind.name(),
            key: key.clone(),
            uid: stamp.uid.clone(),
        };
        let error = match answer {
            Ok(item) => {
                end.more = true;
                self.waiting.succeeded(&waits);
                self.taken(&about, item);
                return Written::Done;
            }
            Err(error) => error,
        };
        let again = self.waiting.comes_last(&waits);
        let news = self
            .waiting
            .failed(&waits, stamp.version, &error, self.now_ms);
        match &error {
            WriteError::Gone => {
                debug!(%kind, object = %key, "is gone");
                self.waiting.succeeded(&waits);
                K::gone(self.index, key, stamp);
                end.more = true;
            }
            WriteError::Stale => {
                debug!(%kind, object = %key, "has changed meanwhile; decides anew");
                end.more = true;
            }
            WriteError::Failed(why) | WriteError::Unavailable(why) => {
                if news {
                    warn!(%kind, object = %key, why, "cannot be written now; tries again");
                }
                if matches!(error, WriteError::Unavailable(_)) {
                    if again {
                        end.still_unavailable = true;
                    } else {
                        end.unavailable = true;
                    }
                    return Written::Stop;
                }
            }
            WriteError::FieldManager(_) | WriteError::Refused(_) if news => {
                warn!(%kind, object = %key, "its status cannot be written: {error}");
                let reason = if matches!(error, WriteError::Refused(_)) {
                    "StatusRefused"
                } else {
                    "FieldManagerConflict"
                };
                self.events.tell(News {
                    about,
                    warning: true,
                    reason: reason.to_owned(),
                    action: "WriteStatus",
                    note: error.to_string(),
                });
            }
            WriteError::FieldManager(_) | WriteError::Refused(_) => {}
        }
        Written::Withheld
    }

    fn taken<K: Kept>(&mut self, about: &About, item: Item<K>) {
        let store = K::store(self.index);
        let before = store
            .objects
            .get(&about.key)
            .and_then(|o| o.status().cloned());
        store.written(item);
        let after = store
            .objects
            .get(&about.key)
            .and_then(|o| o.status().cloned());
        K::wrote(self.index, &about.key);
        let Some(after) = after else { return };
        tell::<K>(&about.key, &before.clone().unwrap_or_default(), &after);
        for news in K::news(about, before.as_ref(), &after) {
            self.events.tell(news);
        }
    }
}

/// Objects that no longer exist wait no longer.
pub(super) fn forget_gone(waiting: &mut Waiting, index: &Index) {
    waiting.retain(|(kind, key)| match kind {
        Kind::VirtualServer => index.virtual_servers.objects.contains_key(key),
        Kind::RealServerPool => index.pools.objects.contains_key(key),
        Kind::RolloutPolicy => index.policies.objects.contains_key(key),
        Kind::LoadBalancerNode => false,
    });
}
