//! What is kept of an object. One that cannot be read hides no other.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, DynamicObject};
use serde::Deserialize;
use serde_json::Value;
use sluice_api::{
    DETACH_ANNOTATION, Decision, LoadBalancerNode, LoadBalancerNodeSpec, NodeRole, ObjectKey,
    POOL_LABEL, PoolDecision, RealServerPool, SERVICE_LABEL, VirtualServer,
};
use sluice_planner::Slice;

/// What is watched.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    VirtualServers,
    Pools,
    Nodes,
    /// EndpointSlices that the operator writes for pools.
    PoolSlices,
    /// EndpointSlices of Services.
    ServiceSlices,
}

impl Kind {
    pub(super) const ALL: [Self; 5] = [
        Self::VirtualServers,
        Self::Pools,
        Self::Nodes,
        Self::PoolSlices,
        Self::ServiceSlices,
    ];

    /// The name in metrics and messages.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::VirtualServers => "VirtualServer",
            Self::Pools => "RealServerPool",
            Self::Nodes => "LoadBalancerNode",
            Self::PoolSlices => "PoolEndpointSlice",
            Self::ServiceSlices => "ServiceEndpointSlice",
        }
    }

    pub(super) fn resource(self) -> ApiResource {
        match self {
            Self::VirtualServers => ApiResource::erase::<VirtualServer>(&()),
            Self::Pools => ApiResource::erase::<RealServerPool>(&()),
            Self::Nodes => ApiResource::erase::<LoadBalancerNode>(&()),
            Self::PoolSlices | Self::ServiceSlices => ApiResource::erase::<EndpointSlice>(&()),
        }
    }

    /// Which objects of the resource are meant.
    pub(super) const fn labels(self) -> Option<&'static str> {
        match self {
            Self::PoolSlices => Some(POOL_LABEL),
            Self::ServiceSlices => Some(SERVICE_LABEL),
            _ => None,
        }
    }
}

/// An object as far as it matters here.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Item {
    pub(super) key: ObjectKey,
    pub(super) uid: String,
    /// `metadata.resourceVersion`.
    pub(super) version: String,
    /// `Err`: why it cannot be read.
    pub(super) content: Result<Content, String>,
}

/// What an object says.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Content {
    VirtualServer(Option<Decision>),
    Pool(Option<PoolDecision>),
    Node(Box<Node>),
    /// `None`: it concerns no pool.
    Slice(Option<Slice>),
}

/// A LoadBalancerNode.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Node {
    pub(super) generation: i64,
    pub(super) spec: Result<LoadBalancerNodeSpec, String>,
    pub(super) detach: bool,
    /// Its own addresses, if it is a director.
    pub(super) peer: Option<BTreeSet<IpAddr>>,
}

/// Takes what matters from an object.
pub(super) fn read(kind: Kind, object: DynamicObject) -> Item {
    let meta = &object.metadata;
    let key = ObjectKey::new(
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    );
    let uid = meta.uid.clone().unwrap_or_default();
    let version = meta.resource_version.clone().unwrap_or_default();
    let content = match kind {
        Kind::VirtualServers => decision(&object.data).map(Content::VirtualServer),
        Kind::Pools => decision(&object.data).map(Content::Pool),
        Kind::Nodes => Ok(Content::Node(Box::new(node(&object)))),
        Kind::PoolSlices | Kind::ServiceSlices => object
            .try_parse::<EndpointSlice>()
            .map(|slice| Content::Slice(Slice::read(&slice)))
            .map_err(|error| error.to_string()),
    };
    Item {
        key,
        uid,
        version,
        content,
    }
}

/// `status.decision`; the rest of an object is not looked at.
fn decision<T: for<'de> Deserialize<'de>>(data: &Value) -> Result<Option<T>, String> {
    match data.pointer("/status/decision") {
        None | Some(Value::Null) => Ok(None),
        Some(decision) => T::deserialize(decision)
            .map(Some)
            .map_err(|error| format!("status.decision: {error}")),
    }
}

fn node(object: &DynamicObject) -> Node {
    let spec = object.data.get("spec").unwrap_or(&Value::Null);
    let spec = LoadBalancerNodeSpec::deserialize(spec).map_err(|error| format!("spec: {error}"));
    let addresses = object.data.pointer("/status/addresses");
    let addresses = addresses.and_then(Value::as_array).into_iter().flatten();
    let addresses: BTreeSet<IpAddr> = addresses
        .filter_map(|address| sluice_api::parse_ip(address.as_str()?))
        .collect();
    let is_director = spec
        .as_ref()
        .is_ok_and(|spec| spec.role == NodeRole::Director);
    let annotations = object.metadata.annotations.as_ref();
    Node {
        generation: object.metadata.generation.unwrap_or_default(),
        detach: annotations.is_some_and(|all| all.contains_key(DETACH_ANNOTATION)),
        peer: is_director.then_some(addresses),
        spec,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_decision_is_read_without_the_rest() {
        let item = read(
            Kind::VirtualServers,
            object(json!({
                "apiVersion": "sluice.dev/v1alpha1", "kind": "VirtualServer",
                "metadata": {"namespace": "shop", "name": "web", "uid": "u", "resourceVersion": "7"},
                "spec": {"what": "a later version has"},
                "status": {"conditions": 3, "decision": {
                    "revision": 5, "generation": 1, "addresses": ["203.0.113.1"],
                    "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
                    "mode": "NAT", "poolSelection": "Flow", "pools": [], "later": true,
                }},
            })),
        );
        assert_eq!(item.key.to_string(), "shop/web");
        assert_eq!((item.uid.as_str(), item.version.as_str()), ("u", "7"));
        let Ok(Content::VirtualServer(Some(decision))) = item.content else {
            unreachable!("{:?}", item.content)
        };
        assert_eq!(decision.revision, 5);
    }

    #[test]
    fn a_decision_that_cannot_be_read_names_the_field() {
        let item = read(
            Kind::Pools,
            object(json!({
                "metadata": {"namespace": "shop", "name": "web", "uid": "u", "resourceVersion": "7"},
                "status": {"decision": {"revision": "five"}},
            })),
        );
        let message = item.content.unwrap_err();
        assert!(message.starts_with("status.decision: "), "{message}");
    }

    #[test]
    fn objects_without_a_decision_are_read_too() {
        for (kind, content) in [
            (Kind::VirtualServers, Content::VirtualServer(None)),
            (Kind::Pools, Content::Pool(None)),
        ] {
            let plain = json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": {}});
            assert_eq!(read(kind, object(plain)).content, Ok(content));
        }
    }

    #[test]
    fn a_node_says_spec_peer_and_whether_to_leave() {
        let value = json!({
            "metadata": {"name": "d1", "generation": 4, "annotations": {DETACH_ANNOTATION: ""}},
            "spec": {"interfaces": ["eth0"]},
            "status": {"addresses": ["10.0.0.1", "no address"]},
        });
        let Ok(Content::Node(node)) = read(Kind::Nodes, object(value)).content else {
            unreachable!()
        };
        assert_eq!(node.generation, 4);
        assert!(node.detach);
        assert_eq!(node.peer, Some(["10.0.0.1".parse().unwrap()].into()));
        assert!(node.spec.is_ok());

        let value = json!({"metadata": {"name": "d1"}, "spec": {"role": "Teapot"}});
        let Ok(Content::Node(node)) = read(Kind::Nodes, object(value)).content else {
            unreachable!()
        };
        assert!(!node.detach);
        assert_eq!(node.peer, None);
        assert!(node.spec.unwrap_err().starts_with("spec: "));
    }
}
