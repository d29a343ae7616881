//! Whether the chart's values and documents are those of the programs and of each other.

use super::*;

/// The text that a program prints for `--help`.
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
    let objects = with_pools(&["--set=agent.interfaces={eth0},log.format=json"]);
    for (kind, name, program, subcommand) in [
        ("DaemonSet", "sluice-agent", "sluice-agent", Some("run")),
        ("Deployment", "sluice-operator", "sluice-operator", None),
        (
            "Job",
            "sluice-detach",
            "sluice-operator",
            Some("detach-nodes"),
        ),
        (
            "Job",
            "sluice-pools",
            "sluice-operator",
            Some("apply-pools"),
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
        "kind: AddressPool\n",
        "kubectl --namespace north rollout status daemonset/edge-sluice-agent\n",
        "kubectl apply -f -",
        "kubectl sluice status --namespace shop\n",
    ] {
        assert!(notes.contains(command), "{command}:\n{notes}");
    }
}
