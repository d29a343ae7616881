//! Maps of sets, in which no set is empty.

use std::collections::{BTreeMap, BTreeSet};

/// Takes a value out of a key's set. A set that is empty goes.
pub(crate) fn remove<K: Ord, V: Ord>(sets: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}
