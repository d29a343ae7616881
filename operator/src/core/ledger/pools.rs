//! The pools: which of them count, whom they allow, and which of their addresses are free.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_api::{
    AddressPool, AddressPoolSpec, AddressRange, AddressSharing, ConditionType, FIRST_LOCAL_GROUP,
    IpFamily, L2Announcement, MAX_POOL_GROUPS, ObjectKey, Reason, Time, Validate, is_true,
    next_address,
};

use super::groups::{Group, local_numbers};
use super::{Entry, Ledger, Usable};
use crate::core::addresses::Addresses;
use crate::core::admission::Refusal;

/// Addresses that are looked at, one after the other, for one that is nobody's: those that a node or the cluster has count,
/// those that virtual servers have do not.
const TRIES: u32 = 4_096;
/// Addresses that a message names.
const NAMED: usize = 5;

type Labels = BTreeMap<String, String>;

/// A pool.
#[derive(Clone, PartialEq, Debug)]
struct Pool {
    spec: AddressPoolSpec,
    /// Whether nobody could have had an address of it yet.
    is_new: bool,
    created: Option<Time>,
    ranges: Vec<AddressRange>,
    refusals: Vec<Refusal>,
    /// VIP groups that its decision has; `None`: it is not announced.
    decided_groups: Option<u8>,
    /// For each range, an address below which virtual servers have all.
    free_from: Vec<IpAddr>,
}

/// All pools, and the labels of the namespaces.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Pools {
    by_name: BTreeMap<String, Pool>,
    /// The ranges of those that count, by their first addresses.
    ranges: BTreeMap<IpAddr, (AddressRange, String)>,
    /// The gateways of those that count.
    gateways: BTreeMap<IpAddr, String>,
    namespaces: BTreeMap<String, Labels>,
    /// The labels of Services, by the virtual servers that are made for them.
    services: BTreeMap<ObjectKey, Labels>,
    /// The addresses in use, or at rest, by the pool that they were taken from.
    used: BTreeMap<String, BTreeSet<IpAddr>>,
    /// How many addresses are in each VIP group, by pool and number.
    pub(super) grouped: BTreeMap<String, BTreeMap<u8, usize>>,
    /// Whether groups that are one virtual server's alone came or went.
    pub(super) are_local_changed: bool,
    /// Whether one went since this was last taken.
    pub(super) is_local_free: bool,
    /// Who waits for an address, by the pools that have none.
    lacking: BTreeMap<String, BTreeSet<ObjectKey>>,
}

/// What is to be said of a pool.
#[derive(Clone, PartialEq, Debug)]
pub struct PoolState {
    /// Why it does not count.
    pub(in crate::core) refusals: Vec<Refusal>,
    /// Whether somebody waits for an address of it.
    pub(in crate::core) is_exhausted: bool,
    /// What is in use and no longer in it.
    pub(in crate::core) outside: Option<String>,
    /// Its VIP groups: those that it is to have, and while addresses are in others, those; `None`: it is not announced.
    pub(in crate::core) groups: Option<u8>,
    /// Addresses in use or at rest.
    pub used: usize,
    /// Addresses that it can assign.
    pub size: u128,
}

