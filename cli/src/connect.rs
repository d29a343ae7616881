//! The way to the API server.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use kube::config::{Config, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Client};
use sluice_api::{RolloutPolicy, VirtualServer};

use crate::args::Connection;
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
pub async fn connect(flags: &Connection) -> anyhow::Result<Cluster> {
    let mut config = config(flags).await?;
    if !flags.request_timeout.is_zero() {
        config.connect_timeout = Some(flags.request_timeout);
    }
    let namespace = flags
        .namespace
        .clone()
        .unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).context("cannot use the cluster configuration")?;
    Ok(Cluster {
        client,
        namespace,
        request_timeout: flags.request_timeout,
    })
}

/// The client's error has its causes in its own text.
fn none(error: &KubeconfigError) -> anyhow::Error {
    anyhow!("no cluster configuration: {error}; {REMEDY}")
}

async fn config(flags: &Connection) -> anyhow::Result<Config> {
    let given = flags.kubeconfig.is_some() || flags.context.is_some();
    let file = match &flags.kubeconfig {
        Some(path) => Kubeconfig::read_from(path).map_err(|error| none(&error))?,
        None => match Kubeconfig::read() {
            Ok(file) => file,
            Err(error) => {
                if !given && let Ok(config) = Config::incluster() {
                    return Ok(config);
                }
                return Err(none(&error));
            }
        },
    };
    let contexts: Vec<String> = file.contexts.iter().map(|c| c.name.clone()).collect();
    if let Some(context) = &flags.context
        && !contexts.contains(context)
    {
        bail!(
            "the configuration has no context {context}; it has {}",
            crate::problem::names(&contexts)
        );
    }
    let options = KubeConfigOptions {
        context: flags.context.clone(),
        ..KubeConfigOptions::default()
    };
    Config::from_custom_kubeconfig(file, &options)
        .await
        .context("cannot use the cluster configuration: choose a context with --context")
}

impl Cluster {
    /// Virtual servers of the namespace.
    pub fn virtual_servers(&self) -> Api<VirtualServer> {
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
