//! Decisions: what the operator resolved of a spec. Agents need nothing else.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::limits::{
    MAX_ADDRESS_LENGTH, MAX_ADDRESSES, MAX_LABEL_LENGTH, MAX_NAME_LENGTH, MAX_POOLS, MAX_PORTS,
    MAX_STATIC_SERVERS,
};
use crate::real_server_pool::{PodSelector, TargetPort};
use crate::virtual_server::{ForwardingMode, PoolSelection, Protocol};

/// What a virtual server is served by.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// From one counter for the whole cluster, raised with every changed decision.
    pub revision: u64,
    /// The generation of the spec that this was resolved from.
    pub generation: i64,
    /// The VIPs: at most one per family.
    #[schemars(with = "Vec<String>", length(max = MAX_ADDRESSES), inner(length(max = MAX_ADDRESS_LENGTH)))]
    pub addresses: Vec<IpAddr>,
    /// The ports of each VIP.
    #[schemars(length(max = MAX_PORTS))]
    pub ports: Vec<DecidedPort>,
    /// Forwarding mode.
    pub mode: ForwardingMode,
    /// What is hashed to choose the pool.
    pub pool_selection: PoolSelection,
    /// The pools in the order of the spec.
    #[schemars(length(max = MAX_POOLS))]
    pub pools: Vec<DecidedPool>,
}

impl Decision {
    /// Whether both serve alike: revision and generation aside.
    pub fn same_service(&self, other: &Self) -> bool {
        self.addresses == other.addresses
            && self.ports == other.ports
            && self.mode == other.mode
            && self.pool_selection == other.pool_selection
            && self.pools == other.pools
    }

    /// Every address with every port.
    pub fn endpoints(&self) -> impl Iterator<Item = (IpAddr, Protocol, u16)> + '_ {
        self.addresses.iter().flat_map(|&address| {
            self.ports
                .iter()
                .map(move |port| (address, port.protocol, port.port))
        })
    }
}

/// A port that clients connect to.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "camelCase")]
pub struct DecidedPort {
    /// Name by which target ports refer to it.
    #[schemars(length(max = MAX_LABEL_LENGTH))]
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port number.
    pub port: u16,
}

/// A pool's weight in force.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "camelCase")]
pub struct DecidedPool {
    /// Name of the RealServerPool, in the virtual server's namespace.
    #[schemars(length(max = MAX_NAME_LENGTH))]
    pub name: String,
    /// The pool's share is this weight over the sum of all.
    pub weight: u32,
    /// The weight of the spec that this was decided from.
    pub spec_weight: u32,
}

/// The accepted content of a pool.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct PoolDecision {
    /// From the same counter as [`Decision::revision`].
    pub revision: u64,
    /// The generation of the spec that this was resolved from.
    pub generation: i64,
    /// Static servers in the order of the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_STATIC_SERVERS))]
    pub servers: Vec<DecidedServer>,
    /// Where the servers come from if they are not static.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<DecidedEndpoints>,
}

impl PoolDecision {
    /// Whether both have the same servers: revision and generation aside.
    pub fn same_servers(&self, other: &Self) -> bool {
        self.servers == other.servers && self.endpoints == other.endpoints
    }

    /// The pods that are the servers, if pods are.
    pub fn selector(&self) -> Option<&PodSelector> {
        self.endpoints.as_ref()?.selector.as_ref()
    }
}

/// The EndpointSlices of the namespace whose endpoints are a pool's servers.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct DecidedEndpoints {
    /// Whose slices they are.
    pub source: EndpointSource,
    /// Value of the label that they have: the Service's name, or the pool's (see [`crate::pool_label`]).
    #[schemars(length(max = MAX_LABEL_LENGTH))]
    pub name: String,
    /// The pods whose addresses are in them, where the source is `Pods`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<PodSelector>,
    /// Ports on the servers by the name of the virtual server's port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_PORTS))]
    pub target_ports: Vec<TargetPort>,
}

/// Whose EndpointSlices are meant.
#[derive(
    JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug,
)]
pub enum EndpointSource {
    /// Those that the operator writes for a pool that selects pods; label [`crate::POOL_LABEL`].
    Pods,
    /// Those of a Service; label [`crate::SERVICE_LABEL`].
    Service,
}

/// A real server.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "camelCase")]
pub struct DecidedServer {
    /// Name, unique in the pool.
    #[schemars(length(max = MAX_LABEL_LENGTH))]
    pub name: String,
    /// Its address.
    #[schemars(with = "String", length(max = MAX_ADDRESS_LENGTH))]
    pub address: IpAddr,
    /// Share of the pool's new flows, relative to the other servers' weights; 0 takes none.
    pub weight: u32,
    /// The server's own target ports and, where it has none of that name, the pool's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_PORTS))]
    pub target_ports: Vec<DecidedTargetPort>,
}

/// A port on a real server.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "camelCase")]
pub struct DecidedTargetPort {
    /// Name of the virtual server's port.
    #[schemars(length(max = MAX_LABEL_LENGTH))]
    pub name: String,
    /// Port number on the server.
    pub port: u16,
}

impl DecidedServer {
    /// The port on this server for a virtual server's port: the same one unless a target port has its name.
    pub fn target_port(&self, port: &DecidedPort) -> u16 {
        self.target_ports
            .iter()
            .find(|target| target.name == port.name)
            .map_or(port.port, |target| target.port)
    }
}