impl Ledger {
    /// Takes all pools. The virtual servers are to ask again, and so is whoever was refused. The pools' gateways are nobody's VIPs.
    pub fn set_pools<'a>(
        &mut self,
        pools: impl Iterator<Item = (&'a str, &'a AddressPool)>,
        addresses: &mut Addresses,
    ) {
        self.pools.set(pools);
        addresses.set_gateways(&self.pools.gateways);
    }

    /// Takes the labels of a namespace; `None`: it is gone. Its virtual servers are to ask again.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        match labels {
            Some(labels) => self.pools.namespaces.insert(name.to_owned(), labels),
            None => self.pools.namespaces.remove(name),
        };
    }

    /// Takes the labels of the Service that a virtual server is made for; `None`: it is made for none any more. Returns whether they
    /// are others: then it is to ask again.
    pub fn set_service(&mut self, server: &ObjectKey, labels: Option<&Labels>) -> bool {
        let services = &mut self.pools.services;
        if services.get(server) == labels {
            return false;
        }
        match labels {
            Some(labels) => services.insert(server.clone(), labels.clone()),
            None => services.remove(server),
        };
        true
    }

    /// Whether a pool, this one if one is named, gives addresses of a family to a virtual server.
    pub fn offers(&self, server: &ObjectKey, family: IpFamily, pool: Option<&str>) -> bool {
        self.pools.choose(pool, family, server).is_ok()
    }

    /// Whether an address is a pool's.
    pub fn has_pool(&self, address: IpAddr) -> bool {
        self.pools.of(address).is_some()
    }

    /// What is to be said of each pool.
    pub fn pool_states(&self) -> impl Iterator<Item = (&str, PoolState)> {
        let pools = self.pools.by_name.iter();
        pools.map(|(name, pool)| (name.as_str(), self.state(name, pool)))
    }

    fn state(&self, name: &str, pool: &Pool) -> PoolState {
        let used = self.pools.used.get(name);
        let outside = used.into_iter().flatten().filter(|address| {
            let is_inside = pool.ranges.iter().any(|range| range.contains(**address));
            !is_inside && !self.entries[address].owners.is_empty()
        });
        let outside: Vec<IpAddr> = outside.copied().collect();
        let named = outside.iter().take(NAMED).map(|address| {
            let owners = self.entries[address].owners.iter();
            let owners: Vec<String> = owners.map(ToString::to_string).collect();
            format!("{address} (VirtualServer {})", owners.join(", "))
        });
        let mut named: Vec<String> = named.collect();
        if outside.len() > NAMED {
            named.push(format!("{} more", outside.len() - NAMED));
        }
        let sizes = pool.ranges.iter().map(AddressRange::size);
        PoolState {
            refusals: pool.refusals.clone(),
            is_exhausted: self.pools.lacking.contains_key(name),
            groups: self.pools.all_groups(name),
            outside: (!named.is_empty()).then(|| named.join(", ")),
            used: used.map_or(0, BTreeSet::len),
            size: sizes.fold(0, u128::saturating_add),
        }
    }
}

