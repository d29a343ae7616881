//! One check of one server.

mod grpc;
mod http;
mod icmp;
mod tls;
mod udp;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sluice_api::HealthCheck;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::timeout;

use tls::Contexts;

/// Checks servers.
#[derive(Debug, Default)]
pub(super) struct Prober {
    contexts: Contexts,
}

impl Prober {
    /// How long the server took to pass, or why it failed.
    pub(super) async fn check(
        &self,
        server: SocketAddr,
        check: &HealthCheck,
    ) -> Result<Duration, String> {
        let limit = Duration::from_millis(check.timeout_milliseconds.into());
        let start = Instant::now();
        let answer = async {
            if let Some(http) = &check.http {
                http::ask(server, http, &self.contexts).await
            } else if let Some(grpc) = &check.grpc {
                grpc::ask(server, grpc, &self.contexts).await
            } else if let Some(udp) = &check.udp {
                udp::ask(server, udp).await
            } else if check.icmp.is_some() {
                icmp::ask(server.ip()).await
            } else {
                connect(server).await.map(drop)
            }
        };
        match timeout(limit, answer).await {
            Ok(answer) => answer.map(|()| start.elapsed()),
            Err(_) => Err(format!("did not answer within {} ms", limit.as_millis())),
        }
    }
}

/// Opens a connection. It is reset when it is dropped, so that thousands of them leave nothing behind.
async fn connect(server: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(server).await;
    let stream = stream.map_err(|error| format!("cannot connect: {error}"))?;
    // Without it the connection waits for its end as any other.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    Ok(stream)
}

#[cfg(test)]
mod tests;
