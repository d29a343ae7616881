//! Who has an endpoint that several virtual servers claim.
//!
//! A virtual server claims the endpoints of its newest spec, if that is admitted otherwise, and those of its decision.
//! The older creation timestamp wins; where they are equal, being whole seconds, or there is none (files), the one that
//! already has the endpoint in its decision; then namespace and name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_api::{ObjectKey, Protocol, Reason, Time};

use super::admission::{Refusal, Service};
use super::world::World;

type Endpoint = (IpAddr, Protocol, u16);

/// Smaller wins.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank<'a> {
    created: Option<&'a Time>,
    undecided: bool,
    key: &'a ObjectKey,
}

/// Refuses specs whose endpoints another virtual server has. Returns the virtual servers whose last decision lost an
/// endpoint to another one and cannot stay.
pub(super) fn resolve(
    world: &World,
    services: &mut BTreeMap<ObjectKey, Result<Service, Vec<Refusal>>>,
) -> BTreeSet<ObjectKey> {
    let winners = winners(world, services);
    let lost = |key: &ObjectKey, endpoint: &Endpoint| {
        winners.get(endpoint).filter(|winner| **winner != *key)
    };
    for (key, result) in services.iter_mut() {
        let Ok(service) = result else { continue };
        let mut refusals = Vec::new();
        for (i, &address) in service.addresses.iter().enumerate() {
            for (j, port) in service.ports.iter().enumerate() {
                if let Some(winner) = lost(key, &(address, port.protocol, port.port)) {
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
                decision.endpoints().any(|endpoint| {
                    // The winner may itself have been refused since; then nobody else serves the endpoint.
                    lost(key, &endpoint).is_some_and(|winner| {
                        services.get(winner).is_some_and(Result::is_ok)
                            || holds(world, winner, &endpoint)
                    })
                })
            })
        })
        .cloned()
        .collect()
}

fn winners(
    world: &World,
    services: &BTreeMap<ObjectKey, Result<Service, Vec<Refusal>>>,
) -> BTreeMap<Endpoint, ObjectKey> {
    let mut ranks: BTreeMap<Endpoint, Rank<'_>> = BTreeMap::new();
    for (key, object) in &world.virtual_servers {
        let mut claimed: BTreeSet<Endpoint> = world
            .decision(key)
            .into_iter()
            .flat_map(sluice_api::Decision::endpoints)
            .collect();
        let decided = claimed.clone();
        if let Some(Ok(service)) = services.get(key) {
            for &address in &service.addresses {
                claimed.extend(service.ports.iter().map(|p| (address, p.protocol, p.port)));
            }
        }
        for endpoint in claimed {
            let created = object.metadata.creation_timestamp.as_ref();
            let rank = Rank {
                created,
                undecided: !decided.contains(&endpoint),
                key,
            };
            match ranks.get(&endpoint) {
                Some(best) if *best <= rank => {}
                _ => {
                    ranks.insert(endpoint, rank);
                }
            }
        }
    }
    ranks
        .into_iter()
        .map(|(endpoint, rank)| (endpoint, rank.key.clone()))
        .collect()
}

fn holds(world: &World, key: &ObjectKey, endpoint: &Endpoint) -> bool {
    world
        .decision(key)
        .is_some_and(|decision| decision.endpoints().any(|other| other == *endpoint))
}
