//! What the servers in the maps are called.

use std::collections::BTreeMap;

use sluice_planner::{Planner, ServerInfo};

use crate::state::ServerLabels;

/// Labels by server id. Servers that are no part of what is decided any more are left out.
pub(super) fn of_servers(planner: &Planner) -> BTreeMap<u32, ServerLabels> {
    let labels = |server: ServerInfo<'_>| {
        let pool = server.virtual_server.sibling(server.pool);
        let mut names: Vec<&str> = planner.names(&pool, server.address).collect();
        names.sort_unstable();
        let labels = ServerLabels {
            virtual_server: server.virtual_server.to_string(),
            vip: server.vip_port.address,
            protocol: server.vip_port.protocol,
            port: server.vip_port.port,
            pool: server.pool.to_owned(),
            server: names.join(","),
            address: server.address,
            server_port: server.port,
        };
        (server.id, labels)
    };
    planner.servers().map(labels).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;
    use std::sync::Arc;

    use sluice_api::{
        DecidedPool, DecidedPort, DecidedVirtualServer, ForwardingMode, ObjectKey, PoolSelection,
        Protocol,
    };
    use sluice_planner::{Image, Limits, NodeView, Role, Server, ServerPorts, Snapshot};

    use super::*;

    const LIMITS: Limits = Limits {
        vips: 64,
        backends: 64,
        locals: 64,
        peers: 64,
        heads: 64,
        rings: 64,
        ring_slots: 65_536,
        servers: 64,
        records: 64,
    };

    /// One virtual server over one pool with these servers at the node's own addresses.
    fn snapshot(servers: &[(&str, IpAddr)]) -> Snapshot {
        let virtual_server = DecidedVirtualServer {
            addresses: vec!["203.0.113.1".parse().unwrap()],
            ports: vec![DecidedPort {
                name: "http".to_owned(),
                protocol: Protocol::Tcp,
                port: 80,
            }],
            mode: ForwardingMode::Nat,
            pool_selection: PoolSelection::Flow,
            pools: vec![DecidedPool {
                name: "v1".to_owned(),
                weight: 1,
                spec_weight: 1,
            }],
        };
        let servers = servers.iter().map(|(name, address)| Server {
            name: (*name).to_owned(),
            address: *address,
            weight: 1,
            ports: Arc::new(ServerPorts::default()),
        });
        Snapshot {
            virtual_servers: [(ObjectKey::new("shop", "web"), Arc::new(virtual_server))].into(),
            pools: [(ObjectKey::new("shop", "v1"), servers.collect())].into(),
        }
    }

    #[test]
    fn servers_are_called_what_the_user_calls_them() {
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let snapshot = snapshot(&[("b", address)]);
        let view = NodeView {
            role: Role {
                director: true,
                real_server: true,
            },
            addresses: BTreeSet::from([address]),
            ..NodeView::default()
        };
        let mut planner = Planner::new(LIMITS, &Image::default());
        planner.set_view(view);
        planner.set_snapshot(&snapshot);
        planner.plan();
        let labels: Vec<ServerLabels> = of_servers(&planner).into_values().collect();
        let expected = ServerLabels {
            virtual_server: "shop/web".to_owned(),
            vip: "203.0.113.1".parse().unwrap(),
            protocol: Protocol::Tcp,
            port: 80,
            pool: "v1".to_owned(),
            server: "b".to_owned(),
            address,
            server_port: 80,
        };
        assert_eq!(labels, [expected]);
        planner.set_snapshot(&Snapshot::default());
        planner.plan();
        assert_eq!(of_servers(&planner), BTreeMap::new());
    }
}
