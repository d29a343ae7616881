//! The agent's loop: finds the operator, opens a stream, sends what is new once a second, and tries again when it ends.
//!
//! Nothing waits for it. While there is no stream nothing is kept but what the report keeps by itself, its last seconds.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sluice_kube::back_off::BackOff;
use sluice_signals::Report;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tonic::Status;
use tracing::{debug, info, warn};

use crate::client::{self, Failure};
use crate::finder::{FindError, Finder};
use crate::unsent::Unsent;

/// Time between two looks at what is new.
const PAUSE: Duration = Duration::from_secs(1);
/// Time between two looks at the token's file, which the kubelet renews.
const TOKEN_PAUSE: Duration = Duration::from_secs(10);
/// The first pause after a failure, and the longest.
const RETRY: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(15)];
/// A stream that lasted so long was a good one: what comes after it is a new failure.
const GOOD: Duration = Duration::from_secs(10);
/// Messages that wait to be sent. Seconds for which there is no room wait in the report.
const QUEUE: usize = 32;
/// Bytes of a token at most.
const MAX_TOKEN: usize = 16 * 1024;
/// An operator that is started elsewhere is away for less than that.
const WARN_AFTER: Duration = Duration::from_mins(1);

/// How the sender fares.
#[derive(Debug, Default)]
pub struct SenderState {
    is_open: AtomicBool,
    sent: AtomicU64,
    failures: AtomicU64,
}

impl SenderState {
    /// Whether the operator has a stream of this node.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Messages that were sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Streams that could not be opened, or that have ended.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// Sends the reports of a node.
#[derive(Debug)]
pub struct Sender {
    /// The node's name.
    pub node: String,
    /// File with the token that proves it. It is read again and again.
    pub token: PathBuf,
    /// Finds the operator.
    pub finder: Finder,
    /// How it fares.
    pub state: Arc<SenderState>,
}

/// Why there is no stream any more.
#[derive(thiserror::Error, Debug)]
enum End {
    #[error("cannot read the token {}: {error}", path.display())]
    Token {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error(transparent)]
    NotFound(#[from] FindError),
    #[error(transparent)]
    Failed(#[from] Failure),
    #[error("the stream has ended: {} ({:?})", .0.message(), .0.code())]
    Ended(Status),
    #[error("there is a new token")]
    NewToken,
}

impl Sender {
    /// Sends until the future is dropped.
    pub async fn run(self, report: impl Fn() -> Report) {
        let mut back_off = BackOff::new(RETRY[0], RETRY[1]);
        let mut trouble = Trouble::default();
        loop {
            let began = Instant::now();
            let end = self.stream(&report, &mut trouble).await;
            let was_open = self.state.is_open.swap(false, Ordering::Relaxed);
            if matches!(end, End::NewToken) {
                debug!("opens a new stream with a new token");
                continue;
            }
            self.state.failures.fetch_add(1, Ordering::Relaxed);
            trouble.fail(&end, Instant::now());
            if was_open && began.elapsed() >= GOOD {
                back_off.reset();
            }
            sleep(back_off.next_pause()).await;
        }
    }

    /// One stream, from its beginning to its end.
    async fn stream(&self, report: &impl Fn() -> Report, trouble: &mut Trouble) -> End {
        match self.try_stream(report, trouble).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn try_stream(
        &self,
        report: &impl Fn() -> Report,
        trouble: &mut Trouble,
    ) -> Result<std::convert::Infallible, End> {
        let token = self.read_token().await?;
        let place = self.finder.find().await?;
        let (sender, mut receiver) = mpsc::channel(QUEUE);
        let messages = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
        let mut stream = client::open(&place, &self.node, Some(&token), messages).await?;
        self.state.is_open.store(true, Ordering::Relaxed);
        trouble.succeed();
        let mut unsent = Unsent::default();
        let mut tick = interval(PAUSE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked = Instant::now();
        loop {
            tokio::select! {
                status = stream.ended() => return Err(End::Ended(status)),
                _ = tick.tick() => {}
            }
            // An operator that does not read is told later, of what is left then.
            if sender.capacity() == QUEUE {
                for message in unsent.take(report()) {
                    let is_sent = sender.try_send(message).is_ok();
                    self.state
                        .sent
                        .fetch_add(u64::from(is_sent), Ordering::Relaxed);
                }
            }
            if looked.elapsed() >= TOKEN_PAUSE {
                looked = Instant::now();
                // One that cannot be read now is asked for when it is needed.
                if self.read_token().await.is_ok_and(|read| read != token) {
                    return Err(End::NewToken);
                }
            }
        }
    }

    async fn read_token(&self) -> Result<String, End> {
        let failed = |error| End::Token {
            path: self.token.clone(),
            error,
        };
        let text = tokio::fs::read_to_string(&self.token).await;
        let text = text.map_err(failed)?.trim().to_owned();
        if text.is_empty() || text.len() > MAX_TOKEN {
            return Err(failed(std::io::Error::other("that is no token")));
        }
        Ok(text)
    }
}

/// Says what lasts, once.
#[derive(Debug, Default)]
struct Trouble {
    since: Option<Instant>,
    is_told: bool,
}

impl Trouble {
    fn fail(&mut self, end: &End, now: Instant) {
        let since = *self.since.get_or_insert(now);
        // Without an operator nobody asks for signals.
        let matters = !matches!(end, End::NotFound(FindError::Nowhere));
        if !self.is_told && matters && now.duration_since(since) >= WARN_AFTER {
            self.is_told = true;
            warn!("signals do not reach the operator, forwarding goes on: {end}");
        } else {
            debug!("no stream to the operator: {end}");
        }
    }

    fn succeed(&mut self) {
        if let Some(since) = self.since.take() {
            let seconds = since.elapsed().as_secs();
            info!("signals reach the operator, after {seconds} s without");
        }
        self.is_told = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_told_once_when_it_lasts() {
        let mut trouble = Trouble::default();
        let start = Instant::now();
        let end = End::Ended(Status::unavailable("gone"));
        for (second, told) in [(0, false), (59, false), (60, true), (300, true)] {
            trouble.fail(&end, start + Duration::from_secs(second));
            assert_eq!(trouble.is_told, told, "{second}");
        }
        trouble.succeed();
        trouble.fail(&end, start + Duration::from_mins(10));
        assert!(!trouble.is_told);
    }

    #[test]
    fn an_operator_that_is_not_there_is_no_trouble() {
        let mut trouble = Trouble::default();
        let start = Instant::now();
        let end = End::NotFound(FindError::Nowhere);
        trouble.fail(&end, start);
        trouble.fail(&end, start + Duration::from_hours(1));
        assert!(!trouble.is_told);
    }
}
