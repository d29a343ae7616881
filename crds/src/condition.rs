//! Conditions in the form of kstatus: `Ready`, and `Reconciling` and `Stalled`, which are true when something is amiss.

use std::fmt;

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::limits::MAX_MESSAGE_LENGTH;

/// The type of a condition.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ConditionType {
    /// The newest spec is in force.
    Ready,
    /// On the way there.
    Reconciling,
    /// Not on the way there: the message names the field and the remedy.
    Stalled,
    /// Nodes fell silent before they acknowledged what was decided; the message names them.
    NodesSilent,
    /// Nodes report exceptions for this object, or lack an uplink; the message names them.
    NodeExceptions,
    /// The forwarding mode may not suit the servers; the message says when it does and what else there is.
    ForwardingAdvice,
    /// Settings of a node's network keep packets from being served; the message names each with the remedy.
    NetworkAdvice,
    /// A node's programs are not on all of its uplinks, so that packets for VIPs miss them; the message names each uplink with
    /// the remedy. It is an exception of the node for every virtual server.
    NotAttached,
    /// Hosts that are no directors claim VIPs that a node announces; the message names each with the remedy.
    AddressClaimed,
    /// Servers fail the health checks of their pools, as a node sees it; the message names them.
    ServersDown,
    /// Tables of a node are nearly full; the message names each with its limit.
    NearlyFull,
    /// A node's agent has taken everything off the node, as it was asked to.
    Detached,
    /// A node's agent has been silent for too long; the operator says so.
    Silent,
    /// Virtual servers wait for an address of a pool.
    Exhausted,
    /// Addresses that an address pool no longer has are in use; the message names them.
    InUseOutside,
    /// No address pool gives a virtual server an address that it has; the message names it.
    AddressAdvice,
}

/// Name of [`ConditionType::Reconciling`].
pub const RECONCILING: &str = "Reconciling";
/// Name of [`ConditionType::Stalled`].
pub const STALLED: &str = "Stalled";

impl ConditionType {
    /// The name in `type`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Reconciling => RECONCILING,
            Self::Stalled => STALLED,
            Self::NodesSilent => "NodesSilent",
            Self::NodeExceptions => "NodeExceptions",
            Self::ForwardingAdvice => "ForwardingAdvice",
            Self::NetworkAdvice => "NetworkAdvice",
            Self::NotAttached => "NotAttached",
            Self::AddressClaimed => "AddressClaimed",
            Self::ServersDown => "ServersDown",
            Self::NearlyFull => "NearlyFull",
            Self::Detached => "Detached",
            Self::Silent => "Silent",
            Self::Exhausted => "Exhausted",
            Self::InUseOutside => "InUseOutside",
            Self::AddressAdvice => "AddressAdvice",
        }
    }
}

