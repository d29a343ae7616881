//! `VirtualServer`: where clients connect.

use std::net::IpAddr;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::address::parse_ip;
use crate::condition::Condition;
use crate::decision::{
    DecidedFallback, DecidedPool, DecidedPort, DecidedVirtualServer, Decision, VipPort,
};
use crate::forwarding::{
    ExternalTrafficPolicy, ForwardingMode, IpFamily, PoolSelection, Protocol, ServerSelection,
    WhenAllDown,
};
use crate::limits::{
    DEFAULT_MIN_READY_PERCENT, MAX_ADDRESS_LENGTH, MAX_ADDRESSES, MAX_CONDITIONS, MAX_LABEL_LENGTH,
    MAX_NAME_LENGTH, MAX_POOL_WEIGHT, MAX_POOLS, MAX_PORTS,
};
use crate::rules;
use crate::sources::{DecidedSources, Sources};

/// An address, protocol and ports that clients connect to, and the pools that serve them.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, PartialEq, Debug)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "VirtualServer",
    plural = "virtualservers",
    shortname = "vsrv",
    category = "sluice",
    namespaced,
    status = "VirtualServerStatus",
    derive = "PartialEq",
    doc = "An address, protocol and ports that clients connect to, and the pools that serve them.",
    printcolumn(
        name = "Addresses",
        type_ = "string",
        json_path = ".status.decision.addresses"
    ),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.forwarding.mode"),
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
        name = "Weights",
        type_ = "string",
        json_path = ".status.acknowledged.pools[*].weight",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::fallback_fits()))]
pub struct VirtualServerSpec {
    /// The VIPs: at most one per family.
    #[schemars(length(min = 1, max = MAX_ADDRESSES))]
    #[schemars(extend("x-kubernetes-validations" = rules::one_per_family()))]
    pub addresses: Vec<VirtualServerAddress>,
    /// The ports of each VIP.
    #[schemars(length(min = 1, max = MAX_PORTS))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[schemars(extend("x-kubernetes-validations" = rules::unique_port()))]
    pub ports: Vec<VirtualServerPort>,
    /// How packets reach the real servers.
    pub forwarding: Forwarding,
    /// The key that is hashed to choose the pool of a new flow.
    #[serde(default)]
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
    /// Name of a RealServerPool in the same namespace that takes the new flows of each pool of which fewer than `minReadyPercent` of the
    /// servers take flows. Absent: none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_NAME_LENGTH), regex(pattern = rules::SUBDOMAIN))]
    pub fallback_pool_name: Option<String>,
    /// Percent of a pool's servers that must take flows, by Kubernetes' word and by health checks, or the fallback pool takes its new
    /// flows. 1: the last one.
    #[serde(default = "min_ready_percent")]
    #[schemars(range(min = 1, max = 100))]
    pub min_ready_percent: u8,
    /// The clients that may begin flows. Absent: everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<Sources>,
    /// The pools and their weights: a pool takes new flows in proportion of its weight to the sum of all.
    #[schemars(length(min = 1, max = MAX_POOLS))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[schemars(extend("x-kubernetes-validations" = rules::some_weight()))]
    pub pools: Vec<WeightedPool>,
}

const fn min_ready_percent() -> u8 {
    DEFAULT_MIN_READY_PERCENT
}

/// A VIP: a certain address, or one that the operator chooses.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::one_request()))]
pub struct VirtualServerAddress {
    /// An IPv4 or IPv6 address that no node has as its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = MAX_ADDRESS_LENGTH))]
    #[schemars(extend("x-kubernetes-validations" = rules::ip_address()))]
    pub ip: Option<String>,
    /// Any address of this family. The virtual server keeps the one that it gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<IpFamily>,
    /// The AddressPool that an address of this family is to come from. Absent: any that assigns addresses by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_NAME_LENGTH), regex(pattern = rules::SUBDOMAIN))]
    pub address_pool_name: Option<String>,
}

impl VirtualServerAddress {
    /// This address and no other.
    pub fn of(ip: impl Into<String>) -> Self {
        Self {
            ip: Some(ip.into()),
            family: None,
            address_pool_name: None,
        }
    }

    /// The address that is asked for, if it is a certain one and its text is an address.
    pub fn certain(&self) -> Option<IpAddr> {
        parse_ip(self.ip.as_deref()?)
    }
}

impl VirtualServerSpec {
    /// The addresses that it names. Texts that are no address are left out: validate first.
    pub fn certain_addresses(&self) -> Vec<IpAddr> {
        let requests = self.addresses.iter();
        requests.filter_map(VirtualServerAddress::certain).collect()
    }

