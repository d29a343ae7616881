//! Where manifests go and where statuses come from: a directory, or the API of a real Kubernetes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sluice_api::{GROUP, Kind, VERSION, schema};

use crate::kube::{ControlPlane, Kubeconfig, Part, chart};
use crate::net::fabric::Fabric;

/// Audience of the tokens by which the operator knows agents, as the chart has it.
const AUDIENCE: &str = "sluice-operator";

/// Namespace of the objects.
const NAMESPACE: &str = "default";

/// Who the daemons are for the API server.
#[derive(Debug)]
pub(super) struct Accounts {
    /// Where the Leases of agents are.
    namespace: &'static str,
    operator: Kubeconfig,
    /// By node; the operator's for all others.
    agents: BTreeMap<String, Kubeconfig>,
    /// Where the operator takes signals, and the files of tokens by which it knows the agents.
    stream: Option<(IpAddr, BTreeMap<String, PathBuf>)>,
}

/// The place that manifests are written to.
#[derive(Debug)]
pub(super) enum Source {
    /// Standalone mode.
    Directory(PathBuf),
    /// Kubernetes: etcd and API server, no nodes.
    Cluster {
        control: Box<ControlPlane>,
        accounts: Accounts,
        /// Manifests by name, for their removal.
        applied: RefCell<BTreeMap<String, String>>,
    },
}

#[derive(Deserialize)]
struct StatusFile<T> {
    status: T,
}

impl Source {
    pub(super) fn directory(fabric: &Fabric) -> Result<Self> {
        let directory = fabric.run().directory().join("manifests");
        fs::create_dir(&directory)?;
        Ok(Self::Directory(directory))
    }

    /// Starts an API server on the fabric's segment, gives it Sluice's definitions, and lets everybody have every address.
    pub(super) fn cluster(fabric: &Fabric) -> Result<Self> {
        let (namespace, address) = fabric.connect_control()?;
        let control = ControlPlane::start(fabric.run(), &namespace, address, &Part::API)?;
        control.admin().define_kinds()?;
        control.admin().allow_every_address()?;
        let accounts = Accounts {
            namespace: NAMESPACE,
            operator: control.admin().kubeconfig().clone(),
            agents: BTreeMap::new(),
            stream: None,
        };
        Ok(Self::Cluster {
            control: Box::new(control),
            accounts,
            applied: RefCell::default(),
        })
    }

    /// Starts an API server on the fabric's segment with the definitions, accounts and roles of the chart, and nothing else of
    /// it. Daemons have these accounts, as their pods would.
    pub(super) fn chart(fabric: &Fabric, nodes: &[&str]) -> Result<Self> {
        let (namespace, address) = fabric.connect_control()?;
        let control = ControlPlane::start(fabric.run(), &namespace, address, &Part::API)?;
        control.install_rights()?;
        let (mut agents, mut tokens) = (BTreeMap::new(), BTreeMap::new());
        for node in nodes {
            let account = control.agent_account(node)?;
            agents.insert((*node).to_owned(), account.kubeconfig().clone());
            let file = fabric.run().directory().join(format!("{node}.token"));
            fs::write(&file, control.agent_token(node, Some(AUDIENCE))?)?;
            tokens.insert((*node).to_owned(), file);
        }
        let operator = control.service_account(chart::RELEASE_NAMESPACE, "sluice-operator")?;
        let accounts = Accounts {
            namespace: chart::RELEASE_NAMESPACE,
            operator: operator.kubeconfig().clone(),
            agents,
            stream: Some((address.v4.into(), tokens)),
        };
        Ok(Self::Cluster {
            control: Box::new(control),
            accounts,
            applied: RefCell::default(),
        })
    }

    /// The control plane, to do something to it.
    pub(super) fn control_mut(&mut self) -> Option<&mut ControlPlane> {
        match self {
            Self::Directory(_) => None,
            Self::Cluster { control, .. } => Some(control),
        }
    }

