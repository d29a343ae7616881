//! Who has a VIP port that several virtual servers claim.
//!
//! A virtual server claims the VIP ports of its newest spec, if that is admitted otherwise, and those of its decision.
//! The older creation timestamp wins; where they are equal, being whole seconds, or there is none (files), the one that
//! already has the VIP port in its decision; then namespace and name.

use std::collections::{BTreeMap, BTreeSet};

use sluice_api::{DecidedVirtualServer, ObjectKey, Reason, Time, VipPort};

use super::admission::Refusal;
use super::world::World;

/// Smaller wins.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank<'a> {
    created: Option<&'a Time>,
    undecided: bool,
    key: &'a ObjectKey,
}

/// Refuses specs whose VIP ports another virtual server has. Returns the virtual servers whose last decision lost a VIP
/// port to another one and cannot stay.
pub(super) fn resolve(
    world: &World,
    admitted: &mut BTreeMap<ObjectKey, Result<DecidedVirtualServer, Vec<Refusal>>>,
) -> BTreeSet<ObjectKey> {
    let winners = winners(world, admitted);
    let lost = |key: &ObjectKey, vip_port: &VipPort| {
        winners.get(vip_port).filter(|winner| **winner != *key)
    };
    for (key, result) in admitted.iter_mut() {
        let Ok(wanted) = result else { continue };
        let mut refusals = Vec::new();
        for (i, &address) in wanted.addresses.iter().enumerate() {
            for (j, port) in wanted.ports.iter().enumerate() {
                if let Some(winner) = lost(key, &port.at(address)) {
                    let message = format!(
                        "{address} port {} is held by VirtualServer {winner}: choose another address or port, or remove it \
                         there",
                        port.port
                    );
                    let path = format!("spec.addresses[{i}].ip, spec.ports[{j}].port");
                    refusals.push(Refusal::new(Reason::AddressConflict, path, message));
                }
            }
        }
        if !refusals.is_empty() {
            *result = Err(refusals);
        }
    }
    world
        .virtual_servers
        .keys()
        .filter(|key| {
            world.decision(key).is_some_and(|decision| {
                decision.content.vip_ports().any(|vip_port| {
                    // The winner may itself have been refused since; then nobody else serves the VIP port.
                    lost(key, &vip_port).is_some_and(|winner| {
                        admitted.get(winner).is_some_and(Result::is_ok)
                            || holds(world, winner, &vip_port)
                    })
                })
            })
        })
        .cloned()
        .collect()
}

fn winners(
    world: &World,
    admitted: &BTreeMap<ObjectKey, Result<DecidedVirtualServer, Vec<Refusal>>>,
) -> BTreeMap<VipPort, ObjectKey> {
    let mut ranks: BTreeMap<VipPort, Rank<'_>> = BTreeMap::new();
    for (key, object) in &world.virtual_servers {
        let decision = world.decision(key).into_iter();
        let decided: BTreeSet<VipPort> = decision.flat_map(|d| d.content.vip_ports()).collect();
        let mut claimed = decided.clone();
        if let Some(Ok(wanted)) = admitted.get(key) {
            claimed.extend(wanted.vip_ports());
        }
        for vip_port in claimed {
            let created = object.metadata.creation_timestamp.as_ref();
            let rank = Rank {
                created,
                undecided: !decided.contains(&vip_port),
                key,
            };
            match ranks.get(&vip_port) {
                Some(best) if *best <= rank => {}
                _ => {
                    ranks.insert(vip_port, rank);
                }
            }
        }
    }
    ranks
        .into_iter()
        .map(|(vip_port, rank)| (vip_port, rank.key.clone()))
        .collect()
}

fn holds(world: &World, key: &ObjectKey, vip_port: &VipPort) -> bool {
    world
        .decision(key)
        .is_some_and(|decision| decision.content.vip_ports().any(|other| other == *vip_port))
}
