//! Sluice from `helm install` to `helm uninstall`, under load, on three real nodes.

mod canary;
mod changes;
mod removal;
mod rights;
mod services;
mod users;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sluice_e2e::stage::{CHANGE_TIMEOUT, NODES, Sluice, WEB};
use sluice_e2e::traffic::Traffic;
use sluice_tests::net::fabric::{client_sources, vip_of_one};
use sluice_tests::net::suite::Suite;
use sluice_tests::net::{Dual, Family, Protocol};

/// The longest time from `helm install` to the first answer.
const FIRST_ANSWER: Duration = Duration::from_mins(1);
/// Connections from which every pod must get some: one of three is left out by chance once in 10^14.
const CONNECTIONS: usize = 80;
/// The VIP of the pods that are on every node.
const EVERYWHERE: Dual = vip_of_one(20);

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.check("the quick start serves within a minute", install);
    suite.check("every node reaches the pods of every node", every_pair);
    suite.check("a pool changes from a Service to pods and back", source);
    suite.check(
        "the canary of the quick start moves everything",
        canary::quick_start,
    );
    suite.check("a canary back, share by share under load", canary::back);
    suite.check(
        "manifests applied again change nothing",
        canary::applied_again,
    );
    suite.check(
        "people may do what Kubernetes' roles for them say",
        users::people,
    );
    suite.check("pods come and go under load", changes::pods);
    suite.check(
        "a pod is drained and undrained under load",
        changes::drained_pod,
    );
    suite.check(
        "agents, operator and API server restart under load",
        changes::restarts,
    );
    suite.check("helm upgrade under load", changes::upgrade);
    suite.check(
        "a Service of type LoadBalancer needs no route",
        services::exposed,
    );
    suite.check(
        "by the policy Local a Service's address follows its endpoint",
        services::local,
    );
    suite.check(
        "without any one of its capabilities the agent says what it cannot do",
        rights::capabilities,
    );
    suite.check(
        "what is removed leaves nothing on the nodes",
        removal::uninstall,
    );
    suite.check(
        "a lost node is named and not waited for",
        removal::lost_node,
    );
    suite.check(
        "every permission of the chart is used and none is missing",
        rights::permissions,
    );
    suite.main(Sluice::build)
}

fn install(sluice: &mut Sluice) -> Result<()> {
    sluice.cluster.route_vip(WEB, &NODES[..1])?;
    sluice.quick_start("Images")?;
    let start = Instant::now();
    sluice.quick_start("Installing")?;
    let installed = start.elapsed();
    let answers = sluice.quick_start("A virtual server")?;
    let answered = start.elapsed();
    println!("installed after {installed:.1?}, first answers after {answered:.1?}");
    ensure!(
        answers
            .lines()
            .filter(|line| line.starts_with("web-v1-"))
            .count()
            >= 2,
        "the pods of web-v1 did not answer: {answers}"
    );
    ensure!(
        answered <= FIRST_ANSWER,
        "it took {answered:?} from `helm install` to the first answers"
    );
    Ok(())
}

const PODS_EVERYWHERE: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere, namespace: shop}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: web, image: 'localhost/web:1', readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Service
metadata: {name: everywhere, namespace: shop}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: everywhere}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: sluice.dev/v1alpha1
kind: RealServerPool
metadata: {name: everywhere, namespace: shop}
spec: {servers: {serviceName: everywhere}}
---
apiVersion: sluice.dev/v1alpha1
kind: VirtualServer
metadata: {name: everywhere, namespace: shop}
spec:
  addresses: [{ip: 203.0.113.20}, {ip: '2001:db8:cafe::20'}]
  ports: [{name: http, protocol: TCP, port: 80}]
  forwarding: {mode: FullNAT}
  pools: [{name: everywhere, weight: 1}]
";

const PODS_BY_LABEL: &str = "
apiVersion: sluice.dev/v1alpha1
kind: RealServerPool
metadata: {name: everywhere, namespace: shop}
spec:
  servers: {selector: {matchLabels: {app: everywhere}}}
  targetPorts: [{name: http, port: 8080}]
";

/// The same servers, told by the operator's own EndpointSlices for a while, under load.
fn source(sluice: &mut Sluice) -> Result<()> {
    let traffic = Traffic::start_with_kept(sluice.cluster.client(), EVERYWHERE)?;
    let slices = |sluice: &Sluice, wanted: usize| {
        let label = "sluice.dev/pool=everywhere";
        let question = ["get", "endpointslices", "-n", "shop", "-l", label];
        let admin = sluice.cluster.admin();
        admin.until(&question, CHANGE_TIMEOUT, |list| {
            list["items"].as_array().map(Vec::len) == Some(wanted)
        })
    };
    sluice.cluster.admin().apply(PODS_BY_LABEL)?;
    slices(sluice, 2)?;
    sluice.await_ready("everywhere")?;
    traffic.sample()?;
    sluice.cluster.admin().apply(PODS_EVERYWHERE)?;
    slices(sluice, 0)?;
    sluice.await_ready("everywhere")?;
    traffic.sample()?;
    println!("{} new connections, none failed", traffic.finish()?);
    Ok(())
}

/// A pool that names a Service, with a pod on each node, asked through each node.
fn every_pair(sluice: &mut Sluice) -> Result<()> {
    sluice.cluster.admin().apply(PODS_EVERYWHERE)?;
    let nodes = NODES.len();
    let pods = sluice
        .cluster
        .await_pods("shop", "app=everywhere", nodes, CHANGE_TIMEOUT)?;
    sluice.await_ready("everywhere")?;
    // Ready says that there are servers; the last pod may have become one a moment later.
    sluice.until("realserverpool/everywhere", CHANGE_TIMEOUT, |pool| {
        pool["status"]["readyServers"] == nodes
    })?;
    for director in NODES {
        sluice.cluster.route_vip(EVERYWHERE, &[director])?;
        for family in Family::BOTH {
            let sources = client_sources(family, 1, CONNECTIONS);
            let target = EVERYWHERE.socket(family, 80);
            let spread = Protocol::Tcp
                .ask_from_each(sluice.cluster.client(), &sources, target)
                .with_context(|| format!("{family} through {director}"))?;
            println!("{family} through {director}: {spread}");
            for pod in &pods {
                ensure!(
                    spread.of(&pod.name) > 0,
                    "{family} through {director}: no answer of {} on {}: {spread}",
                    pod.name,
                    pod.node
                );
            }
        }
    }
    Ok(())
}
