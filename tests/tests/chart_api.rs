//! The Helm chart on a real API server: what it installs is accepted, does what it is for, and goes away.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking too")]

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::kube::chart::{RELEASE_NAMESPACE, REQUIRED_VALUES, directory};
use sluice_tests::kube::{Account, ControlPlane, Credentials, Part, pools_argument};
use sluice_tests::net::sluice::binary;
use sluice_tests::net::{Run, until};

const LIMIT: Duration = Duration::from_mins(1);

const VIRTUAL_SERVER: &str = r"
apiVersion: sluice.dev/v1alpha1
kind: VirtualServer
metadata: {name: web, namespace: default}
spec:
  addresses: [{ip: 203.0.113.10}]
  ports: [{name: http, protocol: TCP, port: 80}]
  forwarding: {mode: FullNAT}
  pools: [{name: web, weight: 100}]
";

/// Runs helm, for which a warning of the API server is an error, and returns what it wrote.
fn helm(account: &Account, arguments: &[&str]) -> Result<String, String> {
    let mut command = account.command("helm").unwrap();
    let namespace = ["--namespace", RELEASE_NAMESPACE];
    let output = command.args(arguments).args(namespace).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        // helm's own library warns of a watch that helm ends itself.
        let mut lines = complaint.lines();
        let is_warned = lines.any(|line| line.contains("arning") && !line.contains("reflector.go"));
        assert!(!is_warned, "{complaint}");
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(complaint)
    }
}

fn install(account: &Account, chart: &Path, verb: &str, more: &[&str]) {
    let release = [verb, "sluice", chart.to_str().unwrap()];
    helm(account, &[&release, &REQUIRED_VALUES[..], more].concat()).unwrap();
}

fn install_anew(account: &Account) {
    install(account, &directory(), "install", &["--create-namespace"]);
}

fn node(name: &str) -> String {
    format!(
        "{{apiVersion: sluice.dev/v1alpha1, kind: LoadBalancerNode, metadata: {{name: {name}}}, \
         spec: {{interfaces: [eth0]}}}}"
    )
}

fn status(name: &str) -> String {
    format!(
        "{{apiVersion: sluice.dev/v1alpha1, kind: LoadBalancerNode, metadata: {{name: {name}}}, \
         status: {{acknowledgedRevision: 7}}}}"
    )
}

fn lease(name: &str) -> String {
    format!(
        "{{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {{name: {name}, namespace: {RELEASE_NAMESPACE}}}, \
         spec: {{holderIdentity: someone}}}}"
    )
}

const CREATE: &[&str] = &["create", "-f", "-"];
const APPLY: &[&str] = &["apply", "--server-side", "-f", "-"];
const APPLY_STATUS: &[&str] = &["apply", "--server-side", "--subresource=status", "-f", "-"];

/// The agent's account as a pod on node `one` has it.
fn agent_on_node_one(control: &ControlPlane) -> Account {
    let admin = control.admin();
    admin
        .apply("{apiVersion: v1, kind: Node, metadata: {name: one}}")
        .unwrap();
    admin
        .apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: agent, namespace: {RELEASE_NAMESPACE}}}, \
             spec: {{nodeName: one, serviceAccountName: sluice-agent, containers: [{{name: a, image: localhost/a:1}}]}}}}"
        ))
        .unwrap();
    let token = admin
        .kubectl([
            "create",
            "token",
            "sluice-agent",
            "--namespace",
            RELEASE_NAMESPACE,
            "--bound-object-kind=Pod",
            "--bound-object-name=agent",
        ])
        .unwrap();
    let credentials = Credentials::Token(token.trim().to_owned());
    control.account("agent-on-one", &credentials).unwrap()
}

fn refusal(account: &Account, arguments: &[&str], manifest: &str) -> String {
    account
        .kubectl_with(arguments, manifest)
        .unwrap_err()
        .to_string()
}

