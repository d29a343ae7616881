//! The EndpointSlices that the operator keeps for pools of pods, and those of Services that it reads, on a real API server.
//!
//! The agent is played, pods are objects without a kubelet, and nothing here looks at packets.

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::kube::{CHANGE_TIMEOUT, Operated, condition};
use sluice_tests::net::manifest::{object, web_server};
use sluice_tests::net::suite::Suite;

/// A node's own address.
const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 11));
const VIRTUAL_SERVER: &str = "virtualserver";
const POOL: &str = "realserverpool";
const SLICES: [&str; 4] = [
    "get",
    "endpointslices",
    "--selector",
    "sluice.dev/pool=pods",
];

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.check("slices follow the pods", pods);
    suite.check("what others make of a slice is undone", foreign_edits);
    suite.check("a refused pool goes on with its pods", refused_pool);
    suite.check(
        "pods with other port numbers have their own slices",
        port_numbers,
    );
    suite.check("slices go with their pool", pool_goes);
    suite.check("a pool by a Service", service);
    suite.main(|| {
        let mut stage = Operated::start()?;
        stage.play_agent("n1", &[NODE])?;
        stage.start_operator("one")?;
        Ok(stage)
    })
}

fn selecting_pool() -> Value {
    let spec = json!({
        "servers": {"selector": {"matchLabels": {"app": "pods"}}},
        "targetPorts": [{"name": "web", "port": "http"}],
    });
    object("RealServerPool", "pods", &spec)
}

