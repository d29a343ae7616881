//! The parts of foreign objects that the operator keeps: only those it needs, since there are many objects.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use sluice_api::{POOL_LABEL, parse_ip};
use sluice_planner::Slice;

/// Label that says who writes a slice (Kubernetes API reference, EndpointSlice).
pub(super) const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// Its value in our slices.
pub(super) const MANAGED_BY: &str = "operator.sluice.dev";
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

/// The parts of an EndpointSlice that the operator keeps.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct SliceFacts {
    /// The planner's reading of it, if it is a Service's or a pool's.
    pub(super) slice: Option<Slice>,
    /// The whole of it, if it is or was one of ours.
    pub(super) own: Option<Box<EndpointSlice>>,
}

impl SliceFacts {
    pub(super) fn of(mut slice: EndpointSlice) -> Self {
        slice.metadata.managed_fields = None;
        let labels = slice.metadata.labels.as_ref();
        let label = |name: &str| labels.and_then(|labels| labels.get(name));
        let marked = |name: &String| name.contains(NAME_MARK);
        let own = (label(POOL_LABEL).is_some()
            && label(MANAGED_BY_LABEL).is_some_and(|by| by == MANAGED_BY))
            || slice.metadata.name.as_ref().is_some_and(marked);
        Self {
            slice: Slice::read(&slice),
            own: own.then(|| Box::new(slice)),
        }
    }
}