#[test]
fn an_agent_writes_its_own_nodes_objects_only() {
    let run = Run::start().unwrap();
    let control = ControlPlane::api(&run, "control").unwrap();
    install_anew(control.admin());
    let agent = agent_on_node_one(&control);
    let unbound = control
        .service_account(RELEASE_NAMESPACE, "sluice-agent")
        .unwrap();

    // Roles and policy count from when the API server has noticed them.
    let only_own = "the agent of node one may write one only, not two";
    let dry = ["create", "--dry-run=server", "-f", "-"];
    let mut last = String::new();
    until("the policy to count", LIMIT, || {
        last = agent
            .kubectl_with(dry, &node("two"))
            .err()
            .map_or("accepted".to_owned(), |error| error.to_string());
        last.contains(only_own)
    })
    .unwrap_or_else(|error| panic!("{error:#}: {last}"));

    agent.kubectl_with(CREATE, &node("one")).unwrap();
    agent.kubectl_with(APPLY_STATUS, &status("one")).unwrap();
    let lease_one = lease("sluice-node-one");
    agent.kubectl_with(APPLY, &lease_one).unwrap();
    let renewed = lease_one.replace("someone", "another");
    agent.kubectl_with(APPLY, &renewed).unwrap();

    control.admin().apply(&node("two")).unwrap();
    for (arguments, manifest, told) in [
        (CREATE, node("three"), "not three"),
        (APPLY_STATUS, status("two"), "not two"),
        (
            APPLY,
            lease("sluice-node-two"),
            "may write sluice-node-one only",
        ),
        (APPLY, lease("one"), "may write sluice-node-one only"),
        (
            CREATE,
            node("three").replace("name:", "generateName:"),
            "may write one only",
        ),
    ] {
        let message = refusal(&agent, arguments, &manifest);
        assert!(message.contains(told), "{manifest}: {message}");
    }
    for (arguments, manifest) in [
        (CREATE, node("three")),
        (APPLY_STATUS, status("one")),
        (APPLY, lease_one.clone()),
    ] {
        let message = refusal(&unbound, arguments, &manifest);
        assert!(message.contains("not bound to a node"), "{message}");
    }
    // The policy is about agents: whoever else may write these objects goes on doing so.
    control.admin().apply(&lease("sluice-node-two")).unwrap();
    for arguments in [
        &["delete", "lbnode", "one"][..],
        &["label", "lbnode", "one", "a=b"],
        &["get", "pods", "--all-namespaces"],
        &[
            "delete",
            "lease",
            "sluice-node-one",
            "--namespace",
            RELEASE_NAMESPACE,
        ],
    ] {
        let message = agent.kubectl(arguments).unwrap_err().to_string();
        assert!(message.contains("forbidden"), "{message}");
    }
}

#[test]
fn the_operator_writes_what_it_makes_for_services_only() {
    let run = Run::start().unwrap();
    let control = ControlPlane::api(&run, "control").unwrap();
    let admin = control.admin();
    install_anew(admin);
    let definition = "crd/virtualservers.sluice.dev";
    admin
        .await_condition(definition, "Established", LIMIT)
        .unwrap();
    let operator = control
        .service_account(RELEASE_NAMESPACE, "sluice-operator")
        .unwrap();
    let of_service = VIRTUAL_SERVER.replace(
        "name: web, namespace",
        "name: web.service.sluice.dev, namespace",
    );
    let mut last = String::new();
    until("the policy to count", LIMIT, || {
        let dry = ["create", "--dry-run=server", "-f", "-"];
        let answer = admin.kubectl_with(dry, &of_service);
        last = answer.map_or_else(|error| error.to_string(), |_| "accepted".to_owned());
        last.contains("choose another one")
    })
    .unwrap_or_else(|error| panic!("{error:#}: {last}"));
    operator.kubectl_with(CREATE, &of_service).unwrap();
    admin.apply(VIRTUAL_SERVER).unwrap();
    let mut edited = admin.json(["get", "virtualserver", "web"]).unwrap();
    edited["spec"]["ports"][0]["port"] = json!(81);
    let replace = ["replace", "-f", "-"];
    let not_web = "may write what it makes for Services only, not web";
    for (arguments, manifest, told) in [
        (
            CREATE,
            VIRTUAL_SERVER.replace("name: web, n", "name: shop, n"),
            "not shop",
        ),
        (&replace[..], edited.to_string(), not_web),
        (
            &["delete", "-f", "-"][..],
            VIRTUAL_SERVER.to_owned(),
            not_web,
        ),
    ] {
        let message = refusal(&operator, arguments, &manifest);
        assert!(message.contains(told), "{manifest}: {message}");
    }
    // Others may do with the objects there what their roles let them do; the operator puts them right.
    let name = ["virtualserver", "web.service.sluice.dev"];
    admin
        .kubectl([&["label"][..], &name, &["a=b"]].concat())
        .unwrap();
    operator.kubectl([&["delete"][..], &name].concat()).unwrap();
}

