//! The thread that checks servers.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use sluice_api::ObjectKey;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use super::checks::{Attempt, Checks};
use super::memory::Memory;
use super::probe::Prober;
use super::{PoolChecks, Told, scatter};
use crate::keeper::Keeper;
use crate::state::CheckCounts;

/// Checks that are under way at most; others wait.
const MAX_UNDER_WAY: usize = 1_024;
/// Changes of the plan that wait.
const INBOX: usize = 64;
/// What could not be told, or written down, is tried again after this time.
const AGAIN: Duration = Duration::from_millis(100);
/// Longest time without a turn of the loop.
const TURN: Duration = Duration::from_mins(1);

/// Pools whose checks are others than before; `None`: it is not checked any more.
pub(super) type Changes = Vec<(ObjectKey, Option<PoolChecks>)>;

/// What the checker works with.
#[derive(Debug)]
pub struct Tools {
    /// Name of this node.
    pub node: String,
    /// What an earlier process knew.
    pub memory: Memory,
    /// Where what is known is written down.
    pub file: PathBuf,
    /// Counters.
    pub counts: Arc<CheckCounts>,
}

/// The way to the thread that checks servers. It ends with the last of these.
#[derive(Clone, Debug)]
pub struct Checker(mpsc::Sender<Changes>);

impl Checker {
    /// Starts the thread. `tell` is called whenever there is something else to tell, and says whether it was heard.
    pub fn start(tools: Tools, tell: impl Fn(Told) -> bool + Send + 'static) -> io::Result<Self> {
        let (sender, inbox) = mpsc::channel(INBOX);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let keeper = Keeper::start(
            tools.file,
            "cannot write down which servers are down: after a restart all take flows until they are checked",
        )?;
        // Directors do not all begin with the same server.
        let seed = scatter(&tools.node);
        let worker = Worker {
            checks: Checks::new(seed, tools.memory),
            prober: Arc::default(),
            under_way: JoinSet::new(),
            told: Told::new(),
            unwritten: false,
            keeper,
            counts: tools.counts,
            tell: Box::new(tell),
        };
        thread::Builder::new()
            .name("health".to_owned())
            .spawn(move || runtime.block_on(worker.run(inbox)))?;
        Ok(Self(sender))
    }

    /// Has the servers of these pools checked otherwise. Waits while the thread has much to take in.
    pub fn plan(&self, changes: Changes) {
        // One that has ended checks nothing.
        let _ = self.0.blocking_send(changes);
    }
}

struct Worker {
    checks: Checks,
    prober: Arc<Prober>,
    under_way: JoinSet<(Attempt, Result<Duration, String>)>,
    /// What the core has not heard.
    told: Told,
    /// Whether something is to be written down.
    unwritten: bool,
    keeper: Keeper<Memory>,
    counts: Arc<CheckCounts>,
    tell: Box<dyn Fn(Told) -> bool + Send>,
}

impl Worker {
    async fn run(mut self, mut inbox: mpsc::Receiver<Changes>) {
        loop {
            let is_full = self.under_way.len() >= MAX_UNDER_WAY;
            let due = self.checks.deadline().filter(|_| !is_full);
            let again = !self.told.is_empty() || self.unwritten;
            let again = again.then(|| Instant::now() + AGAIN);
            let wake = [due, again, self.checks.next_step()];
            let wake = wake.into_iter().flatten().min();
            let wake = wake.unwrap_or_else(|| Instant::now() + TURN);
            tokio::select! {
                changes = inbox.recv() => {
                    let Some(changes) = changes else {
                        return;
                    };
                    self.take(changes);
                }
                Some(done) = self.under_way.join_next() => {
                    // A task that panics ends the process.
                    if let Ok((attempt, outcome)) = done {
                        self.finish(&attempt, outcome);
                    }
                }
                () = sleep_until(wake.into()) => {}
            }
            self.begin();
            self.report();
        }
    }

    fn take(&mut self, changes: Changes) {
        let now = Instant::now();
        for (pool, wanted) in changes {
            self.checks.set_pool(&pool, wanted, now);
        }
    }

    fn begin(&mut self) {
        let now = Instant::now();
        self.checks.warm(now);
        while self.under_way.len() < MAX_UNDER_WAY
            && let Some(attempt) = self.checks.take_due(now)
        {
            let prober = Arc::clone(&self.prober);
            self.under_way.spawn(async move {
                let outcome = prober.check(attempt.server, &attempt.check).await;
                (attempt, outcome)
            });
        }
    }

    fn finish(&mut self, attempt: &Attempt, outcome: Result<Duration, String>) {
        match self.checks.on(attempt, outcome, Instant::now()) {
            Some(true) => CheckCounts::count(&self.counts.passed),
            Some(false) => CheckCounts::count(&self.counts.failed),
            None => {}
        }
    }

    /// Tells what is new, and has it written down.
    fn report(&mut self) {
        let changed = self.checks.take_changed();
        self.unwritten |= !changed.is_empty();
        self.told.extend(changed);
        if !self.told.is_empty() && (self.tell)(self.told.clone()) {
            self.told.clear();
        }
        if self.unwritten {
            self.unwritten = !self.keeper.write(self.checks.memory());
        }
    }
}
