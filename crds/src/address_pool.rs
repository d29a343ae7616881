//! `AddressPool`: which addresses virtual servers may have.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::address_range::AddressRange;
use crate::condition::Condition;
use crate::limits::{
    MAX_CONDITIONS, MAX_LABEL_LENGTH, MAX_POOL_NAMESPACES, MAX_POOL_PRIORITY, MAX_POOL_RANGES,
    MAX_RANGE_LENGTH,
};
use crate::rules;
use crate::selector::LabelSelector;

/// Addresses that virtual servers may have as VIPs, and the namespaces that may use them.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, PartialEq, Debug)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "AddressPool",
    plural = "addresspools",
    shortname = "apool",
    category = "sluice",
    status = "AddressPoolStatus",
    derive = "PartialEq",
    doc = "Addresses that virtual servers may have as VIPs, and the namespaces that may use them.",
    printcolumn(name = "Addresses", type_ = "string", json_path = ".spec.addresses"),
    printcolumn(name = "Auto", type_ = "boolean", json_path = ".spec.autoAssign"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Exhausted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Exhausted')].status"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolSpec {
    /// Blocks (`203.0.113.0/28`), ranges (`203.0.113.10-203.0.113.20`) and addresses, of either family. No other pool may have
    /// any of them. Whoever asks for no certain address never gets the first and last address of an IPv4 block, nor the first one
    /// of an IPv6 block.
    #[schemars(length(min = 1, max = MAX_POOL_RANGES), inner(length(min = 2, max = MAX_RANGE_LENGTH)))]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    #[schemars(extend("x-kubernetes-validations" = rules::address_ranges()))]
    pub addresses: Vec<String>,
    /// Who may use the pool. Absent: every namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Allowed>,
    /// Of the pools that a virtual server may get an address from, the one with the highest priority that has a free one serves
    /// it; of equal ones, the first by name.
    #[serde(default)]
    #[schemars(range(max = MAX_POOL_PRIORITY))]
    pub priority: u32,
    /// Whether virtual servers that name no pool get addresses from it. `false`: only those that name the pool, or the address.
    #[serde(default = "yes")]
    pub auto_assign: bool,
    /// Which virtual servers may have one address together, each with ports of its own.
    #[serde(default)]
    pub sharing: AddressSharing,
}

/// Namespaces that may use a pool: those that are named, and those that are selected.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::some_namespace()))]
pub struct Allowed {
    /// Names of namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_POOL_NAMESPACES))]
    #[schemars(inner(length(min = 1, max = MAX_LABEL_LENGTH), regex(pattern = rules::LABEL)))]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub namespaces: Vec<String>,
    /// Namespaces by their labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
}

/// Which virtual servers may have one address together.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AddressSharing {
    /// Those of one namespace.
    #[default]
    Namespace,
    /// Those of all namespaces that may use the pool.
    Cluster,
}

/// The state of an address pool. How much of it is in use is a metric of the operator.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolStatus {
    /// The generation that this status is about.
    #[serde(default)]
    pub observed_generation: i64,
    /// `Ready`, `Reconciling`, `Stalled`, `Exhausted`, `InUseOutside`.
    #[serde(default)]
    #[schemars(length(max = MAX_CONDITIONS))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

const fn yes() -> bool {
    true
}

impl AddressPoolSpec {
    /// The addresses. Texts that are no range are left out: validate first.
    pub fn ranges(&self) -> impl Iterator<Item = AddressRange> + '_ {
        let texts = self.addresses.iter();
        texts.filter_map(|text| AddressRange::parse(text).ok())
    }

    /// Whether a namespace with these labels may use the pool.
    pub fn allows(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        self.allow.as_ref().is_none_or(|allow| {
            let selector = allow.namespace_selector.as_ref();
            allow.namespaces.iter().any(|name| name == namespace)
                || selector.is_some_and(|selector| selector.matches(labels))
        })
    }
}
