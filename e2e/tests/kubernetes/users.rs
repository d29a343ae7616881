//! The permissions of people who have Kubernetes' own roles `view` and `edit`, or the chart's `sluice-edit` besides.

use std::fs;

use anyhow::{Context, Result, ensure};
use sluice_e2e::stage::{CHANGE_TIMEOUT, Sluice, plugin};
use sluice_tests::kube::Account;
use sluice_tests::net::until;

/// Where an editor puts what the quick start puts into the shop, at another address.
const TEAM: &str = "team";

/// In a namespace of its own, which is gone afterwards.
pub(crate) fn people(sluice: &mut Sluice) -> Result<()> {
    sluice.kubectl(&format!("create namespace {TEAM}"))?;
    let in_team = format!("--namespace {TEAM}");
    let binding = format!("rolebinding {in_team}");
    let editor = person(sluice, "editor", &binding, &["edit", "sluice-edit"])?;
    let viewer = person(sluice, "viewer", &binding, &["view"])?;
    let everywhere = person(sluice, "everywhere", "clusterrolebinding", &["edit"])?;

    editor.apply(&example("web")?)?;
    let limit = format!("--timeout={}s", CHANGE_TIMEOUT.as_secs());
    for words in [
        format!("rollout status {in_team} deployment/web-v1 deployment/web-v2 {limit}"),
        format!("wait {in_team} --for=condition=Ready virtualserver/web {limit}"),
    ] {
        editor.kubectl(words.split(' '))?;
    }
    editor.apply(&example("rollout")?)?;
    let policy = ["get", "--namespace", TEAM, "rolloutpolicy/web"];
    let admin = sluice.cluster.admin();
    admin.until(&policy, CHANGE_TIMEOUT, |policy| {
        policy["status"]["phase"] == "Gated"
    })?;
    reads(&viewer, &everywhere)?;
    plugin(&editor, &format!("{in_team} rollout promote web"))?;
    let owned = "virtualservers,realserverpools,rolloutpolicies";
    editor.kubectl(format!("label {in_team} {owned} --all seen=yes").split(' '))?;

    owned_by_others(&editor, &everywhere)?;
    editor.kubectl(format!("delete {in_team} {owned} --all").split(' '))?;
    sluice.kubectl(&format!("delete namespace {TEAM}"))?;
    sluice.kubectl("delete clusterrolebinding everywhere-edit")?;
    Ok(())
}

/// A ServiceAccount with these roles, once they count.
fn person(sluice: &Sluice, name: &str, binding: &str, roles: &[&str]) -> Result<Account> {
    sluice.kubectl(&format!("create serviceaccount {name} --namespace {TEAM}"))?;
    for role in roles {
        sluice.kubectl(&format!(
            "create {binding} {name}-{role} --clusterrole={role} --serviceaccount={TEAM}:{name}"
        ))?;
    }
    let account = sluice.cluster.control().service_account(TEAM, name)?;
    let verb = if roles.contains(&"sluice-edit") {
        "patch"
    } else {
        "get"
    };
    let question = format!("auth can-i {verb} rolloutpolicies --namespace {TEAM}");
    until("the roles to count", CHANGE_TIMEOUT, || {
        account.kubectl(question.split(' ')).is_ok()
    })?;
    Ok(account)
}

/// A manifest of `examples/kubernetes` for the team, with one pod of each version.
fn example(name: &str) -> Result<String> {
    let path = Sluice::example(name)?;
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let documents = text.split("\n---\n");
    let wanted: Vec<&str> = documents
        .filter(|document| !document.contains("kind: Namespace"))
        .collect();
    Ok(wanted
        .join("\n---\n")
        .replace("namespace: shop", &format!("namespace: {TEAM}"))
        .replace("replicas: 3", "replicas: 1")
        .replace("PeriodSeconds: 20", "PeriodSeconds: 6")
        .replace("203.0.113.10", "203.0.113.30")
        .replace("2001:db8:cafe::10", "2001:db8:cafe::30"))
}

/// Whoever has a role in one namespace sees no nodes and is told so.
fn reads(viewer: &Account, everywhere: &Account) -> Result<()> {
    let status = format!("--namespace {TEAM} status web 2>&1");
    let hidden = "note: nodes are not shown: not allowed to list loadbalancernodes.sluice.dev";
    let seen = plugin(viewer, &status)?;
    println!("{seen}");
    ensure!(
        seen.contains("VirtualServer team/web")
            && seen.contains("web-v1-")
            && seen.contains(hidden)
            && seen.matches("note:").count() == 1,
        "{seen}"
    );
    let seen = plugin(everywhere, &status)?;
    ensure!(seen.contains("\nn1 ") && !seen.contains("note:"), "{seen}");
    let vips = format!("--namespace {TEAM} vips 2>&1");
    for account in [viewer, everywhere] {
        let seen = plugin(account, &vips)?;
        println!("{seen}");
        ensure!(
            seen.contains("203.0.113.30") && seen.contains("team/web"),
            "{seen}"
        );
    }
    plugin(viewer, &format!("--namespace {TEAM} rollout get web"))?;
    let promoted = plugin(viewer, &format!("--namespace {TEAM} rollout promote web"));
    let error = promoted.err().context("a viewer promoted")?.to_string();
    println!("{error}");
    ensure!(
        error.contains("not allowed to patch rolloutpolicies.sluice.dev"),
        "{error}"
    );
    let delete = format!("delete --namespace {TEAM} virtualserver web");
    refused(viewer, &delete, "", "delete", "virtualservers")
}

/// Statuses are the daemons', nodes those of whoever administers the cluster.
fn owned_by_others(editor: &Account, everywhere: &Account) -> Result<()> {
    for (kind, name) in [
        ("VirtualServer", "web"),
        ("RealServerPool", "web-v1"),
        ("RolloutPolicy", "web"),
    ] {
        let object = format!(
            "{{apiVersion: sluice.dev/v1alpha1, kind: {kind}, metadata: {{name: {name}, namespace: {TEAM}}}, status: {{}}}}"
        );
        let words = "apply --server-side --subresource=status -f -";
        refused(editor, words, &object, "patch", "/status")?;
    }
    // Kubernetes' own role for editors reads only.
    let web = format!("delete --namespace {TEAM} virtualserver web");
    refused(everywhere, &web, "", "delete", "virtualservers")?;
    let node = "{apiVersion: sluice.dev/v1alpha1, kind: LoadBalancerNode, metadata: {name: other}, spec: {}}";
    let nodes = "loadbalancernodes";
    refused(everywhere, "create -f -", node, "create", nodes)?;
    refused(everywhere, "delete lbnode n1", "", "delete", nodes)?;
    let patch = "patch lbnode n1 --type=merge --patch={\"spec\":{}}";
    refused(everywhere, patch, "", "patch", nodes)
}

/// Fails unless the API server forbids just this; `resource` is the end of its name. A command that it takes changes nothing.
fn refused(account: &Account, words: &str, input: &str, verb: &str, resource: &str) -> Result<()> {
    let words = format!("{words} --dry-run=server");
    let answer = account.kubectl_with(words.split(' '), input);
    let error = answer.err().with_context(|| format!("taken: {words}"))?;
    let told = error.to_string();
    let verb_told = told.contains(&format!("cannot {verb} resource"));
    ensure!(
        verb_told && told.contains(&format!("{resource}\"")),
        "{words}: {told}"
    );
    Ok(())
}
