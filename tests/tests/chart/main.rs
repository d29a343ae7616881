//! The Helm chart without a cluster: what it renders, what it refuses, and that its documents agree with each other.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking too")]

mod documents;
mod rights;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sluice_tests::kube::chart::{REQUIRED_VALUES, directory, helm, object, render};
use sluice_tests::kube::pools_argument;
use sluice_tests::net::sluice::binary;

const DEFINITIONS: [&str; 5] = [
    "addresspools.sluice.dev",
    "loadbalancernodes.sluice.dev",
    "realserverpools.sluice.dev",
    "rolloutpolicies.sluice.dev",
    "virtualservers.sluice.dev",
];

/// Something unlike the default for every value that changes what is rendered.
const EVERYTHING: &str = "tests/chart/everything.yaml";

fn with_everything(more: &[&str]) -> Vec<Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(EVERYTHING);
    let values = ["--values", file.to_str().unwrap()];
    render(&[&REQUIRED_VALUES, &values[..], more].concat()).unwrap()
}

fn minimal(more: &[&str]) -> Vec<Value> {
    render(&[&REQUIRED_VALUES, more].concat()).unwrap()
}

/// The same with an address pool.
fn with_pools(more: &[&str]) -> Vec<Value> {
    let pools = pools_argument(
        &json!([{"name": "edge", "addresses": ["203.0.113.0/28"], "priority": 1000}]),
    );
    minimal(&[&[pools.as_str()], more].concat())
}

fn refusal(arguments: &[&str]) -> String {
    render(arguments).unwrap_err().to_string()
}

fn yaml(file: &str) -> Value {
    serde_saphyr::from_str(&text(file)).unwrap()
}

fn text(file: &str) -> String {
    fs::read_to_string(directory().join(file)).unwrap()
}

/// (kind/name, pod specification) of everything that runs pods.
fn pods(objects: &[Value]) -> BTreeMap<String, Value> {
    objects
        .iter()
        .filter(|object| object["spec"]["template"]["spec"].is_object())
        .map(|object| (key(object), object["spec"]["template"]["spec"].clone()))
        .collect()
}

fn key(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let name = text(&object["metadata"]["name"]);
    format!("{}/{name}", text(&object["kind"]))
}

/// Every object below `value` that has `name`, with that field.
fn fields<'a>(value: &'a Value, name: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get(name));
            map.values().for_each(|value| fields(value, name, found));
        }
        Value::Array(list) => list.iter().for_each(|value| fields(value, name, found)),
        _ => {}
    }
}

fn arguments(objects: &[Value], kind: &str, name: &str) -> Vec<String> {
    let object = object(objects, kind, name).unwrap();
    let arguments = &object["spec"]["template"]["spec"]["containers"][0]["args"];
    serde_json::from_value(arguments.clone()).unwrap()
}

#[test]
fn helm_finds_nothing_to_complain_of() {
    let chart = directory();
    let mut arguments = vec![chart.to_str().unwrap(), "--strict"];
    arguments.extend(REQUIRED_VALUES);
    helm("lint", &arguments).unwrap();
}

#[test]
fn a_minimal_release_has_these_objects() {
    let objects = minimal(&[]);
    let found: BTreeSet<String> = objects.iter().map(key).collect();
    let both = |kind| {
        [
            format!("{kind}/sluice-agent"),
            format!("{kind}/sluice-operator"),
        ]
    };
    let hooks = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Job"];
    let expected: BTreeSet<String> = DEFINITIONS
        .iter()
        .map(|name| format!("CustomResourceDefinition/{name}"))
        .chain(both("ServiceAccount"))
        .chain(both("ClusterRole"))
        .chain(both("ClusterRoleBinding"))
        .chain(both("Role"))
        .chain(both("RoleBinding"))
        .chain(["view", "edit"].map(|role| format!("ClusterRole/sluice-{role}")))
        .chain(hooks.map(|kind| format!("{kind}/sluice-detach")))
        .chain(both("ValidatingAdmissionPolicy"))
        .chain(both("ValidatingAdmissionPolicyBinding"))
        .chain(["DaemonSet/sluice-agent", "Deployment/sluice-operator"].map(str::to_owned))
        .collect();
    assert_eq!(found, expected);
    for object in &objects {
        let labels = &object["metadata"]["labels"];
        assert_eq!(labels["app.kubernetes.io/instance"], "sluice", "{object}");
        assert_eq!(labels["app.kubernetes.io/managed-by"], "Helm", "{object}");
        let hook = object["metadata"]["annotations"]["helm.sh/hook"].as_str();
        let detach = key(object).ends_with("/sluice-detach");
        assert_eq!(hook, detach.then_some("pre-delete"), "{object}");
    }
}

