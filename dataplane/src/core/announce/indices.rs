//! Numbers of VIP groups on this node, under which the maps know them.

use std::collections::{BTreeMap, BTreeSet};

use sluice_abi::{MAX_GROUPS, group_hash};

use crate::maps::Group;

/// The number of each group that is announced here.
#[derive(Debug)]
pub(super) struct Indices {
    /// Groups that an earlier agent announced, by the hash of their names: one that is armed is so until its deadline.
    adopted: BTreeMap<u64, u16>,
    used: BTreeMap<String, u16>,
    /// Where the search for a free number goes on, so that one is used again as late as possible.
    next: u16,
}

impl Indices {
    /// `adopted` are the groups that are in the maps.
    pub(super) fn new(adopted: &[Group]) -> Self {
        let number = |group: &Group| Some((group.hash, u16::try_from(group.index).ok()?));
        let adopted = adopted.iter().filter_map(number);
        Self {
            adopted: adopted.collect(),
            used: BTreeMap::new(),
            next: 0,
        }
    }

    /// Keeps the numbers of these groups only, and gives one to each that has none.
    pub(super) fn keep<'a>(&mut self, groups: impl Iterator<Item = &'a String>) {
        let groups: BTreeSet<&String> = groups.collect();
        self.used.retain(|group, _| groups.contains(group));
        for group in groups {
            if !self.used.contains_key(group)
                && let Some(index) = self.find(group)
            {
                self.used.insert(group.clone(), index);
            }
        }
    }

    /// The number of a group; `None`: there are more groups than numbers.
    pub(super) fn of(&self, group: &str) -> Option<u16> {
        self.used.get(group).copied()
    }

    fn find(&mut self, group: &str) -> Option<u16> {
        if let Some(index) = self.adopted.remove(&group_hash(group)) {
            return Some(index);
        }
        let taken: BTreeSet<u16> = self
            .used
            .values()
            .chain(self.adopted.values())
            .copied()
            .collect();
        let most = u16::try_from(MAX_GROUPS).unwrap_or(u16::MAX);
        let mut free = (self.next..most).chain(0..self.next);
        let index = free.find(|index| !taken.contains(index))?;
        self.next = (index + 1) % most;
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(indices: &mut Indices, groups: &[&str]) -> Vec<Option<u16>> {
        let names: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        indices.keep(names.iter());
        groups.iter().map(|group| indices.of(group)).collect()
    }

    #[test]
    fn a_group_keeps_its_number_and_others_take_it_late() {
        let mut indices = Indices::new(&[]);
        assert_eq!(keep(&mut indices, &["a-0", "a-1"]), [Some(0), Some(1)]);
        assert_eq!(keep(&mut indices, &["a-1", "b-0"]), [Some(1), Some(2)]);
        assert_eq!(indices.of("a-0"), None);
        assert_eq!(keep(&mut indices, &["a-0", "a-1"]), [Some(3), Some(1)]);
    }

    #[test]
    fn what_an_earlier_agent_armed_is_found_again() {
        let group = |index, name| Group {
            index,
            hash: group_hash(name),
            until_ns: 0,
        };
        let mut indices = Indices::new(&[group(0, "a-1"), group(7, "a-0")]);
        assert_eq!(
            keep(&mut indices, &["a-0", "a-1", "a-2"]),
            [Some(7), Some(0), Some(1)]
        );
    }

    #[test]
    fn there_are_so_many_and_no_more() {
        let most = usize::try_from(MAX_GROUPS).unwrap();
        let names: Vec<String> = (0..=most).map(|number| format!("p{number:05}-0")).collect();
        let mut indices = Indices::new(&[]);
        indices.keep(names.iter());
        let without = names.iter().filter(|name| indices.of(name).is_none());
        assert_eq!(without.count(), 1);
    }
}
