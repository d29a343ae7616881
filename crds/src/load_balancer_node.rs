//! `LoadBalancerNode`: what one node's agent does, and what it reports.

use std::net::IpAddr;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::{Condition, ConditionType, Time, true_condition};
use crate::limits::{
    MAX_ADDRESS_CLAIMS, MAX_ADDRESS_LENGTH, MAX_CHECK_FAILURE_LENGTH, MAX_CONDITIONS,
    MAX_DOWN_SERVERS, MAX_EXCEPTIONS, MAX_GATEWAYS, MAX_GROUP_NAME_LENGTH,
    MAX_INTERFACE_NAME_LENGTH, MAX_INTERFACES, MAX_LABEL_LENGTH, MAX_MAC_LENGTH,
    MAX_MESSAGE_LENGTH, MAX_NAME_LENGTH, MAX_NEW_ADDRESSES, MAX_NODE_ADDRESSES, MAX_NODE_GROUPS,
    MAX_REVISION, MAX_UNHELD_GROUPS, MAX_UNLISTED_EXCEPTIONS,
};
use crate::mac::MacAddress;
use crate::object::{Kind, ObjectKey};
use crate::rules;

/// The settings and the report of one node's agent.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, PartialEq, Debug)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "LoadBalancerNode",
    plural = "loadbalancernodes",
    shortname = "lbnode",
    category = "sluice",
    status = "LoadBalancerNodeStatus",
    derive = "PartialEq",
    doc = "What one node's agent does, and what it reports.",
    printcolumn(name = "Role", type_ = "string", json_path = ".spec.role"),
    printcolumn(
        name = "Acknowledged",
        type_ = "integer",
        json_path = ".status.acknowledgedRevision"
    ),
    printcolumn(
        name = "Exceptions",
        type_ = "integer",
        json_path = ".status.exceptionCount"
    ),
    printcolumn(
        name = "Attached",
        type_ = "string",
        json_path = ".status.interfaces[*].attachMode"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerNodeSpec {
    /// The node's role in forwarding.
    #[serde(default)]
    pub role: NodeRole,
    /// Names of the uplinks: where the programs are attached.
    #[schemars(length(min = 1, max = MAX_INTERFACES))]
    #[schemars(inner(length(min = 1, max = MAX_INTERFACE_NAME_LENGTH), regex(pattern = rules::INTERFACE)))]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub interfaces: Vec<String>,
    /// How XDP programs are attached.
    #[serde(default)]
    pub xdp_mode: XdpMode,
    /// Whether the node is to hold no VIP group, for work on it. It hands over those that it holds, and goes on forwarding.
    #[serde(default, skip_serializing_if = "is_false")]
    pub drain: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
pub(crate) fn is_false(flag: &bool) -> bool {
    !flag
}

/// A node's role in forwarding.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum NodeRole {
    /// Receives packets for VIPs and forwards them; servers at its own addresses are served too.
    #[default]
    Director,
    /// Runs the RS side for servers at its own addresses.
    RealServer,
}

/// How XDP programs are attached.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum XdpMode {
    /// In the driver where it can, else generic.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the stack.
    Generic,
}

