//! One stream, from the agent's end.

use std::time::Duration;

use futures::{Stream as Messages, StreamExt};
use http::Uri;
use http::uri::PathAndQuery;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use sluice_signals::Report;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status, Streaming};
use tower::service_fn;

use crate::finder::Place;
use crate::wire::{Ack, AgentCodec, MAX_MESSAGE_BYTES};
use crate::{METHOD, NODE_METADATA, PING_INTERVAL, PING_TIMEOUT, SERVER_NAME};

/// How long a connection may take, with TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the operator may take to look at a proof.
const TAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes of an answer at most: there is nothing in one.
const MAX_ANSWER: usize = 1024;
/// Bytes that wait to be sent at most.
const SEND_BUFFER: usize = 256 * 1024;

/// There is no stream.
#[derive(thiserror::Error, Debug)]
pub enum Failure {
    /// There is no connection.
    #[error("cannot connect to the operator: {0}")]
    Connect(String),
    /// The operator refuses.
    #[error("the operator refuses: {} ({:?})", .0.message(), .0.code())]
    Refused(Status),
    /// What is to be sent cannot be.
    #[error("{0}")]
    Unsendable(String),
}

/// A stream that the operator has taken. Dropping it ends the connection.
#[derive(Debug)]
pub struct Stream {
    answers: Streaming<Ack>,
    _connection: JoinSet<()>,
}

impl Stream {
    /// Waits until the operator ends the stream, or the connection is lost; says why.
    pub async fn ended(&mut self) -> Status {
        loop {
            match self.answers.next().await {
                Some(Ok(Ack)) => {}
                Some(Err(status)) => return status,
                None => return Status::new(Code::Unavailable, "the operator has ended the stream"),
            }
        }
    }
}

/// Opens a stream for `node`, proven by `token`, that sends `reports`. It is there when the operator has taken it.
pub async fn open(
    place: &Place,
    node: &str,
    token: Option<&str>,
    reports: impl Messages<Item = Report> + Send + 'static,
) -> Result<Stream, Failure> {
    let mut request = Request::new(reports);
    let metadata = request.metadata_mut();
    metadata.insert(NODE_METADATA, text(node)?);
    if let Some(token) = token {
        let mut proof = text(&format!("Bearer {token}"))?;
        proof.set_sensitive(true);
        metadata.insert("authorization", proof);
    }
    let connected = timeout(CONNECT_TIMEOUT, connect(place)).await;
    let connected = connected.map_err(|_| Failure::Connect("it does not answer".to_owned()))?;
    let (mut sender, connection) = connected.map_err(Failure::Connect)?;
    let service = service_fn(move |request| sender.send_request(request));
    let client = Grpc::with_origin(
        service,
        Uri::from_static("https://operator.sluice.internal"),
    );
    let mut client = client
        .max_decoding_message_size(MAX_ANSWER)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let path = PathAndQuery::from_static(METHOD);
    let answer = client.streaming(request, path, AgentCodec::default());
    match timeout(TAKE_TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok(Stream {
            answers: answer.into_inner(),
            _connection: connection,
        }),
        Ok(Err(status)) => Err(Failure::Refused(status)),
        Err(_) => Err(Failure::Connect(
            "it does not take the stream in time".to_owned(),
        )),
    }
}

fn text(text: &str) -> Result<MetadataValue<Ascii>, Failure> {
    // The text itself may be a secret.
    text.parse()
        .map_err(|_| Failure::Unsendable("node or token is no plain text".to_owned()))
}

/// What sends requests, and what drives the connection for as long as it is there.
type Connected = (http2::SendRequest<tonic::body::Body>, JoinSet<()>);

async fn connect(place: &Place) -> Result<Connected, String> {
    let socket = TcpStream::connect(place.address).await;
    let socket = socket.map_err(|error| error.to_string())?;
    socket
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    let name = ServerName::try_from(SERVER_NAME).map_err(|error| error.to_string())?;
    let connector = TlsConnector::from(place.tls.clone());
    let tls = connector.connect(name, socket).await;
    let tls = tls.map_err(|error| format!("no TLS: {error}"))?;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .max_send_buf_size(SEND_BUFFER);
    let shaken = builder.handshake(TokioIo::new(tls)).await;
    let (sender, connection) = shaken.map_err(|error| format!("no HTTP/2: {error}"))?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        // The stream tells how it ended.
        let _ = connection.await;
    });
    Ok((sender, driver))
}
