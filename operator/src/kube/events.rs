//! Kubernetes Events. They go through a bounded queue to a task of their own: the loop never waits for them.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use sluice_api::{
    API_VERSION, HistoryEntry, Kind, OPERATOR_MANAGER, ObjectKey, RolloutEvent, RolloutPolicyStatus,
};
use sluice_kube::error::within;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tracing::{debug, warn};

use crate::managed::{Managed, Standing};
use crate::metrics::Metrics;

/// Events that wait to be written.
const QUEUE: usize = 256;
/// How long the answer to a write is waited for.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// The most characters that a note may have (Kubernetes API reference, Event).
const NOTE_LENGTH: usize = 1000;

/// The object that an event is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct About {
    pub(super) kind: &'static str,
    pub(super) key: ObjectKey,
    pub(super) uid: String,
}

/// An event to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct News {
    pub(super) about: About,
    pub(super) warning: bool,
    pub(super) reason: String,
    pub(super) action: &'static str,
    pub(super) note: String,
}

/// Where events are told.
#[derive(Debug)]
pub(super) struct Events {
    queue: Sender<News>,
    metrics: Arc<Metrics>,
}

impl Events {
    /// Starts the task that writes them.
    pub(super) fn start(client: Client, metrics: &Arc<Metrics>) -> Self {
        let (queue, news) = channel(QUEUE);
        tokio::spawn(write(client, news, Arc::clone(metrics)));
        Self {
            queue,
            metrics: Arc::clone(metrics),
        }
    }

    /// Queues an event; one that finds no room is counted and dropped.
    pub(super) fn tell(&self, news: News) {
        if self.queue.try_send(news).is_err() {
            self.metrics.events_dropped.inc();
        }
    }
}

async fn write(client: Client, mut news: Receiver<News>, metrics: Arc<Metrics>) {
    let recorder = Recorder::new(client, Reporter::from(OPERATOR_MANAGER));
    let mut told = false;
    while let Some(news) = news.recv().await {
        let about = ObjectReference {
            api_version: Some(api_version(news.about.kind).to_owned()),
            kind: Some(news.about.kind.to_owned()),
            name: Some(news.about.key.name.clone()),
            namespace: Some(news.about.key.namespace.clone()).filter(|name| !name.is_empty()),
            uid: Some(news.about.uid.clone()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: if news.warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: news.reason,
            note: Some(news.note.chars().take(NOTE_LENGTH).collect()),
            action: news.action.to_owned(),
            secondary: None,
        };
        let request = recorder.publish(&event, &about);
        let Err(failure) = within(WRITE_TIMEOUT, request).await else {
            told = false;
            continue;
        };
        // Once until one is written again: what they tell stands in conditions, too.
        if told {
            debug!(object = %news.about.key, %failure, "an event could not be written");
        } else {
            warn!(object = %news.about.key, %failure, "an event could not be written");
            told = true;
        }
        metrics.events_dropped.inc();
    }
}

/// The API version of a kind.
fn api_version(kind: &str) -> &'static str {
    match kind {
        _ if Kind::from_name(kind).is_some() => API_VERSION,
        "EndpointSlice" => "discovery.k8s.io/v1",
        "Lease" => "coordination.k8s.io/v1",
        "ServiceCIDR" => "networking.k8s.io/v1",
        _ => "v1",
    }
}

/// The event of a new reason.
pub(super) fn standing<K: Managed>(
    about: &About,
    before: Option<&K::Status>,
    after: &K::Status,
) -> Option<News> {
    let now = Standing::of(K::conditions(after))?;
    let was = before.and_then(|before| Standing::of(K::conditions(before)));
    let same = was.is_some_and(|was| {
        was.reason == now.reason && was.stalled == now.stalled && was.ready == now.ready
    });
    if same || !(now.stalled || now.ready) {
        return None;
    }
    Some(News {
        about: about.clone(),
        warning: now.stalled,
        reason: now.reason.to_owned(),
        action: "Decide",
        note: if now.message.is_empty() {
            now.reason.to_owned()
        } else {
            now.message.to_owned()
        },
    })
}

/// The events of what happened to a run.
pub(super) fn history(
    about: &About,
    before: Option<&RolloutPolicyStatus>,
    after: &RolloutPolicyStatus,
) -> Vec<News> {
    let last = before.and_then(|before| before.history.last());
    let known = last.map_or(0, |last| {
        let at = after.history.iter().rposition(|entry| entry == last);
        at.map_or(0, |at| at + 1)
    });
    let new = after.history[known..].iter();
    new.map(|entry| step(about, entry)).collect()
}

fn step(about: &About, entry: &HistoryEntry) -> News {
    let HistoryEntry {
        run, step, weight, ..
    } = entry;
    let what = match entry.event {
        RolloutEvent::Started => "began",
        RolloutEvent::StepEntered => "was entered",
        RolloutEvent::StepLive => "is in force on every live node",
        RolloutEvent::Promoted => "was promoted",
        RolloutEvent::PromotedFull => "was entered by promote-full",
        RolloutEvent::Paused => "was paused",
        RolloutEvent::Resumed => "goes on",
        RolloutEvent::Aborted => "was aborted: the share goes back to the stable pool",
        RolloutEvent::Completed => "was the last: the candidate has the whole share",
        RolloutEvent::Baked => "is not rolled back any more: the bake is over",
        RolloutEvent::RolledBack => {
            "was rolled back, since the candidate failed its clients: the share goes back to the stable pool"
        }
        RolloutEvent::Superseded => "was left for another run",
    };
    News {
        about: about.clone(),
        warning: entry.event == RolloutEvent::RolledBack,
        reason: format!("{:?}", entry.event),
        action: "Rollout",
        note: format!("step {step} ({weight} %) of run {run} {what}"),
    }
}
