//! From EndpointSlices to the servers of a pool.

use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use sluice_api::{
    DecidedEndpoints, DecidedRealServerPool, DrainedServer, EndpointSource, TargetPort,
};
use sluice_planner::{Server, Slice, Slices};

fn slice(labels: &Value, ports: &Value, endpoints: &Value) -> Option<Slice> {
    owned(&json!([]), labels, ports, endpoints)
}

fn owned(owners: &Value, labels: &Value, ports: &Value, endpoints: &Value) -> Option<Slice> {
    let object: EndpointSlice = serde_json::from_value(json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "any", "namespace": "shop", "labels": labels, "ownerReferences": owners},
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": endpoints,
    }))
    .expect("an EndpointSlice");
    Slice::read(&object)
}

fn of_service(ports: &Value, endpoints: &Value) -> Slice {
    slice(
        &json!({"kubernetes.io/service-name": "web"}),
        ports,
        endpoints,
    )
    .expect("a Service's slice")
}

fn decided(source: EndpointSource, target_ports: Value) -> DecidedRealServerPool {
    let target_ports: Vec<TargetPort> = serde_json::from_value(target_ports).expect("target ports");
    DecidedRealServerPool {
        endpoints: Some(DecidedEndpoints {
            source,
            name: "web".to_owned(),
            selector: None,
            target_ports,
        }),
        ..DecidedRealServerPool::default()
    }
}

fn pool(slices: &[Slice], decided: &DecidedRealServerPool) -> Vec<Server> {
    Slices::new(slices).servers("shop", decided)
}

/// Address and weight of each server.
fn weights(servers: &[Server]) -> Vec<(String, u32)> {
    let servers = servers.iter();
    servers
        .map(|server| (server.address.to_string(), server.weight))
        .collect()
}

/// A server's entry for a port of a given name.
#[derive(PartialEq, Eq, Debug)]
enum Port {
    Number(u16),
    LeadsNowhere,
    NoEntry,
}

fn port(server: &Server, name: &str) -> Port {
    let mut by_name = server.ports.by_name.iter();
    match by_name
        .find(|(other, _)| other == name)
        .map(|(_, port)| *port)
    {
        Some(Some(number)) => Port::Number(number),
        Some(None) => Port::LeadsNowhere,
        None => Port::NoEntry,
    }
}

#[test]
fn ready_endpoints_take_new_flows_and_the_others_keep_theirs() {
    let slice = of_service(
        &json!([]),
        &json!([
            {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": false}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.0.0.4"]},
        ]),
    );
    let pool = pool(&[slice], &decided(EndpointSource::Service, json!([])));
    let expected = [
        ("10.0.0.1", 1),
        ("10.0.0.2", 0),
        ("10.0.0.3", 0),
        ("10.0.0.4", 1),
    ];
    assert_eq!(
        weights(&pool),
        expected.map(|(address, weight)| (address.to_owned(), weight))
    );
}

#[test]
fn who_is_drained_takes_no_new_flows() {
    let pod = |uid: &str| json!({"kind": "Pod", "name": "web", "uid": uid});
    let slice = of_service(
        &json!([]),
        &json!([
            {"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "targetRef": pod("one")},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": true}, "targetRef": pod("two")},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": true}},
        ]),
    );
    let mut decided = decided(EndpointSource::Service, json!([]));
    let drain = |address: &str, uid: Option<&str>| {
        serde_json::from_value::<DrainedServer>(json!({"address": address, "podUid": uid}))
            .expect("a drained server")
    };
    decided.drained = vec![
        drain("10.0.0.1", Some("one")),
        drain("10.0.0.2", Some("another pod that had the address")),
        drain("10.0.0.3", None),
    ];
    let weights_of = |decided: &DecidedRealServerPool| {
        let servers = pool(std::slice::from_ref(&slice), decided);
        let weights = weights(&servers).into_iter();
        weights.map(|(_, weight)| weight).collect::<Vec<_>>()
    };
    assert_eq!(weights_of(&decided), [0, 1, 0]);
    decided.endpoints = None;
    decided.servers = serde_json::from_value(json!([
        {"name": "a", "address": "10.0.0.1", "weight": 2},
        {"name": "b", "address": "10.0.0.3", "weight": 3},
    ]))
    .expect("servers");
    assert_eq!(weights_of(&decided), [2, 0], "static servers are no pods");
}

#[test]
fn without_a_ready_endpoint_those_that_serve_to_their_end_take_new_flows() {
    let slice = of_service(
        &json!([]),
        &json!([
            {"addresses": ["10.0.0.1"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": false, "terminating": true}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": false}},
            {"addresses": ["2001:db8::1"], "conditions": {"ready": true}},
        ]),
    );
    let pool = pool(&[slice], &decided(EndpointSource::Service, json!([])));
    let expected = [
        ("10.0.0.1", 1),
        ("10.0.0.2", 0),
        ("10.0.0.3", 0),
        ("2001:db8::1", 1),
    ];
    assert_eq!(
        weights(&pool),
        expected.map(|(address, weight)| (address.to_owned(), weight))
    );
}

#[test]
fn servers_know_their_nodes_and_whether_they_serve_to_their_end() {
    let terminates = json!({"ready": false, "serving": true, "terminating": true});
    let slice = of_service(
        &json!([]),
        &json!([
            {"addresses": ["10.0.0.1"], "nodeName": "n1", "conditions": {"ready": true}},
            {"addresses": ["10.0.0.2"], "nodeName": "n2", "conditions": terminates},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": true}},
        ]),
    );
    let pool = pool(&[slice], &decided(EndpointSource::Service, json!([])));
    let found = pool
        .iter()
        .map(|it| (it.node.as_deref(), it.is_last_resort));
    let expected = [(Some("n1"), false), (Some("n2"), true), (None, false)];
    assert_eq!(found.collect::<Vec<_>>(), expected);
}

