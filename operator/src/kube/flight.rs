//! Writes of statuses: each is a task of its own, and the loop takes the answers as they come.

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
    VirtualServer(Box<Result<Item<VirtualServer>, WriteError>>),
    Pool(Box<Result<Item<RealServerPool>, WriteError>>),
    Policy(Box<Result<Item<RolloutPolicy>, WriteError>>),
}

/// Carries out a write over the version of the object that it was computed from.
pub(super) async fn fly(writer: Writer, write: Write, stamp: Stamp) -> Landing {
    let Write {
        object: (_, key),
        status,
    } = write;
    let answer = match status {
        Status::VirtualServer(status) => {
            let answer = writer.status::<VirtualServer>(&key, &stamp, &status).await;
            Answer::VirtualServer(Box::new(answer))
        }
        Status::Pool(status) => {
            let answer = writer.status::<RealServerPool>(&key, &stamp, &status).await;
            Answer::Pool(Box::new(answer))
        }
        Status::Policy(status) => {
            let answer = writer.status::<RolloutPolicy>(&key, &stamp, &status).await;
            Answer::Policy(Box::new(answer))
        }
    };
    Landing { key, stamp, answer }
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

    fn settle<K: Kept>(
        &mut self,
        key: &ObjectKey,
        stamp: &Stamp,
        answer: Result<Item<K>, WriteError>,
    ) {
        let about = About {
            kind: K::KIND.name(),
            key: key.clone(),
            uid: stamp.uid.clone(),
        };
        let object = (K::KIND, key.clone());
        match answer {
            Ok(item) => {
                self.taken(&about, item);
                self.index.changed(object.clone());
                self.schedule.answered(&object, Ok(()), self.now_ms);
            }
            Err(error) => {
                let failure = error.failure();
                let is_news = self.schedule.answered(&object, Err(&failure), self.now_ms);
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

    fn taken<K: Kept>(&mut self, about: &About, item: Item<K>) {
        let store = K::store(self.index);
        let status = |object: &K| object.status().cloned();
        let before = store.objects.get(&about.key).and_then(status);
        store.written(item);
        let after = store.objects.get(&about.key).and_then(status);
        K::wrote(self.index, &about.key);
        let Some(after) = after else { return };
        tell::<K>(&about.key, &before.clone().unwrap_or_default(), &after);
        for news in K::news(about, before.as_ref(), &after) {
            self.events.tell(news);
        }
    }
}
