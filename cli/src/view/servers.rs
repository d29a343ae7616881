//! The servers of a pool.

use std::net::IpAddr;

use serde::Serialize;
use sluice_api::{DecidedPort, LabelOperator, LabelSelector, PoolDecision, RealServerPool};
use sluice_planner::{Server, Slice, SliceEndpoint, Slices};

use super::PortView;

/// Where a pool's servers come from, by its spec.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct SourceView {
    /// `Static`, `Pods` or `Service`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The Service's name.
    pub service_name: Option<String>,
    /// The selector in the form of `kubectl get -l`.
    pub selector: Option<String>,
}

/// A server.
#[derive(Serialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "camelCase")]
pub struct ServerView {
    /// Name of a static server, else of the pod, else the address.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// The port on it for each of the virtual server's; those whose named port it lacks are absent.
    pub ports: Vec<TargetPortView>,
    /// Share of the pool's new flows, relative to the other servers' weights.
    pub weight: u32,
    /// How it stands.
    pub state: ServerState,
    /// The live nodes whose checks it fails.
    pub down: Vec<DownView>,
}

/// That a server fails the checks of a node.
#[derive(Serialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "camelCase")]
pub struct DownView {
    /// The node.
    pub node: String,
    /// The port that it checks; `None`: it checks by ICMP.
    pub port: Option<u16>,
    /// Why the check failed that decided it.
    pub reason: String,
}

/// A port on a server.
#[derive(Serialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "camelCase")]
pub struct TargetPortView {
    /// Name of the virtual server's port.
    pub name: String,
    /// Number on the server.
    pub port: u16,
}

/// How a server stands, as far as Kubernetes tells. Health checks of the nodes are not in it.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ServerState {
    /// Drained by hand: keeps the flows that it has.
    Drained,
    /// Static: always listed; its weight says whether it takes new flows.
    Static,
    /// Takes new flows.
    Ready,
    /// Keeps the flows that it has.
    NotReady,
    /// Is about to go. Its weight is above 0 while no other server of its family is ready.
    Terminating,
}

pub(super) fn source(pool: &RealServerPool) -> SourceView {
    let servers = &pool.spec.servers;
    SourceView {
        kind: match (&servers.selector, &servers.service_name) {
            (Some(_), _) => "Pods",
            (None, Some(_)) => "Service",
            (None, None) => "Static",
        }
        .to_owned(),
        service_name: servers.service_name.clone(),
        selector: servers.selector.as_ref().map(selector),
    }
}

fn selector(selector: &LabelSelector) -> String {
    let labels = selector
        .match_labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"));
    let expressions = selector.match_expressions.iter().map(|requirement| {
        let key = &requirement.key;
        let values = requirement.values.join(",");
        match requirement.operator {
            LabelOperator::In => format!("{key} in ({values})"),
            LabelOperator::NotIn => format!("{key} notin ({values})"),
            LabelOperator::Exists => key.clone(),
            LabelOperator::DoesNotExist => format!("!{key}"),
        }
    });
    labels.chain(expressions).collect::<Vec<_>>().join(",")
}

/// `None` if EndpointSlices are needed and not known.
pub(super) fn servers(
    namespace: &str,
    decision: Option<&PoolDecision>,
    ports: &[DecidedPort],
    slices: Option<&[Slice]>,
) -> Option<Vec<ServerView>> {
    let Some(decision) = decision else {
        return Some(Vec::new());
    };
    let content = &decision.content;
    let Some(endpoints) = &content.endpoints else {
        let servers = content.servers.iter().map(|server| {
            let is_drained = content.drains(server.address, None);
            let (weight, state) = if is_drained {
                (0, ServerState::Drained)
            } else {
                (server.weight, ServerState::Static)
            };
            ServerView {
                name: server.name.clone(),
                address: server.address,
                ports: ports
                    .iter()
                    .map(|port| TargetPortView {
                        name: port.name.clone(),
                        port: server.target_port(port),
                    })
                    .collect(),
                weight,
                state,
                down: Vec::new(),
            }
        });
        return Some(servers.collect());
    };
    let slices = Slices::new(slices?);
    let endpoints: Vec<&SliceEndpoint> = slices.listed(namespace, endpoints).collect();
    let servers = slices.servers(namespace, content);
    let mut servers = of_slices(servers, &endpoints, ports);
    for endpoint in &endpoints {
        let same = servers
            .iter_mut()
            .filter(|server| server.address == endpoint.address);
        if content.drains(endpoint.address, endpoint.pod_uid.as_deref()) {
            same.for_each(|server| server.state = ServerState::Drained);
        }
    }
    Some(servers)
}