#[test]
fn upgrades_bring_the_definitions_along() {
    let run = Run::start().unwrap();
    let control = ControlPlane::api(&run, "control").unwrap();
    let admin = control.admin();
    install_anew(admin);
    let copy = run.directory().join("chart");
    copy_directory(&directory(), &copy);
    let file = copy.join("files/crds/loadbalancernodes.sluice.dev.yaml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("- lbnode\n", "- lbnode\n    - lbn\n")).unwrap();
    install(admin, &copy, "upgrade", &[]);
    let names = ["get", "crd", "loadbalancernodes.sluice.dev"];
    admin
        .until(&names, LIMIT, |definition| {
            definition["status"]["acceptedNames"]["shortNames"]
                == serde_json::json!(["lbnode", "lbn"])
        })
        .unwrap();
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Names of what is left of the release, definitions aside.
fn remains(admin: &Account) -> Vec<String> {
    let kinds = "deployments,daemonsets,jobs,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,\
                 networkpolicies,validatingadmissionpolicies,validatingadmissionpolicybindings";
    let selector = "app.kubernetes.io/instance=sluice";
    let list = admin
        .json(["get", kinds, "--all-namespaces", "--selector", selector])
        .unwrap();
    let name = |object: &Value| format!("{}/{}", object["kind"], object["metadata"]["name"]);
    list["items"].as_array().unwrap().iter().map(name).collect()
}

/// Definitions that were kept belong to the next release of the name; without keep they go with it.
fn definitions_go_when_they_are_not_kept(admin: &Account) {
    let definitions = ["get", "crd", "virtualservers.sluice.dev"];
    install(admin, &directory(), "install", &["--set=crds.keep=false"]);
    admin.kubectl(["get", "virtualserver", "web"]).unwrap();
    helm(admin, &["uninstall", "sluice", "--no-hooks"]).unwrap();
    until("the definitions to go", LIMIT, || {
        admin
            .kubectl(definitions)
            .is_err_and(|error| error.to_string().contains("NotFound"))
    })
    .unwrap();
    assert_eq!(remains(admin), Vec::<String>::new());
}

#[test]
fn uninstalling_asks_the_nodes_first_and_leaves_users_objects() {
    let run = Run::start().unwrap();
    let control = ControlPlane::alone(&run, "control", &Part::API_AND_CONTROLLERS).unwrap();
    let admin = control.admin();
    install_anew(admin);
    for object in [
        "crd/virtualservers.sluice.dev",
        "crd/loadbalancernodes.sluice.dev",
    ] {
        admin.await_condition(object, "Established", LIMIT).unwrap();
    }
    admin.apply(VIRTUAL_SERVER).unwrap();
    admin.apply(&node("one")).unwrap();

    let account = admin.clone();
    let uninstall =
        thread::spawn(move || helm(&account, &["uninstall", "sluice", "--timeout=60s"]));
    let selector = "--selector=app.kubernetes.io/component=detach";
    let pods = ["get", "pods", "--namespace", RELEASE_NAMESPACE, selector];
    let found = admin
        .until(&pods, LIMIT, |pods| pods["items"][0].is_object())
        .unwrap();
    let pod = &found["items"][0];
    assert_eq!(pod["spec"]["containers"][0]["args"][0], "detach-nodes");
    // Nothing is deleted while the Job runs.
    admin
        .kubectl([
            "get",
            "daemonset/sluice-agent",
            "--namespace",
            RELEASE_NAMESPACE,
        ])
        .unwrap();

    // No node runs the pod: its program, with its account. The node has answered already.
    let detached = "{conditions: [{type: Detached, status: 'True', reason: Asked, message: '', \
                    lastTransitionTime: '2026-01-01T00:00:00Z'}]}";
    let answer = node("one").replace("spec: {interfaces: [eth0]}", &format!("status: {detached}"));
    admin.kubectl_with(APPLY_STATUS, &answer).unwrap();
    let detach = control
        .service_account(RELEASE_NAMESPACE, "sluice-detach")
        .unwrap();
    let mut command = control
        .namespace()
        .command(binary("sluice-operator").unwrap());
    command.arg("detach-nodes").arg("--kubeconfig");
    let output = command.arg(detach.kubeconfig().path()).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !log.contains("WARN"), "{log}");
    let left = admin.json(["get", "lbnode"]).unwrap();
    assert_eq!(left["items"], serde_json::json!([]));
    detach.kubectl(["get", "virtualservers"]).unwrap_err();
    let name = pod["metadata"]["name"].as_str().unwrap();
    admin
        .kubectl([
            "patch",
            "pod",
            name,
            "--namespace",
            RELEASE_NAMESPACE,
            "--subresource=status",
            "--patch={\"status\": {\"phase\": \"Succeeded\"}}",
        ])
        .unwrap();
    uninstall.join().unwrap().unwrap();
    assert_eq!(remains(admin), Vec::<String>::new());
    admin.kubectl(["get", "virtualserver", "web"]).unwrap();

    definitions_go_when_they_are_not_kept(admin);
}

/// Runs helm with values that name pools, beside it `job` with the file of pools that the Job's pod gets, and tells helm that the
/// pod has succeeded: no node runs it.
fn install_with_pools(
    control: &ControlPlane,
    verb: &'static str,
    more: &[&str],
    job: impl FnOnce(&Value),
) {
    let admin = control.admin();
    let account = admin.clone();
    let more: Vec<String> = more.iter().map(|&argument| argument.to_owned()).collect();
    let helm = thread::spawn(move || {
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        install(&account, &directory(), verb, &more);
    });
    let selector = "--selector=app.kubernetes.io/component=pools";
    let of_release = ["--namespace", RELEASE_NAMESPACE];
    let pods = [&["get", "pods", selector][..], &of_release].concat();
    let is_new = |pod: &Value| pod.is_object() && pod["status"]["phase"] == "Pending";
    let found = admin.until(&pods, LIMIT, |pods| is_new(&pods["items"][0]));
    let name = found.unwrap()["items"][0]["metadata"]["name"].clone();
    let map = [&["get", "configmap", "sluice-pools"][..], &of_release].concat();
    let map = admin.json(map).unwrap();
    job(&serde_json::from_str(map["data"]["pools.json"].as_str().unwrap()).unwrap());
    let done = "--patch={\"status\": {\"phase\": \"Succeeded\"}}";
    let patch = [
        "patch",
        "pod",
        name.as_str().unwrap(),
        "--subresource=status",
        done,
    ];
    admin.kubectl([&patch[..], &of_release].concat()).unwrap();
    helm.join().unwrap();
    // The account and its rights go with the Job.
    let left = [
        "get",
        "jobs,serviceaccounts,configmaps,clusterroles",
        "--all-namespaces",
        selector,
    ];
    assert_eq!(admin.json(left).unwrap()["items"], json!([]));
}

fn address_pool(admin: &Account, name: &str) -> Value {
    admin.json(["get", "addresspool", name]).unwrap()
}

/// What the account of the Job can do beside what it is for.
fn reaches_named_pools_alone(account: &Account) {
    let pool = |name: &str| {
        format!(
            "{{apiVersion: sluice.dev/v1alpha1, kind: AddressPool, metadata: {{name: {name}}}, \
             spec: {{addresses: ['192.0.2.1']}}}}"
        )
    };
    for (arguments, manifest) in [
        (APPLY, pool("other")),
        (CREATE, pool("other")),
        (&["get", "addresspools"], String::new()),
        (&["get", "addresspool", "other"], String::new()),
        (&["delete", "addresspool", "edge"], String::new()),
        (&["get", "virtualservers"], String::new()),
    ] {
        let message = refusal(account, arguments, &manifest);
        assert!(message.contains("forbidden"), "{arguments:?}: {message}");
    }
    let status = pool("edge").replace("spec: {addresses: ['192.0.2.1']}", "status: {}");
    let message = refusal(account, APPLY_STATUS, &status);
    assert!(message.contains("forbidden"), "{message}");
}

/// What the API server refuses is named, and keeps back no other pool.
fn refused_pools_are_named(control: &ControlPlane, account: &Account, files: &Path) {
    let good = json!({"name": "core", "addresses": ["198.51.100.7"], "autoAssign": false});
    for (spec, told) in [
        (
            json!({"addresses": ["203.0.113.0/33"]}),
            "spec.addresses: Invalid value",
        ),
        (
            json!({"addresses": ["::1"], "priority": 1001}),
            "spec.priority: Invalid value",
        ),
        (
            json!({"addresses": ["::1"], "adresses": []}),
            ".spec.adresses: field not declared",
        ),
    ] {
        let mut bad = spec;
        bad["name"] = json!("edge");
        let pools = json!([bad, good]);
        let failure = control.apply_pools_as(account, &pools, files).unwrap_err();
        let log = failure.to_string();
        let complaint = log.lines().find(|line| line.contains("ERROR")).unwrap();
        assert!(
            complaint.contains("edge") && complaint.contains(told),
            "{log}"
        );
        assert!(log.contains("not applied: edge\n"), "{log}");
        assert!(log.contains("is as wanted pool=\"core\""), "{log}");
    }
}

#[test]
fn a_job_applies_the_pools_of_the_values() {
    let run = Run::start().unwrap();
    let control = ControlPlane::alone(&run, "control", &Part::API_AND_CONTROLLERS).unwrap();
    let (admin, files) = (control.admin(), run.directory());
    let directory_of_tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
    let values = format!("--values={directory_of_tests}/chart/everything.yaml");
    let more = ["--create-namespace", values.as_str()];
    install_with_pools(&control, "install", &more, |pools| {
        let log = control.apply_pools(pools, files).unwrap();
        assert!(
            log.contains("made pool=\"edge\"") && log.contains("made pool=\"core\""),
            "{log}"
        );
        let account = control
            .service_account(RELEASE_NAMESPACE, "sluice-pools")
            .unwrap();
        reaches_named_pools_alone(&account);
        refused_pools_are_named(&control, &account, files);
    });
    let edge = address_pool(admin, "edge");
    let labels = json!({"app.kubernetes.io/managed-by": "sluice-chart"});
    assert_eq!(edge["metadata"]["labels"], labels);
    assert_eq!(edge["spec"]["allow"], json!({"namespaces": ["shop"]}));
    assert_eq!(edge["spec"]["priority"], 1000);

    // Somebody edits a pool of the chart, and takes over another.
    let edit = "--patch={\"spec\": {\"priority\": 7}}";
    admin
        .kubectl(["patch", "addresspool", "edge", "--type=merge", edit])
        .unwrap();
    admin
        .kubectl([
            "label",
            "addresspool",
            "core",
            "app.kubernetes.io/managed-by-",
        ])
        .unwrap();
    let grown = json!([
        {"name": "edge", "addresses": ["203.0.113.0/27"], "priority": 9},
        {"name": "core", "addresses": ["198.51.100.8"]},
    ]);
    install_with_pools(&control, "upgrade", &[&pools_argument(&grown)], |pools| {
        assert_eq!(*pools, grown);
        let log = control.apply_pools(pools, files).unwrap_err().to_string();
        let told = "that the chart did not make";
        assert!(
            log.contains(told) && log.contains("not applied: core\n"),
            "{log}"
        );
    });
    let edge = address_pool(admin, "edge");
    assert_eq!(edge["spec"]["addresses"], json!(["203.0.113.0/27"]));
    assert_eq!(edge["spec"]["priority"], 9);
    assert!(
        edge["spec"]["allow"].is_null(),
        "the values no longer say so"
    );
    assert_eq!(
        address_pool(admin, "core")["spec"]["addresses"],
        json!(["198.51.100.7"])
    );

    // Without pools there is no Job to wait for, and what there is stays.
    install(
        admin,
        &directory(),
        "upgrade",
        &["--set-json=addressPools=[]"],
    );
    helm(admin, &["uninstall", "sluice", "--no-hooks"]).unwrap();
    assert_eq!(address_pool(admin, "edge")["spec"], edge["spec"]);
}
