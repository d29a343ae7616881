//! The core on what changed alone: cost follows the change.

use std::collections::{BTreeMap, BTreeSet};

use sluice_api::{ExceptionKind, Kind, LoadBalancerNodeStatus, ObjectKey, Time};

use super::links::{Links, Object};
use super::reconcile::reconcile;
use super::world::{Cluster, Node, Outcome, Standing, World};

/// The objects that the core has to decide anew.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Dirty {
    /// These objects, and what is linked to them.
    Objects(BTreeSet<Object>),
    /// All objects.
    All,
}

impl Default for Dirty {
    fn default() -> Self {
        Self::Objects(BTreeSet::new())
    }
}

impl Dirty {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds objects.
    pub fn extend(&mut self, objects: impl IntoIterator<Item = Object>) {
        if let Self::Objects(known) = self {
            known.extend(objects);
        }
    }

    /// Adds what a node's report, its coming or its going concerns: decisions that it acknowledges or no longer does,
    /// and the objects that it names as exceptions. Whatever else the core reads of a node concerns all objects, as whether its
    /// programs are attached does.
    pub fn node_changed(&mut self, links: &Links, before: Option<&Node>, now: Option<&Node>) {
        let (Some(before), Some(now)) = (before, now) else {
            *self = Self::All;
            return;
        };
        let rest = |node: &Node| {
            let Node {
                status,
                live,
                wanted,
                starting,
                standing,
                trust,
            } = node;
            (
                *live,
                *wanted,
                (*starting, *trust),
                *standing == Standing::Joined,
                status.addresses.clone(),
                unlisted(status),
                status.not_attached().map(str::to_owned),
            )
        };
        if rest(before) != rest(now) {
            *self = Self::All;
            return;
        }
        if before.standing != now.standing {
            self.extend(links.policies());
        }
        for (kind, a, b) in [
            (
                Kind::VirtualServer,
                before.status.acknowledged_revision,
                now.status.acknowledged_revision,
            ),
            (
                Kind::RealServerPool,
                before.status.acknowledged_pool_revision,
                now.status.acknowledged_pool_revision,
            ),
        ] {
            self.extend(links.revised(kind, a.min(b), a.max(b)).cloned());
        }
        let (a, b) = (&before.status.exceptions, &now.status.exceptions);
        let changed = a.iter().filter(|exception| !b.contains(exception));
        let changed = changed.chain(b.iter().filter(|exception| !a.contains(exception)));
        self.extend(changed.map(|exception| {
            let kind = match exception.kind {
                ExceptionKind::VirtualServer => Kind::VirtualServer,
                ExceptionKind::RealServerPool => Kind::RealServerPool,
            };
            (kind, ObjectKey::new(&exception.namespace, &exception.name))
        }));
    }
}

/// The exceptions that a node does not list, as far as it tells of them.
fn unlisted(status: &LoadBalancerNodeStatus) -> (bool, Vec<u32>) {
    let numbers = status.unlisted_exceptions.clone();
    let told = status.exceptions.len() + numbers.len();
    (status.exception_count as usize > told, numbers)
}

/// The new status of the objects of these parts: the same that [`reconcile`] gives for the whole world, as far as `links`
/// are those of the world. `world.revision_floor` is to be the highest revision of the whole world; it rises with every new
/// one.
pub fn reconcile_parts(
    world: &mut World,
    links: &Links,
    parts: &[BTreeSet<Object>],
    now: &Time,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut nodes = std::mem::take(&mut world.nodes);
    let mut addresses = std::mem::take(&mut world.addresses);
    for objects in parts {
        let mut part = World {
            nodes,
            addresses,
            revision_floor: world.revision_floor,
            cluster: surroundings(world, links, objects),
            ..World::default()
        };
        exchange(objects, world, &mut part);
        let told = reconcile(&part, now);
        exchange(objects, &mut part, world);
        (nodes, addresses) = (part.nodes, part.addresses);
        world.revision_floor = world.revision_floor.max(told.highest_revision());
        outcome.virtual_servers.extend(told.virtual_servers);
        outcome.pools.extend(told.pools);
        outcome.policies.extend(told.policies);
    }
    (world.nodes, world.addresses) = (nodes, addresses);
    outcome
}

/// The Services and EndpointSlices that concern a part.
fn surroundings(world: &World, links: &Links, objects: &BTreeSet<Object>) -> Option<Cluster> {
    let all = world.cluster.as_ref()?;
    let services = links.services_of(objects);
    let services = services.filter(|key| all.services.contains(key));
    let slices = links.slices_of(objects);
    let slices = slices.filter_map(|key| Some((key.clone(), all.slices.get(key)?.clone())));
    Some(Cluster {
        services: services.cloned().collect(),
        slices: slices.collect(),
    })
}

/// Moves objects from one world to another.
fn exchange(objects: &BTreeSet<Object>, from: &mut World, to: &mut World) {
    for (kind, key) in objects {
        match kind {
            Kind::VirtualServer => {
                pass(key, &mut from.virtual_servers, &mut to.virtual_servers);
                pass(key, &mut from.assigned, &mut to.assigned);
            }
            Kind::RealServerPool => {
                pass(key, &mut from.pools, &mut to.pools);
                pass(key, &mut from.orphans, &mut to.orphans);
            }
            Kind::RolloutPolicy => {
                pass(key, &mut from.policies, &mut to.policies);
                pass(key, &mut from.stood, &mut to.stood);
                pass(key, &mut from.analysed, &mut to.analysed);
            }
            Kind::LoadBalancerNode | Kind::AddressPool => {}
        }
    }
}

fn pass<T>(key: &ObjectKey, from: &mut BTreeMap<ObjectKey, T>, to: &mut BTreeMap<ObjectKey, T>) {
    if let Some((key, object)) = from.remove_entry(key) {
        to.insert(key, object);
    }
}
