//! The VIPs that this node may answer for, and those that are new: nobody answers for these before the announcer has found that
//! no other host has them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// VIPs that have a group.
#[derive(Debug)]
pub(super) struct Known {
    /// Those that may be answered for. What was answered for when the maps were adopted stays so.
    answered: BTreeSet<IpAddr>,
    new: BTreeSet<IpAddr>,
    /// Those that are new no more since this was last taken.
    freed: BTreeSet<IpAddr>,
}

impl Known {
    /// `adopted` are those that an earlier agent had answered for.
    pub(super) fn new(adopted: BTreeSet<IpAddr>) -> Self {
        Self {
            answered: adopted,
            new: BTreeSet::new(),
            freed: BTreeSet::new(),
        }
    }

    /// A VIP has a group.
    pub(super) fn keep(&mut self, vip: IpAddr) {
        if !self.answered.contains(&vip) {
            self.new.insert(vip);
        }
    }

    /// It has none any more.
    pub(super) fn forget(&mut self, vip: IpAddr) {
        self.answered.remove(&vip);
        self.new.remove(&vip);
    }

    /// No other host has these.
    pub(super) fn free(&mut self, vips: &BTreeSet<IpAddr>) {
        for vip in vips {
            if self.new.remove(vip) {
                self.answered.insert(*vip);
                self.freed.insert(*vip);
            }
        }
    }

    /// Those that are new no more.
    pub(super) fn take_freed(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.freed)
    }

    /// Whether a VIP may be answered for.
    pub(super) fn is_answered(&self, vip: IpAddr) -> bool {
        self.answered.contains(&vip)
    }

    /// The new ones by group. `group_of` is a VIP's.
    pub(super) fn new_by_group<'a>(
        &self,
        group_of: impl Fn(IpAddr) -> Option<&'a str>,
    ) -> BTreeMap<&'a str, BTreeSet<IpAddr>> {
        let mut groups: BTreeMap<&str, BTreeSet<IpAddr>> = BTreeMap::new();
        for &vip in &self.new {
            if let Some(group) = group_of(vip) {
                groups.entry(group).or_default().insert(vip);
            }
        }
        groups
    }
}
