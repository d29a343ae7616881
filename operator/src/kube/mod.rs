//! The core over the Kubernetes API.
//!
//! ```text
//! watches ──► one queue ──► Index ──► World ──► core::reconcile ──► Outcome ──► order ──► status (server-side apply)
//!                             │  ▲                                                │
//!                             │  └──────────── answers to our own writes ─────────┘
//!                             ├──► slices::plan ──► EndpointSlices of pools that select pods
//!                             └──► services ──► virtual servers and pools of Services, and the Services' status
//! ```
//!
//! One loop gathers what the watches tell, decides, and starts the writes that [`order`](crate::order) says; answers come in
//! beside the news. Nothing is asked of the API server between two decisions.
//! Every write carries the version that it was computed from: if the object has changed, the answer is a conflict, and the
//! watch tells what to decide from.

mod addresses;
pub mod apply_pools;
mod claims;
mod conflict;
mod departures;
pub mod detach;
mod endpoints;
mod events;
mod facts;
mod flight;
mod index;
mod kept;
mod labels;
mod ledger;
mod memory;
mod nodes;
mod notes;
mod operator;
mod peers;
mod services;
mod silence;
mod slices;
#[cfg(test)]
mod tests;
mod vip_groups;
mod watch;
mod writer;
mod written;

use std::path::Path;

use kube::Client;
use sluice_kube::connect::{Choice, ConnectError, Connection};

pub use operator::{Shared, run};

/// An error that ends the operator.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// Nothing says where the API server is.
    #[error(
        "no directory and no Kubernetes: give --dir DIRECTORY for standalone mode, or --kubeconfig FILE (or KUBECONFIG, or \
         run in a pod) for Kubernetes: {0}"
    )]
    Nothing(ConnectError),
    /// There is no connection to the API server.
    #[error(transparent)]
    Connect(ConnectError),
    /// A watch or a write ended as it never should.
    #[error("the watches or the writes have ended")]
    Ended,
}

/// A client of the API server, by this file or else as `kubectl` would find it, and Sluice's own namespace, unless
/// `namespace` names another one.
pub async fn connect(
    kubeconfig: Option<&Path>,
    namespace: Option<&str>,
) -> Result<(Client, String), Error> {
    let choice = Choice {
        kubeconfig,
        context: None,
    };
    let found = Connection::find(choice)
        .await
        .map_err(|error| match error {
            ConnectError::Nothing { .. } => Error::Nothing(error),
            other => Error::Connect(other),
        })?;
    let namespace = found.own_namespace(namespace);
    Ok((found.client().map_err(Error::Connect)?, namespace))
}
