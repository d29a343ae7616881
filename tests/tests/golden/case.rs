//! A case's input: steps, each of which begins with a header and gives objects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The document that begins a step.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Header {
    /// The step in words, for the reader.
    pub(crate) step: String,
    /// Seconds that pass before it.
    #[serde(default)]
    pub(crate) after: i64,
    /// Objects that go: `Kind/name` or `Kind/namespace/name`.
    #[serde(default)]
    pub(crate) delete: Vec<String>,
    /// Commands by the name of the policy: a verb, to which the policy's run and step are added, or `verb/run/step`.
    #[serde(default)]
    pub(crate) commands: BTreeMap<String, String>,
    /// News of nodes; what is not given stays.
    #[serde(default)]
    pub(crate) nodes: BTreeMap<String, NodeNews>,
    /// Where manifests come from; counts in the first step.
    #[serde(default)]
    pub(crate) source: Source,
}

/// Where manifests come from.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Source {
    /// An API server.
    #[default]
    Kubernetes,
    /// A directory: standalone mode.
    Directory,
}

/// Changes at a node.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NodeNews {
    /// Its own addresses.
    pub(crate) addresses: Option<Vec<IpAddr>>,
    /// The ranges of its pods' addresses, as its Node gives them.
    pub(crate) pod_cidrs: Option<BTreeSet<IpNet>>,
    /// The ways to servers; those that never get one are reached by `link`.
    #[serde(default)]
    pub(crate) ways: BTreeMap<IpAddr, Way>,
    /// How its agent does.
    pub(crate) agent: Option<AgentState>,
    /// Which uplinks its programs are not on, and why; empty: they are on all.
    pub(crate) not_attached: Option<String>,
}

/// The way from a node to a server, as far as the node knows it.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Way {
    /// The server is on a link of the node.
    Link,
    /// Through a router.
    Router,
    /// Behind a bridge or overlay of the node.
    Bridge,
    /// Being resolved.
    Pending,
    /// Being resolved for too long.
    Overdue,
    /// There is no way.
    Unreachable,
}

/// How a node's agent does.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) enum AgentState {
    /// It takes in what was decided at once.
    #[default]
    Live,
    /// It reports, and takes nothing in.
    Behind,
    /// It has reported nothing for too long.
    Silent,
    /// Its first report is waited for.
    Starting,
}

/// An object of a step.
#[derive(Debug)]
pub(crate) enum Document {
    /// One of Sluice's own kinds, as text.
    Manifest(String),
    /// Endpoints of a Service or a pool.
    EndpointSlice(Box<EndpointSlice>),
    /// A Service.
    Service(Box<Service>),
}

/// A step.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) header: Header,
    pub(crate) documents: Vec<Document>,
}

/// Reads a case. `Err` says what is wrong with the file.
pub(crate) fn read(text: &str) -> Result<Vec<Step>, String> {
    let mut steps: Vec<Step> = Vec::new();
    for document in text.split("\n---\n") {
        let value: Value = typed(document)?;
        if value.get("step").is_some() {
            steps.push(Step {
                header: typed(document)?,
                documents: Vec::new(),
            });
            continue;
        }
        let step = steps
            .last_mut()
            .ok_or("the first document has to be a step's header")?;
        step.documents.push(match value["kind"].as_str() {
            Some("EndpointSlice") => Document::EndpointSlice(Box::new(typed(document)?)),
            Some("Service") => Document::Service(Box::new(typed(document)?)),
            _ => Document::Manifest(document.to_owned()),
        });
    }
    Ok(steps)
}

fn typed<T: DeserializeOwned>(document: &str) -> Result<T, String> {
    serde_saphyr::from_str(document).map_err(|error| format!("{error}\n{document}"))
}
