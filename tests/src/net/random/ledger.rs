//! What befell each connection.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Error;

use crate::net::lab::Mode;
use crate::net::wait::interrupted;

use super::service::SPARE_PORT;

/// An answer that takes longer than this is told: agents and operators that come and go do not slow packets down.
const SLOW: Duration = Duration::from_secs(5);

/// What a client does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Style {
    /// A TCP connection that stays open and exchanges data.
    Kept,
    /// A TCP connection with two requests, from a port that is used again and again.
    Short,
    /// A UDP flow that goes on.
    Stream,
    /// One question over UDP, from a port that is used again and again.
    Question,
}

impl fmt::Display for Style {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kept => "kept TCP connections",
            Self::Short => "TCP connections from used ports",
            Self::Stream => "UDP flows",
            Self::Question => "UDP questions from used ports",
        })
    }
}

/// A connection or flow.
#[derive(Clone, Debug)]
pub(super) struct Talk {
    pub(super) style: Style,
    pub(super) mode: Mode,
    pub(super) source: Option<SocketAddr>,
    pub(super) target: SocketAddr,
    /// Who answered; nobody yet.
    pub(super) server: Option<String>,
    pub(super) begun: Duration,
    /// When the question was asked that is to be answered now.
    pub(super) asked: Duration,
}

/// What went wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Trouble {
    /// No answer came within the time limit.
    Silent,
    /// An answer came late; the connection goes on.
    Slow,
    /// It was refused, reset or ended, or somebody else answered.
    Broken,
}

/// A trouble of a connection.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) talk: Talk,
    pub(super) trouble: Trouble,
    /// In words.
    pub(super) what: String,
    pub(super) at: Duration,
}

/// Counts and troubles.
#[derive(Clone, Default, Debug)]
pub(super) struct Account {
    pub(super) begun: BTreeMap<Style, u64>,
    pub(super) well: BTreeMap<Style, u64>,
    pub(super) records: Vec<Record>,
}

/// Where clients write what befell them, and read whether they should go on.
#[derive(Debug)]
pub(super) struct Ledger {
    start: Instant,
    over: AtomicBool,
    /// Whether the spare port of a mode's VIPs is there.
    spare: [AtomicBool; 4],
    account: Mutex<Account>,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            over: AtomicBool::new(false),
            spare: [const { AtomicBool::new(true) }; 4],
            account: Mutex::default(),
        }
    }

    /// Time from the beginning of the run.
    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Asks clients to end what they have begun.
    pub(super) fn finish(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) || interrupted()
    }

    pub(super) fn set_spare(&self, mode: Mode, there: bool) {
        self.spare[mode as usize].store(there, Ordering::Relaxed);
    }

    /// Whether a mode's VIPs have this port for certain.
    pub(super) fn is_there(&self, mode: Mode, port: u16) -> bool {
        port != SPARE_PORT || self.spare[mode as usize].load(Ordering::Relaxed)
    }

    /// A connection that a client is about to open.
    pub(super) fn begin(&self, style: Style, mode: Mode, target: SocketAddr) -> Talk {
        *self.account().begun.entry(style).or_default() += 1;
        let now = self.now();
        Talk {
            style,
            mode,
            source: None,
            target,
            server: None,
            begun: now,
            asked: now,
        }
    }

    /// What was asked has been answered.
    pub(super) fn answered(&self, talk: &mut Talk) {
        let now = self.now();
        let took = now.saturating_sub(talk.asked);
        if took > SLOW {
            let what = format!("an answer took {:.1} s", took.as_secs_f64());
            self.record(talk.clone(), Trouble::Slow, what);
        }
        talk.asked = now;
    }

    /// The connection has ended. Returns whether its port may be used again.
    pub(super) fn end(&self, talk: Talk, result: Result<(), Error>) -> bool {
        let Err(error) = result else {
            *self.account().well.entry(talk.style).or_default() += 1;
            return true;
        };
        let mut causes = error.chain();
        let kind = causes.find_map(|cause| Some(cause.downcast_ref::<io::Error>()?.kind()));
        match kind {
            Some(ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable) => {
                // The connection before it has not ended yet: its last ACK was lost.
                *self.account().begun.entry(talk.style).or_default() -= 1;
                return true;
            }
            Some(ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                self.record(talk, Trouble::Silent, format!("{error:#}"));
            }
            _ => self.record(talk, Trouble::Broken, format!("{error:#}")),
        }
        false
    }

    /// All that is written.
    pub(super) fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, talk: Talk, trouble: Trouble, what: String) {
        let at = self.now();
        self.account().records.push(Record {
            talk,
            trouble,
            what,
            at,
        });
    }
}
