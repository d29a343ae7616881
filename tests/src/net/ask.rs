//! One question to a server over TCP or UDP, and its answer: who served it and whom it saw.

use std::fmt;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use socket2::{Domain, Socket, Type};

use super::namespace::Namespace;
use super::spread::Spread;

/// How long a client waits for a connection or an answer. It never asks twice.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Clients that ask at the same time.
const WORKERS: usize = 4;

/// A transport protocol that is balanced.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Protocol {
    /// TCP, with HTTP inside.
    Tcp,
    /// UDP, with an echo inside.
    Udp,
}

impl Protocol {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Tcp, Self::Udp];

    /// Asks the server at `to` once, over a new connection or socket, from the calling thread's namespace. Without a
    /// `source` the kernel chooses one.
    pub fn ask(self, source: Option<SocketAddr>, to: SocketAddr) -> Result<Answer> {
        let way = || match source {
            Some(source) => format!("ask {to} over {self} from {source}"),
            None => format!("ask {to} over {self}"),
        };
        match self {
            Self::Tcp => ask_tcp(source, to).with_context(way),
            Self::Udp => ask_udp(source, to).with_context(way),
        }
    }

    /// Asks once from each of `sources`, several at a time. Fails if any is not answered.
    pub fn ask_from_each(
        self,
        client: &Namespace,
        sources: &[SocketAddr],
        to: SocketAddr,
    ) -> Result<Spread> {
        let part = sources.len().div_ceil(WORKERS).max(1);
        let threads = sources.chunks(part).map(|part| {
            let part = part.to_vec();
            client.spawn("asker", move || -> Result<Spread> {
                let mut spread = Spread::default();
                for source in part {
                    spread.add(&self.ask(Some(source), to)?.server);
                }
                Ok(spread)
            })
        });
        let threads: Vec<_> = threads.collect::<Result<_>>()?;
        let mut all = Spread::default();
        for thread in threads {
            match thread.join() {
                Ok(spread) => all.merge(spread?),
                Err(_) => bail!("a client thread panicked"),
            }
        }
        Ok(all)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// A server's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Its name.
    pub server: String,
    /// Where it saw the question come from.
    pub client: SocketAddr,
}

impl Answer {
    /// The text `NAME ADDRESS PORT`; more words may follow.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut words = text.split_whitespace();
        let mut next = || {
            words
                .next()
                .with_context(|| format!("not an answer: {text:?}"))
        };
        let server = next()?.to_owned();
        let address: IpAddr = next()?.parse()?;
        let client = SocketAddr::new(address.to_canonical(), next()?.parse()?);
        Ok(Self { server, client })
    }
}

/// An open TCP connection to a server that was asked at least once.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    first: Answer,
}

impl Connection {
    /// Connects from the calling thread's namespace and asks once.
    pub fn open(source: Option<SocketAddr>, to: SocketAddr) -> Result<Self> {
        Self::open_within(source, to, ANSWER_TIMEOUT)
    }

    /// The same with another limit for this answer and all others.
    pub(super) fn open_within(
        source: Option<SocketAddr>,
        to: SocketAddr,
        limit: Duration,
    ) -> Result<Self> {
        let mut stream = connect(source, to, limit)?;
        let first = request(&mut stream, GET, false)?;
        Ok(Self { stream, first })
    }

    /// The client's own address.
    pub(super) fn source(&self) -> Result<SocketAddr> {
        Ok(self.stream.local_addr()?)
    }

    /// The server's name.
    pub fn server(&self) -> &str {
        &self.first.server
    }

    /// Where the server sees the client.
    pub const fn seen_as(&self) -> SocketAddr {
        self.first.client
    }

    /// Asks again. Fails unless the same server answers the same client.
    pub fn ask(&mut self) -> Result<()> {
        let answer = request(&mut self.stream, GET, false);
        self.check(answer)
    }

    /// Sends `bytes` in one request and waits for its answer.
    pub fn upload(&mut self, bytes: usize) -> Result<()> {
        let mut text =
            format!("POST / HTTP/1.1\r\nHost: sluice\r\nContent-Length: {bytes}\r\n\r\n");
        text.extend(std::iter::repeat_n('x', bytes));
        let answer = request(&mut self.stream, &text, false);
        self.check(answer)
    }

    /// Fetches [`BULK`] and compares it with what it should be.
    pub fn download(&mut self) -> Result<()> {
        let text = format!("GET {BULK} HTTP/1.1\r\nHost: sluice\r\n\r\n");
        let body = response(&mut self.stream, &text, false)?;
        if body.into_bytes() != bulk() {
            bail!("{} arrived damaged from {}", BULK, self.server());
        }
        Ok(())
    }

