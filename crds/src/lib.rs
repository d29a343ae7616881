//! Sluice's API: group `sluice.dev`, version `v1alpha1`.
//!
//! A user writes `spec`; only Sluice writes `status`. What the operator makes of a spec is the *decision* in `status`
//! ([`Decision`], [`PoolDecision`]): the only thing agents forward by. All other status tells what nodes report.
//!
//! | kind | short | scope | says |
//! |---|---|---|---|
//! | [`VirtualServer`] | `vsrv` | namespace | where clients connect, and which pools serve them in which proportion |
//! | [`RealServerPool`] | `rsp` | namespace | the real servers behind one version of a service |
//! | [`RolloutPolicy`] | `rop` | namespace | how a virtual server's share moves from a stable to a candidate pool |
//! | [`LoadBalancerNode`] | `lbnode` | cluster | what one node's agent does, and what it reports |
//! | [`AddressPool`] | `apool` | cluster | which addresses virtual servers may have, and whose |
//!
//! The same types serve Kubernetes and standalone mode.
#![forbid(unsafe_code)]
#![allow(
    clippy::duplicated_attributes,
    reason = "repeated keys in different print columns are counted as duplicates"
)]

mod address;
mod address_pool;
mod address_range;
mod condition;
mod decision;
mod drained;
mod forwarding;
pub mod generate;
mod health_check;
mod limits;
mod load_balancer_node;
mod mac;
mod object;
mod peers;
mod real_server_pool;
mod rollout_analysis;
mod rollout_policy;
mod rules;
pub mod schema;
mod selector;
mod service;
mod sources;
mod target_port;
mod validate;
mod virtual_server;

pub use address::parse_ip;
pub use address_pool::{
    AddressPool, AddressPoolDecision, AddressPoolSpec, AddressPoolStatus, AddressSharing, Allowed,
    Announce, DecidedL2, L2Announcement, NoAnnouncement,
};
pub use address_range::{AddressRange, next as next_address};
pub use condition::{
    Condition, ConditionType, RECONCILING, Reason, STALLED, Time, find_condition, is_true,
    set_condition, true_condition,
};
pub use decision::{
    AddressGroup, DecidedEndpoints, DecidedFallback, DecidedPool, DecidedPort,
    DecidedRealServerPool, DecidedServer, DecidedTargetPort, DecidedVirtualServer, Decision,
    EndpointSource, PoolDecision, VipPort,
};
pub use drained::{DrainedServer, drained_servers};
pub use forwarding::{
    ExternalTrafficPolicy, ForwardingMode, IpFamily, PoolSelection, Protocol, ServerSelection,
    WhenAllDown,
};
pub use health_check::{
    CheckTls, GrpcCheck, HealthCheck, HttpCheck, HttpHeader, HttpMethod, IcmpCheck, StatusRange,
    TcpCheck, UdpCheck,
};
pub use k8s_openapi::jiff;
pub use limits::*;
pub use load_balancer_node::{
    AddressClaim, AttachMode, Authority, Capabilities, CapacityEntry, DownServer, ExceptionKind,
    GroupRole, GroupStatus, InterfaceStatus, LoadBalancerNode, LoadBalancerNodeSpec,
    LoadBalancerNodeStatus, NodeException, NodeRole, UnheldGroup, UnheldReason, XdpMode,
};
pub use mac::{MacAddress, NoMacAddress};
pub use object::{
    AGENT_MANAGER, CLI_MANAGER, DETACH_ANNOTATION, DRAINED_SERVERS_ANNOTATION, EXCLUDE_LABEL,
    GROUP_LABEL, GROUP_LEASE_SECONDS, Kind, LEDGER_CONFIG_MAP, LEDGER_KEY, NODE_LABEL,
    OPERATOR_MANAGER, ObjectKey, POOL_LABEL, ROLLOUT_COMMAND_ANNOTATION, SERVICE_LABEL,
    SLICE_MANAGER, SLICE_MANAGER_LABEL, SPEC_HASH_ANNOTATION, group_label, group_lease,
    group_of_lease, is_local_group, node_label, node_lease, parse_vip_group, pool_label, vip_group,
};
pub use peers::{
    MAX_PEERS_BYTES, PEERS_CONFIG_MAP, PEERS_KEY, Peer, PeerInterface, Peers, is_usable_for_pods,
    read_peers, write_peers,
};
pub use real_server_pool::{
    Drain, DrainEnd, OnDown, RealServerPool, RealServerPoolSpec, RealServerPoolStatus, Servers,
    StaticServer, Warmup,
};
pub use rollout_analysis::{
    AnalysedMetric, AnalysisBaseline, AnalysisSuspicion, AnalysisVerdict, AnalysisWatcher,
    ClassCount, RolloutAnalysis, SampleCount,
};
pub use rollout_policy::{
    CanaryStep, CanaryStrategy, CommandResult, Gate, HistoryEntry, LastCommand, Rollback,
    RollbackReason, RolloutEvent, RolloutPhase, RolloutPolicy, RolloutPolicySpec,
    RolloutPolicyStatus, RolloutRun, RolloutStep, RolloutStrategy, SignalAnalysis,
    default_bake_seconds,
};
pub use rules::{is_label, is_subdomain};
pub use schema::FieldError;
pub use selector::{LabelOperator, LabelRequirement, LabelSelector};
pub use service::{
    ADDRESS_POOL_ANNOTATION, ADDRESSES_ANNOTATION, MODE_ANNOTATION, SERVICE_CLASS,
    SERVICE_CONDITION, SERVICE_SUFFIX, SHARE_ANNOTATION, name_for_service, service_of_name,
};
pub use sources::{DecidedSources, Sources};
pub use target_port::{PortRef, TargetPort};
pub use validate::Validate;
pub use virtual_server::{
    Acknowledged, Claim, Forwarding, VirtualServer, VirtualServerAddress, VirtualServerPort,
    VirtualServerSpec, VirtualServerStatus, WeightedPool,
};

/// The API group.
pub const GROUP: &str = "sluice.dev";
/// The API version.
pub const VERSION: &str = "v1alpha1";
/// The value of `apiVersion` in every object.
pub const API_VERSION: &str = "sluice.dev/v1alpha1";
