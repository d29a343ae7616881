//! The ledger: which virtual server has which addresses. No I/O, no clock.
//!
//! Only addresses of pools are in it. One has one or more owners, keeps the pool that it was taken from, and *rests* once its last owner has let it go: for a
//! while nobody gets it but its last owner, since clients, routers and switches still know it as that one's. A virtual server
//! keeps what it has as long as it asks for it, whatever happens to the pools.
//!
//! An address of a pool that is announced is in a *VIP group* of that pool, and stays in it as long as the ledger knows the
//! address; see [`groups`].
//!
//! The decisions say the same of the addresses in force, and win where the ledger was lost. What stands written ([`Ledger::text`])
//! is what a virtual server gets back that is made anew, and what rests.

mod groups;
mod pools;
mod text;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_api::{
    AddressGroup, ExternalTrafficPolicy, IpFamily, ObjectKey, Reason, VirtualServer,
    VirtualServerAddress, VirtualServerSpec,
};

use groups::Group;
pub use groups::Named;
pub use pools::PoolState;
pub use text::{BadText, SHARDS};

use super::admission::Refusal;
use super::world::World;
use pools::Pools;

/// How long an address rests.
pub const REST_MS: u64 = 60_000;

/// What a virtual server has of what it asks for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Assignment {
    addresses: Vec<IpAddr>,
    /// Why it does not have the others.
    pub(super) refusals: Vec<Refusal>,
    kept: Vec<IpAddr>,
    /// The VIP groups of its addresses, and of those that its decision names.
    groups: Vec<AddressGroup>,
    /// Its addresses that no gateway of NAT servers moves with, though they are announced, with their pools.
    without_gateway: Vec<(IpAddr, String)>,
}

impl Assignment {
    /// Its addresses, in the order of its spec.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Those of its addresses that no pool would give it now.
    pub(super) fn kept(&self) -> &[IpAddr] {
        &self.kept
    }

    /// Its addresses that no gateway of NAT servers moves with, though they are announced, with their pools.
    pub(super) fn without_gateway(&self) -> &[(IpAddr, String)] {
        &self.without_gateway
    }
}

/// Whether an address can be a VIP, to somebody who is new at it, and to somebody who has it.
pub trait Usable {
    /// To a newcomer.
    fn is_free(&self, address: IpAddr) -> bool;
    /// To whoever has it.
    fn may_stay(&self, address: IpAddr) -> bool;
}

/// What virtual servers may name while there is no pool at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WithoutPools {
    /// Any address: whoever writes the directory of standalone mode owns the hosts.
    #[default]
    AnyAddress,
    /// None: in a cluster those who own a namespace get what its administrator allows.
    NoAddress,
}

/// Who has an address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Entry {
    /// The pool that it was taken from.
    pool: String,
    /// Its VIP group. It stays while the pool is not announced.
    group: Option<Group>,
    /// Whether it was looked at by an owner: before, decisions know better which group it is in.
    is_placed: bool,
    owners: BTreeSet<ObjectKey>,
    /// The last owner, and when it has rested, while there is no owner.
    rest: Option<(ObjectKey, u64)>,
}

/// Which virtual server has which addresses, and what the pools have.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Ledger {
    without_pools: WithoutPools,
    pools: Pools,
    entries: BTreeMap<IpAddr, Entry>,
    /// The addresses that rest, by when they have rested.
    resting: BTreeSet<(u64, IpAddr)>,
    /// Which addresses an owner has, or had last.
    of_owner: BTreeMap<ObjectKey, BTreeSet<IpAddr>>,
    assignments: BTreeMap<ObjectKey, Assignment>,
    /// The virtual servers that did not get all that they ask for.
    waiting: BTreeSet<ObjectKey>,
    /// Shards whose text has changed since it was last asked for.
    changed: BTreeSet<u8>,
    now_ms: u64,
}

impl Ledger {
    /// A ledger without pools, addresses and virtual servers.
    pub fn new(without_pools: WithoutPools) -> Self {
        Self {
            without_pools,
            ..Self::default()
        }
    }

