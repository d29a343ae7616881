//! The harness for Kubernetes itself: what it starts must be a cluster, and go away.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking too")]

use std::env;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::api::core::v1::Namespace as KubeNamespace;
use kube::Api;
use kube::api::ListParams;
use sluice_tests::kube::{
    BpfObjects, Cluster, ClusterSpec, ControlPlane, Part, Pod, has_condition,
};
use sluice_tests::net::fabric::{client_sources, vip_of_one};
use sluice_tests::net::suite::Stage;
use sluice_tests::net::{
    Direction, Family, Namespace, PassProgram, Run, Veth, expect_no_remains, sweep, until,
};

const LIMIT: Duration = Duration::from_mins(1);

/// A web server on every node, and a Service for it.
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

#[test]
fn a_failing_test_leaves_nothing() {
    let run = Run::start().unwrap();
    let name = run.name().to_owned();
    let failed = catch_unwind(AssertUnwindSafe(move || {
        let control = ControlPlane::api(&run, "control").unwrap();
        // In the order of their declaration, as in a test: the run goes after what runs in it.
        let held = (control, run);
        held.0.admin().kubectl(["get", "nonsense"]).unwrap();
    }));
    assert!(failed.is_err());
    expect_no_remains(&name).unwrap();
}

#[test]
fn nodes_run_pods_that_the_outside_reaches() {
    let mut cluster = Cluster::build(&ClusterSpec::new(3)).unwrap();
    cluster.admin().apply(WEB).unwrap();
    let pods = cluster.await_pods("default", "app=web", 3, LIMIT).unwrap();
    for pod in &pods {
        expect_answer(&cluster, pod);
    }
    services_work(&cluster);
    links_are_cut_and_restored(&cluster, &pods);
    a_killed_node_is_missed(&mut cluster);
    a_killed_node_comes_back(&mut cluster);
    cluster.after_check().unwrap();

    let name = cluster.run_name();
    drop(cluster);
    expect_no_remains(&name).unwrap();
}

/// The pod answers the client outside, in both families.
fn expect_answer(cluster: &Cluster, pod: &Pod) {
    for family in Family::BOTH {
        let answer = ask(cluster.client(), pod.address.socket(family, 8080));
        assert_eq!(answer.unwrap(), pod.name);
    }
}

/// The name of the pod that answers.
fn ask(from: &Namespace, to: SocketAddr) -> anyhow::Result<String> {
    let answer = from.run(&format!(
        "curl --silent --show-error --max-time 5 http://{to}/"
    ))?;
    let name = answer.split_whitespace().next();
    Ok(name.unwrap_or_default().to_owned())
}

/// kube-proxy translates the addresses of Services, the API server reaches kubelets.
fn services_work(cluster: &Cluster) {
    let service = cluster.admin().json(["get", "service", "web"]).unwrap();
    for node in cluster.nodes() {
        for family in [0, 1] {
            let address: IpAddr = service["spec"]["clusterIPs"][family]
                .as_str()
                .unwrap()
                .parse()
                .unwrap();
            until("a Service's address to lead to a pod", LIMIT, || {
                ask(node.namespace(), SocketAddr::new(address, 80)).is_ok()
            })
            .unwrap();
        }
    }
    let exec = "exec daemonset/web -- /usr/sbin/nginx -t";
    cluster.admin().kubectl(exec.split(' ')).unwrap();
}

fn links_are_cut_and_restored(cluster: &Cluster, pods: &[Pod]) {
    let pod = pods.iter().find(|pod| pod.node == "n2").unwrap();
    cluster.cut("n2").unwrap();
    for family in Family::BOTH {
        ask(cluster.client(), pod.address.socket(family, 8080)).unwrap_err();
    }
    cluster.restore("n2").unwrap();
    for family in Family::BOTH {
        until("the link to be back", LIMIT, || {
            ask(cluster.client(), pod.address.socket(family, 8080)).is_ok()
        })
        .unwrap();
    }
    expect_answer(cluster, pod);
}

fn a_killed_node_is_missed(cluster: &mut Cluster) {
    cluster.kill_node("n3").unwrap();
    assert!(cluster.node("n3").is_err());
    cluster
        .admin()
        .until(&["get", "node", "n3"], LIMIT, |node| {
            !has_condition(node, "Ready")
        })
        .unwrap();
    cluster.await_ready().unwrap();
}

