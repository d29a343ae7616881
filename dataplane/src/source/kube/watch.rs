//! Reading one kind: a complete list, then its changes, for as long as the process lives.
//!
//! A watch goes on where the last one ended. Where the API server cannot, or says that this belongs to another world, all
//! is listed anew. A list is handed on only when it is complete.

use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::Api;
use kube::api::{DynamicObject, ListParams, WatchEvent, WatchParams};
use sluice_kube::back_off::jittered;
use sluice_kube::error::RequestError;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::debug;

use super::Kube;
use super::index::{MAX_OBJECTS, Own};
use super::object::{Item, Kind, read};

/// How long the server ends a watch after, so that a connection that died without a word is noticed: seconds, to which up
/// to half as much is added by chance.
const WATCH_SECONDS: u32 = 60;
/// What is granted to the server beyond that.
const GRACE: Duration = Duration::from_secs(10);
/// Objects of a page of a list.
const PAGE: u32 = 500;
/// First and longest pause after a failure.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// News of a kind.
#[derive(Debug)]
pub(super) struct Message {
    /// Of the world that was watched.
    pub(super) world: u64,
    pub(super) kind: Kind,
    pub(super) change: Change,
}

/// What has changed.
#[derive(Debug)]
pub(super) enum Change {
    /// All there is, and what the server said of this node then.
    List(Vec<Item>, Option<Own>),
    /// An object was added or changed.
    Apply(Item),
    /// An object is gone.
    Delete(Item),
}

/// Why a watch ended.
enum End {
    /// It may go on from this version.
    Resume(String),
    /// Everything is to be listed.
    List,
    /// Nobody listens any more.
    Closed,
}

/// Watches a kind until nobody listens. What changes in `world` makes it list anew.
pub(super) async fn run(
    server: Kube,
    kind: Kind,
    news: mpsc::Sender<Message>,
    world: watch::Receiver<u64>,
) {
    let api = Api::all_with(server.client.clone(), &kind.resource());
    let mut watcher = Watcher {
        server,
        api,
        kind,
        news,
        world,
        failures: 0,
    };
    let mut position = None;
    loop {
        let end = match position.take() {
            None => watcher.list().await,
            Some(version) => watcher.watch(version).await,
        };
        match end {
            End::Resume(version) => position = Some(version),
            End::List => {}
            End::Closed => return,
        }
    }
}

struct Watcher {
    server: Kube,
    api: Api<DynamicObject>,
    kind: Kind,
    news: mpsc::Sender<Message>,
    world: watch::Receiver<u64>,
    failures: u32,
}

impl Watcher {
    async fn list(&mut self) -> End {
        let world = *self.world.borrow_and_update();
        match self.pages().await {
            Ok((items, own, version)) => {
                self.server.source.relisted(self.kind.name());
                let change = Change::List(items, own);
                if self.tell(world, change).await {
                    End::Resume(version)
                } else {
                    End::Closed
                }
            }
            Err(error) => {
                self.fail("list", &error).await;
                End::List
            }
        }
    }

    /// All pages of a list, what the server says of this node after that, and the version to watch from.
    async fn pages(&self) -> Result<(Vec<Item>, Option<Own>, String), RequestError> {
        let mut parameters = ListParams::default().limit(PAGE);
        parameters.label_selector = self.kind.labels().map(str::to_owned);
        let mut items = Vec::new();
        loop {
            let page = super::within(self.api.list(&parameters)).await?;
            items.extend(page.items.into_iter().map(|object| read(self.kind, object)));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) if items.len() <= MAX_OBJECTS => {
                    parameters.continue_token = Some(token);
                }
                _ => {
                    let own = self.server.own().await?.map(|before| before.own);
                    let version = page.metadata.resource_version.unwrap_or_default();
                    return Ok((items, own, version));
                }
            }
        }
    }

    async fn watch(&mut self, mut version: String) -> End {
        let seconds = jittered(Duration::from_secs(WATCH_SECONDS.into()));
        let parameters = WatchParams {
            label_selector: self.kind.labels().map(str::to_owned),
            timeout: u32::try_from(seconds.as_secs()).ok(),
            ..WatchParams::default()
        };
        let stream = match super::within(self.api.watch(&parameters, &version)).await {
            Ok(stream) => stream,
            Err(error) if error.code() == Some(410) => {
                debug!(kind = self.kind.name(), "the version to watch from is gone");
                return End::List;
            }
            Err(error) => {
                self.fail("watch", &error).await;
                // Where the kind itself was gone, versions may have begun anew.
                return if error.code() == Some(404) {
                    End::List
                } else {
                    self.resume(version)
                };
            }
        };
        self.server.works(self.kind.name());
        let start = Instant::now();
        let mut stream = std::pin::pin!(stream);
        loop {
            let event = tokio::select! {
                event = timeout(seconds + GRACE, stream.next()) => event,
                changed = self.world.changed() => {
                    return if changed.is_ok() { End::List } else { End::Closed };
                }
            };
            if start.elapsed() > BACK_OFF.1 {
                self.failures = 0;
            }
            let world = *self.world.borrow();
            let change = match event {
                Ok(Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)))) => {
                    Change::Apply(read(self.kind, object))
                }
                Ok(Some(Ok(WatchEvent::Deleted(object)))) => {
                    Change::Delete(read(self.kind, object))
                }
                Ok(Some(Ok(WatchEvent::Bookmark(bookmark)))) => {
                    version = bookmark.metadata.resource_version;
                    continue;
                }
                Ok(Some(Ok(WatchEvent::Error(status)))) => {
                    if status.code != 410 {
                        self.fail("watch", &kube::Error::Api(status).into()).await;
                    }
                    return End::List;
                }
                Ok(Some(Err(error))) => {
                    self.fail("watch", &error.into()).await;
                    return self.resume(version);
                }
                // The server has ended it.
                Ok(None) if start.elapsed() > BACK_OFF.1 => return self.resume(version),
                Ok(None) => {
                    self.fail("watch", &RequestError::Short).await;
                    return self.resume(version);
                }
                Err(_) => {
                    self.fail("watch", &RequestError::Silent).await;
                    return self.resume(version);
                }
            };
            if let Change::Apply(item) | Change::Delete(item) = &change {
                version.clone_from(&item.version);
            }
            self.server.source.events(self.kind.name(), 1);
            if !self.tell(world, change).await {
                return End::Closed;
            }
        }
    }

    /// Another world has no versions of this one.
    fn resume(&self, version: String) -> End {
        if self.news.is_closed() {
            End::Closed
        } else if self.world.has_changed().unwrap_or(true) {
            End::List
        } else {
            End::Resume(version)
        }
    }

    async fn tell(&self, world: u64, change: Change) -> bool {
        let kind = self.kind;
        let message = Message {
            world,
            kind,
            change,
        };
        self.news.send(message).await.is_ok()
    }

    /// Counts a failure, says so if it lasts, and waits before the next attempt.
    async fn fail(&mut self, verb: &str, error: &RequestError) {
        let name = self.kind.name();
        self.server.source.failed(name);
        self.server
            .complaints
            .fail(name, &format!("cannot {verb} {name} objects"), error);
        let (first, longest) = BACK_OFF;
        let pause = first
            .saturating_mul(1 << self.failures.min(10))
            .min(longest);
        self.failures += 1;
        tokio::select! {
            () = tokio::time::sleep(jittered(pause / 2)) => {}
            () = self.news.closed() => {}
        }
    }
}
