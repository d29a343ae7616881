//! Annotations, labels, field managers, kinds and object keys.

use std::fmt;

use kube::Resource;

use crate::limits::{
    FIRST_LOCAL_GROUP, MAX_ADDRESS_POOL_NAME_LENGTH, MAX_LABEL_LENGTH, MAX_NAME_LENGTH,
};

/// Annotation of a rollout policy: `<verb>/<run>/<step>`.
pub const ROLLOUT_COMMAND_ANNOTATION: &str = "sluice.dev/rollout-command";
/// Annotation of a pool: JSON of the servers that somebody drains ([`crate::DrainedServer`]).
pub const DRAINED_SERVERS_ANNOTATION: &str = "sluice.dev/drained-servers";
/// Annotation of a status file: hash of the spec that `metadata.generation` counts.
pub const SPEC_HASH_ANNOTATION: &str = "sluice.dev/spec-hash";
/// Annotation of a LoadBalancerNode: its agent takes programs, maps and pins off the node and says so by the condition
/// `Detached`. The value does not count.
pub const DETACH_ANNOTATION: &str = "sluice.dev/detach";
/// Label of the EndpointSlices that the operator writes for a pool that selects pods; see [`pool_label`].
pub const POOL_LABEL: &str = "sluice.dev/pool";
/// Label of an EndpointSlice that says who writes it (Kubernetes API reference, EndpointSlice).
pub const SLICE_MANAGER_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// Its value where the operator does.
pub const SLICE_MANAGER: &str = "operator.sluice.dev";
/// Label of a Service's EndpointSlices: the Service's name.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Label of the Leases that agents renew; see [`node_label`].
pub const NODE_LABEL: &str = "sluice.dev/node";
/// Label of the Leases of VIP groups; see [`group_label`].
pub const GROUP_LABEL: &str = "sluice.dev/vip-group";
/// Label of a Node that is to hold no VIP group (Kubernetes well-known labels).
pub const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// How long the holder of a VIP group may hold it after a renewal, as the group's Lease says.
pub const GROUP_LEASE_SECONDS: i32 = 4;
/// The ConfigMaps in which the operator keeps who has which addresses, in its own namespace, are called by this and a number
/// of two digits.
pub const LEDGER_CONFIG_MAP: &str = "sluice-addresses";
/// Where in their data that stands.
pub const LEDGER_KEY: &str = "addresses.json";
/// The operator's field manager.
pub const OPERATOR_MANAGER: &str = "sluice-operator";
/// The agents' field manager.
pub const AGENT_MANAGER: &str = "sluice-agent";
/// The field manager of `kubectl sluice`. Flux strips managers whose name begins with `kubectl`.
pub const CLI_MANAGER: &str = "sluice-cli";

/// The value of [`POOL_LABEL`] for a pool: its name, or, where that is too long for a label, its beginning and a hash.
pub fn pool_label(pool: &str) -> String {
    label_value(pool)
}

/// The value of [`NODE_LABEL`] for a node, made as [`pool_label`] is.
pub fn node_label(node: &str) -> String {
    label_value(node)
}

fn label_value(name: &str) -> String {
    if name.len() <= MAX_LABEL_LENGTH {
        return name.to_owned();
    }
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let beginning: String = name.chars().take(MAX_LABEL_LENGTH - 17).collect();
    format!("{beginning}-{hash:016x}")
}

/// The name of the Lease by which a node's agent says that it lives, in Sluice's own namespace.
pub fn node_lease(node: &str) -> String {
    format!("sluice-node-{node}")
}

/// The name of an address pool's VIP group.
pub fn vip_group(pool: &str, number: u8) -> String {
    format!("{pool}-{number}")
}

/// Pool and number of the VIP group of this name.
pub fn parse_vip_group(group: &str) -> Option<(&str, u8)> {
    let (pool, number) = group.rsplit_once('-')?;
    let is_written_so = |parsed: &u8| parsed.to_string() == number;
    let number = number.parse().ok().filter(is_written_so)?;
    (!pool.is_empty()).then_some((pool, number))
}

/// Whether a pool's VIP group of this number is one virtual server's alone, since its traffic policy is `Local`.
pub const fn is_local_group(number: u8) -> bool {
    number >= FIRST_LOCAL_GROUP
}

const GROUP_LEASE_PREFIX: &str = "sluice-vip-";

/// The name of a VIP group's Lease, in Sluice's own namespace. Whoever it names as its holder announces the group.
pub fn group_lease(group: &str) -> String {
    format!("{GROUP_LEASE_PREFIX}{group}")
}

/// The VIP group whose Lease has this name; `None`: it is none's.
pub fn group_of_lease(lease: &str) -> Option<&str> {
    let group = lease.strip_prefix(GROUP_LEASE_PREFIX)?;
    parse_vip_group(group).map(|_| group)
}

/// The value of [`GROUP_LABEL`] for a VIP group, made as [`pool_label`] is. The Lease's name has the whole name of the group.
pub fn group_label(group: &str) -> String {
    label_value(group)
}

/// The kinds of the API.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// [`crate::VirtualServer`].
    VirtualServer,
    /// [`crate::RealServerPool`].
    RealServerPool,
    /// [`crate::RolloutPolicy`].
    RolloutPolicy,
    /// [`crate::LoadBalancerNode`].
    LoadBalancerNode,
    /// [`crate::AddressPool`].
    AddressPool,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::VirtualServer,
        Self::RealServerPool,
        Self::RolloutPolicy,
        Self::LoadBalancerNode,
        Self::AddressPool,
    ];

    /// The name in `kind`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::VirtualServer => "VirtualServer",
            Self::RealServerPool => "RealServerPool",
            Self::RolloutPolicy => "RolloutPolicy",
            Self::LoadBalancerNode => "LoadBalancerNode",
            Self::AddressPool => "AddressPool",
        }
    }

    /// The kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The most characters of the name of such an object.
    pub const fn max_name_length(self) -> usize {
        match self {
            Self::AddressPool => MAX_ADDRESS_POOL_NAME_LENGTH,
            _ => MAX_NAME_LENGTH,
        }
    }

    /// Whether objects of this kind live in a namespace.
    pub const fn namespaced(self) -> bool {
        !matches!(self, Self::LoadBalancerNode | Self::AddressPool)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Namespace and name. The namespace of a cluster-scoped object is empty. Orders by namespace, then name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ObjectKey {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl ObjectKey {
    /// `namespace` is empty for cluster-scoped objects.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of an object.
    pub fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(
            meta.namespace.clone().unwrap_or_default(),
            meta.name.clone().unwrap_or_default(),
        )
    }

    /// The object `name` in the same namespace: references stay within it.
    #[must_use]
    pub fn sibling(&self, name: &str) -> Self {
        Self::new(self.namespace.clone(), name)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}
