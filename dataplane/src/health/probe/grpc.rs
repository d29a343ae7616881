//! gRPC's health checking protocol, `grpc.health.v1`.

use std::error::Error;
use std::net::SocketAddr;
use std::pin::pin;

use http::Uri;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sluice_api::GrpcCheck;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tower::service_fn;

use super::connect;
use super::tls::Contexts;

/// Bytes of an answer at most: a status takes two.
const ANSWER: usize = 1_024;
/// HTTP/2 in TLS (RFC 9113 section 3.2).
const HTTP2: &[u8] = b"h2";

/// Asks, and looks at the answer.
pub(super) async fn ask(
    server: SocketAddr,
    check: &GrpcCheck,
    contexts: &Contexts,
) -> Result<(), String> {
    let stream = connect(server).await?;
    match &check.tls {
        None => {
            let origin = origin("http", &server.to_string())?;
            exchange(stream, origin, check).await
        }
        Some(tls) => {
            let stream = contexts.connect(server, tls, Some(HTTP2), stream).await?;
            let host = tls.server_name.clone();
            let host = host.unwrap_or_else(|| server.to_string());
            exchange(stream, origin("https", &host)?, check).await
        }
    }
}

fn origin(scheme: &str, host: &str) -> Result<Uri, String> {
    let origin = Uri::builder().scheme(scheme).authority(host);
    let origin = origin.path_and_query("/").build();
    origin.map_err(|error| format!("cannot ask: {error}"))
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    origin: Uri,
    check: &GrpcCheck,
) -> Result<(), String> {
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| no_answer(&error))?;
    let service = service_fn(move |request| sender.send_request(request));
    let client = HealthClient::with_origin(service, origin);
    let mut client = client.max_decoding_message_size(ANSWER);
    let request = HealthCheckRequest {
        service: check.service.clone(),
    };
    let mut connection = pin!(connection);
    let mut answer = pin!(client.check(request));
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // What it has read is there still.
        _ = &mut connection => answer.await,
    };
    match answer {
        Ok(answer) => match answer.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            other => Err(format!("answered with {}", other.as_str_name())),
        },
        Err(status) => Err(match status.source() {
            Some(error) => no_answer(error),
            None => format!("answered with status {:?}", status.code()),
        }),
    }
}

fn no_answer(error: &dyn Error) -> String {
    format!("no answer by gRPC: {error}")
}
