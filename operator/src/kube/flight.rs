//! Writes of statuses: each is a task of its own, and the loop takes the answers as they come.

use futures::future::BoxFuture;
use sluice_api::{Kind, ObjectKey, RealServerPool, RolloutPolicy, VirtualServer};
use sluice_kube::{Item, Stamp};
use tracing::{debug, warn};

use super::conflict::WriteError;
use super::events::{About, Events, News};
use super::index::Index;
use super::kept::Kept;
use super::writer::Writer;
use crate::managed::tell;
use crate::order::{Schedule, Status, Write};

/// The answer to a write.
#[derive(Debug)]
pub(super) struct Landing {
    key: ObjectKey,
    stamp: Stamp,
    answer: Answer,
}

#[derive(Debug)]
enum Answer {
    VirtualServer(Box<Answered<VirtualServer>>),
    Pool(Box<Answered<RealServerPool>>),
    Policy(Box<Answered<RolloutPolicy>>),
}

/// The status before a write, and the write's result.
#[derive(Debug)]
struct Answered<K: Kept> {
    before: Option<K::Status>,
    result: Result<Item<K>, WriteError>,
}

/// Begins a write over the version of the object that is known.
///
/// That version's status shows whether the result is news: the watch may tell of the write before its answer comes, and then
/// the index knows no other status than the written one.
pub(super) fn fly(index: &mut Index, writer: Writer, write: Write) -> BoxFuture<'static, Landing> {
    let Write {
        object: (_, key),
        status,
    } = write;
    match status {
        Status::VirtualServer(status) => one(index, writer, key, status, Answer::VirtualServer),
        Status::Pool(status) => one(index, writer, key, status, Answer::Pool),
        Status::Policy(status) => one(index, writer, key, status, Answer::Policy),
    }
}

fn one<K: Kept<Status: Send + Sync + 'static>>(
    index: &mut Index,
    writer: Writer,
    key: ObjectKey,
    status: K::Status,
    answer: fn(Box<Answered<K>>) -> Answer,
) -> BoxFuture<'static, Landing> {
    let store = K::store(index);
    let stamp = store.stamp(&key).cloned().unwrap_or_default();
    let before = store.objects.get(&key);
    let before = before.and_then(|object| object.status().cloned());
    Box::pin(async move {
        let result = writer.status::<K>(&key, &stamp, &status).await;
        let answer = answer(Box::new(Answered { before, result }));
        Landing { key, stamp, answer }
    })
}

/// Where answers are taken in.
pub(super) struct Ground<'a> {
    pub(super) index: &'a mut Index,
    pub(super) schedule: &'a mut Schedule,
    pub(super) events: &'a Events,
    /// Monotonic.
    pub(super) now_ms: u64,
}

impl Ground<'_> {
    /// Takes an answer in.
    pub(super) fn land(&mut self, landing: Landing) {
        let Landing { key, stamp, answer } = landing;
        match answer {
            Answer::VirtualServer(answer) => self.settle(&key, &stamp, *answer),
            Answer::Pool(answer) => self.settle(&key, &stamp, *answer),
            Answer::Policy(answer) => self.settle(&key, &stamp, *answer),
        }
    }

    fn settle<K: Kept>(&mut self, key: &ObjectKey, stamp: &Stamp, answer: Answered<K>) {
        let about = About {
            kind: K::KIND.name(),
            key: key.clone(),
            uid: stamp.uid.clone(),
        };
        let object = (K::KIND, key.clone());
        match answer.result {
            Ok(item) => {
                self.taken(&about, answer.before.as_ref(), item);
                self.index.changed(object.clone());
                self.schedule.answered(&object, Ok(()), self.now_ms);
            }
            Err(error) => {
                let failure = error.failure();
                let is_news = self.schedule.answered(&object, Err(&failure), self.now_ms);
                // The watch may have told before why the write was not taken; then nothing else ends the wait for the object.
                self.index.changed(object);
                if error == WriteError::Gone {
                    K::gone(self.index, key, stamp);
                }
                self.complain(about, K::KIND, &error, is_news);
            }
        }
    }

    fn complain(&self, about: About, kind: Kind, error: &WriteError, is_news: bool) {
        let key = &about.key;
        let reason = match error {
            WriteError::Gone => {
                debug!(%kind, object = %key, "is gone");
                return;
            }
            WriteError::Stale => {
                debug!(%kind, object = %key, "has changed meanwhile; decides anew");
                return;
            }
            _ if !is_news => return,
            WriteError::Failed(why) | WriteError::Unavailable(why) => {
                warn!(%kind, object = %key, why, "cannot be written now; tries again");
                return;
            }
            WriteError::FieldManager(_) => "FieldManagerConflict",
            WriteError::Refused(_) => "StatusRefused",
        };
        warn!(%kind, object = %key, "its status cannot be written: {error}");
        self.events.tell(News {
            about,
            warning: true,
            reason: reason.to_owned(),
            action: "WriteStatus",
            note: error.to_string(),
        });
    }

    fn taken<K: Kept>(&mut self, about: &About, before: Option<&K::Status>, item: Item<K>) {
        let store = K::store(self.index);
        store.written(item);
        let after = store.objects.get(&about.key);
        let after = after.and_then(|object| object.status().cloned());
        K::wrote(self.index, &about.key);
        let Some(after) = after else { return };
        tell::<K>(&about.key, &before.cloned().unwrap_or_default(), &after);
        for news in K::news(about, before, &after) {
            self.events.tell(news);
        }
    }
}
