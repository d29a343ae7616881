//! The streams that are open: one a node. Pure but for telling the one that is replaced.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::limits::{Bucket, MESSAGES, STREAM_COST};
use super::proof::{Reason, Refusal};

/// Nodes of which anything is kept. Who is among them has proven to be a node of the cluster.
const MAX_NODES: usize = 8192;
/// How long a node without a stream is kept: long enough for it to have all that it may send again.
const KEEP_MS: u64 = 60_000;

/// What is known of a node.
#[derive(Debug)]
struct Node {
    bucket: Bucket,
    /// The open stream's number, and what ends it.
    open: Option<(u64, oneshot::Sender<Reason>)>,
    at_ms: u64,
}

#[derive(Debug, Default)]
struct Inner {
    nodes: BTreeMap<String, Node>,
    next: u64,
}

/// All nodes' streams.
#[derive(Clone, Debug, Default)]
pub(super) struct Streams(Arc<Mutex<Inner>>);

/// An open stream. It is closed when this is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    streams: Streams,
    node: String,
    number: u64,
    /// Says when another stream has replaced this one, or all are ended.
    pub(super) ended: oneshot::Receiver<Reason>,
}

impl Streams {
    /// A node that has proven itself opens a stream, which replaces the one before.
    pub(super) fn open(&self, node: &str, now_ms: u64) -> Result<Ticket, Refusal> {
        let mut inner = self.lock();
        if inner.nodes.len() >= MAX_NODES {
            inner.nodes.retain(|_, node| {
                node.open.is_some() || now_ms.saturating_sub(node.at_ms) < KEEP_MS
            });
        }
        if inner.nodes.len() >= MAX_NODES && !inner.nodes.contains_key(node) {
            let message = format!("{MAX_NODES} nodes report already");
            return Err(Refusal::new(Reason::TooMany, message));
        }
        inner.next += 1;
        let number = inner.next;
        let entry = inner.nodes.entry(node.to_owned()).or_insert_with(|| Node {
            bucket: Bucket::new(MESSAGES, now_ms),
            open: None,
            at_ms: now_ms,
        });
        if !entry.bucket.take(STREAM_COST, now_ms) {
            let message = "the node opens streams, or sends, too often";
            return Err(Refusal::new(Reason::Flood, message));
        }
        let (end, ended) = oneshot::channel();
        if let Some((_, before)) = entry.open.replace((number, end)) {
            // It may have ended by itself.
            let _ = before.send(Reason::Replaced);
        }
        entry.at_ms = now_ms;
        Ok(Ticket {
            streams: self.clone(),
            node: node.to_owned(),
            number,
            ended,
        })
    }

    /// Ends all of them.
    pub(super) fn end_all(&self, reason: Reason) {
        for node in self.lock().nodes.values_mut() {
            if let Some((_, end)) = node.open.take() {
                let _ = end.send(reason);
            }
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        let inner = self.lock();
        let open = inner.nodes.values().filter(|node| node.open.is_some());
        open.count()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// A message has come; `false`: it is one too many.
    pub(super) fn message(&self, now_ms: u64) -> bool {
        let mut inner = self.streams.lock();
        let node = inner.nodes.get_mut(&self.node);
        node.is_some_and(|node| {
            node.at_ms = now_ms;
            node.bucket.take(1, now_ms)
        })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut inner = self.streams.lock();
        if let Some(node) = inner.nodes.get_mut(&self.node)
            && matches!(node.open, Some((number, _)) if number == self.number)
        {
            node.open = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_stream_replaces_the_old_one() {
        let streams = Streams::default();
        let mut first = streams.open("n1", 0).expect("a stream");
        let _other = streams.open("n2", 0).expect("a stream");
        assert_eq!(streams.count(), 2);
        first.ended.try_recv().expect_err("goes on");
        let second = streams.open("n1", 0).expect("a stream");
        assert_eq!(first.ended.try_recv(), Ok(Reason::Replaced));
        drop(first);
        assert_eq!(streams.count(), 2, "the second is open still");
        drop(second);
        assert_eq!(streams.count(), 1);
    }

    #[test]
    fn a_flood_does_not_end_with_its_stream() {
        let streams = Streams::default();
        let first = streams.open("n1", 0).expect("a stream");
        let taken = (0..1000).filter(|_| first.message(0)).count();
        assert_eq!(taken, 55);
        drop(first);
        let refusal = streams.open("n1", 0).expect_err("too often");
        assert_eq!(refusal.reason, Reason::Flood);
        streams.open("n2", 0).expect("another node");
        streams.open("n1", 2000).expect("later");
    }

    #[test]
    fn nodes_that_are_gone_make_room() {
        let streams = Streams::default();
        let held = streams.open("n0", 0).expect("a stream");
        for number in 1..MAX_NODES {
            streams.open(&format!("n{number}"), 0).expect("a stream");
        }
        let refusal = streams.open("late", 0).expect_err("too many");
        assert_eq!(refusal.reason, Reason::TooMany);
        streams.open("late", KEEP_MS).expect("a stream");
        assert_eq!(streams.count(), 1, "of {}", held.node);
    }

    #[test]
    fn all_can_be_ended() {
        let streams = Streams::default();
        let mut first = streams.open("n1", 0).expect("a stream");
        streams.end_all(Reason::Elsewhere);
        assert_eq!(first.ended.try_recv(), Ok(Reason::Elsewhere));
        assert_eq!(streams.count(), 0);
    }
}
