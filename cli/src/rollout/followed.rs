//! The policy, its virtual server and the nodes, as the API server has them now.

use std::sync::Arc;

use futures::future::ready;
use kube::core::DeserializeGuard;
use kube::{Api, Client};
use sluice_api::{LoadBalancerNode, RolloutPolicy, VirtualServer};
use sluice_kube::Kind;
use sluice_kube::error::RequestError;
use sluice_kube::identity::World;
use sluice_kube::store::{Change, Missed, Store};
use sluice_kube::watch::Server;
use sluice_kube::watched::{self, Message, Topic, Watched};
use tokio::sync::mpsc::{Receiver, channel};

use crate::connect::Cluster;

/// Room in the queue of what the watches tell.
const QUEUE: usize = 16;

/// Two objects, and the nodes, that are watched for as long as this lives.
pub(super) struct Followed {
    known: Known,
    queue: Receiver<Message<Known>>,
}

/// Why nothing is heard of them.
pub(super) enum Lost {
    /// The API server does not tell; it is asked again.
    Request(RequestError),
    /// An object that this program cannot read.
    Unreadable(String),
}

/// An object as far as it is known.
pub(super) enum Seen<'a, T> {
    /// Nothing yet.
    NotYet,
    /// There is none, or none any more, also where that happened while the watch was cut.
    Gone,
    /// It is so.
    There(&'a T),
}

impl Followed {
    /// Watches the policy and the virtual server of these names.
    pub(super) fn watch(cluster: &Cluster, policy: &str, virtual_server: &str) -> Self {
        let (sender, queue) = channel(QUEUE);
        for (kind, name) in [
            (Kind::of::<Policies>(), Some(policy)),
            (Kind::of::<VirtualServers>(), Some(virtual_server)),
            (Kind::of::<Nodes>(), None),
        ] {
            let server = Server {
                client: cluster.client.clone(),
                namespace: cluster.namespace.clone(),
                name: name.map(str::to_owned),
                world: World::default(),
                ask: Arc::new(|| Box::pin(ready(Ok(())))),
            };
            tokio::spawn(kind.watch(server, sender.clone()));
        }
        Self {
            known: Known::default(),
            queue,
        }
    }

    /// Waits for news.
    pub(super) async fn next(&mut self) -> Option<Result<(), Lost>> {
        loop {
            let message = self.queue.recv().await?;
            let topic = message.topic;
            message.take(&mut self.known);
            if let Some(lost) = self.known.lost.take() {
                return Some(Err(lost));
            }
            if matches!(topic, Topic::Listed | Topic::Changed) {
                return Some(Ok(()));
            }
        }
    }

    /// The policy.
    pub(super) fn policy(&self) -> Seen<'_, RolloutPolicy> {
        only(&self.known.policies)
    }

    /// The virtual server.
    pub(super) fn virtual_server(&self) -> Seen<'_, VirtualServer> {
        only(&self.known.virtual_servers)
    }
}

impl Followed {
    /// The nodes, once they were listed.
    pub(super) fn nodes(&self) -> Option<Vec<LoadBalancerNode>> {
        let nodes = &self.known.nodes;
        nodes
            .is_complete()
            .then(|| nodes.objects.values().cloned().collect())
    }
}

fn only<T: PartialEq>(store: &Store<T>) -> Seen<'_, T> {
    match store.objects.values().next() {
        Some(object) => Seen::There(object),
        None if store.is_complete() => Seen::Gone,
        None => Seen::NotYet,
    }
}

#[derive(Default)]
struct Known {
    policies: Store<RolloutPolicy>,
    virtual_servers: Store<VirtualServer>,
    nodes: Store<LoadBalancerNode>,
    lost: Option<Lost>,
}

impl watched::Index for Known {
    type Answer = ();

    fn believes(&mut self, (): ()) -> bool {
        true
    }
    fn works(&mut self, _: &'static str) {}
    fn failed(&mut self, kind: &'static str, _: &'static str, error: RequestError) {
        // Nodes are often not to be listed, and the run can be followed without them.
        if kind != Nodes::NAME {
            self.lost = Some(Lost::Request(error));
        }
    }
    fn missed(&mut self, kind: &'static str, object: Missed) {
        if kind == Nodes::NAME {
            return;
        }
        let text = format!("{kind} {} {}", object.key, object.why);
        self.lost = Some(Lost::Unreadable(text));
    }
}

struct Policies;

impl Watched for Policies {
    type Index = Known;
    type Object = DeserializeGuard<RolloutPolicy>;
    type Kept = RolloutPolicy;
    const NAME: &'static str = "RolloutPolicy";

