//! Who owns which field: the operator nothing but statuses, users all the rest, and nobody's field is taken by force.
//!
//! The agent is played: nothing here looks at packets.

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sluice_tests::kube::{CHANGE_TIMEOUT, Operated, condition};
use sluice_tests::net::manifest::{self, WEB, virtual_server_at};
use sluice_tests::net::suite::Suite;

const ONE: &str = "one";
const VIRTUAL_SERVER: &str = "virtualserver";
const POLICY: &str = "rolloutpolicy";

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.check("the daemons own statuses and nothing else", fields);
    suite.check(
        "two managers of one spec meet as Kubernetes says",
        two_managers,
    );
    suite.check(
        "another manager of a status field is named, not overruled",
        foreign_status,
    );
    suite.check(
        "the same manifests at every stage of a canary change nothing",
        canary,
    );
    suite.main(|| {
        let mut stage = Operated::start()?;
        stage.play_agent("n1", &[IpAddr::from([10, 1, 0, 11])])?;
        stage.start_operator(ONE)?;
        stage.apply(&[pool("v1", "10.0.0.1"), pool("v2", "10.0.0.2")])?;
        Ok(stage)
    })
}

fn server(name: &str, host: u8, weights: [u32; 2]) -> Value {
    let vip = IpAddr::from([203, 0, 113, host]);
    let pools = [("v1", weights[0]), ("v2", weights[1])];
    virtual_server_at(name, "FullNAT", &[vip], &[WEB], &pools)
}

fn pool(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "RealServerPool",
        "metadata": {"name": name, "namespace": "default", "labels": {"team": "shop"}},
        "spec": {"servers": {"static": [{"name": "s", "address": address}]}},
    })
}

fn policy() -> Value {
    let mut policy = manifest::rollout("roll", "canary", "v1", "v2", &[]);
    policy["spec"]["strategy"]["canary"]["steps"] = json!([
        {"weight": 10, "gate": "Manual"},
        {"weight": 50, "gate": "Manual"},
        {"weight": 100, "pauseSeconds": 0},
    ]);
    policy
}

/// An object with its managed fields.
fn with_managers(stage: &Operated, kind: &str, name: &str) -> Result<Value> {
    stage
        .admin()
        .json(["get", kind, name, "--show-managed-fields"])
}

fn fields(stage: &mut Operated) -> Result<()> {
    let mut policy = policy();
    policy["spec"]["virtualServerName"] = json!("owned");
    stage.apply(&[server("owned", 10, [100, 0]), policy])?;
    stage.await_object(POLICY, "roll", |object| {
        object["status"]["phase"] == "Gated"
    })?;
    stage.await_ready(VIRTUAL_SERVER, "owned")?;
    for (kind, name, daemon) in [
        (VIRTUAL_SERVER, "owned", "sluice-operator"),
        ("realserverpool", "v1", "sluice-operator"),
        (POLICY, "roll", "sluice-operator"),
        ("loadbalancernode", "n1", "sluice-agent"),
    ] {
        let object = with_managers(stage, kind, name)?;
        expect_ownership(&object, daemon).with_context(|| format!("{object:#}"))?;
    }
    stage
        .admin()
        .kubectl(["delete", "virtualserver/owned", "rolloutpolicy/roll"])?;
    Ok(())
}

/// The daemon owns all of the status and nothing else, by server-side apply.
fn expect_ownership(object: &Value, daemon: &str) -> Result<()> {
    let entries = object["metadata"]["managedFields"].as_array();
    let mut owns = false;
    for entry in entries.context("no managed fields")? {
        let parts = entry["fieldsV1"].as_object().context("no fields")?;
        let of_status = parts.contains_key("f:status");
        if entry["manager"] == daemon {
            ensure!(
                parts.len() == 1
                    && of_status
                    && entry["operation"] == "Apply"
                    && entry["subresource"] == "status",
                "{daemon} owns {entry}"
            );
            owns = true;
        } else {
            ensure!(!of_status, "{} owns some of the status", entry["manager"]);
        }
    }
    ensure!(owns, "{daemon} owns nothing");
    Ok(())
}

