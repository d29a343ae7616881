//! The operator's core: objects, endpoints and reports in, statuses out.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::process;

use serde_json::{Value, json};
use sluice_api::jiff::Timestamp;
use sluice_api::{
    ConditionType, Decision, EndpointSource, LoadBalancerNodeStatus, ObjectKey, PoolDecision,
    RealServerPool, Time, VirtualServer, is_true, pool_label,
};
use sluice_operator::core::{
    Cluster, Links, Node, Object, Outcome, Standing, Trust, World, reconcile_parts,
};
use sluice_planner::{Slice, SliceEndpoint, SliceOwner};

use crate::figure::{Figure, Figures, memory_mb, timed};

const ENDPOINTS_OF_POOL: u32 = 10;
/// Changes that a median is taken of.
const CHANGES: u32 = 21;

/// Measures the core among so many virtual servers, as many pools of pods, and nodes.
pub(crate) fn figures(virtual_servers: u32, nodes: u32) -> Vec<Figure> {
    let mut figures = Figures::among(virtual_servers);
    let mut operator = Operator::new(virtual_servers, nodes);
    let (changed, ms) = operator.decide_all();
    assert_eq!(changed, 2 * virtual_servers as usize, "all get a status");
    figures.add("operator: all decided from nothing", ms, "ms");
    operator.acknowledge();
    let (changed, ms) = operator.decide_all();
    assert_eq!(changed, 2 * virtual_servers as usize, "all become ready");
    assert!(operator.are_ready(), "all are ready");
    figures.add("operator: all acknowledged by all nodes", ms, "ms");
    let (changed, ms) = operator.decide_all();
    assert_eq!(changed, 0, "what is decided stays");
    figures.add("operator: nothing to be said of all", ms, "ms");
    let cost = |number: u32| {
        let (changed, ms) = operator.change_endpoint(number * 337 % virtual_servers);
        assert_eq!(changed, 1, "the pool's status tells of its servers");
        ms
    };
    figures.add_median(
        "operator: one endpoint changes",
        (0..CHANGES).map(cost).collect(),
        "ms",
    );
    let cost = |number: u32| {
        let (changed, ms) = operator.change_weight(number * 337 % virtual_servers);
        assert_eq!(changed, 1, "the virtual server is decided");
        ms
    };
    figures.add_median(
        "operator: one virtual server changes",
        (0..CHANGES).map(cost).collect(),
        "ms",
    );
    let memory = |field| memory_mb(process::id(), field);
    figures.add("operator: memory", memory("VmRSS"), "MB");
    figures.add("operator: most memory", memory("VmHWM"), "MB");
    figures.list()
}

struct Operator {
    world: World,
    links: Links,
    now: Time,
}

impl Operator {
    fn new(virtual_servers: u32, nodes: u32) -> Self {
        let cluster = Cluster {
            services: BTreeSet::new(),
            slices: (0..virtual_servers)
                .map(|number| (slice_key(number), slice(number)))
                .collect(),
        };
        let world = World {
            virtual_servers: (0..virtual_servers)
                .map(|number| (key("web", number), virtual_server(number)))
                .collect(),
            pools: (0..virtual_servers)
                .map(|number| (key("pool", number), pool(number)))
                .collect(),
            nodes: (0..nodes).map(node).collect(),
            cluster: Some(cluster),
            ..World::default()
        };
        let mut links = Links::default();
        for (key, object) in &world.virtual_servers {
            links.virtual_server(key, Some(object), object.spec.certain_addresses(), &[]);
        }
        for (key, object) in &world.pools {
            links.pool(key, Some(object), &[]);
        }
        for (key, slice) in world.cluster.iter().flat_map(|cluster| &cluster.slices) {
            links.slice(key, None, Some(slice));
        }
        Self {
            world,
            links,
            now: Time(Timestamp::UNIX_EPOCH),
        }
    }

    /// Decides everything. Returns how many statuses changed, and the milliseconds of processor time until they were known.
    fn decide_all(&mut self) -> (usize, f64) {
        self.decide(|links| links.all())
    }

    /// Decides what is linked with these objects.
    fn decide(&mut self, roots: impl FnOnce(&mut Links) -> BTreeSet<Object>) -> (usize, f64) {
        let Self { world, links, now } = self;
        let (outcome, ms) = timed(|| {
            let roots = roots(links);
            let outcome = reconcile_parts(world, links, &links.parts(&roots), now);
            changed(world, outcome)
        });
        let count = outcome.virtual_servers.len() + outcome.pools.len();
        self.write(outcome);
        (count, ms)
    }

    fn write(&mut self, outcome: Outcome) {
        for (key, status) in outcome.virtual_servers {
            let object = self.world.virtual_servers.get_mut(&key).expect("is there");
            object.status = Some(status);
            let decision: Vec<&Decision> = decision(object).into_iter().collect();
            self.links.virtual_server(
                &key,
                Some(object),
                object.spec.certain_addresses(),
                &decision,
            );
        }
        for (key, status) in outcome.pools {
            let object = self.world.pools.get_mut(&key).expect("is there");
            object.status = Some(status);
            let decision: Vec<&PoolDecision> = pool_decision(object).into_iter().collect();
            self.links.pool(&key, Some(object), &decision);
        }
    }