    /// Asks a last time, and waits until the server closes.
    pub(super) fn finish(mut self) -> Result<()> {
        let answer = request(&mut self.stream, GET_AND_CLOSE, true);
        self.check(answer)
    }

    fn check(&self, answer: Result<Answer>) -> Result<()> {
        let server = self.server();
        let answer = answer.with_context(|| format!("a connection to {server} broke"))?;
        if answer != self.first {
            bail!("a connection changed from {:?} to {answer:?}", self.first);
        }
        Ok(())
    }
}

/// The path of a file that fills many packets.
pub(super) const BULK: &str = "/bulk";

/// Its content: every part of it differs from the next.
pub(super) fn bulk() -> Vec<u8> {
    (0..60_000_u32)
        .flat_map(|number| format!("{number:>6} ").into_bytes())
        .collect()
}

const GET: &str = "GET / HTTP/1.1\r\nHost: sluice\r\n\r\n";
const GET_AND_CLOSE: &str = "GET / HTTP/1.1\r\nHost: sluice\r\nConnection: close\r\n\r\n";

/// A connected, blocking TCP connection with timeouts set.
fn connect(source: Option<SocketAddr>, to: SocketAddr, limit: Duration) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if let Some(source) = source {
        socket.set_reuse_address(true)?;
        socket.bind(&source.into()).context("bind")?;
    }
    socket
        .connect_timeout(&to.into(), limit)
        .context("connect")?;
    socket.set_read_timeout(Some(limit))?;
    socket.set_write_timeout(Some(limit))?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

/// A connected UDP socket with a timeout for answers.
pub(super) fn connect_udp(source: Option<SocketAddr>, to: SocketAddr) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
    if let Some(source) = source {
        socket.bind(&source.into()).context("bind")?;
    }
    socket.connect(&to.into())?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(socket.into())
}

/// Sends an HTTP request and parses the answer.
fn request(stream: &mut TcpStream, text: &str, last: bool) -> Result<Answer> {
    Answer::parse(&response(stream, text, last)?)
}

/// Sends an HTTP request and returns the body of the response. After the `last` one it waits until the server closes: so
/// the client's ports are free again at once.
fn response(stream: &mut TcpStream, text: &str, last: bool) -> Result<String> {
    stream.write_all(text.as_bytes()).context("send")?;
    let mut response = Vec::new();
    let mut buffer = [0; 16384];
    loop {
        let n = stream.read(&mut buffer).context("receive")?;
        response.extend_from_slice(&buffer[..n]);
        match (n, body(&response)?) {
            (0, None) => bail!("the connection ended within the response"),
            (0, Some(body)) => return Ok(body.to_owned()),
            (_, Some(body)) if !last => return Ok(body.to_owned()),
            _ => {}
        }
    }
}

/// The body of an HTTP response once it is complete.
fn body(response: &[u8]) -> Result<Option<&str>> {
    let text = str::from_utf8(response)?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Ok(None);
    };
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("the server answered: {}", head.lines().next().unwrap_or(""));
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .context("a response without a length")?;
    let length: usize = length.trim().parse()?;
    Ok((body.len() >= length).then_some(body))
}

fn ask_tcp(source: Option<SocketAddr>, to: SocketAddr) -> Result<Answer> {
    let mut stream = connect(source, to, ANSWER_TIMEOUT)?;
    request(&mut stream, GET_AND_CLOSE, true)
}

fn ask_udp(source: Option<SocketAddr>, to: SocketAddr) -> Result<Answer> {
    let socket = connect_udp(source, to)?;
    socket.send(b"0").context("send")?;
    let mut buffer = [0; 512];
    let n = socket.recv(&mut buffer).context("receive")?;
    Answer::parse(str::from_utf8(&buffer[..n])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_complete_at_its_length() {
        let response = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde";
        assert_eq!(body(&response[..42]).unwrap(), None);
        assert_eq!(body(response).unwrap(), Some("abcde"));
        body(b"HTTP/1.1 502 Bad\r\nContent-Length: 0\r\n\r\n").unwrap_err();
    }

    #[test]
    fn mapped_addresses_are_shown_as_ipv4() {
        let answer = Answer::parse("web-1 ::ffff:192.0.2.1 80 17").unwrap();
        assert_eq!(answer.client, "192.0.2.1:80".parse().unwrap());
    }
}
