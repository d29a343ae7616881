//! The Kubernetes API server as a source, and as the place of this node's object, its status and its Lease.
//!
//! ```text
//! watches (one a kind) ─────► driver ─► Index ─► source::Event ─► core
//!                              │ this node's object is missing
//!                              └─► creator                       core ─► Mailbox ─► status writer
//! lease: renews while the core's loop goes round and status is of now; its answers tell when the server is another one
//! ```
//!
//! An API server that cannot be reached is no news: the core goes on with what it knows. Nothing here keeps it waiting.

mod complaints;
mod driver;
mod index;
mod kinds;
mod lease;
mod node;
mod own_node;

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use kube::api::{DynamicObject, ListParams};
use kube::{Api, Client};
use serde::Deserialize;
use sluice_api::{LoadBalancerNode, LoadBalancerNodeStatus, NodeRole, XdpMode};
use sluice_kube::connect::{Choice, ConnectError, Connection};
use sluice_kube::error::RequestError;
use sluice_kube::identity::World;
use sluice_kube::watch::Server;
use sluice_kube::watched::Watched as _;
use sluice_stream::{Finder, Sender};
use tokio::sync::watch as channel;

use super::SourceState;
use crate::announce::Place;
use crate::core::Input;
use crate::state::State;

use complaints::Complaints;
use index::Own;
use own_node::Node;

pub use node::StatusWriter;

/// How long an answer of the API server is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Errors in setting up or asking the API server as a source.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// There is no configuration of it.
    #[error(
        "no source: give --dir DIR to run standalone; or run in a pod, or give --kubeconfig FILE or KUBECONFIG, for \
         Kubernetes ({0})"
    )]
    NoSource(ConnectError),
    /// Its configuration cannot be used.
    #[error(transparent)]
    Connect(ConnectError),
    /// A request failed.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// This node's interfaces are not known.
    #[error("{0}")]
    Interfaces(String),
}

/// The spec of the LoadBalancerNode that is created if there is none.
#[derive(Clone, Debug)]
pub struct NewNode {
    /// Names of the uplinks; empty: those of the node's default routes.
    pub interfaces: Vec<String>,
    /// The node's role.
    pub role: NodeRole,
    /// How XDP programs are attached.
    pub xdp_mode: XdpMode,
}

/// The API server, as one node's agent uses it.
#[derive(Clone)]
pub struct Kube {
    client: Client,
    connection: Connection,
    namespace: String,
    node: String,
    new_node: NewNode,
    complaints: Complaints,
    source: Arc<SourceState>,
    /// Raised when the server turns out to be another one.
    world: World,
    own_uid: Arc<channel::Sender<Option<String>>>,
    /// Whether the node's status may be believed: it is of this process, or of one that left its maps behind.
    current: Arc<channel::Sender<bool>>,
    /// Whether the node is detached and its status says so.
    left: Arc<channel::Sender<bool>>,
}

impl fmt::Debug for Kube {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kube")
            .field("namespace", &self.namespace)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// This node's object as the API server has it.
#[derive(Clone, PartialEq, Debug)]
pub struct Before {
    /// Its status.
    pub status: LoadBalancerNodeStatus,
    /// The generation of its spec, if the node is to be left.
    pub detach: Option<i64>,
    own: Own,
}

impl Kube {
    /// Finds the API server's configuration: `kubeconfig`, else KUBECONFIG or ~/.kube/config, else that of the pod. Does not
    /// talk to it yet. `namespace` is where the node's Lease lives.
    pub async fn configure(
        kubeconfig: Option<&Path>,
        namespace: Option<&str>,
        node: &str,
        new_node: NewNode,
    ) -> Result<Self, Error> {
        let choice = Choice {
            kubeconfig,
            context: None,
        };
        let found = Connection::find(choice)
            .await
            .map_err(|error| match error {
                ConnectError::Nothing { .. } => Error::NoSource(error),
                other => Error::Connect(other),
            })?;
        let namespace = found.own_namespace(namespace);
        let client = found.client().map_err(Error::Connect)?;
        Ok(Self {
            client,
            connection: found,
            namespace,
            node: node.to_owned(),
            new_node,
            complaints: Complaints::default(),
            source: Arc::default(),
            world: World::default(),
            own_uid: Arc::new(channel::Sender::new(None)),
            current: Arc::new(channel::Sender::new(false)),
            left: Arc::new(channel::Sender::new(false)),
        })
    }