    /// Lets all nodes acknowledge everything.
    fn acknowledge(&mut self) {
        let revision = self.world.highest_revision();
        for node in self.world.nodes.values_mut() {
            node.status.acknowledged_revision = revision;
            node.status.acknowledged_pool_revision = revision;
        }
    }

    fn are_ready(&self) -> bool {
        self.world.virtual_servers.values().all(|object| {
            let status = object.status.as_ref();
            status.is_some_and(|status| is_true(&status.conditions, ConditionType::Ready))
        })
    }

    /// One endpoint of this pool is no longer ready.
    fn change_endpoint(&mut self, number: u32) -> (usize, f64) {
        let key = slice_key(number);
        let mut new = slice(number);
        new.endpoints[3].ready = false;
        let slices = self.world.cluster.as_mut().map(|all| &mut all.slices);
        let old = slices.and_then(|slices| slices.insert(key.clone(), new.clone()));
        self.decide(|links| links.slice(&key, old.as_ref(), Some(&new)))
    }

    /// This virtual server's spec changes.
    fn change_weight(&mut self, number: u32) -> (usize, f64) {
        let key = key("web", number);
        let object = self.world.virtual_servers.get_mut(&key).expect("is there");
        object.spec.pools[0].weight += 1;
        object.metadata.generation = Some(2);
        let object = object.clone();
        self.decide(|links| {
            let decision: Vec<&Decision> = decision(&object).into_iter().collect();
            let mut roots = links.virtual_server(
                &key,
                Some(&object),
                object.spec.certain_addresses(),
                &decision,
            );
            roots.insert((sluice_api::Kind::VirtualServer, key));
            roots
        })
    }
}

/// The statuses that are not as they stand.
fn changed(world: &World, mut outcome: Outcome) -> Outcome {
    outcome
        .virtual_servers
        .retain(|key, status| world.virtual_servers[key].status.as_ref() != Some(status));
    outcome
        .pools
        .retain(|key, status| world.pools[key].status.as_ref() != Some(status));
    outcome
}

fn decision(object: &VirtualServer) -> Option<&Decision> {
    object.status.as_ref()?.decision.as_ref()
}

fn pool_decision(object: &RealServerPool) -> Option<&PoolDecision> {
    object.status.as_ref()?.decision.as_ref()
}

fn key(kind: &str, number: u32) -> ObjectKey {
    ObjectKey::new("scale", format!("{kind}-{number}"))
}

fn object<T: serde::de::DeserializeOwned>(kind: &str, key: &ObjectKey, spec: &Value) -> T {
    let object = json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": key.name, "namespace": key.namespace, "generation": 1},
        "spec": spec,
    });
    serde_json::from_value(object).expect("is valid")
}

fn virtual_server(number: u32) -> VirtualServer {
    let spec = json!({
        "addresses": [{"ip": Ipv4Addr::from(0xcb00_0000 + number)}],
        "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
        "forwarding": {"mode": "FullNAT"},
        "pools": [{"name": key("pool", number).name, "weight": 1}],
    });
    object("VirtualServer", &key("web", number), &spec)
}

fn pool(number: u32) -> RealServerPool {
    let labels = json!({"app": key("web", number).name});
    let spec = json!({"servers": {"selector": {"matchLabels": labels}}});
    object("RealServerPool", &key("pool", number), &spec)
}

fn slice_key(pool: u32) -> ObjectKey {
    key("slice", pool)
}

fn slice(pool: u32) -> Slice {
    let endpoint = |i| SliceEndpoint {
        name: format!("web-{pool}-5d4f8c7b9-{i}"),
        address: IpAddr::from(Ipv4Addr::from(0x0a00_0000 + pool * ENDPOINTS_OF_POOL + i)),
        pod_uid: None,
        node: None,
        ready: true,
        serving: true,
        terminating: false,
    };
    Slice {
        owner: SliceOwner {
            namespace: key("pool", pool).namespace,
            source: EndpointSource::Pods,
            name: pool_label(&key("pool", pool).name),
        },
        ports: vec![("http".to_owned(), 80)],
        endpoints: (0..ENDPOINTS_OF_POOL).map(endpoint).collect(),
    }
}

fn node(number: u32) -> (String, Node) {
    let node = Node {
        status: LoadBalancerNodeStatus {
            addresses: vec![Ipv4Addr::from(0xc0a8_0000 + number).into()],
            ..LoadBalancerNodeStatus::default()
        },
        live: true,
        wanted: true,
        starting: false,
        standing: Standing::Joined,
        trust: Trust::Believed,
    };
    (format!("node-{number}"), node)
}
