//! This node's own object: made when there is none, and its status.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::Status;
use serde_json::json;
use sluice_api::{
    AGENT_MANAGER, API_VERSION, ConditionType, LoadBalancerNode, LoadBalancerNodeSpec,
    LoadBalancerNodeStatus, is_true,
};
use sluice_kube::error::RequestError;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::info;

use super::{Error, Kube, within};
use crate::netlink::Requests;
use crate::source::SourceState;

/// Time between two attempts to create the object.
const PAUSE: Duration = Duration::from_secs(2);
/// The name of what is done here, in messages.
const CREATE: &str = "LoadBalancerNode creation";
const STATUS: &str = "LoadBalancerNode status";

/// Creates this node's object whenever it is missing, for as long as somebody says so.
pub(super) async fn create_when_missing(server: Kube, mut missing: watch::Receiver<bool>) {
    while missing.wait_for(|missing| *missing).await.is_ok() {
        match create(&server).await {
            Ok(()) => server.complaints.succeed(CREATE),
            Err(error) => {
                let failed = format!("cannot create the LoadBalancerNode {}", server.node);
                server.complaints.fail(CREATE, &failed, &error);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn create(server: &Kube) -> Result<(), Error> {
    let new = &server.new_node;
    let interfaces = if new.interfaces.is_empty() {
        default_interfaces()?
    } else {
        new.interfaces.clone()
    };
    let object = LoadBalancerNode {
        metadata: ObjectMeta {
            name: Some(server.node.clone()),
            ..ObjectMeta::default()
        },
        spec: LoadBalancerNodeSpec {
            role: new.role,
            interfaces,
            xdp_mode: new.xdp_mode,
            drain: false,
        },
        status: None,
    };
    let parameters = PostParams {
        field_manager: Some(AGENT_MANAGER.to_owned()),
        ..PostParams::default()
    };
    match within(server.nodes().create(&parameters, &object)).await {
        Ok(created) => {
            let interfaces = created.spec.interfaces;
            info!(
                node = server.node,
                ?interfaces,
                "created the LoadBalancerNode"
            );
            Ok(())
        }
        // Somebody else was faster.
        Err(error) if error.status().is_some_and(Status::is_already_exists) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn default_interfaces() -> Result<Vec<String>, Error> {
    let found = Requests::open().and_then(|mut requests| requests.default_interfaces());
    match found {
        Ok(names) if !names.is_empty() => Ok(names),
        Ok(_) => Err(Error::Interfaces(
            "this node has no default route: name its uplinks with --interfaces".to_owned(),
        )),
        Err(error) => Err(Error::Interfaces(format!(
            "its default routes are not known, name its uplinks with --interfaces: {error}"
        ))),
    }
}

/// Writes this node's status by server-side apply, when it is not the one written last.
#[derive(Debug)]
pub struct StatusWriter {
    server: Kube,
    runtime: Handle,
    /// The status written last, and the uid of the object then.
    written: Mutex<Option<(LoadBalancerNodeStatus, Option<String>)>>,
}

impl StatusWriter {
    pub(super) fn new(server: Kube) -> Self {
        Self {
            server,
            runtime: Handle::current(),
            written: Mutex::new(None),
        }
    }

    /// Writes a status; waits for the API server, so it must not be called by what serves. The heartbeat is the Lease's.
    /// A write that fails is tried again with the next status, which comes every few seconds.
    pub fn write(&self, mut status: LoadBalancerNodeStatus) {
        status.heartbeat_time = None;
        let uid = self.server.own_uid.borrow().clone();
        let now = (status, uid);
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.as_ref() == Some(&now) {
            return;
        }
        let result = self.runtime.block_on(self.apply(&now.0));
        let source = &self.server.source;
        let (successes, failures) = (&source.status_writes, &source.status_failures);
        SourceState::count(successes, failures, result.is_ok());
        if let Err(error) = result {
            let failed = "cannot write this node's status";
            self.server.complaints.fail(STATUS, failed, &error);
            return;
        }
        self.server.complaints.succeed(STATUS);
        if is_true(&now.0.conditions, ConditionType::Detached) {
            self.server.left.send_replace(true);
        }
        self.server.current.send_replace(true);
        *written = Some(now);
    }

    async fn apply(&self, status: &LoadBalancerNodeStatus) -> Result<(), RequestError> {
        let node = &self.server.node;
        let body = json!({
            "apiVersion": API_VERSION,
            "kind": "LoadBalancerNode",
            "metadata": {"name": node},
            "status": status,
        });
        let parameters = PatchParams::apply(AGENT_MANAGER).force();
        let nodes = self.server.nodes();
        let patch = Patch::Apply(&body);
        within(nodes.patch_status(node, &parameters, &patch))
            .await
            .map(drop)
    }
}
