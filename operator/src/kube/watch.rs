//! The watched kinds. Each is one implementation of [`Watched`] and one line of [`KINDS`].

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::core::DeserializeGuard;
use kube::{Api, Client, Resource};
use sluice_api::{
    AddressPool, GROUP_LABEL, LoadBalancerNode, NODE_LABEL, PEERS_CONFIG_MAP, PEERS_KEY,
    RealServerPool, RolloutPolicy, VirtualServer,
};
use sluice_kube::Kind;
use sluice_kube::lease::LeaseFacts;
use sluice_kube::store::{Change, Store};
use sluice_kube::watched::Watched;

use super::facts::{NodeFacts, PodFacts, ServiceFacts, SliceFacts, ranges};
use super::index::Index;
use super::vip_groups::GroupLeaseFacts;

/// The kinds that are watched.
pub(super) const KINDS: &[Kind<Index>] = &[
    Kind::of::<VirtualServers>(),
    Kind::of::<Pools>(),
    Kind::of::<Policies>(),
    Kind::of::<Nodes>(),
    Kind::of::<Leases>(),
    Kind::of::<VipGroups>(),
    Kind::of::<Pods>(),
    Kind::of::<Services>(),
    Kind::of::<Slices>(),
    Kind::of::<KubeNodes>(),
    Kind::of::<ServiceCidrs>(),
    Kind::of::<PeersList>(),
    Kind::of::<AddressPools>(),
    Kind::of::<Namespaces>(),
];

/// The only object of a kind that is watched, where it is not all.
pub(super) fn only(kind: &str) -> Option<String> {
    (kind == PeersList::NAME).then(|| PEERS_CONFIG_MAP.to_owned())
}

impl Index {
    /// The kinds whose first list is waited for, with what keeps it. Nothing is decided before.
    pub(super) fn awaited(&mut self) -> Vec<(&'static str, Option<String>)> {
        let mut awaited = Vec::new();
        for kind in KINDS {
            if !kind.is_complete(self) && !self.is_absent(kind.name) {
                awaited.push((kind.name, self.lost.get(kind.name).cloned()));
            }
        }
        awaited
    }
}

/// The object, unless it cannot be decoded.
fn decoded<K>(object: DeserializeGuard<K>) -> Result<K, String> {
    object.0.map_err(|invalid| invalid.error)
}

/// The whole of an object of ours, without what is of no use and large.
fn whole<K: Resource>(object: DeserializeGuard<K>) -> Result<K, String> {
    let mut object = decoded(object)?;
    object.meta_mut().managed_fields = None;
    Ok(object)
}

/// VirtualServers.
pub(super) struct VirtualServers;

impl Watched for VirtualServers {
    type Index = Index;
    type Object = DeserializeGuard<VirtualServer>;
    type Kept = VirtualServer;
    const NAME: &'static str = "VirtualServer";

    fn api(client: &Client, _: &str) -> Api<Self::Object> {
        Api::all(client.clone())
    }
    fn keep(object: Self::Object) -> Result<VirtualServer, String> {
        whole(object)
    }
    fn store(index: &mut Index) -> &mut Store<VirtualServer> {
        &mut index.virtual_servers
    }
    fn changed(index: &mut Index, changes: Vec<Change<VirtualServer>>) {
        index.virtual_servers_changed(changes);
    }
}

/// RealServerPools.
pub(super) struct Pools;

impl Watched for Pools {
    type Index = Index;
    type Object = DeserializeGuard<RealServerPool>;
    type Kept = RealServerPool;
    const NAME: &'static str = "RealServerPool";

    fn api(client: &Client, _: &str) -> Api<Self::Object> {
        Api::all(client.clone())
    }
    fn keep(object: Self::Object) -> Result<RealServerPool, String> {
        whole(object)
    }
    fn store(index: &mut Index) -> &mut Store<RealServerPool> {
        &mut index.pools
    }
    fn changed(index: &mut Index, changes: Vec<Change<RealServerPool>>) {
        index.pools_changed(changes);
    }
}

/// RolloutPolicies.
pub(super) struct Policies;

impl Watched for Policies {
    type Index = Index;
    type Object = DeserializeGuard<RolloutPolicy>;
    type Kept = RolloutPolicy;
    const NAME: &'static str = "RolloutPolicy";

    fn api(client: &Client, _: &str) -> Api<Self::Object> {
        Api::all(client.clone())
    }
    fn keep(object: Self::Object) -> Result<RolloutPolicy, String> {
        whole(object)
    }
    fn store(index: &mut Index) -> &mut Store<RolloutPolicy> {
        &mut index.policies
    }
    fn changed(index: &mut Index, changes: Vec<Change<RolloutPolicy>>) {
        index.policies_changed(changes);
    }
}

