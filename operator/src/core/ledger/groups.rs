//! VIP groups: the addresses of a pool that one node announces.
//!
//! An address is put into a group when it is first given, and stays there: the groups move between nodes, never the addresses
//! between groups. The addresses of one virtual server from one pool share a group, unless each was in use before in another one;
//! whoever is new gets the group with the fewest addresses.
//!
//! A group has the name of the pool that the address was taken from. If there is no such pool any more, the pool that has the
//! address now announces it, and nobody does while none has it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use sluice_api::{AddressGroup, Decision, MAX_POOL_GROUPS, ObjectKey, parse_vip_group, vip_group};

use super::{Assignment, Ledger, text};

/// What decisions on a virtual server name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Named {
    /// Addresses, those of the first decision first.
    pub addresses: Vec<IpAddr>,
    /// The VIP groups of those that are announced.
    pub groups: Vec<AddressGroup>,
}

impl Named {
    /// What these decisions name.
    pub fn by<'a>(decisions: impl IntoIterator<Item = &'a Decision>) -> Self {
        let mut named = Self::default();
        for decision in decisions {
            named.addresses.extend(&decision.content.addresses);
            named.groups.extend(decision.content.groups.iter().cloned());
        }
        named
    }
}

impl Assignment {
    /// The VIP groups of these addresses, in their order. An address without one is not announced.
    pub(in crate::core) fn groups(&self, addresses: &[IpAddr]) -> Vec<AddressGroup> {
        let groups = addresses.iter().filter_map(|address| {
            let mut known = self.groups.iter();
            known.find(|group| group.address == *address).cloned()
        });
        groups.collect()
    }
}

/// A VIP group: of which pool, and which one of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Group {
    pub(super) pool: String,
    pub(super) number: u8,
}

impl Group {
    /// The group of this name.
    pub(super) fn of(name: &str) -> Option<Self> {
        let (pool, number) = parse_vip_group(name)?;
        (number < MAX_POOL_GROUPS).then(|| Self {
            pool: pool.to_owned(),
            number,
        })
    }

    pub(super) fn name(&self) -> String {
        vip_group(&self.pool, self.number)
    }
}

impl Ledger {
    /// Takes the group that a decision names for an address, unless better is known: what stands written of the ledger may be
    /// older than the decision, and nodes announce by that.
    pub(super) fn adopt(&mut self, key: &ObjectKey, decided: &AddressGroup) {
        let group = Group::of(&decided.group).filter(|group| self.pools.has(&group.pool));
        let Some(group) = group else {
            return;
        };
        let address = decided.address;
        if !self.entries.contains_key(&address) {
            // No pool has it any more, and its owner keeps it.
            self.entries.entry(address).or_default();
            self.move_to(address, group.pool.clone());
            self.take(key, address);
        }
        if !self.entries[&address].is_placed {
            self.join(address, group);
        }
    }

    /// Has an address of an owner be in a group, if it is announced.
    pub(super) fn place(&mut self, key: &ObjectKey, address: IpAddr) {
        let Some(entry) = self.entries.get_mut(&address) else {
            return;
        };
        entry.is_placed = true;
        let group = entry.group.as_ref();
        if group.is_some_and(|group| self.pools.has(&group.pool)) {
            return;
        }
        let pool = if self.pools.has(&entry.pool) {
            Some(entry.pool.as_str())
        } else {
            self.pools.of(address)
        };
        let pool = pool.filter(|pool| self.pools.groups(pool).is_some());
        let Some(pool) = pool.map(str::to_owned) else {
            return;
        };
        let own = self.of_owner.get(key).into_iter().flatten();
        let own = own.map(|address| &self.entries[address]);
        let own = own.filter(|entry| entry.owners.contains(key));
        let mut own = own.filter_map(|entry| entry.group.as_ref());
        let number = own.find_map(|group| (group.pool == pool).then_some(group.number));
        if let Some(number) = number.or_else(|| self.pools.smallest_group(&pool)) {
            self.join(address, Group { pool, number });
        }
    }

    /// The groups of those of the addresses that are announced.
    pub(super) fn groups(&self, addresses: &BTreeSet<IpAddr>) -> Vec<AddressGroup> {
        let groups = addresses.iter().filter_map(|address| {
            let group = self.entries.get(address)?.group.as_ref()?;
            self.pools.groups(&group.pool)?;
            Some(AddressGroup {
                address: *address,
                group: group.name(),
            })
        });
        groups.collect()
    }

    fn join(&mut self, address: IpAddr, group: Group) {
        let Some(entry) = self.entries.get_mut(&address) else {
            return;
        };
        if entry.group.as_ref() == Some(&group) {
            return;
        }
        self.pools.leave(entry.group.as_ref());
        self.pools.join(&group);
        entry.group = Some(group);
        self.changed.insert(text::shard(address));
    }
}
