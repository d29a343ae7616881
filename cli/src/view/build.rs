//! From objects to the view.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use sluice_api::{
    Acknowledged, Condition, ConditionType, DecidedPool, DecidedPort, DecidedVirtualServer,
    Decision, ExceptionKind, Kind, LoadBalancerNode, ObjectKey, RealServerPool, Reason,
    RolloutPolicy, Time, VirtualServer, find_condition,
};
use sluice_planner::Slice;

use super::groups::{GroupLeases, Groups};
use super::nodes::{Leases, Nodes, Wanted};
use super::{
    AcknowledgedView, DecisionView, DownView, ExceptionView, FORMAT_VERSION, PoolView, PortView,
    StateView, StatusView, VirtualServerView, WarningView, WeightView, driver, rollout, servers,
};

/// The objects that were fetched.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Objects {
    /// The virtual servers to show.
    pub virtual_servers: Vec<VirtualServer>,
    /// All pools of their namespaces.
    pub pools: Vec<RealServerPool>,
    /// All policies of their namespaces.
    pub policies: Vec<RolloutPolicy>,
    /// All nodes; `None`: they may not be listed.
    pub nodes: Option<Vec<LoadBalancerNode>>,
    /// The nodes' Leases; `None`: they may not be listed.
    pub leases: Option<Leases>,
    /// The VIP groups' Leases; `None`: they may not be listed.
    pub group_leases: Option<GroupLeases>,
    /// The EndpointSlices that the pools' decisions name; `None`: they may not be listed.
    pub slices: Option<Vec<EndpointSlice>>,
}

impl Objects {
    pub(super) fn known_nodes(&self) -> Option<Nodes<'_>> {
        Some(Nodes {
            objects: self.nodes.as_deref()?,
            leases: self.leases.as_ref(),
        })
    }
}

/// The view. `now` is for remaining times.
pub fn status(objects: &Objects, now: &Time) -> StatusView {
    let pools: BTreeMap<ObjectKey, &RealServerPool> = objects
        .pools
        .iter()
        .map(|pool| (ObjectKey::of(pool), pool))
        .collect();
    let slices: Option<Vec<Slice>> = objects
        .slices
        .as_ref()
        .map(|slices| slices.iter().filter_map(Slice::read).collect());
    let context = Context {
        objects,
        pools,
        slices,
        groups: Groups::new(objects),
        down: objects
            .known_nodes()
            .map(|nodes| nodes.down_servers())
            .unwrap_or_default(),
        now,
    };
    let mut virtual_servers: Vec<&VirtualServer> = objects.virtual_servers.iter().collect();
    virtual_servers.sort_by_key(|object| ObjectKey::of(*object));
    StatusView {
        format_version: FORMAT_VERSION,
        virtual_servers: virtual_servers
            .into_iter()
            .map(|object| context.virtual_server(object))
            .collect(),
        nodes: objects.known_nodes().map(|nodes| nodes.views()),
    }
}

struct Context<'a> {
    objects: &'a Objects,
    pools: BTreeMap<ObjectKey, &'a RealServerPool>,
    slices: Option<Vec<Slice>>,
    groups: Groups<'a>,
    /// By pool, the addresses of servers that nodes say are down.
    down: BTreeMap<ObjectKey, Vec<(IpAddr, DownView)>>,
    now: &'a Time,
}

