//! The Helm chart without a cluster: what it renders, what it refuses, and that its documents agree with each other.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking too")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sluice_tests::kube::chart::{REQUIRED_VALUES, directory, helm, object, render};
use sluice_tests::net::sluice::binary;

const DEFINITIONS: [&str; 4] = [
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
        .chain(
            [
                "DaemonSet",
                "ValidatingAdmissionPolicy",
                "ValidatingAdmissionPolicyBinding",
            ]
            .map(|kind| format!("{kind}/sluice-agent")),
        )
        .chain(["Deployment/sluice-operator".to_owned()])
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

#[test]
fn parts_can_be_left_out() {
    let objects = minimal(&[
        "--set=crds.enabled=false,agent.admissionPolicy.enabled=false,detach.enabled=false",
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

#[test]
fn nothing_is_privileged() {
    for objects in [minimal(&[]), with_everything(&[])] {
        let pods = pods(&objects);
        assert_eq!(pods.len(), 3);
        for (name, pod) in &pods {
            for field in ["privileged", "hostPID", "hostIPC", "procMount", "devices"] {
                let mut found = Vec::new();
                fields(pod, field, &mut found);
                assert!(found.is_empty(), "{name} has {field}");
            }
            let agent = name == "DaemonSet/sluice-agent";
            assert_eq!(pod["hostNetwork"].as_bool().unwrap_or_default(), agent);
            let context = &pod["securityContext"];
            assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
            assert_eq!(context["runAsUser"], if agent { 0 } else { 65532 });
            let non_root = context["runAsNonRoot"].as_bool().unwrap_or_default();
            assert_eq!(non_root, !agent);
            let added = if agent {
                json!(["BPF", "NET_ADMIN", "PERFMON"])
            } else {
                Value::Null
            };
            // All but the agent keep the profile that the runtime applies; the agent's pins are where it forbids writing.
            let mut profiles = Vec::new();
            fields(pod, "appArmorProfile", &mut profiles);
            let unconfined = json!({"type": "Unconfined"});
            assert_eq!(profiles, vec![&unconfined; usize::from(agent)], "{name}");
            for container in pod["containers"].as_array().unwrap() {
                let context = &container["securityContext"];
                assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
                assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
                assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{name}");
                assert_eq!(context["capabilities"]["add"], added, "{name}");
            }
            let mut paths = Vec::new();
            fields(&pod["volumes"], "hostPath", &mut paths);
            let expected = json!({"path": "/sys/fs/bpf", "type": "Directory"});
            assert_eq!(paths, vec![&expected; usize::from(agent)], "{name}");
        }
    }
}

/// (API group, resource, verb) of every rule of a role.
fn permissions(role: &Value) -> BTreeSet<(String, String, String)> {
    let texts = |value: &Value| serde_json::from_value::<Vec<String>>(value.clone()).unwrap();
    let mut found = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        // Names narrow a rule; without them a namespace would be any.
        let named = rule.get("resourceNames");
        let is_of_namespaces = rule["resources"] == json!(["namespaces"]);
        assert!(
            !is_of_namespaces || named == Some(&json!(["kube-system"])),
            "{rule}"
        );
        let fields = 3 + usize::from(named.is_some());
        assert_eq!(rule.as_object().unwrap().len(), fields, "{rule}");
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                for verb in texts(&rule["verbs"]) {
                    let permission = (group.clone(), resource.clone(), verb);
                    assert!(found.insert(permission.clone()), "twice: {permission:?}");
                }
            }
        }
    }
    found
}

/// Labels by which Kubernetes' own roles take up a role.
fn aggregation(role: &Value) -> BTreeSet<&str> {
    let labels = role["metadata"]["labels"].as_object().unwrap();
    labels
        .iter()
        .filter(|(_, value)| *value == "true")
        .filter_map(|(label, _)| label.strip_prefix("rbac.authorization.k8s.io/aggregate-to-"))
        .collect()
}

#[test]
fn people_get_their_rights_by_the_roles_of_kubernetes() {
    const READ: &[&str] = &["get", "list", "watch"];
    const WRITE: &[&str] = &["create", "update", "patch", "delete", "deletecollection"];
    let owned = ["virtualservers", "realserverpools", "rolloutpolicies"];
    let of = |resources: &[&str], verbs: &[&str]| -> BTreeSet<(String, String, String)> {
        let pairs = resources
            .iter()
            .flat_map(|resource| verbs.iter().map(move |verb| (resource, verb)));
        pairs
            .map(|(resource, verb)| {
                let group = match *resource {
                    "endpointslices" => "discovery.k8s.io",
                    "leases" => "coordination.k8s.io",
                    _ => "sluice.dev",
                };
                (group.into(), (*resource).into(), (*verb).into())
            })
            .collect()
    };
    let read = [&owned[..], &["loadbalancernodes", "endpointslices"]].concat();
    let mut view = of(&read, READ);
    view.extend(of(&["leases"], &["list"]));
    for (name, permitted, takers) in [
        (
            "sluice-view",
            view,
            [
                &[][..],
                &["view", "edit", "admin"],
                &["view", "edit", "admin"],
            ],
        ),
        (
            "sluice-edit",
            of(&owned, WRITE),
            [&[], &[], &["edit", "admin"]],
        ),
    ] {
        for (aggregate, expected) in ["none", "view", "edit"].into_iter().zip(takers) {
            let objects = minimal(&[&format!("--set=rbac.aggregate={aggregate}")]);
            let role = object(&objects, "ClusterRole", name).unwrap();
            assert_eq!(permissions(role), permitted, "{name}");
            let expected = expected.iter().copied().collect();
            assert_eq!(aggregation(role), expected, "{name}, {aggregate}");
            let bound = objects
                .iter()
                .any(|object| object["roleRef"]["name"] == name);
            assert!(!bound, "{name} is for people, who bind it themselves");
        }
    }
}

#[test]
fn no_pod_may_write_what_users_own() {
    let objects = minimal(&[]);
    let bound = |role: &&Value| {
        objects.iter().any(|object| {
            let bound = &object["roleRef"];
            bound["kind"] == role["kind"] && bound["name"] == role["metadata"]["name"]
        })
    };
    for role in objects
        .iter()
        .filter(|object| matches!(object["kind"].as_str(), Some("Role" | "ClusterRole")))
        .filter(bound)
    {
        for (group, resource, verb) in permissions(role) {
            let what = format!("{}: {verb} {resource}.{group}", key(role));
            assert!(
                ![&group, &resource, &verb]
                    .iter()
                    .any(|word| word.contains('*')),
                "{what}"
            );
            assert!(resource != "secrets" && resource != "nodes", "{what}");
            let reads = ["get", "list", "watch"].contains(&verb.as_str());
            let owned_by_users = ["pods", "services"].contains(&resource.as_str())
                || group == "sluice.dev"
                    && !resource.ends_with("/status")
                    && resource != "loadbalancernodes";
            assert!(reads || !owned_by_users, "{what}");
        }
    }
    let agent = permissions(object(&objects, "ClusterRole", "sluice-agent").unwrap());
    assert!(!agent.iter().any(|(_, resource, _)| resource == "pods"));
}

#[test]
fn bindings_lead_to_the_pods_accounts() {
    let objects = minimal(&[]);
    let pods = pods(&objects);
    for (name, pod) in &pods {
        let account = pod["serviceAccountName"].as_str().unwrap();
        object(&objects, "ServiceAccount", account).unwrap();
        let bound = objects.iter().filter(|object| {
            let binding = ["RoleBinding", "ClusterRoleBinding"];
            binding.contains(&object["kind"].as_str().unwrap())
                && object["subjects"][0]["name"] == account
        });
        for binding in bound.clone() {
            assert_eq!(binding["subjects"].as_array().unwrap().len(), 1);
            assert_eq!(binding["subjects"][0]["namespace"], "sluice-system");
            let role = &binding["roleRef"];
            let (kind, role) = (role["kind"].as_str(), role["name"].as_str());
            object(&objects, kind.unwrap(), role.unwrap()).unwrap();
        }
        let expected = if name == "Job/sluice-detach" { 1 } else { 2 };
        assert_eq!(bound.count(), expected, "{name}");
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
    let objects = with_everything(&["--set=detach.timeoutSeconds=7"]);
    let agent = arguments(&objects, "DaemonSet", "sluice-agent");
    for argument in [
        "--admin=[::]:2345",
        "--role=RealServer",
        "--interfaces=eth0,bond1",
        "--xdp-mode=Generic",
        "--flow-table-size=67108864",
        "--log-format=json",
        "--tc=clsact",
    ] {
        assert!(agent.iter().any(|found| found == argument), "{argument}");
    }
    let operator = arguments(&objects, "Deployment", "sluice-operator");
    assert_eq!(operator, ["--admin=0.0.0.0:1234", "--log-json", "--more"]);
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
    for (name, pod) in &pods {
        let container = &pod["containers"][0];
        assert_eq!(container["image"], "localhost/sluice:1.2.3", "{name}");
        assert_eq!(container["imagePullPolicy"], "Always", "{name}");
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "pull"}]), "{name}");
        assert_eq!(pod["nodeSelector"]["kubernetes.io/os"], "linux", "{name}");
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

