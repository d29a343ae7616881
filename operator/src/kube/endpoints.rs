//! Writes the EndpointSlices that [`slices`](super::slices) plans.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use sluice_api::{EndpointSource, Kind, ObjectKey};
use tracing::{info, warn};

use super::conflict::WriteError;
use super::events::{About, Events, News};
use super::facts::SliceFacts;
use super::index::Index;
use super::slices::{MAX_POOL_PODS, Plan, Wanted, plan};
use super::writer::Writer;
use crate::core::Node;
use crate::order::Waits;
use sluice_kube::{Item, Stamp};

/// Writes at once.
const AT_ONCE: usize = 8;

/// Waits for the pools' slices, and the pools that have too many pods.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    waiting: Waits<ObjectKey>,
    /// Pools with more pods than there may be.
    crowded: BTreeSet<ObjectKey>,
}

/// A write. Each goes over the version that it was planned from, so that of two operators the one that knows less writes
/// nothing.
enum Job {
    /// Without a stamp the slice is new.
    Apply(Box<EndpointSlice>, Option<Stamp>),
    Delete(ObjectKey, Stamp),
}

/// Without an error it was not tried, since the API server had just been found to be away.
type Answer = (ObjectKey, Result<Done, Option<WriteError>>);

enum Done {
    Applied(Box<EndpointSlice>),
    Deleted(ObjectKey),
}

impl Endpoints {
    /// Whether something was not taken and is to be tried again.
    pub(super) fn waits(&self) -> usize {
        self.waiting.len()
    }

    /// Brings the slices of all pools that changed to what they should be.
    pub(super) async fn write(
        &mut self,
        index: &mut Index,
        writer: &Writer,
        events: &Events,
        now_ms: u64,
    ) {
        let mut first = Vec::new();
        let mut then = Vec::new();
        let mut pools: Vec<ObjectKey> =
            std::mem::take(&mut index.dirty_pools).into_iter().collect();
        pools.sort_by_key(|key| self.waiting.comes_last(key));
        for key in pools {
            if self.waiting.due_ms(&key, 0) > now_ms {
                index.dirty_pools.insert(key);
                continue;
            }
            let Some(plan) = of_pool(index, &key) else {
                index.dirty_pools.insert(key);
                continue;
            };
            self.crowd(index, events, &key, plan.left_out);
            if plan.gaining.is_empty() && plan.changed.is_empty() && plan.delete.is_empty() {
                self.waiting.end(&key);
            }
            let slices = &index.slices;
            let apply = |slice: EndpointSlice| {
                let stamp = slices.stamp(&ObjectKey::of(&slice)).cloned();
                (key.clone(), Job::Apply(Box::new(slice), stamp))
            };
            first.extend(plan.gaining.into_iter().map(apply));
            then.extend(plan.changed.into_iter().map(apply));
            let delete = |name: &String| {
                let slice = key.sibling(name);
                let stamp = slices.stamp(&slice)?.clone();
                Some((key.clone(), Job::Delete(slice, stamp)))
            };
            then.extend(plan.delete.iter().filter_map(delete));
        }
        // Once there is no answer, none is waited for any longer.
        let down = Cell::new(false);
        let mut failed = run_all(index, writer, &down, first).await;
        then.retain(|(pool, _)| !failed.contains_key(pool));
        failed.extend(run_all(index, writer, &down, then).await);
        for (pool, error) in failed {
            if let Some(error) = error {
                self.fail(index, events, &pool, &error, now_ms);
            }
            index.dirty_pools.insert(pool);
        }
    }

    fn fail(
        &mut self,
        index: &Index,
        events: &Events,
        pool: &ObjectKey,
        error: &WriteError,
        now_ms: u64,
    ) {
        let news = self.waiting.failed(pool, 0, &error.failure(), now_ms);
        if !news || matches!(error, WriteError::Stale | WriteError::Gone) {
            return;
        }
        warn!(pool = %pool, "its EndpointSlices cannot be written: {error}");
        let Some(stamp) = index.pools.stamp(pool) else {
            return;
        };
        events.tell(News {
            about: about(pool, stamp),
            warning: true,
            reason: "EndpointSlicesNotWritten".to_owned(),
            action: "WriteEndpointSlices",
            note: error.to_string(),
        });
    }

