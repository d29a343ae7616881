//! Takes streams: each proves its node, is the only one of it, and tells no more than it may.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::Stream;
use hyper::body::Incoming;
use sluice_api::jiff::Timestamp;
use sluice_signals::{Intake, Report};
use sluice_stream::{Ack, MAX_MESSAGE_BYTES, METHOD, NODE_METADATA, OperatorCodec};
use tokio::sync::watch;
use tokio::time::{Instant as Moment, sleep_until};
use tonic::metadata::MetadataMap;
use tonic::server::Grpc;
use tonic::{Code, Request, Response, Status, Streaming};
use tower::service_fn;
use tracing::{debug, warn};

use super::elapsed_ms;
use super::limits::Strangers;
use super::metrics::ReasonLabel;
use super::proof::{Reason, Refusal, again};
use super::review::Reviewer;
use super::streams::{Streams, Ticket};
use crate::metrics::Metrics;

/// For how long a proof counts while the API server does not answer.
const PROOF_COUNTS: Duration = Duration::from_mins(10);
/// When it is asked again then.
const ASK_AGAIN: Duration = Duration::from_secs(15);
/// Characters of a token at most.
const MAX_TOKEN: usize = 16 * 1024;
/// Characters of a node's name at most.
const MAX_NODE: usize = 253;
/// Refusals that are remembered so that each is told once,
const MAX_TOLD: usize = 1024;
/// and for how long.
const TELL_AGAIN: Duration = Duration::from_hours(1);

/// What is answered: nothing, and at the end a status.
type Answers = Pin<Box<dyn Stream<Item = Result<Ack, Status>> + Send>>;

/// How far a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// Nothing was proven.
    Stranger,
    /// It has a stream.
    Open,
    /// It had its stream, or was refused.
    Ended,
}

/// Who is at the other end of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) address: std::net::IpAddr,
    pub(super) stage: watch::Sender<Stage>,
    /// A connection asks once.
    has_asked: AtomicBool,
}

impl Peer {
    pub(super) fn new(address: std::net::IpAddr) -> (Arc<Self>, watch::Receiver<Stage>) {
        let (stage, stages) = watch::channel(Stage::Stranger);
        let has_asked = AtomicBool::new(false);
        let peer = Self {
            address,
            stage,
            has_asked,
        };
        (Arc::new(peer), stages)
    }
}

/// Takes streams.
pub(super) struct Service {
    reviewer: Reviewer,
    pub(super) streams: Streams,
    pub(super) strangers: Mutex<Strangers>,
    intake: Arc<Mutex<Intake>>,
    pub(super) metrics: Arc<Metrics>,
    told: Mutex<(Instant, BTreeSet<(String, Reason)>)>,
    start: Instant,
    /// Whether agents are told to come here.
    is_named: AtomicBool,
}

/// A stream that was taken. What it holds is let go in this order.
struct Open {
    ticket: Ticket,
    _closing: Closing,
    node: String,
    token: String,
    reports: Streaming<Report>,
}

/// Notes that a stream is over.
struct Closing(Arc<Service>, Arc<Peer>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.count();
        self.1.stage.send_replace(Stage::Ended);
    }
}

