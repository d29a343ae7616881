//! The accounts and roles of the chart on an API server, without anything that runs.

use anyhow::Result;
use serde_json::{Value, json};

use super::account::{Account, has_condition};
use super::chart::{self, RELEASE_NAMESPACE, REQUIRED_VALUES};
use super::control::ControlPlane;
use super::kubeconfig::Credentials;
use super::operated::CHANGE_TIMEOUT;
use super::pools::{every_address, pools_argument};
use crate::net::manifest::documents;

/// Kinds of the chart's objects that [`rights`] returns: accounts and all that grants or limits their rights, and the
/// definitions of the kinds that the rights are about.
const KINDS: [&str; 8] = [
    "CustomResourceDefinition",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];

impl ControlPlane {
    /// Applies the chart's definitions, accounts, roles and admission policy, those of hooks included, as helm renders them.
    pub fn install_rights(&self) -> Result<()> {
        let admin = self.admin();
        admin.kubectl(["create", "namespace", RELEASE_NAMESPACE])?;
        let objects = rights()?;
        let is_definition = |object: &&Value| object["kind"] == KINDS[0];
        let (definitions, others): (Vec<&Value>, Vec<&Value>) =
            objects.iter().partition(is_definition);
        for part in [&definitions, &others] {
            let part: Vec<Value> = part.iter().map(|object| (*object).clone()).collect();
            admin.apply(&documents(&part))?;
        }
        for definition in definitions {
            let name = definition["metadata"]["name"].as_str().unwrap_or_default();
            let arguments = ["get", "crd", name];
            admin.until(&arguments, CHANGE_TIMEOUT, |object| {
                has_condition(object, "Established")
            })?;
        }
        Ok(())
    }

    /// The account of the agent on `node`, whose pod is made for it: its token says on which node it is.
    pub fn agent_account(&self, node: &str) -> Result<Account> {
        let pod = self.make_agent_pod(node)?;
        let credentials = Credentials::Token(self.agent_token(node, None)?);
        self.account(&pod, &credentials)
    }

    /// A token of the agent's pod on `node`, which is there already, for an audience, else for the API server.
    pub fn agent_token(&self, node: &str, audience: Option<&str>) -> Result<String> {
        let bound = format!("--bound-object-name={}", agent_pod(node));
        let audience = audience.map(|audience| format!("--audience={audience}"));
        let arguments = [
            "create",
            "token",
            "sluice-agent",
            "--namespace",
            RELEASE_NAMESPACE,
            "--bound-object-kind=Pod",
            &bound,
        ];
        let arguments = arguments.into_iter().chain(audience.as_deref());
        Ok(self.admin().kubectl(arguments)?.trim().to_owned())
    }

    fn make_agent_pod(&self, node: &str) -> Result<String> {
        let pod = agent_pod(node);
        let objects = [
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}),
            json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": pod, "namespace": RELEASE_NAMESPACE},
                "spec": {
                    "nodeName": node,
                    "serviceAccountName": "sluice-agent",
                    "containers": [{"name": "agent", "image": "localhost/sluice:dev"}],
                },
            }),
        ];
        self.admin().apply(&documents(&objects))?;
        Ok(pod)
    }
}

fn agent_pod(node: &str) -> String {
    format!("sluice-agent-{node}")
}

/// The objects of the chart that [`ControlPlane::install_rights`] applies: where its values name [`every_address`].
pub fn rights() -> Result<Vec<Value>> {
    let pools = pools_argument(&json!([every_address()]));
    let values = [&REQUIRED_VALUES[..], &[&pools]].concat();
    let objects = chart::render(&values)?.into_iter();
    let wanted = objects.filter(|object| KINDS.iter().any(|kind| object["kind"] == *kind));
    Ok(wanted.collect())
}