    /// The fallback pool, unless it has a share in the virtual server anyway.
    pub fn further_pool(&self) -> Option<&str> {
        let name = self.fallback_pool_name.as_deref()?;
        let is_listed = self.pools.iter().any(|pool| pool.name == name);
        (!is_listed).then_some(name)
    }
}

/// A port that clients connect to.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct VirtualServerPort {
    /// Name by which target ports refer to this port (RFC 1123 label).
    #[schemars(length(min = 1, max = MAX_LABEL_LENGTH), regex(pattern = rules::LABEL))]
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port number.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: u16,
}

/// How packets reach the real servers.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Forwarding {
    /// Forwarding mode.
    pub mode: ForwardingMode,
}

/// A pool and its weight.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct WeightedPool {
    /// Name of a RealServerPool in the same namespace.
    #[schemars(length(min = 1, max = MAX_NAME_LENGTH), regex(pattern = rules::SUBDOMAIN))]
    pub name: String,
    /// Share of new flows, relative to the other pools' weights; 0 takes none.
    #[schemars(range(max = MAX_POOL_WEIGHT))]
    pub weight: u32,
}

impl DecidedVirtualServer {
    /// The content that a spec asks for, with its own weights and these addresses, of which none is announced. A fallback pool is one of its
    /// pools.
    pub fn of_spec(spec: &VirtualServerSpec, addresses: Vec<IpAddr>) -> Self {
        let port = |port: &VirtualServerPort| DecidedPort {
            name: port.name.clone(),
            protocol: port.protocol,
            port: port.port,
        };
        let pool = |name: &str, weight| DecidedPool {
            name: name.to_owned(),
            weight,
            spec_weight: weight,
        };
        let weighted = spec.pools.iter();
        let weighted = weighted.map(|it| pool(&it.name, it.weight));
        let further = spec.further_pool().map(|name| pool(name, 0));
        let fallback = spec
            .fallback_pool_name
            .as_ref()
            .map(|name| DecidedFallback {
                pool_name: name.clone(),
                min_ready_percent: spec.min_ready_percent,
            });
        Self {
            addresses,
            ports: spec.ports.iter().map(port).collect(),
            mode: spec.forwarding.mode,
            pool_selection: spec.pool_selection,
            server_selection: spec.server_selection,
            external_traffic_policy: spec.external_traffic_policy,
            when_all_down: spec.when_all_down,
            sources: spec.sources.as_ref().map(DecidedSources::of_spec),
            fallback,
            pools: weighted.chain(further).collect(),
            groups: Vec::new(),
        }
    }
}

/// The state of a virtual server.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct VirtualServerStatus {
    /// The generation that this status is about.
    #[serde(default)]
    pub observed_generation: i64,
    /// `Ready`, `Reconciling`, `Stalled`, `NodesSilent`, `NodeExceptions`, `ForwardingAdvice`.
    #[serde(default)]
    #[schemars(length(max = MAX_CONDITIONS))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The decision that agents forward by: the last spec that was admitted, with the weights in force. Absent: not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// The revision that nodes acknowledged, and its weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<Acknowledged>,
    /// What the spec asks for while another virtual server has some of it. Absent: it waits for nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
}

/// The VIP ports that a virtual server waits for.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// Of those that wait for a VIP port the one with the lowest turn gets it when it is free. A spec that asks for more gets a
    /// new turn.
    pub turn: u64,
    /// The VIPs that the spec asks for.
    #[schemars(with = "Vec<String>", length(max = MAX_ADDRESSES), inner(length(max = MAX_ADDRESS_LENGTH)))]
    pub addresses: Vec<IpAddr>,
    /// The ports that it asks for.
    #[schemars(length(max = MAX_PORTS))]
    pub ports: Vec<DecidedPort>,
}

impl Claim {
    /// Every address with every protocol and port.
    pub fn vip_ports(&self) -> impl Iterator<Item = VipPort> + '_ {
        let of_address = |&address| self.ports.iter().map(move |port| port.at(address));
        self.addresses.iter().flat_map(of_address)
    }
}

/// The revision of a virtual server's decision that nodes acknowledged, and its weights.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct Acknowledged {
    /// The last revision of this virtual server's decision that every live node acknowledged; 0 = none yet. A node counts
    /// from its first acknowledgement on.
    pub revision: u64,
    /// The weights of that revision.
    #[schemars(length(max = MAX_POOLS))]
    pub pools: Vec<DecidedPool>,
}
