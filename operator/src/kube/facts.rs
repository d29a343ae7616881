//! The parts of foreign objects that the operator keeps: only those it needs, since there are many objects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use sluice_api::{SLICE_MANAGER, SLICE_MANAGER_LABEL, parse_ip};
use sluice_planner::{Slice, pool_of};

use super::services::Balanced;

/// Part of the names of all our slices.
pub(super) const NAME_MARK: &str = "-sluice-";

/// The parts of a pod that a pool needs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct PodFacts {
    pub(super) uid: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) node: Option<String>,
    /// The condition `Ready`.
    pub(super) ready: bool,
    /// It is being deleted.
    pub(super) terminating: bool,
    /// It has ended for good.
    pub(super) done: bool,
    /// Container ports that have a name.
    pub(super) ports: Vec<NamedPort>,
}

/// A container's port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct NamedPort {
    pub(super) name: String,
    pub(super) number: u16,
    pub(super) protocol: String,
}

impl PodFacts {
    pub(super) fn of(pod: Pod) -> Self {
        let status = pod.status.unwrap_or_default();
        let spec = pod.spec.unwrap_or_default();
        let several = status.pod_ips.unwrap_or_default();
        let mut addresses: Vec<IpAddr> = several
            .iter()
            .filter_map(|entry| parse_ip(&entry.ip))
            .collect();
        if addresses.is_empty() {
            addresses.extend(status.pod_ip.as_deref().and_then(parse_ip));
        }
        let sidecars = spec
            .init_containers
            .into_iter()
            .flatten()
            .filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let ports = spec
            .containers
            .into_iter()
            .chain(sidecars)
            .flat_map(|container| container.ports.unwrap_or_default())
            .filter_map(|port| {
                Some(NamedPort {
                    name: port.name?,
                    number: u16::try_from(port.container_port).ok()?,
                    protocol: port.protocol.unwrap_or_else(|| "TCP".to_owned()),
                })
            })
            .collect();
        let ready = status
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        Self {
            uid: pod.metadata.uid.unwrap_or_default(),
            labels: pod.metadata.labels.unwrap_or_default(),
            addresses,
            node: spec.node_name,
            ready,
            terminating: pod.metadata.deletion_timestamp.is_some(),
            done: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            ports,
        }
    }
}

/// The addresses of a Service, and what it asks of a load balancer.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct ServiceFacts {
    /// In the cluster; none if it is headless.
    pub(super) cluster_ips: BTreeSet<IpNet>,
    /// Outside: external IPs.
    pub(super) external: BTreeSet<IpNet>,
    /// Those of its load balancer: in its status, and the one that it asks for.
    pub(super) of_balancer: BTreeSet<IpNet>,
    /// The rest, if it is of type LoadBalancer.
    pub(super) balanced: Option<Box<Balanced>>,
}

impl ServiceFacts {
    pub(super) fn of(service: Service) -> Self {
        let asks = Balanced::of(&service).map(Box::new);
        let spec = service.spec.unwrap_or_default();
        let status = service.status.unwrap_or_default();
        let balancer = status.load_balancer.unwrap_or_default();
        let ingress = balancer.ingress.unwrap_or_default();
        let of_balancer = ingress.into_iter().filter_map(|ingress| ingress.ip);
        Self {
            cluster_ips: singles(spec.cluster_ips.unwrap_or_default()),
            external: singles(spec.external_ips.unwrap_or_default()),
            of_balancer: singles(of_balancer.chain(spec.load_balancer_ip)),
            balanced: asks,
        }
    }
}

/// The addresses and labels of a Node, and whether it is cordoned.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct NodeFacts {
    /// Its own, as its kubelet says.
    pub(super) own: BTreeSet<IpNet>,
    /// Those that its pods get.
    pub(super) pods: BTreeSet<IpNet>,
    /// Its labels, by which address pools choose who announces their addresses.
    pub(super) labels: BTreeMap<String, String>,
    /// Whether it is cordoned: it takes no new pods.
    pub(super) is_cordoned: bool,
}

impl NodeFacts {
    pub(super) fn of(node: Node) -> Self {
        let spec = node.spec.unwrap_or_default();
        let status = node.status.unwrap_or_default();
        let own = status.addresses.unwrap_or_default();
        let pods = spec.pod_cidrs.unwrap_or_default();
        Self {
            is_cordoned: spec.unschedulable == Some(true),
            own: singles(own.into_iter().map(|address| address.address)),
            pods: blocks(pods.into_iter().chain(spec.pod_cidr)),
            labels: node.metadata.labels.unwrap_or_default(),
        }
    }
}

/// The ranges of a ServiceCIDR.
pub(super) fn ranges(object: ServiceCIDR) -> BTreeSet<IpNet> {
    blocks(object.spec.unwrap_or_default().cidrs.unwrap_or_default())
}

/// Those of the texts that are addresses: among a Node's there are names.
fn singles(texts: impl IntoIterator<Item = String>) -> BTreeSet<IpNet> {
    let addresses = texts.into_iter().filter_map(|text| parse_ip(&text));
    addresses.map(IpNet::from).collect()
}

fn blocks(texts: impl IntoIterator<Item = String>) -> BTreeSet<IpNet> {
    let blocks = texts.into_iter().filter_map(|text| text.parse().ok());
    blocks.collect()
}

/// The parts of an EndpointSlice that the operator keeps.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct SliceFacts {
    /// The planner's reading of it, if it is a Service's or a pool's.
    pub(super) slice: Option<Slice>,
    /// The addresses of its endpoints.
    pub(super) addresses: BTreeSet<IpNet>,
    /// The whole of it, if it is one of ours, or was before somebody took its label or its owner away.
    pub(super) own: Option<Box<EndpointSlice>>,
}

impl SliceFacts {
    pub(super) fn of(mut slice: EndpointSlice) -> Self {
        slice.metadata.managed_fields = None;
        let labels = slice.metadata.labels.as_ref();
        let label = |name: &str| labels.and_then(|labels| labels.get(name));
        let is_managed = label(SLICE_MANAGER_LABEL).is_some_and(|by| by == SLICE_MANAGER);
        let own = is_managed || pool_of(&slice).is_some();
        let endpoints = slice.endpoints.iter().flatten();
        Self {
            slice: Slice::read(&slice),
            addresses: singles(endpoints.flat_map(|endpoint| endpoint.addresses.clone())),
            own: own.then(|| Box::new(slice)),
        }
    }
}
