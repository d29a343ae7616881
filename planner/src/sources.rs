//! Source sets: which clients may begin flows, as `SOURCES*` hold it.
//!
//! Heads name a set by its id. A set never changes: another list is another set, which is written before a head names it, and removed
//! once no packet may read a head that names it. Heads whose lists are the same share one set, whoever's they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_abi::{FIRST_SOURCE_SET, Head, PrefixKey, SourceKey};

use crate::{ByFamily, Image, Prefix};

/// The blocks of a set in order, each once.
pub type Blocks = Arc<[Prefix]>;

/// Key of `SOURCES*`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Source {
    /// The set.
    pub set: u32,
    /// A block of it.
    pub block: Prefix,
}

impl Source {
    /// The entries of a set with these blocks.
    pub fn of_set(set: u32, blocks: &Blocks) -> impl Iterator<Item = Self> {
        blocks.iter().map(move |&block| Self { set, block })
    }

    /// The map key.
    pub fn key(&self) -> ByFamily<SourceKey<4>, SourceKey<16>> {
        match self.block.key() {
            ByFamily::V4(key) => ByFamily::V4(SourceKey::new(self.set, key.addr, key.length)),
            ByFamily::V6(key) => ByFamily::V6(SourceKey::new(self.set, key.addr, key.length)),
        }
    }
}

impl From<SourceKey<4>> for Source {
    fn from(key: SourceKey<4>) -> Self {
        let length = key.length.saturating_sub(SourceKey::<4>::SET_BITS);
        let addr = key.source.addr;
        Self {
            set: key.source.set,
            block: PrefixKey { length, addr }.into(),
        }
    }
}

impl From<SourceKey<16>> for Source {
    fn from(key: SourceKey<16>) -> Self {
        let length = key.length.saturating_sub(SourceKey::<16>::SET_BITS);
        let addr = key.source.addr;
        Self {
            set: key.source.set,
            block: PrefixKey { length, addr }.into(),
        }
    }
}

/// The set that a head names, if `SOURCES*` have blocks of it.
pub(crate) fn set_of(head: &Head) -> Option<u32> {
    Some(head.source_set).filter(|&set| set >= FIRST_SOURCE_SET)
}

/// How many of the blocks are of IPv4, and of IPv6.
pub(crate) fn count(blocks: &[Prefix]) -> [u32; 2] {
    let v4 = blocks.iter().filter(|block| block.address.is_ipv4());
    let number = |count| u32::try_from(count).unwrap_or(u32::MAX);
    let v4 = v4.count();
    [number(v4), number(blocks.len() - v4)]
}

/// Who names which sets of the maps.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    /// How many heads name a set.
    users: BTreeMap<u32, u32>,
    ids: BTreeMap<Blocks, u32>,
}

impl Sets {
    /// The set that has these blocks and no others.
    pub(crate) fn find(&self, blocks: &Blocks) -> Option<u32> {
        self.ids.get(blocks).copied()
    }

    /// Sees to it that a part and what it shall become agree in the sets that others name too, and that all sets are there that are
    /// named.
    pub(crate) fn share(&self, image: &Image, part: &mut Image, desired: &mut Image) {
        let named = users(desired);
        desired.sources.retain(|set, _| named.contains_key(set));
        for set in named.keys() {
            if let Some(blocks) = image.sources.get(set) {
                part.sources.insert(*set, Arc::clone(blocks));
                desired.sources.insert(*set, Arc::clone(blocks));
            }
        }
        let users = users(part);
        for (set, blocks) in &part.sources {
            let all = self.users.get(set).copied().unwrap_or(0);
            if all > users.get(set).copied().unwrap_or(0) {
                desired.sources.insert(*set, Arc::clone(blocks));
            }
        }
    }

    /// Takes in a part that leaves the maps.
    pub(crate) fn take_out(&mut self, part: &Image) {
        for (set, count) in users(part) {
            if let Some(users) = self.users.get_mut(&set) {
                *users -= count;
                if *users == 0 {
                    self.users.remove(&set);
                }
            }
        }
        for (set, blocks) in &part.sources {
            if self.ids.get(blocks) == Some(set) {
                self.ids.remove(blocks);
            }
        }
    }

    /// Takes in a part that comes into the maps.
    pub(crate) fn put(&mut self, part: &Image) {
        for (set, count) in users(part) {
            *self.users.entry(set).or_default() += count;
        }
        let sets = part.sources.iter();
        self.ids
            .extend(sets.map(|(set, blocks)| (Arc::clone(blocks), *set)));
    }
}

/// How many heads of a part name a set.
fn users(part: &Image) -> BTreeMap<u32, u32> {
    let mut users = BTreeMap::new();
    for set in part.heads.values().filter_map(set_of) {
        *users.entry(set).or_default() += 1;
    }
    users
}
