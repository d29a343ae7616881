//! The loop.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::Client;
use sluice_api::Time;
use sluice_api::jiff::Timestamp;
use sluice_kube::identity::{Guard, World};
use sluice_kube::store::{Missed, Why};
use sluice_kube::watch::Server;
use sluice_kube::watched::{Message, Topic};
use sluice_signals::Intake;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinSet;
use tokio::time::{Instant as Moment, sleep_until};
use tracing::{debug, info, warn};

use super::Error;
use super::endpoints::Endpoints;
use super::events::{About, Events, News};
use super::flight::{Ground, Landing, fly};
use super::index::Index;
use super::notes::Notes;
use super::services::Services;
use super::watch::{KINDS, only};
use super::writer::Writer;
use crate::core::Node;
use crate::metrics::{KindLabel, Metrics};
use crate::order::{Next, Schedule};
use crate::settings::Settings;

/// Room in the queue of what the watches tell; a watch waits when it is full.
const QUEUE: usize = 1024;
/// The queue counts as quiet after this time without news,
const QUIET: Duration = Duration::from_millis(20);
/// and is no longer waited for after this time.
const GATHER: Duration = Duration::from_millis(200);
/// Timers of rollouts and the silence of nodes are looked at this often.
const TICK: Duration = Duration::from_secs(1);
/// New objects that name others which nobody has heard of yet are waited with for so long: kinds are watched apart, so a pool
/// may be heard of after the virtual server that was applied together with it.
const REFERENTS: Duration = Duration::from_secs(1);
/// The core rests this many times as long as it took, so that writes get their turn.
const REST: u32 = 3;
/// Writes under way at one time.
const AT_ONCE: usize = 8;

/// What the operator shares with what runs beside it.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The process's numbers.
    pub metrics: Arc<Metrics>,
    /// What agents report of pools' servers.
    pub intake: Arc<Mutex<Intake>>,
}

