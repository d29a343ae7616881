//! What the servers in the maps are called.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use sluice_abi::{SERVER_IPV6, ServerRecord, TCP};
use sluice_planner::{Endpoint, Image, NodeConfig, ObjectName, Protocol, Snapshot};

use crate::state::ServerLabels;

/// Labels by server id. Servers that are no part of the configuration any more are left out.
pub(super) fn of_servers(
    image: &Image,
    config: &NodeConfig,
    snapshot: &Snapshot,
) -> BTreeMap<u32, ServerLabels> {
    let endpoints: BTreeMap<u16, &Endpoint> = image
        .vips
        .iter()
        .filter(|(endpoint, _)| !endpoint.is_marker())
        .map(|(endpoint, word)| (word.service(), endpoint))
        .collect();
    let labels = |record: &ServerRecord| -> Option<ServerLabels> {
        let endpoint = *endpoints.get(&record.service)?;
        let service = config.services.get(endpoint)?;
        let pool = service.pools.iter().find(|pool| pool.tag == record.tag)?;
        let address = address_of(record);
        let key = ObjectName::new(&service.virtual_server.namespace, &pool.name);
        let servers = snapshot
            .pools
            .get(&key)
            .into_iter()
            .flat_map(|p| &p.servers);
        let mut names: Vec<&str> = servers
            .filter(|server| server.address == address)
            .map(|server| server.name.as_str())
            .collect();
        names.sort_unstable();
        Some(ServerLabels {
            virtual_server: service.virtual_server.to_string(),
            vip: endpoint.address,
            protocol: if endpoint.protocol == TCP {
                Protocol::Tcp
            } else {
                Protocol::Udp
            },
            port: endpoint.port,
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