fn apply_as(stage: &Operated, manager: &str, more: &[&str], object: &Value) -> Result<String> {
    let manager = format!("--field-manager={manager}");
    let arguments = [&["apply", "--server-side", "-f", "-", &manager], more].concat();
    stage.admin().kubectl_with(arguments, &object.to_string())
}

fn weights(object: &Value) -> Vec<u64> {
    let pools = object["status"]["decision"]["pools"].as_array();
    let pools = pools.into_iter().flatten();
    pools
        .filter_map(|pool| pool["specWeight"].as_u64())
        .collect()
}

fn two_managers(stage: &mut Operated) -> Result<()> {
    apply_as(stage, "alice", &[], &server("shared", 11, [1, 0]))?;
    stage.await_ready(VIRTUAL_SERVER, "shared")?;
    // Managers that want the same value do not conflict.
    apply_as(stage, "bob", &[], &server("shared", 11, [1, 0]))?;
    let Err(refusal) = apply_as(stage, "bob", &[], &server("shared", 11, [1, 3])) else {
        bail!("bob overruled alice");
    };
    let refusal = format!("{refusal:#}");
    ensure!(
        refusal.contains("conflict with \"alice\"") && refusal.contains("weight"),
        "{refusal}"
    );
    ensure!(!refusal.contains("sluice-operator"), "{refusal}");
    apply_as(
        stage,
        "bob",
        &["--force-conflicts"],
        &server("shared", 11, [1, 3]),
    )?;
    let object = stage.await_ready(VIRTUAL_SERVER, "shared")?;
    ensure!(weights(&object) == [1, 3], "{object:#}");
    // Alice hears of bob alone.
    let Err(refusal) = apply_as(stage, "alice", &[], &server("shared", 11, [1, 0])) else {
        bail!("alice overruled bob");
    };
    let refusal = format!("{refusal:#}");
    ensure!(
        refusal.contains("conflict with \"bob\"") && !refusal.contains("sluice-operator"),
        "{refusal}"
    );
    stage
        .admin()
        .kubectl(["delete", VIRTUAL_SERVER, "shared"])?;
    Ok(())
}

fn foreign_status(stage: &mut Operated) -> Result<()> {
    stage.apply(&[server("taken", 12, [1, 0]), server("other", 13, [1, 0])])?;
    stage.await_ready(VIRTUAL_SERVER, "taken")?;
    stage.await_ready(VIRTUAL_SERVER, "other")?;
    stage.expect_complaint("another field manager has written what only the operator writes");
    let foreign = json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "VirtualServer",
        "metadata": {"name": "taken", "namespace": "default"},
        "status": {"observedGeneration": 999},
    });
    let force = ["--subresource=status", "--force-conflicts"];
    apply_as(stage, "meddler", &force, &foreign)?;
    let arguments = ["get", "events.events.k8s.io"];
    stage.admin().until(&arguments, CHANGE_TIMEOUT, |list| {
        list["items"].as_array().into_iter().flatten().any(|event| {
            let note = event["note"].as_str().unwrap_or_default();
            event["regarding"]["name"] == "taken"
                && event["type"] == "Warning"
                && event["reason"] == "FieldManagerConflict"
                && note.contains("meddler")
                && note.contains(".status.observedGeneration")
                && note.contains("managedFields")
        })
    })?;
    let log = stage.operator(ONE)?.log();
    let told = log.lines().any(|line| {
        line.contains("WARN") && line.contains("meddler") && line.contains("default/taken")
    });
    ensure!(told, "the log does not name the manager and the object");

    // The others go on, and this one is not written.
    stage.apply(&[server("taken", 12, [2, 1]), server("other", 13, [2, 1])])?;
    let other = stage.await_ready(VIRTUAL_SERVER, "other")?;
    ensure!(weights(&other) == [2, 1], "{other:#}");
    let taken = stage.get(VIRTUAL_SERVER, "taken")?;
    ensure!(
        taken["status"]["observedGeneration"] == 999 && weights(&taken) == [1, 0],
        "it was forced: {taken:#}"
    );
    ensure!(
        stage.writes(ONE, "field_manager_conflict")? >= 1.0,
        "it is not counted"
    );

    // As docs/operator.md says.
    let object = with_managers(stage, VIRTUAL_SERVER, "taken")?;
    let entries = object["metadata"]["managedFields"].as_array();
    let mut entries = entries.context("no managed fields")?.iter();
    let index = entries.position(|entry| entry["manager"] == "meddler");
    let entry = format!("/metadata/managedFields/{}", index.context("no meddler")?);
    let patch = json!([{"op": "remove", "path": entry}]).to_string();
    let arguments = [
        "patch",
        VIRTUAL_SERVER,
        "taken",
        "--type=json",
        "--patch",
        &patch,
    ];
    stage.admin().kubectl(arguments)?;
    let taken = stage.await_ready(VIRTUAL_SERVER, "taken")?;
    ensure!(
        weights(&taken) == [2, 1]
            && taken["status"]["observedGeneration"] == taken["metadata"]["generation"],
        "{taken:#}"
    );
    expect_ownership(
        &with_managers(stage, VIRTUAL_SERVER, "taken")?,
        "sluice-operator",
    )?;
    stage
        .admin()
        .kubectl(["delete", "virtualserver/taken", "virtualserver/other"])?;
    Ok(())
}

