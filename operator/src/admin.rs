//! The admin endpoint.
//!
//! | path | says |
//! |---|---|
//! | `/healthz` | 200 while the operator's loop goes round, however slow the API server answers |
//! | `/readyz` | 200 when everything was read once, else 503 and what is waited for |
//! | `/metrics` | OpenMetrics |

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State as Extract;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::metrics::Metrics;

/// The endpoint cannot be had.
#[derive(thiserror::Error, Debug)]
#[error(
    "cannot listen on {address}: stop who does, or choose another address with --admin, or none"
)]
pub struct Error {
    address: SocketAddr,
    source: io::Error,
}

#[derive(Clone)]
struct Shared {
    metrics: Arc<Metrics>,
    registry: Arc<Registry>,
}

/// Listens, and answers for as long as the returned future is polled.
pub async fn serve(
    address: SocketAddr,
    metrics: Arc<Metrics>,
) -> Result<impl Future<Output = io::Result<()>>, Error> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| Error { address, source })?;
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
    Ok(async move { axum::serve(listener, router).await })
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
