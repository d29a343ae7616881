//! What the servers in the maps are called.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use sluice_abi::{SERVER_IPV6, ServerRecord};
use sluice_api::VipPort;
use sluice_planner::{Image, NodeConfig, Snapshot};

use crate::state::ServerLabels;

/// Labels by server id. Servers that are no part of the configuration any more are left out.
pub(super) fn of_servers(
    image: &Image,
    config: &NodeConfig,
    snapshot: &Snapshot,
) -> BTreeMap<u32, ServerLabels> {
    let vip_ports: BTreeMap<u16, VipPort> = image
        .vips
        .iter()
        .filter_map(|(key, word)| Some((word.service(), key.vip_port()?)))
        .collect();
    let labels = |record: &ServerRecord| -> Option<ServerLabels> {
        let vip_port = *vip_ports.get(&record.service)?;
        let config = config.vip_ports.get(&vip_port)?;
        let (pool, _) = config.pools().find(|(_, pool)| pool.tag == record.tag)?;
        let address = address_of(record);
        let key = config.virtual_server.sibling(&pool.name);
        let servers = snapshot.pools.get(&key).into_iter().flatten();
        let mut names: Vec<&str> = servers
            .filter(|server| server.address == address)
            .map(|server| server.name.as_str())
            .collect();
        names.sort_unstable();
        Some(ServerLabels {
            virtual_server: config.virtual_server.to_string(),
            vip: vip_port.address,
            protocol: vip_port.protocol,
            port: vip_port.port,
            pool: pool.name.clone(),
            server: names.join(","),
            address,
            server_port: u16::from_be_bytes(record.port),
        })
    };
    let present = image.servers.iter().filter(|(_, word)| word.present());
    present
        .filter_map(|(&id, word)| Some((id, labels(image.records.get(&word.slot())?)?)))
        .collect()
}

fn address_of(record: &ServerRecord) -> IpAddr {
    if record.flags & SERVER_IPV6 != 0 {
        return Ipv6Addr::from(record.addr).into();
    }
    let [a, b, c, d, ..] = record.addr;
    IpAddr::from([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use std::sync::Arc;

    use sluice_api::{
        DecidedPool, DecidedPort, DecidedVirtualServer, ForwardingMode, ObjectKey, PoolSelection,
        Protocol,
    };
    use sluice_planner::{Limits, NodeView, Role, Server, ServerPorts, node_config, plan};

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
        let config = node_config(&snapshot, &view);
        let image = plan(&config, &Image::default(), &LIMITS).desired;
        let labels: Vec<ServerLabels> = of_servers(&image, &config, &snapshot)
            .into_values()
            .collect();
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
        let gone = of_servers(&image, &NodeConfig::default(), &snapshot);
        assert!(
            gone.is_empty(),
            "what is no part of the configuration has no name"
        );
    }
}
