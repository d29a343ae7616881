//! A UDP server that answers every packet with its name, and numbered streams that notice each packet that is missing.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::ask::{Answer, connect_udp};
use super::namespace::Namespace;

/// How often a thread looks whether it should end.
const POLL: Duration = Duration::from_millis(100);

/// How long answers may come after the last packet of a stream.
const GRACE: Duration = Duration::from_secs(2);

/// A server that answers `NAME ADDRESS PORT` and then the packet it got.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    /// Serves on these addresses of `namespace`. One socket for each, so that answers leave from the address that was
    /// asked.
    pub fn start(namespace: &Namespace, name: &str, addresses: &[SocketAddr]) -> Result<Self> {
        let mut echo = Self {
            stop: Arc::default(),
            received: Arc::default(),
            threads: Vec::new(),
        };
        for &address in addresses {
            let socket = namespace
                .within(|| UdpSocket::bind(address))?
                .with_context(|| format!("bind {address} in {}", namespace.label()))?;
            socket.set_read_timeout(Some(POLL))?;
            let (name, stop) = (name.to_owned(), Arc::clone(&echo.stop));
            let received = Arc::clone(&echo.received);
            let thread = thread::Builder::new().name(format!("echo {name}"));
            echo.threads
                .push(thread.spawn(move || serve(&socket, &name, &stop, &received))?);
        }
        Ok(echo)
    }

    /// Packets that came in.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic has been printed.
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, name: &str, stop: &AtomicBool, received: &AtomicU64) {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        // Errors are timeouts, or tell that a client is gone.
        let Ok((n, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        received.fetch_add(1, Ordering::Relaxed);
        let mut answer = format!("{name} {} {} ", from.ip(), from.port()).into_bytes();
        answer.extend_from_slice(&buffer[..n]);
        // A client that does not get it counts it as lost.
        let _ = socket.send_to(&answer, from);
    }
}

/// Counts of a stream's packets and answers, and the servers that answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamReport {
    /// Packets sent.
    pub sent: u64,
    /// Numbers that were answered, each once.
    pub answered: u64,
    /// Answers beyond the first to a number.
    pub repeated: u64,
    /// The servers that answered.
    pub servers: BTreeSet<String>,
}

impl StreamReport {
    /// Fails unless each packet was answered exactly once, all by one server.
    pub fn expect_whole(&self) -> Result<()> {
        if self.answered != self.sent || self.repeated != 0 || self.servers.len() != 1 {
            bail!("the stream is not whole: {self:?}");
        }
        Ok(())
    }
}

/// One UDP flow that sends numbered packets at a steady pace until it is finished.
#[derive(Debug)]
pub struct UdpStream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
    sender: JoinHandle<()>,
    receiver: JoinHandle<Result<StreamReport>>,
}

impl UdpStream {
    /// Starts to send to `target` from `client`, a packet every `interval`.
    pub fn start(client: &Namespace, target: SocketAddr, interval: Duration) -> Result<Self> {
        let socket = client.within(|| connect_udp(None, target))??;
        socket.set_read_timeout(Some(POLL))?;
        let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let sender = {
            let (socket, stop, sent) = (socket.try_clone()?, Arc::clone(&stop), Arc::clone(&sent));
            thread::spawn(move || {
                let mut number = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    // One that the kernel refuses is missing at the end like any other.
                    let _ = socket.send(number.to_string().as_bytes());
                    number += 1;
                    sent.store(number, Ordering::Release);
                    thread::sleep(interval);
                }
            })
        };
        let (stopped, total) = (Arc::clone(&stop), Arc::clone(&sent));
        let answered = Arc::<AtomicU64>::default();
        let count = Arc::clone(&answered);
        let receiver = thread::spawn(move || collect(&socket, &stopped, &total, &count));
        Ok(Self {
            stop,
            sent,
            answered,
            sender,
            receiver,
        })
    }

    /// Packets sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    /// Answers so far, those that come twice included.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Acquire)
    }

    /// Stops sending, and waits for the answers that are under way.
    pub fn finish(self) -> Result<StreamReport> {
        self.stop.store(true, Ordering::Relaxed);
        let (sender, receiver) = (self.sender.join(), self.receiver.join());
        match (sender, receiver) {
            (Ok(()), Ok(report)) => report,
            _ => bail!("a thread of the stream panicked"),
        }
    }
}

fn collect(
    socket: &UdpSocket,
    stop: &AtomicBool,
    sent: &AtomicU64,
    answers: &AtomicU64,
) -> Result<StreamReport> {
    let mut numbers = BTreeSet::new();
    let mut servers = BTreeSet::new();
    let mut repeated = 0;
    let mut buffer = [0; 512];
    let mut stopped: Option<Instant> = None;
    loop {
        match socket.recv(&mut buffer) {
            Ok(n) => {
                let text = str::from_utf8(&buffer[..n])?;
                servers.insert(Answer::parse(text)?.server);
                let number = text.split(' ').next_back().context("an empty answer")?;
                answers.fetch_add(1, Ordering::AcqRel);
                repeated += u64::from(!numbers.insert(number.parse::<u64>()?));
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // The kernel reports an ICMP error on the socket once and goes on; the packet is missing at the end.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error).context("receive"),
        }
        if stopped.is_none() && stop.load(Ordering::Relaxed) {
            stopped = Some(Instant::now());
        }
        let total = sent.load(Ordering::Acquire);
        let answered = numbers.len() as u64;
        if stopped
            .is_some_and(|at| at.elapsed() > GRACE || answered == total && at.elapsed() > POLL)
        {
            return Ok(StreamReport {
                sent: total,
                answered,
                repeated,
                servers,
            });
        }
    }
}
