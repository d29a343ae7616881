//! Which integration tests need what.
//!
//! Each stands in one of two lists: those that `make test-unit` runs, and the others. One that stands in neither is an
//! error, so that no new suite is left out unnoticed.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command;

/// Test targets, as `package/target`, that need nothing but cargo.
const UNIT: [&str; 16] = [
    "kubectl-sluice/golden",
    "kubectl-sluice/rollout",
    "kubectl-sluice/vips",
    "kubectl-sluice/watch",
    "sluice-api/cel",
    "sluice-operator/standalone",
    "sluice-planner/announced",
    "sluice-planner/endpoints",
    "sluice-planner/golden",
    "sluice-planner/identity",
    "sluice-planner/quota",
    "sluice-planner/ring",
    "sluice-planner/sequences",
    "sluice-planner/sources",
    "sluice-rollout/simulation",
    "sluice-tests/golden",
];

/// Test targets that need root, the BPF programs, or the binaries of Kubernetes and helm.
const EQUIPPED: [&str; 41] = [
    "sluice-agent/agent",
    "sluice-e2e/kubernetes",
    "sluice-tests/api_addresses",
    "sluice-tests/api_faults",
    "sluice-tests/api_operator",
    "sluice-tests/api_ownership",
    "sluice-tests/api_plugin",
    "sluice-tests/api_quiet",
    "sluice-tests/api_rights",
    "sluice-tests/api_scale",
    "sluice-tests/api_schema",
    "sluice-tests/api_services",
    "sluice-tests/api_slices",
    "sluice-tests/api_stale",
    "sluice-tests/api_stream",
    "sluice-tests/api_tenants",
    "sluice-tests/bench",
    "sluice-tests/bench_checks",
    "sluice-tests/bench_failover",
    "sluice-tests/bench_rollback",
    "sluice-tests/chart",
    "sluice-tests/chart_api",
    "sluice-tests/claim_races",
    "sluice-tests/differential",
    "sluice-tests/fullnat_rates",
    "sluice-tests/kernels",
    "sluice-tests/kube_harness",
    "sluice-tests/network_changes",
    "sluice-tests/network_demo",
    "sluice-tests/network_failover",
    "sluice-tests/network_failover_alone",
    "sluice-tests/network_forwarding",
    "sluice-tests/network_harness",
    "sluice-tests/network_health",
    "sluice-tests/network_input",
    "sluice-tests/network_random",
    "sluice-tests/network_restart",
    "sluice-tests/network_wire",
    "sluice-tests/packet_pools",
    "sluice-tests/packet_tables",
    "sluice-tests/races",
];

/// The longest target. It mostly waits, and no other may load BPF programs meanwhile: it compares those of the whole machine.
const LONGEST: &str = "sluice-e2e/kubernetes";

/// Those that measure no time and leave a processor to others, as an emulated kernel does not. They may load programs, so they
/// follow [`LONGEST`] while the others beside it go on.
const CALM: [&str; 5] = [
    "sluice-agent/agent",
    "sluice-tests/differential",
    "sluice-tests/kube_harness",
    "sluice-tests/packet_pools",
    "sluice-tests/packet_tables",
];

/// One that keeps a processor busy for minutes, with an emulated kernel.
const EMULATED: &str = "sluice-tests/kernels";

/// One beside it, which mostly waits, and for whatever it waits for as long as a busy machine needs.
const PATIENT: &str = "sluice-tests/network_health";

/// Whether a target runs beside [`LONGEST`]: those before an API server alone, which load no programs and measure no time.
fn runs_beside(path: &str) -> bool {
    name(path).starts_with("api_") || name(path).starts_with("chart")
}

/// Arguments of `cargo test` that choose every test which needs nothing but cargo.
pub(crate) fn unit() -> Result<Vec<String>> {
    check(&targets()?, &UNIT, &EQUIPPED)?;
    let mut arguments = words(&["--lib", "--bins"]);
    arguments.extend(chosen(&UNIT));
    Ok(arguments)
}

/// Arguments of `cargo test` for the runs that make up all tests.
pub(crate) struct Runs {
    /// Pairs of lanes, one pair after the other. The lanes of a pair go side by side, each of runs one after the other: [`LONGEST`], what
    /// needs nothing but cargo and [`CALM`], and those that run beside; then [`EMULATED`] and [`PATIENT`].
    pub(crate) pairs: [[Vec<Vec<String>>; 2]; 2],
    /// The others follow, one after the other.
    pub(crate) then: [Vec<String>; 2],
}

