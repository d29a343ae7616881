//! Services of type LoadBalancer: each is served by one virtual server and one pool that the operator makes for it, and owns.
//!
//! ```text
//! Service ──► wanted ──► VirtualServer, RealServerPool ──► decision ──► directors
//!    ▲                                                        │             │
//!    └──────────── status: addresses, condition ◄─────────────┴── holder ◄──┘
//! ```
//!
//! The objects name the Service as their owner, so they go with it. An address stands in the Service's status once a director
//! answers for it, and stays there while no director does.

mod facts;
mod status;
mod wanted;
mod write;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_api::{
    AddressGroup, Decision, GroupRole, IpFamily, Kind, ObjectKey, UnheldReason, VirtualServer,
    name_for_service, service_of_name,
};

pub(super) use facts::Balanced;
use wanted::Offers;
pub(super) use write::Services;
use write::maker;

use super::facts::ServiceFacts;
use super::index::{Index, of_namespace};
use crate::core::Object;

/// VIP groups that nobody holds, and why where that is known.
type UnheldGroups = BTreeMap<String, Option<UnheldReason>>;

/// What is known of Services beside themselves.
#[derive(Debug, Default)]
pub(super) struct Concerns {
    /// Whether Services without a class are served.
    pub(super) without_class: bool,
    /// Services that are to be looked at.
    dirty: BTreeSet<ObjectKey>,
    /// Those with an address that no director answers for yet.
    unheld: BTreeSet<ObjectKey>,
    /// The VIP groups that nobody holds, as live directors say, and why.
    unheld_groups: UnheldGroups,
    /// Services by the one whose addresses they share.
    sharing: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
}

impl Concerns {
    fn shares(&mut self, key: &ObjectKey, facts: Option<&ServiceFacts>, is_now: bool) {
        let with = |facts: &ServiceFacts| facts.balanced.as_ref()?.wishes.share_with.clone();
        let Some(other) = facts.and_then(with) else {
            return;
        };
        let other = key.sibling(&other);
        let sharing = self.sharing.entry(other.clone()).or_default();
        if is_now {
            sharing.insert(key.clone());
        } else {
            sharing.remove(key);
        }
        if sharing.is_empty() {
            self.sharing.remove(&other);
        }
    }
}

impl Index {
    /// Takes that a Service has changed.
    pub(super) fn balanced_changed(&mut self, key: &ObjectKey, before: Option<&ServiceFacts>) {
        let now = self.services.objects.get(key);
        self.concerns.shares(key, before, false);
        self.concerns.shares(key, now, true);
        let is_balanced = |facts: &ServiceFacts| facts.balanced.is_some();
        if before.is_some_and(is_balanced) || now.is_some_and(is_balanced) {
            self.concerns.dirty.insert(key.clone());
        }
        let served = now.filter(|facts| self.serves(facts));
        let labels = served.and_then(|facts| Some(facts.balanced.as_ref()?.labels.clone()));
        let made = made_for(key);
        if self.ledger.set_service(&made, labels.as_ref()) {
            self.dirty.extend([(Kind::VirtualServer, made)]);
        }
    }

    /// Takes that an object has changed, which may be one that was made for a Service.
    pub(super) fn owned_changed(&mut self, (kind, key): &Object) {
        if !matches!(kind, Kind::VirtualServer | Kind::RealServerPool) {
            return;
        }
        if let Some(service) = service_of_name(&key.name) {
            let service = key.sibling(service);
            let sharing = self.concerns.sharing.get(&service).into_iter().flatten();
            self.concerns.dirty.extend(sharing.cloned());
            self.concerns.dirty.insert(service);
        }
    }

    /// Takes that nodes have reported something else.
    pub(super) fn reports_changed(&mut self) {
        let unheld = std::mem::take(&mut self.concerns.unheld);
        self.concerns.dirty.extend(unheld);
        let groups = self.unheld_groups();
        if groups == self.concerns.unheld_groups {
            return;
        }
        let before = std::mem::replace(&mut self.concerns.unheld_groups, groups);
        let now = &self.concerns.unheld_groups;
        let is_changed = |of: &AddressGroup| before.get(&of.group) != now.get(&of.group);
        let services = self
            .services
            .objects
            .iter()
            .filter(|(_, facts)| self.serves(facts));
        let concerned = services.filter(|(key, _)| {
            let decision = decision(self.virtual_server_of(key));
            decision.is_some_and(|decision| decision.content.groups.iter().any(is_changed))
        });
        let concerned: Vec<ObjectKey> = concerned.map(|(key, _)| key.clone()).collect();
        self.concerns.dirty.extend(concerned);
    }

