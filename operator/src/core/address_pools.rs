//! The status of address pools.

use sluice_api::{AddressPool, AddressPoolStatus, ConditionType, Reason, Time};

use super::admission::told;
use super::conditions::{Conditions, State};
use super::ledger::PoolState;

/// What is to stand in the status of a pool.
pub fn address_pool_status(
    object: &AddressPool,
    state: &PoolState,
    now: &Time,
) -> AddressPoolStatus {
    let generation = object.metadata.generation.unwrap_or_default();
    let last = object.status.clone().unwrap_or_default();
    let mut conditions = Conditions {
        list: last.conditions,
        generation,
        now,
    };
    conditions.state(&match state.refusals.first() {
        None => State::Ready(
            Reason::AddressesUsable,
            "virtual servers get addresses of it".to_owned(),
        ),
        Some(first) => {
            let message = format!(
                "{}; no virtual server gets an address of it, those in use stay",
                told(&state.refusals)
            );
            State::Stalled(first.reason, message)
        }
    });
    if state.is_exhausted {
        let message = "virtual servers wait for an address: add some to spec.addresses, or give up some that are in use";
        conditions.set(
            ConditionType::Exhausted,
            true,
            Reason::NoFreeAddress,
            message,
        );
    } else {
        conditions.clear(ConditionType::Exhausted);
    }
    let kind = ConditionType::InUseOutside;
    match &state.outside {
        None => conditions.clear(kind),
        Some(outside) => {
            let message = format!(
                "in use, though spec.addresses does not have it: {outside}; it stays until nobody asks for it"
            );
            conditions.set(kind, true, Reason::AddressKept, &message);
        }
    }
    AddressPoolStatus {
        observed_generation: generation,
        conditions: conditions.list,
        decision: last.decision,
    }
}