/// Helm may build none: the API server does not know the kind while it installs the definitions.
#[test]
fn address_pools_are_applied_by_a_job_after_the_release() {
    let more: Vec<Value> = with_pools(&[]).into_iter().collect();
    let without = minimal(&[]);
    let hooks: Vec<&Value> = more.iter().filter(|it| !without.contains(it)).collect();
    let kinds: Vec<&str> = hooks
        .iter()
        .filter_map(|hook| hook["kind"].as_str())
        .collect();
    let expected = [
        "ServiceAccount",
        "ConfigMap",
        "ClusterRole",
        "ClusterRoleBinding",
        "Job",
    ];
    assert_eq!(kinds, expected);
    for hook in hooks {
        let metadata = &hook["metadata"];
        assert_eq!(metadata["name"], "sluice-pools");
        assert_eq!(
            metadata["annotations"]["helm.sh/hook"],
            "post-install,post-upgrade"
        );
    }
    let map = object(&more, "ConfigMap", "sluice-pools").unwrap();
    let pools: Value = serde_json::from_str(map["data"]["pools.json"].as_str().unwrap()).unwrap();
    let expected = json!([{"name": "edge", "addresses": ["203.0.113.0/28"], "priority": 1000}]);
    assert_eq!(pools, expected);
    let pod = &pods(&more)["Job/sluice-pools"];
    let mounted = &pod["containers"][0]["volumeMounts"];
    let expected = json!([{"name": "pools", "mountPath": "/etc/sluice", "readOnly": true}]);
    assert_eq!(mounted, &expected);
    let volumes = json!([{"name": "pools", "configMap": {"name": "sluice-pools"}}]);
    assert_eq!(pod["volumes"], volumes);
    let twice = json!([{"name": "a", "addresses": ["::1"]}, {"name": "a", "addresses": ["::2"]}]);
    let message = refusal(&[&REQUIRED_VALUES[..], &[&pools_argument(&twice)]].concat());
    assert!(message.contains("two pools are named a"), "{message}");
}

#[test]
fn parts_can_be_left_out() {
    let objects = minimal(&[
        "--set=crds.enabled=false,detach.enabled=false",
        "--set=agent.admissionPolicy.enabled=false,operator.admissionPolicy.enabled=false",
    ]);
    let kinds: BTreeSet<_> = objects
        .iter()
        .map(|object| object["kind"].as_str().unwrap())
        .collect();
    for kind in [
        "CustomResourceDefinition",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "Job",
        "NetworkPolicy",
    ] {
        assert!(!kinds.contains(kind), "{kind}");
    }
    let objects = with_everything(&[]);
    let policy = object(&objects, "NetworkPolicy", "sluice-operator").unwrap();
    assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress"]));
}

