//! The EndpointSlices of a pool that selects pods. Pure: from the pods and the slices that there are to what is to be
//! written, with few changes: an endpoint stays in its slice, and a new one goes where there is room.
//!
//! There is one set of slices for each family and, where target ports are names, for each list of numbers that pods have
//! for these names. A pod that lacks a name is in a slice without that port.

mod group;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use sluice_api::{
    API_VERSION, DecidedEndpoints, Kind, ObjectKey, POOL_LABEL, PortRef, RealServerPool,
    SLICE_MANAGER, SLICE_MANAGER_LABEL, pool_label,
};

use super::facts::{NAME_MARK, NamedPort, PodFacts};
use group::{Group, Groups};

/// Label by which kube-proxy leaves a slice to another proxy.
const PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
const PROXY: &str = "sluice.dev";

/// The most endpoints of a slice.
pub(super) const MAX_SLICE_ENDPOINTS: usize = 100;
/// The most pods of a pool.
pub(super) const MAX_POOL_PODS: usize = 10_000;
/// A slice's name has room for this much of the pool's, beside mark, hash, family and number.
const NAME_PART: usize = 200;

/// The writes and deletions that bring a pool's slices up to date.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Plan {
    /// New slices and those with endpoints that they did not have. An endpoint that moves is in two slices for a moment
    /// rather than in none, so these are written first.
    pub(super) gaining: Vec<EndpointSlice>,
    /// Other changed slices.
    pub(super) changed: Vec<EndpointSlice>,
    /// Names of slices that are no longer needed.
    pub(super) delete: Vec<String>,
    /// Pods beyond [`MAX_POOL_PODS`], which are left out.
    pub(super) left_out: usize,
}

/// The parts of a pool and its decision that its slices are made from.
#[derive(Clone, Debug)]
pub(super) struct Wanted<'a> {
    key: &'a ObjectKey,
    uid: String,
    /// Names of container ports, in order.
    port_names: BTreeSet<&'a str>,
}

impl<'a> Wanted<'a> {
    pub(super) fn of(
        key: &'a ObjectKey,
        pool: &RealServerPool,
        decided: &'a DecidedEndpoints,
    ) -> Self {
        let target_ports = decided.target_ports.iter();
        let port_names = target_ports.filter_map(|target| match &target.port {
            PortRef::Name(name) => Some(name.as_str()),
            PortRef::Number(_) => None,
        });
        Self {
            key,
            uid: pool.metadata.uid.clone().unwrap_or_default(),
            port_names: port_names.collect(),
        }
    }

    fn ports(&self, pod: &PodFacts) -> Vec<NamedPort> {
        let find = |name: &&str| pod.ports.iter().find(|port| port.name == *name).cloned();
        self.port_names.iter().filter_map(find).collect()
    }

    /// The whole of a slice.
    fn slice(&self, name: String, group: &Group, endpoints: Vec<Endpoint>) -> EndpointSlice {
        let labels = [
            (POOL_LABEL, pool_label(&self.key.name)),
            (SLICE_MANAGER_LABEL, SLICE_MANAGER.to_owned()),
            (PROXY_LABEL, PROXY.to_owned()),
        ];
        let owner = OwnerReference {
            api_version: API_VERSION.to_owned(),
            controller: Some(true),
            kind: Kind::RealServerPool.name().to_owned(),
            name: self.key.name.clone(),
            uid: self.uid.clone(),
            block_owner_deletion: None,
        };
        EndpointSlice {
            address_type: group.address_type().to_owned(),
            endpoints: Some(endpoints),
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(self.key.namespace.clone()),
                labels: Some(
                    labels
                        .map(|(label, value)| (label.to_owned(), value))
                        .into(),
                ),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            ports: Some(group.ports()),
        }
    }
}

