//! What all kinds share.

use std::fmt;

use kube::Resource;

/// Annotation of a rollout policy: `<verb>/<run>/<step>`.
pub const ROLLOUT_COMMAND_ANNOTATION: &str = "sluice.dev/rollout-command";
/// Annotation of a status file: hash of the spec that `metadata.generation` counts.
pub const SPEC_HASH_ANNOTATION: &str = "sluice.dev/spec-hash";

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
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::VirtualServer,
        Self::RealServerPool,
        Self::RolloutPolicy,
        Self::LoadBalancerNode,
    ];

    /// The name in `kind`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::VirtualServer => "VirtualServer",
            Self::RealServerPool => "RealServerPool",
            Self::RolloutPolicy => "RolloutPolicy",
            Self::LoadBalancerNode => "LoadBalancerNode",
        }
    }

    /// The kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether objects of this kind live in a namespace.
    pub const fn namespaced(self) -> bool {
        !matches!(self, Self::LoadBalancerNode)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Namespace and name. The namespace of a cluster-scoped object is empty. Orders by namespace, then name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
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