#[test]
fn names_follow_the_release() {
    let names = |more: &[&str]| {
        let objects = minimal(more);
        let set = objects.iter().find(|object| object["kind"] == "DaemonSet");
        set.unwrap()["metadata"]["name"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(names(&["--set=nameOverride=lb"]), "sluice-lb-agent");
    assert_eq!(names(&["--set=fullnameOverride=edge"]), "edge-agent");
    let long = format!("--set=fullnameOverride={}", "x".repeat(50));
    assert_eq!(names(&[&long]).len(), 56);
}

#[test]
fn values_that_are_wrong_are_refused_by_name() {
    for (arguments, told) in [
        (&[][..], "/image/repository"),
        (&["--set=image.repository="], "/image/repository"),
        (&["--set=image.repository=null"], "repository"),
        (&["--set=image=null"], "image"),
    ] {
        let message = refusal(arguments);
        assert!(message.contains(told), "{arguments:?}: {message}");
    }
    for (value, told) in [
        ("replicas=2", "replicas"),
        ("agent.priviliged=true", "priviliged"),
        ("operator.replicas=2", "replicas"),
        ("agent.role=director", "/agent/role"),
        ("agent.interfaces=eth0", "/agent/interfaces"),
        ("agent.interfaces[0]=a/b", "/agent/interfaces/0"),
        ("agent.xdpMode=Offload", "/agent/xdpMode"),
        (
            "agent.tables.flowTableSize=63",
            "/agent/tables/flowTableSize",
        ),
        (
            "agent.tables.maxEndpoints=32769",
            "/agent/tables/maxEndpoints",
        ),
        ("agent.tables.ringSlots=many", "/agent/tables/ringSlots"),
        ("agent.resources.claims[0].name=x", "claims"),
        ("agent.nodeSelector.a=1", "/agent/nodeSelector/a"),
        ("agent.seLinuxOptions.kind=spc_t", "kind"),
        ("crds.keep=perhaps", "/crds/keep"),
        ("addressPools.name=edge", "/addressPools"),
        ("addressPools[0].name=edge", "addresses"),
        ("addressPools[0].addresses[0]=::1", "name"),
        ("addressPools[0].name=Edge", "/addressPools/0/name"),
        ("addressPools[0].addresses=::1", "/addressPools/0/addresses"),
        ("rbac.aggregate=true", "/rbac/aggregate"),
        ("detach.timeoutSeconds=0", "/detach/timeoutSeconds"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("image.repository=UPPER", "/image/repository"),
        ("imagePullSecrets[0].secret=x", "/imagePullSecrets/0"),
        ("log.format=xml", "/log/format"),
    ] {
        let set = format!("--set={value}");
        let message = refusal(&[&REQUIRED_VALUES, &[set.as_str()][..]].concat());
        assert!(message.contains(told), "{value}: {message}");
    }
}

#[test]
fn a_missing_repository_is_named_without_the_schema_too() {
    let message = refusal(&["--skip-schema-validation"]);
    assert!(message.contains("image.repository is empty"), "{message}");
}

#[test]
fn definitions_are_those_of_the_types_and_kept_when_asked() {
    for keep in [true, false] {
        let objects = minimal(&[&format!("--set=crds.keep={keep}")]);
        for name in DEFINITIONS {
            let mut rendered = object(&objects, "CustomResourceDefinition", name)
                .unwrap()
                .clone();
            let policy = &rendered["metadata"]["annotations"]["helm.sh/resource-policy"];
            assert_eq!(policy.as_str(), keep.then_some("keep"), "{name}");
            let metadata = rendered["metadata"].as_object_mut().unwrap();
            metadata.remove("annotations");
            metadata.remove("labels");
            let source = yaml(&format!("../../crds/{name}.yaml"));
            assert_eq!(rendered, source, "{name}");
        }
    }
}

#[test]
fn values_reach_the_command_lines() {
    let agent = arguments(&minimal(&[]), "DaemonSet", "sluice-agent");
    assert_eq!(
        agent[..4],
        [
            "run",
            "--admin=127.0.0.1:9200",
            "--role=Director",
            "--xdp-mode=Auto"
        ]
    );
    assert_eq!(agent[4..6], ["--failback-seconds=60", "--probes=on"]);
    let objects = with_everything(&["--set=detach.timeoutSeconds=7"]);
    let agent = arguments(&objects, "DaemonSet", "sluice-agent");
    for argument in [
        "--admin=[::]:2345",
        "--role=RealServer",
        "--interfaces=eth0,bond1",
        "--xdp-mode=Generic",
        "--probes=off",
        "--flow-table-size=67108864",
        "--log-format=json",
        "--tc=clsact",
    ] {
        assert!(agent.iter().any(|found| found == argument), "{argument}");
    }
    let operator = arguments(&objects, "Deployment", "sluice-operator");
    assert_eq!(
        operator,
        [
            "--admin=0.0.0.0:1234",
            "--reserved-addresses=192.0.2.0/24,2001:db8::1",
            "--refused-servers=nodes,pods",
            "--forget-silent-seconds=3000000",
            "--services-without-class",
            "--drain-cordoned",
            "--log-json",
            "--more"
        ]
    );
}

#[test]
fn values_reach_the_pods() {
    let objects = with_everything(&["--set=detach.timeoutSeconds=7"]);
    let pods = pods(&objects);
    let probe = &pods["DaemonSet/sluice-agent"]["containers"][0]["readinessProbe"]["httpGet"];
    let expected = json!({"host": "127.0.0.1", "path": "/readyz", "port": 2345});
    assert_eq!(probe, &expected);
    let tolerations = &pods["Deployment/sluice-operator"]["tolerations"];
    assert_eq!(tolerations.as_array().unwrap().len(), 3);
    assert_eq!(tolerations[1]["tolerationSeconds"], 3);
    let context = &pods["DaemonSet/sluice-agent"]["containers"][0]["securityContext"];
    let labels = json!({"type": "spc_t", "level": "s0"});
    assert_eq!(context["seLinuxOptions"], labels);
    let detach = arguments(&objects, "Job", "sluice-detach");
    assert_eq!(
        detach,
        ["detach-nodes", "--timeout-seconds=7", "--log-json"]
    );
    let pools = arguments(&objects, "Job", "sluice-pools");
    let file = "--file=/etc/sluice/pools.json";
    assert_eq!(
        pools,
        ["apply-pools", file, "--timeout-seconds=60", "--log-json"]
    );
    for (name, pod) in &pods {
        let container = &pod["containers"][0];
        assert_eq!(container["image"], "localhost/sluice:1.2.3", "{name}");
        assert_eq!(container["imagePullPolicy"], "Always", "{name}");
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "pull"}]), "{name}");
        assert_eq!(pod["nodeSelector"]["kubernetes.io/os"], "linux", "{name}");
        assert_eq!(pod["nodeSelector"]["kubernetes.io/arch"], "amd64", "{name}");
    }
    // A label of the values cannot take a pod out of its selector.
    let operator = object(&objects, "Deployment", "sluice-operator").unwrap();
    let labels = &operator["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels["team"], "edge");
    for (label, value) in operator["spec"]["selector"]["matchLabels"]
        .as_object()
        .unwrap()
    {
        assert_eq!(&labels[label], value);
    }
}