/// What a program says of its options.
fn help(program: &str, subcommand: Option<&str>) -> String {
    let mut command = Command::new(binary(program).unwrap());
    let output = command.args(subcommand).arg("--help").output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {subcommand:?}: {complaint}"
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The part of a help text that is about one option.
fn about<'a>(help: &'a str, option: &str) -> Option<&'a str> {
    let is_start = |line: &str| {
        line.split([' ', ',', '\n']).any(|word| word == option)
            && line.trim_start().starts_with('-')
    };
    let start: usize = help
        .split_inclusive('\n')
        .take_while(|line| !is_start(line))
        .map(str::len)
        .sum();
    let rest = help.get(start..).filter(|rest| !rest.is_empty())?;
    let end = rest.find("\n\n  -").map_or(rest.len(), |end| end + 1);
    rest.get(..end)
}

#[test]
fn the_programs_know_what_the_chart_passes() {
    let objects = minimal(&["--set=agent.interfaces={eth0},log.format=json"]);
    for (kind, name, program, subcommand) in [
        ("DaemonSet", "sluice-agent", "sluice-agent", Some("run")),
        ("Deployment", "sluice-operator", "sluice-operator", None),
        (
            "Job",
            "sluice-detach",
            "sluice-operator",
            Some("detach-nodes"),
        ),
    ] {
        let help = help(program, subcommand);
        for argument in arguments(&objects, kind, name) {
            let option = argument.split('=').next().unwrap();
            let known = Some(option) == subcommand || about(&help, option).is_some();
            assert!(known, "{program} {subcommand:?} has no {option}:\n{help}");
        }
        let object = object(&objects, kind, name).unwrap();
        let variables = &object["spec"]["template"]["spec"]["containers"][0]["env"];
        for variable in variables.as_array().unwrap() {
            let variable = variable["name"].as_str().unwrap();
            let known = variable == "RUST_LOG" || help.contains(&format!("[env: {variable}="));
            assert!(known, "{program} {subcommand:?} has no {variable}:\n{help}");
        }
    }
}