/// LoadBalancerNodes.
pub(super) struct Nodes;

impl Watched for Nodes {
    type Index = Index;
    type Object = DeserializeGuard<LoadBalancerNode>;
    type Kept = LoadBalancerNode;
    const NAME: &'static str = "LoadBalancerNode";

    fn api(client: &Client, _: &str) -> Api<Self::Object> {
        Api::all(client.clone())
    }
    fn keep(object: Self::Object) -> Result<LoadBalancerNode, String> {
        whole(object)
    }
    fn store(index: &mut Index) -> &mut Store<LoadBalancerNode> {
        &mut index.nodes
    }
    /// Their reports are looked at with their Leases.
    fn changed(index: &mut Index, changes: Vec<Change<LoadBalancerNode>>) {
        index.nodes_changed(&changes);
    }
}

/// The Leases by which nodes say that they live. They are looked at when time has passed, not when one is renewed.
pub(super) struct Leases;

impl Watched for Leases {
    type Index = Index;
    type Object = DeserializeGuard<Lease>;
    type Kept = LeaseFacts;
    const NAME: &'static str = "Lease";
    const LABELS: Option<&'static str> = Some(NODE_LABEL);

    fn api(client: &Client, namespace: &str) -> Api<Self::Object> {
        Api::namespaced(client.clone(), namespace)
    }
    fn keep(object: Self::Object) -> Result<LeaseFacts, String> {
        decoded(object).map(LeaseFacts::of)
    }
    fn store(index: &mut Index) -> &mut Store<LeaseFacts> {
        &mut index.leases
    }
    fn changed(_: &mut Index, _: Vec<Change<LeaseFacts>>) {}
}

/// The Leases of VIP groups, to make and to delete them.
pub(super) struct VipGroups;

impl Watched for VipGroups {
    type Index = Index;
    type Object = DeserializeGuard<Lease>;
    type Kept = GroupLeaseFacts;
    const NAME: &'static str = "GroupLease";
    const LABELS: Option<&'static str> = Some(GROUP_LABEL);

    fn api(client: &Client, namespace: &str) -> Api<Self::Object> {
        Api::namespaced(client.clone(), namespace)
    }
    fn keep(object: Self::Object) -> Result<GroupLeaseFacts, String> {
        decoded(object).map(|lease| GroupLeaseFacts::of(&lease))
    }
    fn store(index: &mut Index) -> &mut Store<GroupLeaseFacts> {
        &mut index.group_leases
    }
    fn changed(index: &mut Index, changes: Vec<Change<GroupLeaseFacts>>) {
        index.group_leases_changed(&changes);
    }
}

/// Pods, for pools that select them.
pub(super) struct Pods;

impl Watched for Pods {
    type Index = Index;
    type Object = DeserializeGuard<Pod>;
    type Kept = PodFacts;
    const NAME: &'static str = "Pod";

    fn api(client: &Client, _: &str) -> Api<Self::Object> {
        Api::all(client.clone())
    }
    fn keep(object: Self::Object) -> Result<PodFacts, String> {
        decoded(object).map(PodFacts::of)
    }
    fn store(index: &mut Index) -> &mut Store<PodFacts> {
        &mut index.pods
    }
    fn changed(index: &mut Index, changes: Vec<Change<PodFacts>>) {
        index.pods_changed(&changes);
    }
}

/// Services: whether there is one, and its addresses.
pub(super) struct Services;

impl Watched for Services {
    type Index = Index;
    type Object = DeserializeGuard<Service>;
    type Kept = ServiceFacts;
    const NAME: &'static str = "Service";

    fn api(client: &Client, _: &str) -> Api<Self::Object> {
        Api::all(client.clone())
    }
    fn keep(object: Self::Object) -> Result<ServiceFacts, String> {
        decoded(object).map(ServiceFacts::of)
    }
    fn store(index: &mut Index) -> &mut Store<ServiceFacts> {
        &mut index.services
    }
    fn changed(index: &mut Index, changes: Vec<Change<ServiceFacts>>) {
        index.services_changed(&changes);
    }
}

/// EndpointSlices: those of Services, our own, and the addresses in all of them.
pub(super) struct Slices;

impl Watched for Slices {
    type Index = Index;
    type Object = DeserializeGuard<EndpointSlice>;
    type Kept = SliceFacts;
    const NAME: &'static str = "EndpointSlice";

