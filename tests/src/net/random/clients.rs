//! Clients: they never ask twice, and never open a connection instead of another one.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::net::address::Family;
use crate::net::ask::{Answer, Connection, Protocol, connect_udp};
use crate::net::lab::Mode;
use crate::net::namespace::Namespace;
use crate::net::sources::client_sources;
use crate::packet::random::Rng;

use super::ledger::{Ledger, Style, Talk};
use super::service::{SPARE_PORT, Service};

/// How long a client waits for an answer. After an outage of a few seconds TCP tries again within twice that time.
const PATIENCE: Duration = Duration::from_secs(30);

/// Connections for each mode and family, to the first VIP.
const KEPT: usize = 3;
/// From one request over a kept connection to the next, and from one packet of a stream to the next.
const KEPT_PAUSE: Duration = Duration::from_millis(250);
const STREAM_PAUSE: Duration = Duration::from_millis(80);
/// Between connections of one client.
const SHORT_PAUSE: Duration = Duration::from_millis(40);
const QUESTION_PAUSE: Duration = Duration::from_millis(150);
/// How long a client waits for a port of a VIP to be there again.
const AWAY_PAUSE: Duration = Duration::from_millis(200);
/// How long connections and streams live.
const LIFE_MS: [u32; 2] = [3_000, 45_000];
/// Of so many requests one fetches, and one sends, more than fits a packet.
const LARGE: u32 = 40;
const UPLOAD_BYTES: usize = 20_000;
/// Ports that a client uses in turn, and those that it may come to use instead of lost ones.
const PORTS_IN_TURN: usize = 3;
const PORTS: usize = 1_000;

struct Client {
    ledger: Arc<Ledger>,
    mode: Mode,
    rng: Rng,
}

/// Starts all clients.
pub(super) fn start(
    namespace: &Namespace,
    ledger: &Arc<Ledger>,
    seed: u64,
) -> Result<Vec<JoinHandle<()>>> {
    let mut threads = Vec::new();
    let mut seeds = Rng::new(seed);
    let mut spawn = |name, mode, run: Box<dyn FnOnce(Client) + Send>| -> Result<()> {
        let client = Client {
            ledger: Arc::clone(ledger),
            mode,
            rng: Rng::new(seeds.bits()),
        };
        threads.push(namespace.spawn(name, move || run(client))?);
        Ok(())
    };
    for mode in Mode::ALL {
        for family in Family::BOTH {
            let [first, second] = Service::vips(mode).map(|vip| vip.socket(family, 80));
            let spare = SocketAddr::new(first.ip(), SPARE_PORT);
            let kept = std::iter::repeat_n(first, KEPT).chain([second, spare]);
            for target in kept {
                spawn("kept", mode, Box::new(move |client| client.keep(target)))?;
            }
            for target in [first, second] {
                spawn(
                    "stream",
                    mode,
                    Box::new(move |client| client.stream(target)),
                )?;
            }
            let targets = [first, second, spare];
            spawn(
                "short",
                mode,
                Box::new(move |client| client.reuse_tcp(family, targets)),
            )?;
            spawn(
                "question",
                mode,
                Box::new(move |client| client.reuse_udp(family, first)),
            )?;
        }
    }
    Ok(threads)
}

impl Client {
    /// TCP connections that stay open, one after the other.
    fn keep(mut self, target: SocketAddr) {
        while !self.ledger.is_over() {
            if !self.ledger.is_there(self.mode, target.port()) {
                thread::sleep(AWAY_PAUSE);
                continue;
            }
            let mut talk = self.ledger.begin(Style::Kept, self.mode, target);
            let result = self.use_connection(&mut talk);
            self.ledger.end(talk, result);
            thread::sleep(KEPT_PAUSE);
        }
    }

    fn use_connection(&mut self, talk: &mut Talk) -> Result<()> {
        let end = talk.begun + self.life();
        let mut connection = open(&self.ledger, talk)?;
        while !self.ledger.is_over() && self.ledger.now() < end {
            thread::sleep(KEPT_PAUSE);
            talk.asked = self.ledger.now();
            match self.rng.below(LARGE) {
                0 => connection.download()?,
                1 => connection.upload(UPLOAD_BYTES)?,
                _ => connection.ask()?,
            }
            self.ledger.answered(talk);
        }
        close(&self.ledger, talk, connection)
    }

