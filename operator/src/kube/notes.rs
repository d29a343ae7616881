//! Writes beside those of the core: that a node is silent, in its LoadBalancerNode, the list of directors for agents, and the
//! end of what is left of nodes that are gone for good.
//!
//! They are few and depend on nothing that the core decides. Each is a task of its own; one that was not taken is tried again
//! after a pause, like statuses.

use std::collections::BTreeSet;

use futures::future::BoxFuture;
use sluice_api::{
    AddressPool, Kind, LoadBalancerNode, MAX_PEERS_BYTES, ObjectKey, PEERS_CONFIG_MAP, Time,
    group_lease,
};
use sluice_kube::{Item, Stamp};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::conflict::WriteError;
use super::departures::Departed;
use super::events::{About, Events, News};
use super::index::Index;
use super::peers;
use super::silence::{self, Silence};
use super::vip_groups::{GroupLeaseFacts, GroupLeases};
use super::writer::Writer;
use crate::order::Waits;

/// Writes under way at one time.
const AT_ONCE: usize = 4;

/// The list of directors is written no more often than this: each agent reads it whole.
const PEERS_MS: u64 = 1_000;

/// A write beside those of the core.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Note {
    /// Whether the node of this name is silent.
    Silence(String),
    /// The end of what the node of this name has left behind.
    Departure(String),
    /// The list of directors.
    Peers,
    /// The status of the address pool of this name.
    AddressPool(String),
    /// A shard of the ledger of addresses.
    Shard(u8),
    /// The Lease of a VIP group, by its key.
    GroupLease(ObjectKey),
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
    Departure(Departed),
    Peers(Item<String>),
    AddressPool(Box<Item<AddressPool>>),
    Shard,
    GroupLease(Item<GroupLeaseFacts>),
    GroupGone(ObjectKey, Stamp),
}

/// Writes under way, and waits after writes that were not taken.
#[derive(Debug, Default)]
pub(super) struct Notes {
    waits: Waits<Note>,
    flying: BTreeSet<Note>,
    flights: JoinSet<Answer>,
    /// When the list of directors was last sent.
    peers_ms: Option<u64>,
    /// Directors for which it has no room.
    left_out: usize,
}

impl Notes {
    /// How many were not taken and are to be tried again.
    pub(super) fn waiting(&self) -> usize {
        self.waits.len()
    }

    /// Starts the writes that are due.
    pub(super) fn start(&mut self, index: &mut Index, writer: &Writer, now: &Time, now_ms: u64) {
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
        for departed in index.departed() {
            let note = Note::Departure(departed.node.clone());
            let writer = writer.clone();
            let write = Box::pin(async move {
                writer.forget(&departed).await?;
                Ok(Written::Departure(departed))
            });
            self.fly(note, write, now_ms);
        }
        self.start_peers(index, writer, now_ms);
        self.start_address_pools(index, writer, now, now_ms);
        self.start_shards(index, writer, now_ms);
        self.start_groups(index, writer, now_ms);
    }

    fn start_groups(&mut self, index: &mut Index, writer: &Writer, now_ms: u64) {
        if !std::mem::take(&mut index.are_groups_stale) {
            return;
        }
        let GroupLeases { missing, gone } = index.group_lease_news();
        // What is not done now is looked at once more.
        index.are_groups_stale = !missing.is_empty() || !gone.is_empty();
        for group in missing {
            let namespace = index.namespace.clone();
            let note = Note::GroupLease(ObjectKey::new(&namespace, group_lease(&group)));
            let writer = writer.clone();
            let write = Box::pin(async move {
                let item = writer.group_lease(&namespace, &group).await?;
                Ok(Written::GroupLease(item))
            });
            self.fly(note, write, now_ms);
        }
        for (key, stamp) in gone {
            let (note, writer) = (Note::GroupLease(key.clone()), writer.clone());
            let write = Box::pin(async move {
                writer.delete_group_lease(&key, &stamp).await?;
                Ok(Written::GroupGone(key, stamp))
            });
            self.fly(note, write, now_ms);
        }
    }

