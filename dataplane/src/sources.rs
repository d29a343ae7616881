//! The two places that decisions come from, and that status goes to.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use anyhow::{Context, Result};
use sluice_agent::announce::Place;
use sluice_agent::core::Input;
use sluice_agent::report::Mailbox;
use sluice_agent::signals::Signals;
use sluice_agent::source::SourceState;
use sluice_agent::source::file::{self, NodeFile};
use sluice_agent::source::kube::{Before, Kube};
use sluice_agent::state::State;
use sluice_api::LoadBalancerNodeStatus;
use sluice_directory::{Directory, DirectoryError};
use tokio::time::timeout;
use tracing::warn;

use crate::options::RunOptions;

/// How long the start waits for the API server: what is pinned is taken over without it.
const START_TIMEOUT: Duration = Duration::from_secs(3);

/// A source that nothing was asked of yet.
pub(crate) enum Source {
    File(PathBuf, Arc<SourceState>),
    Kube(Box<Kube>),
}

/// A source, and what it knows of this node.
pub(crate) enum OpenSource {
    File {
        directory: Directory,
        file: NodeFile,
        state: Arc<SourceState>,
    },
    Kube {
        server: Box<Kube>,
        before: Option<Box<Before>>,
    },
}

impl Source {
    pub(crate) async fn configure(options: &RunOptions) -> Result<Self> {
        if let Some(directory) = &options.dir {
            return Ok(Self::File(directory.clone(), Arc::default()));
        }
        let kubernetes = &options.kubernetes;
        let server = Kube::configure(
            kubernetes.kubeconfig.as_deref(),
            kubernetes.namespace.as_deref(),
            &options.node,
            kubernetes.new_node(),
        );
        Ok(Self::Kube(Box::new(server.await?)))
    }

    /// Where the Leases of VIP groups are; `None`: there are none. `limit` is how long an answer is waited for.
    pub(crate) fn leases(&self, limit: Duration) -> Option<Place> {
        match self {
            Self::File(..) => None,
            Self::Kube(server) => Some(server.leases(limit)),
        }
    }

    /// How the source fares.
    pub(crate) fn state(&self) -> Arc<SourceState> {
        match self {
            Self::File(_, state) => Arc::clone(state),
            Self::Kube(server) => server.source_state(),
        }
    }

    pub(crate) async fn open(self, node: &str) -> Result<OpenSource> {
        match self {
            Self::File(path, state) => {
                let directory = Directory::new(&path);
                let file = NodeFile::open(&directory, node)
                    .with_context(|| format!("node {node} in {}", path.display()))?;
                Ok(OpenSource::File {
                    directory,
                    file,
                    state,
                })
            }
            Self::Kube(server) => {
                let before = match timeout(START_TIMEOUT, server.before()).await {
                    Ok(Ok(before)) => before.map(Box::new),
                    Ok(Err(error)) => {
                        warn!("cannot ask the API server, starting without it: {error}");
                        None
                    }
                    Err(_) => {
                        warn!("the API server does not answer, starting without it");
                        None
                    }
                };
                Ok(OpenSource::Kube { server, before })
            }
        }
    }
}

impl OpenSource {
    /// The generation of this node's spec, if the node is to be left.
    pub(crate) fn detach(&self) -> Option<i64> {
        match self {
            Self::File { .. } => None,
            Self::Kube { before, .. } => before.as_ref()?.detach,
        }
    }

    /// This node's status as written last.
    pub(crate) fn status(&self) -> LoadBalancerNodeStatus {
        match self {
            Self::File { file, .. } => file.status(),
            Self::Kube { before, .. } => before
                .as_ref()
                .map(|b| b.status.clone())
                .unwrap_or_default(),
        }
    }

    /// How the source fares.
    pub(crate) fn state(&self) -> Arc<SourceState> {
        match self {
            Self::File { state, .. } => Arc::clone(state),
            Self::Kube { server, .. } => server.source_state(),
        }
    }

    /// Writes what is put into the mailbox.
    pub(crate) fn write_status(&self, mailbox: Mailbox) {
        match self {
            Self::File { file, state, .. } => {
                let (file, state) = (file.clone(), Arc::clone(state));
                mailbox.run(move |status| {
                    let written = file.write(status);
                    let (successes, failures) = (&state.status_writes, &state.status_failures);
                    SourceState::count(successes, failures, written.is_ok());
                    written
                });
            }
            Self::Kube { server, .. } => {
                let writer = server.status_writer();
                mailbox.run(move |status| {
                    writer.write(status);
                    Ok::<(), Infallible>(())
                });
            }
        }
    }

    /// Writes what was sampled to where the operator reads it.
    pub(crate) fn signals_writer(
        &self,
    ) -> impl FnMut(&Signals) -> Result<(), DirectoryError> + Send + use<> {
        let file = match self {
            Self::File { file, .. } => Some(file.clone()),
            Self::Kube { .. } => None,
        };
        move |signals| {
            file.as_ref()
                .map_or(Ok(()), |file| file.write_signals(&signals.report()))
        }
    }

    /// Reports signals to the operator, where a token says which node this is.
    pub(crate) fn report_signals(&self, state: &Arc<State>, token: Option<&Path>) {
        if let (Self::Kube { server, .. }, Some(token)) = (self, token) {
            server.report_signals(state, token.to_owned());
        }
    }

    /// Tells the core from now on. `adopted`: maps of an earlier agent were taken over; `served`: they serve something.
    pub(crate) fn run(
        self,
        state: &Arc<State>,
        adopted: bool,
        served: bool,
        inbox: SyncSender<Input>,
    ) {
        match self {
            Self::File {
                directory,
                file,
                state: source,
            } => {
                let source = file::Source {
                    directory,
                    node: state.node.clone(),
                    file,
                    state: source,
                    served,
                };
                file::run(source, move |event| {
                    // The core ends only with the process.
                    let _ = inbox.send(Input::Source(event));
                });
            }
            Self::Kube { server, .. } => server.run(state, adopted, served, inbox),
        }
    }

    /// Says only that the node lives, until its status says that it is detached.
    pub(crate) fn run_detached(self, state: &Arc<State>) {
        if let Self::Kube { server, .. } = self {
            server.run_detached(state);
        }
    }
}
