//! The Helm chart, as helm renders it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::account::finish;
use super::programs::program;

/// Values without which the chart refuses to be installed.
pub const REQUIRED_VALUES: [&str; 2] = ["--set", "image.repository=localhost/sluice"];

/// The namespace of [`render`]'s release.
pub const RELEASE_NAMESPACE: &str = "sluice-system";

/// The directory of the chart.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/sluice")
}

/// The objects that `helm template` renders from the chart for a release `sluice` with these arguments, hooks included.
///
/// The error is helm's complaint.
pub fn render(arguments: &[&str]) -> Result<Vec<Value>> {
    let namespace = ["--namespace", RELEASE_NAMESPACE];
    let mut command = offline("template")?;
    command.arg("sluice").arg(directory()).args(namespace);
    let text = finish(command.args(arguments), "")?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).context("helm's YAML")?;
    Ok(documents
        .into_iter()
        .filter(|document| !document.is_null())
        .collect())
}

/// Runs a verb of helm that needs no cluster, and returns what it wrote.
pub fn helm(verb: &str, arguments: &[&str]) -> Result<String> {
    finish(offline(verb)?.args(arguments), "")
}

/// helm, kept from whatever cluster the user of this machine has.
fn offline(verb: &str) -> Result<Command> {
    let mut command = Command::new(program("helm")?);
    command
        .arg(verb)
        .env("KUBECONFIG", "/dev/null")
        .env("HELM_NO_PLUGINS", "1");
    Ok(command)
}

/// The only object of this kind and name.
pub fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .with_context(|| format!("the chart has no {kind} {name}"))
}