/// The report of a node's agent.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerNodeStatus {
    /// The generation of the spec that the agent runs.
    #[serde(default)]
    pub observed_generation: i64,
    /// `Ready`, `NotAttached`, `NearlyFull`, `NetworkAdvice`, `AddressClaimed`, `ServersDown` and `Detached` by the agent, `Silent` by the operator.
    #[serde(default)]
    #[schemars(length(max = MAX_CONDITIONS))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The node's own addresses: those of its uplinks, of interfaces on top of them and, on a director, of loopback interfaces.
    /// Link-local addresses, 127.0.0.0/8 and ::1 are left out.
    #[serde(default)]
    #[schemars(with = "Vec<String>", length(max = MAX_NODE_ADDRESSES), inner(length(max = MAX_ADDRESS_LENGTH)))]
    pub addresses: Vec<IpAddr>,
    /// Every decision on a virtual server up to this revision is live, the exceptions aside.
    #[serde(default)]
    #[schemars(range(max = MAX_REVISION))]
    pub acknowledged_revision: u64,
    /// Every decision on a pool up to this revision is live, the exceptions aside. It has a number of its own, since an API
    /// server tells of changes in order within a kind only.
    #[serde(default)]
    #[schemars(range(max = MAX_REVISION))]
    pub acknowledged_pool_revision: u64,
    /// Objects that are not live or not as decided, and why: one entry an object.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_EXCEPTIONS))]
    pub exceptions: Vec<NodeException>,
    /// Number of all exceptions, including those that `exceptions` has no room for.
    #[serde(default)]
    pub exception_count: u32,
    /// The objects for which `exceptions` has no room, each by the FNV-1a hash of `Kind/namespace/name`, in ascending order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_UNLISTED_EXCEPTIONS))]
    pub unlisted_exceptions: Vec<u32>,
    /// Standalone mode: when the agent last said that it lives. Only its change counts: clocks of nodes are never compared.
    /// In Kubernetes the node's Lease says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_time: Option<Time>,
    /// The uplinks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_INTERFACES))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub interfaces: Vec<InterfaceStatus>,
    /// The VIP groups that the node takes part in. An entry changes only when the node's role in the group does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_NODE_GROUPS))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub groups: Vec<GroupStatus>,
    /// VIP groups for whose addresses nobody answers, as the first two of their candidates find.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_UNHELD_GROUPS))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub unheld_groups: Vec<UnheldGroup>,
    /// VIPs of groups that the node holds for which it does not answer yet, or not at all, since another host may have them; the first
    /// of them in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", length(max = MAX_NEW_ADDRESSES), inner(length(max = MAX_ADDRESS_LENGTH)))]
    pub new_addresses: Vec<IpAddr>,
    /// Claims of VIPs by hosts that are no directors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ADDRESS_CLAIMS))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["address", "interface", "macAddress"]))]
    pub address_claims: Vec<AddressClaim>,
    /// Servers that fail their checks, as this node sees it; the first of them in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_DOWN_SERVERS))]
    pub down_servers: Vec<DownServer>,
    /// The node's kernel and those of its features that the agent uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// Limits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub capacity: Vec<CapacityEntry>,
}

impl LoadBalancerNodeStatus {
    /// On which uplinks the programs are not, and why: an exception for every virtual server, of which the list has no entries.
    pub fn not_attached(&self) -> Option<&str> {
        let condition = true_condition(&self.conditions, ConditionType::NotAttached)?;
        Some(&condition.message)
    }

    /// Whether the node has an exception for this object that its list has no room for, as far as it can be told.
    pub fn has_unlisted(&self, kind: ExceptionKind, object: &ObjectKey) -> bool {
        let told = self.exceptions.len() + self.unlisted_exceptions.len();
        let is_cut = self.exception_count as usize > told;
        if !is_cut && self.unlisted_exceptions.is_empty() {
            return false;
        }
        let hash = kind.hash_of(object);
        let last = self.unlisted_exceptions.last();
        self.unlisted_exceptions.binary_search(&hash).is_ok()
            || is_cut && last.is_none_or(|last| *last < hash)
    }
}

/// Something that a node cannot do as decided.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "camelCase")]
pub struct NodeException {
    /// Kind of the object.
    pub kind: ExceptionKind,
    /// Its namespace.
    #[schemars(length(max = MAX_LABEL_LENGTH))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(max = MAX_NAME_LENGTH))]
    pub name: String,
    /// CamelCase reason.
    #[schemars(length(max = MAX_LABEL_LENGTH))]
    pub reason: String,
    /// The problem and the remedy.
    #[schemars(length(max = MAX_MESSAGE_LENGTH))]
    pub message: String,
}

/// Kinds that exceptions are about.
#[derive(
    JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug,
)]
pub enum ExceptionKind {
    /// A virtual server.
    VirtualServer,
    /// A pool.
    RealServerPool,
}

impl ExceptionKind {
    /// The number by which [`LoadBalancerNodeStatus::unlisted_exceptions`] names an object: FNV-1a of 32 bits.
    pub fn hash_of(self, object: &ObjectKey) -> u32 {
        let kind = match self {
            Self::VirtualServer => Kind::VirtualServer,
            Self::RealServerPool => Kind::RealServerPool,
        };
        let text = format!("{kind}/{object}");
        text.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        })
    }
}

