//! Writes beside those of the core: that a node is silent, in its LoadBalancerNode.
//!
//! They are few and depend on nothing that the core decides. Each is a task of its own; one that was not taken is tried again
//! after a pause, like statuses.

use std::collections::BTreeSet;

use futures::future::BoxFuture;
use sluice_api::{Kind, LoadBalancerNode, ObjectKey, Time};
use sluice_kube::Item;
use tokio::task::JoinSet;
use tracing::warn;

use super::conflict::WriteError;
use super::events::{About, Events, News};
use super::index::Index;
use super::silence::{self, Silence};
use super::writer::Writer;
use crate::order::Waits;

/// Writes under way at one time.
const AT_ONCE: usize = 4;

/// What is written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Note {
    /// Whether the node of this name is silent.
    Silence(String),
}

/// The answer to a write.
#[derive(Debug)]
pub(super) struct Answer {
    note: Note,
    result: Result<Written, WriteError>,
}

#[derive(Debug)]
enum Written {
    Silence(Silence, Box<Item<LoadBalancerNode>>),
}

/// What is under way, and what was not taken.
#[derive(Debug, Default)]
pub(super) struct Notes {
    waits: Waits<Note>,
    flying: BTreeSet<Note>,
    flights: JoinSet<Answer>,
}

impl Notes {
    /// How many were not taken and are to be tried again.
    pub(super) fn waiting(&self) -> usize {
        self.waits.len()
    }

    /// Starts the writes that are due.
    pub(super) fn start(&mut self, index: &Index, writer: &Writer, now: &Time, now_ms: u64) {
        for silence in silence::news(index) {
            let note = Note::Silence(silence.node.clone());
            let Some(stamp) = index.nodes.stamp(&ObjectKey::new("", &silence.node)) else {
                continue;
            };
            let (writer, uid, now) = (writer.clone(), stamp.uid.clone(), now.clone());
            let write = Box::pin(async move {
                let item = writer.silence(&silence, &uid, &now).await?;
                Ok(Written::Silence(silence, Box::new(item)))
            });
            self.fly(note, write, now_ms);
        }
    }

    fn fly(
        &mut self,
        note: Note,
        write: BoxFuture<'static, Result<Written, WriteError>>,
        now_ms: u64,
    ) {
        let has_room = self.flying.len() < AT_ONCE;
        if has_room && self.waits.due_ms(&note, 0) <= now_ms && self.flying.insert(note.clone()) {
            self.flights.spawn(async move {
                let result = write.await;
                Answer { note, result }
            });
        }
    }

    /// Waits for an answer; for ever while nothing is under way.
    pub(super) async fn answer(&mut self) -> Option<Answer> {
        match self.flights.join_next().await {
            Some(answer) => answer.ok(),
            None => std::future::pending().await,
        }
    }

    /// Takes an answer in.
    pub(super) fn land(&mut self, index: &mut Index, events: &Events, answer: Answer, now_ms: u64) {
        let Answer { note, result } = answer;
        self.flying.remove(&note);
        match result {
            Ok(Written::Silence(silence, item)) => {
                events.tell(news(&silence, &item));
                index.nodes.written(*item);
            }
            // The watch tells.
            Err(WriteError::Gone | WriteError::Stale) => {}
            Err(error) => {
                if self.waits.failed(&note, 0, &error.failure(), now_ms) {
                    warn!(?note, "cannot be written: {error}");
                }
                return;
            }
        }
        self.waits.end(&note);
    }
}

fn news(silence: &Silence, item: &Item<LoadBalancerNode>) -> News {
    News {
        about: About {
            kind: Kind::LoadBalancerNode.name(),
            key: item.key.clone(),
            uid: item.stamp.uid.clone(),
        },
        warning: silence.is_silent,
        reason: if silence.is_silent {
            "NodeSilent".to_owned()
        } else {
            "NodeReports".to_owned()
        },
        action: "Watch",
        note: silence.message(),
    }
}
