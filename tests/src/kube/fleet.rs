//! Many nodes' agents as the API server sees them, without a data plane behind them: they watch decisions once for all of
//! them, and write what a real agent writes, in the same order and at the same pace.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::select;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::{Value, json};
use sluice_api::{
    AGENT_MANAGER, API_VERSION, LoadBalancerNode, NODE_LABEL, NODE_SILENT_SECONDS, RealServerPool,
    VirtualServer, node_lease,
};
use tokio::time::{interval, timeout};

use super::account::Account;

/// Time between two rounds.
const ROUND: Duration = Duration::from_millis(50);
/// Time between two renewals of a Lease, as agents have it.
const RENEWAL: Duration = Duration::from_secs(5);
/// An agent gathers what changes within this time.
const GATHER: Duration = Duration::from_millis(200);
/// An agent's status is written no more often than this.
const PAUSE: Duration = Duration::from_secs(1);
/// How long an answer is waited for.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Agents that acknowledge every decision until this is dropped.
#[derive(Debug)]
pub struct PlayedFleet {
    agents: Agents,
    thread: Option<JoinHandle<Result<()>>>,
}

/// By node; `None`: the fleet ends.
type Agents = Arc<Mutex<Option<BTreeMap<String, Agent>>>>;

#[derive(Clone, Copy, Debug)]
struct Agent {
    address: IpAddr,
    is_created: bool,
    renewed: Option<Instant>,
    /// The revisions that were acknowledged, and when.
    told: Option<(Revisions, Instant)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Revisions {
    virtual_servers: u64,
    pools: u64,
}

impl PlayedFleet {
    /// Starts a fleet without nodes. Leases are in `namespace`.
    pub fn start(account: &Account, namespace: &str) -> Result<Self> {
        let agents = Agents::new(Mutex::new(Some(BTreeMap::new())));
        let (played, namespace) = (Arc::clone(&agents), namespace.to_owned());
        let thread = account.spawn_client("fleet", async move |client| {
            play(&client, &namespace, &played).await;
            Ok(())
        })?;
        Ok(Self {
            agents,
            thread: Some(thread),
        })
    }

    /// Starts the agent of a node, which makes the node's object. `number` makes its address.
    pub fn add(&self, node: &str, number: u8) {
        let agent = Agent {
            address: Ipv4Addr::new(10, 9, 0, number).into(),
            is_created: false,
            renewed: None,
            told: None,
        };
        if let Some(agents) = lock(&self.agents).as_mut() {
            agents.insert(node.to_owned(), agent);
        }
    }

