//! Lets agents in: TLS, HTTP/2, and how long somebody may stay who has proven nothing.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use sluice_stream::{PING_INTERVAL, PING_TIMEOUT};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::service::{Peer, Service, Stage};

/// How long TLS may take to begin.
const SHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take from then on until it has proven who it is.
const PROOF_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection may take to go.
const LINGER: Duration = Duration::from_secs(2);
/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Calls under way of a connection. It has one; a second is told so.
const MAX_CALLS: u32 = 2;
/// Bytes that are taken of a call, and of a connection, before somebody reads them.
const WINDOW: u32 = 64 * 1024;
/// Bytes of a request's headers: a token is the most of it.
const MAX_HEADERS: u32 = 24 * 1024;
/// Bytes of answers that wait.
const SEND_BUFFER: usize = 4096;

/// A connection that counts among the strangers until this is dropped.
struct Stranger {
    service: Arc<Service>,
    address: IpAddr,
    /// Whether it went as far as to be answered. One that did not has cost the operator something all the same.
    was_answered: bool,
}

impl Stranger {
    fn enter(service: &Arc<Service>, address: IpAddr) -> Option<Self> {
        let now_ms = service.now_ms();
        let strangers = service.strangers.lock();
        let mut strangers = strangers.unwrap_or_else(PoisonError::into_inner);
        strangers.enter(address, now_ms).then(|| Self {
            service: Arc::clone(service),
            address,
            was_answered: false,
        })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let strangers = self.service.strangers.lock();
        let mut strangers = strangers.unwrap_or_else(PoisonError::into_inner);
        strangers.leave(self.address);
        if !self.was_answered {
            strangers.fail(self.address, self.service.now_ms());
        }
    }
}

/// Lets agents in for as long as it is polled.
pub(super) async fn serve(listener: TcpListener, tls: ServerConfig, service: Arc<Service>) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    loop {
        let Ok((socket, from)) = listener.accept().await else {
            // As while there are too many open files.
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        match Stranger::enter(&service, from.ip()) {
            Some(stranger) => {
                tokio::spawn(attend(socket, acceptor.clone(), stranger));
            }
            None => {
                service.metrics.stream.turned_away.inc();
            }
        }
    }
}

async fn attend(socket: TcpStream, acceptor: TlsAcceptor, mut stranger: Stranger) {
    let _ = socket.set_nodelay(true);
    let tls = match timeout(SHAKE_TIMEOUT, acceptor.accept(socket)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            debug!(from = %stranger.address, "no TLS: {error}");
            return;
        }
        Err(_) => return,
    };
    let (peer, mut stages) = Peer::new(stranger.address);
    let service = Arc::clone(&stranger.service);
    let answers =
        service_fn(move |request| Arc::clone(&service).answer(Arc::clone(&peer), request));
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(MAX_CALLS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buf_size(SEND_BUFFER);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(tls), answers));
    let proven = stages.wait_for(|stage| *stage != Stage::Stranger);
    tokio::select! {
        _ = &mut connection => return,
        proven = timeout(PROOF_TIMEOUT, proven) => if proven.is_err() {
            return;
        },
    }
    stranger.was_answered = true;
    drop(stranger);
    tokio::select! {
        _ = &mut connection => return,
        _ = stages.wait_for(|stage| *stage == Stage::Ended) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(LINGER, connection).await;
}
