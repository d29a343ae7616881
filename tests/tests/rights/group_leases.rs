//! What an agent may and may not do to the Leases of VIP groups.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::kube::chart::RELEASE_NAMESPACE;
use sluice_tests::kube::{Account, CHANGE_TIMEOUT};
use sluice_tests::net::fabric::DIRECTORS;

use crate::Rights;

const LEASE: &str = "sluice-vip-every-address-0";
/// A Lease that is called like that of a group, and is somebody else's.
const FOREIGN: &str = "sluice-vip-foreign";
const NAMESPACE: [&str; 2] = ["--namespace", RELEASE_NAMESPACE];

/// An edit of a Lease.
type Edit = fn(&mut Value);

fn get(account: &Account, name: &str) -> Result<Value> {
    account.json([&["get", "lease", name][..], &NAMESPACE].concat())
}

/// Updates a Lease in the version that it reads.
fn update(account: &Account, name: &str, edit: impl FnOnce(&mut Value)) -> Result<()> {
    let mut lease = get(account, name)?;
    edit(&mut lease);
    let patch = json!([{"op": "replace", "path": "", "value": lease}]).to_string();
    let arguments = ["patch", "lease", name, "--type=json", "--patch", &patch];
    account.kubectl([&arguments[..], &NAMESPACE].concat())?;
    Ok(())
}

fn holder(name: Option<&str>) -> impl FnOnce(&mut Value) {
    let name = name.map(str::to_owned);
    move |lease| {
        lease["spec"]["holderIdentity"] = json!(name);
        lease["spec"]["renewTime"] = json!("2026-03-01T10:00:00.000000Z");
    }
}

fn expect_refusal(answer: Result<()>, what: &str, words: &str) -> Result<()> {
    let refusal = answer.err().with_context(|| format!("{what}: was taken"))?;
    let refusal = format!("{refusal:#}");
    ensure!(refusal.contains(words), "{what}: {refusal}");
    println!("{what}: {}", refusal.lines().last().unwrap_or_default());
    Ok(())
}

fn agents(stage: &Rights) -> Result<[Account; 2]> {
    let control = stage.sluice.control_plane()?;
    let [one, two] = [DIRECTORS[0], DIRECTORS[1]].map(|node| control.agent_account(node));
    Ok([one?, two?])
}

pub(crate) fn passed_on(stage: &mut Rights) -> Result<()> {
    let admin = stage.admin()?;
    let groups = ["--selector", "sluice.dev/vip-group"];
    let question = [&["get", "leases"][..], &NAMESPACE, &groups].concat();
    admin.until(&question, CHANGE_TIMEOUT, |list| {
        list["items"]
            .as_array()
            .is_some_and(|items| items.len() == 4)
    })?;
    let made = get(admin, LEASE)?;
    let spec = json!({"leaseDurationSeconds": 4});
    ensure!(made["spec"] == spec, "{made:#}");
    let labels = json!({"sluice.dev/vip-group": "every-address-0"});
    ensure!(made["metadata"]["labels"] == labels, "{made:#}");

    let [one, two] = agents(stage)?;
    let [first, second] = [DIRECTORS[0], DIRECTORS[1]];
    update(&one, LEASE, |lease| {
        holder(Some(first))(lease);
        lease["spec"]["acquireTime"] = json!("2026-03-01T10:00:00.000000Z");
        lease["spec"]["leaseTransitions"] = json!(1);
    })
    .context("takes what nobody has")?;
    let renewed = json!({"spec": {"renewTime": "2026-03-01T10:00:01.000000Z"}}).to_string();
    let patch = ["patch", "lease", LEASE, "--type=merge", "--patch", &renewed];
    one.kubectl([&patch[..], &NAMESPACE].concat())
        .context("renews")?;
    update(&two, LEASE, holder(Some(second))).context("takes from another")?;
    update(&two, LEASE, holder(Some(first))).context("hands over")?;
    update(&one, LEASE, holder(None)).context("releases")?;
    update(&two, LEASE, holder(Some(second))).context("takes what was released")?;
    let object = get(admin, LEASE)?;
    ensure!(object["spec"]["holderIdentity"] == second, "{object:#}");
    Ok(())
}

