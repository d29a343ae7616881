//! The kinds of objects that are watched. Each is one implementation of [`Watched`] and one line of [`KINDS`].
//!
//! Of an object no more is decoded than matters here, so that one with a spec of a later version is read all the same.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, DynamicObject};
use kube::{Api, Client, Resource};
use serde::Deserialize;
use serde_json::Value;
use sluice_api::{
    AddressPool, AddressPoolDecision, Decision, EndpointSource, LoadBalancerNode, PEERS_CONFIG_MAP,
    PEERS_KEY, POOL_LABEL, Peers, PoolDecision, RealServerPool, SERVICE_LABEL, VirtualServer,
    read_peers,
};
use sluice_kube::Kind;
use sluice_kube::store::{Change, Store};
use sluice_kube::watched::Watched;
use sluice_planner::Slice;

use super::index::{Index, MAX_OBJECTS};
use super::own_node::Node;

/// The kinds that are watched.
pub(super) const KINDS: &[Kind<Index>] = &[
    Kind::of::<VirtualServers>(),
    Kind::of::<Pools>(),
    Kind::of::<Nodes>(),
    Kind::of::<PeersList>(),
    Kind::of::<PoolSlices>(),
    Kind::of::<ServiceSlices>(),
    Kind::of::<AddressPools>(),
];

impl Index {
    /// Whether all kinds were listed.
    pub(super) fn are_all_listed(&mut self) -> bool {
        KINDS.iter().all(|kind| kind.is_complete(self))
    }

    /// Takes nothing of any kind but a new list.
    pub(super) fn expect_lists(&mut self) {
        for kind in KINDS {
            kind.expect_list(self);
        }
    }
}

/// The only object of a kind that this node's agent watches, where it is not all.
pub(super) fn only(kind: &str, node: &str) -> Option<String> {
    match kind {
        Nodes::NAME => Some(node.to_owned()),
        PeersList::NAME => Some(PEERS_CONFIG_MAP.to_owned()),
        _ => None,
    }
}

fn all<K: Resource<DynamicType = ()>>(client: &Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &ApiResource::erase::<K>(&()))
}

/// VirtualServers: their decisions.
pub(super) struct VirtualServers;

impl Watched for VirtualServers {
    type Index = Index;
    type Object = DynamicObject;
    type Kept = Option<Arc<Decision>>;
    const NAME: &'static str = "VirtualServer";
    const MAX_OBJECTS: usize = MAX_OBJECTS;

    fn api(client: &Client, _: &str) -> Api<DynamicObject> {
        all::<VirtualServer>(client)
    }
    fn keep(object: DynamicObject) -> Result<Self::Kept, String> {
        decision(&object.data)
    }
    fn store(index: &mut Index) -> &mut Store<Self::Kept> {
        &mut index.virtual_servers
    }
    fn changed(index: &mut Index, changes: Vec<Change<Self::Kept>>) {
        index.virtual_servers_changed(changes);
    }
}

/// RealServerPools: their decisions.
pub(super) struct Pools;

impl Watched for Pools {
    type Index = Index;
    type Object = DynamicObject;
    type Kept = Option<Arc<PoolDecision>>;
    const NAME: &'static str = "RealServerPool";
    const MAX_OBJECTS: usize = MAX_OBJECTS;

    fn api(client: &Client, _: &str) -> Api<DynamicObject> {
        all::<RealServerPool>(client)
    }
    fn keep(object: DynamicObject) -> Result<Self::Kept, String> {
        decision(&object.data)
    }
    fn store(index: &mut Index) -> &mut Store<Self::Kept> {
        &mut index.pools
    }
    fn changed(index: &mut Index, changes: Vec<Change<Self::Kept>>) {
        index.pools_changed(changes);
    }
}

/// LoadBalancerNodes: this node's own.
pub(super) struct Nodes;

impl Watched for Nodes {
    type Index = Index;
    type Object = DynamicObject;
    type Kept = Node;
    const NAME: &'static str = "LoadBalancerNode";
    const MAX_OBJECTS: usize = MAX_OBJECTS;

