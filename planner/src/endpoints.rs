//! From EndpointSlices to the servers of a pool.
//!
//! Kubernetes tells of each endpoint whether it is ready, serving and terminating (API reference, `EndpointConditions`).
//! A ready one takes new flows. Any other keeps the flows that it has for as long as it is listed: it has weight 0. If a
//! pool has no ready endpoint in a family, those that still serve while they terminate take new flows, as kube-proxy has
//! it too: better a server that is about to go than none.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use sluice_api::{
    DecidedEndpoints, DecidedRealServerPool, EndpointSource, GROUP, Kind, OnDown, POOL_LABEL,
    PortRef, SERVICE_LABEL, SLICE_MANAGER, SLICE_MANAGER_LABEL, TargetPort, pool_label,
};

use crate::{Resets, Server, ServerPorts};

/// Weight of an endpoint that takes new flows.
pub(crate) const WEIGHT: u32 = 1;

/// Whose slices these are. Orders by namespace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SliceOwner {
    /// The namespace.
    pub namespace: String,
    /// A Service or a pool.
    pub source: EndpointSource,
    /// Value of the label that names it.
    pub name: String,
}

impl SliceOwner {
    /// The owner that a pool's decision names.
    pub fn of_decision(namespace: &str, endpoints: &DecidedEndpoints) -> Self {
        Self {
            namespace: namespace.to_owned(),
            source: endpoints.source,
            name: endpoints.name.clone(),
        }
    }
}

/// The content of an EndpointSlice, as far as servers follow from it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Slice {
    /// Whose endpoints they are.
    pub owner: SliceOwner,
    /// Names and numbers of the ports; the name is empty where there is only one.
    pub ports: Vec<(String, u16)>,
    /// The endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// An endpoint.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SliceEndpoint {
    /// Name of the pod, or the address where there is none.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// The uid of the pod, if it is one.
    pub pod_uid: Option<Arc<str>>,
    /// The node that it runs on, if it is known.
    pub node: Option<Arc<str>>,
    /// Takes new flows.
    pub ready: bool,
    /// Still answers.
    pub serving: bool,
    /// Is about to go.
    pub terminating: bool,
}

impl Slice {
    /// Reads a slice; `None` if it is neither a pool's nor a Service's. It is a pool's if the operator wrote it, which the
    /// pool's label alone does not say: a Service's labels go over to its slices. Addresses that are no IP addresses are left
    /// out, and of several of one endpoint the first one counts, as the API asks for.
    pub fn read(slice: &EndpointSlice) -> Option<Self> {
        let labels = slice.metadata.labels.as_ref()?;
        let named = |label, source| labels.get(label).map(|name| (source, name));
        let is_managed = labels.get(SLICE_MANAGER_LABEL).map(String::as_str) == Some(SLICE_MANAGER);
        let is_of =
            |pool: &str| is_managed && pool_of(slice).map(pool_label).as_deref() == Some(pool);
        let (source, name) = named(POOL_LABEL, EndpointSource::Pods)
            .filter(|(_, pool)| is_of(pool))
            .or_else(|| named(SERVICE_LABEL, EndpointSource::Service))?;
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            let number = u16::try_from(port.port?).ok()?;
            Some((port.name.clone().unwrap_or_default(), number))
        });
        let endpoints = slice.endpoints.iter().flatten().filter_map(|endpoint| {
            let address = endpoint.addresses.first()?;
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let ready = conditions.ready.unwrap_or(true);
            let target = endpoint.target_ref.as_ref();
            let pod = target.and_then(|target| target.name.clone());
            let pod_uid = target.and_then(|target| target.uid.as_deref());
            Some(SliceEndpoint {
                name: pod.unwrap_or_else(|| address.clone()),
                address: sluice_api::parse_ip(address)?,
                pod_uid: pod_uid.map(Arc::from),
                node: endpoint.node_name.as_deref().map(Arc::from),
                ready,
                serving: conditions.serving.unwrap_or(ready),
                terminating: conditions.terminating.unwrap_or(false),
            })
        });
        Some(Self {
            owner: SliceOwner {
                namespace: slice.metadata.namespace.clone()?,
                source,
                name: name.clone(),
            },
            ports: ports.collect(),
            endpoints: endpoints.collect(),
        })
    }
}

/// The name of the pool that controls a slice.
pub fn pool_of(slice: &EndpointSlice) -> Option<&str> {
    let mut owners = slice.metadata.owner_references.iter().flatten();
    let pool = owners.find(|owner| {
        let group = owner.api_version.split_once('/').map(|(group, _)| group);
        let is_pool = group == Some(GROUP) && owner.kind == Kind::RealServerPool.name();
        is_pool && owner.controller == Some(true)
    });
    pool.map(|owner| owner.name.as_str())
}

/// Slices by their owner.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Slices<'a>(BTreeMap<&'a SliceOwner, Vec<&'a Slice>>);

impl<'a> Slices<'a> {
    /// Sorts slices by owner.
    pub fn new(slices: impl IntoIterator<Item = &'a Slice>) -> Self {
        let mut by_owner: BTreeMap<_, Vec<&Slice>> = BTreeMap::new();
        for slice in slices {
            by_owner.entry(&slice.owner).or_default().push(slice);
        }
        Self(by_owner)
    }

