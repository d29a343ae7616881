//! Problems with serving objects as described, for conditions, exceptions and logs.

use std::fmt;

use sluice_api::ObjectKey;

/// Kinds of objects that a problem can concern.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ObjectKind {
    /// `VirtualServer`.
    VirtualServer,
    /// `RealServerPool`.
    RealServerPool,
    /// `LoadBalancerNode`.
    LoadBalancerNode,
}

impl ObjectKind {
    /// The kind's name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::VirtualServer => "VirtualServer",
            Self::RealServerPool => "RealServerPool",
            Self::LoadBalancerNode => "LoadBalancerNode",
        }
    }
}

/// Why something is not served, in a form that programs can match.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reason {
    /// A VIP port of a virtual server belongs to another virtual server already.
    EndpointConflict,
    /// A VIP is one of this node's own addresses.
    VipIsNodeAddress,
    /// A virtual server has more pools than a head holds.
    TooManyPools,
    /// The shares of all pools are 0.
    NoShare,
    /// A virtual server refers to a pool that this node does not know.
    PoolNotFound,
    /// A pool with a share has no server that can take flows.
    NoServers,
    /// Another pool takes the flows of one that has too few servers.
    FallbackServes,
    /// A server's address is the VIP itself.
    ServerIsVip,
    /// Two servers of one pool cannot be told apart.
    DuplicateServer,
    /// A server has no port of the name that the pool asks for.
    TargetPortNotFound,
    /// The forwarding mode cannot reach a server the way the network is laid out.
    ServerNotReachableInMode,
    /// The next hop towards a server is being resolved.
    NextHopPending,
    /// The next hop towards a server is not known; packets to it are dropped.
    NextHopUnresolved,
    /// The program that takes a server's replies is not attached.
    AttachFailed,
    /// This node's agent cannot read what was decided.
    Unreadable,
    /// A map, or the agent, has no room.
    LimitExceeded,
    /// A virtual server asks for more than its part of a map.
    QuotaExceeded,
    /// The ring in the maps is not the one wanted.
    RingNotInPlace,
}

impl Reason {
    /// The reason as conditions and metrics name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EndpointConflict => "EndpointConflict",
            Self::VipIsNodeAddress => "VipIsNodeAddress",
            Self::TooManyPools => "TooManyPools",
            Self::NoShare => "NoShare",
            Self::PoolNotFound => "PoolNotFound",
            Self::NoServers => "NoServers",
            Self::FallbackServes => "FallbackServes",
            Self::ServerIsVip => "ServerIsVip",
            Self::DuplicateServer => "DuplicateServer",
            Self::TargetPortNotFound => "TargetPortNotFound",
            Self::ServerNotReachableInMode => "ServerNotReachableInMode",
            Self::NextHopPending => "NextHopPending",
            Self::NextHopUnresolved => "NextHopUnresolved",
            Self::AttachFailed => "AttachFailed",
            Self::Unreadable => "Unreadable",
            Self::LimitExceeded => "LimitExceeded",
            Self::QuotaExceeded => "QuotaExceeded",
            Self::RingNotInPlace => "RingNotInPlace",
        }
    }
}

/// One thing that is not served as described.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Problem {
    /// Kind of the object that the user would change.
    pub kind: ObjectKind,
    /// That object.
    pub object: ObjectKey,
    /// Why.
    pub reason: Reason,
    /// Names the field and the remedy.
    pub message: String,
    /// Whether a decision is not in force because of it, so that the node must name it beside what it acknowledges.
    pub exception: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}: {}: {}",
            self.kind.as_str(),
            self.object,
            self.reason.as_str(),
            self.message
        )
    }
}
