//! Pools whose servers come from Kubernetes.

use std::collections::BTreeMap;

use sluice_api::EndpointSource;
use sluice_planner::{Slice, SliceEndpoint, SliceOwner};

use super::*;

const PODS: &str = "{static: [{name: a, address: 10.0.0.1}]}";

fn in_cluster(mode: &str, servers: &str) -> Sim {
    let manifests = MANIFESTS
        .replace("mode: NAT", &format!("mode: {mode}"))
        .replace(PODS, servers);
    assert!(manifests.contains(servers));
    let mut sim = Sim::new(&manifests);
    sim.world.cluster = Some(Cluster::default());
    sim
}

fn endpoints(source: EndpointSource, addresses: &[(&str, bool)]) -> Slice {
    let endpoint = |(address, ready): &(&str, bool)| SliceEndpoint {
        name: format!("pod-{address}"),
        address: address.parse().expect("address"),
        pod_uid: None,
        node: None,
        ready: *ready,
        serving: *ready,
        terminating: false,
    };
    let name = match source {
        EndpointSource::Pods => "v1",
        EndpointSource::Service => "web",
    };
    Slice {
        owner: SliceOwner {
            namespace: "default".to_owned(),
            source,
            name: name.to_owned(),
        },
        ports: Vec::new(),
        endpoints: addresses.iter().map(endpoint).collect(),
    }
}

fn set_slices(sim: &mut Sim, slices: Vec<Slice>) {
    let cluster = sim.world.cluster.as_mut().expect("in a cluster");
    let keys = (0..).map(|i| key(&format!("slice-{i}")));
    cluster.slices = keys.zip(slices).collect::<BTreeMap<_, _>>();
}

#[test]
fn pods_come_and_go_without_a_revision() {
    let mut sim = in_cluster("FullNAT", "{selector: {matchLabels: {app: web}}}");
    sim.settle();
    let decided = sim.revision("web");
    let pool = sim.world.pool_decision(&key("v1")).cloned();
    set_slices(
        &mut sim,
        vec![endpoints(
            EndpointSource::Pods,
            &[("10.0.1.1", true), ("10.0.1.2", false)],
        )],
    );
    sim.settle();
    assert_eq!(sim.revision("web"), decided);
    assert_eq!(sim.world.pool_decision(&key("v1")).cloned(), pool);
    let status = sim.world.pools[&key("v1")].status.clone().expect("status");
    assert_eq!((status.servers, status.ready_servers), (2, 1));
    assert_eq!(sim.ready("web").1, "Live");
    assert_eq!(condition(&sim, ConditionType::ForwardingAdvice).0, "False");
}

#[test]
fn a_service_must_exist_and_may_go_without_taking_the_decision_with_it() {
    let mut sim = in_cluster("FullNAT", "{serviceName: web}");
    sim.settle();
    let (status, reason, message) = sim.pool_ready("v1");
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", "ServiceNotFound")
    );
    assert!(
        message.contains("spec.servers.serviceName") && message.contains("default/web"),
        "{message}"
    );
    let cluster = sim.world.cluster.as_mut().expect("in a cluster");
    cluster.services.insert(key("web"));
    sim.settle();
    assert_eq!(sim.ready("web").1, "AwaitingServers");
    let ready = endpoints(EndpointSource::Service, &[("10.0.1.1", true)]);
    set_slices(&mut sim, vec![ready]);
    sim.settle();
    assert_eq!(sim.ready("web").1, "Live");
    let decided = sim.world.pool_decision(&key("v1")).cloned();
    assert!(decided.is_some());
    let cluster = sim.world.cluster.as_mut().expect("in a cluster");
    cluster.services.clear();
    sim.settle();
    assert_eq!(sim.pool_ready("v1").1, "ServiceNotFound");
    assert_eq!(sim.world.pool_decision(&key("v1")).cloned(), decided);
    assert_eq!(sim.ready("web").1, "Live");
}

#[test]
fn tun_is_refused_for_pods_with_addresses_of_their_own() {
    let mut sim = in_cluster("TUN", "{selector: {matchLabels: {app: web}}}");
    set_slices(
        &mut sim,
        vec![endpoints(EndpointSource::Pods, &[("10.0.1.1", true)])],
    );
    sim.settle();
    let (_, reason, message) = sim.ready("web");
    assert_eq!(reason, "ServerNotReachableInMode");
    assert!(
        message.contains("pod-10.0.1.1") && message.contains("FullNAT"),
        "{message}"
    );
    set_slices(
        &mut sim,
        vec![endpoints(EndpointSource::Pods, &[("10.0.0.250", true)])],
    );
    sim.settle();
    assert_eq!(
        sim.ready("web").1,
        "Live",
        "a pod in the host's network is reached"
    );
}

#[test]
fn nat_to_pods_comes_with_advice() {
    let mut sim = in_cluster("NAT", "{selector: {matchLabels: {app: web}}}");
    sim.settle();
    let (status, message) = condition(&sim, ConditionType::ForwardingAdvice);
    assert_eq!(status, "True");
    assert!(message.contains("FullNAT"), "{message}");
}

#[test]
fn a_directory_has_neither_pods_nor_services() {
    for servers in [
        "{selector: {matchLabels: {app: web}}}",
        "{serviceName: web}",
    ] {
        let mut sim = in_cluster("FullNAT", servers);
        sim.world.cluster = None;
        sim.settle();
        let (_, reason, message) = sim.pool_ready("v1");
        assert_eq!(reason, "NeedsKubernetes");
        assert!(message.contains("spec.servers.static"), "{message}");
    }
}

#[test]
fn static_servers_have_no_ports_with_names() {
    let mut sim = served();
    sim.edit("{name: http, port: 8080}", "{name: http, port: web}");
    sim.settle();
    let (_, reason, message) = sim.pool_ready("v1");
    assert_eq!(reason, "InvalidSpec");
    assert!(message.contains("spec.targetPorts[0].port"), "{message}");
}

#[test]
fn a_pool_that_a_node_has_not_acknowledged_is_waited_for() {
    let mut sim = served();
    sim.edit("address: 10.0.0.1}", "address: 10.0.0.7}");
    sim.tick();
    let wanted = sim
        .world
        .pool_decision(&key("v1"))
        .expect("decided")
        .revision;
    let node = sim.world.nodes.get_mut("d1").expect("node");
    // The virtual server's own decision is an old one, which the node has.
    node.status.acknowledged_pool_revision = wanted - 1;
    sim.tick();
    let (status, reason, _) = sim.ready("web");
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", "AwaitingNodes")
    );
    sim.settle();
    assert_eq!(sim.ready("web").1, "Live");
}
