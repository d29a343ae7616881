//! The status of address pools, and the decision by which agents announce their addresses.

use std::collections::BTreeSet;

use sluice_api::{
    AddressPool, AddressPoolDecision, AddressPoolStatus, ConditionType, DecidedL2, LabelSelector,
    MAX_ANNOUNCING_NODES, Reason, Time,
};

use super::admission::told;
use super::conditions::{Conditions, State};
use super::ledger::PoolState;

/// What is to stand in the status of a pool. `selected` has the names of the nodes that a selector means.
pub fn address_pool_status(
    object: &AddressPool,
    state: &PoolState,
    selected: impl Fn(&LabelSelector) -> BTreeSet<String>,
    now: &Time,
) -> AddressPoolStatus {
    let generation = object.metadata.generation.unwrap_or_default();
    let last = object.status.clone().unwrap_or_default();
    let mut message = "virtual servers get addresses of it".to_owned();
    let decision = if state.refusals.is_empty() {
        let (l2, advice) = l2(object, state, selected);
        message.extend(advice);
        Some(AddressPoolDecision { generation, l2 })
    } else {
        // Its addresses that are in use stay, and are announced as before.
        last.decision
    };
    let mut conditions = Conditions {
        list: last.conditions,
        generation,
        now,
    };
    conditions.state(&match state.refusals.first() {
        None => State::Ready(Reason::AddressesUsable, message),
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
        decision,
    }
}

/// How the addresses of a pool are announced, and what is odd about it.
fn l2(
    object: &AddressPool,
    state: &PoolState,
    selected: impl Fn(&LabelSelector) -> BTreeSet<String>,
) -> (Option<DecidedL2>, Option<String>) {
    let Some((l2, groups)) = object.spec.l2().zip(state.groups) else {
        return (None, None);
    };
    let nodes = l2.node_selector.as_ref().map(selected);
    let count = nodes.as_ref().map(BTreeSet::len);
    let advice = match count {
        Some(0) => Some(
            "; nobody announces them: spec.announce.l2.nodeSelector selects no node with a LoadBalancerNode".to_owned(),
        ),
        Some(count) if count > MAX_ANNOUNCING_NODES => Some(format!(
            "; spec.announce.l2.nodeSelector selects {count} nodes, of which the first {MAX_ANNOUNCING_NODES} by name may \
             announce them: select fewer"
        )),
        _ => None,
    };
    let decided = DecidedL2 {
        gateways: l2.gateways().collect(),
        interfaces: l2.interfaces,
        nodes: nodes.map(|nodes| nodes.into_iter().take(MAX_ANNOUNCING_NODES).collect()),
        groups,
    };
    (Some(decided), advice)
}
