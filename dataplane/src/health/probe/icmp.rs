//! An echo request, and its reply (RFC 792; RFC 4443 section 4).

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

/// Longest header of an IPv4 packet, and what is looked at of a message.
const PACKET: usize = 60 + MESSAGE;
/// Type, code, checksum, identifier, sequence number, and eight bytes of data.
const MESSAGE: usize = 16;

/// Asks for an echo and waits for it.
pub(super) async fn ask(server: IpAddr) -> Result<(), String> {
    let failed = |error| format!("cannot ask: {error}");
    let socket = open(server).map_err(failed)?;
    let nonce = getrandom::u64().map_err(|error| format!("cannot ask: {error}"))?;
    let [request, reply] = messages(server, nonce);
    socket.send(&request).await.map_err(failed)?;
    loop {
        let mut packet = [0; PACKET];
        let length = socket.recv(&mut packet).await.map_err(failed)?;
        if is_reply(server, &packet[..length], &reply) {
            return Ok(());
        }
    }
}

/// A raw socket that takes in what comes from this address, and errors about what was sent there. One for datagrams would not need a
/// capability, but `net.ipv4.ping_group_range`, which shuts out root as anybody else by default.
/// tokio has no type for raw sockets, and its own for UDP does nothing else than sending and receiving.
fn open(server: IpAddr) -> io::Result<UdpSocket> {
    let (domain, protocol) = match server {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(protocol))?;
    socket.connect(&SocketAddr::new(server, 0).into())?;
    UdpSocket::from_std(socket.into())
}

/// The request, and the reply to it. The kernel puts in the checksum of ICMPv6.
fn messages(server: IpAddr, nonce: u64) -> [[u8; MESSAGE]; 2] {
    let types: [u8; 2] = if server.is_ipv4() { [8, 0] } else { [128, 129] };
    types.map(|kind| {
        let mut message = [0; MESSAGE];
        message[0] = kind;
        message[4..8].copy_from_slice(&nonce.to_be_bytes()[..4]);
        message[8..].copy_from_slice(&nonce.to_be_bytes());
        if server.is_ipv4() {
            let checksum = checksum(&message);
            message[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        message
    })
}

/// The internet checksum (RFC 1071) of an even number of bytes, with zeros where it is to stand.
fn checksum(bytes: &[u8; MESSAGE]) -> u16 {
    let words = bytes
        .chunks_exact(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum = words.sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(u16::MAX)
}

/// Whether a packet is this reply, its checksum aside. An IPv4 packet has its header before it.
fn is_reply(server: IpAddr, packet: &[u8], reply: &[u8; MESSAGE]) -> bool {
    let header = match packet.first() {
        Some(first) if server.is_ipv4() => usize::from(first & 0xf) * 4,
        _ => 0,
    };
    let message = packet.get(header..header + MESSAGE);
    message.is_some_and(|message| message[..2] == reply[..2] && message[4..] == reply[4..])
}
