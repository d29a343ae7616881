//! From decisions and a node's view to what the node shall serve.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use sluice_abi::MAX_POOLS;
use sluice_api::{
    DecidedPool, DecidedPort, DecidedVirtualServer, ExternalTrafficPolicy, ForwardingMode,
    ObjectKey, Protocol, VipPort, WhenAllDown,
};

use crate::config::{PoolConfig, Reach, ServerConfig, VipPortConfig};
use crate::endpoints::WEIGHT;
use crate::known::Known;
use crate::problem::{ObjectKind, Problem, Reason};
use crate::{Blocks, NextHop, NodeView, Prefix, Resets, Server, Via, hash};

/// Which VIP ports a virtual server claims on a node.
pub(crate) struct Claims {
    pub(crate) vip_ports: Vec<VipPort>,
    /// Why it claims no more, and what is wrong whatever the port.
    pub(crate) problems: BTreeSet<Problem>,
}

/// The claims of a virtual server.
pub(crate) fn claims(view: &NodeView, key: &ObjectKey, decided: &DecidedVirtualServer) -> Claims {
    let mut claims = Claims {
        vip_ports: Vec::new(),
        problems: BTreeSet::new(),
    };
    if !view.role.director && !view.role.real_server {
        return claims;
    }
    let mut report = |reason, message, exception| {
        claims.problems.insert(Problem {
            kind: ObjectKind::VirtualServer,
            object: key.clone(),
            reason,
            message,
            exception,
        });
    };
    let count = decided.pools.len();
    if count > MAX_POOLS {
        let message = format!(
            "spec.pools has {count} entries, {MAX_POOLS} are possible: remove pools, or use several virtual servers"
        );
        report(Reason::TooManyPools, message, true);
        return claims;
    }
    if decided.pools.iter().all(|pool| pool.weight == 0) {
        let message = "the weights of spec.pools sum up to 0, so no new flow is served: give a pool a weight above 0";
        report(Reason::NoShare, message.to_owned(), false);
    }
    let is_own = |vip: &&IpAddr| view.addresses.contains(vip);
    for vip in decided.addresses.iter().filter(is_own) {
        let message = format!(
            "spec.addresses names {vip}, which is an address of this node: use an address that no node has"
        );
        report(Reason::VipIsNodeAddress, message, true);
    }
    claims.vip_ports = decided
        .vip_ports()
        .filter(|vip_port| !view.addresses.contains(&vip_port.address))
        .collect();
    claims
}

/// A VIP port of a virtual server as this node shall serve it, and the problems with serving it as described.
///
/// A director serves every virtual server; a node that only has real servers serves those DR and TUN virtual servers of
/// which a server is at one of its own addresses.
pub(crate) fn vip_port(
    known: &Known,
    name: &ObjectKey,
    at: VipPort,
) -> (Option<VipPortConfig>, BTreeSet<Problem>) {
    let mut resolver = Resolver {
        known,
        problems: BTreeSet::new(),
    };
    let virtual_server = known.virtual_servers.get(name);
    let scope = virtual_server.and_then(|virtual_server| {
        let mut ports = virtual_server.ports.iter();
        let port = ports.find(|port| port.at(at.address) == at)?;
        Some(Scope {
            name,
            virtual_server,
            vip: at.address,
            port,
        })
    });
    let config = scope.and_then(|scope| resolver.vip_port(&scope));
    (config, resolver.problems)
}

/// The tags of pools: hashes of their names, unique among them.
pub(crate) fn tags(pools: &[DecidedPool]) -> Vec<u32> {
    let mut tags: Vec<u32> = Vec::new();
    for pool in pools {
        let mut tag = hash::of32(&[pool.name.as_bytes()]);
        while tags.contains(&tag) {
            tag = tag.wrapping_add(1);
        }
        tags.push(tag);
    }
    tags
}

/// The blocks of the VIP's family whose clients may begin flows.
fn sources(scope: &Scope<'_>) -> Option<Blocks> {
    let decided = scope.virtual_server.sources.as_ref()?;
    let blocks = decided.allow.iter().map(Prefix::from);
    let blocks: BTreeSet<Prefix> = blocks
        .filter(|block| block.address.is_ipv4() == scope.vip.is_ipv4())
        .collect();
    Some(blocks.into_iter().collect())
}