    fn unheld_groups(&self) -> UnheldGroups {
        let live = || self.known_nodes.values().filter(|node| node.live);
        let mut groups = UnheldGroups::new();
        for unheld in live().flat_map(|node| &node.status.unheld_groups) {
            let reason = groups.entry(unheld.name.clone()).or_default();
            *reason = reason.or(unheld.reason);
        }
        if !groups.is_empty() {
            let held = live().flat_map(|node| &node.status.groups);
            for group in held.filter(|group| group.role == GroupRole::Holder) {
                groups.remove(&group.name);
            }
        }
        groups
    }

    /// An address of a virtual server for which nobody answers, and why where that is known.
    fn unheld(&self, object: Option<&VirtualServer>) -> Option<(IpAddr, Option<UnheldReason>)> {
        let mut groups = decision(object)?.content.groups.iter();
        groups.find_map(|AddressGroup { address, group }| {
            let reason = self.concerns.unheld_groups.get(group)?;
            Some((*address, *reason))
        })
    }

    /// Takes that address pools give something else, to this namespace or to all.
    pub(super) fn offers_changed(&mut self, namespace: Option<&str>) {
        let services = &self.services.objects;
        let balanced = |(key, facts): (&ObjectKey, &ServiceFacts)| {
            facts.balanced.is_some().then(|| key.clone())
        };
        let dirty = &mut self.concerns.dirty;
        match namespace {
            Some(name) => dirty.extend(of_namespace(services, name).filter_map(balanced)),
            None => dirty.extend(services.iter().filter_map(balanced)),
        }
    }

    /// Whether Sluice serves this Service.
    pub(super) fn serves(&self, facts: &ServiceFacts) -> bool {
        let balanced = facts.balanced.as_ref();
        balanced.is_some_and(|balanced| balanced.is_ours(self.concerns.without_class))
    }

    /// The virtual server that was made for a Service.
    fn virtual_server_of(&self, service: &ObjectKey) -> Option<&VirtualServer> {
        let object = self.virtual_servers.objects.get(&made_for(service));
        object.filter(|object| maker(&object.metadata, service).is_some())
    }

    /// Whether an entry of this address in a Service's status can only be ours. `decided` are those of its virtual server.
    fn is_own(&self, decided: &[IpAddr], address: IpAddr) -> bool {
        decided.contains(&address) || self.ledger.has_pool(address)
    }

    /// The decided addresses for which a director answers, or, where nobody announces them, which all directors serve.
    fn held(&self, object: &VirtualServer) -> Vec<IpAddr> {
        let Some(status) = &object.status else {
            return Vec::new();
        };
        let Some(decision) = &status.decision else {
            return Vec::new();
        };
        let acknowledged = status.acknowledged.as_ref();
        let is_everywhere = acknowledged.is_some_and(|acknowledged| acknowledged.revision > 0);
        let is_held = |address: &&IpAddr| {
            let mut groups = decision.content.groups.iter();
            match groups.find(|group| group.address == **address) {
                Some(group) => self.has_holder(group, decision.revision),
                None => is_everywhere,
            }
        };
        let addresses = decision.content.addresses.iter();
        addresses.filter(is_held).copied().collect()
    }

    /// Whether a director holds the VIP group of an address, has in force what was decided up to this revision, and answers for the
    /// address: it does not ask any more whether some other host has it, and none does.
    fn has_holder(&self, of: &AddressGroup, revision: u64) -> bool {
        self.known_nodes.values().any(|node| {
            let status = &node.status;
            let mut groups = status.groups.iter();
            let is_holder =
                groups.any(|group| group.name == of.group && group.role == GroupRole::Holder);
            let is_new = status.new_addresses.contains(&of.address);
            let is_in_force = status.acknowledged_revision >= revision;
            node.live && is_holder && is_in_force && !is_new
        })
    }
}

/// What the virtual server, and the pool, of a Service are called.
fn made_for(service: &ObjectKey) -> ObjectKey {
    service.sibling(&name_for_service(&service.name))
}

/// The decision on a virtual server.
fn decision(object: Option<&VirtualServer>) -> Option<&Decision> {
    object?.status.as_ref()?.decision.as_ref()
}

/// The addresses in the decision on a virtual server; none if there is none.
fn decided(object: Option<&VirtualServer>) -> &[IpAddr] {
    decision(object).map_or(&[], |decision| &decision.content.addresses)
}

/// What a namespace may have.
struct OffersTo<'a> {
    index: &'a Index,
    service: &'a ObjectKey,
}

impl Offers for OffersTo<'_> {
    fn has(&self, family: IpFamily, pool: Option<&str>) -> bool {
        let server = made_for(self.service);
        self.index.ledger.offers(&server, family, pool)
    }

    fn addresses_of(&self, service: &str) -> &[IpAddr] {
        let service = self.service.sibling(service);
        decided(self.index.virtual_server_of(&service))
    }
}
