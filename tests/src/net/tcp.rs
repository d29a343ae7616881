//! TCP clients that show what a user of the network would suffer: they never retry.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::address::Family;
use super::ask::{ANSWER_TIMEOUT, Connection, Protocol};
use super::namespace::Namespace;
use super::sources::client_sources;
use super::spread::Spread;

/// Failures that a report keeps in words; all are counted.
const FAILURES_TOLD: usize = 8;

/// Addresses of clients by turns. A source is not used again before the kernel has forgotten its last connection.
const CLIENTS: usize = 4096;

/// Counters of TCP's troubles, from `netstat`, that tell why segments were sent again.
const TROUBLES: [&str; 7] = [
    "TCPTimeouts",
    "TCPLossProbes",
    "TCPSynRetrans",
    "TCPFastRetrans",
    "TCPSlowStartRetrans",
    "TCPDSACKRecv",
    "TCPSpuriousRTOs",
];

/// TCP segments sent again in `namespace` since it was made: what `nstat` calls TcpRetransSegs.
pub fn retransmitted_segments(namespace: &Namespace) -> Result<u64> {
    counter(namespace, "snmp", "Tcp: ", "RetransSegs")
}

/// Fails if segments were sent again in `namespace` since there were `before` of them.
pub fn expect_no_retransmissions(namespace: &Namespace, before: u64) -> Result<()> {
    let again = retransmitted_segments(namespace)? - before;
    if again == 0 {
        return Ok(());
    }
    let mut troubles = String::new();
    for name in TROUBLES {
        let count = counter(namespace, "netstat", "TcpExt: ", name)?;
        write!(troubles, " {name}={count}")?;
    }
    bail!("{again} segments were sent again; in all:{troubles}")
}

/// A column of a file below `/proc/net` that has a line of names and a line of values, both with this prefix.
fn counter(namespace: &Namespace, file: &str, prefix: &str, name: &str) -> Result<u64> {
    let path = format!("/proc/thread-self/net/{file}");
    let text = namespace.within(|| std::fs::read_to_string(&path))??;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
    let (names, values) = (lines.next(), lines.next());
    let (names, values) = names
        .zip(values)
        .with_context(|| format!("no line `{prefix}`"))?;
    let mut columns = names.split(' ').zip(values.split(' '));
    let (_, value) = columns
        .find(|(column, _)| *column == name)
        .with_context(|| format!("no column {name}"))?;
    Ok(value.parse()?)
}

#[derive(Debug, Default)]
struct MakerState {
    stop: AtomicBool,
    made: AtomicU64,
    report: Mutex<MakerReport>,
}

/// The connections of a [`ConnectionMaker`]: those served, by server, and those that failed.
#[derive(Clone, Debug, Default)]
pub struct MakerReport {
    /// Connections that were served, by server.
    pub spread: Spread,
    /// Connections that were not.
    pub failed: u64,
    /// The first failures in words.
    pub failures: Vec<String>,
}

impl MakerReport {
    /// Fails if a connection did.
    pub fn expect_none_failed(&self) -> Result<()> {
        match self.failed {
            0 => Ok(()),
            n => bail!("{n} connections failed, the first: {:#?}", self.failures),
        }
    }
}

/// Opens connections one after the other, each with one request, until it is stopped.
#[derive(Debug)]
pub struct ConnectionMaker {
    state: Arc<MakerState>,
    threads: Vec<JoinHandle<()>>,
}

impl ConnectionMaker {
    /// Starts `workers` threads in `client` that connect to the targets in turn. Each pauses for `pause` after each
    /// connection.
    pub fn start(
        client: &Namespace,
        targets: &[SocketAddr],
        workers: usize,
        pause: Duration,
    ) -> Result<Self> {
        Self::start_from(client, targets, workers, pause, |_, _| None)
    }

    /// The same as if by many clients: each connection comes from another address. `seed` draws the addresses.
    pub fn start_as_many(
        client: &Namespace,
        targets: &[SocketAddr],
        workers: usize,
        pause: Duration,
        seed: u64,
    ) -> Result<Self> {
        let sources = Family::BOTH.map(|family| client_sources(family, seed, CLIENTS));
        Self::start_from(client, targets, workers, pause, move |target, number| {
            let of_family = &sources[usize::from(target.is_ipv6())];
            of_family.get(number % CLIENTS).copied()
        })
    }