/// Whether a server runs on this node.
fn is_here(server: &Server, view: &NodeView) -> bool {
    match &server.node {
        Some(node) => **node == view.name,
        None => view.addresses.contains(&server.address),
    }
}

fn is_of_family(server: &Server, vip: IpAddr) -> bool {
    server.address.is_ipv4() == vip.is_ipv4()
}

/// Whether all servers are down, and that is to be met.
fn is_all_down(scope: &Scope<'_>, servers: &[ServerConfig]) -> bool {
    scope.virtual_server.when_all_down != WhenAllDown::LastKnown
        && servers.iter().any(|server| server.weight > 0)
        && !servers.iter().any(ServerConfig::takes_flows)
}

/// Has the fallback pool stand in for those pools that have too few servers, if it has some.
fn find_stand_ins(virtual_server: &DecidedVirtualServer, pools: &mut [PoolConfig]) {
    let Some(fallback) = &virtual_server.fallback else {
        return;
    };
    let mut names = virtual_server.pools.iter().map(|pool| &pool.name);
    let Some(place) = names.position(|name| *name == fallback.pool_name) else {
        return;
    };
    if !pools[place].takes_flows() {
        return;
    }
    let others = pools.iter_mut().enumerate().filter(|(i, _)| *i != place);
    for (_, pool) in others {
        if pool.has_fewer(fallback.min_ready_percent) {
            pool.stand_in = Some(place);
        }
    }
    // Its share may be 0, and it takes flows all the same.
    let shares = virtual_server.pools.iter().zip(&*pools);
    let mut replaced = shares.filter(|(share, pool)| share.weight > 0 && pool.stand_in.is_some());
    if replaced.next().is_some() {
        for server in &mut pools[place].servers {
            server.draining = !server.takes_flows();
        }
    }
}

/// Has servers that are down give up their flows where another server can take them: at once, as a protocol without connections allows,
/// and by resets, where the pool wants that. To frames from other directors this node's own servers are the only ones that there are.
fn give_flows_up(scope: &Scope<'_>, pool: &mut PoolConfig) {
    let takes = |server: &ServerConfig| server.takes_flows() && server.reach != Reach::Pending;
    if !pool.is_down && pool.stand_in.is_none() && !pool.servers.iter().any(takes) {
        return;
    }
    let mode = scope.virtual_server.mode;
    let by_address = matches!(mode, ForwardingMode::Dr | ForwardingMode::Tun);
    for server in &mut pool.servers {
        let is_only_here = by_address && server.reach == Reach::Local;
        let is_left = server.tenths == 0 && !is_only_here;
        match scope.port.protocol {
            Protocol::Udp => server.gives_flows_up |= is_left,
            Protocol::Tcp if is_left && server.resets == Resets::WhenDown => {
                server.resets = Resets::Now;
            }
            Protocol::Tcp => {}
        }
    }
}

struct Resolver<'a> {
    known: &'a Known,
    problems: BTreeSet<Problem>,
}

/// The VIP port being resolved.
#[derive(Clone, Copy)]
struct Scope<'a> {
    name: &'a ObjectKey,
    virtual_server: &'a Arc<DecidedVirtualServer>,
    vip: IpAddr,
    port: &'a DecidedPort,
}

impl Scope<'_> {
    /// Whether only servers of this node count.
    fn is_local(&self) -> bool {
        self.virtual_server.external_traffic_policy == ExternalTrafficPolicy::Local
    }
}