/// Makes a pod, on a node that nobody is, and gives it addresses of both families as its kubelet would.
fn make_pod(stage: &Operated, name: &str, host: u8, port: u16) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "pods"}},
        "spec": {
            "nodeName": "n1",
            "containers": [{
                "name": "web",
                "image": "localhost/web:1",
                "ports": [{"name": "http", "containerPort": port}],
            }],
        },
    });
    stage.admin().apply(&pod.to_string())?;
    let [v4, v6] = [format!("10.244.1.{host}"), format!("2001:db8:244::{host}")];
    set_status(
        stage,
        name,
        &json!({"podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}]}),
    )?;
    set_ready(stage, name, true)
}

fn set_ready(stage: &Operated, name: &str, ready: bool) -> Result<()> {
    let status = if ready { "True" } else { "False" };
    let conditions = json!({"conditions": [{"type": "Ready", "status": status}]});
    set_status(stage, name, &conditions)
}

fn set_status(stage: &Operated, name: &str, status: &Value) -> Result<()> {
    let patch = json!({"status": status}).to_string();
    let arguments = [
        "patch",
        "pod",
        name,
        "--subresource=status",
        "--patch",
        &patch,
    ];
    stage.admin().kubectl(arguments)?;
    Ok(())
}

/// Endpoints of both families as address, port, ready and terminating, in order.
fn endpoints(list: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for slice in list["items"].as_array().into_iter().flatten() {
        let ports: Vec<String> = slice["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|port| format!("{}:{}", port["name"], port["port"]).replace('"', ""))
            .collect();
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let conditions = &endpoint["conditions"];
            let words: Vec<&str> = ["ready", "serving", "terminating"]
                .into_iter()
                .filter(|word| conditions[word] == true)
                .collect();
            let address = endpoint["addresses"][0].as_str().unwrap_or_default();
            let kind = slice["addressType"].as_str().unwrap_or_default();
            found.push(format!(
                "{kind} {address} {} {}",
                ports.join(","),
                words.join(" ")
            ));
        }
    }
    found.sort();
    found
}

fn await_endpoints(stage: &Operated, wanted: &[&str]) -> Result<Value> {
    stage
        .admin()
        .until(&SLICES, CHANGE_TIMEOUT, |list| endpoints(list) == wanted)
        .with_context(|| format!("wanted {wanted:#?}"))
}

fn pods(stage: &mut Operated) -> Result<()> {
    make_pod(stage, "p1", 1, 8080)?;
    stage.apply(&[selecting_pool(), web_server("pods", "203.0.113.16", "pods")])?;
    let one = [
        "IPv4 10.244.1.1 http:8080 ready serving",
        "IPv6 2001:db8:244::1 http:8080 ready serving",
    ];
    await_endpoints(stage, &one)?;
    stage.await_ready(VIRTUAL_SERVER, "pods")?;
    make_pod(stage, "p2", 2, 8080)?;
    let list = await_endpoints(
        stage,
        &[
            one[0],
            "IPv4 10.244.1.2 http:8080 ready serving",
            one[1],
            "IPv6 2001:db8:244::2 http:8080 ready serving",
        ],
    )?;
    let slices = list["items"].as_array().context("a list")?;
    ensure!(
        slices.len() == 2,
        "one slice for each family, not {}",
        slices.len()
    );
    for slice in slices {
        let labels = &slice["metadata"]["labels"];
        ensure!(
            labels["endpointslice.kubernetes.io/managed-by"] == "operator.sluice.dev"
                && slice["metadata"]["ownerReferences"][0]["name"] == "pods",
            "{slice:#}"
        );
        let first = &slice["endpoints"][0];
        ensure!(
            first["nodeName"] == "n1" && first["targetRef"]["name"] == "p1",
            "{first:#}"
        );
    }
    set_ready(stage, "p1", false)?;
    await_endpoints(
        stage,
        &[
            "IPv4 10.244.1.1 http:8080 ",
            "IPv4 10.244.1.2 http:8080 ready serving",
            "IPv6 2001:db8:244::1 http:8080 ",
            "IPv6 2001:db8:244::2 http:8080 ready serving",
        ],
    )?;
    set_ready(stage, "p1", true)?;
    // No kubelet ends it: it stays until it is forced.
    stage
        .admin()
        .kubectl(["delete", "pod", "p2", "--wait=false"])?;
    await_endpoints(
        stage,
        &[
            one[0],
            "IPv4 10.244.1.2 http:8080 serving terminating",
            one[1],
            "IPv6 2001:db8:244::2 http:8080 serving terminating",
        ],
    )?;
    stage
        .admin()
        .kubectl(["delete", "pod", "p2", "--force", "--grace-period=0"])?;
    await_endpoints(stage, &one)?;
    Ok(())
}

fn foreign_edits(stage: &mut Operated) -> Result<()> {
    let one = [
        "IPv4 10.244.1.1 http:8080 ready serving",
        "IPv6 2001:db8:244::1 http:8080 ready serving",
    ];
    await_endpoints(stage, &one)?;
    let edit = |patch: &str| -> Result<()> {
        let list = stage.admin().json(SLICES)?;
        let name = list["items"][0]["metadata"]["name"].as_str();
        let name = name.context("a name")?;
        let arguments = [
            "patch",
            "endpointslice",
            name,
            "--type=merge",
            "--patch",
            patch,
        ];
        stage.admin().kubectl(arguments)?;
        await_endpoints(stage, &one)?;
        Ok(())
    };
    edit(r#"{"endpoints": [{"addresses": ["10.9.9.9"]}]}"#)?;
    edit(r#"{"endpoints": null}"#)?;
    edit(r#"{"ports": [{"name": "http", "port": 1}]}"#)?;
    edit(r#"{"metadata": {"labels": {"sluice.dev/pool": "another"}}}"#)?;
    edit(r#"{"metadata": {"labels": {"endpointslice.kubernetes.io/managed-by": null}}}"#)?;
    let list = stage.admin().json(SLICES)?;
    for slice in list["items"].as_array().context("a list")? {
        let name = slice["metadata"]["name"].as_str().context("a name")?;
        stage.admin().kubectl(["delete", "endpointslice", name])?;
    }
    await_endpoints(stage, &one)?;
    Ok(())
}

fn refused_pool(stage: &mut Operated) -> Result<()> {
    let spec = json!({"servers": {"serviceName": "missing"}});
    stage.expect_complaint("reason=\"ServiceNotFound\"");
    stage.apply(&[object("RealServerPool", "pods", &spec)])?;
    stage.await_object(POOL, "pods", |object| {
        condition(object, "Stalled")["reason"] == "ServiceNotFound"
    })?;
    make_pod(stage, "p3", 3, 8080)?;
    await_endpoints(
        stage,
        &[
            "IPv4 10.244.1.1 http:8080 ready serving",
            "IPv4 10.244.1.3 http:8080 ready serving",
            "IPv6 2001:db8:244::1 http:8080 ready serving",
            "IPv6 2001:db8:244::3 http:8080 ready serving",
        ],
    )?;
    stage.apply(&[selecting_pool()])?;
    stage.await_ready(POOL, "pods")?;
    let delete = ["delete", "pod", "p3", "--force", "--grace-period=0"];
    stage.admin().kubectl(delete)?;
    Ok(())
}

fn port_numbers(stage: &mut Operated) -> Result<()> {
    make_pod(stage, "p3", 3, 9090)?;
    let list = await_endpoints(
        stage,
        &[
            "IPv4 10.244.1.1 http:8080 ready serving",
            "IPv4 10.244.1.3 http:9090 ready serving",
            "IPv6 2001:db8:244::1 http:8080 ready serving",
            "IPv6 2001:db8:244::3 http:9090 ready serving",
        ],
    )?;
    let count = list["items"].as_array().map_or(0, Vec::len);
    ensure!(count == 4, "{count} slices");
    Ok(())
}

fn pool_goes(stage: &mut Operated) -> Result<()> {
    let path = ["virtualserver/pods", "realserverpool/pods"];
    stage.admin().kubectl(["delete", path[0], path[1]])?;
    stage.admin().until(&SLICES, CHANGE_TIMEOUT, |list| {
        list["items"].as_array().is_some_and(Vec::is_empty)
    })?;
    Ok(())
}

fn service(stage: &mut Operated) -> Result<()> {
    let spec = json!({"servers": {"serviceName": "shop"}, "targetPorts": [{"name": "web", "port": "http"}]});
    stage.expect_complaint("reason=\"ServiceNotFound\"");
    stage.apply(&[
        object("RealServerPool", "shop", &spec),
        web_server("shop", "203.0.113.17", "shop"),
    ])?;
    let pool = stage.await_object(POOL, "shop", |object| {
        condition(object, "Stalled")["reason"] == "ServiceNotFound"
    })?;
    let message = condition(&pool, "Stalled")["message"].to_string();
    ensure!(message.contains("spec.servers.serviceName"), "{message}");
    // A user's Service, and the EndpointSlice that Kubernetes' controllers would write for it.
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "shop", "namespace": "default"},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "shop-abc",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "shop"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [{"addresses": ["10.244.1.7"], "conditions": {"ready": true}}],
    });
    stage.apply(&[service, slice])?;
    stage.await_ready(VIRTUAL_SERVER, "shop")?;
    stage.await_ready(POOL, "shop")?;
    let own = ["get", "endpointslices", "--selector", "sluice.dev/pool"];
    let list = stage.admin().json(own)?;
    ensure!(endpoints(&list).is_empty(), "slices of its own: {list:#}");
    stage.admin().kubectl(["delete", "service", "shop"])?;
    stage
        .admin()
        .kubectl(["delete", "endpointslice", "shop-abc"])?;
    let limit = Duration::from_secs(1) + CHANGE_TIMEOUT;
    stage
        .admin()
        .until(&["get", POOL, "shop"], limit, |object| {
            condition(object, "Ready")["status"] == "False"
        })?;
    Ok(())
}