    /// Ends the agent of a node at once; its object and its Lease stay.
    pub fn remove(&self, node: &str) {
        if let Some(agents) = lock(&self.agents).as_mut() {
            agents.remove(node);
        }
    }
}

impl Drop for PlayedFleet {
    fn drop(&mut self) {
        *lock(&self.agents) = None;
        if let Some(thread) = self.thread.take() {
            // It panics with the test only.
            let _ = thread.join();
        }
    }
}

fn lock(agents: &Agents) -> std::sync::MutexGuard<'_, Option<BTreeMap<String, Agent>>> {
    agents.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn play(client: &Client, namespace: &str, agents: &Agents) {
    let watch = || watcher::Config::default();
    let servers = watcher(Api::<VirtualServer>::all(client.clone()), watch());
    let servers = servers.default_backoff().applied_objects();
    let servers = servers.map(|server| {
        let decision = server.ok()?.status?.decision?;
        Some(Revisions {
            virtual_servers: decision.complete_revision,
            pools: 0,
        })
    });
    let pools = watcher(Api::<RealServerPool>::all(client.clone()), watch());
    let pools = pools.default_backoff().applied_objects();
    let pools = pools.map(|pool| {
        let decision = pool.ok()?.status?.decision?;
        Some(Revisions {
            virtual_servers: 0,
            pools: decision.complete_revision,
        })
    });
    let mut news = pin!(select(servers, pools));
    let mut rounds = interval(ROUND);
    let (mut known, mut changed) = (Revisions::default(), Instant::now());
    loop {
        tokio::select! {
            Some(Some(revisions)) = news.next() => {
                let before = known;
                known.virtual_servers = known.virtual_servers.max(revisions.virtual_servers);
                known.pools = known.pools.max(revisions.pools);
                if known != before {
                    changed = Instant::now();
                }
            }
            _ = rounds.tick() => {
                let Some(fleet) = lock(agents).clone() else {
                    return;
                };
                let settled = (changed.elapsed() >= GATHER).then_some(known);
                let turns = fleet.into_iter().map(|(node, agent)| turn(client, namespace, node, agent, settled));
                for (node, agent) in join_all(turns).await {
                    // One that was taken away meanwhile stays away.
                    if let Some(known) = lock(agents).as_mut().and_then(|agents| agents.get_mut(&node)) {
                        *known = agent;
                    }
                }
            }
        }
    }
}

/// Does what is due for one node: its object, a status without an acknowledgement, its Lease, and what it acknowledges.
async fn turn(
    client: &Client,
    namespace: &str,
    node: String,
    mut agent: Agent,
    settled: Option<Revisions>,
) -> (String, Agent) {
    let is_done = async |request: &mut (dyn Future<Output = kube::Result<()>> + Unpin + Send)| {
        matches!(timeout(ANSWER_LIMIT, request).await, Ok(Ok(())))
    };
    if !agent.is_created {
        agent.is_created = is_done(&mut Box::pin(create(client, &node))).await;
        return (node, agent);
    }
    let now = Instant::now();
    let Some((told, at)) = agent.told else {
        let nothing = Revisions::default();
        if is_done(&mut Box::pin(tell(client, &node, agent.address, nothing))).await {
            agent.told = Some((nothing, now));
        }
        return (node, agent);
    };
    let is_due = agent.renewed.is_none_or(|at| at.elapsed() >= RENEWAL);
    if is_due && is_done(&mut Box::pin(renew(client, namespace, &node))).await {
        agent.renewed = Some(now);
    }
    if let Some(revisions) = settled
        && revisions != told
        && at.elapsed() >= PAUSE
        && is_done(&mut Box::pin(tell(client, &node, agent.address, revisions))).await
    {
        agent.told = Some((revisions, now));
    }
    (node, agent)
}

async fn create(client: &Client, node: &str) -> kube::Result<()> {
    let body = json!({
        "apiVersion": API_VERSION,
        "kind": "LoadBalancerNode",
        "metadata": {"name": node},
        "spec": {"interfaces": ["eth0"]},
    });
    let api = Api::<LoadBalancerNode>::all(client.clone());
    let object = serde_json::from_value(body).map_err(kube::Error::SerdeError)?;
    api.create(&kube::api::PostParams::default(), &object)
        .await
        .map(drop)
}

async fn renew(client: &Client, namespace: &str, node: &str) -> kube::Result<()> {
    let name = node_lease(node);
    let body = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "labels": {NODE_LABEL: node}},
        "spec": {
            "holderIdentity": node,
            "leaseDurationSeconds": NODE_SILENT_SECONDS,
            "renewTime": format!("{:.6}", Timestamp::now()),
        },
    });
    let api = Api::<Lease>::namespaced(client.clone(), namespace);
    api.patch(&name, &forced(), &Patch::Apply(&body))
        .await
        .map(drop)
}

async fn tell(
    client: &Client,
    node: &str,
    address: IpAddr,
    revisions: Revisions,
) -> kube::Result<()> {
    let body: Value = json!({
        "apiVersion": API_VERSION,
        "kind": "LoadBalancerNode",
        "metadata": {"name": node},
        "status": {
            "observedGeneration": 1,
            "addresses": [address],
            "acknowledgedRevision": revisions.virtual_servers,
            "acknowledgedPoolRevision": revisions.pools,
            "interfaces": [{"name": "eth0", "attachMode": "Native"}],
        },
    });
    let api = Api::<LoadBalancerNode>::all(client.clone());
    api.patch_status(node, &forced(), &Patch::Apply(&body))
        .await
        .map(drop)
}

fn forced() -> PatchParams {
    PatchParams::apply(AGENT_MANAGER).force()
}