    /// What a virtual server has, once it was asked for.
    pub fn assignment(&self, key: &ObjectKey) -> Option<&Assignment> {
        self.assignments.get(key)
    }

    /// The virtual servers that did not get all that they ask for.
    pub fn waiting(&self) -> impl Iterator<Item = &ObjectKey> {
        self.waiting.iter()
    }

    /// Ends the rest of addresses whose time has come. Returns whether there were any, or whether a VIP group that was one virtual
    /// server's alone has become free.
    pub fn tick(&mut self, now_ms: u64) -> bool {
        self.now_ms = now_ms;
        let mut is_any_over = false;
        while let Some(&(until_ms, address)) = self.resting.first()
            && until_ms <= now_ms
        {
            self.resting.pop_first();
            self.forget(address);
            is_any_over = true;
        }
        std::mem::take(&mut self.pools.is_local_free) || is_any_over
    }

    /// Takes what a virtual server asks for now, and what its decision names; `None`: it is gone. Returns whether it has
    /// something else than before.
    pub fn ask(
        &mut self,
        key: &ObjectKey,
        spec: Option<&VirtualServerSpec>,
        decided: &[IpAddr],
        usable: &dyn Usable,
    ) -> bool {
        let Some(spec) = spec else {
            return self.release(key);
        };
        let mut assignment = Assignment::default();
        self.pools.give_up(key);
        for (i, request) in spec.addresses.iter().enumerate() {
            let answer = match (request.certain(), request.family) {
                (Some(address), _) => self.certain(key, i, address, decided, spec),
                (None, Some(family)) => self.any(key, i, request, family, decided, usable),
                // The rules of the schema refuse it.
                (None, None) => continue,
            };
            match answer {
                Ok(address) => assignment.addresses.push(address),
                Err(refusal) => assignment.refusals.push(refusal),
            }
        }
        let wanted = assignment.addresses.iter().chain(decided);
        let wanted: BTreeSet<IpAddr> = wanted.copied().collect();
        self.hold(key, &wanted);
        for &address in &wanted {
            let placed = self.place(key, address, spec.external_traffic_policy);
            // One that only the last decision names is about to go.
            let refusal = placed.err();
            let refusal = refusal.filter(|_| assignment.addresses.contains(&address));
            assignment.refusals.extend(refusal);
        }
        assignment.kept = self.kept(key, &wanted);
        assignment.groups = self.groups(&wanted);
        assignment.without_gateway = self.without_gateway(&assignment.addresses);
        if assignment.refusals.is_empty() {
            self.waiting.remove(key);
        } else {
            self.waiting.insert(key.clone());
        }
        let before = self.assignments.insert(key.clone(), assignment);
        before.as_ref() != self.assignments.get(key)
    }

    /// Asks for several: first for those with a decision, then for those that were made first. Nobody gets what is in a decision
    /// of another one of them. `object` has a virtual server,
    /// `None` if it is gone, and what its decisions name. Returns those that have something else than before.
    pub fn ask_all<'a>(
        &mut self,
        keys: impl IntoIterator<Item = ObjectKey>,
        object: impl Fn(&ObjectKey) -> (Option<&'a VirtualServer>, Named),
        usable: &dyn Usable,
    ) -> Vec<ObjectKey> {
        let mut turns: Vec<_> = keys
            .into_iter()
            .map(|key| {
                let (object, decided) = object(&key);
                for &address in object.iter().flat_map(|_| &decided.addresses) {
                    self.take(&key, address);
                }
                for group in object.iter().flat_map(|_| &decided.groups) {
                    self.adopt(&key, group);
                }
                let made = object.and_then(|it| it.metadata.creation_timestamp.clone());
                (object.is_some(), decided.addresses.is_empty(), made, key)
            })
            .collect();
        turns.sort();
        turns.retain(|(.., key)| {
            let (object, decided) = object(key);
            let spec = object.map(|object| &object.spec);
            self.ask(key, spec, &decided.addresses, usable)
        });
        turns.into_iter().map(|(.., key)| key).collect()
    }

