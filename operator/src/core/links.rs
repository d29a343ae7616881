//! Links between objects that depend on each other, so that a change is looked at with all that it concerns, and no more.
//!
//! Objects are linked where the core looks at them together: a virtual server with its pools, with the policies that
//! drive it, and with whoever claims one of its VIP ports, each by its spec and by its decision. Objects that are linked,
//! directly or by way of others, make a *part*. The core's answer for an object depends on its part, on the nodes, and on
//! the Services and EndpointSlices that the part names, on who else has its VIPs, and on nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_api::{
    DecidedEndpoints, DecidedVirtualServer, Decision, EndpointSource, Kind, ObjectKey,
    PoolDecision, Protocol, RealServerPool, RolloutPolicy, VipPort, VirtualServer, pool_label,
};
use sluice_planner::{Slice, SliceOwner};

use crate::sets::remove;

/// An object whose status the operator decides.
pub type Object = (Kind, ObjectKey);

/// A thing that linked objects have in common.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum End {
    /// A virtual server, there or not.
    VirtualServer(ObjectKey),
    /// A pool, there or not.
    Pool(ObjectKey),
    /// A VIP port.
    VipPort(VipPort),
    /// A Service whose endpoints are servers.
    Service(ObjectKey),
    /// The owner of EndpointSlices.
    Owner(SliceOwner),
    /// A revision that nodes are to acknowledge.
    Revision(Kind, u64),
}

impl End {
    /// Whether the core looks together at all that have this in common.
    fn joins(&self) -> bool {
        matches!(
            self,
            Self::VirtualServer(_) | Self::Pool(_) | Self::VipPort(_)
        )
    }
}

/// Objects by what they have in common.
#[derive(Clone, Debug, Default)]
pub struct Links {
    objects: BTreeMap<Object, BTreeSet<End>>,
    ends: BTreeMap<End, BTreeSet<Object>>,
    /// EndpointSlices by their owners.
    slices: BTreeMap<SliceOwner, BTreeSet<ObjectKey>>,
}

impl Links {
    /// Takes a virtual server as it is now, with the addresses that it has and the decisions that may be in force. Returns
    /// what it is no longer linked to.
    pub fn virtual_server(
        &mut self,
        key: &ObjectKey,
        object: Option<&VirtualServer>,
        addresses: Vec<IpAddr>,
        decisions: &[&Decision],
    ) -> BTreeSet<Object> {
        let mut ends = BTreeSet::new();
        if let Some(object) = object {
            ends.insert(End::VirtualServer(key.clone()));
            let spec = &object.spec;
            ends.extend(
                spec.pools
                    .iter()
                    .map(|pool| End::Pool(key.sibling(&pool.name))),
            );
            let further = spec.further_pool().map(|name| key.sibling(name));
            ends.extend(further.map(End::Pool));
            let wanted = DecidedVirtualServer::of_spec(spec, addresses);
            ends.extend(wanted.vip_ports().map(End::VipPort));
        }
        for decision in decisions {
            let pools = decision.content.pools.iter();
            ends.extend(pools.map(|pool| End::Pool(key.sibling(&pool.name))));
            ends.extend(decision.content.vip_ports().map(End::VipPort));
            ends.insert(End::Revision(Kind::VirtualServer, decision.revision));
        }
        self.put((Kind::VirtualServer, key.clone()), ends)
    }

    /// Takes a pool as it is now, with the decisions that may be in force: one may outlive the pool.
    /// Returns what it is no longer linked to.
    pub fn pool(
        &mut self,
        key: &ObjectKey,
        object: Option<&RealServerPool>,
        decisions: &[&PoolDecision],
    ) -> BTreeSet<Object> {
        let mut ends = BTreeSet::new();
        if let Some(object) = object {
            ends.insert(End::Pool(key.clone()));
            let servers = &object.spec.servers;
            if let Some(name) = &servers.service_name {
                ends.insert(End::Service(key.sibling(name)));
                ends.insert(End::Owner(owner(key, EndpointSource::Service, name)));
            }
            if servers.selector.is_some() {
                let label = pool_label(&key.name);
                ends.insert(End::Owner(owner(key, EndpointSource::Pods, &label)));
            }
        }
        for decision in decisions {
            ends.insert(End::Pool(key.clone()));
            if let Some(DecidedEndpoints { source, name, .. }) = &decision.content.endpoints {
                ends.insert(End::Owner(owner(key, *source, name)));
            }
            ends.insert(End::Revision(Kind::RealServerPool, decision.revision));
        }
        self.put((Kind::RealServerPool, key.clone()), ends)
    }

    /// Takes a policy as it is now. Returns what it is no longer linked to.
    pub fn policy(&mut self, key: &ObjectKey, object: Option<&RolloutPolicy>) -> BTreeSet<Object> {
        let mut ends = BTreeSet::new();
        if let Some(object) = object {
            let target = &object.spec.virtual_server_name;
            ends.insert(End::VirtualServer(key.sibling(target)));
            let run = object
                .status
                .as_ref()
                .and_then(|status| status.run.as_ref());
            let run = run.map(|run| End::VirtualServer(key.sibling(&run.virtual_server_name)));
            ends.extend(run);
        }
        self.put((Kind::RolloutPolicy, key.clone()), ends)
    }

    /// The objects that a Service's coming or going concerns.
    pub fn with_service(&self, key: &ObjectKey) -> &BTreeSet<Object> {
        self.with(&End::Service(key.clone()))
    }

