//! The operator's end of the stream by which agents report signals.
//!
//! ```text
//! agent ══► door (TLS, HTTP/2, strangers are few) ──► service (proof, one stream a node, rates) ──► Intake
//!             ▲ certificate                              │ review: the API server judges the token
//! keeper ─────┘ authorities in a Secret, address and bundle in a ConfigMap
//! ```
//!
//! Decided without I/O: `authority` (who signs), `proof` (what a token proves), `limits` (how much is taken), `streams` (one a node), `claim` (which
//! of two operators agents are told of).

mod authority;
mod certificate;
mod claim;
mod door;
mod keeper;
mod limits;
mod metrics;
mod proof;
mod review;
mod service;
mod streams;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kube::Client;
use sluice_signals::Intake;
use tokio::net::TcpListener;
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::metrics::Metrics;
use certificate::Certificate;
use keeper::Keeper;
use proof::Account;
use review::Reviewer;
use service::Service;

pub use metrics::StreamMetrics;

/// Port at which reports are taken.
pub const DEFAULT_PORT: u16 = 9202;
/// Name of the ServiceAccount of agents, where nothing else is said.
pub const DEFAULT_ACCOUNT: &str = "sluice-agent";

/// Time between two tries to listen.
const RETRY: Duration = Duration::from_secs(5);

/// Where and of whom reports are taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The address at which agents reach this operator.
    pub host: IpAddr,
    /// The port.
    pub port: u16,
    /// Name of the agents' ServiceAccount, in Sluice's namespace.
    pub account: String,
}

/// Takes reports into `intake` for as long as it is polled. `namespace` is Sluice's own.
pub async fn run(
    client: Client,
    namespace: &str,
    settings: Settings,
    intake: Arc<Mutex<Intake>>,
    metrics: Arc<Metrics>,
) {
    let address = SocketAddr::new(settings.host, settings.port);
    let account = Account {
        namespace: namespace.to_owned(),
        name: settings.account,
    };
    let reviewer = Reviewer::new(client.clone(), account, Arc::clone(&metrics));
    let service = Arc::new(Service::new(reviewer, intake, metrics));
    let certificate = Arc::new(Certificate::default());
    let tls = match certificate::server(Arc::clone(&certificate)) {
        Ok(tls) => tls,
        Err(error) => {
            error!("takes no reports of signals: {error}");
            return std::future::pending().await;
        }
    };
    let listener = listen(address).await;
    info!(%address, "takes reports of signals");
    let keeper = Keeper::new(
        &client,
        namespace,
        address,
        writer(),
        certificate,
        Arc::clone(&service),
    );
    tokio::join!(keeper.run(), door::serve(listener, tls, service));
}

/// Listens as soon as the port can be had.
async fn listen(address: SocketAddr) -> TcpListener {
    let mut failing = String::new();
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if failing != error.to_string() => {
                failing = error.to_string();
                warn!(
                    "cannot listen on {address} for reports of signals ({error}): stop the process that does, or choose \
                     another port with --stream-port; goes on without, and tries again"
                );
            }
            Err(_) => {}
        }
        sleep(RETRY).await;
    }
}

/// By this name an operator knows what it wrote itself.
fn writer() -> String {
    let chance = getrandom::u64().unwrap_or_default();
    format!("{chance:016x}")
}

fn elapsed_ms(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}