    fn api(client: &Client, _: &str) -> Api<Self::Object> {
        Api::all(client.clone())
    }
    fn keep(object: Self::Object) -> Result<SliceFacts, String> {
        decoded(object).map(SliceFacts::of)
    }
    fn store(index: &mut Index) -> &mut Store<SliceFacts> {
        &mut index.slices
    }
    fn changed(index: &mut Index, changes: Vec<Change<SliceFacts>>) {
        index.slices_changed(&changes);
    }
}

/// Nodes: their addresses, those of their pods, and their labels.
pub(super) struct KubeNodes;

impl Watched for KubeNodes {
    type Index = Index;
    type Object = DeserializeGuard<Node>;
    type Kept = NodeFacts;
    const NAME: &'static str = "Node";

    fn api(client: &Client, _: &str) -> Api<Self::Object> {
        Api::all(client.clone())
    }
    fn keep(object: Self::Object) -> Result<NodeFacts, String> {
        decoded(object).map(NodeFacts::of)
    }
    fn store(index: &mut Index) -> &mut Store<NodeFacts> {
        &mut index.kube_nodes
    }
    fn changed(index: &mut Index, changes: Vec<Change<NodeFacts>>) {
        index.kube_nodes_changed(&changes);
    }
}

/// The ranges that Services get their cluster IPs from. API servers before Kubernetes 1.33 do not tell them.
pub(super) struct ServiceCidrs;

impl Watched for ServiceCidrs {
    type Index = Index;
    type Object = DeserializeGuard<ServiceCIDR>;
    type Kept = BTreeSet<IpNet>;
    const NAME: &'static str = "ServiceCIDR";
    const MAY_BE_ABSENT: bool = true;

    fn api(client: &Client, _: &str) -> Api<Self::Object> {
        Api::all(client.clone())
    }
    fn keep(object: Self::Object) -> Result<BTreeSet<IpNet>, String> {
        decoded(object).map(ranges)
    }
    fn store(index: &mut Index) -> &mut Store<BTreeSet<IpNet>> {
        &mut index.service_cidrs
    }
    fn changed(index: &mut Index, changes: Vec<Change<BTreeSet<IpNet>>>) {
        index.service_cidrs_changed(&changes);
    }
}

/// The list of directors that agents read, which is written here.
pub(super) struct PeersList;

impl Watched for PeersList {
    type Index = Index;
    type Object = DeserializeGuard<ConfigMap>;
    type Kept = String;
    const NAME: &'static str = "ConfigMap";

    fn api(client: &Client, namespace: &str) -> Api<Self::Object> {
        Api::namespaced(client.clone(), namespace)
    }
    fn keep(object: Self::Object) -> Result<String, String> {
        Ok(peers_text(decoded(object)?))
    }
    fn store(index: &mut Index) -> &mut Store<String> {
        &mut index.peers
    }
    /// It is looked at with the nodes.
    fn changed(_: &mut Index, _: Vec<Change<String>>) {}
}

/// AddressPools.
pub(super) struct AddressPools;

impl Watched for AddressPools {
    type Index = Index;
    type Object = DeserializeGuard<AddressPool>;
    type Kept = AddressPool;
    const NAME: &'static str = "AddressPool";

    fn api(client: &Client, _: &str) -> Api<Self::Object> {
        Api::all(client.clone())
    }
    fn keep(object: Self::Object) -> Result<AddressPool, String> {
        whole(object)
    }
    fn store(index: &mut Index) -> &mut Store<AddressPool> {
        &mut index.address_pools
    }
    fn changed(index: &mut Index, changes: Vec<Change<AddressPool>>) {
        index.address_pools_changed(&changes);
    }
}

/// Namespaces, by whose labels address pools choose.
pub(super) struct Namespaces;

impl Watched for Namespaces {
    type Index = Index;
    type Object = DeserializeGuard<Namespace>;
    type Kept = BTreeMap<String, String>;
    const NAME: &'static str = "Namespace";

    fn api(client: &Client, _: &str) -> Api<Self::Object> {
        Api::all(client.clone())
    }
    fn keep(object: Self::Object) -> Result<Self::Kept, String> {
        Ok(decoded(object)?.metadata.labels.unwrap_or_default())
    }
    fn store(index: &mut Index) -> &mut Store<Self::Kept> {
        &mut index.namespaces
    }
    fn changed(index: &mut Index, changes: Vec<Change<Self::Kept>>) {
        index.namespaces_changed(&changes);
    }
}

/// The list as it stands; empty if there is none.
pub(super) fn peers_text(object: ConfigMap) -> String {
    let mut data = object.data.unwrap_or_default();
    data.remove(PEERS_KEY).unwrap_or_default()
}