    /// TCP connections to each target in turn from each of a few ports in turn.
    fn reuse_tcp(mut self, family: Family, targets: [SocketAddr; 3]) {
        let mut fresh = client_sources(family, self.rng.bits(), PORTS).into_iter();
        let mut ports: Vec<_> = fresh.by_ref().take(PORTS_IN_TURN).collect();
        while !self.ledger.is_over() {
            for port in &mut ports {
                let target = *self.rng.pick(&targets);
                if !self.ledger.is_there(self.mode, target.port()) {
                    continue;
                }
                let mut talk = self.ledger.begin(Style::Short, self.mode, target);
                talk.source = Some(*port);
                let result = open(&self.ledger, &mut talk)
                    .and_then(|connection| close(&self.ledger, &mut talk, connection));
                if !self.ledger.end(talk, result) {
                    // Somebody may still believe in the lost connection.
                    *port = fresh.next().unwrap_or(*port);
                }
                thread::sleep(SHORT_PAUSE);
            }
        }
    }

    /// Questions over UDP from each of a few ports in turn.
    fn reuse_udp(mut self, family: Family, target: SocketAddr) {
        let ports = client_sources(family, self.rng.bits(), PORTS_IN_TURN);
        for port in ports.into_iter().cycle() {
            if self.ledger.is_over() {
                break;
            }
            let mut talk = self.ledger.begin(Style::Question, self.mode, target);
            talk.source = Some(port);
            let answer = Protocol::Udp.ask(Some(port), target);
            self.ledger.end(talk, answer.map(|_| ()));
            thread::sleep(QUESTION_PAUSE);
        }
    }

    /// UDP flows, one after the other.
    fn stream(mut self, target: SocketAddr) {
        while !self.ledger.is_over() {
            let mut talk = self.ledger.begin(Style::Stream, self.mode, target);
            let result = self.flow(&mut talk);
            self.ledger.end(talk, result);
        }
    }

    /// Packets may get lost, answers not be somebody else's.
    fn flow(&mut self, talk: &mut Talk) -> Result<()> {
        let end = talk.begun + self.life();
        let socket = connect_udp(None, talk.target)?;
        socket.set_read_timeout(Some(STREAM_PAUSE))?;
        talk.source = Some(socket.local_addr()?);
        for number in 0_u64.. {
            socket.send(number.to_string().as_bytes()).context("send")?;
            if receive(&socket, talk, number)? {
                self.ledger.answered(talk);
                if self.ledger.is_over() || self.ledger.now() > end {
                    break;
                }
                thread::sleep(STREAM_PAUSE);
            } else if self.ledger.now() > talk.asked + PATIENCE {
                let silence = std::io::Error::from(ErrorKind::TimedOut);
                return Err(silence).context("nobody answers");
            }
        }
        Ok(())
    }

    fn life(&mut self) -> Duration {
        let [least, most] = LIFE_MS;
        Duration::from_millis(u64::from(least + self.rng.below(most - least)))
    }
}

/// Connects and asks once.
fn open(ledger: &Ledger, talk: &mut Talk) -> Result<Connection> {
    let connection = Connection::open_within(talk.source, talk.target, PATIENCE)?;
    talk.source = Some(connection.source()?);
    talk.server = Some(connection.server().to_owned());
    ledger.answered(talk);
    Ok(connection)
}

/// Asks a last time and waits until the server closes.
fn close(ledger: &Ledger, talk: &mut Talk, connection: Connection) -> Result<()> {
    talk.asked = ledger.now();
    connection.finish()?;
    ledger.answered(talk);
    Ok(())
}

/// Whether an answer came to one of the packets up to `number`. Fails if another server gave it.
fn receive(socket: &UdpSocket, talk: &mut Talk, number: u64) -> Result<bool> {
    let mut buffer = [0; 512];
    let n = match socket.recv(&mut buffer) {
        Ok(n) => n,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            return Ok(false);
        }
        Err(error) => return Err(error).context("receive"),
    };
    let text = str::from_utf8(&buffer[..n])?;
    let server = Answer::parse(text)?.server;
    let echo: u64 = text.split(' ').next_back().context("empty")?.parse()?;
    if echo > number {
        bail!("{server} answered {echo}, which was not asked");
    }
    match &talk.server {
        Some(first) if *first != server => bail!("{server} answered instead of {first}"),
        Some(_) => {}
        None => talk.server = Some(server),
    }
    Ok(true)
}
