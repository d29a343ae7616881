//! Which addresses a virtual server may have as VIPs.
//!
//! A virtual server that is new at a VIP must not take it from anybody else in the cluster. A VIP in a decision stays, whatever
//! others come to claim, unless it has become the address of a node or the cluster IP of a Service: packets for it are theirs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use sluice_api::{DecidedVirtualServer, ObjectKey, Reason};

use super::addresses::{Holder, HolderKind};
use super::admission::{Refusal, not_usable};
use super::ledger::Usable;
use super::world::{Taken, World};

/// Why an address is no VIP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Objection {
    reason: Reason,
    message: String,
}

/// By virtual server, the VIPs of its last decision that cannot stay.
pub(super) type Unusable = BTreeMap<ObjectKey, BTreeMap<IpAddr, Objection>>;

/// Looks at the VIPs of all decisions.
pub(super) fn unusable(world: &World) -> Unusable {
    let mut unusable = Unusable::new();
    for key in world.virtual_servers.keys() {
        for &address in decided(world, key) {
            if let Some(objection) = to_anybody(world.taken(), address) {
                let of_this_one = unusable.entry(key.clone()).or_default();
                of_this_one.insert(address, objection);
            }
        }
    }
    unusable
}

/// The refusals of the VIPs that a spec asks for.
pub(super) fn refusals(
    key: &ObjectKey,
    wanted: &DecidedVirtualServer,
    unusable: &Unusable,
    world: &World,
) -> Vec<Refusal> {
    let known = decided(world, key);
    let addresses = wanted.addresses.iter().enumerate();
    let refusals = addresses.filter_map(|(i, address)| {
        let objection = if known.contains(address) {
            unusable.get(key)?.get(address)?.clone()
        } else {
            to_newcomers(world.taken(), *address)?
        };
        let path = format!("spec.addresses[{i}].ip");
        Some(objection.refusal(path))
    });
    refusals.collect()
}

/// What a virtual server's last decision is withdrawn for.
pub(super) fn withdrawal<'a>(
    key: &ObjectKey,
    unusable: &'a Unusable,
) -> impl Iterator<Item = Refusal> + 'a {
    let objections = unusable.get(key).into_iter().flatten();
    objections.map(|(_, objection)| objection.refusal("status.decision.addresses"))
}

impl Objection {
    fn new(reason: Reason, message: String) -> Self {
        Self { reason, message }
    }

    fn refusal(&self, path: impl Into<String>) -> Refusal {
        Refusal::new(self.reason, path, &self.message)
    }
}

fn decided<'a>(world: &'a World, key: &ObjectKey) -> &'a [IpAddr] {
    let decision = world.decision(key);
    decision.map_or(&[], |decision| &decision.content.addresses)
}

impl Usable for Taken<'_> {
    fn is_free(&self, address: IpAddr) -> bool {
        to_newcomers(*self, address).is_none()
    }

    fn may_stay(&self, address: IpAddr) -> bool {
        to_anybody(*self, address).is_none()
    }
}

/// Holds for whoever has the VIP in a decision, too.
fn to_anybody(taken: Taken<'_>, address: IpAddr) -> Option<Objection> {
    if let Some(what) = not_usable(address) {
        let message = format!(
            "{address} is {what}: give an address that clients reach and that no node has as its own"
        );
        return Some(Objection::new(Reason::AddressNotUsable, message));
    }
    if let Some(node) = taken.node_with(address) {
        return Some(of_node(address, &format!("is an address of node {node}")));
    }
    let holders = taken.addresses.holders(address);
    let stronger = holders.filter(|holder| holder.kind.is_stronger_than_a_decision());
    Some(of_holder(address, stronger.min()?))
}

/// Holds for a virtual server that has the VIP in no decision. One that has it goes on: else whoever may write a Service
/// could take others' VIPs away.
fn to_newcomers(taken: Taken<'_>, address: IpAddr) -> Option<Objection> {
    if let Some(objection) = to_anybody(taken, address) {
        return Some(objection);
    }
    if let Some(node) = taken.node_behind(address) {
        let message = format!(
            "{address} is the gateway of node {node}: give one that no router has, or have it taken out of the AddressPool"
        );
        return Some(Objection::new(Reason::AddressNotUsable, message));
    }
    Some(of_holder(address, taken.addresses.holders(address).min()?))
}

fn of_node(address: IpAddr, holds: &str) -> Objection {
    let message =
        format!("{address} {holds}: give one that no node has, or remove it from that node");
    Objection::new(Reason::VipIsNodeAddress, message)
}

fn of_holder(address: IpAddr, holder: &Holder) -> Objection {
    let remedy = match holder.kind {
        HolderKind::Node => return of_node(address, &holder.to_string()),
        HolderKind::ClusterIp | HolderKind::ServiceCidr | HolderKind::PodCidr => {
            "give an address that clients outside the cluster reach"
        }
        HolderKind::Gateway => {
            "give another one, or have it taken out of the pool's spec.announce.l2.gateways"
        }
        HolderKind::Reserved => {
            "give another one, or have it taken out of the operator's --reserved-addresses"
        }
        HolderKind::Service | HolderKind::LoadBalancer | HolderKind::EndpointSlice => {
            "give another one, or remove it there"
        }
    };
    let message = format!("{address} {holder}: {remedy}");
    Objection::new(Reason::AddressNotUsable, message)
}
