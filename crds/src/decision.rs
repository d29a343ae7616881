//! Decisions: what the operator resolved of a spec. Agents need nothing else.

use std::fmt;
use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::drained::DrainedServer;
use crate::forwarding::{
    ExternalTrafficPolicy, ForwardingMode, PoolSelection, Protocol, ServerSelection, WhenAllDown,
};
use crate::health_check::HealthCheck;
use crate::limits::{
    MAX_ADDRESS_LENGTH, MAX_ADDRESSES, MAX_DRAINED_SERVERS, MAX_GROUP_NAME_LENGTH,
    MAX_LABEL_LENGTH, MAX_NAME_LENGTH, MAX_POOLS, MAX_PORTS, MAX_REVISION, MAX_STATIC_SERVERS,
};
use crate::real_server_pool::{Drain, OnDown, Warmup};
use crate::selector::LabelSelector;
use crate::sources::DecidedSources;
use crate::target_port::TargetPort;

/// The decision on a virtual server, by which nodes serve it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// From one counter for the whole cluster, raised with every changed decision.
    #[schemars(range(max = MAX_REVISION))]
    pub revision: u64,
    /// Every decision of a virtual server up to this revision was written before this one. A node that has read this one
    /// may acknowledge as much. Less than `revision` if others were being written at the same time.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(max = MAX_REVISION))]
    pub complete_revision: u64,
    /// The generation of the spec that this was resolved from.
    pub generation: i64,
    /// The virtual server as decided.
    #[serde(flatten)]
    pub content: DecidedVirtualServer,
}

/// A virtual server's spec with its texts parsed, and the weights in force. Two decisions of equal content serve alike.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct DecidedVirtualServer {
    /// The VIPs: at most one per family.
    #[schemars(with = "Vec<String>", length(max = MAX_ADDRESSES), inner(length(max = MAX_ADDRESS_LENGTH)))]
    pub addresses: Vec<IpAddr>,
    /// The ports of each VIP.
    #[schemars(length(max = MAX_PORTS))]
    pub ports: Vec<DecidedPort>,
    /// Forwarding mode.
    pub mode: ForwardingMode,
    /// The key that is hashed to choose the pool of a new flow.
    pub pool_selection: PoolSelection,
    /// The key that is hashed to choose the server of a new flow within its pool.
    #[serde(default)]
    pub server_selection: ServerSelection,
    /// Which directors take packets, and for which servers.
    #[serde(default)]
    pub external_traffic_policy: ExternalTrafficPolicy,
    /// What becomes of new flows to a pool whose servers are all down.
    #[serde(default)]
    pub when_all_down: WhenAllDown,
    /// The clients that may begin flows. Absent: everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<DecidedSources>,
    /// The pool that takes new flows where others have too few servers. Absent: none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<DecidedFallback>,
    /// The pools in the order of the spec, then the fallback pool if the spec lists it nowhere.
    #[schemars(length(max = MAX_POOLS))]
    pub pools: Vec<DecidedPool>,
    /// The VIP group of each address that is announced. An address without one is nobody's to announce.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ADDRESSES))]
    pub groups: Vec<AddressGroup>,
}

/// The pool that takes new flows where others have too few servers.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct DecidedFallback {
    /// One of the pools.
    #[schemars(length(max = MAX_NAME_LENGTH))]
    pub pool_name: String,
    /// Percent of a pool's servers that must take flows.
    #[schemars(range(min = 1, max = 100))]
    pub min_ready_percent: u8,
}

/// The VIP group of an address.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "camelCase")]
pub struct AddressGroup {
    /// One of the virtual server's addresses.
    #[schemars(with = "String", length(max = MAX_ADDRESS_LENGTH))]
    pub address: IpAddr,
    /// Name of the group: that of its address pool, a dash and a number; see [`crate::vip_group`].
    #[schemars(length(max = MAX_GROUP_NAME_LENGTH))]
    pub group: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(revision: &u64) -> bool {
    *revision == 0
}

impl DecidedVirtualServer {
    /// Every address with every protocol and port.
    pub fn vip_ports(&self) -> impl Iterator<Item = VipPort> + '_ {
        let of_address = |&address| self.ports.iter().map(move |port| port.at(address));
        self.addresses.iter().flat_map(of_address)
    }
}

/// The key by which a client's packet finds its virtual server. Orders by address, port and protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VipPort {
    /// The VIP.
    pub address: IpAddr,
    /// Port number.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl fmt::Display for VipPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.address, self.protocol, self.port)
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

impl DecidedPort {
    /// This port of a VIP.
    pub const fn at(&self, address: IpAddr) -> VipPort {
        VipPort {
            address,
            port: self.port,
            protocol: self.protocol,
        }
    }
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
    #[schemars(range(max = MAX_REVISION))]
    pub revision: u64,
    /// As [`Decision::complete_revision`], of the decisions of pools.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(max = MAX_REVISION))]
    pub complete_revision: u64,
    /// The generation of the spec that this was resolved from.
    pub generation: i64,
    /// The pool as decided.
    #[serde(flatten)]
    pub content: DecidedRealServerPool,
}

/// A pool's servers, or where they come from. Two decisions of equal content have the same servers.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct DecidedRealServerPool {
    /// Static servers in the order of the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_STATIC_SERVERS))]
    pub servers: Vec<DecidedServer>,
    /// Where the servers come from if they are not static.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<DecidedEndpoints>,
    /// How directors check the servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<Box<HealthCheck>>,
    /// How servers begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<Warmup>,
    /// How long servers that take no new flows keep those that they have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// What becomes of the TCP connections of a server that is down.
    #[serde(default)]
    pub on_down: OnDown,
    /// Servers that take no new flows, whatever else is said of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_DRAINED_SERVERS))]
    pub drained: Vec<DrainedServer>,
    /// Whether connections to the servers are sampled as they begin, since a rollout is to tell how the servers do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sampled: bool,
}

impl DecidedRealServerPool {
    /// Whether this server, of this pod if it is one, is drained by hand.
    pub fn drains(&self, address: IpAddr, pod_uid: Option<&str>) -> bool {
        self.drained
            .iter()
            .any(|server| server.is(address, pod_uid))
    }

    /// Whether a server is to take new flows again that is drained by hand.
    pub fn is_drain_over(&self, now: Timestamp) -> bool {
        self.drained.iter().any(|server| server.is_over(now))
    }

    /// The pods that are the servers, if pods are.
    pub fn selector(&self) -> Option<&LabelSelector> {
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
    pub selector: Option<LabelSelector>,
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
