//! What was decided: the input that is the same on every node.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_api::{DecidedVirtualServer, Decision, ObjectKey, PoolDecision};

use crate::{Server, Slices};

/// Everything that is known of the cluster's virtual servers and pools at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// Virtual servers with a decision. One without is not programmed and does not belong here.
    pub virtual_servers: BTreeMap<ObjectKey, Arc<DecidedVirtualServer>>,
    /// The servers of pools with a decision.
    pub pools: BTreeMap<ObjectKey, Vec<Server>>,
}

impl Snapshot {
    /// The decisions of virtual servers and pools; `slices` has the servers of those pools whose servers are endpoints.
    pub fn new(
        virtual_servers: &BTreeMap<ObjectKey, Decision>,
        pools: &BTreeMap<ObjectKey, PoolDecision>,
        slices: &Slices<'_>,
    ) -> Self {
        let virtual_server = |(key, decision): (&ObjectKey, &Decision)| {
            (key.clone(), Arc::new(decision.content.clone()))
        };
        let pool = |(key, decision): (&ObjectKey, &PoolDecision)| {
            let servers = slices.servers(&key.namespace, &decision.content);
            (key.clone(), servers)
        };
        Self {
            virtual_servers: virtual_servers.iter().map(virtual_server).collect(),
            pools: pools.iter().map(pool).collect(),
        }
    }
}
