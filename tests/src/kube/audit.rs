//! Sluice's requests to the API server, compared with the permissions that the chart grants.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::chart::{self, RELEASE_NAMESPACE};
use super::control::ControlPlane;
use super::rights::rights;

/// A verb and a resource with its group, such as `patch virtualservers/status.sluice.dev`.
pub type Permissions = BTreeSet<String>;

/// By ServiceAccount.
pub type ByAccount = BTreeMap<String, Permissions>;

/// The permissions that each ServiceAccount of the release used. Fails if the API server forbade a request that the chart
/// does not grant; one that it grants is refused for a moment while its roles come or go.
pub fn asked(control: &ControlPlane) -> Result<ByAccount> {
    asked_except(control, |_| false)
}

/// The same where a test has provoked refusals: those whose audit event `is_wanted` says so do not count.
pub fn asked_except(
    control: &ControlPlane,
    is_wanted: impl Fn(&Value) -> bool,
) -> Result<ByAccount> {
    let allowed = allowed()?;
    let mut asked = ByAccount::new();
    for event in control.audit_events()? {
        let user = event["user"]["username"].as_str().unwrap_or_default();
        let prefix = format!("system:serviceaccount:{RELEASE_NAMESPACE}:");
        let (Some(account), true) = (user.strip_prefix(&prefix), event["objectRef"].is_object())
        else {
            continue;
        };
        let object = &event["objectRef"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut resource = text(&object["resource"]);
        if object["subresource"].is_string() {
            resource = format!("{resource}/{}", text(&object["subresource"]));
        }
        let verb = text(&event["verb"]);
        let permission = permission(&verb, &resource, &text(&object["apiGroup"]));
        if event["responseStatus"]["code"] == 403 {
            let granted = allowed.get(account);
            ensure!(
                granted.is_some_and(|granted| granted.contains(&permission)) || is_wanted(&event),
                "{account} was forbidden to {permission}: {object}"
            );
            continue;
        }
        asked
            .entry(account.to_owned())
            .or_default()
            .insert(permission);
    }
    Ok(asked)
}

/// The permissions that the chart's roles grant, by ServiceAccount.
pub fn allowed() -> Result<ByAccount> {
    let objects = rights()?;
    let mut allowed = ByAccount::new();
    for binding in &objects {
        let kind = binding["kind"].as_str().unwrap_or_default();
        if !matches!(kind, "RoleBinding" | "ClusterRoleBinding") {
            continue;
        }
        let role = &binding["roleRef"];
        let role = chart::object(&objects, as_text(&role["kind"])?, as_text(&role["name"])?)?;
        for subject in list(&binding["subjects"]) {
            let account = as_text(&subject["name"])?.to_owned();
            let permissions = allowed.entry(account).or_default();
            for rule in list(&role["rules"]) {
                for (group, resource, verb) in combinations(rule) {
                    permissions.insert(permission(verb, resource, group));
                }
            }
        }
    }
    Ok(allowed)
}

/// Fails unless every account of the chart asked for everything that it is allowed, and for nothing else. Creating by
/// server-side apply needs the verb `create` too, but is noted as a patch.
pub fn expect_neither_more_nor_less(asked: &ByAccount) -> Result<()> {
    for (account, allowed) in allowed()? {
        let used = asked.get(&account).cloned().unwrap_or_default();
        let missing: BTreeSet<_> = used.difference(&allowed).collect();
        let unused: BTreeSet<_> = allowed
            .difference(&used)
            .filter(|permission| {
                let patched = permission.replacen("create ", "patch ", 1);
                !(permission.starts_with("create ") && used.contains(&patched))
            })
            .collect();
        ensure!(
            missing.is_empty() && unused.is_empty(),
            "{account}: not granted {missing:?}, not used {unused:?}"
        );
        ensure!(!used.is_empty(), "{account} asked for nothing");
        println!("{account}: {used:?}");
    }
    Ok(())
}

fn combinations(rule: &Value) -> impl Iterator<Item = (&str, &str, &str)> {
    let texts = |field: &'static str| list(&rule[field]).filter_map(Value::as_str);
    texts("apiGroups").flat_map(move |group| {
        texts("resources")
            .flat_map(move |resource| texts("verbs").map(move |verb| (group, resource, verb)))
    })
}

fn permission(verb: &str, resource: &str, group: &str) -> String {
    if group.is_empty() {
        format!("{verb} {resource}")
    } else {
        format!("{verb} {resource}.{group}")
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn as_text(value: &Value) -> Result<&str> {
    value.as_str().context("a text")
}
