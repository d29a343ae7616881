//! A Service of type LoadBalancer, with no route set by hand: its address is in the nodes' own subnet, and announced there.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_e2e::stage::{CHANGE_TIMEOUT, NODES, SHOP, SYSTEM, Sluice};
use sluice_tests::net::fabric::client_sources;
use sluice_tests::net::{Family, Outage, Protocol, until};

/// The longest time from `kubectl expose` to the first answer. It is a few seconds, and printed; a busy machine takes longer.
const FIRST_ANSWER: Duration = Duration::from_secs(20);
/// The longest time without a new connection when the announcing node dies, likewise.
const OUTAGE: Duration = Duration::from_secs(5);

const POOL: &str = "
apiVersion: sluice.dev/v1alpha1
kind: AddressPool
metadata: {name: segment}
spec: {addresses: [10.1.0.200-10.1.0.209], priority: 9, announce: {l2: {groups: 1}}}
";

/// A Service as `kubectl expose` makes it. Returns its address once it answers.
fn expose(sluice: &Sluice, name: &str) -> Result<SocketAddr> {
    sluice.cluster.admin().apply(POOL)?;
    sluice
        .cluster
        .admin()
        .await_condition("addresspool/segment", "Ready", CHANGE_TIMEOUT)?;
    let start = Instant::now();
    sluice.kubectl(&format!(
        "expose --namespace {SHOP} deployment web-v1 --name {name} --type LoadBalancer --port 80 --target-port 8080"
    ))?;
    let target = port_of(sluice, name)?;
    until("an answer from outside", CHANGE_TIMEOUT, || {
        answers(sluice, target)
    })?;
    let took = start.elapsed();
    println!("{} answered {took:.1?} after `kubectl expose`", target.ip());
    ensure!(took <= FIRST_ANSWER, "it took {took:?}");
    Ok(target)
}

/// Port 80 of the address in a Service's status, once there is one.
fn port_of(sluice: &Sluice, name: &str) -> Result<SocketAddr> {
    let ip = |service: &Value| service["status"]["loadBalancer"]["ingress"][0]["ip"].clone();
    let service = sluice.until(&format!("service/{name}"), CHANGE_TIMEOUT, |service| {
        ip(service).is_string()
    })?;
    let address = ip(&service);
    let address = address.as_str().context("an address")?.parse()?;
    Ok(SocketAddr::new(address, 80))
}

/// Waits until the Lease of a VIP group names a node.
fn await_holder(sluice: &Sluice, group: &str, node: &str) -> Result<()> {
    let lease = format!("sluice-vip-{group}");
    let question = ["get", "lease", "--namespace", SYSTEM, &lease];
    let admin = sluice.cluster.admin();
    admin.until(&question, CHANGE_TIMEOUT, |lease| {
        lease["spec"]["holderIdentity"] == node
    })?;
    Ok(())
}

fn answers(sluice: &Sluice, target: SocketAddr) -> bool {
    let client = sluice.cluster.client();
    let answer = client.within(|| Protocol::Tcp.ask(None, target));
    answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.server.starts_with("web-v1-")))
}

/// From outside by a director, from nodes and pods by kube-proxy.
pub(crate) fn exposed(sluice: &mut Sluice) -> Result<()> {
    let target = expose(sluice, "exposed")?;
    let curl = format!(
        "curl --silent --show-error --max-time 5 http://{}/",
        target.ip()
    );
    for name in NODES {
        let node = sluice.cluster.node(name)?;
        let pods = node.run("ls /run/netns")?;
        let pod = pods.split_whitespace().next().context("no pod")?;
        let from_pod = format!("ip netns exec {pod} {curl}");
        for command in [&curl, &from_pod] {
            // kube-proxy hears of the address when everybody does, and writes its rules after that.
            until(&format!("{command} on {name}"), CHANGE_TIMEOUT, || {
                let answer = node.run(command);
                answer.is_ok_and(|answer| answer.starts_with("web-v1-"))
            })?;
        }
    }
    put_right(sluice)?;
    cordoned(sluice)?;
    // What belongs to a Service that is there still nobody but the operator deletes.
    sluice.kubectl(&format!(
        r#"patch service --namespace {SHOP} exposed --patch {{"spec":{{"type":"ClusterIP"}}}}"#
    ))?;
    until("the address to be let go", CHANGE_TIMEOUT, || {
        !answers(sluice, target)
    })?;
    sluice.kubectl(&format!("delete service --namespace {SHOP} exposed"))?;
    Ok(())
}

/// A node that is cordoned hands over what it holds: the upgrade before has set `operator.drainCordoned`.
fn cordoned(sluice: &Sluice) -> Result<()> {
    let lease = [
        "get",
        "lease",
        "--namespace",
        SYSTEM,
        "sluice-vip-segment-0",
    ];
    let admin = sluice.cluster.admin();
    let holder = |lease: &Value| lease["spec"]["holderIdentity"].clone();
    let first = admin.until(&lease, CHANGE_TIMEOUT, |lease| holder(lease).is_string())?;
    let first = holder(&first);
    let node = first.as_str().context("a holder")?;
    sluice.kubectl(&format!("cordon {node}"))?;
    let moved = admin.until(&lease, CHANGE_TIMEOUT, |lease| {
        holder(lease).is_string() && holder(lease) != first
    });
    sluice.kubectl(&format!("uncordon {node}"))?;
    moved?;
    Ok(())
}