    fn api(client: &Client, _: &str) -> Api<DynamicObject> {
        all::<LoadBalancerNode>(client)
    }
    fn keep(object: DynamicObject) -> Result<Node, String> {
        Ok(Node::of(&object))
    }
    fn store(index: &mut Index) -> &mut Store<Node> {
        &mut index.nodes
    }
    fn changed(index: &mut Index, _: Vec<Change<Node>>) {
        index.settle();
    }
}

/// The list of directors that the operator writes.
pub(super) struct PeersList;

impl Watched for PeersList {
    type Index = Index;
    type Object = DynamicObject;
    type Kept = Peers;
    const NAME: &'static str = "ConfigMap";

    fn api(client: &Client, namespace: &str) -> Api<DynamicObject> {
        let resource = ApiResource::erase::<ConfigMap>(&());
        Api::namespaced_with(client.clone(), namespace, &resource)
    }
    fn keep(object: DynamicObject) -> Result<Peers, String> {
        let list = object.data.get("data").and_then(|data| data.get(PEERS_KEY));
        let list = list.and_then(Value::as_str);
        let list = list.ok_or_else(|| format!("data: there is no {PEERS_KEY}"))?;
        read_peers(list).map_err(|error| format!("data.{PEERS_KEY}: {error}"))
    }
    fn store(index: &mut Index) -> &mut Store<Peers> {
        &mut index.peers
    }
    fn changed(index: &mut Index, _: Vec<Change<Peers>>) {
        index.settle();
    }
}

/// EndpointSlices that the operator writes for pools. What concerns no pool is kept as `None`.
pub(super) struct PoolSlices;

impl Watched for PoolSlices {
    type Index = Index;
    type Object = DynamicObject;
    type Kept = Option<Arc<Slice>>;
    const NAME: &'static str = "PoolEndpointSlice";
    const LABELS: Option<&'static str> = Some(POOL_LABEL);
    const MAX_OBJECTS: usize = MAX_OBJECTS;

    fn api(client: &Client, _: &str) -> Api<DynamicObject> {
        all::<EndpointSlice>(client)
    }
    fn keep(object: DynamicObject) -> Result<Self::Kept, String> {
        slice(object, EndpointSource::Pods)
    }
    fn store(index: &mut Index) -> &mut Store<Self::Kept> {
        &mut index.pool_slices
    }
    fn changed(index: &mut Index, changes: Vec<Change<Self::Kept>>) {
        index.slices_changed(EndpointSource::Pods, changes);
    }
}

/// EndpointSlices of Services. What concerns no pool is kept as `None`.
pub(super) struct ServiceSlices;

impl Watched for ServiceSlices {
    type Index = Index;
    type Object = DynamicObject;
    type Kept = Option<Arc<Slice>>;
    const NAME: &'static str = "ServiceEndpointSlice";
    const LABELS: Option<&'static str> = Some(SERVICE_LABEL);
    const MAX_OBJECTS: usize = MAX_OBJECTS;

    fn api(client: &Client, _: &str) -> Api<DynamicObject> {
        all::<EndpointSlice>(client)
    }
    fn keep(object: DynamicObject) -> Result<Self::Kept, String> {
        slice(object, EndpointSource::Service)
    }
    fn store(index: &mut Index) -> &mut Store<Self::Kept> {
        &mut index.service_slices
    }
    fn changed(index: &mut Index, changes: Vec<Change<Self::Kept>>) {
        index.slices_changed(EndpointSource::Service, changes);
    }
}

/// AddressPools: how their addresses are announced.
pub(super) struct AddressPools;

impl Watched for AddressPools {
    type Index = Index;
    type Object = DynamicObject;
    type Kept = Option<Arc<AddressPoolDecision>>;
    const NAME: &'static str = "AddressPool";
    const MAX_OBJECTS: usize = MAX_OBJECTS;

    fn api(client: &Client, _: &str) -> Api<DynamicObject> {
        all::<AddressPool>(client)
    }
    fn keep(object: DynamicObject) -> Result<Self::Kept, String> {
        decision(&object.data)
    }
    fn store(index: &mut Index) -> &mut Store<Self::Kept> {
        &mut index.address_pools
    }
    fn changed(index: &mut Index, _: Vec<Change<Self::Kept>>) {
        index.settle();
    }
}