    /// Takes an EndpointSlice. Returns what that concerns.
    pub fn slice(
        &mut self,
        key: &ObjectKey,
        before: Option<&Slice>,
        now: Option<&Slice>,
    ) -> BTreeSet<Object> {
        if let Some(slice) = before {
            remove(&mut self.slices, &slice.owner, key);
        }
        if let Some(slice) = now {
            let slices = self.slices.entry(slice.owner.clone()).or_default();
            slices.insert(key.clone());
        }
        let owners = before.into_iter().chain(now).map(|slice| &slice.owner);
        owners
            .flat_map(|owner| self.with(&End::Owner(owner.clone())).iter().cloned())
            .collect()
    }

    /// The pools whose servers come, or may come, from the slices of this owner.
    pub fn pools_of(&self, owner: &SliceOwner) -> impl Iterator<Item = &ObjectKey> {
        let objects = self.with(&End::Owner(owner.clone()));
        objects.iter().map(|(_, key)| key)
    }

    /// The EndpointSlices whose labels make them those of this pool's pods.
    pub fn slices_of_pods(&self, pool: &ObjectKey) -> impl Iterator<Item = &ObjectKey> {
        let owner = owner(pool, EndpointSource::Pods, &pool_label(&pool.name));
        self.slices.get(&owner).into_iter().flatten()
    }

    /// The objects whose decision has a revision above `low` and up to `high`.
    pub fn revised(&self, kind: Kind, low: u64, high: u64) -> impl Iterator<Item = &Object> {
        let ends = (low < high).then(|| {
            let (first, last) = (End::Revision(kind, low + 1), End::Revision(kind, high));
            self.ends.range(first..=last)
        });
        ends.into_iter().flatten().flat_map(|(_, objects)| objects)
    }

    /// Whether anything is decided that nodes are to acknowledge.
    pub fn has_decisions(&self) -> bool {
        let kinds = [Kind::VirtualServer, Kind::RealServerPool];
        let mut decided = kinds
            .into_iter()
            .flat_map(|kind| self.revised(kind, 0, u64::MAX));
        decided.next().is_some()
    }

    /// All objects that there are, or of which a decision is left.
    pub fn all(&self) -> BTreeSet<Object> {
        self.objects.keys().cloned().collect()
    }

    /// All policies that there are.
    pub(super) fn policies(&self) -> impl Iterator<Item = Object> {
        let objects = self.objects.keys();
        let policies = objects.filter(|(kind, _)| *kind == Kind::RolloutPolicy);
        policies.cloned()
    }

    /// Divides these objects, with all that is linked to them, into parts.
    pub fn parts(&self, roots: &BTreeSet<Object>) -> Vec<BTreeSet<Object>> {
        let mut seen = BTreeSet::new();
        let mut parts = Vec::new();
        for root in roots {
            if seen.contains(root) {
                continue;
            }
            let part = self.part(root);
            seen.extend(part.iter().cloned());
            parts.push(part);
        }
        parts
    }

    fn part(&self, root: &Object) -> BTreeSet<Object> {
        let mut part = BTreeSet::from([root.clone()]);
        let mut ends: BTreeSet<&End> = BTreeSet::new();
        let mut left = vec![root];
        while let Some(object) = left.pop() {
            let own = self.objects.get(object).into_iter().flatten();
            for end in own.filter(|end| end.joins()) {
                if !ends.insert(end) {
                    continue;
                }
                for other in self.with(end) {
                    if part.insert(other.clone()) {
                        left.push(other);
                    }
                }
            }
        }
        part
    }

    /// The Services that a part names.
    pub(super) fn services_of<'a>(
        &'a self,
        part: &'a BTreeSet<Object>,
    ) -> impl Iterator<Item = &'a ObjectKey> {
        self.ends_of(part).filter_map(|end| match end {
            End::Service(key) => Some(key),
            _ => None,
        })
    }

    /// The EndpointSlices of a part's pools.
    pub(super) fn slices_of<'a>(
        &'a self,
        part: &'a BTreeSet<Object>,
    ) -> impl Iterator<Item = &'a ObjectKey> {
        let slices = self.ends_of(part).filter_map(|end| match end {
            End::Owner(owner) => self.slices.get(owner),
            _ => None,
        });
        slices.flatten()
    }

    fn ends_of<'a>(&'a self, part: &'a BTreeSet<Object>) -> impl Iterator<Item = &'a End> {
        part.iter()
            .filter_map(|object| self.objects.get(object))
            .flatten()
    }

    /// The virtual servers that claim a port of an address of this block.
    pub fn within(&self, block: IpNet) -> impl Iterator<Item = &Object> {
        let first = End::VipPort(VipPort {
            address: block.network(),
            port: 0,
            protocol: Protocol::Tcp,
        });
        let ends = self.ends.range(first..);
        let ends = ends.take_while(
            move |(end, _)| matches!(end, End::VipPort(vip) if block.contains(&vip.address)),
        );
        ends.flat_map(|(_, objects)| objects)
    }

    fn with(&self, end: &End) -> &BTreeSet<Object> {
        const NONE: &BTreeSet<Object> = &BTreeSet::new();
        self.ends.get(end).unwrap_or(NONE)
    }

    /// Returns what was linked to the object by what is gone.
    fn put(&mut self, object: Object, ends: BTreeSet<End>) -> BTreeSet<Object> {
        let before = self.objects.remove(&object).unwrap_or_default();
        let mut concerned = BTreeSet::new();
        for end in before.difference(&ends) {
            remove(&mut self.ends, end, &object);
            if end.joins() {
                concerned.extend(self.with(end).iter().cloned());
            }
        }
        for end in ends.difference(&before) {
            self.ends
                .entry(end.clone())
                .or_default()
                .insert(object.clone());
        }
        if !ends.is_empty() {
            self.objects.insert(object, ends);
        }
        concerned
    }
}

fn owner(key: &ObjectKey, source: EndpointSource, name: &str) -> SliceOwner {
    SliceOwner {
        namespace: key.namespace.clone(),
        source,
        name: name.to_owned(),
    }
}