/// What was made for the Service follows it, and is put right when somebody changes it.
fn put_right(sluice: &Sluice) -> Result<()> {
    let name = "exposed.service.sluice.dev";
    let patch = |object: &str, patch: &str| {
        let arguments = [
            "patch",
            "--namespace",
            SHOP,
            object,
            "--type=json",
            "--patch",
            patch,
        ];
        sluice.cluster.admin().kubectl(arguments)
    };
    let port = r#"[{"op": "replace", "path": "/spec/ports/0/port", "value": 8088}]"#;
    patch("service/exposed", port)?;
    sluice.until(&format!("virtualserver/{name}"), CHANGE_TIMEOUT, |server| {
        server["spec"]["ports"][0]["port"] == 8088
    })?;
    let servers = r#"[{"op": "replace", "path": "/spec/servers/serviceName", "value": "other"}]"#;
    patch(&format!("realserverpool/{name}"), servers)?;
    sluice.until(&format!("realserverpool/{name}"), CHANGE_TIMEOUT, |pool| {
        pool["spec"]["servers"]["serviceName"] == "exposed"
    })?;
    Ok(())
}

/// The one pod of a Deployment, and a Service with its traffic policy.
fn on_node(node: &str) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: local, namespace: {SHOP}}}
spec:
  replicas: 1
  strategy: {{rollingUpdate: {{maxUnavailable: 0, maxSurge: 1}}}}
  selector: {{matchLabels: {{app: local}}}}
  template:
    metadata: {{labels: {{app: local}}}}
    spec:
      nodeSelector: {{kubernetes.io/hostname: {node}}}
      terminationGracePeriodSeconds: 5
      containers: [{{name: web, image: 'localhost/web:1', readinessProbe: {{httpGet: {{port: 8080}}, periodSeconds: 1}}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: local, namespace: {SHOP}}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {{app: local}}
  ports: [{{port: 80, targetPort: 8080}}]
"
    )
}

/// By the policy Local the address is where the endpoint is, the endpoint sees its client, and the address follows it.
pub(crate) fn local(sluice: &mut Sluice) -> Result<()> {
    let admin = sluice.cluster.admin();
    admin.apply(POOL)?;
    let [first, second, _] = NODES;
    admin.apply(&on_node(first))?;
    let target = port_of(sluice, "local")?;
    await_holder(sluice, "segment-128", first)?;
    let client = sluice.cluster.client();
    let source = client_sources(Family::V4, 3, 1)[0];
    let ask = || {
        let source = SocketAddr::new(source.ip(), 0);
        client.within(|| Protocol::Tcp.ask(Some(source), target))?
    };
    until("an answer", CHANGE_TIMEOUT, || ask().is_ok())?;
    let answer = ask()?;
    ensure!(
        answer.client.ip() == source.ip(),
        "it saw {}",
        answer.client
    );

    let clients = Outage::start(client, target)?;
    admin.apply(&on_node(second))?;
    await_holder(sluice, "segment-128", second)?;
    let status = format!("rollout status --namespace {SHOP} deployment/local --timeout=120s");
    sluice.kubectl(&status)?;
    // The pod of before goes some time after it is no endpoint any more.
    let pods = ["get", "pods", "--namespace", SHOP, "--selector=app=local"];
    admin.until(&pods, CHANGE_TIMEOUT, |pods| {
        pods["items"].as_array().is_some_and(|pods| pods.len() == 1)
    })?;
    went_on(clients)?;
    let answer = ask()?;
    ensure!(
        answer.client.ip() == source.ip(),
        "it saw {}",
        answer.client
    );

    nobody_ready(sluice)?;
    ensure!(ask().is_err(), "somebody answers");
    sluice.kubectl(&format!(
        "delete --namespace {SHOP} service/local deployment/local"
    ))?;
    Ok(())
}

/// Takes the last endpoint away: nodes and Service say that nobody holds the address, and why.
fn nobody_ready(sluice: &Sluice) -> Result<()> {
    sluice.kubectl(&format!(
        "scale --namespace {SHOP} deployment/local --replicas=0"
    ))?;
    sluice.until("loadbalancernodes", CHANGE_TIMEOUT, |nodes| {
        let nodes = nodes["items"].as_array().into_iter().flatten();
        let mut groups = nodes
            .filter_map(|node| node["status"]["unheldGroups"].as_array())
            .flatten();
        groups.any(|it| it["name"] == "segment-128" && it["reason"] == "NoLocalServer")
    })?;
    sluice.until("service/local", CHANGE_TIMEOUT, |service| {
        let conditions = service["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|it| it["type"] == "sluice.dev/Ready" && it["reason"] == "NoHolder")
    })?;
    Ok(())
}

/// A Service whose address is announced by `node`, and clients of it.
pub(crate) fn held_by(sluice: &Sluice, node: &str) -> Result<Outage> {
    let target = expose(sluice, "held")?;
    let others = NODES.iter().filter(|other| **other != node);
    for other in others.clone() {
        sluice.plugin(&format!("node drain {other}"))?;
    }
    await_holder(sluice, "segment-0", node)?;
    for other in others {
        sluice.plugin(&format!("node undrain {other}"))?;
    }
    until("an answer", CHANGE_TIMEOUT, || answers(sluice, target))?;
    Outage::start(sluice.cluster.client(), target)
}

/// Clients of the Service went on when its node died.
pub(crate) fn went_on(clients: Outage) -> Result<()> {
    let report = clients.stop();
    println!("no new connection for {:?}: {report:?}", report.longest);
    ensure!(report.longest <= OUTAGE, "{report:?}");
    Ok(())
}
