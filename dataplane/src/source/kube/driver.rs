//! From the watches to the core: what they read goes into the index, and what follows from it is told.

use std::collections::BTreeMap;
use std::mem::{Discriminant, discriminant};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use sluice_kube::watched::{Message, Topic};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::index::Index;
use super::kinds::{KINDS, only};
use super::{Kube, node};
use crate::core::Input;
use crate::source::Event;

/// Messages of the watches that may wait.
const QUEUE: usize = 1024;
/// Longest time that a burst is gathered.
const BURST: Duration = Duration::from_millis(20);
/// Pause before events are offered again to a core that had no room for them.
const RETRY: Duration = Duration::from_millis(50);
/// Messages of one burst.
const BURST_MESSAGES: usize = 4096;

/// Reads until the node is to be left. `in_force`: the maps serve something that must not get lost.
pub(super) async fn run(server: Kube, in_force: bool, inbox: SyncSender<Input>) {
    let (news_sender, mut news) = mpsc::channel(QUEUE);
    let (missing_sender, missing) = watch::channel(false);
    let mut tasks = JoinSet::new();
    for kind in KINDS {
        server.source.expect(kind.name);
        let watched = server.watched(only(kind.name, &server.node));
        tasks.spawn(kind.watch(watched, news_sender.clone()));
    }
    tasks.spawn(node::create_when_missing(server.clone(), missing));
    drop(news_sender);

    let mut driver = Driver {
        index: Index::new(&server.node, in_force),
        server,
        missing: missing_sender,
        outbox: Outbox::default(),
    };
    while !driver.outbox.is_over() {
        let patience = if driver.outbox.is_empty() {
            Duration::from_hours(1)
        } else {
            RETRY
        };
        match timeout_at(Instant::now() + patience, news.recv()).await {
            Ok(Some(message)) => {
                driver.take(message);
                driver.gather(&mut news).await;
                driver.look();
            }
            Ok(None) => return,
            Err(_) => {}
        }
        driver.outbox.flush(&inbox);
    }
    for kind in KINDS {
        driver.server.works(kind.name);
    }
    // Dropping the tasks ends watches and creation.
}

struct Driver {
    index: Index,
    server: Kube,
    missing: watch::Sender<bool>,
    outbox: Outbox,
}

impl Driver {
    /// Takes what comes in quick succession.
    async fn gather(&mut self, news: &mut mpsc::Receiver<Message<Index>>) {
        let end = Instant::now() + BURST;
        for _ in 0..BURST_MESSAGES {
            match timeout_at(end, news.recv()).await {
                Ok(Some(message)) => self.take(message),
                _ => return,
            }
        }
    }

    fn take(&mut self, message: Message<Index>) {
        let Message {
            kind, topic, world, ..
        } = message;
        if world != self.server.world.current() {
            return;
        }
        let source = &self.server.source;
        match topic {
            Topic::Begun => {}
            Topic::Listed => source.relisted(kind),
            Topic::Works => self.server.works(kind),
            Topic::Changed => source.events(kind, 1),
            Topic::Failed => source.failed(kind),
        }
        message.take(&mut self.index);
        let findings = self.index.take_findings();
        if findings.other_world {
            self.server.world.raise();
        }
        for complaint in findings.complaints {
            warn!("{complaint}");
        }
        for (kind, verb, error) in findings.failures {
            let failed = format!("cannot {verb} {kind} objects");
            self.server.complaints.fail(kind, &failed, &error);
        }
    }

    /// Draws the conclusions.
    fn look(&mut self) {
        for event in self.index.news() {
            if let Event::Held(reason) = &event {
                if let Some(reason) = reason {
                    warn!("{reason}");
                }
                self.server.source.hold(reason.clone());
            }
            self.outbox.put(event);
        }
        // An object made anew has no status yet, and gets none that is of another world.
        if !self.index.is_in_doubt() {
            let uid = self.index.own_uid().map(str::to_owned);
            self.server.own_uid.send_replace(uid);
        }
        let missing = self.index.own_is_missing() && !self.outbox.leaves;
        self.missing.send_replace(missing);
    }
}

/// Events that the core had no room for yet: the newest of each kind, and all that was decided.
#[derive(Default)]
struct Outbox {
    events: BTreeMap<usize, (Discriminant<Event>, Event)>,
    next: usize,
    leaves: bool,
}

impl Outbox {
    fn put(&mut self, mut event: Event) {
        self.leaves |= matches!(event, Event::Detach { .. });
        let kind = discriminant(&event);
        for (_, waiting) in self.events.extract_if(.., |_, (of, _)| *of == kind) {
            if let ((_, Event::Decided(waiting)), Event::Decided(changes)) = (waiting, &mut event) {
                let mut all = waiting;
                all.extend(std::mem::take(changes));
                *changes = all;
            }
        }
        self.events.insert(self.next, (kind, event));
        self.next += 1;
    }

    /// Offers what there is, in order.
    fn flush(&mut self, inbox: &SyncSender<Input>) {
        while let Some((order, (kind, event))) = self.events.pop_first() {
            match inbox.try_send(Input::Source(event)) {
                Ok(()) => {}
                Err(TrySendError::Full(Input::Source(event))) => {
                    self.events.insert(order, (kind, event));
                    return;
                }
                // The core ends only with the process.
                Err(_) => return,
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The core knows that the node is to be left.
    fn is_over(&self) -> bool {
        self.leaves && self.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use sluice_api::ObjectKey;

    use super::*;
    use crate::source::Changes;

    fn held(text: &str) -> Event {
        Event::Held(Some(text.to_owned()))
    }

    #[test]
    fn the_newest_of_a_kind_waits_for_room() {
        let (sender, receiver) = sync_channel(1);
        let mut outbox = Outbox::default();
        outbox.put(held("a"));
        outbox.put(Event::Peers(BTreeMap::new()));
        outbox.put(held("b"));
        outbox.flush(&sender);
        assert!(!outbox.is_empty());
        let mut seen = Vec::new();
        while let Ok(Input::Source(event)) = receiver.try_recv() {
            seen.push(event);
            outbox.flush(&sender);
        }
        assert_eq!(seen, [Event::Peers(BTreeMap::new()), held("b")]);
        assert!(outbox.is_empty());
    }

    #[test]
    fn what_was_decided_is_gathered_while_it_waits() {
        let changes = |name: &str, revision| {
            let mut changes = Changes::default();
            let key = ObjectKey::new("shop", name);
            changes.virtual_servers.insert(key, None);
            changes.mark.revision = revision;
            Event::Decided(changes)
        };
        let (sender, receiver) = sync_channel(1);
        let mut outbox = Outbox::default();
        outbox.put(changes("a", 1));
        outbox.put(changes("b", 2));
        outbox.flush(&sender);
        let Ok(Input::Source(Event::Decided(told))) = receiver.try_recv() else {
            unreachable!("it was told")
        };
        assert_eq!((told.virtual_servers.len(), told.mark.revision), (2, 2));
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn it_is_over_when_the_core_knows_that_the_node_is_left() {
        let (sender, receiver) = sync_channel(1);
        let mut outbox = Outbox::default();
        assert!(!outbox.is_over());
        outbox.put(held("a"));
        outbox.put(Event::Detach { generation: 1 });
        outbox.flush(&sender);
        assert!(!outbox.is_over());
        assert!(receiver.try_recv().is_ok());
        outbox.flush(&sender);
        assert!(outbox.is_over());
    }
}
