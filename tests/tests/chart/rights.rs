//! Rights of pods and people.

use super::*;

#[test]
fn nothing_is_privileged() {
    for (objects, count) in [(minimal(&[]), 3), (with_everything(&[]), 4)] {
        let pods = pods(&objects);
        assert_eq!(pods.len(), count);
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
                json!(["BPF", "NET_ADMIN", "PERFMON", "NET_RAW"])
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
        // Names narrow a rule.
        let named = rule.get("resourceNames");
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

/// The Job writes what is part of the release, and nothing else.
#[test]
fn the_account_for_address_pools_reaches_those_of_the_values_alone() {
    let objects = with_everything(&[]);
    let role = object(&objects, "ClusterRole", "sluice-pools").unwrap();
    let expected = json!([{
        "apiGroups": ["sluice.dev"], "resources": ["addresspools"], "resourceNames": ["edge", "core"],
        "verbs": ["get", "create", "patch"],
    }]);
    assert_eq!(role["rules"], expected);
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
    let read = [
        &owned[..],
        &["loadbalancernodes", "addresspools", "endpointslices"],
    ]
    .concat();
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
            // Those of the operator are one by name, and whatever it makes.
            let of_stream = key(role) == "Role/sluice-operator"
                && ["get", "patch", "create"].contains(&verb.as_str());
            assert!(of_stream || resource != "secrets", "{what}");
            let reads = ["get", "list", "watch"].contains(&verb.as_str());
            let owned_by_users = ["nodes", "pods", "services"].contains(&resource.as_str())
                || group == "sluice.dev"
                    && !resource.ends_with("/status")
                    && resource != "loadbalancernodes";
            // Its admission policy keeps the operator to what it makes for Services.
            let made = ["virtualservers", "realserverpools"].contains(&resource.as_str());
            let of_operator = key(role) == "ClusterRole/sluice-operator" && made;
            assert!(reads || of_operator || !owned_by_users, "{what}");
        }
    }
    let agent = permissions(object(&objects, "ClusterRole", "sluice-agent").unwrap());
    let kept = ["nodes", "pods"];
    assert!(
        !agent
            .iter()
            .any(|(_, resource, _)| kept.contains(&resource.as_str()))
    );
}

#[test]
fn bindings_lead_to_the_pods_accounts() {
    let objects = with_everything(&[]);
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
        let expected = if name.starts_with("Job/") { 1 } else { 2 };
        assert_eq!(bound.count(), expected, "{name}");
    }
}