impl Service {
    pub(super) fn new(
        reviewer: Reviewer,
        intake: Arc<Mutex<Intake>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            reviewer,
            streams: Streams::default(),
            strangers: Mutex::default(),
            intake,
            metrics,
            told: Mutex::new((Instant::now(), BTreeSet::new())),
            start: Instant::now(),
            is_named: AtomicBool::new(false),
        }
    }

    /// Whether agents are told to come here. If not, those that are here are to go.
    pub(super) fn set_named(&self, is_named: bool) {
        if self.is_named.swap(is_named, Ordering::Relaxed) && !is_named {
            self.streams.end_all(Reason::Elsewhere);
        }
    }

    pub(super) fn now_ms(&self) -> u64 {
        elapsed_ms(self.start)
    }

    /// Answers a request.
    pub(super) async fn answer(
        self: Arc<Self>,
        peer: Arc<Peer>,
        request: http::Request<Incoming>,
    ) -> Result<http::Response<tonic::body::Body>, Infallible> {
        if request.uri().path() != METHOD {
            return Ok(Status::unimplemented("there is one method").into_http());
        }
        if peer.has_asked.swap(true, Ordering::Relaxed) {
            let message = "a connection has one stream";
            return Ok(Status::resource_exhausted(message).into_http());
        }
        let open = service_fn(move |request| {
            let (service, peer) = (Arc::clone(&self), Arc::clone(&peer));
            async move { service.open(peer, request).await }
        });
        let grpc = Grpc::new(OperatorCodec::default());
        let mut grpc = grpc.max_decoding_message_size(MAX_MESSAGE_BYTES);
        Ok(grpc.streaming(open, request).await)
    }

    async fn open(
        self: Arc<Self>,
        peer: Arc<Peer>,
        request: Request<Streaming<Report>>,
    ) -> Result<Response<Answers>, Status> {
        let (metadata, _, reports) = request.into_parts();
        let named = text(&metadata, NODE_METADATA).unwrap_or_default();
        let node = if is_name(named) { named } else { "" };
        let (token, ticket) = match self.prove(&metadata, node).await {
            Ok(proven) => proven,
            Err(refusal) => {
                self.refuse(node, &refusal);
                let is_unproven = matches!(
                    refusal.reason,
                    Reason::NoNode
                        | Reason::NoToken
                        | Reason::NoProof
                        | Reason::Account
                        | Reason::OtherNode
                );
                if is_unproven {
                    let now_ms = self.now_ms();
                    let strangers = self.strangers.lock();
                    let mut strangers = strangers.unwrap_or_else(PoisonError::into_inner);
                    strangers.fail(peer.address, now_ms);
                }
                peer.stage.send_replace(Stage::Ended);
                return Err(refusal.status());
            }
        };
        debug!(node, "reports");
        peer.stage.send_replace(Stage::Open);
        self.count();
        let open = Open {
            ticket,
            _closing: Closing(Arc::clone(&self), peer),
            node: node.to_owned(),
            token,
            reports,
        };
        let answers = futures::stream::once(self.take(open));
        Ok(Response::new(Box::pin(answers)))
    }

    /// Whether what came with a request proves this node.
    async fn prove(&self, metadata: &MetadataMap, node: &str) -> Result<(String, Ticket), Refusal> {
        if !self.is_named.load(Ordering::Relaxed) {
            let message = "another operator takes reports, or none";
            return Err(Refusal::new(Reason::Elsewhere, message));
        }
        if node.is_empty() {
            let message = format!("{NODE_METADATA} is no name of a node");
            return Err(Refusal::new(Reason::NoNode, message));
        }
        let token = text(metadata, "authorization");
        let token = token.and_then(|text| text.strip_prefix("Bearer "));
        let token = token.filter(|token| !token.is_empty() && token.len() <= MAX_TOKEN);
        let token = token.ok_or_else(|| Refusal::new(Reason::NoToken, "there is no token"))?;
        self.reviewer.review(token, node).await?;
        let ticket = self.streams.open(node, self.now_ms())?;
        Ok((token.to_owned(), ticket))
    }

    /// Takes reports until the stream ends. An error is the operator's reason to end it.
    async fn take(self: Arc<Self>, mut open: Open) -> Result<Ack, Status> {
        match self.take_all(&mut open).await {
            None => Ok(Ack),
            Some(refusal) => {
                self.refuse(&open.node, &refusal);
                Err(refusal.status())
            }
        }
    }

    async fn take_all(&self, open: &mut Open) -> Option<Refusal> {
        let mut proven = Moment::now();
        let mut review_at = proven + until_review(&open.token);
        loop {
            tokio::select! {
                ended = &mut open.ticket.ended => {
                    let reason = ended.unwrap_or(Reason::Replaced);
                    return Some(Refusal::new(reason, format!("the stream is over: {}", reason.name())));
                }
                message = open.reports.message() => match message {
                    Ok(Some(report)) => {
                        if !open.ticket.message(self.now_ms()) {
                            return Some(Refusal::new(Reason::Flood, "the node sends too much"));
                        }
                        let mut intake = self.intake.lock().unwrap_or_else(PoisonError::into_inner);
                        intake.take(&open.node, &report, self.now_ms());
                        self.metrics.stream.reports.inc();
                    }
                    Ok(None) => return None,
                    Err(status) => return unreadable(&status),
                },
                () = sleep_until(review_at) => {
                    match self.reviewer.review(&open.token, &open.node).await {
                        Ok(()) => {
                            proven = Moment::now();
                            review_at = proven + until_review(&open.token);
                        }
                        Err(refusal) if is_passing(&refusal) && proven.elapsed() < PROOF_COUNTS => {
                            review_at = Moment::now() + ASK_AGAIN;
                        }
                        Err(refusal) => return Some(refusal),
                    }
                }
            }
        }
    }

    /// Counts a refusal, and tells of it once for each node and reason.
    fn refuse(&self, node: &str, refusal: &Refusal) {
        let reason = refusal.reason;
        let label = ReasonLabel {
            reason: reason.name(),
        };
        self.metrics.stream.refused.get_or_create(&label).inc();
        let is_new = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.0.elapsed() >= TELL_AGAIN {
                *told = (Instant::now(), BTreeSet::new());
            }
            told.1.len() < MAX_TOLD && told.1.insert((node.to_owned(), reason))
        };
        let (name, message) = (reason.name(), &refusal.message);
        match reason {
            Reason::Replaced | Reason::Elsewhere | Reason::Unavailable => {
                debug!(
                    node,
                    reason = name,
                    "a stream is refused or over: {message}"
                );
            }
            _ if is_new => {
                warn!(
                    node,
                    reason = name,
                    "refuses a stream of signals: {message}"
                );
            }
            _ => debug!(node, reason = name, "refuses a stream: {message}"),
        }
    }

    fn count(&self) {
        let count = i64::try_from(self.streams.count()).unwrap_or(i64::MAX);
        self.metrics.stream.open.set(count);
    }
}

