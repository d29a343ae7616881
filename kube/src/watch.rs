//! Reading one kind: a complete list, then its changes, for as long as somebody listens.
//!
//! A watch that broke off goes on from the last version that it told of. To list anew after every break would be simpler, but
//! an API server that restarts breaks the watches of all nodes at once, and would have to send everything to everybody. Such a
//! version may belong to a state that the server does not hold any more, and a watch does not tell of that. Whoever watches
//! finds out ([`crate::identity`]) and raises the [`World`]; then everything is listed anew. After every list, before it is
//! handed on, a question is asked, and the answer goes with the list, so that one of another state can be told.
//!
//! kube-runtime's `watcher` goes on in the same way, but it cannot be used here. It begins a watch that the server ends at once
//! without a pause and without a word to its user. It waits for a list without a limit, so that nobody learns of a server that
//! hangs. It does not say when a watch works again, which readiness and metrics depend on. And its lists have no maximum.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client, Resource};
use sluice_api::ObjectKey;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tracing::debug;

use crate::back_off::{BackOff, jittered};
use crate::error::{RequestError, within};
use crate::identity::World;
use crate::object::{Event, Item, Stamp};
use crate::watched::{Index, Message, Watched};

/// How long the server ends a watch after, so that a connection that died without a word is noticed: seconds, to which up
/// to half as much is added by chance.
const WATCH_SECONDS: u32 = 60;
/// A stream that is silent for this much longer than its watch may last is given up.
const GRACE: Duration = Duration::from_secs(10);
/// How long a page of a list, or the beginning of a watch, is waited for.
const LIMIT: Duration = Duration::from_secs(10);
/// Objects of a page of a list.
const PAGE: u32 = 500;
/// First and longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// Pause after an answer that there is no such kind, where that may be so.
const ABSENT: Duration = Duration::from_mins(1);
/// A watch that has lived for so long works.
const STEADY: Duration = Duration::from_secs(5);

/// A question that is asked after every list.
pub type Ask<A> = Arc<dyn Fn() -> BoxFuture<'static, Result<A, RequestError>> + Send + Sync>;

/// The API server, as watches use it.
pub struct Server<A> {
    /// The connection.
    pub client: Client,
    /// Sluice's own namespace.
    pub namespace: String,
    /// Only the object of this name.
    pub name: Option<String>,
    /// Which state of the server is believed.
    pub world: World,
    /// The question that is asked after every list.
    pub ask: Ask<A>,
}

impl<A> Clone for Server<A> {
    fn clone(&self) -> Self {
        Self {
            client: self.client.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            world: self.world.clone(),
            ask: Arc::clone(&self.ask),
        }
    }
}

impl<A> fmt::Debug for Server<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("namespace", &self.namespace)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
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

type Answer<W> = <<W as Watched>::Index as Index>::Answer;

/// Watches a kind until nobody listens.
pub(crate) async fn run<W: Watched>(
    server: Server<Answer<W>>,
    queue: mpsc::Sender<Message<W::Index>>,
) {
    let mut follower = Follower::<W> {
        api: W::api(&server.client, &server.namespace),
        world: server.world.subscribe(),
        back_off: BackOff::new(PAUSES.0, PAUSES.1),
        has_ended: false,
        server,
        queue,
    };
    let mut position = None;
    loop {
        let end = match position.take() {
            None => follower.list().await,
            Some(version) => follower.watch(version).await,
        };
        match end {
            End::Resume(version) => position = Some(version),
            End::List => {}
            End::Closed => return,
        }
    }
}

struct Follower<W: Watched> {
    server: Server<Answer<W>>,
    api: Api<W::Object>,
    queue: mpsc::Sender<Message<W::Index>>,
    world: watch::Receiver<u64>,
    back_off: BackOff,
    /// Whether the last watch ended at once.
    has_ended: bool,
}

impl<W: Watched> Follower<W> {
    async fn list(&mut self) -> End {
        let world = *self.world.borrow_and_update();
        if !self.tell(world, Event::Begin).await {
            return End::Closed;
        }
        match self.pages().await {
            Ok((items, answer, version)) => {
                if self.tell(world, Event::List(items, answer)).await {
                    End::Resume(version)
                } else {
                    End::Closed
                }
            }
            Err(error) => {
                self.fail("list", error).await;
                End::List
            }
        }
    }