/// The labels by which slices are watched are anybody's to give; whose a slice is says [`Slice::read`].
fn slice(object: DynamicObject, source: EndpointSource) -> Result<Option<Arc<Slice>>, String> {
    let slice = object.try_parse::<EndpointSlice>();
    let slice = Slice::read(&slice.map_err(|error| error.to_string())?);
    let slice = slice.filter(|slice| slice.owner.source == source);
    Ok(slice.map(Arc::new))
}

/// `status.decision`; the rest of an object is not looked at.
fn decision<T: for<'de> Deserialize<'de>>(data: &Value) -> Result<Option<Arc<T>>, String> {
    match data.pointer("/status/decision") {
        None | Some(Value::Null) => Ok(None),
        Some(decision) => T::deserialize(decision)
            .map(|decision| Some(Arc::new(decision)))
            .map_err(|error| format!("status.decision: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sluice_api::DETACH_ANNOTATION;

    use super::*;

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    fn kept<W: Watched<Object = DynamicObject>>(value: Value) -> Result<W::Kept, String> {
        W::keep(object(value))
    }

    #[test]
    fn a_decision_is_read_without_the_rest() {
        let decision = kept::<VirtualServers>(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "VirtualServer",
            "metadata": {"namespace": "shop", "name": "web", "uid": "u", "resourceVersion": "7"},
            "spec": {"what": "a later version has"},
            "status": {"conditions": 3, "decision": {
                "revision": 5, "generation": 1, "addresses": ["203.0.113.1"],
                "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
                "mode": "NAT", "poolSelection": "Flow", "pools": [], "later": true,
            }},
        }));
        assert_eq!(decision.unwrap().unwrap().revision, 5);
    }

    #[test]
    fn a_decision_that_cannot_be_read_names_the_field() {
        let message = kept::<Pools>(json!({
            "metadata": {"namespace": "shop", "name": "web", "uid": "u", "resourceVersion": "7"},
            "status": {"decision": {"revision": "five"}},
        }))
        .unwrap_err();
        assert!(message.starts_with("status.decision: "), "{message}");
    }

    #[test]
    fn objects_without_a_decision_are_read_too() {
        let plain = json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": {}});
        assert_eq!(kept::<VirtualServers>(plain.clone()), Ok(None));
        assert_eq!(kept::<Pools>(plain), Ok(None));
    }

    #[test]
    fn a_list_of_directors_is_read_or_named() {
        let list =
            |data: Value| kept::<PeersList>(json!({"metadata": {"name": "p"}, "data": data}));
        let text = r#"{"d2": {"addresses": ["10.0.0.2"], "podCidrs": ["10.244.2.0/24"]}}"#;
        let peers = list(json!({"peers.json": text})).unwrap();
        assert_eq!(peers["d2"].addresses, ["10.0.0.2".parse().unwrap()].into());
        assert_eq!(
            peers["d2"].pod_cidrs,
            ["10.244.2.0/24".parse().unwrap()].into()
        );
        for data in [
            json!(null),
            json!({}),
            json!({"peers.json": ["d2"]}),
            json!({"peers.json": "no"}),
        ] {
            let error = list(data).unwrap_err();
            assert!(
                error.starts_with("data") && error.contains("peers.json"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_node_says_spec_and_whether_to_leave() {
        let node = kept::<Nodes>(json!({
            "metadata": {"name": "d1", "generation": 4, "annotations": {DETACH_ANNOTATION: ""}},
            "spec": {"interfaces": ["eth0"]},
        }))
        .unwrap();
        assert_eq!(node.generation, 4);
        assert!(node.detach);
        assert!(node.spec.is_ok());

        let value = json!({"metadata": {"name": "d1"}, "spec": {"role": "Teapot"}});
        let node = kept::<Nodes>(value).unwrap();
        assert!(!node.detach);
        assert!(node.spec.unwrap_err().starts_with("spec: "));
    }
}
