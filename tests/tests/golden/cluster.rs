//! The operator's side: objects and reports in, the status of every object out.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::Serialize;
use serde_json::Value;
use sluice_api::{
    AddressPool, Decision, Kind, LoadBalancerNodeStatus, NodeRole, ObjectKey, PoolDecision,
    ROLLOUT_COMMAND_ANNOTATION, Time, parse_ip,
};
use sluice_directory::manifest::Object;
use sluice_operator::core::{
    Cluster as Surroundings, Holder, HolderKind, Ledger, Node, Standing, Timers, Trust, World,
    address_pool_status, reconcile,
};
use sluice_planner::Slice;

use crate::case::{AgentState, Source};

/// All objects, and the operator's core at work on them.
pub(crate) struct Cluster {
    world: World,
    held: BTreeMap<Holder, BTreeSet<IpNet>>,
    timers: Timers,
    roles: BTreeMap<String, NodeRole>,
    address_pools: BTreeMap<ObjectKey, AddressPool>,
    ledger: Ledger,
}

/// The decisions and endpoints that agents read.
pub(crate) struct Decided {
    pub(crate) virtual_servers: BTreeMap<ObjectKey, Decision>,
    pub(crate) pools: BTreeMap<ObjectKey, PoolDecision>,
    pub(crate) slices: Vec<Slice>,
}

impl Cluster {
    pub(crate) fn new(source: Source) -> Self {
        let cluster = (source == Source::Kubernetes).then(Surroundings::default);
        Self {
            world: World {
                cluster,
                ..World::default()
            },
            held: BTreeMap::new(),
            timers: Timers::default(),
            roles: BTreeMap::new(),
            address_pools: BTreeMap::new(),
            ledger: Ledger::default(),
        }
    }

    /// Creates or replaces an object as an API server does: status stays, and a new spec is a new generation.
    pub(crate) fn apply(&mut self, object: Object) {
        let key = object.key();
        macro_rules! put {
            ($objects:expr, $new:expr) => {{
                let mut new = $new;
                let old = $objects.remove(&key);
                let before = old.as_ref().and_then(|old| old.metadata.generation);
                let same = old.as_ref().is_some_and(|old| old.spec == new.spec);
                new.metadata.generation = Some(before.unwrap_or(0) + i64::from(!same));
                new.status = old.and_then(|old| old.status);
                $objects.insert(key, new);
            }};
        }
        match object {
            Object::VirtualServer(new) => put!(self.world.virtual_servers, new),
            Object::RealServerPool(new) => put!(self.world.pools, new),
            Object::RolloutPolicy(new) => put!(self.world.policies, new),
            Object::AddressPool(new) => put!(self.address_pools, new),
            Object::LoadBalancerNode(new) => {
                self.roles.insert(key.name, new.spec.role);
            }
        }
    }

    /// Removes an object: `Kind/name` or `Kind/namespace/name`. It must be there.
    pub(crate) fn delete(&mut self, path: &str) {
        let mut parts = path.rsplitn(2, '/');
        let name = parts.next().unwrap_or_default();
        let rest = parts.next().unwrap_or_default();
        let (kind, namespace) = rest.split_once('/').unwrap_or((rest, "default"));
        let key = ObjectKey::new(namespace, name);
        let revision = self.world.highest_revision();
        let found = match Kind::from_name(kind) {
            Some(Kind::VirtualServer) => self.world.virtual_servers.remove(&key).is_some(),
            Some(Kind::RolloutPolicy) => self.world.policies.remove(&key).is_some(),
            Some(Kind::RealServerPool) => self.delete_pool(&key),
            Some(Kind::AddressPool) => self
                .address_pools
                .remove(&ObjectKey::new("", name))
                .is_some(),
            Some(Kind::LoadBalancerNode) => {
                self.world.nodes.remove(name);
                self.roles.remove(name).is_some()
            }
            None => {
                let cluster = self.surroundings();
                let slice = kind == "EndpointSlice" && cluster.slices.remove(&key).is_some();
                slice || kind == "Service" && self.delete_service(&key)
            }
        };
        assert!(found, "{path} is not there");
        self.world.revision_floor = revision;
    }

    fn delete_pool(&mut self, key: &ObjectKey) -> bool {
        let Some(pool) = self.world.pools.remove(key) else {
            return false;
        };
        let status = pool.status.filter(|status| status.decision.is_some());
        self.world
            .orphans
            .extend(status.map(|status| (key.clone(), status)));
        true
    }

    /// Creates or replaces an EndpointSlice.
    pub(crate) fn endpoints(&mut self, slice: &EndpointSlice) {
        let key = key_of(&slice.metadata);
        let slice = Slice::read(slice).expect("the labels of a Service's or a pool's slice");
        self.surroundings().slices.insert(key, slice);
    }

    fn delete_service(&mut self, key: &ObjectKey) -> bool {
        self.hold(HolderKind::ClusterIp, key, &BTreeSet::new());
        self.hold(HolderKind::Service, key, &BTreeSet::new());
        self.surroundings().services.remove(key)
    }

    /// Takes which addresses somebody has.
    fn hold(&mut self, kind: HolderKind, key: &ObjectKey, now: &BTreeSet<IpNet>) {
        let holder = Holder::new(kind, key.clone());
        let before = self.held.insert(holder.clone(), now.clone());
        let before = before.unwrap_or_default();
        self.world.addresses.put(&holder, &before, now);
    }