    fn api(client: &Client, namespace: &str) -> Api<Self::Object> {
        Api::namespaced(client.clone(), namespace)
    }
    fn keep(object: Self::Object) -> Result<RolloutPolicy, String> {
        object.0.map_err(|invalid| invalid.error)
    }
    fn store(known: &mut Known) -> &mut Store<RolloutPolicy> {
        &mut known.policies
    }
    fn changed(_: &mut Known, _: Vec<Change<RolloutPolicy>>) {}
}

struct VirtualServers;

impl Watched for VirtualServers {
    type Index = Known;
    type Object = DeserializeGuard<VirtualServer>;
    type Kept = VirtualServer;
    const NAME: &'static str = "VirtualServer";

    fn api(client: &Client, namespace: &str) -> Api<Self::Object> {
        Api::namespaced(client.clone(), namespace)
    }
    fn keep(object: Self::Object) -> Result<VirtualServer, String> {
        object.0.map_err(|invalid| invalid.error)
    }
    fn store(known: &mut Known) -> &mut Store<VirtualServer> {
        &mut known.virtual_servers
    }
    fn changed(_: &mut Known, _: Vec<Change<VirtualServer>>) {}
}

struct Nodes;

impl Watched for Nodes {
    type Index = Known;
    type Object = DeserializeGuard<LoadBalancerNode>;
    type Kept = LoadBalancerNode;
    const NAME: &'static str = "LoadBalancerNode";

    fn api(client: &Client, _: &str) -> Api<Self::Object> {
        Api::all(client.clone())
    }
    fn keep(object: Self::Object) -> Result<LoadBalancerNode, String> {
        object.0.map_err(|invalid| invalid.error)
    }
    fn store(known: &mut Known) -> &mut Store<LoadBalancerNode> {
        &mut known.nodes
    }
    fn changed(_: &mut Known, _: Vec<Change<LoadBalancerNode>>) {}
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use http::{Request, Response, Uri};
    use kube::client::Body;
    use serde_json::{Value, json};
    use tokio::time::timeout;

    use super::*;

    fn policy(version: u32) -> Value {
        json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "RolloutPolicy",
            "metadata": {"namespace": "shop", "name": "web", "uid": "u", "resourceVersion": version.to_string()},
            "spec": {"virtualServerName": "vip", "stablePoolName": "v1", "candidatePoolName": "v2",
                     "strategy": {"canary": {"steps": [{"weight": 10}]}}},
        })
    }

    fn list(items: &[Value]) -> String {
        let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "5"}, "items": items});
        list.to_string()
    }

    /// A policy that changes once and goes, and no virtual server. `None`: silence.
    fn answer(uri: &Uri) -> Option<String> {
        let query = uri.query().unwrap_or_default();
        let is_watch = query.contains("watch=true");
        let event = |kind: &str, version| {
            let line = json!({"type": kind, "object": policy(version)});
            Some(format!("{line}\n"))
        };
        match uri.path().rsplit('/').next() {
            Some("rolloutpolicies") if !is_watch => Some(list(&[policy(4)])),
            Some("rolloutpolicies") if query.contains("resourceVersion=5") => event("MODIFIED", 7),
            Some("rolloutpolicies") if query.contains("resourceVersion=7") => event("DELETED", 8),
            Some("virtualservers") if !is_watch => Some(list(&[])),
            _ => None,
        }
    }

    fn cluster(answer: fn(&Uri) -> Option<String>) -> Cluster {
        let service = tower::service_fn(move |request: Request<Body>| {
            let body = answer(request.uri());
            async move {
                match body {
                    Some(body) => Ok::<_, Infallible>(Response::new(Body::from(body.into_bytes()))),
                    None => std::future::pending().await,
                }
            }
        });
        Cluster::new(Client::new(service, "shop"), "shop")
    }

    async fn version(followed: &mut Followed) -> Option<String> {
        let news = timeout(Duration::from_secs(10), followed.next()).await;
        let _ = news.expect("news").expect("it goes on");
        match followed.policy() {
            Seen::There(policy) => policy.metadata.resource_version.clone(),
            Seen::Gone => Some("gone".to_owned()),
            Seen::NotYet => None,
        }
    }

    #[tokio::test]
    async fn changes_are_told_until_the_policy_is_gone() {
        let mut followed = Followed::watch(&cluster(answer), "web", "vip");
        let mut seen = Vec::new();
        while seen.last().is_none_or(|last| last != "gone") {
            seen.extend(version(&mut followed).await);
            seen.dedup();
        }
        assert_eq!(seen, ["4", "7", "gone"]);
        assert!(matches!(followed.virtual_server(), Seen::Gone));
    }
}