    /// Gives all virtual servers of a world their addresses, and lets go what others had.
    pub fn assign(&mut self, world: &mut World) {
        let servers = &world.virtual_servers;
        self.retain(|key| servers.contains_key(key));
        let object = |key: &ObjectKey| (servers.get(key), Named::by(world.decision(key)));
        self.ask_all(servers.keys().cloned(), object, &world.taken());
        let assigned = servers.keys().filter_map(|key| {
            let assignment = self.assignment(key)?;
            Some((key.clone(), assignment.clone()))
        });
        world.assigned = assigned.collect();
    }

    /// Lets go what virtual servers have that are not there.
    pub fn retain(&mut self, is_there: impl Fn(&ObjectKey) -> bool) {
        let known = self.of_owner.keys().chain(self.assignments.keys());
        let gone: BTreeSet<ObjectKey> = known.filter(|key| !is_there(key)).cloned().collect();
        for key in gone {
            self.release(&key);
        }
    }

    /// Lets go all that a virtual server has. Returns whether it had anything.
    fn release(&mut self, key: &ObjectKey) -> bool {
        self.pools.give_up(key);
        self.hold(key, &BTreeSet::new());
        self.waiting.remove(key);
        self.assignments.remove(key).is_some()
    }

    /// A certain address. Whoever has it in a decision keeps it.
    fn certain(
        &self,
        key: &ObjectKey,
        index: usize,
        address: IpAddr,
        decided: &[IpAddr],
        spec: &VirtualServerSpec,
    ) -> Result<IpAddr, Refusal> {
        if decided.contains(&address) {
            return Ok(address);
        }
        let path = format!("spec.addresses[{index}].ip");
        if self.judges() {
            self.pools
                .allows(address, key)
                .map_err(|why| Refusal::new(Reason::AddressNotAllowed, path.as_str(), why))?;
        }
        match self.other(key, address, spec.external_traffic_policy) {
            None => Ok(address),
            Some(why) => Err(Refusal::new(Reason::AddressConflict, path, why)),
        }
    }

    /// Any address of a family.
    fn any(
        &mut self,
        key: &ObjectKey,
        index: usize,
        request: &VirtualServerAddress,
        family: IpFamily,
        decided: &[IpAddr],
        usable: &dyn Usable,
    ) -> Result<IpAddr, Refusal> {
        let name = request.address_pool_name.as_deref();
        if let Some(address) = self.own(key, name, family, decided, usable) {
            return Ok(address);
        }
        let path = format!("spec.addresses[{index}]");
        let pools = self.pools.choose(name, family, key);
        let pools =
            pools.map_err(|why| Refusal::new(Reason::AddressNotAllowed, path.as_str(), why))?;
        for pool in &pools {
            if let Some(address) = self.pools.find(pool, family, &self.entries, usable) {
                return Ok(address);
            }
        }
        let why = self.pools.lacks(key, &pools, family);
        Err(Refusal::new(Reason::NoFreeAddress, path, why))
    }

    /// The address of a family that a virtual server has already, or had last.
    fn own(
        &self,
        key: &ObjectKey,
        pool: Option<&str>,
        family: IpFamily,
        decided: &[IpAddr],
        usable: &dyn Usable,
    ) -> Option<IpAddr> {
        let known = self.of_owner.get(key).into_iter().flatten();
        let mut known = decided.iter().chain(known).copied();
        known.find(|address| {
            let entry = self.entries.get(address);
            let from = entry.map(|entry| entry.pool.as_str());
            let is_from = |pool| from.or_else(|| self.pools.of(*address)) == Some(pool);
            // What rests is given back only if it would be given at all.
            let is_held = decided.contains(address)
                || entry.is_some_and(|entry| entry.owners.contains(key))
                || self.pools.allows(*address, key).is_ok() && usable.is_free(*address);
            IpFamily::of(*address) == family
                && pool.is_none_or(is_from)
                && is_held
                && usable.may_stay(*address)
        })
    }

    /// Whether pools decide on addresses.
    fn judges(&self) -> bool {
        self.without_pools == WithoutPools::NoAddress || !self.pools.is_empty()
    }

    /// Those of a virtual server's addresses that no pool would give it now.
    fn kept(&self, key: &ObjectKey, addresses: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        if !self.judges() {
            return Vec::new();
        }
        let kept = addresses.iter().copied();
        kept.filter(|address| self.pools.allows(*address, key).is_err())
            .collect()
    }