    /// All pages of a list, the answer to the question after that, and the version to watch from.
    async fn pages(&self) -> Result<(Vec<Item<W::Kept>>, Answer<W>, String), RequestError> {
        let mut parameters = ListParams {
            label_selector: W::LABELS.map(str::to_owned),
            field_selector: self.fields(),
            limit: Some(PAGE),
            ..ListParams::default()
        };
        let mut items = Vec::new();
        loop {
            let page = within(LIMIT, self.api.list(&parameters)).await?;
            items.extend(page.items.into_iter().map(|o| Item::of(o, W::keep)));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) if items.len() <= W::MAX_OBJECTS => {
                    parameters.continue_token = Some(token);
                }
                _ => {
                    let answer = (self.server.ask)().await?;
                    let version = page.metadata.resource_version.unwrap_or_default();
                    return Ok((items, answer, version));
                }
            }
        }
    }

    async fn watch(&mut self, version: String) -> End {
        let life = jittered(Duration::from_secs(WATCH_SECONDS.into()));
        let parameters = WatchParams {
            label_selector: W::LABELS.map(str::to_owned),
            field_selector: self.fields(),
            timeout: u32::try_from(life.as_secs()).ok(),
            ..WatchParams::default()
        };
        let stream = match within(LIMIT, self.api.watch(&parameters, &version)).await {
            Ok(stream) => stream,
            Err(error) if error.code() == Some(410) => {
                debug!(kind = W::NAME, "the version to watch from is gone");
                return End::List;
            }
            Err(error) => {
                // Where the kind itself was gone, versions may have begun anew.
                let is_gone = error.code() == Some(404);
                self.fail("watch", error).await;
                return if is_gone {
                    End::List
                } else {
                    self.resume(version)
                };
            }
        };
        let world = *self.world.borrow();
        if !self.tell(world, Event::Works).await {
            return End::Closed;
        }
        self.changes(pin!(stream), version, life + GRACE).await
    }

    /// Tells of changes until the stream ends, or is silent for longer than `patience`.
    async fn changes(
        &mut self,
        mut stream: impl futures::Stream<Item = kube::Result<WatchEvent<W::Object>>> + Unpin,
        mut version: String,
        patience: Duration,
    ) -> End {
        let start = Instant::now();
        let world = *self.world.borrow();
        loop {
            let event = tokio::select! {
                event = timeout(patience, stream.next()) => event,
                changed = self.world.changed() => {
                    return if changed.is_ok() { End::List } else { End::Closed };
                }
                () = self.queue.closed() => return End::Closed,
            };
            if start.elapsed() > STEADY {
                self.back_off.reset();
                self.has_ended = false;
            }
            let event = match event {
                Ok(Some(Ok(WatchEvent::Bookmark(bookmark)))) => {
                    version = bookmark.metadata.resource_version;
                    continue;
                }
                Ok(Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)))) => {
                    advance(&mut version, &object);
                    Event::Apply(Item::of(object, W::keep))
                }
                Ok(Some(Ok(WatchEvent::Deleted(object)))) => {
                    advance(&mut version, &object);
                    Event::Delete(ObjectKey::of(&object), Stamp::of(object.meta()))
                }
                Ok(Some(Ok(WatchEvent::Error(status)))) => {
                    if status.code != 410 {
                        let error = kube::Error::Api(status).into();
                        self.fail("watch", error).await;
                    }
                    return End::List;
                }
                // The server has ended it.
                Ok(None) if start.elapsed() > STEADY => return self.resume(version),
                // A server ends the watches of a kind whose definition has changed, also those that have just begun.
                Ok(None) if !self.has_ended => {
                    self.has_ended = true;
                    let pause = self.back_off.next_pause();
                    self.rest(pause).await;
                    return self.resume(version);
                }
                broken => {
                    let error = match broken {
                        Ok(Some(Err(error))) => error.into(),
                        Ok(_) => RequestError::Short,
                        Err(_) => RequestError::Silent,
                    };
                    self.fail("watch", error).await;
                    return self.resume(version);
                }
            };
            if !self.tell(world, event).await {
                return End::Closed;
            }
        }
    }

    fn fields(&self) -> Option<String> {
        let name = self.server.name.as_ref();
        name.map(|name| format!("metadata.name={name}"))
    }

    /// Another world has no versions of this one.
    fn resume(&self, version: String) -> End {
        if self.queue.is_closed() {
            End::Closed
        } else if self.world.has_changed().unwrap_or(true) {
            End::List
        } else {
            End::Resume(version)
        }
    }

    async fn tell(&self, world: u64, event: Event<W::Kept, Answer<W>>) -> bool {
        let message = Message::new::<W>(world, event);
        self.queue.send(message).await.is_ok()
    }

    /// Tells of a failure, and waits before the next attempt.
    async fn fail(&mut self, verb: &'static str, error: RequestError) {
        let world = *self.world.borrow();
        let is_absent = W::MAY_BE_ABSENT && error.code() == Some(404);
        let pause = if is_absent {
            ABSENT
        } else {
            self.back_off.next_pause()
        };
        if self.tell(world, Event::Failed { verb, error }).await {
            self.rest(pause).await;
        }
    }

    async fn rest(&self, pause: Duration) {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.queue.closed() => {}
        }
    }
}

fn advance(version: &mut String, object: &impl Resource) {
    if let Some(newer) = &object.meta().resource_version {
        version.clone_from(newer);
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
