//! Real servers, static ones and endpoints alike.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use sluice_api::{DecidedPort, DecidedServer};

/// The servers of a pool that have less than all slots of a ring that are theirs, with the tenths that they have: 0 to 9. They are told by
/// their address and the port on them; port 0: whatever the port.
pub type Tenths = BTreeMap<SocketAddr, u8>;

/// When a client's next packet of a TCP connection to a server is answered by a reset.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Resets {
    /// Never.
    #[default]
    Never,
    /// While the server is down and another one takes flows.
    WhenDown,
    /// Now.
    Now,
}

/// A real server of a pool.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Server {
    /// Name, for messages.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// The node that it runs on. Not known of static servers: they run where their address is.
    pub node: Option<Arc<str>>,
    /// Its weight among the servers of the pool; 0 = drained.
    pub weight: u32,
    /// Whether it is meant to take flows, ready or not: it is neither drained nor about to go.
    pub is_meant: bool,
    /// Whether it terminates and serves until then: it takes flows where no other server may.
    pub is_last_resort: bool,
    /// When its connections are reset.
    pub resets: Resets,
    /// Whether its connections are sampled as they begin.
    pub is_sampled: bool,
    /// Its ports.
    pub ports: Arc<ServerPorts>,
}

/// Which port of a server is behind which port of a virtual server. The endpoints of a slice share one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct ServerPorts {
    /// Port numbers by the name of the virtual server's port; `None`: the server has no port of the name that the pool asks
    /// for.
    pub by_name: Vec<(String, Option<u16>)>,
    /// The port behind ports whose name is not there; `None`: the virtual server's own.
    pub default: Option<u16>,
}

impl ServerPorts {
    /// The port behind a port of a virtual server; `None`: what the pool asks for leads nowhere.
    pub fn behind(&self, port: &DecidedPort) -> Option<u16> {
        match self.by_name.iter().find(|(name, _)| *name == port.name) {
            Some((_, number)) => *number,
            None => Some(self.default.unwrap_or(port.port)),
        }
    }
}

impl From<&DecidedServer> for Server {
    fn from(decided: &DecidedServer) -> Self {
        let ports = decided.target_ports.iter();
        let ports = ServerPorts {
            by_name: ports
                .map(|target| (target.name.clone(), Some(target.port)))
                .collect(),
            default: None,
        };
        Self {
            name: decided.name.clone(),
            address: decided.address,
            node: None,
            weight: decided.weight,
            is_meant: decided.weight > 0,
            is_last_resort: false,
            resets: Resets::Never,
            is_sampled: false,
            ports: Arc::new(ports),
        }
    }
}