    fn crowd(&mut self, index: &Index, events: &Events, pool: &ObjectKey, left_out: usize) {
        if left_out == 0 {
            if self.crowded.remove(pool) {
                info!(pool = %pool, "has room for all its pods again");
            }
            return;
        }
        if !self.crowded.insert(pool.clone()) {
            return;
        }
        let note = format!(
            "spec.servers.selector selects more than {MAX_POOL_PODS} pods, and {left_out} are left out: select fewer, or \
             split the pool"
        );
        warn!(pool = %pool, "{note}");
        if let Some(stamp) = index.pools.stamp(pool) {
            events.tell(News {
                about: about(pool, stamp),
                warning: true,
                reason: "TooManyPods".to_owned(),
                action: "WriteEndpointSlices",
                note,
            });
        }
    }
}

fn about(pool: &ObjectKey, stamp: &Stamp) -> About {
    About {
        kind: Kind::RealServerPool.name(),
        key: pool.clone(),
        uid: stamp.uid.clone(),
    }
}

fn item(slice: EndpointSlice) -> Item<SliceFacts> {
    Item {
        key: ObjectKey::of(&slice),
        stamp: Stamp::of(&slice.metadata),
        content: Ok(SliceFacts::of(slice)),
    }
}

/// Carries out jobs, several at once. Returns the pools for which one failed, or was not tried.
async fn run_all(
    index: &mut Index,
    writer: &Writer,
    down: &Cell<bool>,
    jobs: Vec<(ObjectKey, Job)>,
) -> BTreeMap<ObjectKey, Option<WriteError>> {
    let requests = jobs
        .into_iter()
        .map(|(pool, job)| run(writer, down, pool, job));
    let mut answers = futures::stream::iter(requests).buffer_unordered(AT_ONCE);
    let mut failed = BTreeMap::new();
    while let Some((pool, answer)) = answers.next().await {
        match answer {
            Ok(Done::Applied(slice)) => index.slice_written(item(*slice)),
            Ok(Done::Deleted(slice)) => index.slice_deleted(&slice),
            Err(error) => {
                let known = failed.entry(pool).or_insert(None);
                *known = known.take().or(error);
            }
        }
    }
    failed
}

async fn run(writer: &Writer, down: &Cell<bool>, pool: ObjectKey, job: Job) -> Answer {
    if down.get() {
        return (pool, Err(None));
    }
    let answer = match job {
        Job::Apply(slice, stamp) => {
            let answer = writer.slice(&slice, stamp.as_ref()).await;
            answer.map(|slice| Done::Applied(Box::new(slice)))
        }
        Job::Delete(key, stamp) => {
            let answer = writer.delete_slice(&key, &stamp).await;
            answer.map(|()| Done::Deleted(key))
        }
    };
    if let Err(WriteError::Unavailable(_)) = answer {
        down.set(true);
    }
    (pool, answer.map_err(Some))
}

/// The plan for a pool's slices. It deletes those of a pool that is gone or no longer selects pods. `None`: they stay for
/// now, since nothing is decided yet, or nodes still forward by them.
pub(super) fn of_pool(index: &Index, key: &ObjectKey) -> Option<Plan> {
    let decided = index.selecting.as_ref()?.get(key);
    let own = index.slices_of_pool(key);
    let selecting = index
        .pools
        .objects
        .get(key)
        .zip(decided)
        .and_then(|(pool, decided)| Some((pool, decided, decided.selector.as_ref()?)));
    let Some((pool, decided, selector)) = selecting else {
        if !own.is_empty() && are_read(index, key) {
            return None;
        }
        return Some(Plan {
            delete: own.keys().map(|name| (*name).to_owned()).collect(),
            ..Plan::default()
        });
    };
    let pods = index.selected(&key.namespace, selector);
    Some(plan(&Wanted::of(key, pool, decided), pods, &own, |name| {
        index.slices.objects.contains_key(&key.sibling(name))
    }))
}

/// Whether nodes may still take a pool's servers from its slices: the decision says so, or a live node has not
/// acknowledged the one that no longer does. Slices and decisions are watched apart, so a node could lose the servers first.
fn are_read(index: &Index, key: &ObjectKey) -> bool {
    let pool = index.pools.objects.get(key);
    let status = pool.and_then(|pool| pool.status.as_ref());
    let Some(decision) = status.and_then(|status| status.decision.as_ref()) else {
        return false;
    };
    let from_pods = decision
        .content
        .endpoints
        .as_ref()
        .is_some_and(|endpoints| endpoints.source == EndpointSource::Pods);
    let is_behind =
        |node: &Node| node.live && node.status.acknowledged_pool_revision < decision.revision;
    from_pods || index.known_nodes.values().any(is_behind)
}
