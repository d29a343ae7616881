//! From the API's decisions to the planner's input.

use std::collections::BTreeMap;

use sluice_api::{DecidedServer, Decision, ObjectKey, PoolDecision};

use crate::{
    ForwardingMode, ObjectName, Pool, PoolSelection, PoolShare, Port, Protocol, Server, Slices,
    Snapshot, TargetPort, VirtualServer,
};

impl Snapshot {
    /// The decisions of virtual servers and pools; `slices` has the servers of those pools whose servers are endpoints.
    pub fn new(
        virtual_servers: &BTreeMap<ObjectKey, Decision>,
        pools: &BTreeMap<ObjectKey, PoolDecision>,
        slices: &Slices<'_>,
    ) -> Self {
        Self {
            virtual_servers: virtual_servers
                .iter()
                .map(|(key, decision)| (key.into(), decision.into()))
                .collect(),
            pools: pools
                .iter()
                .map(|(key, decision)| {
                    let pool = match &decision.endpoints {
                        Some(endpoints) => slices.pool(&key.namespace, endpoints),
                        None => decision.into(),
                    };
                    (key.into(), pool)
                })
                .collect(),
        }
    }
}

impl From<&ObjectKey> for ObjectName {
    fn from(key: &ObjectKey) -> Self {
        Self::new(&key.namespace, &key.name)
    }
}

impl From<&Decision> for VirtualServer {
    fn from(decision: &Decision) -> Self {
        let port = |port: &sluice_api::DecidedPort| Port {
            name: port.name.clone(),
            protocol: match port.protocol {
                sluice_api::Protocol::Tcp => Protocol::Tcp,
                sluice_api::Protocol::Udp => Protocol::Udp,
            },
            port: port.port,
        };
        let share = |pool: &sluice_api::DecidedPool| PoolShare {
            name: pool.name.clone(),
            weight: pool.weight,
        };
        Self {
            addresses: decision.addresses.clone(),
            ports: decision.ports.iter().map(port).collect(),
            mode: match decision.mode {
                sluice_api::ForwardingMode::Nat => ForwardingMode::Nat,
                sluice_api::ForwardingMode::FullNat => ForwardingMode::FullNat,
                sluice_api::ForwardingMode::Dr => ForwardingMode::Dr,
                sluice_api::ForwardingMode::Tun => ForwardingMode::Tun,
            },
            pool_selection: match decision.pool_selection {
                sluice_api::PoolSelection::Flow => PoolSelection::Flow,
                sluice_api::PoolSelection::ClientAddress => PoolSelection::ClientAddress,
            },
            pools: decision.pools.iter().map(share).collect(),
        }
    }
}

/// The static servers.
impl From<&PoolDecision> for Pool {
    fn from(decision: &PoolDecision) -> Self {
        let server = |server: &DecidedServer| Server {
            name: server.name.clone(),
            address: server.address,
            weight: server.weight,
            target_ports: server
                .target_ports
                .iter()
                .map(|target| TargetPort {
                    name: target.name.clone(),
                    port: Some(target.port),
                })
                .collect(),
            default_port: None,
        };
        Self {
            servers: decision.servers.iter().map(server).collect(),
        }
    }
}