fn a_killed_node_comes_back(cluster: &mut Cluster) {
    cluster.boot_node("n3").unwrap();
    let pods = cluster.await_pods("default", "app=web", 3, LIMIT).unwrap();
    let pod = pods.iter().find(|pod| pod.node == "n3").unwrap();
    for family in Family::BOTH {
        until("the node's pod to answer", LIMIT, || {
            ask(cluster.client(), pod.address.socket(family, 8080)).is_ok()
        })
        .unwrap();
    }
}

#[test]
fn a_vip_goes_to_the_nodes_that_are_chosen() {
    let cluster = Cluster::build(&ClusterSpec::new(2).without_kube_proxy()).unwrap();
    let vip = vip_of_one(1);
    let rule = |family| match family {
        Family::V4 => format!("ip daddr {} udp dport 9", vip.v4),
        Family::V6 => format!("ip6 daddr {} udp dport 9", vip.v6),
    };
    let rules = Family::BOTH.map(rule);
    let count = |node| {
        let rules = [
            ("v4", Direction::Out, rules[0].as_str()),
            ("v6", Direction::Out, rules[1].as_str()),
        ];
        cluster.count_beyond(node, &rules).unwrap()
    };
    let counters = ["n1", "n2"].map(count);
    let send = |flows: usize| {
        for (family, source) in Family::BOTH.into_iter().flat_map(|family| {
            let sources = client_sources(family, 1, flows);
            sources.into_iter().map(move |source| (family, source))
        }) {
            let send = || UdpSocket::bind(source)?.send_to(b"x", vip.socket(family, 9));
            cluster.client().within(send).unwrap().unwrap();
        }
    };
    let seen = |name| counters.each_ref().map(|c| c.packets(name).unwrap());

    cluster.route_vip(vip, &["n2"]).unwrap();
    send(10);
    for name in ["v4", "v6"] {
        until("10 packets", LIMIT, || seen(name) == [0, 10]).unwrap();
    }
    cluster.route_vip(vip, &["n1", "n2"]).unwrap();
    send(100);
    for name in ["v4", "v6"] {
        until("100 more", LIMIT, || seen(name).iter().sum::<u64>() == 110).unwrap();
        assert!(seen(name)[0] > 20 && seen(name)[1] > 30, "{:?}", seen(name));
    }
    cluster.route_vip(vip, &["n1"]).unwrap();
    let before = seen("v6")[1];
    send(10);
    until("10 more", LIMIT, || seen("v6").iter().sum::<u64>() == 120).unwrap();
    assert_eq!(seen("v6")[1], before);
}

#[test]
fn bpf_objects_are_seen_come_and_go() {
    let before = BpfObjects::now().unwrap();
    let run = Run::start().unwrap();
    let namespace = run.namespace("node").unwrap();
    let (near, far) = (namespace.port("eth0"), namespace.port("eth1"));
    Veth::between(near, far).create().unwrap();
    let mut pass = PassProgram::load().unwrap();
    pass.attach(near).unwrap();
    let added = BpfObjects::now().unwrap().since(&before);
    let (id, _) = *added
        .programs
        .iter()
        .find(|(_, name)| name == "pass")
        .unwrap();
    assert!(added.links.iter().any(|(_, program)| *program == id));
    drop(pass);
    until("the program to go", LIMIT, || {
        let now = BpfObjects::now().unwrap();
        !now.programs.iter().any(|(other, _)| *other == id)
    })
    .unwrap();
}

const CRASHER: &str = "SLUICE_TEST_KUBE_CRASHER";

/// Not a test by itself: what the next one starts as a process of its own, to be killed in the middle.
#[test]
fn crasher() {
    if env::var_os(CRASHER).is_none() {
        return;
    }
    let cluster = Cluster::build(&ClusterSpec::new(1)).unwrap();
    cluster.admin().apply(WEB).unwrap();
    cluster.await_pods("default", "app=web", 1, LIMIT).unwrap();
    println!("\nready {}", cluster.run().name());
    std::thread::sleep(LIMIT);
}

#[test]
fn a_killed_cluster_is_swept() {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "crasher", "--nocapture"])
        .env(CRASHER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let run = out
        .lines()
        .find_map(|line| Some(line.unwrap().strip_prefix("ready ")?.to_owned()))
        .unwrap();
    expect_no_remains(&run).unwrap_err();
    child.kill().unwrap();
    child.wait().unwrap();
    sweep().unwrap();
    expect_no_remains(&run).unwrap();
}
