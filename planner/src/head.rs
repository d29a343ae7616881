//! Heads: what a packet reads of a VIP port.

use sluice_abi::{
    Head, HeadPool, MAX_POOLS, POOL_BY_CLIENT_ADDRESS, REFUSES, SERVER_BY_CLIENT_ADDRESS, Scheduler,
};
use sluice_api::{DecidedVirtualServer, PoolSelection, ServerSelection, WhenAllDown};

use crate::config::VipPortConfig;

/// The head of the VIP port with this index in the maps, for clients of this source set.
pub(crate) fn head(
    config: &VipPortConfig,
    (index, source_set): (u32, u32),
    pools: impl IntoIterator<Item = HeadPool>,
) -> Head {
    let mut head = Head {
        seed: config.seed,
        index,
        source_set,
        flags: flags(&config.decided),
        scheduler: Scheduler::Ring as u8,
        ..Head::default()
    };
    for (place, pool) in head.pools.iter_mut().zip(pools) {
        *place = pool;
        head.pool_count += 1;
    }
    head
}

fn flags(decided: &DecidedVirtualServer) -> u8 {
    let pool = match decided.pool_selection {
        PoolSelection::Flow => 0,
        PoolSelection::ClientAddress => POOL_BY_CLIENT_ADDRESS,
    };
    let server = match decided.server_selection {
        ServerSelection::Flow => 0,
        ServerSelection::ClientAddress => SERVER_BY_CLIENT_ADDRESS,
    };
    let refuses = match decided.when_all_down {
        WhenAllDown::Reject => REFUSES,
        WhenAllDown::LastKnown | WhenAllDown::Drop => 0,
    };
    pool | server | refuses
}

/// The pools in use of a head.
pub(crate) fn pools(head: &Head) -> impl Iterator<Item = &HeadPool> {
    let in_use = usize::from(head.pool_count).min(MAX_POOLS);
    head.pools.iter().take(in_use)
}