/// All tests.
pub(crate) fn all() -> Result<Runs> {
    let longest = chosen(&[LONGEST]);
    let lanes = [
        vec![longest, unit()?, chosen(&CALM)],
        vec![equipped(runs_beside)],
    ];
    let emulated = [vec![chosen(&[EMULATED])], vec![chosen(&[PATIENT])]];
    let alone = equipped(|path| {
        let is_paired = [LONGEST, EMULATED, PATIENT].contains(&path) || CALM.contains(&path);
        !is_paired && !runs_beside(path)
    });
    Ok(Runs {
        pairs: [lanes, emulated],
        then: [alone, words(&["--doc"])],
    })
}

/// Arguments that choose some of the targets that need more than cargo.
fn equipped(is_meant: impl Fn(&str) -> bool) -> Vec<String> {
    let meant = EQUIPPED.iter().copied().filter(|path| is_meant(path));
    chosen(&meant.collect::<Vec<_>>())
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// Arguments that choose these targets.
fn chosen(paths: &[&str]) -> Vec<String> {
    let names: BTreeSet<&str> = paths.iter().map(|path| name(path)).collect();
    let arguments = names.into_iter().flat_map(|name| ["--test", name]);
    arguments.map(str::to_owned).collect()
}

/// Every test target of the workspace.
fn targets() -> Result<BTreeSet<String>> {
    let mut metadata = command::cargo(["metadata", "--no-deps", "--format-version=1"]);
    let text = command::output(&mut metadata)
        .with_context(|| format!("{} failed", command::show(&metadata)))?;
    let metadata: Value = serde_json::from_str(&text).context("cargo's metadata is not JSON")?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut targets = BTreeSet::new();
    for package in list(&metadata["packages"]) {
        let name = package["name"].as_str().unwrap_or_default();
        for target in list(&package["targets"]) {
            if list(&target["kind"]).contains(&Value::from("test")) {
                let target = target["name"].as_str().unwrap_or_default();
                targets.insert(format!("{name}/{target}"));
            }
        }
    }
    Ok(targets)
}

/// Whether the lists have each target once and nothing else. `cargo test` takes a target's name for all packages, so a
/// name must not stand in both lists either.
fn check(targets: &BTreeSet<String>, unit: &[&str], equipped: &[&str]) -> Result<()> {
    let listed: BTreeSet<&str> = unit.iter().chain(equipped).copied().collect();
    let found: BTreeSet<&str> = targets.iter().map(String::as_str).collect();
    if let Some(target) = found.difference(&listed).next() {
        bail!("test target {target} is in no list of xtask/src/suites.rs: add it to one");
    }
    if let Some(target) = listed.difference(&found).next() {
        bail!("xtask/src/suites.rs lists {target}, which is no test target: remove it");
    }
    let names: BTreeSet<&str> = equipped.iter().map(|path| name(path)).collect();
    if let Some(target) = unit.iter().find(|path| names.contains(name(path))) {
        bail!("a test target that needs more has the name of {target}: rename one of them");
    }
    Ok(())
}

/// The target's name without that of its package.
fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(targets: &[&str], unit: &[&str], equipped: &[&str]) -> String {
        let targets = targets.iter().map(|&target| target.to_owned()).collect();
        match check(&targets, unit, equipped) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn every_test_target_of_this_workspace_is_listed_once() {
        check(&targets().unwrap(), &UNIT, &EQUIPPED).unwrap();
    }

    #[test]
    fn a_target_in_no_list_is_named() {
        assert_eq!(refused(&["a/x", "b/y"], &["a/x"], &["b/y"]), "");
        assert!(refused(&["a/x", "b/y"], &["a/x"], &[]).contains("b/y is in no list"));
    }

    #[test]
    fn an_entry_without_target_is_named() {
        assert!(refused(&["a/x"], &["a/x"], &["b/y"]).contains("lists b/y"));
    }

    #[test]
    fn a_name_in_both_lists_is_refused() {
        assert!(refused(&["a/x", "b/x"], &["a/x"], &["b/x"]).contains("rename"));
        assert!(refused(&["a/x"], &["a/x"], &["a/x"]).contains("rename"));
    }
}
