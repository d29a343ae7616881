//! `RealServerPool`: the real servers behind one version of a service.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::decision::PoolDecision;
use crate::health_check::HealthCheck;
use crate::limits::{
    MAX_ADDRESS_LENGTH, MAX_CONDITIONS, MAX_DRAIN_SECONDS, MAX_LABEL_LENGTH, MAX_PORTS,
    MAX_SERVER_WEIGHT, MAX_STATIC_SERVERS, MAX_WARMUP_SECONDS,
};
use crate::rules;
use crate::selector::LabelSelector;
use crate::target_port::TargetPort;

/// The real servers behind one version of a service.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, PartialEq, Debug)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "RealServerPool",
    plural = "realserverpools",
    shortname = "rsp",
    category = "sluice",
    namespaced,
    status = "RealServerPoolStatus",
    derive = "PartialEq",
    doc = "The real servers behind one version of a service.",
    printcolumn(name = "Servers", type_ = "integer", json_path = ".status.servers"),
    printcolumn(
        name = "Taking flows",
        type_ = "integer",
        json_path = ".status.readyServers"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct RealServerPoolSpec {
    /// Where the servers come from.
    pub servers: Servers,
    /// Ports on the servers by the name of the virtual server's port; a name without an entry keeps the virtual
    /// server's port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_PORTS))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub target_ports: Vec<TargetPort>,
    /// How directors find out which servers work. Those that are down take no new flows as long as others are up. Absent: all
    /// servers take flows that Kubernetes calls ready, and static ones always do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<Box<HealthCheck>>,
    /// How a server begins. Absent: with its whole share of new flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<Warmup>,
    /// How long servers that take no new flows keep the flows that they have. Absent: those with weight 0, and pods that are not
    /// ready, until the flows end; those that are removed not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// What becomes of the TCP connections of a server that is down while others are up. UDP flows go to other servers at once.
    #[serde(default)]
    pub on_down: OnDown,
}

/// What becomes of the TCP connections of a server that is down while others are up.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnDown {
    /// They go on: the check may be wrong, or the server come back.
    #[default]
    Keep,
    /// A client's next packet is answered by a reset, so that it connects anew at once.
    Reset,
}

/// What becomes of the flows of a server that has been drained for long enough.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DrainEnd {
    /// They are forgotten: a packet of such a flow goes to another server, which answers that of a TCP connection with a reset. Under
    /// FullNAT it is dropped.
    #[default]
    Forget,
    /// A client's next packet of a TCP connection is answered by a reset. Ten minutes later, and of UDP at once, they are forgotten.
    Reset,
}

/// How long servers keep flows once they take no new ones: those with weight 0, pods that are not ready or terminating, and
/// servers that were removed from the pool.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// After how many seconds their flows end.
    #[schemars(range(min = 1, max = MAX_DRAIN_SECONDS))]
    pub timeout_seconds: u32,
    /// How they end then.
    #[serde(default)]
    pub then: DrainEnd,
}

/// How a server that joins others, or that is up again, gets its share of new flows: a tenth at first, and more by equal steps.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Warmup {
    /// After how many seconds it has its whole share.
    #[schemars(range(min = 1, max = MAX_WARMUP_SECONDS))]
    pub seconds: u32,
}

/// Where the servers come from: exactly one of the fields.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::one_source()))]
pub struct Servers {
    /// The pods of this namespace with these labels. Ready ones take new flows, others keep those they have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// Name of a Service in this namespace: its endpoints are the servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_LABEL_LENGTH), regex(pattern = rules::LABEL))]
    pub service_name: Option<String>,
    /// Servers given one by one.
    #[serde(rename = "static", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = MAX_STATIC_SERVERS))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub static_servers: Vec<StaticServer>,
}

/// A server given by its address.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct StaticServer {
    /// Name, unique in the pool (RFC 1123 label).
    #[schemars(length(min = 1, max = MAX_LABEL_LENGTH), regex(pattern = rules::LABEL))]
    pub name: String,
    /// IPv4 or IPv6 address.
    #[schemars(length(min = 2, max = MAX_ADDRESS_LENGTH))]
    #[schemars(extend("x-kubernetes-validations" = rules::ip_address()))]
    pub address: String,
    /// Share of the pool's new flows, relative to the other servers' weights; absent means 1, 0 takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = MAX_SERVER_WEIGHT))]
    pub weight: Option<u32>,
    /// Ports on this server; they go before the pool's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_PORTS))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub target_ports: Vec<TargetPort>,
}

/// The state of a pool.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct RealServerPoolStatus {
    /// The generation that this status is about.
    #[serde(default)]
    pub observed_generation: i64,
    /// `Ready`, `Reconciling`, `Stalled`.
    #[serde(default)]
    #[schemars(length(max = MAX_CONDITIONS))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The decision that agents take servers from: the last spec that was accepted. Absent: the pool is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<PoolDecision>,
    /// Number of servers: of static ones those in the decision, else the endpoints that there are now.
    #[serde(default)]
    pub servers: u32,
    /// Those of them that take new flows as far as Kubernetes tells: weight above 0, and ready where they are pods.
    #[serde(default)]
    pub ready_servers: u32,
}