    /// Creates or replaces a Service.
    pub(crate) fn service(&mut self, service: &Service) {
        let key = key_of(&service.metadata);
        let spec = service.spec.clone().unwrap_or_default();
        let parse = |texts: Option<Vec<String>>| {
            let texts = texts.unwrap_or_default();
            let addresses = texts.iter().filter_map(|text| parse_ip(text));
            addresses.map(IpNet::from).collect()
        };
        self.hold(HolderKind::ClusterIp, &key, &parse(spec.cluster_ips));
        self.hold(HolderKind::Service, &key, &parse(spec.external_ips));
        self.surroundings().services.insert(key);
    }

    fn surroundings(&mut self) -> &mut Surroundings {
        let cluster = self.world.cluster.as_mut();
        cluster.expect("a directory has neither Services nor EndpointSlices")
    }

    /// Gives a policy a command. A verb alone is meant for the run and step in progress.
    pub(crate) fn command(&mut self, policy: &str, command: &str) {
        let key = ObjectKey::new("default", policy);
        let policy = self.world.policies.get_mut(&key).expect("a policy");
        let mut command = command.to_owned();
        if !command.contains('/') {
            let status = policy.status.as_ref().expect("a policy that was looked at");
            let run = status.run.as_ref().expect("a run");
            let step = status.step.as_ref().expect("a step");
            command = format!("{command}/{}/{}", run.id, step.index);
        }
        let annotations = policy.metadata.annotations.get_or_insert_default();
        annotations.insert(ROLLOUT_COMMAND_ANNOTATION.to_owned(), command);
    }

    /// Stores the status that a node's agent reports, and the agent's state.
    pub(crate) fn report(&mut self, node: &str, status: LoadBalancerNodeStatus, agent: AgentState) {
        let node_now = Node {
            status,
            live: matches!(agent, AgentState::Live | AgentState::Behind),
            wanted: self.roles.contains_key(node),
            starting: agent == AgentState::Starting,
            standing: Standing::Joined,
            trust: Trust::Believed,
        };
        self.world.nodes.insert(node.to_owned(), node_now);
    }

    /// The role that a node's manifest gives it.
    pub(crate) fn role(&self, node: &str) -> Option<NodeRole> {
        self.roles.get(node).copied()
    }

    /// The operator looks at everything once and writes what it finds. Returns whether anything changed.
    pub(crate) fn round(&mut self, now: &Time) -> bool {
        let now_ms = u64::try_from(now.0.as_millisecond()).expect("after 1970");
        let policies = self.world.policies.iter();
        let stood = policies.map(|(key, policy)| {
            let status = policy.status.as_ref();
            (key.clone(), self.timers.look(key, status, now_ms))
        });
        self.world.stood = stood.collect();
        self.world.revision_floor = self.world.highest_revision();
        let before = self.world.clone();
        let pools = self.address_pools.iter();
        let pools = pools.map(|(key, pool)| (key.name.as_str(), pool));
        self.ledger.set_pools(pools, &mut self.world.addresses);
        self.ledger.assign(&mut self.world);
        let outcome = reconcile(&self.world, now);
        let world = &mut self.world;
        for (key, status) in outcome.policies {
            world.policies.get_mut(&key).expect("known").status = Some(status);
        }
        world.orphans.clear();
        for (key, status) in outcome.pools {
            match world.pools.get_mut(&key) {
                Some(pool) => pool.status = Some(status),
                None => {
                    world.orphans.insert(key, status);
                }
            }
        }
        for (key, status) in outcome.virtual_servers {
            world.virtual_servers.get_mut(&key).expect("known").status = Some(status);
        }
        for (name, state) in self.ledger.pool_states() {
            let pool = self.address_pools.get_mut(&ObjectKey::new("", name));
            let pool = pool.expect("known");
            let selected = |_: &_| BTreeSet::new();
            pool.status = Some(address_pool_status(pool, &state, selected, now));
        }
        *world != before
    }

    pub(crate) fn decided(&self) -> Decided {
        let world = &self.world;
        let servers = world.virtual_servers.keys();
        let pools = world.pools.keys().chain(world.orphans.keys());
        let slices = world.cluster.iter().flat_map(|c| c.slices.values());
        Decided {
            virtual_servers: servers
                .filter_map(|key| Some((key.clone(), world.decision(key)?.clone())))
                .collect(),
            pools: pools
                .filter_map(|key| Some((key.clone(), world.pool_decision(key)?.clone())))
                .collect(),
            slices: slices.cloned().collect(),
        }
    }

    /// The status of every object, under its kind and name.
    pub(crate) fn statuses(&self) -> Vec<(String, Value)> {
        let world = &self.world;
        let mut statuses = Vec::new();
        for (key, object) in &world.virtual_servers {
            statuses.push((format!("VirtualServer {key}"), json(&object.status)));
        }
        for (key, object) in &world.pools {
            statuses.push((format!("RealServerPool {key}"), json(&object.status)));
        }
        for (key, status) in &world.orphans {
            statuses.push((format!("RealServerPool {key}, deleted"), json(status)));
        }
        for (key, object) in &world.policies {
            statuses.push((format!("RolloutPolicy {key}"), json(&object.status)));
        }
        for (key, object) in &self.address_pools {
            statuses.push((format!("AddressPool {key}"), json(&object.status)));
        }
        for (name, node) in &world.nodes {
            statuses.push((format!("LoadBalancerNode {name}"), json(&node.status)));
        }
        statuses
    }
}

fn json(status: &impl Serialize) -> Value {
    serde_json::to_value(status).expect("a status is JSON")
}

fn key_of(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> ObjectKey {
    let namespace = meta.namespace.clone();
    let name = meta.name.clone().unwrap_or_default();
    ObjectKey::new(namespace.unwrap_or_else(|| "default".to_owned()), name)
}
