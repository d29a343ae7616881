//! A LoadBalancerNode, as far as its agent reads it.

use kube::core::DynamicObject;
use serde::Deserialize;
use serde_json::Value;
use sluice_api::{DETACH_ANNOTATION, LoadBalancerNodeSpec};

/// A LoadBalancerNode.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Node {
    pub(super) generation: i64,
    pub(super) spec: Result<LoadBalancerNodeSpec, String>,
    pub(super) detach: bool,
}

impl Node {
    /// Takes what matters from an object.
    pub(super) fn of(object: &DynamicObject) -> Self {
        let spec = object.data.get("spec").unwrap_or(&Value::Null);
        let spec =
            LoadBalancerNodeSpec::deserialize(spec).map_err(|error| format!("spec: {error}"));
        let annotations = object.metadata.annotations.as_ref();
        Self {
            generation: object.metadata.generation.unwrap_or_default(),
            detach: annotations.is_some_and(|all| all.contains_key(DETACH_ANNOTATION)),
            spec,
        }
    }
}
