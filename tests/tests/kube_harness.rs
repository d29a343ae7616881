//! The harness for Kubernetes itself: what it starts must be a cluster, and go away.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking too")]

use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::api::core::v1::Namespace as KubeNamespace;
use kube::Api;
use kube::api::ListParams;
use sluice_tests::kube::{ControlPlane, Part};
use sluice_tests::net::{Run, expect_no_remains};

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
