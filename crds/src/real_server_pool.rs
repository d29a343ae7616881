//! `RealServerPool`: the real servers behind one version of a service.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::decision::PoolDecision;
use crate::limits::{
    MAX_ADDRESS_LENGTH, MAX_CONDITIONS, MAX_LABEL_KEY_LENGTH, MAX_LABEL_LENGTH,
    MAX_PORT_NAME_LENGTH, MAX_PORTS, MAX_SELECTOR_CONDITIONS, MAX_SELECTOR_VALUES,
    MAX_SERVER_WEIGHT, MAX_STATIC_SERVERS,
};
use crate::rules;

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
}

/// Where the servers come from: exactly one of the fields.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::one_source()))]
pub struct Servers {
    /// The pods of this namespace with these labels. Ready ones take new flows, others keep those they have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<PodSelector>,
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

/// Which pods: those that meet every condition.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::some_condition()))]
pub struct PodSelector {
    /// Labels and their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = MAX_SELECTOR_CONDITIONS))]
    #[schemars(extend("additionalProperties" = rules::label_value()))]
    pub match_labels: BTreeMap<String, String>,
    /// Further conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_SELECTOR_CONDITIONS))]
    pub match_expressions: Vec<LabelRequirement>,
}

/// A condition on a label.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::values_fit_operator()))]
pub struct LabelRequirement {
    /// The label's name.
    #[schemars(length(min = 1, max = MAX_LABEL_KEY_LENGTH))]
    pub key: String,
    /// What is asked of its value.
    pub operator: LabelOperator,
    /// The values for `In` and `NotIn`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_SELECTOR_VALUES), inner(length(max = MAX_LABEL_LENGTH)))]
    pub values: Vec<String>,
}

/// What is asked of a label.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum LabelOperator {
    /// It has one of the values.
    In,
    /// It is absent or has none of the values.
    NotIn,
    /// It is there.
    Exists,
    /// It is absent.
    DoesNotExist,
}

impl PodSelector {
    /// Whether an object with these labels is meant.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| {
                let value = labels.get(&requirement.key);
                let listed = value.is_some_and(|value| requirement.values.contains(value));
                match requirement.operator {
                    LabelOperator::In => listed,
                    LabelOperator::NotIn => !listed,
                    LabelOperator::Exists => value.is_some(),
                    LabelOperator::DoesNotExist => value.is_none(),
                }
            })
    }
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

/// A port on a server.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "camelCase")]
pub struct TargetPort {
    /// Name of the virtual server's port.
    #[schemars(length(min = 1, max = MAX_LABEL_LENGTH), regex(pattern = rules::LABEL))]
    pub name: String,
    /// Port number on the server, or a name: of a container port where pods are selected, of the Service's port where
    /// a Service is named.
    pub port: PortRef,
}

/// A port by number or by name.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(untagged)]
pub enum PortRef {
    /// From 1 to 65,535.
    Number(u16),
    /// The name of a port.
    Name(String),
}

impl PortRef {
    /// The number, if it is one.
    pub const fn number(&self) -> Option<u16> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Name(_) => None,
        }
    }
}

impl From<u16> for PortRef {
    fn from(number: u16) -> Self {
        Self::Number(number)
    }
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl JsonSchema for PortRef {
    fn schema_name() -> Cow<'static, str> {
        "PortRef".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // Of these limits the first two speak of numbers, the others of texts. A CEL rule would be refused for its cost: in
        // it, a text that may be a number counts as one of any length.
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "minimum": 1,
            "maximum": u16::MAX,
            "minLength": 1,
            "maxLength": MAX_PORT_NAME_LENGTH,
        })
    }
}

/// What became of a pool.
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
    /// What agents forward to: the last spec that was accepted. Absent: the pool is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<PoolDecision>,
    /// Number of servers: of static ones those in the decision, else the endpoints that there are now.
    #[serde(default)]
    pub servers: u32,
    /// Those of them that take new flows as far as Kubernetes tells: weight above 0, and ready where they are pods.
    #[serde(default)]
    pub ready_servers: u32,
}