    /// Who else has the address, in words, if it cannot be shared.
    fn other(
        &self,
        key: &ObjectKey,
        address: IpAddr,
        policy: ExternalTrafficPolicy,
    ) -> Option<String> {
        let entry = self.entries.get(&address)?;
        let shares =
            |other: &ObjectKey| other.namespace == key.namespace || self.pools.is_shared(address);
        if let Some((last, _)) = &entry.rest {
            let why = format!(
                "{address} was that of VirtualServer {last} until a moment ago, and is free in a minute at the latest"
            );
            return (last != key && !shares(last)).then_some(why);
        }
        let is_local = policy == ExternalTrafficPolicy::Local
            || entry.group.as_ref().is_some_and(Group::is_local);
        let mut others = entry.owners.iter().filter(|other| *other != key);
        if is_local && let Some(other) = others.next() {
            return Some(format!(
                "{address} is held by VirtualServer {other}, and the address of a virtual server with externalTrafficPolicy: Local \
                 is not shared: choose another address"
            ));
        }
        let other = entry.owners.iter().find(|other| !shares(other))?;
        Some(format!(
            "{address} is held by VirtualServer {other} of another namespace: choose another address, or have the AddressPool \
             say sharing: Cluster"
        ))
    }

    /// Makes these the addresses of an owner, and no others.
    fn hold(&mut self, key: &ObjectKey, wanted: &BTreeSet<IpAddr>) {
        for &address in wanted {
            self.take(key, address);
        }
        let known = self.of_owner.get(key).into_iter().flatten();
        let gone: Vec<IpAddr> = known
            .copied()
            .filter(|address| !wanted.contains(address))
            .collect();
        for address in gone {
            self.let_go(key, address);
        }
    }

    fn take(&mut self, key: &ObjectKey, address: IpAddr) {
        let pool = self.pools.of(address).map(str::to_owned);
        if !self.entries.contains_key(&address) && pool.is_none() {
            return;
        }
        let entry = self.entries.entry(address).or_default();
        if entry.owners.contains(key) {
            return;
        }
        let is_nobodys = entry.owners.is_empty();
        entry.owners.insert(key.clone());
        let rested = entry.rest.take();
        if let Some(pool) = pool.filter(|pool| is_nobodys && *pool != entry.pool) {
            self.move_to(address, pool);
        }
        self.of_owner
            .entry(key.clone())
            .or_default()
            .insert(address);
        if let Some((last, until_ms)) = rested {
            self.resting.remove(&(until_ms, address));
            if last != *key {
                self.disown(&last, address);
            }
        }
        self.changed.insert(text::shard(address));
    }

    /// Makes a known address one of this pool, in no group yet.
    fn move_to(&mut self, address: IpAddr, pool: String) {
        if let Some(entry) = self.entries.get_mut(&address) {
            self.pools.uncount(&entry.pool, address);
            self.pools.count(&pool, address);
            self.pools.leave(entry.group.take().as_ref());
            entry.pool = pool;
        }
    }

    fn let_go(&mut self, key: &ObjectKey, address: IpAddr) {
        let until_ms = self.now_ms + REST_MS;
        let Some(entry) = self.entries.get_mut(&address) else {
            return;
        };
        if !entry.owners.remove(key) {
            return;
        }
        self.changed.insert(text::shard(address));
        if entry.owners.is_empty() {
            entry.rest = Some((key.clone(), until_ms));
            self.resting.insert((until_ms, address));
        } else {
            self.disown(key, address);
        }
    }

    fn forget(&mut self, address: IpAddr) {
        if let Some(entry) = self.entries.remove(&address) {
            self.pools.uncount(&entry.pool, address);
            self.pools.leave(entry.group.as_ref());
            if let Some((last, _)) = entry.rest {
                self.disown(&last, address);
            }
        }
        self.changed.insert(text::shard(address));
    }

    fn disown(&mut self, key: &ObjectKey, address: IpAddr) {
        crate::sets::remove(&mut self.of_owner, key, &address);
    }
}
