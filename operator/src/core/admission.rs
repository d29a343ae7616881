//! Whether a spec may be served: checks of one object against itself, its pools and the nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sluice_api::{
    DEFAULT_SERVER_WEIGHT, DecidedEndpoints, DecidedRealServerPool, DecidedServer,
    DecidedTargetPort, DecidedVirtualServer, EndpointSource, FieldError, ForwardingMode, ObjectKey,
    PortRef, RealServerPoolSpec, Reason, TargetPort, Validate, VirtualServerSpec, parse_ip,
    pool_label,
};
use sluice_planner::Slices;

use super::addresses::RefusedServers;
use super::nodes;
use super::vips;
use super::world::{Cluster, World};

/// Why a spec is not served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Refusal {
    pub(super) reason: Reason,
    pub(super) error: FieldError,
}

impl Refusal {
    pub(super) fn new(reason: Reason, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            reason,
            error: FieldError::new(path, message),
        }
    }
}

/// All of them in words.
pub(super) fn told(refusals: &[Refusal]) -> String {
    let errors = refusals.iter().map(|refusal| refusal.error.to_string());
    errors.collect::<Vec<_>>().join("; ")
}

/// The content that each pool would have, the endpoints that there are, and the VIPs in force that no longer can be VIPs.
pub(super) struct View<'a> {
    pub(super) contents: &'a BTreeMap<ObjectKey, DecidedRealServerPool>,
    pub(super) slices: &'a Slices<'a>,
    pub(super) unusable: &'a vips::Unusable,
}

/// Checks a virtual server's spec against everything but other virtual servers.
pub(super) fn admit(
    key: &ObjectKey,
    spec: &VirtualServerSpec,
    view: &View<'_>,
    world: &World,
) -> Result<DecidedVirtualServer, Vec<Refusal>> {
    let mut refusals: Vec<Refusal> = spec
        .validate()
        .into_iter()
        .map(|error| Refusal {
            reason: Reason::InvalidSpec,
            error,
        })
        .collect();
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let wanted = DecidedVirtualServer::of_spec(spec, world.addresses_of(key));
    match world.assigned.get(key) {
        Some(assignment) if !assignment.refusals.is_empty() => {
            refusals.extend(assignment.refusals.iter().cloned());
        }
        _ => refusals.extend(vips::refusals(key, &wanted, view.unusable, world)),
    }
    for (i, pool) in wanted.pools.iter().enumerate() {
        // The fallback pool comes last where the spec lists it nowhere.
        let path = match spec.pools.get(i) {
            Some(_) => format!("spec.pools[{i}].name"),
            None => "spec.fallbackPoolName".to_owned(),
        };
        let pool = key.sibling(&pool.name);
        match view.contents.get(&pool) {
            Some(content) => refusals.extend(
                fit(&wanted, &pool, content, view.slices, world)
                    .into_iter()
                    .map(|(reason, message)| Refusal::new(reason, path.clone(), message)),
            ),
            None if world.pools.contains_key(&pool) => {
                let message = format!(
                    "RealServerPool {pool} is refused: correct it as its condition Stalled says"
                );
                refusals.push(Refusal::new(Reason::PoolNotFound, path, message));
            }
            None => {
                let message =
                    format!("RealServerPool {pool} does not exist: create it or correct the name");
                refusals.push(Refusal::new(Reason::PoolNotFound, path, message));
            }
        }
    }
    if refusals.is_empty() {
        refusals.extend(unchecked(key, &wanted, world));
    }
    if refusals.is_empty() {
        Ok(wanted)
    } else {
        Err(refusals)
    }
}

/// New VIPs wait for nodes that are about to report their addresses; those in force stay.
fn unchecked(key: &ObjectKey, wanted: &DecidedVirtualServer, world: &World) -> Option<Refusal> {
    let starting = nodes::starting(world);
    let known = |vip: &IpAddr| {
        let decision = world.decision(key);
        decision.is_some_and(|decision| decision.content.addresses.contains(vip))
    };
    if starting.is_empty() || wanted.addresses.iter().all(known) {
        return None;
    }
    let message = format!(
        "waits a few seconds for the addresses of {}, since a VIP must not be one of them",
        starting.join(", ")
    );
    let path = "spec.addresses[*].ip";
    Some(Refusal::new(Reason::AwaitingNodes, path, message))
}

