//! Who has a VIP port that several virtual servers claim.
//!
//! Whoever has it in its decision holds it and keeps it, whatever others ask for. A VIP port that nobody holds goes to the
//! virtual server that asked first. One that has to wait gets a *turn*, which stands in its status, so that the order
//! outlives the operator; it keeps its turn while its spec asks for nothing more. A virtual server asks for all its VIP ports
//! at once: while it waits for one of them, others may take the rest.

use std::collections::{BTreeMap, BTreeSet};

use sluice_api::{Claim, DecidedVirtualServer, ObjectKey, Reason, Time, VipPort};

use super::admission::Refusal;
use super::world::World;

/// Each virtual server's newest spec.
pub(super) type Admitted = BTreeMap<ObjectKey, Result<DecidedVirtualServer, Vec<Refusal>>>;

/// The outcome of all claims.
pub(super) struct Claims {
    /// Virtual servers whose last decision names a VIP port that another one holds.
    pub(super) lost: BTreeSet<ObjectKey>,
    /// The claims of the virtual servers that wait.
    pub(super) waiting: BTreeMap<ObjectKey, Claim>,
}

/// The order in which virtual servers asked. Smaller is earlier.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank<'a> {
    /// The last of all while it has none.
    turn: u64,
    /// A spec that was never edited asks since its object was made; an edit came later than that.
    edited: bool,
    created: Option<&'a Time>,
    key: &'a ObjectKey,
}

/// Refuses specs whose VIP ports another virtual server has.
pub(super) fn resolve(world: &World, admitted: &mut Admitted) -> Claims {
    let mut owners = holders(world);
    let lost = |key: &ObjectKey| {
        let decision = world.decision(key).into_iter();
        let mut decided = decision.flat_map(|decision| decision.content.vip_ports());
        decided.any(|vip_port| owners.get(&vip_port) != Some(key))
    };
    let keys = world.virtual_servers.keys();
    let lost = keys.clone().filter(|key| lost(key)).cloned().collect();
    let mut waiting: BTreeMap<ObjectKey, Claim> = keys
        .filter_map(|key| Some((key.clone(), standing(world, key)?)))
        .collect();
    let mut turns = last_turns(&waiting);
    let mut ranks: Vec<Rank<'_>> = world
        .virtual_servers
        .keys()
        .map(|key| rank(world, key, waiting.get(key)))
        .collect();
    ranks.sort();
    for Rank { key, .. } in ranks {
        let Some(Ok(wanted)) = admitted.get(key) else {
            continue;
        };
        let refusals = refusals(key, wanted, &owners);
        if refusals.is_empty() {
            for vip_port in wanted.vip_ports() {
                owners.entry(vip_port).or_insert_with(|| key.clone());
            }
            waiting.remove(key);
            continue;
        }
        let known = waiting.get(key).map(|claim| claim.turn);
        let turn = known.unwrap_or_else(|| next_turn(wanted, &mut turns));
        let claim = Claim {
            turn,
            addresses: wanted.addresses.clone(),
            ports: wanted.ports.clone(),
        };
        waiting.insert(key.clone(), claim);
        admitted.insert(key.clone(), Err(refusals));
    }
    Claims { lost, waiting }
}

/// Who has each VIP port by decision. Two can have one only where somebody else wrote a decision.
fn holders(world: &World) -> BTreeMap<VipPort, ObjectKey> {
    let created = |key: &ObjectKey| {
        let metadata = &world.virtual_servers[key].metadata;
        metadata.creation_timestamp.as_ref()
    };
    let mut holders: BTreeMap<VipPort, ObjectKey> = BTreeMap::new();
    for key in world.virtual_servers.keys() {
        let decision = world.decision(key).into_iter();
        for vip_port in decision.flat_map(|decision| decision.content.vip_ports()) {
            match holders.get(&vip_port) {
                Some(other) if (created(other), other) <= (created(key), key) => {}
                _ => {
                    holders.insert(vip_port, key.clone());
                }
            }
        }
    }
    holders
}

/// The claim that stands in a virtual server's status, if its spec asks for nothing more.
fn standing(world: &World, key: &ObjectKey) -> Option<Claim> {
    let object = &world.virtual_servers[key];
    let claim = object.status.as_ref()?.claim.as_ref()?;
    let claimed: BTreeSet<VipPort> = claim.vip_ports().collect();
    let wanted = DecidedVirtualServer::of_spec(&object.spec, world.addresses_of(key));
    let is_covered = wanted.vip_ports().all(|port| claimed.contains(&port));
    is_covered.then_some(Claim {
        turn: claim.turn,
        addresses: wanted.addresses,
        ports: wanted.ports,
    })
}

fn rank<'a>(world: &'a World, key: &'a ObjectKey, claim: Option<&Claim>) -> Rank<'a> {
    let metadata = &world.virtual_servers[key].metadata;
    Rank {
        turn: claim.map_or(u64::MAX, |claim| claim.turn),
        edited: metadata.generation.unwrap_or_default() > 1,
        created: metadata.creation_timestamp.as_ref(),
        key,
    }
}

/// The highest turn at each VIP port.
fn last_turns(waiting: &BTreeMap<ObjectKey, Claim>) -> BTreeMap<VipPort, u64> {
    let mut turns = BTreeMap::new();
    for claim in waiting.values() {
        for vip_port in claim.vip_ports() {
            let last = turns.entry(vip_port).or_default();
            *last = claim.turn.max(*last);
        }
    }
    turns
}

/// A turn after those of all who wait for one of these VIP ports.
fn next_turn(wanted: &DecidedVirtualServer, turns: &mut BTreeMap<VipPort, u64>) -> u64 {
    let last = wanted.vip_ports().filter_map(|port| turns.get(&port));
    let turn = last.max().map_or(1, |last| last.saturating_add(1));
    turns.extend(wanted.vip_ports().map(|port| (port, turn)));
    turn
}

fn refusals(
    key: &ObjectKey,
    wanted: &DecidedVirtualServer,
    owners: &BTreeMap<VipPort, ObjectKey>,
) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for (i, &address) in wanted.addresses.iter().enumerate() {
        for (j, port) in wanted.ports.iter().enumerate() {
            let owner = owners.get(&port.at(address));
            let Some(owner) = owner.filter(|owner| *owner != key) else {
                continue;
            };
            let message = format!(
                "{address} port {} is held by VirtualServer {owner}: choose another address or port, or remove it there",
                port.port
            );
            let path = format!("spec.addresses[{i}].ip, spec.ports[{j}].port");
            refusals.push(Refusal::new(Reason::AddressConflict, path, message));
        }
    }
    refusals
}
