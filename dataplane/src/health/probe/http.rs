//! A request of HTTP/1.1, and its answer.

use std::net::SocketAddr;
use std::pin::pin;

use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use sluice_api::{HttpCheck, HttpMethod, StatusRange};
use tokio::io::{AsyncRead, AsyncWrite};

use super::connect;
use super::tls::Contexts;
use super::udp::contains;

/// Bytes of a head at most.
const HEAD: usize = 16 * 1024;
/// Bytes of a body that are looked at.
const BODY: usize = 64 * 1024;
/// Statuses of servers that work, unless the check says otherwise.
const EXPECTED: StatusRange = StatusRange { min: 200, max: 399 };

/// Asks, and looks at the answer.
pub(super) async fn ask(
    server: SocketAddr,
    check: &HttpCheck,
    contexts: &Contexts,
) -> Result<(), String> {
    let request = request(server, check)?;
    let stream = connect(server).await?;
    match &check.tls {
        None => exchange(stream, request, check).await,
        Some(tls) => {
            let stream = contexts.connect(server, tls, None, stream).await?;
            exchange(stream, request, check).await
        }
    }
}

fn request(server: SocketAddr, check: &HttpCheck) -> Result<Request<Empty<Bytes>>, String> {
    let method = match check.method {
        HttpMethod::Get => Method::GET,
        HttpMethod::Head => Method::HEAD,
        HttpMethod::Options => Method::OPTIONS,
    };
    let host = check.host.clone().unwrap_or_else(|| server.to_string());
    let mut request = Request::builder()
        .method(method)
        .uri(&check.path)
        .header(HOST, host)
        .header(USER_AGENT, "sluice-health-check")
        .header(CONNECTION, "close");
    for header in &check.headers {
        request = request.header(&header.name, &header.value);
    }
    let request = request.body(Empty::new());
    request.map_err(|error| format!("cannot ask: {error}"))
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Empty<Bytes>>,
    check: &HttpCheck,
) -> Result<(), String> {
    let failed = |error: hyper::Error| format!("no answer by HTTP: {error}");
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD);
    let handshake = builder.handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(failed)?;
    let mut connection = pin!(connection);
    let mut answer = pin!(async {
        let response = sender.send_request(request).await.map_err(failed)?;
        expect(response, check).await
    });
    tokio::select! {
        answer = &mut answer => return answer,
        // What it has read is there still.
        _ = &mut connection => {}
    }
    answer.await
}

async fn expect(response: Response<Incoming>, check: &HttpCheck) -> Result<(), String> {
    let status = response.status();
    if !is_expected(status, &check.expected_statuses) {
        return Err(format!("answered with status {}", status.as_u16()));
    }
    let Some(text) = &check.body_contains else {
        return Ok(());
    };
    let mut body = response.into_body();
    let mut read = Vec::new();
    while read.len() < BODY
        && let Some(frame) = body.frame().await
    {
        let frame = frame.map_err(|error| format!("the body ended early: {error}"))?;
        if let Some(data) = frame.data_ref() {
            read.extend_from_slice(&data[..data.len().min(BODY - read.len())]);
        }
    }
    if contains(&read, text.as_bytes()) {
        Ok(())
    } else {
        Err("the body does not contain the expected text".to_owned())
    }
}

fn is_expected(status: StatusCode, expected: &[StatusRange]) -> bool {
    let is_in = |range: &StatusRange| (range.min..=range.max).contains(&status.as_u16());
    if expected.is_empty() {
        is_in(&EXPECTED)
    } else {
        expected.iter().any(is_in)
    }
}