/// The problems that keep a pool's servers from serving a virtual server.
pub(super) fn fit(
    wanted: &DecidedVirtualServer,
    pool: &ObjectKey,
    content: &DecidedRealServerPool,
    slices: &Slices<'_>,
    world: &World,
) -> Vec<(Reason, String)> {
    let mut problems = Vec::new();
    if content.endpoints.is_some() {
        problems.extend(out_of_reach(wanted, pool, content, slices, world));
        return problems;
    }
    let servers = &content.servers;
    for vip in &wanted.addresses {
        let family = if vip.is_ipv6() { "IPv6" } else { "IPv4" };
        if servers.iter().all(|s| s.address.is_ipv6() != vip.is_ipv6()) {
            let message = format!(
                "RealServerPool {pool} has no {family} server for the VIP {vip}: add one to its spec.servers.static, or \
                 remove the VIP from spec.addresses"
            );
            problems.push((Reason::AddressFamilyMismatch, message));
        }
        if let Some(server) = servers.iter().find(|server| server.address == *vip) {
            let message = format!(
                "server {} of RealServerPool {pool} has the VIP {vip} as its spec.servers.static[].address: give the \
                 server's own address",
                server.name
            );
            problems.push((Reason::ServerIsVip, message));
        }
    }
    if matches!(wanted.mode, ForwardingMode::Dr | ForwardingMode::Tun) {
        problems.extend(untranslated_port(wanted, pool, servers, world));
    }
    problems
}

/// DR and TUN reach an endpoint where an agent has its address as the node's own: a pod in the host's network. Endpoints
/// come and go, so what else is wrong with them is for the nodes to tell.
fn out_of_reach(
    wanted: &DecidedVirtualServer,
    pool: &ObjectKey,
    content: &DecidedRealServerPool,
    slices: &Slices<'_>,
    world: &World,
) -> Option<(Reason, String)> {
    if !matches!(wanted.mode, ForwardingMode::Dr | ForwardingMode::Tun) {
        return None;
    }
    let servers = slices.servers(&pool.namespace, content);
    let server = servers
        .iter()
        .find(|server| world.node_with(server.address).is_none())?;
    let message = format!(
        "{} ({}) of RealServerPool {pool} has an address of its own, and in mode {} pods are reached only in the network of \
         a node that runs an agent (hostNetwork): set spec.forwarding.mode to FullNAT",
        server.name,
        server.address,
        wanted.mode.name()
    );
    Some((Reason::ServerNotReachableInMode, message))
}

/// DR and TUN leave the port as it is; the RS side translates it, where an agent runs.
fn untranslated_port(
    wanted: &DecidedVirtualServer,
    pool: &ObjectKey,
    servers: &[DecidedServer],
    world: &World,
) -> Option<(Reason, String)> {
    servers
        .iter()
        .filter(|server| {
            let same_family = |vip: &IpAddr| vip.is_ipv6() == server.address.is_ipv6();
            wanted.addresses.iter().any(same_family)
        })
        .filter(|server| world.node_with(server.address).is_none())
        .flat_map(|server| wanted.ports.iter().map(move |port| (server, port)))
        .find(|(server, port)| server.target_port(port) != port.port)
        .map(|(server, port)| {
            let (name, address) = (&server.name, server.address);
            let message = format!(
                "server {name} ({address}) of RealServerPool {pool} has target port {} for port {} ({}), and in mode {} \
                 nothing translates it there: use the same port in targetPorts, run an agent (LoadBalancerNode) at \
                 {address}, or set spec.forwarding.mode to NAT or FullNAT",
                server.target_port(port),
                port.port,
                port.name,
                wanted.mode.name(),
            );
            (Reason::TargetPortMismatch, message)
        })
}

/// Checks a pool's spec without the virtual servers that use it.
pub(super) fn accept(
    key: &ObjectKey,
    spec: &RealServerPoolSpec,
    world: &World,
) -> Result<DecidedRealServerPool, Vec<Refusal>> {
    let refusals: Vec<Refusal> = spec
        .validate()
        .into_iter()
        .map(|error| Refusal {
            reason: Reason::InvalidSpec,
            error,
        })
        .collect();
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let endpoints = |source, name| {
        Ok(DecidedRealServerPool {
            servers: Vec::new(),
            endpoints: Some(DecidedEndpoints {
                source,
                name,
                selector: spec.servers.selector.clone(),
                target_ports: spec.target_ports.clone(),
            }),
            health_check: spec.health_check.clone(),
            warmup: spec.warmup,
            drain: spec.drain,
            on_down: spec.on_down,
            drained: Vec::new(),
            sampled: false,
        })
    };
    match (&spec.servers.selector, &spec.servers.service_name) {
        (Some(_), _) => {
            cluster(world, "spec.servers.selector")?;
            endpoints(EndpointSource::Pods, pool_label(&key.name))
        }
        (None, Some(name)) => {
            let path = "spec.servers.serviceName";
            if !cluster(world, path)?.services.contains(&key.sibling(name)) {
                let message = format!(
                    "Service {} does not exist: create it or correct the name",
                    key.sibling(name)
                );
                return Err(vec![Refusal::new(Reason::ServiceNotFound, path, message)]);
            }
            endpoints(EndpointSource::Service, name.clone())
        }
        (None, None) => accept_static(key, spec, world),
    }
}