    fn start_address_pools(&mut self, index: &mut Index, writer: &Writer, now: &Time, now_ms: u64) {
        if !std::mem::take(&mut index.are_pools_stale) {
            return;
        }
        for (key, status) in index.address_pool_news(now) {
            // What is not written now is looked at once more.
            index.are_pools_stale = true;
            let Some(stamp) = index.address_pools.stamp(&key).cloned() else {
                continue;
            };
            let (note, writer) = (Note::AddressPool(key.name.clone()), writer.clone());
            let write = Box::pin(async move {
                let item = writer.address_pool(&key, &stamp, &status).await?;
                Ok(Written::AddressPool(Box::new(item)))
            });
            self.fly(note, write, now_ms);
        }
    }

    fn start_shards(&mut self, index: &mut Index, writer: &Writer, now_ms: u64) {
        for shard in index.shards.clone() {
            let text = index.ledger.text(Some(shard));
            let (writer, namespace) = (writer.clone(), index.namespace.clone());
            let write = Box::pin(async move {
                writer.shard(&namespace, shard, &text).await?;
                Ok(Written::Shard)
            });
            if self.fly(Note::Shard(shard), write, now_ms) {
                index.shards.remove(&shard);
            }
        }
    }

    fn start_peers(&mut self, index: &Index, writer: &Writer, now_ms: u64) {
        if self.peers_ms.is_some_and(|last| now_ms < last + PEERS_MS) {
            return;
        }
        let Some(wanted) = peers::news(index) else {
            return;
        };
        if wanted.left_out > self.left_out {
            let (left_out, name) = (wanted.left_out, PEERS_CONFIG_MAP);
            warn!(
                "the ConfigMap {name} holds {MAX_PEERS_BYTES} bytes and has no room for {left_out} directors: make director \
                 nodes fewer, or their names shorter"
            );
        }
        self.left_out = wanted.left_out;
        let stamp = index.peers.stamp(&wanted.key).cloned();
        let writer = writer.clone();
        let write = Box::pin(async move {
            let item = writer.peers(&wanted, stamp.as_ref()).await?;
            Ok(Written::Peers(item))
        });
        if self.fly(Note::Peers, write, now_ms) {
            self.peers_ms = Some(now_ms);
        }
    }

    /// Returns whether the write begins.
    fn fly(
        &mut self,
        note: Note,
        write: BoxFuture<'static, Result<Written, WriteError>>,
        now_ms: u64,
    ) -> bool {
        let has_room = self.flying.len() < AT_ONCE;
        let is_due = has_room && self.waits.due_ms(&note, 0) <= now_ms;
        let begins = is_due && self.flying.insert(note.clone());
        if begins {
            self.flights.spawn(async move {
                let result = write.await;
                Answer { note, result }
            });
        }
        begins
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
            Ok(Written::Departure(departed)) => {
                let (node, lease, object) = (
                    &departed.node,
                    departed.lease.is_some(),
                    departed.object.is_some(),
                );
                info!(
                    node,
                    lease, object, "is gone for good: deleted what it left"
                );
                index.forget(&departed);
            }
            Ok(Written::Peers(item)) => {
                index.peers.made(item);
            }
            Ok(Written::AddressPool(item)) => {
                index.address_pools.written(*item);
            }
            Ok(Written::Shard) => {}
            Ok(Written::GroupLease(item)) => {
                index.group_leases.made(item);
            }
            Ok(Written::GroupGone(key, stamp)) => index.group_gone(&key, &stamp),
            Err(error @ (WriteError::Gone | WriteError::Stale)) => {
                if let Note::Shard(shard) = note {
                    index.shards.insert(shard);
                }
                // The watch tells, of a sign of life too.
                if let Note::Departure(node) = &note {
                    debug!(node, "{error}; listens to it anew");
                    index.departures.doubt(node);
                }
            }
            Err(error) => {
                if let Note::Shard(shard) = note {
                    index.shards.insert(shard);
                }
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
