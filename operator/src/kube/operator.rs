//! The loop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use sluice_api::Time;
use sluice_api::jiff::Timestamp;
use sluice_kube::identity::{Guard, World};
use sluice_kube::store::{Missed, Why};
use sluice_kube::watch::Server;
use sluice_kube::watched::{Message, Topic};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant as Moment, sleep_until, timeout_at};
use tracing::{debug, info};

use super::Error;
use super::endpoints::Endpoints;
use super::events::{About, Events, News};
use super::index::Index;
use super::round::{End, Round, Waiting, forget_gone};
use super::watch::KINDS;
use super::writer::Writer;
use crate::core::reconcile;
use crate::metrics::{KindLabel, Metrics};

/// Room in the queue of what the watches tell; a watch waits when it is full.
const QUEUE: usize = 1024;
/// The queue counts as quiet after this time without news,
const QUIET: Duration = Duration::from_millis(20);
/// and is no longer waited for after this time.
const GATHER: Duration = Duration::from_millis(200);
/// Timers of rollouts and the silence of nodes are looked at this often.
const TICK: Duration = Duration::from_secs(1);
/// Conditions alone are written no more often than this: nodes acknowledge one by one.
const CALM: Duration = Duration::from_millis(500);
/// Decisions go before conditions for so long.
const PATIENCE: Duration = Duration::from_secs(5);
/// New objects that name others which nobody has heard of yet are waited with for so long: kinds are watched apart, so a pool
/// may be heard of after the virtual server that was applied together with it.
const REFERENTS: Duration = Duration::from_secs(1);
/// Pause after the API server did not take a write; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Runs the operator until `stop` is ready. `namespace` has the Leases of the nodes' agents.
pub async fn run(
    client: Client,
    namespace: &str,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let (sender, queue) = channel(QUEUE);
    let world = World::default();
    let guard = Arc::new(Guard::new(client.clone(), world.clone()));
    watch(&client, namespace, &world, &guard, &sender);
    drop(sender);
    let operator = Operator {
        index: Index::new(namespace),
        world,
        namespace: namespace.to_owned(),
        writer: Writer::new(client.clone(), Arc::clone(&metrics)),
        events: Events::start(client, &metrics),
        endpoints: Endpoints::default(),
        waiting: Waiting::default(),
        metrics,
        start: Instant::now(),
        calm: None,
        pause: None,
        complete: false,
        lacking: None,
    };
    tokio::select! {
        result = operator.turn(queue) => result,
        () = guard.run() => Ok(()),
        () = stop => Ok(()),
    }
}

struct Operator {
    index: Index,
    /// Which state of the API server is believed.
    world: World,
    /// Of the nodes' Leases.
    namespace: String,
    writer: Writer,
    events: Events,
    endpoints: Endpoints,
    waiting: Waiting,
    metrics: Arc<Metrics>,
    start: Instant,
    /// When conditions were last written.
    calm: Option<Moment>,
    /// How long nothing is written, and until when.
    pause: Option<(Duration, Moment)>,
    complete: bool,
    /// Since when there have been new objects that name unknown ones.
    lacking: Option<Moment>,
}

impl Operator {
    async fn turn(mut self, mut queue: Receiver<Message<Index>>) -> Result<(), Error> {
        let mut next = Moment::now() + TICK;
        loop {
            tokio::select! {
                message = queue.recv() => {
                    self.take(message.ok_or(Error::Ended)?);
                    self.gather(&mut queue).await?;
                }
                () = sleep_until(next) => {}
            }
            self.metrics.turn();
            next = Moment::now() + TICK;
            if !self.is_complete() {
                continue;
            }
            if let Some(until) = self.waits_for_referents() {
                next = next.min(until);
                continue;
            }
            let more = self.round().await;
            self.tell_numbers();
            next = next.min(more);
        }
    }

    /// Until when, if so.
    fn waits_for_referents(&mut self) -> Option<Moment> {
        if !self.index.lacks_referents() {
            self.lacking = None;
            return None;
        }
        let now = Moment::now();
        let until = *self.lacking.get_or_insert(now) + REFERENTS;
        (now < until).then_some(until)
    }

    async fn gather(&mut self, queue: &mut Receiver<Message<Index>>) -> Result<(), Error> {
        let end = Moment::now() + GATHER;
        loop {
            let until = end.min(Moment::now() + QUIET);
            match timeout_at(until, queue.recv()).await {
                Ok(message) => self.take(message.ok_or(Error::Ended)?),
                Err(_) => return Ok(()),
            }
            if Moment::now() >= end {
                return Ok(());
            }
        }
    }

    fn take(&mut self, message: Message<Index>) {
        if message.world != self.world.current() {
            return;
        }
        match message.topic {
            Topic::Failed => self
                .metrics
                .watch_errors
                .get_or_create(&label(message.kind))
                .inc(),
            Topic::Listed => self.metrics.lists.get_or_create(&label(message.kind)).inc(),
            Topic::Begun | Topic::Works | Topic::Changed => 0,
        };
        message.take(&mut self.index);
        for (kind, missed) in self.index.take_missed() {
            self.metrics.unreadable.get_or_create(&label(kind)).inc();
            self.events.tell(news(kind, missed));
        }
    }

