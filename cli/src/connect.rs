//! The way to the API server.

use std::future::Future;
use std::time::Duration;

use anyhow::anyhow;
use kube::api::PatchParams;
use kube::{Api, Client};
use sluice_api::{CLI_MANAGER, RealServerPool, RolloutPolicy, VirtualServer};
use sluice_kube::connect::{Choice, ConnectError, Connection};

use crate::args;
use crate::problem::{Access, Problem};

/// A connection and what its flags say.
#[derive(Clone)]
pub struct Cluster {
    /// The client.
    pub client: Client,
    /// The namespace of the flag, else of the context.
    pub namespace: String,
    /// How long one request may take; zero means no limit.
    request_timeout: Duration,
}

const REMEDY: &str = "give --kubeconfig, set KUBECONFIG, or put a configuration at ~/.kube/config";

/// Reads the configuration as kubectl does. Nothing is sent yet.
pub async fn connect(flags: &args::Connection) -> anyhow::Result<Cluster> {
    let choice = Choice {
        kubeconfig: flags.kubeconfig.as_deref(),
        context: flags.context.as_deref(),
    };
    let mut found = Connection::find(choice)
        .await
        .map_err(|error| match error {
            ConnectError::Nothing { .. } => anyhow!("no cluster configuration: {error}; {REMEDY}"),
            other => other.into(),
        })?;
    let limit = flags.request_timeout;
    found.config.connect_timeout = (!limit.is_zero()).then_some(limit);
    let namespace = flags
        .namespace
        .clone()
        .unwrap_or_else(|| found.config.default_namespace.clone());
    Ok(Cluster {
        client: found.client()?,
        namespace,
        request_timeout: limit,
    })
}

/// Of a patch that merges a part into an object.
pub fn merge_params() -> PatchParams {
    PatchParams {
        field_manager: Some(CLI_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

impl Cluster {
    /// Of a client, without a limit for requests.
    #[cfg(test)]
    pub(crate) fn new(client: Client, namespace: &str) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            request_timeout: Duration::ZERO,
        }
    }

    /// Where is looked, for a message that nothing is there.
    pub fn place(&self, all_namespaces: bool) -> String {
        if all_namespaces {
            return "any namespace".to_owned();
        }
        format!("namespace {} (all namespaces: -A)", self.namespace)
    }

    /// Virtual servers of the namespace.
    pub fn virtual_servers(&self) -> Api<VirtualServer> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Pools of the namespace.
    pub fn pools(&self) -> Api<RealServerPool> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Rollout policies of the namespace.
    pub fn policies(&self) -> Api<RolloutPolicy> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Sends one request within the time limit; `access` tells in errors what was asked for.
    pub async fn request<T>(
        &self,
        access: Access,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Problem> {
        let limit = self.request_timeout;
        let result = if limit.is_zero() {
            request.await
        } else {
            tokio::time::timeout(limit, request)
                .await
                .map_err(|_| Problem::TimedOut { access, limit })?
        };
        result.map_err(|error| Problem::of(access, error))
    }
}
