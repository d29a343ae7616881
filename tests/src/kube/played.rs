//! A node's agent as the API server sees it, without a data plane behind it: for tests of the operator, to which an agent
//! is nothing but a status and a Lease.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use sluice_api::{
    AGENT_MANAGER, LoadBalancerNode, NODE_LABEL, NODE_SILENT_SECONDS, RealServerPool,
    VirtualServer, node_lease,
};
use tokio::time::{sleep, timeout};

use super::account::Account;

/// Time between two looks at the decisions.
const LOOK: Duration = Duration::from_millis(100);
/// Time between two renewals of the Lease, as agents have it.
const RENEWAL: Duration = Duration::from_secs(5);
/// How long an answer is waited for: API servers are stopped under it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Acknowledges every decision until it is dropped, by server-side apply as an agent does.
#[derive(Debug)]
pub struct PlayedAgent {
    stop: Arc<AtomicBool>,
    holds: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl PlayedAgent {
    /// Speaks for `node`, whose LoadBalancerNode exists, and which has these addresses. Its Lease is in `namespace`.
    pub fn start(
        account: &Account,
        namespace: &str,
        node: &str,
        addresses: &[IpAddr],
    ) -> Result<Self> {
        let (stop, holds) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
        let player = Player {
            namespace: namespace.to_owned(),
            node: node.to_owned(),
            addresses: addresses.to_vec(),
            stop: Arc::clone(&stop),
            holds: Arc::clone(&holds),
        };
        let name = format!("agent {node}");
        let thread = account.spawn_client(&name, async move |client| {
            player.play(&client).await;
            Ok(())
        })?;
        Ok(Self {
            stop,
            holds,
            thread: Some(thread),
        })
    }

    /// Whether it acknowledges nothing new for now; it stays alive.
    pub fn hold(&self, holds: bool) {
        self.holds.store(holds, Ordering::Relaxed);
    }
}

impl Drop for PlayedAgent {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It panics with the test only.
            let _ = thread.join();
        }
    }
}

struct Player {
    namespace: String,
    node: String,
    addresses: Vec<IpAddr>,
    stop: Arc<AtomicBool>,
    holds: Arc<AtomicBool>,
}

impl Player {
    async fn play(&self, client: &Client) {
        let mut told: Option<Revisions> = None;
        let mut renewed: Option<Instant> = None;
        while !self.stop.load(Ordering::Relaxed) {
            if renewed.is_none_or(|at| at.elapsed() >= RENEWAL)
                && matches!(
                    timeout(ANSWER_TIMEOUT, self.renew(client)).await,
                    Ok(Ok(()))
                )
            {
                renewed = Some(Instant::now());
            }
            if !self.holds.load(Ordering::Relaxed)
                && let Ok(Ok(found)) = timeout(ANSWER_TIMEOUT, read(client)).await
                && let revisions = found.or_higher(told)
                && told != Some(revisions)
                && matches!(
                    timeout(ANSWER_TIMEOUT, self.tell(client, revisions)).await,
                    Ok(Ok(()))
                )
            {
                told = Some(revisions);
            }
            sleep(LOOK).await;
        }
    }

    async fn renew(&self, client: &Client) -> kube::Result<()> {
        let name = node_lease(&self.node);
        let body = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name, "labels": {NODE_LABEL: self.node}},
            "spec": {
                "holderIdentity": self.node,
                "leaseDurationSeconds": NODE_SILENT_SECONDS,
                "renewTime": format!("{:.6}", Timestamp::now()),
            },
        });
        let api: Api<Lease> = Api::namespaced(client.clone(), &self.namespace);
        let parameters = PatchParams::apply(AGENT_MANAGER).force();
        api.patch(&name, &parameters, &Patch::Apply(&body)).await?;
        Ok(())
    }

    async fn tell(&self, client: &Client, revisions: Revisions) -> kube::Result<()> {
        let body = json!({
            "apiVersion": sluice_api::API_VERSION,
            "kind": "LoadBalancerNode",
            "metadata": {"name": self.node},
            "status": {
                "observedGeneration": 1,
                "addresses": self.addresses,
                "acknowledgedRevision": revisions.virtual_servers,
                "acknowledgedPoolRevision": revisions.pools,
                "interfaces": [{"name": "eth0", "attachMode": "Native"}],
            },
        });
        let api: Api<LoadBalancerNode> = Api::all(client.clone());
        let parameters = PatchParams::apply(AGENT_MANAGER).force();
        api.patch_status(&self.node, &parameters, &Patch::Apply(&body))
            .await?;
        Ok(())
    }
}

/// The highest ones. The operator writes decisions in their order, so that all lower ones are known too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Revisions {
    virtual_servers: u64,
    pools: u64,
}

impl Revisions {
    /// An acknowledged revision does not fall when the object that had it is gone.
    fn or_higher(self, last: Option<Self>) -> Self {
        let last = last.unwrap_or(self);
        Self {
            virtual_servers: self.virtual_servers.max(last.virtual_servers),
            pools: self.pools.max(last.pools),
        }
    }
}

async fn read(client: &Client) -> kube::Result<Revisions> {
    // Virtual servers first: the pools that they were decided over are then there.
    let all = ListParams::default();
    let servers = Api::<VirtualServer>::all(client.clone()).list(&all).await?;
    let pools = Api::<RealServerPool>::all(client.clone())
        .list(&all)
        .await?;
    let servers = servers.items.into_iter();
    let servers = servers.filter_map(|server| Some(server.status?.decision?.complete_revision));
    let pools = pools.items.into_iter();
    let pools = pools.filter_map(|pool| Some(pool.status?.decision?.complete_revision));
    Ok(Revisions {
        virtual_servers: servers.max().unwrap_or_default(),
        pools: pools.max().unwrap_or_default(),
    })
}