/// Whether a refusal says nothing of the token.
fn is_passing(refusal: &Refusal) -> bool {
    matches!(refusal.reason, Reason::Unavailable | Reason::TooMany)
}

fn until_review(token: &str) -> Duration {
    let seconds = again(token, Timestamp::now().as_second());
    Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

/// What comes of a message that cannot be read; `None`: the connection is gone.
fn unreadable(status: &Status) -> Option<Refusal> {
    let is_message = [Code::InvalidArgument, Code::OutOfRange, Code::Internal];
    let is_message = is_message.contains(&status.code());
    let refusal = || Refusal::new(Reason::NoReport, status.message().to_owned());
    is_message.then(refusal)
}

fn text<'a>(metadata: &'a MetadataMap, key: &str) -> Option<&'a str> {
    metadata.get(key)?.to_str().ok()
}

/// Whether a node could be called so (RFC 1123).
fn is_name(text: &str) -> bool {
    let is_usual = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
    (1..=MAX_NODE).contains(&text.len()) && text.bytes().all(is_usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_nodes_are_told_from_others() {
        assert!(is_name("n1") && is_name("node-1.example.org"));
        for text in ["", "N1", "n1\n", "n 1", "../n1", &"n".repeat(254)] {
            assert!(!is_name(text), "{text}");
        }
    }

    #[test]
    fn a_lost_connection_is_no_refusal() {
        assert!(unreadable(&Status::cancelled("reset")).is_none());
        assert!(unreadable(&Status::unknown("lost")).is_none());
        let refusal = unreadable(&Status::out_of_range("too large"));
        assert_eq!(
            refusal.map(|refusal| refusal.reason),
            Some(Reason::NoReport)
        );
    }
}
