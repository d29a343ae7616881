//! The admin endpoint: health, metrics, and what the maps hold.
//!
//! | path | says |
//! |---|---|
//! | `/healthz` | 200 while the agent's loop goes round |
//! | `/readyz` | 200 when programs are attached and the last plan is in the maps, else 503 and why not |
//! | `/metrics` | OpenMetrics |
//! | `/maps` | intended and actual maps as JSON; on the Unix socket only |

mod dump;
mod metrics;

use std::fs;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State as Extract;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, UnixListener};

use crate::state::State;

/// How long [`ask`] waits for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Errors of the admin endpoint and of asking it.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}: stop the process that does, or choose another address with {option}"
    )]
    Listen {
        /// The address.
        address: String,
        /// The option that sets it.
        option: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// No agent answers.
    #[error("no agent answers at {}: is it running, with the same --pin-dir or --socket?", path.display())]
    Ask {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The agent refused.
    #[error("the agent answers {status}: {body}")]
    Refused {
        /// The status line.
        status: String,
        /// The body of the answer.
        body: String,
    },
}

#[derive(Clone)]
struct Shared {
    state: Arc<State>,
    registry: Arc<Registry>,
}

/// Listening sockets.
#[derive(Debug)]
pub struct Listeners {
    tcp: Option<TcpListener>,
    unix: UnixListener,
    socket: PathBuf,
}

impl Listeners {
    /// Binds both. A socket file that an earlier agent left is replaced: the caller holds the pins, so it is nobody's.
    pub async fn bind(address: Option<SocketAddr>, socket: &Path) -> Result<Self, Error> {
        let tcp = match address {
            Some(address) => {
                Some(
                    TcpListener::bind(address)
                        .await
                        .map_err(|source| Error::Listen {
                            address: address.to_string(),
                            option: "--admin",
                            source,
                        })?,
                )
            }
            None => None,
        };
        let unix = bind_unix(socket).map_err(|source| Error::Listen {
            address: socket.display().to_string(),
            option: "--socket",
            source,
        })?;
        Ok(Self {
            tcp,
            unix,
            socket: socket.to_owned(),
        })
    }

    /// Answers for as long as it is polled. `registry` gets the agent's metrics.
    pub async fn serve(self, state: Arc<State>, mut registry: Registry) -> io::Result<()> {
        metrics::register(&mut registry, Arc::clone(&state));
        let shared = Shared {
            state,
            registry: Arc::new(registry),
        };
        let public = Router::new()
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics_text));
        let private = public.clone().route("/maps", get(maps));
        let unix = axum::serve(self.unix, private.with_state(shared.clone()));
        match self.tcp {
            Some(tcp) => {
                let tcp = axum::serve(tcp, public.with_state(shared));
                tokio::try_join!(unix.into_future(), tcp.into_future()).map(drop)
            }
            None => unix.await,
        }
    }

    /// Where the Unix socket is.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

fn bind_unix(socket: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = socket.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn healthz(Extract(shared): Extract<Shared>) -> Response {
    if shared.state.is_healthy() {
        return "ok\n".into_response();
    }
    let reason = "the agent's loop stands still: see its log, and restart it\n";
    (StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
}

async fn readyz(Extract(shared): Extract<Shared>) -> Response {
    let not_ready = shared.state.published().not_ready;
    if not_ready.is_empty() {
        return "ok\n".into_response();
    }
    let reasons = not_ready.join("\n") + "\n";
    (StatusCode::SERVICE_UNAVAILABLE, reasons).into_response()
}

async fn metrics_text(Extract(shared): Extract<Shared>) -> Response {
    const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    answer(CONTENT_TYPE, move || {
        let mut text = String::new();
        encode(&mut text, &shared.registry).map_err(|error| error.to_string())?;
        Ok(text)
    })
    .await
}

async fn maps(Extract(shared): Extract<Shared>) -> Response {
    answer("application/json", move || dump::json(&shared.state)).await
}

/// Answers with what `make` makes in a thread that may wait for system calls.
async fn answer(
    content_type: &'static str,
    make: impl FnOnce() -> Result<String, String> + Send + 'static,
) -> Response {
    let failed = |message: String| (StatusCode::INTERNAL_SERVER_ERROR, message).into_response();
    match tokio::task::spawn_blocking(make).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, content_type)], text).into_response(),
        Ok(Err(message)) => failed(message),
        Err(error) => failed(error.to_string()),
    }
}

/// Asks a running agent for a path, by its Unix socket.
pub fn ask(socket: &Path, path: &str) -> Result<String, Error> {
    let exchange = || -> io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        // HTTP/1.0: the answer ends where the connection does, and is not chunked.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: agent\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(|source| Error::Ask {
        path: socket.to_owned(),
        source,
    })?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default();
    if status.split_whitespace().nth(1) == Some("200") {
        return Ok(body.to_owned());
    }
    Err(Error::Refused {
        status: status.to_owned(),
        body: body.trim().to_owned(),
    })
}