impl Resolver<'_> {
    /// Notes what is not served as described, though the decision is in force.
    fn report(&mut self, kind: ObjectKind, object: &ObjectKey, reason: Reason, message: String) {
        self.insert(kind, object, reason, message, false);
    }

    fn insert(
        &mut self,
        kind: ObjectKind,
        object: &ObjectKey,
        reason: Reason,
        message: String,
        exception: bool,
    ) {
        self.problems.insert(Problem {
            kind,
            object: object.clone(),
            reason,
            message,
            exception,
        });
    }

    fn vip_port(&mut self, scope: &Scope<'_>) -> Option<VipPortConfig> {
        let decided = &scope.virtual_server.pools;
        let tagged = decided.iter().zip(tags(decided));
        let mut pools: Vec<PoolConfig> = tagged
            .map(|(share, tag)| self.pool(scope, share, tag))
            .collect();
        find_stand_ins(scope.virtual_server, &mut pools);
        for (share, pool) in decided.iter().zip(&mut pools) {
            give_flows_up(scope, pool);
            self.tell_lack(scope, share, pool);
        }
        let director = self.known.view.role.director;
        if !director && pools.iter().all(|pool| pool.servers.is_empty()) {
            return None;
        }
        if scope.virtual_server.mode == ForwardingMode::Tun {
            self.pools_in_one_tunnel(scope, &pools);
        }
        let name = scope.name;
        Some(VipPortConfig {
            virtual_server: name.clone(),
            decided: Arc::clone(scope.virtual_server),
            seed: hash::of32(&[name.namespace.as_bytes(), name.name.as_bytes()]),
            sources: sources(scope),
            director,
            pools,
        })
    }

    fn pool(&mut self, scope: &Scope<'_>, share: &DecidedPool, tag: u32) -> PoolConfig {
        let pool_name = scope.name.sibling(&share.name);
        let known = self.known.pools.get(&pool_name);
        let mut servers = Vec::new();
        let mut is_down = false;
        if let Some(known) = known {
            servers = self.servers(scope, share, &pool_name, known);
            is_down = is_all_down(scope, &servers);
        } else {
            let message = format!(
                "spec.pools names {}, which does not exist: create the RealServerPool, or remove it from spec.pools",
                share.name
            );
            self.report(
                ObjectKind::VirtualServer,
                scope.name,
                Reason::PoolNotFound,
                message,
            );
        }
        let mut all = known.into_iter().flat_map(|known| known.iter());
        let is_sampled =
            scope.port.protocol == Protocol::Tcp && all.any(|server| server.is_sampled);
        PoolConfig {
            tag,
            known: known.is_some(),
            is_down,
            is_sampled,
            stand_in: None,
            servers,
        }
    }

    /// Tells of a pool with a share whose servers cannot take it.
    fn tell_lack(&mut self, scope: &Scope<'_>, share: &DecidedPool, pool: &PoolConfig) {
        let pool_name = scope.name.sibling(&share.name);
        let Some(known) = self.known.pools.get(&pool_name) else {
            return;
        };
        if !self.known.view.role.director || share.weight == 0 || scope.is_local() {
            return;
        }
        let family = if scope.vip.is_ipv4() { "IPv4" } else { "IPv6" };
        if let Some(place) = pool.stand_in {
            let message = format!(
                "too few {family} servers of the pool take flows, so pool {} takes its share of virtual server {}, as \
                 spec.fallbackPoolName there wants it: see that the pool's servers are ready and pass their check",
                scope.virtual_server.pools[place].name, scope.name
            );
            self.report(
                ObjectKind::RealServerPool,
                &pool_name,
                Reason::FallbackServes,
                message,
            );
        } else if pool.servers.iter().all(|server| server.weight == 0) {
            let message = format!(
                "no {family} server of the pool can take flows of virtual server {}, so its share of them is dropped: \
                 give spec.servers an {family} server with a weight above 0, or the pool the weight 0 in spec.pools \
                 of the virtual server",
                scope.name
            );
            // Where no node has servers, the operator says so.
            let takes_flows =
                |server: &Server| server.weight > 0 && is_of_family(server, scope.vip);
            self.insert(
                ObjectKind::RealServerPool,
                &pool_name,
                Reason::NoServers,
                message,
                known.iter().any(takes_flows),
            );
        }
    }

    fn servers(
        &mut self,
        scope: &Scope<'_>,
        share: &DecidedPool,
        pool_name: &ObjectKey,
        known: &[Server],
    ) -> Vec<ServerConfig> {
        let mut candidates: Vec<(&Server, u16)> = Vec::new();
        for server in known {
            if !is_of_family(server, scope.vip)
                || scope.is_local() && !is_here(server, &self.known.view)
            {
                continue;
            }
            match server.ports.behind(scope.port) {
                Some(port) => candidates.push((server, port)),
                None => self.no_such_port(scope, pool_name, server),
            }
        }
        // Until another node has taken over, this one has no other server for what comes.
        let is_end = scope.is_local() && candidates.iter().all(|(server, _)| server.weight == 0);
        candidates
            .sort_by_key(|&(server, port)| (server.address, port, &server.name, server.weight));

        // Sorted, so what collides is adjacent.
        let mut servers: Vec<ServerConfig> = Vec::new();
        let mut last_target = None;
        for (server, port) in candidates {
            let weight = if is_end && server.is_last_resort {
                WEIGHT
            } else {
                server.weight
            };
            let Some(found) = self.server(scope, share, pool_name, (server, weight), port) else {
                continue;
            };
            let target = Some((server.address, port));
            if std::mem::replace(&mut last_target, target) == target {
                let message = format!(
                    "spec.servers: {} repeats the address {} and port {port} of a server before it: remove one of them",
                    server.name, server.address
                );
                self.report(
                    ObjectKind::RealServerPool,
                    pool_name,
                    Reason::DuplicateServer,
                    message,
                );
                continue;
            }
            let local = found.reach == Reach::Local;
            let one_per_address = match scope.virtual_server.mode {
                ForwardingMode::Nat | ForwardingMode::FullNat => false,
                // A frame names a node; the node's own servers share what it gets.
                ForwardingMode::Dr => !local,
                ForwardingMode::Tun => true,
            };
            match servers.last_mut() {
                Some(last) if one_per_address && last.address == found.address => {
                    last.merge(&found);
                    if local {
                        self.two_in_one_tunnel(pool_name, server);
                    }
                }
                _ => servers.push(found),
            }
        }
        servers
    }

    fn no_such_port(&mut self, scope: &Scope<'_>, pool_name: &ObjectKey, server: &Server) {
        let message = format!(
            "spec.targetPorts: {} ({}) has no port of the name given for {}, so it is left out: correct the name, or give a \
             number",
            server.name, server.address, scope.port.name
        );
        self.report(
            ObjectKind::RealServerPool,
            pool_name,
            Reason::TargetPortNotFound,
            message,
        );
    }

    /// A tunnel names the server's address, so pools cannot share an address on different ports.
    fn pools_in_one_tunnel(&mut self, scope: &Scope<'_>, pools: &[PoolConfig]) {
        let mut ports: BTreeMap<IpAddr, (u16, &str)> = BTreeMap::new();
        for (share, pool) in scope.virtual_server.pools.iter().zip(pools) {
            for server in pool.servers.iter().filter(|s| s.reach == Reach::Local) {
                let (address, port) = (server.address, server.port);
                let (first, first_pool) = *ports.entry(address).or_insert((port, &share.name));
                if first == port {
                    continue;
                }
                let message = format!(
                    "spec.servers: {address} has the target port {port} here and {first} in pool {first_pool}, but TUN names \
                     only the address, so {first} gets what is meant for both: give one an own address, or use DR, NAT or \
                     FullNAT"
                );
                let pool_name = scope.name.sibling(&share.name);
                self.report(
                    ObjectKind::RealServerPool,
                    &pool_name,
                    Reason::DuplicateServer,
                    message,
                );
            }
        }
    }

    fn two_in_one_tunnel(&mut self, pool_name: &ObjectKey, server: &Server) {
        let message = format!(
            "spec.servers: {} has the address {} with another target port than a server before it, but TUN names only the \
             address: give it an own address, or use DR, NAT or FullNAT",
            server.name, server.address
        );
        self.report(
            ObjectKind::RealServerPool,
            pool_name,
            Reason::DuplicateServer,
            message,
        );
    }

    /// One server, or `None` if this node does not serve it.
    fn server(
        &mut self,
        scope: &Scope<'_>,
        share: &DecidedPool,
        pool_name: &ObjectKey,
        (server, weight): (&Server, u32),
        target_port: u16,
    ) -> Option<ServerConfig> {
        let mode = scope.virtual_server.mode;
        let by_address = matches!(mode, ForwardingMode::Dr | ForwardingMode::Tun);
        let local = self.known.view.addresses.contains(&server.address);
        let for_this_node = self.known.view.role.director || (local && by_address);
        if !for_this_node {
            return None;
        }
        if scope.virtual_server.addresses.contains(&server.address) {
            let message = format!(
                "spec.servers: {} has the address {} of virtual server {} itself: give it the server's own address",
                server.name, server.address, scope.name
            );
            self.report(
                ObjectKind::RealServerPool,
                pool_name,
                Reason::ServerIsVip,
                message,
            );
            return None;
        }
        let reach = if local {
            Reach::Local
        } else {
            self.reach(scope, pool_name, server)?
        };
        let tenths = self.known.tenths_of(pool_name, server.address, target_port);
        Some(ServerConfig {
            address: server.address,
            port: if by_address && !local {
                scope.port.port
            } else {
                target_port
            },
            weight: u64::from(weight),
            is_meant: server.is_meant,
            tenths,
            gives_flows_up: scope.port.protocol == Protocol::Udp && server.resets == Resets::Now,
            draining: weight == 0 || share.weight == 0 || tenths == 0,
            resets: match scope.port.protocol {
                Protocol::Tcp => server.resets,
                Protocol::Udp => Resets::Never,
            },
            reach,
        })
    }

    /// The way to a server elsewhere, or `None` if the mode cannot use it.
    fn reach(
        &mut self,
        scope: &Scope<'_>,
        pool_name: &ObjectKey,
        server: &Server,
    ) -> Option<Reach> {
        let mode = scope.virtual_server.mode;
        let hop = match self.known.next_hops.get(&server.address) {
            Some(NextHop::Resolved(hop)) => hop,
            Some(NextHop::Pending) | None => return Some(Reach::Pending),
            Some(state @ (NextHop::Overdue | NextHop::Unreachable)) => {
                let cause = match state {
                    NextHop::Unreachable => "there is no route or its neighbour does not answer",
                    _ => "its neighbour has not answered yet",
                };
                let message = format!(
                    "spec.servers: packets to {} ({}) are dropped, {cause}: check that the server is up and the node's \
                     routes lead to it",
                    server.name, server.address
                );
                self.report(
                    ObjectKind::RealServerPool,
                    pool_name,
                    Reason::NextHopUnresolved,
                    message,
                );
                return Some(Reach::Unresolved);
            }
        };
        let remedy = match (mode, hop.via) {
            (ForwardingMode::Dr, Via::Router) => {
                "is behind a router, and DR reaches only servers on the same link: use NAT, FullNAT or TUN"
            }
            (ForwardingMode::Dr, Via::Bridge) => {
                "is behind a bridge or overlay, and DR reaches only servers on the same link: use NAT or FullNAT"
            }
            (ForwardingMode::Tun, Via::Bridge) => {
                "is behind a bridge or overlay, which TUN does not reach: use NAT or FullNAT"
            }
            (ForwardingMode::FullNat | ForwardingMode::Tun, _)
                if hop.source.is_ipv4() != server.address.is_ipv4() =>
            {
                let message = format!(
                    "spec.servers: packets to {} ({}) are dropped, this node has no source address of that family: give it one",
                    server.name, server.address
                );
                self.report(
                    ObjectKind::RealServerPool,
                    pool_name,
                    Reason::NextHopUnresolved,
                    message,
                );
                return Some(Reach::Unresolved);
            }
            _ => return Some(Reach::Hop(*hop)),
        };
        let message = format!(
            "spec.forwarding.mode: server {} ({}) of pool {} {remedy}",
            server.name, server.address, pool_name.name
        );
        self.report(
            ObjectKind::VirtualServer,
            scope.name,
            Reason::ServerNotReachableInMode,
            message,
        );
        None
    }
}