/// An uplink.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceStatus {
    /// Name of the interface.
    #[schemars(length(max = MAX_INTERFACE_NAME_LENGTH))]
    pub name: String,
    /// How the program is attached.
    pub attach_mode: AttachMode,
    /// Why it is attached like that, or not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_MESSAGE_LENGTH))]
    pub reason: Option<String>,
    /// Its MAC address. Absent if it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = MAX_MAC_LENGTH))]
    pub mac_address: Option<MacAddress>,
    /// Whether its path was whole for the stable time without a pause.
    #[serde(default, skip_serializing_if = "is_false")]
    pub steady: bool,
    /// The gateways of the default routes through it, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", length(max = MAX_GATEWAYS), inner(length(max = MAX_ADDRESS_LENGTH)))]
    pub gateways: Vec<IpAddr>,
}

/// A VIP group that a node takes part in.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct GroupStatus {
    /// Name of the group.
    #[schemars(length(max = MAX_GROUP_NAME_LENGTH))]
    pub name: String,
    /// The node's role in it.
    pub role: GroupRole,
    /// By what a holder holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<Authority>,
}

/// A VIP group for whose addresses nobody answers.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct UnheldGroup {
    /// Name of the group.
    #[schemars(length(max = MAX_GROUP_NAME_LENGTH))]
    pub name: String,
    /// Since when, by the node's clock.
    pub since: Time,
    /// Why, if the node knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<UnheldReason>,
}

/// Why nobody holds a VIP group.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnheldReason {
    /// No director may hold it: all are drained, excluded or without a report.
    NoCandidate,
    /// The API server does not take what this node writes into the Lease.
    LeaseRefused,
    /// The node hears nobody at all on the link: it may be cut off itself.
    NoWitness,
    /// Other hosts have all addresses of the group.
    AddressInUse,
    /// The group is one virtual server's whose traffic policy is `Local`, and no director that may hold it has a server that takes
    /// flows.
    NoLocalServer,
}

/// A claim of a VIP by a host that is no director.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct AddressClaim {
    /// The VIP.
    #[schemars(with = "String", length(max = MAX_ADDRESS_LENGTH))]
    pub address: IpAddr,
    /// The uplink on which it was claimed.
    #[schemars(length(max = MAX_INTERFACE_NAME_LENGTH))]
    pub interface: String,
    /// The host's MAC address.
    #[schemars(with = "String", length(max = MAX_MAC_LENGTH))]
    pub mac_address: MacAddress,
    /// Whether the node does not announce the VIP for that reason: it is new, and the host had it before.
    #[serde(default, skip_serializing_if = "is_false")]
    pub withheld: bool,
}

/// A server that fails its checks.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct DownServer {
    /// The pool's namespace.
    #[schemars(length(max = MAX_NAME_LENGTH))]
    pub namespace: String,
    /// The pool's name.
    #[schemars(length(max = MAX_NAME_LENGTH))]
    pub pool: String,
    /// The server's address.
    #[schemars(with = "String", length(max = MAX_ADDRESS_LENGTH))]
    pub address: IpAddr,
    /// The port on it that was checked; absent: none, since it is checked by ICMP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Why the check failed that decided it.
    #[schemars(length(max = MAX_CHECK_FAILURE_LENGTH))]
    pub reason: String,
}

/// A node's role in a VIP group.
#[derive(
    JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug,
)]
pub enum GroupRole {
    /// It announces the group's addresses.
    Holder,
    /// It may take the group over.
    Candidate,
}

/// By what a node holds a VIP group.
#[derive(
    JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug,
)]
pub enum Authority {
    /// By the group's Lease.
    Lease,
    /// Since no other node answers for the group's addresses.
    Peers,
}

/// How a program is attached.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttachMode {
    /// In the driver.
    Native,
    /// In the stack.
    Generic,
    /// Not attached.
    None,
}

/// A node's kernel and those of its features that the agent uses.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// As `uname -r` says.
    #[serde(default)]
    #[schemars(length(max = 128))]
    pub kernel_release: String,
    /// CamelCase names of what the agent found and uses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = MAX_LABEL_LENGTH)))]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub features: Vec<String>,
}

/// A limit. How much of it is used is a metric.
#[derive(JsonSchema, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct CapacityEntry {
    /// CamelCase name of what is limited.
    #[schemars(length(max = MAX_LABEL_LENGTH))]
    pub name: String,
    /// The most there can be.
    pub limit: u64,
}
