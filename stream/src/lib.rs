//! The stream by which agents report signals to the operator, under Kubernetes.
//!
//! ```text
//! agent: report ─► unsent ─► client ══ TLS, HTTP/2, gRPC ══► operator: proof ─► one stream a node ─► Intake
//!          finder ◄── ConfigMap (address, authorities) ◄── operator
//! ```
//!
//! One call of gRPC, [`METHOD`], lasts as long as the stream. The agent sends what its node saw second by second; the operator answers with
//! headers once it has taken the stream, and with a status when it ends it. Nothing else goes back.
//!
//! | module | does |
//! |---|---|
//! | `wire` | the messages, and what is refused of them |
//! | `client` | one stream, from the agent's end |
//! | `finder` | where the operator is, and whom to trust |
//! | `unsent` | which seconds are still to be sent (pure) |
//! | `sender` | the agent's loop: finds, connects, sends, tries again |
#![forbid(unsafe_code)]

mod client;
mod finder;
mod sender;
mod unsent;
mod wire;

use std::time::Duration;

pub use client::{Failure, Stream, open};
pub use finder::{FindError, Finder, Place};
pub use sender::{Sender, SenderState};
pub use wire::{Ack, AgentCodec, MAX_MESSAGE_BYTES, OperatorCodec};

/// The method of gRPC that a stream calls.
pub const METHOD: &str = "/sluice.v1alpha1.Signals/Report";
/// Metadata with the name of the node that a stream reports for.
pub const NODE_METADATA: &str = "sluice-node";
/// Audience of the tokens by which agents prove who they are. No other server takes them.
pub const AUDIENCE: &str = "sluice-operator";
/// The name in the operator's certificate. It is no name of DNS: agents connect to an address.
pub const SERVER_NAME: &str = "operator.sluice.internal";
/// ConfigMap in Sluice's namespace that says where the operator is.
pub const CONFIG_MAP: &str = "sluice-stream";
/// Its key with address and port.
pub const ADDRESS_KEY: &str = "address";
/// Its key with the authorities that sign the operator's certificate, as PEM.
pub const AUTHORITIES_KEY: &str = "ca.crt";
/// HTTP/2 in TLS (RFC 9113 section 3.2).
pub const ALPN: &[u8] = b"h2";

/// Time between two pings, each way.
pub const PING_INTERVAL: Duration = Duration::from_secs(5);
/// How long the answer to a ping is waited for. A peer that is gone is noticed after both.
pub const PING_TIMEOUT: Duration = Duration::from_secs(5);