    fn start_from(
        client: &Namespace,
        targets: &[SocketAddr],
        workers: usize,
        pause: Duration,
        source: impl Fn(SocketAddr, usize) -> Option<SocketAddr> + Clone + Send + 'static,
    ) -> Result<Self> {
        let state = Arc::<MakerState>::default();
        let threads = (0..workers).map(|worker| {
            let (state, targets, source) = (Arc::clone(&state), targets.to_vec(), source.clone());
            client.spawn("connections", move || {
                let numbers = (worker..).step_by(workers);
                for (&target, number) in targets.iter().cycle().skip(worker).zip(numbers) {
                    if state.stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let answer = Protocol::Tcp.ask(source(target, number), target);
                    record(&state, answer.map(|answer| answer.server));
                    thread::sleep(pause);
                }
            })
        });
        let threads = threads.collect::<Result<_>>()?;
        Ok(Self { state, threads })
    }

    /// Connections served or failed so far.
    pub fn made(&self) -> u64 {
        self.state.made.load(Ordering::Relaxed)
    }

    /// Connections served or failed since the last call.
    pub fn take_report(&self) -> MakerReport {
        let mut report = self
            .state
            .report
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut report)
    }

    /// Ends it after the connections that are open.
    pub fn stop(mut self) -> MakerReport {
        self.join();
        self.take_report()
    }

    fn join(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic has been printed; its connection is missing in `made`.
            let _ = thread.join();
        }
    }
}

impl Drop for ConnectionMaker {
    fn drop(&mut self) {
        self.join();
    }
}

fn record(state: &MakerState, result: Result<String>) {
    {
        let mut report = state.report.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(server) => report.spread.add(&server),
            Err(error) => {
                report.failed += 1;
                if report.failures.len() < FAILURES_TOLD {
                    report.failures.push(format!("{error:#}"));
                }
            }
        }
    }
    state.made.fetch_add(1, Ordering::Relaxed);
}

/// Connections that stay open while requests go over them, in rounds.
#[derive(Debug)]
pub struct KeptConnections {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    servers: BTreeMap<String, usize>,
    /// Returns why connections broke.
    thread: Option<JoinHandle<Vec<anyhow::Error>>>,
}

impl KeptConnections {
    /// Opens `count` connections from `client` to the targets in turn, and asks over each of them once every `interval`.
    pub fn open(
        client: &Namespace,
        targets: &[SocketAddr],
        count: usize,
        interval: Duration,
    ) -> Result<Self> {
        Self::open_within(client, targets, count, interval, ANSWER_TIMEOUT)
    }

    /// The same where an answer is waited for so long.
    pub fn open_within(
        client: &Namespace,
        targets: &[SocketAddr],
        count: usize,
        interval: Duration,
        limit: Duration,
    ) -> Result<Self> {
        let mut connections = client.within(|| -> Result<Vec<Connection>> {
            let targets = targets.iter().cycle().take(count);
            targets
                .map(|&target| Connection::open_within(None, target, limit))
                .collect()
        })??;
        let mut servers = BTreeMap::new();
        for kept in &connections {
            *servers.entry(kept.server().to_owned()).or_default() += 1;
        }
        let (stop, rounds) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, round) = (Arc::clone(&stop), Arc::clone(&rounds));
        let thread = client.spawn("kept", move || {
            let mut broken = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                connections.retain_mut(|connection| match connection.ask() {
                    Ok(()) => true,
                    Err(error) => {
                        broken.push(error);
                        false
                    }
                });
                round.fetch_add(1, Ordering::Relaxed);
                thread::sleep(interval);
            }
            broken
        })?;
        Ok(Self {
            stop,
            rounds,
            servers,
            thread: Some(thread),
        })
    }

    /// Rounds in which every connection was asked that had not broken.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Connections per server.
    pub const fn servers(&self) -> &BTreeMap<String, usize> {
        &self.servers
    }

    /// Ends them after a last round. Fails if any connection broke or changed its server meanwhile.
    pub fn close(mut self) -> Result<u64> {
        let broken = self.join()?;
        let count = broken.len();
        match broken.into_iter().next() {
            None => Ok(self.rounds()),
            Some(error) => Err(error.context(format!("{count} connections broke"))),
        }
    }

    /// Ends them after a last round. Returns how many broke or changed their server meanwhile.
    pub fn count_broken(mut self) -> Result<usize> {
        Ok(self.join()?.len())
    }

    fn join(&mut self) -> Result<Vec<anyhow::Error>> {
        let rounds = self.rounds();
        let Some(thread) = self.thread.take() else {
            return Ok(Vec::new());
        };
        // One more round shows that they live now.
        while self.rounds() == rounds && !thread.is_finished() {
            thread::sleep(Duration::from_millis(5));
        }
        self.stop.store(true, Ordering::Relaxed);
        let Ok(broken) = thread.join() else {
            bail!("the thread of the kept connections panicked");
        };
        Ok(broken)
    }
}

impl Drop for KeptConnections {
    fn drop(&mut self) {
        // Only `close` asks for the result.
        let _ = self.join();
    }
}