    fn is_complete(&mut self) -> bool {
        if self.complete {
            return true;
        }
        let awaited: Vec<String> = self
            .index
            .awaited()
            .into_iter()
            .map(|(kind, error)| match error {
                Some(error) => error,
                None => format!("lists {kind}"),
            })
            .collect();
        self.complete = awaited.is_empty();
        if self.complete {
            info!("has read everything; begins");
        }
        self.metrics.set_not_ready(awaited);
        self.complete
    }

    /// Looks at the nodes, writes slices, decides, writes. Returns when to do so again at the latest.
    async fn round(&mut self) -> Moment {
        let now = Moment::now();
        if let Some((_, until)) = self.pause
            && now < until
        {
            return until;
        }
        let now_ms = self.elapsed_ms();
        if self.index.is_in_doubt(now_ms) {
            let answer = self.writer.leases(&self.namespace).await;
            self.index.leases_read(answer);
        }
        self.index.look_at_nodes();
        self.endpoints
            .write(&mut self.index, &self.writer, &self.events, now_ms)
            .await;
        let timers = !self.index.policies.objects.is_empty() || self.waiting.len() > 0;
        if !self.index.dirty && !timers {
            return now + TICK;
        }
        let since = |wait: Duration| self.calm.is_none_or(|last| now >= last + wait);
        let (calm, patience_over) = (since(CALM), since(PATIENCE));
        let end = self.decide(calm, patience_over).await;
        if calm && (!end.decisions_left || patience_over) {
            self.calm = Some(now);
        }
        // Slices may have been written meanwhile, which count for the next round.
        let more = end.more || self.index.dirty;
        let unavailable = end.unavailable || end.still_unavailable;
        self.index.dirty = more || end.calm_left || unavailable;
        if unavailable {
            // One object that is never taken makes no pause longer.
            let factor = if end.unavailable { 2 } else { 1 };
            let last = self.pause.map(|(pause, _)| pause * factor);
            let pause = last.unwrap_or(FIRST_PAUSE).min(LONGEST_PAUSE);
            let until = Moment::now() + pause;
            self.pause = Some((pause, until));
            return until;
        }
        self.pause = None;
        if more {
            return Moment::now();
        }
        if end.calm_left {
            return self.calm.map_or(now, |last| last + CALM);
        }
        Moment::now() + TICK
    }

    async fn decide(&mut self, calm: bool, patience_over: bool) -> End {
        self.index.dirty = false;
        let began = Instant::now();
        let time = now();
        let outcome = self.index.with_world(|world| reconcile(world, &time));
        self.metrics.reconciles.inc();
        let took = began.elapsed();
        self.metrics.reconcile_seconds.observe(took.as_secs_f64());
        forget_gone(&mut self.waiting, &self.index);
        let began = Instant::now();
        let now_ms = self.elapsed_ms();
        // Slices before the decisions by which nodes read them.
        self.index.select(&outcome);
        self.endpoints
            .write(&mut self.index, &self.writer, &self.events, now_ms)
            .await;
        let round = Round {
            index: &mut self.index,
            writer: &self.writer,
            waiting: &mut self.waiting,
            events: &self.events,
            now_ms,
            last: false,
            tried: false,
        };
        let end = round.write(outcome, calm, patience_over).await;
        let wrote = began.elapsed();
        self.metrics.write_seconds.observe(wrote.as_secs_f64());
        debug!(?took, ?wrote, ?end, "a round");
        end
    }

    fn tell_numbers(&mut self) {
        for kind in KINDS {
            let count = i64::try_from(kind.count(&mut self.index)).unwrap_or(i64::MAX);
            self.metrics
                .objects
                .get_or_create(&label(kind.name))
                .set(count);
        }
        let waiting = self.waiting.len() + self.endpoints.waits();
        self.metrics
            .waiting
            .set(i64::try_from(waiting).unwrap_or(i64::MAX));
        self.metrics
            .highest_revision
            .set(self.index.highest_revision());
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn news(kind: &'static str, missed: Missed) -> News {
    let (reason, note) = match missed.why {
        Why::Unreadable(error) => (
            "Unreadable",
            format!(
                "the operator cannot read this object, and what it last could read stays: {error}; is the operator older \
                 than the CRDs?"
            ),
        ),
        why @ Why::NoRoom(_) => ("LimitExceeded", format!("the object {why}")),
    };
    News {
        about: About {
            kind,
            key: missed.key,
            uid: missed.uid,
        },
        warning: true,
        reason: reason.to_owned(),
        action: "Read",
        note,
    }
}

const fn label(kind: &'static str) -> KindLabel {
    KindLabel { kind }
}

/// Starts all watches. They end when the receiver is gone.
fn watch(
    client: &Client,
    namespace: &str,
    world: &World,
    guard: &Arc<Guard>,
    queue: &Sender<Message<Index>>,
) {
    let guard = Arc::clone(guard);
    let server = Server {
        client: client.clone(),
        namespace: namespace.to_owned(),
        name: None,
        world: world.clone(),
        ask: Arc::new(move || {
            let guard = Arc::clone(&guard);
            Box::pin(async move {
                guard.check().await;
                Ok(())
            })
        }),
    };
    for kind in KINDS {
        tokio::spawn(kind.watch(server.clone(), queue.clone()));
    }
}

/// Status keeps whole seconds.
fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}