/// The second director holds the group.
pub(crate) fn refused(stage: &mut Rights) -> Result<()> {
    let [one, two] = agents(stage)?;
    let admin = stage.admin()?;
    let before = get(admin, LEASE)?;
    for (what, name) in [
        ("renews for another", Some(DIRECTORS[1])),
        ("gives to a third", Some("elsewhere")),
        ("releases for another", None),
    ] {
        let answer = update(&one, LEASE, holder(name));
        expect_refusal(answer, what, "only its holder may give it")?;
    }
    let edits: [(&str, Edit, &str); 6] = [
        (
            "another duration",
            |lease| lease["spec"]["leaseDurationSeconds"] = json!(4_000),
            "may change only holderIdentity",
        ),
        (
            "no duration",
            |lease| {
                let spec = lease["spec"].as_object_mut();
                spec.and_then(|spec| spec.remove("leaseDurationSeconds"));
            },
            "may change only holderIdentity",
        ),
        (
            "another label",
            |lease| lease["metadata"]["labels"]["sluice.dev/vip-group"] = json!("every-address-1"),
            "may not change the metadata",
        ),
        (
            "no label",
            |lease| lease["metadata"]["labels"] = json!({}),
            "may not change the metadata",
        ),
        (
            "an annotation",
            |lease| lease["metadata"]["annotations"] = json!({"a": "b"}),
            "may not change the metadata",
        ),
        (
            "a finalizer",
            |lease| lease["metadata"]["finalizers"] = json!(["example.com/stays"]),
            "may not change the metadata",
        ),
    ];
    for (what, edit, words) in edits {
        let answer = update(&two, LEASE, |lease| {
            holder(Some(DIRECTORS[1]))(lease);
            edit(lease);
        });
        expect_refusal(answer, what, words)?;
    }
    refused_others(stage, &two)?;
    let after = get(admin, LEASE)?;
    ensure!(after == before, "{after:#}");
    Ok(())
}

/// Leases that are no group's, and what an agent may do to none.
fn refused_others(stage: &Rights, two: &Account) -> Result<()> {
    let admin = stage.admin()?;
    let mut own = get(admin, LEASE)?;
    own["metadata"] = json!({
        "name": FOREIGN, "namespace": RELEASE_NAMESPACE,
        "labels": {"sluice.dev/vip-group": "foreign"},
    });
    let create = |account: &Account, lease: &Value| {
        let answer = account.kubectl_with(["create", "-f", "-"], &lease.to_string());
        answer.map(drop)
    };
    let words = format!("may write sluice-node-{}", DIRECTORS[1]);
    expect_refusal(create(two, &own), "makes one", &words)?;
    own["metadata"]["labels"] = json!({});
    create(admin, &own)?;
    let answer = update(two, FOREIGN, holder(Some(DIRECTORS[1])));
    expect_refusal(answer, "takes somebody else's Lease", &words)?;
    let delete = [&["delete", "lease", LEASE][..], &NAMESPACE].concat();
    expect_refusal(two.kubectl(delete).map(drop), "deletes one", "forbidden")?;
    let delete = [&["delete", "lease", FOREIGN][..], &NAMESPACE].concat();
    admin.kubectl(delete)?;
    Ok(())
}

/// What agents watch.
pub(crate) fn read(stage: &mut Rights) -> Result<()> {
    let [agent, _] = agents(stage)?;
    let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{RELEASE_NAMESPACE}/leases");
    for resource in [leases.as_str(), "/apis/sluice.dev/v1alpha1/addresspools"] {
        let list: Value = serde_json::from_str(&agent.kubectl(["get", "--raw", resource])?)?;
        let names = list["items"].as_array().into_iter().flatten();
        let mut names = names.filter_map(|item| item["metadata"]["name"].as_str());
        ensure!(names.any(|name| name.contains("every-address")), "{list:#}");
        let watch = format!("{resource}?watch=true&timeoutSeconds=1");
        agent.kubectl(["get", "--raw", &watch])?;
    }
    Ok(())
}