fn canary(stage: &mut Operated) -> Result<()> {
    let manifests = [
        pool("v1", "10.0.0.1"),
        pool("v2", "10.0.0.2"),
        server("canary", 14, [100, 0]),
    ];
    stage.apply(&manifests)?;
    stage.await_ready(VIRTUAL_SERVER, "canary")?;
    expect_no_change(stage, &manifests)?;
    let manifests = [&manifests[..], &[policy()]].concat();
    stage.apply(&manifests)?;
    // Before the nodes have acknowledged, too.
    stage.agent("n1")?.hold(true);
    for step in 0..3 {
        stage.await_object(POLICY, "roll", |object| {
            object["status"]["step"]["index"] == step
        })?;
        expect_no_change(stage, &manifests)?;
        stage.agent("n1")?.hold(false);
        if step == 2 {
            break;
        }
        let object = stage.await_object(POLICY, "roll", |object| {
            object["status"]["phase"] == "Gated" && object["status"]["step"]["index"] == step
        })?;
        expect_no_change(stage, &manifests)?;
        stage.agent("n1")?.hold(true);
        let run = object["status"]["run"]["id"].to_string();
        let run = run.trim_matches('"');
        let command = format!("sluice.dev/rollout-command=promote/{run}/{step}");
        stage
            .admin()
            .kubectl(["annotate", "--overwrite", POLICY, "roll", &command])?;
    }
    stage.await_object(POLICY, "roll", |object| {
        object["status"]["phase"] == "Completed"
    })?;
    expect_no_change(stage, &manifests)?;
    let object = stage.await_ready(VIRTUAL_SERVER, "canary")?;
    ensure!(
        condition(&object, "Stalled")["status"] == "False",
        "{object:#}"
    );
    Ok(())
}

/// The parts of an object that belong to its user: spec and metadata, as the API server has them now.
fn owned(stage: &Operated, object: &Value) -> Result<Value> {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str);
    let (kind, name) = (text("/kind"), text("/metadata/name"));
    let found = stage.get(kind.context("a kind")?, name.context("a name")?)?;
    let meta = &found["metadata"];
    Ok(json!([
        meta["generation"],
        meta["labels"],
        meta["annotations"],
        meta["ownerReferences"],
        meta["finalizers"],
        found["spec"],
    ]))
}

fn expect_no_change(stage: &Operated, manifests: &[Value]) -> Result<()> {
    let read = || -> Result<Vec<Value>> {
        let objects = manifests.iter();
        objects.map(|object| owned(stage, object)).collect()
    };
    let before = read()?;
    let text = manifest::documents(manifests);
    stage.admin().kubectl_with(["diff", "-f", "-"], &text)?;
    let answer = stage.admin().apply(&text)?;
    ensure!(
        answer.lines().all(|line| line.ends_with("unchanged")),
        "{answer}"
    );
    let after = read()?;
    ensure!(before == after, "{before:#?} became {after:#?}");
    Ok(())
}
