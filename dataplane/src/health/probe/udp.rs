//! A datagram, and an answer.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use sluice_api::UdpCheck;
use tokio::net::UdpSocket;

/// Bytes of an answer that are looked at.
const ANSWER: usize = 2_048;

/// Sends the datagram and waits for an answer.
pub(super) async fn ask(server: SocketAddr, check: &UdpCheck) -> Result<(), String> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let failed = |error| format!("cannot ask: {error}");
    let socket = UdpSocket::bind(any).await.map_err(failed)?;
    socket.connect(server).await.map_err(failed)?;
    socket.send(check.send.as_bytes()).await.map_err(failed)?;
    let mut answer = [0; ANSWER];
    // A port that is closed shows by ICMP.
    let length = socket.recv(&mut answer).await.map_err(failed)?;
    match &check.expect {
        Some(expected) if !contains(&answer[..length], expected.as_bytes()) => {
            Err("the answer does not contain the expected text".to_owned())
        }
        _ => Ok(()),
    }
}

/// Whether some bytes contain others.
pub(super) fn contains(bytes: &[u8], part: &[u8]) -> bool {
    part.is_empty() || bytes.windows(part.len()).any(|window| window == part)
}
