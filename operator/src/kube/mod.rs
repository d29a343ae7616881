//! The core over the Kubernetes API.
//!
//! ```text
//! watches ──► one queue ──► Index ──► World ──► core::reconcile ──► Outcome ──► Round ──► status (server-side apply)
//!                             │  ▲                                                │
//!                             │  └──────────── answers to our own writes ─────────┘
//!                             └──► slices::plan ──► EndpointSlices of pools that select pods
//! ```
//!
//! One loop gathers what the watches tell, decides, and writes; nothing is asked of the API server between two decisions.
//! Every write carries the version that it was computed from: if the object has changed, the answer is a conflict, and the
//! watch tells what to decide from.

mod conflict;
pub mod detach;
mod endpoints;
mod events;
mod facts;
mod index;
mod kept;
mod memory;
mod nodes;
mod operator;
mod order;
mod patience;
mod round;
mod slices;
mod store;
#[cfg(test)]
mod tests;
mod watch;
mod writer;

use std::path::{Path, PathBuf};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

pub use operator::run;

/// The namespace of the agents' Leases where nothing else is known.
pub const DEFAULT_NAMESPACE: &str = "sluice-system";
/// Where a pod finds its namespace.
const POD_NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// No connection to an API server.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// The file given cannot be used.
    #[error("cannot use {} as a kubeconfig: correct it, or give another one with --kubeconfig", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: kube::config::KubeconfigError,
    },
    /// Nothing says where the API server is.
    #[error(
        "no directory and no Kubernetes: give --dir DIRECTORY for standalone mode, or --kubeconfig FILE (or KUBECONFIG, or \
         run in a pod) for Kubernetes"
    )]
    Nothing(#[source] kube::config::InferConfigError),
    /// The configuration does not make a client.
    #[error("cannot make a client of the kubeconfig")]
    Client(#[source] kube::Error),
    /// A watch task ended, which it never should.
    #[error("the watches have ended")]
    Ended,
}

/// Connects by this file, or else as `kubectl` would.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, Error> {
    let config = match kubeconfig {
        Some(path) => {
            let failed = |source| Error::File {
                path: path.to_owned(),
                source,
            };
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(failed)?
        }
        None => Config::infer().await.map_err(Error::Nothing)?,
    };
    Client::try_from(config).map_err(Error::Client)
}

/// The namespace that this process runs in, or [`DEFAULT_NAMESPACE`].
pub fn own_namespace() -> String {
    let text = std::fs::read_to_string(POD_NAMESPACE).unwrap_or_default();
    match text.trim() {
        "" => DEFAULT_NAMESPACE.to_owned(),
        name => name.to_owned(),
    }
}
