//! VIP groups: the addresses of a pool that one node announces.
//!
//! An address is put into a group when it is first given, and stays there: the groups move between nodes, never the addresses
//! between groups. The addresses of one virtual server from one pool share a group, unless each was in use before in another one;
//! whoever is new gets the group with the fewest addresses. A virtual server whose traffic policy is `Local` has a group of its own,
//! since only nodes with servers of it may announce its addresses; nobody shares these.
//!
//! A group has the name of the pool that the address was taken from. If there is no such pool any more, the pool that has the
//! address now announces it, and nobody does while none has it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Range;

use sluice_api::{
    AddressGroup, Decision, ExternalTrafficPolicy, FIRST_LOCAL_GROUP, IpFamily, MAX_LOCAL_GROUPS,
    MAX_POOL_GROUPS, ObjectKey, Reason, is_local_group, parse_vip_group, vip_group,
};

use super::{Assignment, Ledger, text};
use crate::core::admission::Refusal;

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
        let is_one = number < MAX_POOL_GROUPS || local_numbers().contains(&number);
        is_one.then(|| Self {
            pool: pool.to_owned(),
            number,
        })
    }

    /// Whether it is one virtual server's alone.
    pub(super) fn is_local(&self) -> bool {
        is_local_group(self.number)
    }

    pub(super) fn name(&self) -> String {
        vip_group(&self.pool, self.number)
    }
}

/// The numbers of groups that are one virtual server's alone.
pub(super) fn local_numbers() -> Range<u8> {
    FIRST_LOCAL_GROUP..FIRST_LOCAL_GROUP + MAX_LOCAL_GROUPS
}

impl Ledger {
    /// The groups that are one virtual server's alone, and announced.
    pub fn local_groups(&self) -> impl Iterator<Item = String> {
        let pools = self.pools.grouped.iter();
        let pools = pools.filter(|(pool, _)| self.pools.groups(pool).is_some());
        pools.flat_map(|(pool, groups)| {
            let numbers = groups.range(FIRST_LOCAL_GROUP..);
            numbers.map(move |(number, _)| vip_group(pool, *number))
        })
    }

    /// Whether such groups came or went since this was last asked.
    pub fn take_local_changed(&mut self) -> bool {
        std::mem::take(&mut self.pools.are_local_changed)
    }

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

    /// Has an address of an owner be in a group that fits the owner's traffic policy, if it is announced.
    ///
    /// # Errors
    ///
    /// There is no such group for it.
    pub(super) fn place(
        &mut self,
        key: &ObjectKey,
        address: IpAddr,
        policy: ExternalTrafficPolicy,
    ) -> Result<(), Refusal> {
        let is_local = policy == ExternalTrafficPolicy::Local;
        let Some(entry) = self.entries.get_mut(&address) else {
            return Ok(());
        };
        entry.is_placed = true;
        let group = entry.group.as_ref();
        if group.is_some_and(|it| self.pools.has(&it.pool) && it.is_local() == is_local) {
            return Ok(());
        }
        let others = entry.owners.iter().filter(|owner| *owner != key);
        if is_local && let Some(other) = others.min() {
            let why = format!(
                "{address} is shared with VirtualServer {other}, and with this policy an address is one virtual server's alone: \
                 choose another address, or Cluster"
            );
            return Err(policy_refusal(Reason::AddressConflict, why));
        }
        let pool = if self.pools.has(&entry.pool) {
            Some(entry.pool.as_str())
        } else {
            self.pools.of(address)
        };
        let pool = pool.filter(|pool| self.pools.groups(pool).is_some());
        let Some(pool) = pool.map(str::to_owned) else {
            return Ok(());
        };
        let own = self.of_owner.get(key).into_iter().flatten();
        let own = own.map(|address| &self.entries[address]);
        let own = own.filter(|entry| entry.owners.contains(key));
        let mut own = own.filter_map(|entry| entry.group.as_ref());
        let own = own.find(|group| group.pool == pool && group.is_local() == is_local);
        let new = || {
            if is_local {
                self.pools.free_local_group(&pool)
            } else {
                self.pools.smallest_group(&pool)
            }
        };
        let Some(number) = own.map(|group| group.number).or_else(new) else {
            let why = format!(
                "AddressPool {pool} has {MAX_LOCAL_GROUPS} virtual servers with this policy, which is the most: have an address of \
                 another pool, or choose Cluster"
            );
            return Err(policy_refusal(Reason::NoFreeGroup, why));
        };
        self.join(address, Group { pool, number });
        Ok(())
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

    /// Those of the addresses that are announced and that no gateway of NAT servers moves with, with their pools.
    pub(super) fn without_gateway(&self, addresses: &[IpAddr]) -> Vec<(IpAddr, String)> {
        let fixed = addresses.iter().filter_map(|address| {
            let group = self.entries.get(address)?.group.as_ref()?;
            self.pools.groups(&group.pool)?;
            let has_gateway = self.pools.has_gateway(group, IpFamily::of(*address));
            (!has_gateway).then(|| (*address, group.pool.clone()))
        });
        fixed.collect()
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

fn policy_refusal(reason: Reason, why: String) -> Refusal {
    Refusal::new(reason, "spec.externalTrafficPolicy", why)
}
