//! The harness for Kubernetes itself: what it starts must be a cluster, and go away.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking too")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::api::core::v1::Namespace as KubeNamespace;
use kube::Api;
use kube::api::ListParams;
use sluice_tests::kube::{Cluster, ClusterSpec, ControlPlane, Part};
use sluice_tests::net::{Family, Namespace, Run, expect_no_remains};

const LIMIT: Duration = Duration::from_secs(60);

/// Names of namespaces as a client in Rust sees them.
fn namespaces(control: &ControlPlane) -> Vec<String> {
    control
        .admin()
        .with_client(async |client| {
            let api: Api<KubeNamespace> = Api::all(client);
            let list = api.list(&ListParams::default()).await?;
            list.into_iter()
                .map(|namespace| namespace.metadata.name.context("no name"))
                .collect()
        })
        .unwrap()
}

#[test]
fn two_control_planes_live_side_by_side_and_survive_crashes() {
    let run = Run::start().unwrap();
    let start = Instant::now();
    let mut one = ControlPlane::api(&run, "one").unwrap();
    println!("API usable after {:?}", start.elapsed());
    let two = ControlPlane::api(&run, "two").unwrap();

    one.admin()
        .kubectl(["create", "namespace", "shop"])
        .unwrap();
    assert!(namespaces(&one).contains(&"shop".to_owned()));
    assert!(!namespaces(&two).contains(&"shop".to_owned()));

    one.kill(Part::ApiServer).unwrap();
    one.admin().kubectl(["get", "namespaces"]).unwrap_err();
    one.start_part(Part::ApiServer).unwrap();
    one.restart(Part::Etcd).unwrap();
    one.admin()
        .until(&["get", "namespace", "shop"], LIMIT, |_| true)
        .unwrap();
    let start = Instant::now();
    one.stop(Part::ApiServer, LIMIT).unwrap();
    println!("API server stopped after {:?}", start.elapsed());
    assert!(one.evidence().contains("etcd"));

    let name = run.name().to_owned();
    drop((one, two, run));
    expect_no_remains(&name).unwrap();
}

#[test]
fn roles_decide_what_users_and_service_accounts_may_do() {
    let run = Run::start().unwrap();
    let control = ControlPlane::api(&run, "control").unwrap();
    let admin = control.admin();
    admin
        .kubectl(["create", "serviceaccount", "reader"])
        .unwrap();
    // Of the roles that come with Kubernetes, `view` and its like are empty until a controller has filled them.
    for line in [
        "create role reader --verb=get,list --resource=configmaps",
        "create rolebinding readers --role=reader --serviceaccount=default:reader --user=alice --group=readers",
    ] {
        admin.kubectl(line.split(' ')).unwrap();
    }
    for account in [
        control.service_account("default", "reader").unwrap(),
        control.user("alice", None).unwrap(),
        control.user("bob", Some("readers")).unwrap(),
    ] {
        account
            .until(&["get", "configmaps"], LIMIT, |_| true)
            .unwrap();
        let refused = account
            .kubectl(["create", "configmap", "x"])
            .unwrap_err()
            .to_string();
        assert!(refused.contains("forbidden"), "{refused}");
    }
    let stranger = control.user("carol", None).unwrap();
    stranger.kubectl(["get", "configmaps"]).unwrap_err();
}

#[test]
fn controllers_act_on_objects() {
    let run = Run::start().unwrap();
    let control = ControlPlane::alone(&run, "control", &Part::API_AND_CONTROLLERS).unwrap();
    let admin = control.admin();
    admin
        .kubectl(["create", "deployment", "web", "--image=localhost/web:1"])
        .unwrap();
    admin
        .until(&["get", "pods", "--selector=app=web"], LIMIT, |pods| {
            pods["items"].as_array().is_some_and(|pods| pods.len() == 1)
        })
        .unwrap();
}

const WEB: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: { name: web }
spec:
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{ name: web, image: 'localhost/web:1' }]
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec:
  ipFamilyPolicy: RequireDualStack
  selector: { app: web }
  ports: [{ port: 80, targetPort: 8080 }]
";

#[test]
fn nodes_run_pods_that_the_outside_reaches() {
    let start = Instant::now();
    let cluster = Cluster::build(&ClusterSpec::new(3)).unwrap();
    println!("cluster ready after {:?}", start.elapsed());
    cluster.admin().apply(WEB).unwrap();
    let pods = cluster.await_pods("default", "app=web", 3, LIMIT).unwrap();
    println!("pods ready after {:?}", start.elapsed());
    for pod in &pods {
        for family in Family::BOTH {
            assert_eq!(
                ask(&cluster, cluster.client(), pod.address.socket(family, 8080)),
                pod.name
            );
        }
    }
    println!("done after {:?}", start.elapsed());
}

/// The name of the pod that answers.
fn ask(cluster: &Cluster, from: &Namespace, to: SocketAddr) -> String {
    let url = format!("http://{to}/");
    let answer = from.run(&format!("curl --silent --show-error --max-time 10 {url}"));
    let answer = answer.unwrap_or_else(|error| panic!("{error:#}"));
    answer.trim().to_owned()
}
