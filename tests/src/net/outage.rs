//! Measures how long an address does not answer: clients that connect all the time and note which connections came about.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use socket2::{Domain, Socket, Type};

use super::namespace::Namespace;

/// Time between the starts of two connections.
const INTERVAL: Duration = Duration::from_millis(5);
/// How long a connection may take.
const TIMEOUT: Duration = Duration::from_millis(100);
/// Clients that take turns, so that one that waits holds up no other.
const CLIENTS: u32 = 24;
/// Failures that a report tells the reasons of.
const FIRST: usize = 5;

/// Connects to an address every few milliseconds until it is stopped.
#[derive(Debug)]
pub struct Outage {
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    stop: AtomicBool,
    /// When each connection was begun, and what became of it.
    attempts: Mutex<Vec<Attempt>>,
}

/// When a connection was begun, and why it did not come about.
type Attempt = (Instant, Result<(), ErrorKind>);

/// The outcome of the connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutageReport {
    /// Largest time between the starts of two connections that came about one after the other, the beginning and the end included.
    pub longest: Duration,
    /// Connections that were begun.
    pub begun: usize,
    /// Those that did not come about.
    pub failed: usize,
    /// Why the first few of these did not, each with the time since the first connection was begun.
    pub why: Vec<(Duration, ErrorKind)>,
}

impl Outage {
    /// Starts clients in a namespace.
    pub fn start(client: &Namespace, target: SocketAddr) -> Result<Self> {
        let state = Arc::<State>::default();
        let begin = Instant::now();
        let threads = (0..CLIENTS).map(|number| {
            let state = Arc::clone(&state);
            client.spawn("outage", move || {
                let mut due = begin + INTERVAL * number;
                while !state.stop.load(Ordering::Relaxed) {
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    let start = Instant::now();
                    let outcome = connect(target).map_err(|error| error.kind());
                    let mut attempts = state
                        .attempts
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    attempts.push((start, outcome));
                    drop(attempts);
                    due += INTERVAL * CLIENTS;
                    if due < Instant::now() {
                        due = Instant::now();
                    }
                }
            })
        });
        let threads = threads.collect::<Result<_>>()?;
        Ok(Self { state, threads })
    }

    /// Begins no more connections, and does not wait for those under way.
    pub fn halt(&self) {
        self.state.stop.store(true, Ordering::Relaxed);
    }

    /// Ends it.
    pub fn stop(self) -> OutageReport {
        self.halt();
        for thread in self.threads {
            // A client that panicked made no connections, which shows.
            let _ = thread.join();
        }
        let mut attempts = self
            .state
            .attempts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        report(&mut attempts)
    }
}

fn report(attempts: &mut [Attempt]) -> OutageReport {
    attempts.sort_unstable();
    let ends = attempts.first().into_iter().chain(attempts.last());
    let ends = ends.map(|(start, _)| *start);
    let came_about = attempts.iter().filter(|(_, outcome)| outcome.is_ok());
    let mut times: Vec<Instant> = came_about.map(|(start, _)| *start).chain(ends).collect();
    times.sort_unstable();
    let begin = times.first().copied();
    let failed = attempts.iter().filter_map(|(start, outcome)| {
        let since = start.saturating_duration_since(begin?);
        Some((since, outcome.err()?))
    });
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    OutageReport {
        longest: gaps.max().unwrap_or_default(),
        begun: attempts.len(),
        failed: failed.clone().count(),
        why: failed.take(FIRST).collect(),
    }
}

/// Opens a connection. It is reset at once, so that nothing of it stays.
fn connect(target: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.connect_timeout(&target.into(), TIMEOUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_time_without_a_connection_counts() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let report = |attempts: &[(u64, bool)]| {
            let outcome = |came: bool| came.then_some(()).ok_or(ErrorKind::TimedOut);
            let attempts = attempts.iter().map(|&(ms, came)| (at(ms), outcome(came)));
            let report = report(&mut attempts.collect::<Vec<_>>());
            (report.longest.as_millis(), report.failed)
        };
        assert_eq!(report(&[(0, true), (5, true), (10, true)]), (5, 0));
        assert_eq!(
            report(&[(15, true), (0, true), (10, false), (5, false)]),
            (15, 2)
        );
        assert_eq!(report(&[(0, true), (5, false), (90, false)]), (90, 2));
        assert_eq!(report(&[]), (0, 0));
    }
}