    /// The control plane, if there is one.
    pub(super) fn control(&self) -> Option<&ControlPlane> {
        match self {
            Self::Directory(_) => None,
            Self::Cluster { control, .. } => Some(control),
        }
    }

    /// Gives the manifest called `file`, as a whole and at once.
    pub(super) fn apply(&self, file: &str, text: &str) -> Result<()> {
        match self {
            Self::Directory(directory) => {
                let hidden = directory.join(format!(".{file}.new"));
                fs::write(&hidden, text)?;
                fs::rename(&hidden, directory.join(format!("{file}.yaml")))?;
            }
            Self::Cluster {
                control, applied, ..
            } => {
                control.admin().apply(text)?;
                applied
                    .borrow_mut()
                    .insert(file.to_owned(), text.to_owned());
            }
        }
        Ok(())
    }

    /// Takes a manifest away.
    pub(super) fn remove(&self, file: &str) -> Result<()> {
        match self {
            Self::Directory(directory) => fs::remove_file(directory.join(format!("{file}.yaml")))?,
            Self::Cluster {
                control, applied, ..
            } => {
                let text = applied.borrow_mut().remove(file);
                let text = text.with_context(|| format!("{file} was never applied"))?;
                let admin = control.admin();
                admin.kubectl_with(["delete", "--wait", "-f", "-"], &text)?;
            }
        }
        Ok(())
    }

    /// An object's status; `None` if there is none.
    pub(super) fn status<T: DeserializeOwned>(&self, kind: Kind, name: &str) -> Option<T> {
        match self {
            Self::Directory(directory) => {
                let mut path = directory.join(".status").join(kind.name());
                if kind.namespaced() {
                    path.push(NAMESPACE);
                }
                path.push(format!("{name}.yaml"));
                let text = fs::read_to_string(path).ok()?;
                let file: StatusFile<T> = serde_saphyr::from_str(&text).ok()?;
                Some(file.status)
            }
            Self::Cluster { control, .. } => {
                let status = read_status(control, kind, name).ok()??;
                serde_json::from_value(status).ok()
            }
        }
    }

    /// Tells the operator, or the agent of a node, where manifests are.
    pub(super) fn tell(&self, command: &mut Command, node: Option<&str>) {
        match self {
            Self::Directory(directory) => command.arg("--dir").arg(directory),
            Self::Cluster { accounts, .. } => {
                if let Some((host, tokens)) = &accounts.stream {
                    match node {
                        None => command.env("SLUICE_STREAM_HOST", host.to_string()),
                        Some(node) => {
                            let token = tokens.get(node);
                            command.envs(token.map(|token| ("SLUICE_OPERATOR_TOKEN", token)))
                        }
                    };
                }
                let agent = node.and_then(|node| accounts.agents.get(node));
                let kubeconfig = agent.unwrap_or(&accounts.operator);
                command
                    .arg("--kubeconfig")
                    .arg(kubeconfig.path())
                    .args(["--namespace", accounts.namespace])
            }
        };
    }

    /// The directory of standalone mode.
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Self::Directory(directory) => Some(directory),
            Self::Cluster { .. } => None,
        }
    }
}

fn read_status(control: &ControlPlane, kind: Kind, name: &str) -> Result<Option<Value>> {
    let names = schema::definition(kind).spec.names;
    let kind_of_api = GroupVersionKind::gvk(GROUP, VERSION, kind.name());
    let resource = ApiResource::from_gvk_with_plural(&kind_of_api, &names.plural);
    let name = name.to_owned();
    control.admin().with_client(async move |client| {
        let api: Api<DynamicObject> = if kind.namespaced() {
            Api::namespaced_with(client, NAMESPACE, &resource)
        } else {
            Api::all_with(client, &resource)
        };
        let object = api.get_opt(&name).await?;
        Ok(object.and_then(|object| object.data.get("status").cloned()))
    })
}