    /// The servers of a pool: static ones, or the endpoints that there are now.
    pub fn servers(&self, namespace: &str, decided: &DecidedRealServerPool) -> Vec<Server> {
        let mut servers = match &decided.endpoints {
            Some(endpoints) => self.endpoints(namespace, endpoints, |endpoint| {
                decided.drains(endpoint.address, endpoint.pod_uid.as_deref())
            }),
            None => static_servers(decided),
        };
        for server in &mut servers {
            server.is_sampled = decided.sampled;
            server.resets = match decided.on_down {
                OnDown::Keep => Resets::Never,
                OnDown::Reset => Resets::WhenDown,
            };
        }
        servers
    }

    /// The endpoints that a decision names, as the slices have them: one may stand in several.
    pub fn listed(
        &self,
        namespace: &str,
        decided: &DecidedEndpoints,
    ) -> impl Iterator<Item = &'a SliceEndpoint> {
        let owner = SliceOwner::of_decision(namespace, decided);
        let slices = self.0.get(&owner).into_iter().flatten().copied();
        slices.flat_map(|slice| &slice.endpoints)
    }

    /// The servers that a decision on endpoints means now. An endpoint that stands in two slices, as it may for a moment
    /// while slices are rearranged, is one server, and ready if it is in one of them.
    fn endpoints(
        &self,
        namespace: &str,
        decided: &DecidedEndpoints,
        is_drained: impl Fn(&SliceEndpoint) -> bool,
    ) -> Vec<Server> {
        let owner = SliceOwner::of_decision(namespace, decided);
        let mut found: BTreeMap<(IpAddr, Arc<ServerPorts>), Standing> = BTreeMap::new();
        for slice in self.0.get(&owner).into_iter().flatten() {
            let ports = Arc::new(server_ports(decided, &slice.ports));
            for endpoint in &slice.endpoints {
                let standing = Standing::of(endpoint, is_drained(endpoint));
                found
                    .entry((endpoint.address, Arc::clone(&ports)))
                    .and_modify(|known| known.merge(&standing))
                    .or_insert(standing);
            }
        }
        let families = [true, false];
        let none_ready = families.map(|v4| {
            found
                .iter()
                .filter(|((address, _), _)| address.is_ipv4() == v4)
                .all(|(_, standing)| !standing.ready)
        });
        let server = |((address, ports), standing): ((IpAddr, _), Standing)| {
            let last_resort = none_ready[usize::from(address.is_ipv6())] && standing.last_resort;
            let takes_flows = standing.ready || last_resort;
            Server {
                name: standing.name,
                address,
                node: standing.node,
                weight: if takes_flows { WEIGHT } else { 0 },
                is_meant: standing.is_meant,
                is_last_resort: standing.last_resort,
                resets: Resets::Never,
                is_sampled: false,
                ports,
            }
        };
        found.into_iter().map(server).collect()
    }
}

fn static_servers(decided: &DecidedRealServerPool) -> Vec<Server> {
    let servers = decided.servers.iter().map(|server| {
        let mut server = Server::from(server);
        if decided.drains(server.address, None) {
            server.weight = 0;
            server.is_meant = false;
        }
        server
    });
    servers.collect()
}

/// How an endpoint stands.
#[derive(Clone, Debug)]
struct Standing {
    name: String,
    node: Option<Arc<str>>,
    ready: bool,
    /// Neither terminates nor is drained.
    is_meant: bool,
    /// Serves while it terminates.
    last_resort: bool,
}

impl Standing {
    fn of(endpoint: &SliceEndpoint, is_drained: bool) -> Self {
        Self {
            name: endpoint.name.clone(),
            node: endpoint.node.clone(),
            ready: endpoint.ready && !endpoint.terminating && !is_drained,
            is_meant: !endpoint.terminating && !is_drained,
            last_resort: endpoint.serving && endpoint.terminating && !is_drained,
        }
    }

    fn merge(&mut self, other: &Self) {
        self.node = self.node.take().or_else(|| other.node.clone());
        self.ready |= other.ready;
        self.is_meant |= other.is_meant;
        self.last_resort |= other.last_resort;
    }
}

/// The ports of the endpoints of a slice with these ports.
fn server_ports(decided: &DecidedEndpoints, ports: &[(String, u16)]) -> ServerPorts {
    let find = |name: &str| ports.iter().find(|(n, _)| n == name).map(|(_, port)| *port);
    let given = |target: &TargetPort| {
        let number = match &target.port {
            PortRef::Number(number) => Some(*number),
            PortRef::Name(name) => find(name),
        };
        (target.name.clone(), number)
    };
    let mut by_name: Vec<_> = decided.target_ports.iter().map(given).collect();
    if decided.source == EndpointSource::Pods {
        return ServerPorts {
            by_name,
            default: None,
        };
    }
    for (name, port) in ports {
        if !name.is_empty() && by_name.iter().all(|(other, _)| other != name) {
            by_name.push((name.clone(), Some(*port)));
        }
    }
    by_name.sort();
    ServerPorts {
        by_name,
        default: find(""),
    }
}