    /// Reads this node's object from the API server; `None` if there is none.
    pub async fn before(&self) -> Result<Option<Before>, Error> {
        Ok(self.own().await?)
    }

    /// Where the Leases of VIP groups are. `limit` is how long an answer is waited for.
    pub fn leases(&self, limit: Duration) -> Place {
        Place {
            connection: self.connection.clone(),
            namespace: self.namespace.clone(),
            world: self.world.clone(),
            limit,
        }
    }

    /// How this source fares.
    pub fn source_state(&self) -> Arc<SourceState> {
        Arc::clone(&self.source)
    }

    /// Writes this node's status; to be given to the mailbox.
    pub fn status_writer(&self) -> StatusWriter {
        StatusWriter::new(self.clone())
    }

    /// Watches, renews and creates until the process ends. `adopted`: maps of an earlier agent were taken over, so that what
    /// its status acknowledges is there; `served`: they serve something that must not get lost. Whatever keeps the core's
    /// inbox full delays only what is told last.
    pub fn run(&self, state: &Arc<State>, adopted: bool, served: bool, inbox: SyncSender<Input>) {
        if adopted {
            self.current.send_replace(true);
        }
        tokio::spawn(lease::run(self.clone(), Arc::clone(state)));
        tokio::spawn(driver::run(self.clone(), served, inbox));
    }

    /// Reports signals to the operator until the process ends. The file `token` proves which node this is.
    pub fn report_signals(&self, state: &Arc<State>, token: PathBuf) {
        let sender = Sender {
            node: self.node.clone(),
            token,
            finder: Finder::new(self.client.clone(), &self.namespace),
            state: Arc::clone(&self.source.stream),
        };
        let state = Arc::clone(state);
        tokio::spawn(sender.run(move || state.signals.report()));
    }

    /// Renews the Lease of a node that is detached, until its status says so.
    pub fn run_detached(&self, state: &Arc<State>) {
        self.current.send_replace(true);
        tokio::spawn(lease::run(self.clone(), Arc::clone(state)));
    }

    /// Something that may fail works.
    fn works(&self, what: &'static str) {
        self.source.synced(what);
        self.complaints.succeed(what);
    }

    /// The server as a watch uses it, of the object of this name or of all: each list comes with what the server says of this node's object.
    fn watched(&self, name: Option<String>) -> Server<Option<Own>> {
        let server = self.clone();
        Server {
            client: self.client.clone(),
            namespace: self.namespace.clone(),
            name,
            world: self.world.clone(),
            ask: Arc::new(move || {
                let server = server.clone();
                Box::pin(async move { Ok(server.own().await?.map(|before| before.own)) })
            }),
        }
    }

    /// This node's object, by a list: the agent needs no right to get.
    async fn own(&self) -> Result<Option<Before>, RequestError> {
        let api = kinds::Nodes::api(&self.client, &self.namespace);
        let parameters = ListParams::default().fields(&format!("metadata.name={}", self.node));
        let found = within(api.list(&parameters)).await?;
        Ok(found.items.into_iter().next().map(before))
    }

    fn nodes(&self) -> Api<LoadBalancerNode> {
        Api::all(self.client.clone())
    }
}

fn before(object: DynamicObject) -> Before {
    let node = Node::of(&object);
    let status = object.data.get("status").cloned().unwrap_or_default();
    let status = LoadBalancerNodeStatus::deserialize(status).unwrap_or_default();
    Before {
        detach: node.detach.then_some(node.generation),
        own: Own {
            uid: object.metadata.uid.unwrap_or_default(),
            acknowledged: status.acknowledged_revision > 0,
        },
        status,
    }
}

/// The answer to a request, if it comes in time.
async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, RequestError> {
    sluice_kube::error::within(ANSWER_TIMEOUT, request).await
}