/// Runs the operator until `stop` is ready. `namespace` has the Leases of the nodes' agents.
pub async fn run(
    client: Client,
    namespace: &str,
    settings: &Settings,
    shared: Shared,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let Shared { metrics, intake } = shared;
    let (sender, queue) = channel(QUEUE);
    let world = World::default();
    let guard = Arc::new(Guard::new(client.clone(), world.clone()));
    watch(&client, namespace, &world, &guard, &sender);
    drop(sender);
    let now = Moment::now();
    let mut index = Index::new(namespace);
    index.set(settings);
    let operator = Operator {
        index,
        world,
        namespace: namespace.to_owned(),
        writer: Writer::new(client.clone(), Arc::clone(&metrics)),
        events: Events::start(client, &metrics),
        endpoints: Endpoints::default(),
        services: Services::default(),
        notes: Notes::default(),
        schedule: Schedule::new(AT_ONCE),
        flights: JoinSet::new(),
        metrics,
        intake,
        start: now,
        heard: None,
        look_at: now,
        timers_at: now,
        rest_until: now,
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
    services: Services,
    notes: Notes,
    schedule: Schedule,
    /// The writes under way.
    flights: JoinSet<Landing>,
    metrics: Arc<Metrics>,
    intake: Arc<Mutex<Intake>>,
    start: Moment,
    /// When the first and the last news came that nobody has looked at.
    heard: Option<(Moment, Moment)>,
    /// When to look at the latest.
    look_at: Moment,
    /// When the timers of rollouts are looked at again.
    timers_at: Moment,
    /// Until when the core rests.
    rest_until: Moment,
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
                    while let Ok(message) = queue.try_recv() {
                        self.take(message);
                    }
                    let now = Moment::now();
                    let first = self.heard.map_or(now, |(first, _)| first);
                    self.heard = Some((first, now));
                }
                Some(landing) = self.flights.join_next() => {
                    self.land(landing.map_err(|_| Error::Ended)?);
                    while let Some(landing) = self.flights.try_join_next() {
                        self.land(landing.map_err(|_| Error::Ended)?);
                    }
                }
                answer = self.notes.answer() => {
                    let now_ms = self.elapsed_ms();
                    let answer = answer.ok_or(Error::Ended)?;
                    self.notes.land(&mut self.index, &self.events, answer, now_ms);
                }
                () = sleep_until(next) => {}
            }
            self.metrics.turn();
            next = Moment::now() + TICK;
            if !self.is_complete() {
                continue;
            }
            let due = self.due();
            if Moment::now() >= due {
                self.look().await;
                self.tell_numbers();
            }
            next = next.min(self.due()).min(self.start_writes());
        }
    }

    /// When it is time to look at what was heard, and to decide.
    fn due(&self) -> Moment {
        let quiet = self
            .heard
            .map(|(first, last)| (first + GATHER).min(last + QUIET));
        let is_free = !self.index.dirty.is_empty() && self.lacking.is_none();
        let landed = is_free.then_some(self.rest_until);
        let due = quiet.or(landed).unwrap_or(self.look_at);
        due.max(self.rest_until).min(self.look_at)
    }

    /// Until when new objects that name unknown ones are waited with, if so.
    fn waits_for_referents(&mut self) -> Option<Moment> {
        if !self.index.lacks_referents() {
            self.lacking = None;
            return None;
        }
        let now = Moment::now();
        let until = *self.lacking.get_or_insert(now) + REFERENTS;
        (now < until).then_some(until)
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
        for news in std::mem::take(&mut self.index.news) {
            self.events.tell(news);
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

    /// Looks at the nodes, writes slices, decides.
    async fn look(&mut self) {
        self.heard = None;
        self.look_at = Moment::now() + TICK;
        if let Some(until) = self.waits_for_referents() {
            self.look_at = self.look_at.min(until);
            return;
        }
        let now_ms = self.elapsed_ms();
        if self.index.is_in_doubt(now_ms) {
            let answer = self.writer.leases(&self.namespace).await;
            self.index.leases_read(answer);
        }
        self.index.look_at_ledger(now_ms);
        if !self.read_ledger().await {
            return;
        }
        if self.index.are_pools_stale {
            self.metrics
                .count_addresses(self.index.ledger.pool_states());
        }
        // A node may acknowledge a decision before the answer to its write is here.
        self.index.raise_floor(self.schedule.given());
        self.index.look_at_nodes();
        self.index.look_at_departures();
        self.notes
            .start(&mut self.index, &self.writer, &now(), now_ms);
        self.endpoints
            .write(&mut self.index, &self.writer, &self.events, now_ms)
            .await;
        let (index, writer) = (&mut self.index, &self.writer);
        let has_more = self
            .services
            .write(index, writer, &self.events, &now(), now_ms)
            .await;
        if has_more {
            self.look_at = Moment::now();
        }
        if Moment::now() >= self.timers_at {
            self.timers_at = Moment::now() + TICK;
            let asked = self.index.pools_of_rollouts();
            let intake = self.intake.lock();
            let mut intake = intake.unwrap_or_else(PoisonError::into_inner);
            let news = intake.news(asked);
            drop(intake);
            self.index.hear(&news, now_ms);
            self.index.look_at_timers(&now());
        }
        if !self.index.dirty.is_empty() {
            self.decide().await;
        }
    }

    /// Reads who has which addresses, once. Before, nobody gets one.
    async fn read_ledger(&mut self) -> bool {
        if !self.index.is_ledger_read {
            match self.writer.ledger(&self.namespace).await {
                Ok(texts) => {
                    self.index.ledger_read(texts);
                    self.metrics.set_not_ready(Vec::new());
                }
                Err(error) => {
                    let error = format!("cannot read the ledger of addresses: {error}");
                    warn!("{error}; tries again");
                    self.metrics.set_not_ready(vec![error]);
                }
            }
        }
        self.index.is_ledger_read
    }

    async fn decide(&mut self) {
        self.index.raise_floor(self.schedule.given());
        self.schedule.raise(self.index.highest_revision());
        let began = Moment::now();
        let outcome = self.index.decide(&now());
        let took = began.elapsed();
        self.metrics.reconciles.inc();
        self.metrics.reconcile_seconds.observe(took.as_secs_f64());
        // Slices before the decisions by which nodes read them.
        let now_ms = self.elapsed_ms();
        self.endpoints
            .write(&mut self.index, &self.writer, &self.events, now_ms)
            .await;
        self.schedule.reopen(self.index.take_reopened());
        let index = &self.index;
        self.schedule.retain(|object| index.stamp(object).is_some());
        self.schedule.decide(index, outcome);
        self.rest_until = Moment::now() + took * REST;
        debug!(?took, pending = self.schedule.pending_count(), "decided");
    }

    /// Starts what may be written now. Returns when to look for more at the latest.
    fn start_writes(&mut self) -> Moment {
        loop {
            let now_ms = self.elapsed_ms();
            match self.schedule.next(&self.index, now_ms) {
                Next::Write(write) => {
                    let flight = fly(&mut self.index, self.writer.clone(), *write);
                    self.flights.spawn(flight);
                }
                Next::At(ms) => return self.start + Duration::from_millis(ms),
                Next::Idle => return Moment::now() + TICK,
            }
        }
    }

    fn land(&mut self, landing: Landing) {
        let now_ms = self.elapsed_ms();
        let mut ground = Ground {
            index: &mut self.index,
            schedule: &mut self.schedule,
            events: &self.events,
            now_ms,
        };
        ground.land(landing);
    }

    fn tell_numbers(&mut self) {
        for kind in KINDS {
            let count = i64::try_from(kind.count(&mut self.index)).unwrap_or(i64::MAX);
            self.metrics
                .objects
                .get_or_create(&label(kind.name))
                .set(count);
        }
        let waiting = self.schedule.waiting()
            + self.endpoints.waits()
            + self.services.waiting()
            + self.notes.waiting();
        self.metrics
            .waiting
            .set(i64::try_from(waiting).unwrap_or(i64::MAX));
        let nodes = self.index.known_nodes.values();
        self.metrics.count_nodes(nodes.map(Node::state));
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
        let server = Server {
            name: only(kind.name),
            ..server.clone()
        };
        tokio::spawn(kind.watch(server, queue.clone()));
    }
}

/// Status keeps whole seconds.
fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}
