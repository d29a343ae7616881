//! Whether a spec may be served: checks of one object against itself, its pools and the nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sluice_api::{
    DEFAULT_SERVER_WEIGHT, DecidedPort, DecidedServer, FieldError, ForwardingMode, ObjectKey,
    PoolSelection, RealServerPoolSpec, Reason, TargetPort, Validate, VirtualServerSpec, parse_ip,
};

use super::nodes;
use super::world::World;

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

/// A virtual server's spec with its texts parsed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Service {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ports: Vec<DecidedPort>,
    pub(super) mode: ForwardingMode,
    pub(super) pool_selection: PoolSelection,
    /// Name and weight of the spec.
    pub(super) pools: Vec<(String, u32)>,
}

impl Service {
    pub(super) fn of_spec(spec: &VirtualServerSpec) -> Self {
        Self {
            addresses: spec
                .addresses
                .iter()
                .filter_map(|address| parse_ip(&address.ip))
                .collect(),
            ports: spec
                .ports
                .iter()
                .map(|port| DecidedPort {
                    name: port.name.clone(),
                    protocol: port.protocol,
                    port: port.port,
                })
                .collect(),
            mode: spec.forwarding.mode,
            pool_selection: spec.pool_selection,
            pools: spec
                .pools
                .iter()
                .map(|pool| (pool.name.clone(), pool.weight))
                .collect(),
        }
    }

    pub(super) fn of_decision(decision: &sluice_api::Decision) -> Self {
        Self {
            addresses: decision.addresses.clone(),
            ports: decision.ports.clone(),
            mode: decision.mode,
            pool_selection: decision.pool_selection,
            pools: decision
                .pools
                .iter()
                .map(|pool| (pool.name.clone(), pool.spec_weight))
                .collect(),
        }
    }
}

/// The servers that each pool would have.
pub(super) type PoolView<'a> = BTreeMap<&'a ObjectKey, &'a [DecidedServer]>;

/// Checks a virtual server's spec against everything but other virtual servers.
pub(super) fn admit(
    key: &ObjectKey,
    spec: &VirtualServerSpec,
    pools: &PoolView<'_>,
    world: &World,
) -> Result<Service, Vec<Refusal>> {
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
    let service = Service::of_spec(spec);
    for (i, &address) in service.addresses.iter().enumerate() {
        let path = format!("spec.addresses[{i}].ip");
        if let Some(what) = not_usable(address) {
            let message = format!(
                "{address} is {what}: give an address that clients reach and that no node has as its own"
            );
            refusals.push(Refusal::new(Reason::AddressNotUsable, path, message));
        } else if let Some(node) = world.node_with(address) {
            let message = format!(
                "{address} is an address of node {node}: give one that no node has, or remove it from that node"
            );
            refusals.push(Refusal::new(Reason::VipIsNodeAddress, path, message));
        }
    }
    for (i, (name, _)) in service.pools.iter().enumerate() {
        let path = format!("spec.pools[{i}].name");
        let pool = key.sibling(name);
        match pools.get(&pool) {
            Some(servers) => refusals.extend(
                fit(&service, &pool, servers, world)
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
        refusals.extend(unchecked(key, &service, world));
    }
    if refusals.is_empty() {
        Ok(service)
    } else {
        Err(refusals)
    }
}

/// New VIPs wait for nodes that are about to report their addresses; those in force stay.
fn unchecked(key: &ObjectKey, service: &Service, world: &World) -> Option<Refusal> {
    let starting = nodes::starting(world);
    let known = |vip: &IpAddr| {
        let decision = world.decision(key);
        decision.is_some_and(|decision| decision.addresses.contains(vip))
    };
    if starting.is_empty() || service.addresses.iter().all(known) {
        return None;
    }
    let message = format!(
        "waits a few seconds for the addresses of {}, since a VIP must not be one of them",
        starting.join(", ")
    );
    let path = "spec.addresses[*].ip";
    Some(Refusal::new(Reason::AwaitingNodes, path, message))
}

/// What keeps a pool's servers from serving a virtual server.
pub(super) fn fit(
    service: &Service,
    pool: &ObjectKey,
    servers: &[DecidedServer],
    world: &World,
) -> Vec<(Reason, String)> {
    let mut problems = Vec::new();
    for vip in &service.addresses {
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
    if matches!(service.mode, ForwardingMode::Dr | ForwardingMode::Tun) {
        problems.extend(untranslated_port(service, pool, servers, world));
    }
    problems
}

/// DR and TUN leave the port as it is; the RS side translates it, where an agent runs.
fn untranslated_port(
    service: &Service,
    pool: &ObjectKey,
    servers: &[DecidedServer],
    world: &World,
) -> Option<(Reason, String)> {
    servers
        .iter()
        .filter(|server| {
            let same_family = |vip: &IpAddr| vip.is_ipv6() == server.address.is_ipv6();
            service.addresses.iter().any(same_family)
        })
        .filter(|server| world.node_with(server.address).is_none())
        .flat_map(|server| service.ports.iter().map(move |port| (server, port)))
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
                service.mode.name(),
            );
            (Reason::TargetPortMismatch, message)
        })
}

/// Checks a pool's spec by itself.
pub(super) fn accept(spec: &RealServerPoolSpec) -> Result<Vec<DecidedServer>, Vec<Refusal>> {
    let mut refusals: Vec<Refusal> = spec
        .validate()
        .into_iter()
        .map(|error| Refusal {
            reason: Reason::InvalidSpec,
            error,
        })
        .collect();
    let mut servers = Vec::new();
    let mut addresses = BTreeSet::new();
    for (i, server) in spec.servers.static_servers.iter().enumerate() {
        let path = format!("spec.servers.static[{i}].address");
        let Some(address) = parse_ip(&server.address) else {
            continue;
        };
        if let Some(what) = not_usable(address) {
            let message = format!("{address} is {what}: give an address that directors can reach");
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
        Ok(servers)
    } else {
        Err(refusals)
    }
}

/// The server's target ports, then those of the pool whose name the server does not have.
fn merged(own: &[TargetPort], pool: &[TargetPort]) -> Vec<TargetPort> {
    let further = pool
        .iter()
        .filter(|target| own.iter().all(|other| other.name != target.name));
    own.iter().chain(further).cloned().collect()
}

/// Why an address can be neither a VIP nor a server's.
fn not_usable(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
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