#[test]
fn table_sizes_are_the_agents_own() {
    let help = help("sluice-agent", Some("run"));
    for argument in arguments(&minimal(&[]), "DaemonSet", "sluice-agent") {
        let Some((option, value)) = argument.split_once('=') else {
            continue;
        };
        if option.ends_with("-size") || option.starts_with("--max-") || option == "--ring-slots" {
            let about = about(&help, option).unwrap();
            assert!(about.contains(&format!("[default: {value}]")), "{about}");
        }
    }
}

#[test]
fn versions_are_the_workspaces() {
    let chart = yaml("Chart.yaml");
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    let pods = pods(&minimal(&[]));
    let image = &pods["DaemonSet/sluice-agent"]["containers"][0]["image"];
    let expected = concat!("localhost/sluice:", env!("CARGO_PKG_VERSION"));
    assert_eq!(image, expected);
}

/// Paths of the settings that the schema knows: what it describes no further is one setting.
fn settings(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    let Some(properties) = schema["properties"].as_object() else {
        found.insert(path.trim_start_matches('.').to_owned());
        return;
    };
    for (name, schema) in properties {
        settings(schema, &format!("{path}.{name}"), found);
    }
}

#[test]
fn values_schema_and_readme_agree() {
    let values = yaml("values.yaml");
    let schema: Value = serde_json::from_str(&text("values.schema.json")).unwrap();
    let mut known = BTreeSet::new();
    settings(&schema, "", &mut known);
    // Helm's own, for charts that contain this one.
    assert!(known.remove("global"));
    let readme = text("README.md");
    let (_, table) = readme.split_once("## Values").unwrap();
    let documented: BTreeMap<String, String> = table
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split("` | `");
            let path = cells.next()?.to_owned();
            let default = cells.next()?.split("` | ").next()?.to_owned();
            Some((path, default))
        })
        .collect();
    assert_eq!(documented.keys().cloned().collect::<BTreeSet<_>>(), known);
    for (path, default) in documented {
        let pointer = format!("/{}", path.replace('.', "/"));
        let value = values.pointer(&pointer);
        let documented: Value = serde_saphyr::from_str(&default).unwrap();
        assert_eq!(value, Some(&documented), "{path}");
    }
    let mut found = Vec::new();
    fields(&schema, "properties", &mut found);
    let mut closed = Vec::new();
    fields(&schema, "additionalProperties", &mut closed);
    let closed = closed.iter().filter(|value| **value == &json!(false));
    assert_eq!(closed.count(), found.len(), "every object is closed");
}

#[test]
fn notes_name_the_next_commands() {
    let chart = directory();
    let mut arguments = vec!["edge", chart.to_str().unwrap()];
    arguments.extend(REQUIRED_VALUES);
    arguments.extend(["--dry-run=client", "--namespace=north"]);
    let output = helm("install", &arguments).unwrap();
    let (_, notes) = output.split_once("\nNOTES:\n").unwrap();
    for command in [
        "kubectl get lbnode\n",
        "kubectl --namespace north rollout status daemonset/edge-sluice-agent\n",
        "kubectl apply -f -",
        "kubectl sluice status --namespace shop\n",
    ] {
        assert!(notes.contains(command), "{command}:\n{notes}");
    }
}