impl Pools {
    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    fn set<'a>(&mut self, pools: impl Iterator<Item = (&'a str, &'a AddressPool)>) {
        let pool = |(name, object): (&str, &AddressPool)| {
            let ranges: Vec<AddressRange> = object.spec.ranges().collect();
            let invalid = object.spec.validate().into_iter().map(|error| Refusal {
                reason: Reason::InvalidSpec,
                error,
            });
            let status = object.status.as_ref();
            let is_ready =
                status.is_some_and(|status| is_true(&status.conditions, ConditionType::Ready));
            let pool = Pool {
                is_new: !is_ready,
                created: object.metadata.creation_timestamp.clone(),
                refusals: invalid.collect(),
                decided_groups: decided_groups(object),
                free_from: ranges.iter().map(|range| range.assignable().0).collect(),
                ranges,
                spec: object.spec.clone(),
            };
            (name.to_owned(), pool)
        };
        self.by_name = pools.map(pool).collect();
        self.ranges.clear();
        self.gateways.clear();
        // The oldest first: of pools that overlap the newer one is refused. Those in a directory have no time of creation.
        let mut names: Vec<(bool, Option<Time>, String)> = self
            .by_name
            .iter()
            .map(|(name, pool)| (pool.is_new, pool.created.clone(), name.clone()))
            .collect();
        names.sort();
        for (_, _, name) in names {
            self.admit(&name);
        }
        self.lacking
            .retain(|name, _| self.by_name.contains_key(name));
    }

    fn admit(&mut self, name: &str) {
        let Some(pool) = self.by_name.get_mut(name) else {
            return;
        };
        let conflict = pool.ranges.iter().enumerate().find_map(|(i, range)| {
            let (other, whose) = overlapping(&self.ranges, range)?;
            let message = format!(
                "{range} overlaps {other} of the older AddressPool {whose}: take it out here or there"
            );
            let path = format!("spec.addresses[{i}]");
            Some(Refusal::new(Reason::AddressPoolOverlap, path, message))
        });
        let l2 = pool.spec.l2();
        let gateways: Vec<IpAddr> = l2.iter().flat_map(L2Announcement::gateways).collect();
        let taken = gateways.iter().enumerate().find_map(|(i, gateway)| {
            let whose = self.gateways.get(gateway)?;
            let message = format!(
                "{gateway} is a gateway of the older AddressPool {whose}, whose addresses may have another director: take it out \
                 here or there"
            );
            let path = format!("spec.announce.l2.gateways[{i}]");
            Some(Refusal::new(Reason::AddressPoolOverlap, path, message))
        });
        pool.refusals.extend(conflict.or(taken));
        if !pool.refusals.is_empty() {
            return;
        }
        let own = gateways.into_iter().map(|it| (it, name.to_owned()));
        self.gateways.extend(own);
        for range in &pool.ranges {
            // Those of one pool may overlap: the longest that begins at an address is enough.
            let longer = self.ranges.get(&range.first);
            if longer.is_none_or(|(other, _)| other.last < range.last) {
                let entry = (*range, name.to_owned());
                self.ranges.insert(range.first, entry);
            }
        }
    }

    /// Whether there is such a pool.
    pub(super) fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The number of VIP groups that addresses of a pool are put into; `None`: it is not announced. While a pool is refused
    /// the decision on it before counts.
    pub(super) fn groups(&self, name: &str) -> Option<u8> {
        let pool = self.by_name.get(name)?;
        let groups = if pool.refusals.is_empty() {
            pool.spec.l2().map(|l2| l2.groups)
        } else {
            pool.decided_groups
        };
        groups.map(|groups| groups.clamp(1, MAX_POOL_GROUPS))
    }

    /// The number of VIP groups of a pool, those that only addresses from before are in included.
    fn all_groups(&self, name: &str) -> Option<u8> {
        let groups = self.groups(name)?;
        let known = self.grouped.get(name);
        let highest = known.and_then(|known| known.range(..FIRST_LOCAL_GROUP).next_back());
        Some(highest.map_or(groups, |(number, _)| groups.max(number + 1)))
    }

    /// The first VIP group of a pool that is to be one virtual server's alone, and has no address.
    pub(super) fn free_local_group(&self, name: &str) -> Option<u8> {
        let known = self.grouped.get(name);
        let is_free = |number: &u8| !known.is_some_and(|known| known.contains_key(number));
        local_numbers().find(is_free)
    }

    /// Whether NAT servers can have a gateway that moves with the VIPs of a family of a group.
    pub(super) fn has_gateway(&self, group: &Group, family: IpFamily) -> bool {
        let of_family = |gateway: &IpAddr| IpFamily::of(*gateway) == family;
        let mut gateways = self.gateways.iter();
        group.number == 0 && gateways.any(|(it, pool)| *pool == group.pool && of_family(it))
    }

    /// The VIP group of a pool with the fewest addresses, of equal ones the first.
    pub(super) fn smallest_group(&self, name: &str) -> Option<u8> {
        let known = self.grouped.get(name);
        let size = |number: &u8| known.and_then(|known| known.get(number)).copied();
        (0..self.groups(name)?).min_by_key(|number| size(number).unwrap_or_default())
    }

    /// The pool that has an address.
    pub(super) fn of(&self, address: IpAddr) -> Option<&str> {
        let mut before = self.ranges.range(..=address).rev();
        let (_, (range, name)) = before.next()?;
        if range.contains(address) {
            return Some(name);
        }
        // A range of the same pool may lie within one that began earlier.
        let pool = self.by_name.get(name)?;
        let is_inside = pool.ranges.iter().any(|range| range.contains(address));
        is_inside.then_some(name)
    }

    /// Whether a pool lets a virtual server have an address, and if none does, why.
    pub(super) fn allows(&self, address: IpAddr, server: &ObjectKey) -> Result<&str, String> {
        let Some(name) = self.of(address) else {
            if self.is_empty() {
                return Err(format!(
                    "there is no AddressPool: have one created that has {address}, or named in the chart's value addressPools"
                ));
            }
            return Err(format!(
                "no AddressPool has {address}: ask for one by family, or have it added to a pool that allows namespace {}",
                server.namespace
            ));
        };
        if self.is_allowed(name, server) {
            Ok(name)
        } else {
            Err(format!(
                "AddressPool {name}, which has {address}, does not allow {}: choose an address of another pool, or have it added \
                 to the pool's spec.allow",
                self.who(name, server)
            ))
        }
    }

    fn is_allowed(&self, pool: &str, server: &ObjectKey) -> bool {
        let pool = self.by_name.get(pool);
        let service = self.services.get(server);
        pool.is_some_and(|pool| pool.refusals.is_empty() && self.admits(pool, server, service))
    }

    fn admits(&self, pool: &Pool, server: &ObjectKey, service: Option<&Labels>) -> bool {
        const NONE: &Labels = &Labels::new();
        let labels = self.namespaces.get(&server.namespace).unwrap_or(NONE);
        pool.spec.allows(&server.namespace, labels, service)
    }

    /// Whom a pool does not allow, of a virtual server that it does not: its namespace, or the Service that it is made for.
    fn who(&self, pool: &str, server: &ObjectKey) -> String {
        let pool = self.by_name.get(pool);
        if pool.is_some_and(|pool| self.admits(pool, server, None)) {
            return "a Service with these labels".to_owned();
        }
        format!("namespace {}", server.namespace)
    }

    /// Whether virtual servers of different namespaces may have an address together.
    pub(super) fn is_shared(&self, address: IpAddr) -> bool {
        let pool = self.of(address).and_then(|name| self.by_name.get(name));
        pool.is_some_and(|pool| pool.spec.sharing == AddressSharing::Cluster)
    }

    /// The pools that a virtual server may get an address of a family from, the best first.
    pub(super) fn choose(
        &self,
        name: Option<&str>,
        family: IpFamily,
        server: &ObjectKey,
    ) -> Result<Vec<String>, String> {
        let has = |pool: &Pool| {
            let mut ranges = pool.ranges.iter();
            ranges.any(|range| IpFamily::of(range.first) == family)
        };
        if let Some(name) = name {
            let why = match self.by_name.get(name) {
                None => "does not exist: create it or correct the name".to_owned(),
                Some(pool) if !pool.refusals.is_empty() => {
                    "is refused: correct it as its condition Stalled says".to_owned()
                }
                Some(_) if !self.is_allowed(name, server) => {
                    let who = self.who(name, server);
                    format!(
                        "does not allow {who}: choose another pool, or have it added to the pool's spec.allow"
                    )
                }
                Some(pool) if !has(pool) => {
                    "has no address of this family: choose another pool".to_owned()
                }
                Some(_) => return Ok(vec![name.to_owned()]),
            };
            return Err(format!("AddressPool {name} {why}"));
        }
        let pools = self.by_name.iter();
        let pools = pools.filter(|(name, pool)| {
            pool.spec.auto_assign && has(pool) && self.is_allowed(name, server)
        });
        let mut pools: Vec<(u32, &String)> = pools
            .map(|(name, pool)| (MAX_PRIORITY - pool.spec.priority.min(MAX_PRIORITY), name))
            .collect();
        pools.sort();
        if pools.is_empty() {
            let who = if self.services.contains_key(server) {
                "Services of these labels in namespace"
            } else {
                "namespace"
            };
            return Err(format!(
                "no AddressPool assigns {family} addresses to {who} {}: have one created, or name a pool in addressPoolName",
                server.namespace
            ));
        }
        Ok(pools.into_iter().map(|(_, name)| name.clone()).collect())
    }

    /// The lowest address of a pool that nobody has.
    pub(super) fn find(
        &mut self,
        name: &str,
        family: IpFamily,
        entries: &BTreeMap<IpAddr, Entry>,
        usable: &dyn Usable,
    ) -> Option<IpAddr> {
        let pool = self.by_name.get_mut(name)?;
        let mut tries = 0;
        for (range, free_from) in pool.ranges.iter().zip(&mut pool.free_from) {
            let (first, last) = range.assignable();
            if IpFamily::of(first) != family {
                continue;
            }
            let mut candidate = Some(*free_from);
            let mut is_first = true;
            while let Some(address) = candidate.filter(|address| *address <= last) {
                candidate = next_address(address);
                if entries.contains_key(&address) {
                    continue;
                }
                if std::mem::take(&mut is_first) {
                    *free_from = address;
                }
                if usable.is_free(address) {
                    return Some(address);
                }
                tries += 1;
                if tries == TRIES {
                    return None;
                }
            }
        }
        None
    }

    /// Notes who waits for an address of these pools. Returns why, in words.
    pub(super) fn lacks(&mut self, key: &ObjectKey, pools: &[String], family: IpFamily) -> String {
        for pool in pools {
            let waiting = self.lacking.entry(pool.clone()).or_default();
            waiting.insert(key.clone());
        }
        format!(
            "no {family} address is free in AddressPool {}: give up some, or have addresses added there; what was given up is free \
             a minute later",
            pools.join(", ")
        )
    }

    /// Forgets that somebody waits.
    pub(super) fn give_up(&mut self, key: &ObjectKey) {
        self.lacking.retain(|_, waiting| {
            waiting.remove(key);
            !waiting.is_empty()
        });
    }

    /// Notes that an address is in use.
    pub(super) fn count(&mut self, pool: &str, address: IpAddr) {
        let used = self.used.entry(pool.to_owned()).or_default();
        used.insert(address);
    }

    /// Notes that one address more is in a VIP group.
    pub(super) fn join(&mut self, group: &Group) {
        let groups = self.grouped.entry(group.pool.clone()).or_default();
        let count = groups.entry(group.number).or_default();
        *count += 1;
        self.are_local_changed |= group.is_local() && *count == 1;
    }

    /// Notes that one address less is in a VIP group, if it was in any.
    pub(super) fn leave(&mut self, group: Option<&Group>) {
        let Some(group) = group else {
            return;
        };
        let Group { pool, number } = group;
        let Some(groups) = self.grouped.get_mut(pool) else {
            return;
        };
        if let Some(count) = groups.get_mut(number) {
            *count -= 1;
            if *count == 0 {
                groups.remove(number);
                self.are_local_changed |= group.is_local();
                self.is_local_free |= group.is_local();
            }
        }
        if groups.is_empty() {
            self.grouped.remove(pool);
        }
    }

    /// Notes that it is free.
    pub(super) fn uncount(&mut self, pool: &str, address: IpAddr) {
        crate::sets::remove(&mut self.used, &pool.to_owned(), &address);
        for pool in self.by_name.values_mut() {
            for (range, free_from) in pool.ranges.iter().zip(&mut pool.free_from) {
                let (first, last) = range.assignable();
                if (first..=last).contains(&address) && address < *free_from {
                    *free_from = address;
                }
            }
        }
    }
}

/// The VIP groups in the decision on a pool.
fn decided_groups(pool: &AddressPool) -> Option<u8> {
    let decision = pool.status.as_ref()?.decision.as_ref()?;
    decision.l2.as_ref().map(|l2| l2.groups)
}

const MAX_PRIORITY: u32 = sluice_api::MAX_POOL_PRIORITY;

/// A range that has an address of this one.
fn overlapping<'a>(
    ranges: &'a BTreeMap<IpAddr, (AddressRange, String)>,
    range: &AddressRange,
) -> Option<&'a (AddressRange, String)> {
    let before = ranges.range(..=range.last).next_back();
    let (_, found) = before?;
    found.0.overlaps(range).then_some(found)
}