/// Plans the slices of a pool. `pods` are those that the pool selects, `own` its slices by name, and `taken` says whether
/// the name of a new slice is in use.
pub(super) fn plan<'a>(
    wanted: &Wanted<'_>,
    pods: impl IntoIterator<Item = (&'a str, &'a PodFacts)>,
    own: &BTreeMap<&str, &EndpointSlice>,
    taken: impl Fn(&str) -> bool,
) -> Plan {
    let known: BTreeSet<&str> = own
        .values()
        .flat_map(|slice| slice.endpoints.iter().flatten())
        .filter_map(|endpoint| endpoint.target_ref.as_ref()?.name.as_deref())
        .collect();
    let mut pods: Vec<(&str, &PodFacts)> = pods
        .into_iter()
        .filter(|(_, pod)| !pod.done && !pod.addresses.is_empty())
        .collect();
    let left_out = pods.len().saturating_sub(MAX_POOL_PODS);
    if left_out > 0 {
        pods.sort_by_key(|(name, _)| (!known.contains(name), *name));
        pods.truncate(MAX_POOL_PODS);
    }
    let mut groups = Groups::new(own);
    for (name, pod) in pods {
        for ipv6 in [false, true] {
            let address = pod.addresses.iter().find(|ip| ip.is_ipv6() == ipv6);
            if let Some(address) = address {
                let group = Group::new(ipv6, wanted.ports(pod));
                groups.add(group, endpoint(wanted.key, name, pod, *address));
            }
        }
    }
    let mut plan = Plan {
        left_out,
        ..Plan::default()
    };
    let prefix = name_prefix(&wanted.key.name);
    let arranged = groups.arrange(|ipv6, number| {
        let family = if ipv6 { "v6" } else { "v4" };
        let name = format!("{prefix}{family}-{number}");
        (!own.contains_key(name.as_str()) && !taken(&name)).then_some(name)
    });
    let mut used = BTreeSet::new();
    for (name, group, endpoints) in arranged {
        used.insert(name.clone());
        let slice = wanted.slice(name, &group, endpoints);
        let last = slice
            .metadata
            .name
            .as_deref()
            .and_then(|name| own.get(name));
        if last.is_none_or(|last| gains(last, &slice)) {
            plan.gaining.push(slice);
        } else if last.is_some_and(|last| !same(last, &slice)) {
            plan.changed.push(slice);
        }
    }
    plan.delete = own
        .keys()
        .filter(|name| !used.contains(**name))
        .map(|name| (*name).to_owned())
        .collect();
    plan
}

/// The beginning of the names of a pool's slices.
pub(super) fn name_prefix(pool: &str) -> String {
    let hash = pool.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let part: String = pool.chars().take(NAME_PART).collect();
    let part = part.trim_end_matches(['-', '.']);
    format!("{part}{NAME_MARK}{hash:08x}-")
}

fn endpoint(key: &ObjectKey, name: &str, pod: &PodFacts, address: IpAddr) -> Endpoint {
    Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(pod.ready && !pod.terminating),
            serving: Some(pod.ready),
            terminating: Some(pod.terminating),
        }),
        node_name: pod.node.clone(),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            name: Some(name.to_owned()),
            namespace: Some(key.namespace.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

/// Whether a slice is to have an endpoint that it does not have.
fn gains(last: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    let addresses = |slice: &EndpointSlice| -> BTreeSet<Option<String>> {
        let endpoints = slice.endpoints.iter().flatten();
        endpoints.map(|e| e.addresses.first().cloned()).collect()
    };
    !addresses(wanted).is_subset(&addresses(last))
}

/// Whether a slice says all that it should. Further labels are somebody else's.
fn same(last: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    let labels = last.metadata.labels.as_ref();
    let labelled = wanted
        .metadata
        .labels
        .iter()
        .flatten()
        .all(|(label, value)| labels.and_then(|labels| labels.get(label)) == Some(value));
    let owned = wanted
        .metadata
        .owner_references
        .iter()
        .flatten()
        .all(|owner| {
            let mut owners = last.metadata.owner_references.iter().flatten();
            owners.any(|other| other.uid == owner.uid && other.controller == owner.controller)
        });
    let none = Vec::new();
    labelled
        && owned
        && last.address_type == wanted.address_type
        && last.endpoints == wanted.endpoints
        && last.ports.as_ref().unwrap_or(&none) == wanted.ports.as_ref().unwrap_or(&none)
}
