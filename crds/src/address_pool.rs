//! `AddressPool`: which addresses virtual servers may have, and who announces them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::address::parse_ip;
use crate::address_range::AddressRange;
use crate::condition::Condition;
use crate::limits::{
    DEFAULT_POOL_GROUPS, MAX_ADDRESS_LENGTH, MAX_ANNOUNCING_NODES, MAX_CONDITIONS,
    MAX_INTERFACE_NAME_LENGTH, MAX_INTERFACES, MAX_LABEL_LENGTH, MAX_NAME_LENGTH,
    MAX_POOL_GATEWAYS, MAX_POOL_GROUPS, MAX_POOL_NAMESPACES, MAX_POOL_PRIORITY, MAX_POOL_RANGES,
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
    /// How the network learns which director has an address. Absent: `l2` on every uplink of every director.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announce: Option<Announce>,
}

/// Who may use a pool: the namespaces that are named, and those that are selected; without either, all.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::some_allowed()))]
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
    /// Services of type LoadBalancer in these namespaces, by their labels. Absent: all of them. Virtual servers that were not made for
    /// a Service may use the pool whatever this says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_selector: Option<LabelSelector>,
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

/// How the network learns which director has an address: exactly one way.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::one_announcement()))]
pub struct Announce {
    /// One director of each VIP group answers ARP (RFC 826) and neighbour discovery (RFC 4861) for the addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l2: Option<L2Announcement>,
    /// Nobody announces the addresses: the network routes them to the directors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub none: Option<NoAnnouncement>,
}

/// Announcement by ARP and neighbour discovery.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::one_gateway_group()))]
pub struct L2Announcement {
    /// The uplinks on which the addresses are announced. Absent: every one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_INTERFACES))]
    #[schemars(inner(length(min = 1, max = MAX_INTERFACE_NAME_LENGTH), regex(pattern = rules::INTERFACE)))]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub interfaces: Vec<String>,
    /// The nodes that may announce the addresses, by the labels of their Nodes; in standalone mode by those of their
    /// LoadBalancerNodes. Absent: every director.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// VIP groups that the pool's addresses are divided into. All addresses of a group are announced by one node.
    #[serde(default = "default_groups")]
    #[schemars(range(min = 1, max = MAX_POOL_GROUPS))]
    pub groups: u8,
    /// Addresses that NAT servers have as their gateways. The director that announces the pool's addresses announces these too, on
    /// every uplink in whose subnets they are, so that replies follow the VIPs. They need `groups: 1`, and are no VIPs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_POOL_GATEWAYS), inner(length(min = 2, max = MAX_ADDRESS_LENGTH)))]
    #[schemars(extend("x-kubernetes-list-type" = "set", "x-kubernetes-validations" = rules::ip_addresses()))]
    pub gateways: Vec<String>,
}

impl L2Announcement {
    /// The gateways. Texts that are no address are left out: validate first.
    pub fn gateways(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.gateways.iter().filter_map(|text| parse_ip(text))
    }
}

/// No settings: the network routes the addresses.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NoAnnouncement {}

impl Default for L2Announcement {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            node_selector: None,
            groups: DEFAULT_POOL_GROUPS,
            gateways: Vec::new(),
        }
    }
}

const fn default_groups() -> u8 {
    DEFAULT_POOL_GROUPS
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
    /// The decision by which agents announce the pool's addresses. Absent: the pool is refused, or was not looked at yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<AddressPoolDecision>,
}

/// What the operator resolved of a pool. Agents need nothing else of it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolDecision {
    /// The generation of the spec that this was resolved from.
    pub generation: i64,
    /// The announcement by ARP and neighbour discovery. Absent: nobody announces the addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l2: Option<DecidedL2>,
}

/// The announcement of a pool's addresses by ARP and neighbour discovery, as decided.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct DecidedL2 {
    /// The uplinks on which the addresses are announced. Empty: every one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_INTERFACES), inner(length(max = MAX_INTERFACE_NAME_LENGTH)))]
    pub interfaces: Vec<String>,
    /// The nodes that may announce the addresses, in order. Absent: every director.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_ANNOUNCING_NODES), inner(length(max = MAX_NAME_LENGTH)))]
    pub nodes: Option<Vec<String>>,
    /// The pool's VIP groups are those with the numbers below this. More than the spec says while addresses of other groups are
    /// in use.
    #[schemars(range(min = 1, max = MAX_POOL_GROUPS))]
    pub groups: u8,
    /// Gateways of NAT servers. They are in the first group.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(with = "Vec<String>", length(max = MAX_POOL_GATEWAYS), inner(length(max = MAX_ADDRESS_LENGTH)))]
    pub gateways: BTreeSet<IpAddr>,
}

const fn yes() -> bool {
    true
}

impl AddressPoolSpec {
    /// The announcement by ARP and neighbour discovery; `None`: nobody announces the addresses.
    pub fn l2(&self) -> Option<L2Announcement> {
        match &self.announce {
            None => Some(L2Announcement::default()),
            Some(announce) => announce.l2.clone(),
        }
    }

    /// The addresses. Texts that are no range are left out: validate first.
    pub fn ranges(&self) -> impl Iterator<Item = AddressRange> + '_ {
        let texts = self.addresses.iter();
        texts.filter_map(|text| AddressRange::parse(text).ok())
    }

    /// Whether a namespace with these labels may use the pool, for a Service with the labels of the last argument if it is for one.
    pub fn allows(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        service: Option<&BTreeMap<String, String>>,
    ) -> bool {
        self.allow.as_ref().is_none_or(|allow| {
            let selector = allow.namespace_selector.as_ref();
            let is_for_all = allow.namespaces.is_empty() && selector.is_none();
            let allows_namespace = is_for_all
                || allow.namespaces.iter().any(|name| name == namespace)
                || selector.is_some_and(|selector| selector.matches(labels));
            let services = allow.service_selector.as_ref().zip(service);
            allows_namespace && services.is_none_or(|(selector, labels)| selector.matches(labels))
        })
    }
}
