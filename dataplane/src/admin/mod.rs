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

use std::fmt;
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
use axum::serve::Listener;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, UnixListener};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::state::State;

/// Time between two tries to listen at an address that cannot be had.
const RETRY: Duration = Duration::from_secs(5);
/// How long [`ask`] waits for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Errors of asking the admin endpoint.
#[derive(thiserror::Error, Debug)]
pub enum Error {
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
    tcp: Option<(SocketAddr, io::Result<TcpListener>)>,
    unix: io::Result<UnixListener>,
    socket: PathBuf,
}

impl Listeners {
    /// Binds both. A socket file that an earlier agent left is replaced: the caller holds the pins, so it is nobody's. What
    /// cannot be had is told and tried again by [`Self::serve`].
    pub async fn bind(address: Option<SocketAddr>, socket: &Path) -> Self {
        let tcp = match address {
            Some(address) => Some((address, TcpListener::bind(address).await)),
            None => None,
        };
        Self {
            tcp,
            unix: bind_unix(socket),
            socket: socket.to_owned(),
        }
    }

    /// Answers for as long as it is polled. `registry` gets the agent's metrics.
    pub async fn serve(self, state: Arc<State>, mut registry: Registry) {
        metrics::register(&mut registry, Arc::clone(&state));
        let shared = Shared {
            state: Arc::clone(&state),
            registry: Arc::new(registry),
        };
        let public = Router::new()
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics_text));
        let private = public.clone().route("/maps", get(maps));
        let socket = &self.socket;
        let unix = Door {
            name: "socket",
            address: socket.display().to_string(),
            router: private.with_state(shared.clone()),
            state: &state,
        };
        let unix = unix.keep_open(self.unix, async || bind_unix(socket));
        let Some((address, tcp)) = self.tcp else {
            return unix.await;
        };
        let door = Door {
            name: "admin",
            address: address.to_string(),
            router: public.with_state(shared),
            state: &state,
        };
        let tcp = door.keep_open(tcp, async || TcpListener::bind(address).await);
        tokio::join!(unix, tcp);
    }

    /// Where the Unix socket is.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// One of the places at which the agent answers.
struct Door<'a> {
    /// The option that sets its address.
    name: &'static str,
    address: String,
    router: Router,
    state: &'a State,
}

impl Door<'_> {
    /// Answers there for as long as it is polled. While it cannot, the agent does its work without, and says so.
    async fn keep_open<L>(self, first: io::Result<L>, bind: impl AsyncFn() -> io::Result<L>)
    where
        L: Listener,
        L::Addr: fmt::Debug,
    {
        let mut listener = first;
        loop {
            let ended = match listener {
                Ok(listener) => {
                    if self.state.closed_doors().contains_key(self.name) {
                        info!("listens on {} again", self.address);
                        self.state.open_door(self.name);
                    }
                    axum::serve(listener, self.router.clone()).await
                }
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                let Self { name, address, .. } = &self;
                let message = format!(
                    "cannot listen on {address} for health and metrics ({error}): stop the process that does, or choose another address \
                     with --{name}"
                );
                if self.state.closed_doors().get(name) != Some(&message) {
                    warn!("{message}; goes on without, and tries again");
                    self.state.close_door(name, message);
                }
            }
            sleep(RETRY).await;
            listener = bind().await;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn until(what: &str, is_true: impl Fn() -> bool) {
        for _ in 0..1_000 {
            if is_true() {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("{what} did not come");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_port_that_is_taken_is_told_and_tried_again() {
        let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = taken.local_addr().expect("an address");
        let socket = std::env::temp_dir().join(format!("sluice-admin-{}.sock", std::process::id()));
        let state = Arc::new(State::new("n".to_owned(), None, Arc::default()));
        let listeners = Listeners::bind(Some(address), &socket).await;
        let serving = listeners.serve(Arc::clone(&state), Registry::default());
        let asking = async {
            until("the complaint", || !state.closed_doors().is_empty()).await;
            let reason = state.closed_doors().remove("admin").expect("told");
            assert!(
                reason.contains(&address.to_string()) && reason.contains("with --admin"),
                "{reason}"
            );
            let asked = socket.clone();
            let metrics = tokio::task::spawn_blocking(move || ask(&asked, "/metrics")).await;
            let metrics = metrics.expect("no panic").expect("an answer");
            assert!(
                metrics.contains("sluice_admin_closed{option=\"admin\"} 1"),
                "{metrics}"
            );
            drop(taken);
            until("the port", || state.closed_doors().is_empty()).await;
        };
        tokio::select! {
            () = serving => panic!("it goes on"),
            () = asking => {}
        }
        let _ = fs::remove_file(socket);
    }
}