/// The planner says which servers there are and what they take; their conditions say why.
fn of_slices(
    servers: Vec<Server>,
    endpoints: &[&SliceEndpoint],
    ports: &[DecidedPort],
) -> Vec<ServerView> {
    let mut servers: Vec<ServerView> = servers
        .into_iter()
        .map(|server| ServerView {
            ports: ports
                .iter()
                .filter_map(|port| {
                    Some(TargetPortView {
                        name: port.name.clone(),
                        port: server.ports.behind(port)?,
                    })
                })
                .collect(),
            name: server.name,
            address: server.address,
            weight: server.weight,
            state: state(endpoints, server.address),
            down: Vec::new(),
        })
        .collect();
    servers.sort();
    servers
}

/// Says of each server at which nodes it is down.
pub(super) fn mark_down(servers: &mut [ServerView], down: &[(IpAddr, DownView)]) {
    for server in servers {
        let here = down
            .iter()
            .filter(|(address, _)| *address == server.address);
        server.down = here.map(|(_, down)| down.clone()).collect();
    }
}

/// An endpoint may stand in several slices: the best of what they say counts.
fn state(endpoints: &[&SliceEndpoint], address: IpAddr) -> ServerState {
    endpoints
        .iter()
        .filter(|endpoint| endpoint.address == address)
        .map(|endpoint| match (endpoint.ready, endpoint.terminating) {
            (_, true) => ServerState::Terminating,
            (true, false) => ServerState::Ready,
            (false, false) => ServerState::NotReady,
        })
        .min()
        .unwrap_or(ServerState::NotReady)
}

impl ServerView {
    /// Where and why it is down, in a few words.
    pub fn complaint(&self) -> Option<String> {
        let first = self.down.first()?;
        let mut nodes: Vec<&str> = self.down.iter().map(|down| down.node.as_str()).collect();
        nodes.dedup();
        Some(format!("down at {}: {}", nodes.join(", "), first.reason))
    }
}

impl SourceView {
    /// In a few words.
    pub fn text(&self) -> String {
        match (&self.service_name, &self.selector) {
            (Some(name), _) => format!("Service {name}"),
            (None, Some(selector)) => format!("pods {selector}"),
            (None, None) => "static".to_owned(),
        }
    }
}

impl PortView {
    /// Name, number and protocol.
    pub fn text(&self) -> String {
        format!("{} {}/{}", self.name, self.port, self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_read_as_kubectl_takes_them() {
        let parsed: LabelSelector = serde_json::from_value(serde_json::json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["a", "b"]},
                {"key": "old", "operator": "DoesNotExist"},
            ],
        }))
        .unwrap();
        assert_eq!(selector(&parsed), "app=web,tier in (a,b),!old");
    }

    #[test]
    fn a_ready_slice_wins_over_one_that_says_otherwise() {
        let endpoint = |ready, terminating| SliceEndpoint {
            name: "a".to_owned(),
            address: "10.0.0.1".parse().unwrap(),
            pod_uid: None,
            node: None,
            ready,
            serving: true,
            terminating,
        };
        let (ready, not) = (endpoint(true, false), endpoint(false, false));
        let address = ready.address;
        assert_eq!(state(&[&not, &ready], address), ServerState::Ready);
        assert_eq!(state(&[&not], address), ServerState::NotReady);
        assert_eq!(
            state(&[&endpoint(true, true)], address),
            ServerState::Terminating
        );
    }
}