#[test]
fn an_endpoint_in_two_slices_is_one_server() {
    let ports = json!([{"name": "http", "port": 8080}]);
    let slices = [
        of_service(
            &ports,
            &json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": false}}]),
        ),
        of_service(
            &ports,
            &json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": true}}]),
        ),
    ];
    let pool = pool(&slices, &decided(EndpointSource::Service, json!([])));
    assert_eq!(weights(&pool), [("10.0.0.1".to_owned(), 1)]);
}

#[test]
fn ports_of_a_service_go_by_name() {
    let endpoints = json!([{"addresses": ["10.0.0.1"]}]);
    let slices = [of_service(
        &json!([{"name": "http", "port": 8080}, {"name": "admin", "port": 9000}]),
        &endpoints,
    )];
    let targets = json!([
        {"name": "https", "port": 8443},
        {"name": "extra", "port": "admin"},
        {"name": "gone", "port": "nowhere"},
    ]);
    let pool = pool(&slices, &decided(EndpointSource::Service, targets));
    let server = &pool[0];
    assert_eq!(
        port(server, "http"),
        Port::Number(8080),
        "the Service's own name"
    );
    assert_eq!(port(server, "https"), Port::Number(8443), "a number");
    assert_eq!(port(server, "extra"), Port::Number(9000), "another name");
    assert_eq!(
        port(server, "gone"),
        Port::LeadsNowhere,
        "a name that the Service lacks"
    );
    assert_eq!(server.ports.default, None);
}

#[test]
fn the_only_port_of_a_service_serves_every_port() {
    let slices = [of_service(
        &json!([{"port": 8080}]),
        &json!([{"addresses": ["10.0.0.1"]}]),
    )];
    let pool = pool(&slices, &decided(EndpointSource::Service, json!([])));
    assert_eq!(pool[0].ports.default, Some(8080));
}

fn by_pool(name: &str) -> Value {
    json!([{
        "apiVersion": "sluice.dev/v1alpha1", "kind": "RealServerPool", "name": name, "uid": "u", "controller": true,
    }])
}

/// A Service's labels go over to its slices, so anybody who may label a Service could have its endpoints taken for a pool's.
#[test]
fn a_slice_is_a_pools_if_the_operator_wrote_it_for_that_pool() {
    let managed = |by: &str| {
        json!({
            "sluice.dev/pool": "web", "kubernetes.io/service-name": "thief",
            "endpointslice.kubernetes.io/managed-by": by,
        })
    };
    let (ours, theirs) = ("operator.sluice.dev", "endpointslice-controller.k8s.io");
    let service = json!([{
        "apiVersion": "v1", "kind": "Service", "name": "thief", "uid": "u", "controller": true,
    }]);
    let namesake = json!([{
        "apiVersion": "example.com/v1", "kind": "RealServerPool", "name": "web", "uid": "u", "controller": true,
    }]);
    let mut no_controller = by_pool("web");
    no_controller[0]["controller"] = json!(false);
    for (by, owners, source) in [
        (ours, by_pool("web"), EndpointSource::Pods),
        (theirs, by_pool("web"), EndpointSource::Service),
        (theirs, service.clone(), EndpointSource::Service),
        (ours, service, EndpointSource::Service),
        (ours, json!([]), EndpointSource::Service),
        (ours, by_pool("other"), EndpointSource::Service),
        (ours, namesake, EndpointSource::Service),
        (ours, no_controller, EndpointSource::Service),
    ] {
        let slice = owned(&owners, &managed(by), &json!([]), &json!([]));
        let slice = slice.expect("is somebody's");
        assert_eq!(slice.owner.source, source, "{by}, {owners}");
    }
}

#[test]
fn pods_keep_the_port_unless_the_pool_names_another() {
    let labels = json!({
        "sluice.dev/pool": "web", "kubernetes.io/service-name": "other",
        "endpointslice.kubernetes.io/managed-by": "operator.sluice.dev",
    });
    let slice = owned(
        &by_pool("web"),
        &labels,
        &json!([{"name": "web-port", "port": 3000}]),
        &json!([{"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "web-1"}}]),
    );
    let slices = [slice.expect("a pool's slice")];
    let targets = json!([{"name": "http", "port": "web-port"}, {"name": "https", "port": 8443}]);
    let pool = pool(&slices, &decided(EndpointSource::Pods, targets));
    let server = &pool[0];
    assert_eq!(server.name, "web-1");
    assert_eq!(port(server, "http"), Port::Number(3000));
    assert_eq!(port(server, "https"), Port::Number(8443));
    assert_eq!(
        port(server, "web-port"),
        Port::NoEntry,
        "the container's name is not the virtual server's"
    );
    assert_eq!(server.ports.default, None);
}

#[test]
fn slices_of_others_and_nonsense_count_for_nothing() {
    assert!(slice(&json!({}), &json!([]), &json!([])).is_none());
    let slices = [of_service(
        &json!([{"name": "http"}, {"name": "far", "port": 70_000}]),
        &json!([{"addresses": ["name.example"]}, {"addresses": []}, {"addresses": ["10.0.0.1"]}]),
    )];
    let other = decided(EndpointSource::Pods, json!([]));
    assert!(pool(&slices, &other).is_empty());
    let pool = pool(&slices, &decided(EndpointSource::Service, json!([])));
    assert_eq!(weights(&pool).len(), 1);
    assert!(pool[0].ports.by_name.is_empty());
}
