//! Objects of one kind, as the watch and the answers to our own writes tell of them.
//!
//! A list takes effect as a whole when it is complete, so a partial one changes nothing. What is older than what is known is
//! ignored: versions are compared as the numbers that they are (Kubernetes API concepts, "resource versions").

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use sluice_api::ObjectKey;
use sluice_kube::{Item, Stamp};

/// What was made is waited for in the watch for so long.
const ECHO: Duration = Duration::from_secs(2);

/// What a watch tells.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Delta<T> {
    /// A list begins.
    Init,
    /// An object of the list.
    InitApply(Item<T>),
    /// The list is complete.
    InitDone,
    /// A new or changed object.
    Apply(Item<T>),
    /// An object is gone.
    Delete(ObjectKey, Stamp),
}

/// A change of what is known.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Change<T> {
    pub(super) key: ObjectKey,
    /// What was known before.
    pub(super) before: Option<T>,
    /// Whether the object before was another one of this name.
    pub(super) replaced: bool,
}

/// An object that cannot be read; its last good state stands in for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Unreadable {
    pub(super) key: ObjectKey,
    pub(super) uid: String,
    pub(super) error: String,
}

/// The objects of one kind.
#[derive(Clone, Debug)]
pub(super) struct Store<T> {
    /// What each object says.
    pub(super) objects: BTreeMap<ObjectKey, T>,
    stamps: BTreeMap<ObjectKey, Stamp>,
    listing: Option<Vec<Item<T>>>,
    /// What was written by ourselves since the list began: it may be newer than the list.
    written: BTreeSet<ObjectKey>,
    /// What was made by ourselves, and when, that the watch has not told of yet.
    made: BTreeMap<ObjectKey, Instant>,
    complete: bool,
    unreadable: BTreeMap<ObjectKey, String>,
    news: Vec<Unreadable>,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            stamps: BTreeMap::new(),
            listing: None,
            written: BTreeSet::new(),
            made: BTreeMap::new(),
            complete: false,
            unreadable: BTreeMap::new(),
            news: Vec::new(),
        }
    }
}

impl<T: PartialEq> Store<T> {
    /// Takes what a watch tells and says what changed by it.
    pub(super) fn apply(&mut self, delta: Delta<T>) -> Vec<Change<T>> {
        match delta {
            Delta::Init => {
                self.listing = Some(Vec::new());
                self.written.clear();
                Vec::new()
            }
            Delta::InitApply(item) => {
                self.listing.get_or_insert_default().push(item);
                Vec::new()
            }
            Delta::InitDone => {
                let list = self.listing.take().unwrap_or_default();
                self.complete = true;
                self.swap(list)
            }
            Delta::Apply(item) => {
                let known = self.stamps.get(&item.key).map(|known| known.version);
                if known.is_none_or(|known| item.stamp.version >= known) {
                    self.made.remove(&item.key);
                }
                if known.is_some_and(|known| item.stamp.version <= known) {
                    return Vec::new();
                }
                self.put(item).into_iter().collect()
            }
            Delta::Delete(key, stamp) => {
                let known = self.stamps.get(&key);
                if known.is_some_and(|known| stamp.version < known.version) {
                    return Vec::new();
                }
                self.remove(&key).into_iter().collect()
            }
        }
    }

    /// Takes the answer to a write of ours, unless the object is gone or another one meanwhile.
    pub(super) fn written(&mut self, item: Item<T>) -> Option<Change<T>> {
        let known = self.stamps.get(&item.key)?;
        if known.uid != item.stamp.uid || item.stamp.version <= known.version {
            return None;
        }
        self.written.insert(item.key.clone());
        self.put(item)
    }

    /// Takes the answer to a write that may have made the object.
    pub(super) fn made(&mut self, item: Item<T>) -> Option<Change<T>> {
        if self.stamps.contains_key(&item.key) {
            return self.written(item);
        }
        self.written.insert(item.key.clone());
        self.made.insert(item.key.clone(), Instant::now());
        self.put(item)
    }

    /// Whether something of this namespace whose name begins like this was made by ourselves just now, and the watch has not
    /// told of it: others, who watch the same, need not know of it either.
    pub(super) fn is_ahead(&self, namespace: &str, prefix: &str) -> bool {
        self.made
            .range(ObjectKey::new(namespace, prefix)..)
            .take_while(|(key, _)| key.namespace == namespace && key.name.starts_with(prefix))
            .any(|(_, at)| at.elapsed() < ECHO)
    }

    /// Forgets an object.
    pub(super) fn remove(&mut self, key: &ObjectKey) -> Option<Change<T>> {
        self.stamps.remove(key);
        self.made.remove(key);
        self.unreadable.remove(key);
        let before = self.objects.remove(key)?;
        Some(Change {
            key: key.clone(),
            before: Some(before),
            replaced: false,
        })
    }

    /// Whether a list was complete once.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Which version of an object is known.
    pub(super) fn stamp(&self, key: &ObjectKey) -> Option<&Stamp> {
        self.stamps.get(key)
    }

    /// The objects that turned out to be unreadable since the last call.
    pub(super) fn take_unreadable(&mut self) -> Vec<Unreadable> {
        std::mem::take(&mut self.news)
    }

    fn swap(&mut self, list: Vec<Item<T>>) -> Vec<Change<T>> {
        let listed: BTreeSet<ObjectKey> = list.iter().map(|item| item.key.clone()).collect();
        let gone: Vec<ObjectKey> = self
            .stamps
            .keys()
            .filter(|key| !listed.contains(*key) && !self.written.contains(*key))
            .cloned()
            .collect();
        let mut changes: Vec<Change<T>> = gone.iter().filter_map(|key| self.remove(key)).collect();
        for item in list {
            let known = self.stamps.get(&item.key);
            let newer = known.is_some_and(|known| item.stamp.version <= known.version);
            if newer && self.written.contains(&item.key) {
                continue;
            }
            changes.extend(self.put(item));
        }
        self.written.clear();
        self.made.clear();
        changes
    }

    fn put(&mut self, item: Item<T>) -> Option<Change<T>> {
        let Item {
            key,
            stamp,
            content,
        } = item;
        let uid = stamp.uid.clone();
        let last = self.stamps.insert(key.clone(), stamp);
        let value = match content {
            Ok(value) => value,
            Err(error) => {
                if self.unreadable.get(&key) != Some(&error) {
                    self.unreadable.insert(key.clone(), error.clone());
                    self.news.push(Unreadable { key, uid, error });
                }
                return None;
            }
        };
        self.unreadable.remove(&key);
        if self.objects.get(&key) == Some(&value) {
            return None;
        }
        let before = self.objects.insert(key.clone(), value);
        Some(Change {
            key,
            before,
            replaced: last.is_some_and(|last| last.uid != uid),
        })
    }
}
