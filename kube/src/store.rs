//! Objects of one kind, as the watch and the answers to our own writes tell of them.
//!
//! A list takes effect as a whole when it is complete, so a partial one changes nothing. What is older than what is known is
//! ignored: versions are compared as the numbers that they are (Kubernetes API concepts, "resource versions").

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use sluice_api::ObjectKey;

use crate::object::{Item, Stamp};

/// An object that we made is expected in the watch for so long.
const ECHO: Duration = Duration::from_secs(2);

/// Objects that a store keeps, unless it is told otherwise.
pub const MAX_OBJECTS: usize = 1_000_000;

/// A change of what is known.
#[derive(Clone, PartialEq, Debug)]
pub struct Change<T> {
    /// The object's namespace and name.
    pub key: ObjectKey,
    /// The content that was known before.
    pub before: Option<T>,
    /// Whether the object before was another one of this name.
    pub replaced: bool,
}

/// An object that is not taken in as it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missed {
    /// The object's namespace and name.
    pub key: ObjectKey,
    /// Its uid.
    pub uid: String,
    /// Why not.
    pub why: Why,
}

/// Why an object is not taken in.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum Why {
    /// It cannot be read.
    #[error("cannot be read, what was known of it stays: {0}")]
    Unreadable(String),
    /// The store is full, and perhaps leaves others out too, of which it does not tell.
    #[error("is left out, and perhaps others: there are more than {0}")]
    NoRoom(usize),
}

/// The objects of one kind.
#[derive(Clone, Debug)]
pub struct Store<T> {
    /// The content of each object.
    pub objects: BTreeMap<ObjectKey, T>,
    stamps: BTreeMap<ObjectKey, Stamp>,
    /// Objects that we wrote since the list began: they may be newer than the list.
    written: BTreeSet<ObjectKey>,
    /// Objects that we made and that the watch has not told of yet, and when we made them.
    made: BTreeMap<ObjectKey, Instant>,
    complete: bool,
    max_objects: usize,
    left_out: BTreeSet<ObjectKey>,
    unreadable: BTreeMap<ObjectKey, String>,
    news: Vec<Missed>,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            stamps: BTreeMap::new(),
            written: BTreeSet::new(),
            made: BTreeMap::new(),
            complete: false,
            max_objects: MAX_OBJECTS,
            left_out: BTreeSet::new(),
            unreadable: BTreeMap::new(),
            news: Vec::new(),
        }
    }
}

impl<T: PartialEq> Store<T> {
    /// A store that keeps so many objects.
    pub fn limited(max_objects: usize) -> Self {
        Self {
            max_objects,
            ..Self::default()
        }
    }

    /// A list begins.
    pub fn begin(&mut self) {
        self.written.clear();
    }

    /// Takes an object that a watch tells of, and says what changed by it.
    pub fn apply(&mut self, item: Item<T>) -> Option<Change<T>> {
        let known = self.stamps.get(&item.key).map(|known| known.version);
        if known.is_none_or(|known| item.stamp.version >= known) {
            self.made.remove(&item.key);
        }
        if known.is_some_and(|known| item.stamp.version <= known) {
            return None;
        }
        self.put(item)
    }

    /// Takes that an object is gone.
    pub fn delete(&mut self, key: &ObjectKey, stamp: &Stamp) -> Option<Change<T>> {
        let known = self.stamps.get(key);
        if known.is_some_and(|known| stamp.version < known.version) {
            return None;
        }
        self.remove(key)
    }

    /// Takes the answer to a write of ours, unless the object is gone or another one meanwhile.
    pub fn written(&mut self, item: Item<T>) -> Option<Change<T>> {
        let known = self.stamps.get(&item.key)?;
        if known.uid != item.stamp.uid || item.stamp.version <= known.version {
            return None;
        }
        self.written.insert(item.key.clone());
        self.put(item)
    }

    /// Takes the answer to a write that may have made the object.
    pub fn made(&mut self, item: Item<T>) -> Option<Change<T>> {
        if self.stamps.contains_key(&item.key) {
            return self.written(item);
        }
        self.written.insert(item.key.clone());
        self.made.insert(item.key.clone(), Instant::now());
        self.put(item)
    }

    /// Whether something of this namespace whose name begins like this was made by ourselves just now, and the watch has not
    /// told of it: others, who watch the same, need not know of it either.
    pub fn is_ahead(&self, namespace: &str, prefix: &str) -> bool {
        self.made
            .range(ObjectKey::new(namespace, prefix)..)
            .take_while(|(key, _)| key.namespace == namespace && key.name.starts_with(prefix))
            .any(|(_, at)| at.elapsed() < ECHO)
    }

    /// Forgets an object.
    pub fn remove(&mut self, key: &ObjectKey) -> Option<Change<T>> {
        self.stamps.remove(key);
        self.made.remove(key);
        self.unreadable.remove(key);
        self.left_out.remove(key);
        let before = self.objects.remove(key)?;
        Some(Change {
            key: key.clone(),
            before: Some(before),
            replaced: false,
        })
    }

    /// Whether a list was complete once.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Makes the store incomplete until a new list comes; known objects stay.
    pub fn expect_list(&mut self) {
        self.complete = false;
    }

    /// The objects that cannot be read, and why.
    pub fn unreadable(&self) -> impl Iterator<Item = (&ObjectKey, &str)> {
        self.unreadable
            .iter()
            .map(|(key, error)| (key, error.as_str()))
    }

    /// The objects for which there is no room.
    pub fn left_out(&self) -> impl Iterator<Item = &ObjectKey> {
        self.left_out.iter()
    }

    /// Which version of an object is known.
    pub fn stamp(&self, key: &ObjectKey) -> Option<&Stamp> {
        self.stamps.get(key)
    }

    /// The objects that turned out not to be taken in since the last call.
    pub fn take_missed(&mut self) -> Vec<Missed> {
        std::mem::take(&mut self.news)
    }

    /// Takes a complete list, and says what changed by it.
    pub fn list(&mut self, list: Vec<Item<T>>) -> Vec<Change<T>> {
        self.complete = true;
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
                    let why = Why::Unreadable(error);
                    self.news.push(Missed { key, uid, why });
                }
                return None;
            }
        };
        self.unreadable.remove(&key);
        if self.objects.get(&key) == Some(&value) {
            return None;
        }
        if self.objects.len() >= self.max_objects && !self.objects.contains_key(&key) {
            self.leave_out(key, uid);
            return None;
        }
        self.left_out.remove(&key);
        let before = self.objects.insert(key.clone(), value);
        Some(Change {
            key,
            before,
            replaced: last.is_some_and(|last| last.uid != uid),
        })
    }

    /// Of many that find no room the first is told.
    fn leave_out(&mut self, key: ObjectKey, uid: String) {
        if self.left_out.is_empty() {
            self.news.push(Missed {
                key: key.clone(),
                uid,
                why: Why::NoRoom(self.max_objects),
            });
        }
        if self.left_out.len() < self.max_objects {
            self.left_out.insert(key);
        }
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