impl Context<'_> {
    fn virtual_server(&self, object: &VirtualServer) -> VirtualServerView {
        let key = ObjectKey::of(object);
        let status = object.status.clone().unwrap_or_default();
        let decision = status.decision.as_ref();
        // Shows the decision, or else the spec.
        let shown = decision.map_or_else(
            || DecidedVirtualServer::of_spec(&object.spec, object.spec.certain_addresses()),
            |decision| decision.content.clone(),
        );
        let generation = object.metadata.generation;
        let acknowledged = status.acknowledged.as_ref();
        let exceptions = self.exceptions(object);
        VirtualServerView {
            generation: generation.unwrap_or_default(),
            addresses: shown.addresses.iter().map(ToString::to_string).collect(),
            vips: decision.map_or_else(Vec::new, |decision| {
                self.groups.announcements(&decision.content)
            }),
            ports: shown.ports.iter().map(port).collect(),
            mode: shown.mode.name().to_owned(),
            pool_selection: format!("{:?}", shown.pool_selection),
            server_selection: format!("{:?}", shown.server_selection),
            external_traffic_policy: shown.external_traffic_policy,
            sources: shown.sources.as_ref().map(|sources| {
                let blocks = sources.allow.iter();
                blocks.map(ToString::to_string).collect()
            }),
            state: StateView::new(&status.conditions, generation, status.observed_generation),
            warnings: warnings(&status.conditions),
            decision: decision.map(|decision| DecisionView {
                revision: decision.revision,
                generation: decision.generation,
            }),
            acknowledged: acknowledged
                .map(|acknowledged| self.acknowledged(&key, acknowledged, decision, &exceptions)),
            pools: self.pools(object, &shown.ports),
            exceptions,
            rollout: driver(&self.objects.policies, &key)
                .map(|policy| rollout(policy, Some(object), self.objects.known_nodes(), self.now)),
            namespace: key.namespace,
            name: key.name,
        }
    }

    fn acknowledged(
        &self,
        key: &ObjectKey,
        acknowledged: &Acknowledged,
        decision: Option<&Decision>,
        exceptions: &[ExceptionView],
    ) -> AcknowledgedView {
        let in_force = self.objects.known_nodes().zip(decision);
        let in_force = in_force.map(|(nodes, decision)| {
            let pools = decision.content.pools.iter().filter(|pool| pool.weight > 0);
            let pools = pools.filter_map(|pool| self.pools.get(&key.sibling(&pool.name)));
            let pools = pools.filter_map(|pool| pool.status.as_ref()?.decision.as_ref());
            let pool_revision = pools.map(|decision| decision.revision).max();
            let wanted = Wanted {
                revision: decision.revision,
                pool_revision: pool_revision.unwrap_or_default(),
            };
            let excepted = exceptions.iter().map(|exception| exception.node.as_str());
            nodes.in_force(wanted, &excepted.collect())
        });
        AcknowledgedView {
            revision: acknowledged.revision,
            nodes: in_force.as_ref().map(|found| found.nodes),
            live_nodes: in_force.as_ref().map(|found| found.live_nodes),
            awaited: in_force.map(|found| found.awaited),
        }
    }

    fn pools(&self, object: &VirtualServer, ports: &[DecidedPort]) -> Vec<PoolView> {
        let status = object.status.as_ref();
        let decided = status
            .and_then(|s| s.decision.as_ref())
            .map(|d| &d.content.pools);
        let acknowledged = status
            .and_then(|s| s.acknowledged.as_ref())
            .map(|a| &a.pools);
        let spec = &object.spec.pools;
        let mut names: Vec<&str> = Vec::new();
        let of_decision = decided.into_iter().flatten().map(|pool| pool.name.as_str());
        for name in of_decision.chain(spec.iter().map(|pool| pool.name.as_str())) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let key = ObjectKey::of(object);
        names
            .into_iter()
            .map(|name| {
                let pool = self.pools.get(&key.sibling(name)).copied();
                let status = pool.and_then(|p| p.status.clone()).unwrap_or_default();
                let mut servers = servers::servers(
                    &key.namespace,
                    status.decision.as_ref(),
                    ports,
                    self.slices.as_deref(),
                );
                let down = self.down.get(&key.sibling(name));
                if let (Some(servers), Some(down)) = (&mut servers, down) {
                    servers::mark_down(servers, down);
                }
                PoolView {
                    name: name.to_owned(),
                    spec_weight: spec.iter().find(|p| p.name == name).map(|p| p.weight),
                    decided: decided.and_then(|pools| weight(pools, name)),
                    acknowledged: acknowledged.and_then(|pools| weight(pools, name)),
                    exists: pool.is_some(),
                    state: StateView::new(
                        &status.conditions,
                        pool.and_then(|p| p.metadata.generation),
                        status.observed_generation,
                    ),
                    revision: status.decision.as_ref().map(|decision| decision.revision),
                    source: pool.map(servers::source),
                    server_count: status.servers,
                    ready_server_count: status.ready_servers,
                    servers,
                }
            })
            .collect()
    }

    fn exceptions(&self, object: &VirtualServer) -> Vec<ExceptionView> {
        let key = ObjectKey::of(object);
        let decision = object.status.as_ref().and_then(|s| s.decision.as_ref());
        let pools: BTreeSet<&str> = decision
            .into_iter()
            .flat_map(|decision| decision.content.pools.iter().map(|pool| pool.name.as_str()))
            .collect();
        let mut found = Vec::new();
        for node in self.objects.nodes.iter().flatten() {
            let status = node.status.as_ref().filter(|_| decision.is_some());
            if let Some(why) = status.and_then(|status| status.not_attached()) {
                let name = ObjectKey::of(node).name;
                found.push(ExceptionView {
                    node: name.clone(),
                    kind: Kind::LoadBalancerNode.to_string(),
                    name,
                    reason: Reason::AttachFailed.to_string(),
                    message: why.to_owned(),
                });
            }
            for exception in node.status.iter().flat_map(|status| &status.exceptions) {
                let (kind, concerns) = match exception.kind {
                    ExceptionKind::VirtualServer => ("VirtualServer", exception.name == key.name),
                    ExceptionKind::RealServerPool => {
                        ("RealServerPool", pools.contains(exception.name.as_str()))
                    }
                };
                if concerns && exception.namespace == key.namespace {
                    found.push(ExceptionView {
                        node: ObjectKey::of(node).name,
                        kind: kind.to_owned(),
                        name: exception.name.clone(),
                        reason: exception.reason.clone(),
                        message: exception.message.clone(),
                    });
                }
            }
        }
        found.sort();
        found
    }
}

fn port(port: &DecidedPort) -> PortView {
    PortView {
        name: port.name.clone(),
        protocol: port.protocol.name().to_owned(),
        port: port.port,
    }
}

fn weight(pools: &[DecidedPool], name: &str) -> Option<WeightView> {
    let sum = pools.iter().map(|pool| u64::from(pool.weight)).sum();
    let pool = pools.iter().find(|pool| pool.name == name)?;
    Some(WeightView::new(pool.weight, sum))
}

fn warnings(conditions: &[Condition]) -> Vec<WarningView> {
    [
        ConditionType::NodesSilent,
        ConditionType::NodeExceptions,
        ConditionType::ForwardingAdvice,
    ]
    .into_iter()
    .filter_map(|kind| find_condition(conditions, kind))
    .filter(|condition| condition.status == "True")
    .map(|condition| WarningView {
        kind: condition.type_.clone(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
    })
    .collect()
}
