//! The admin endpoint.
//!
//! | path | says |
//! |---|---|
//! | `/healthz` | 200 while the operator's loop goes round, however slow the API server answers |
//! | `/readyz` | 200 when everything was read once, else 503 and what is waited for |
//! | `/metrics` | OpenMetrics |

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State as Extract;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::metrics::Metrics;

/// Time between two tries to listen.
const RETRY: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Shared {
    metrics: Arc<Metrics>,
    registry: Arc<Registry>,
}

/// Answers for as long as it is polled. While the address cannot be had the operator does its work without.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>) {
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(text))
        .with_state(Shared {
            metrics,
            registry: Arc::new(registry),
        });
    let mut failing = String::new();
    loop {
        let ended = match TcpListener::bind(address).await {
            Ok(listener) => {
                if !failing.is_empty() {
                    info!("listens on {address} again");
                    failing.clear();
                }
                axum::serve(listener, router.clone()).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = ended
            && failing != error.to_string()
        {
            failing = error.to_string();
            warn!(
                "cannot listen on {address} for health and metrics ({error}): stop the process that does, or choose another address \
                 with --admin, or none; goes on without, and tries again"
            );
        }
        sleep(RETRY).await;
    }
}

async fn healthz(Extract(shared): Extract<Shared>) -> Response {
    if shared.metrics.is_healthy() {
        return "ok\n".into_response();
    }
    let reason = "the operator's loop stands still: see its log, and restart it\n";
    (StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
}

async fn readyz(Extract(shared): Extract<Shared>) -> Response {
    let not_ready = shared.metrics.not_ready();
    if not_ready.is_empty() {
        return "ok\n".into_response();
    }
    let reasons = not_ready.join("\n") + "\n";
    (StatusCode::SERVICE_UNAVAILABLE, reasons).into_response()
}

async fn text(Extract(shared): Extract<Shared>) -> Response {
    const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let mut text = String::new();
    match encode(&mut text, &shared.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_port_that_is_taken_is_tried_again() {
        let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = taken.local_addr().expect("an address");
        let serving = tokio::spawn(serve(address, Arc::default()));
        sleep(Duration::from_millis(100)).await;
        assert!(!serving.is_finished());
        drop(taken);
        let answer = async {
            loop {
                if let Ok(mut stream) = TcpStream::connect(address).await {
                    let request = b"GET /healthz HTTP/1.0\r\n\r\n";
                    stream.write_all(request).await.expect("sent");
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer).await.expect("read");
                    return answer;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        let answer = tokio::time::timeout(4 * RETRY, answer)
            .await
            .expect("in time");
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        serving.abort();
    }
}
