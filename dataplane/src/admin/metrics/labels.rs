//! Metric labels of the servers in the maps.

use std::net::IpAddr;

use sluice_api::Protocol;
use sluice_planner::{Planner, ServerInfo};

/// The labels of a server's metrics.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct ServerLabels {
    /// `namespace/name`.
    pub(super) virtual_server: String,
    /// The VIP.
    pub(super) vip: IpAddr,
    /// Protocol of the virtual server's endpoint.
    pub(super) protocol: Protocol,
    /// Port of the virtual server's endpoint.
    pub(super) port: u16,
    /// The pool's name.
    pub(super) pool: String,
    /// The server's name in the pool; several if they cannot be told apart.
    pub(super) server: String,
    /// The server's address.
    pub(super) address: IpAddr,
    /// The server's port, or the virtual server's where the server's node translates it.
    pub(super) server_port: u16,
}

/// Ids and epochs of servers, and their labels. Servers that are no part of what is decided any more are left out.
pub(super) fn of_servers(planner: &Planner) -> Vec<(u32, u8, ServerLabels)> {
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
        (server.id, server.epoch, labels)
    };
    planner.servers().map(labels).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use sluice_api::ObjectKey;
    use sluice_planner::{Image, NodeView, Role, Server};

    use super::*;
    use crate::fixtures::{LIMITS, virtual_server};

    #[test]
    fn servers_are_called_what_the_user_calls_them() {
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let mut planner = Planner::new(LIMITS, &Image::default());
        planner.set_view(NodeView {
            role: Role {
                director: true,
                real_server: true,
            },
            addresses: BTreeSet::from([address]),
            ..NodeView::default()
        });
        let (web, v1) = (ObjectKey::new("shop", "web"), ObjectKey::new("shop", "v1"));
        planner.set_virtual_server(&web, Some(Arc::new(virtual_server())));
        let server = Server {
            name: "b".to_owned(),
            address,
            node: None,
            weight: 1,
            is_meant: true,
            is_last_resort: false,
            resets: sluice_planner::Resets::Never,
            is_sampled: false,
            ports: Arc::default(),
        };
        planner.set_servers(&v1, Some([server].into()));
        planner.plan();
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
        assert_eq!(of_servers(&planner), [(1, 1, expected)]);
        planner.set_virtual_server(&web, None);
        planner.plan();
        assert_eq!(of_servers(&planner), []);
    }
}