/// The reason of a condition, or of an exception that a node reports. Names are part of the API.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reason {
    /// Every live node acknowledged.
    Live,
    /// All is as it should be.
    AsExpected,
    /// Live nodes have not acknowledged the decision yet.
    AwaitingNodes,
    /// No node's agent reports.
    NoLiveNode,
    /// Nodes have been silent for too long.
    NodeSilent,
    /// A node cannot do what was decided.
    NodeException,
    /// The spec breaks a rule of the schema.
    InvalidSpec,
    /// A named pool does not exist or is not accepted.
    PoolNotFound,
    /// Another virtual server holds the VIP and port.
    AddressConflict,
    /// A pool has no server of a VIP's family.
    AddressFamilyMismatch,
    /// A static server's address is a VIP.
    ServerIsVip,
    /// The VIP is an address of a node.
    VipIsNodeAddress,
    /// An address is loopback, link-local, multicast or unspecified, or a VIP is somebody else's.
    AddressNotUsable,
    /// The target port differs where nothing translates it.
    TargetPortMismatch,
    /// A node could not bring about what was decided; the message says what failed.
    NotInForce,
    /// Accepted, and no virtual server uses it.
    Unused,
    /// The object is gone; what was decided stays while it is referred to.
    Deleted,
    /// Another policy drives the virtual server.
    PolicyConflict,
    /// The policy's virtual server does not exist or has no decision.
    VirtualServerNotFound,
    /// The policy's pool is not a pool of the virtual server.
    PoolNotInVirtualServer,
    /// Stable and candidate together have weight 0.
    NoShare,
    /// A rollout is on its way.
    RolloutProgressing,
    /// A rollout waits for a command.
    RolloutWaiting,
    /// The candidate has the whole share.
    RolloutCompleted,
    /// The stable pool has the whole share again.
    RolloutAborted,
    /// The candidate failed its clients, and the stable pool has the whole share again.
    RolledBack,
    /// The candidate fails its clients, and so may the stable pool.
    AnalysisInconclusive,
    /// The candidate fails its clients, and the stable pool cannot take the share back.
    RollbackImpossible,
    /// A pool with a share, or one that is to gain weight, has no server that takes new flows.
    AwaitingServers,
    /// Nodes did not acknowledge a step in time.
    DeadlineExceeded,
    /// The pool's Service does not exist.
    ServiceNotFound,
    /// The pool's servers can only be had from Kubernetes.
    NeedsKubernetes,
    /// The forwarding mode cannot reach the pool's servers.
    ServerNotReachableInMode,
    /// Pods answer through their own node, past the director.
    PodsAnswerDirectly,
    /// NAT servers have no gateway that moves with the VIPs.
    GatewayStays,
    /// Forwarding, redirects or reverse-path filters stand in the way.
    NetworkSettings,
    /// An uplink is missing, carries no Ethernet frames, or takes no program of Sluice's.
    AttachFailed,
    /// A host that is no director answers for a VIP.
    AnsweredElsewhere,
    /// A new VIP is not announced, since a host that is no director has it.
    AddressInUse,
    /// Servers that fail their checks take no new flows.
    ChecksFailed,
    /// No server of a pool has ever passed its check, so all take flows: the check may be wrong.
    CheckNeverPassed,
    /// A table has little room left.
    LimitNear,
    /// The annotation `sluice.dev/detach` asked for it.
    DetachRequested,
    /// No address pool lets the namespace have the address.
    AddressNotAllowed,
    /// The address pool has no free address.
    NoFreeAddress,
    /// The address pool has no free VIP group for a virtual server that needs one of its own.
    NoFreeGroup,
    /// Another address pool has some of the addresses.
    AddressPoolOverlap,
    /// The address pool's addresses can be given.
    AddressesUsable,
    /// An address has lost its place in the pools, and stays with whoever has it.
    AddressKept,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The condition of this type.
pub fn find_condition(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    conditions
        .iter()
        .find(|condition| condition.type_ == kind.name())
}

/// The condition of this kind, if its status is `True`.
pub fn true_condition(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    find_condition(conditions, kind).filter(|condition| condition.status == "True")
}

/// Whether there is a condition of this kind, and its status is `True`.
pub fn is_true(conditions: &[Condition], kind: ConditionType) -> bool {
    true_condition(conditions, kind).is_some()
}

/// Sets a condition; `lastTransitionTime` moves only when the status changes.
pub fn set_condition(
    conditions: &mut Vec<Condition>,
    kind: ConditionType,
    status: bool,
    reason: Reason,
    message: &str,
    generation: i64,
    now: &Time,
) {
    let status = if status { "True" } else { "False" };
    let new = Condition {
        last_transition_time: now.clone(),
        message: clip(message),
        observed_generation: Some(generation),
        reason: reason.to_string(),
        status: status.to_owned(),
        type_: kind.name().to_owned(),
    };
    match conditions.iter_mut().find(|c| c.type_ == kind.name()) {
        Some(old) => {
            let since = if old.status == new.status {
                old.last_transition_time.clone()
            } else {
                new.last_transition_time.clone()
            };
            *old = Condition {
                last_transition_time: since,
                ..new
            };
        }
        None => conditions.push(new),
    }
}

/// Cuts a message to [`MAX_MESSAGE_LENGTH`] characters.
fn clip(message: &str) -> String {
    if message.chars().count() <= MAX_MESSAGE_LENGTH {
        return message.to_owned();
    }
    let mut cut: String = message.chars().take(MAX_MESSAGE_LENGTH - 1).collect();
    cut.push('…');
    cut
}