fn cluster<'a>(world: &'a World, path: &str) -> Result<&'a Cluster, Vec<Refusal>> {
    world.cluster.as_ref().ok_or_else(|| {
        let message = "needs Kubernetes, and manifests are read from a directory here: list the servers in \
                       spec.servers.static";
        vec![Refusal::new(Reason::NeedsKubernetes, path, message)]
    })
}

fn accept_static(
    key: &ObjectKey,
    spec: &RealServerPoolSpec,
    world: &World,
) -> Result<DecidedRealServerPool, Vec<Refusal>> {
    let mut refusals = Vec::new();
    let mut servers = Vec::new();
    let mut addresses = BTreeSet::new();
    refusals.extend(unknown_names("spec.targetPorts", &spec.target_ports));
    for (i, server) in spec.servers.static_servers.iter().enumerate() {
        let path = format!("spec.servers.static[{i}].address");
        let Some(address) = parse_ip(&server.address) else {
            continue;
        };
        let ports = format!("spec.servers.static[{i}].targetPorts");
        refusals.extend(unknown_names(&ports, &server.target_ports));
        if let Some(what) = not_usable(address) {
            let message = format!("{address} is {what}: give an address that directors can reach");
            refusals.push(Refusal::new(Reason::AddressNotUsable, path, message));
        } else if let Some(whose) = whose_server(key, address, world) {
            let message = format!(
                "{address} {whose}, and the operator's --refused-servers keeps pools from naming it: give another address, \
                 or choose pods by spec.servers.selector"
            );
            refusals.push(Refusal::new(Reason::AddressNotUsable, path, message));
        } else {
            let server = DecidedServer {
                name: server.name.clone(),
                address,
                weight: server.weight.unwrap_or(DEFAULT_SERVER_WEIGHT),
                target_ports: merged(&server.target_ports, &spec.target_ports),
            };
            if !addresses.insert((address, server.target_ports.clone())) {
                let message = format!(
                    "{address} is given twice with the same ports: remove one and raise the other's weight"
                );
                refusals.push(Refusal::new(Reason::InvalidSpec, path, message));
            }
            servers.push(server);
        }
    }
    if refusals.is_empty() {
        Ok(DecidedRealServerPool {
            servers,
            endpoints: None,
            health_check: spec.health_check.clone(),
            warmup: spec.warmup,
            drain: spec.drain,
            on_down: spec.on_down,
            drained: Vec::new(),
            sampled: false,
        })
    } else {
        Err(refusals)
    }
}

/// Static servers have no ports with names.
fn unknown_names(path: &str, ports: &[TargetPort]) -> Vec<Refusal> {
    let named = ports.iter().enumerate().filter_map(|(i, target)| {
        let PortRef::Name(name) = &target.port else {
            return None;
        };
        let message =
            format!("{name:?} is a name, and static servers have none for ports: give the number");
        let path = format!("{path}[{i}].port");
        Some(Refusal::new(Reason::InvalidSpec, path, message))
    });
    named.collect()
}

/// The server's target ports, then those of the pool whose name the server does not have.
fn merged(own: &[TargetPort], pool: &[TargetPort]) -> Vec<DecidedTargetPort> {
    let further = pool
        .iter()
        .filter(|target| own.iter().all(|other| other.name != target.name));
    own.iter()
        .chain(further)
        .filter_map(|target| {
            Some(DecidedTargetPort {
                name: target.name.clone(),
                port: target.port.number()?,
            })
        })
        .collect()
}

/// Whose address it is, if pools may not name it for that. A server that is in force stays, whoever gets its address.
fn whose_server(key: &ObjectKey, address: IpAddr, world: &World) -> Option<String> {
    let by_report = world.addresses.refuses(RefusedServers::Nodes);
    let node = by_report.then(|| world.node_with(address)).flatten();
    let whose = node
        .map(|node| format!("is an address of node {node}"))
        .or_else(|| Some(world.addresses.refused_server(address)?.to_string()))?;
    let decided = world.pool_decision(key);
    let mut known = decided.iter().flat_map(|it| &it.content.servers);
    (!known.any(|server| server.address == address)).then_some(whose)
}

/// Addresses at which clouds tell a machine its secrets, beyond the link-local ones: whoever gets a node to ask there gets
/// the node's. Azure's wire server, Alibaba Cloud's and Oracle Cloud's metadata services, those of EC2 and of Google Cloud over
/// IPv6, by their documentation.
const METADATA_SERVICES: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// Why an address can be neither a VIP nor a server's.
pub(super) fn not_usable(address: IpAddr) -> Option<&'static str> {
    if METADATA_SERVICES.contains(&address) {
        Some("the address of a cloud's metadata service")
    } else if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else {
        match address {
            IpAddr::V4(v4) if v4.is_link_local() => Some("a link-local address"),
            IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
            IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("an address of \"this network\""),
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
            _ => None,
        }
    }
}
