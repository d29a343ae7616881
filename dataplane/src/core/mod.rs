//! The agent's loop: decisions and observations in, maps and status out.
//!
//! ```text
//! source::Event ─┐                                ┌─► maps (operations of the planner's diff, in order)
//! rtnetlink ─────┴► Core: view ─► config ─► plan ─┼─► links and filters
//!                                                 └─► status, metrics
//! ```
//!
//! One thread does all of it. It waits for nobody: status is written by another thread, and what fails is tried again
//! later while the rest goes on. Bursts of news are gathered for a few milliseconds, so that they make one plan.

mod attachments;
mod back_off;
mod detached;
mod labels;
mod status;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use sluice_api::{ConditionType, LoadBalancerNodeStatus};
use sluice_planner::{
    Image, Limits, MapOp, NodeConfig, NodeView, Plan, Problem, RingCache, diff, node_config,
    plan_with,
};
use tracing::{debug, error, info, warn};

use crate::maps::{self, Attacher, Maps};
use crate::netlink::{self, Change, Requests, Resolver, Surroundings, Table};
use crate::report::Mailbox;
use crate::source::{Decisions, Event, NodeSpec};
use crate::state::State;

use attachments::Attachments;
use back_off::BackOff;
pub use detached::Detached;
use status::Summary;

/// Quiet time that ends a burst of news.
const QUIET: Duration = Duration::from_millis(3);
/// Longest time that a burst is gathered.
const BURST: Duration = Duration::from_millis(30);
/// Longest time without a turn of the loop.
const TURN: Duration = Duration::from_secs(1);
/// Time between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Time between two looks at the default routes while routes change.
const GATEWAYS: Duration = Duration::from_secs(10);

/// What the loop is told.
#[derive(Debug)]
pub enum Input {
    /// News of a source.
    Source(Event),
    /// News of the kernel's network.
    Netlink(Box<RouteNetlinkMessage>),
    /// News of the kernel's network was lost.
    NetlinkLost,
}

/// What has changed since the last turn.
#[derive(Clone, Copy, Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent of each other"
)]
struct Dirty {
    /// Everything of the network is to be asked for anew.
    network: bool,
    /// Routes are to be looked up anew.
    routes: bool,
    /// Default gateways are to be looked up anew.
    gateways: bool,
    /// Interfaces or what is wanted of them.
    links: bool,
}

/// What was brought into the maps.
#[derive(Debug)]
struct Applied {
    revisions: Revisions,
    config: NodeConfig,
}

/// Up to which revisions everything is live.
#[derive(Clone, Copy, Debug)]
struct Revisions {
    virtual_servers: u64,
    pools: u64,
}

/// The agent's loop and all it knows.
#[derive(Debug)]
pub struct Core {
    state: Arc<State>,
    maps: Arc<Maps>,
    limits: Limits,
    requests: Requests,
    attachments: Attachments,
    mailbox: Mailbox,

    table: Table,
    resolver: Resolver,
    gateways: BTreeSet<(u32, IpAddr)>,
    gateways_read: Option<Instant>,
    released_stale: bool,

    node: Option<NodeSpec>,
    /// Why the newest spec of this node is not in force.
    refused: Option<String>,
    /// Why the source withholds decisions.
    held: Option<String>,
    /// The generation of the spec under which everything is to be taken off the node.
    detach: Option<i64>,
    detach_retry: BackOff,
    decisions: Option<Decisions>,
    decisions_changed: bool,
    peers: BTreeMap<String, BTreeSet<IpAddr>>,

    dirty: Dirty,
    network_retry: BackOff,
    apply_retry: BackOff,
    /// What the maps hold; `None` when it must be read back.
    actual: Option<Arc<Image>>,
    intended: Arc<Image>,
    view: NodeView,
    config: NodeConfig,
    /// What was applied last.
    applied: Option<Applied>,
    limit_problems: Vec<Problem>,
    failure: Option<String>,
    rings: RingCache,
    summary: Summary,

    status: LoadBalancerNodeStatus,
    last_report: Option<Instant>,
}

impl Core {
    /// `before` is the status that an earlier agent of this node wrote last.
    pub fn new(
        state: Arc<State>,
        maps: Arc<Maps>,
        requests: Requests,
        attacher: Attacher,
        mailbox: Mailbox,
        mut before: LoadBalancerNodeStatus,
    ) -> Self {
        let detached = ConditionType::Detached.name();
        before.conditions.retain(|c| c.type_ != detached);
        Self {
            limits: maps.limits(),
            state,
            maps,
            requests,
            attachments: Attachments::new(attacher),
            mailbox,
            table: Table::default(),
            resolver: Resolver::default(),
            gateways: BTreeSet::new(),
            gateways_read: None,
            released_stale: false,
            node: None,
            refused: None,
            held: None,
            detach: None,
            detach_retry: BackOff::default(),
            decisions: None,
            decisions_changed: false,
            peers: BTreeMap::new(),
            dirty: Dirty {
                network: true,
                ..Dirty::default()
            },
            network_retry: BackOff::default(),
            apply_retry: BackOff::default(),
            actual: None,
            intended: Arc::default(),
            view: NodeView::default(),
            config: NodeConfig::default(),
            applied: None,
            limit_problems: Vec::new(),
            failure: None,
            rings: RingCache::default(),
            summary: Summary::default(),
            status: before,
            last_report: None,
        }
    }

    /// Goes round until all senders of `inbox` are gone.
    pub fn run(mut self, inbox: &Receiver<Input>) {
        loop {
            let now = Instant::now();
            let pause = self.deadline(now).saturating_duration_since(now).min(TURN);
            match inbox.recv_timeout(pause) {
                Ok(input) => {
                    self.take(input);
                    self.gather(inbox);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            if let Some(generation) = self.detach {
                if self.try_to_detach(now) {
                    return self.into_detached(generation).run(inbox);
                }
                self.report(now);
            } else {
                self.turn(now);
            }
            self.state.turn();
        }
    }

    /// Takes everything off this node; what fails is tried again.
    fn try_to_detach(&mut self, now: Instant) -> bool {
        if !self.detach_retry.is_over(now) {
            return false;
        }
        match take_everything_off(&mut self.attachments, &mut self.requests) {
            Ok(removed) => {
                info!(
                    removed = removed.len(),
                    "detached, as the LoadBalancerNode asks for"
                );
                true
            }
            Err(error) => {
                if !self.detach_retry.is_failing() {
                    error!("cannot detach: {error}");
                }
                self.failure = Some(format!("cannot detach: {error}"));
                self.detach_retry.fail(now);
                false
            }
        }
    }

    /// Gives up programs and maps: the kernel frees them when the last one that uses them is done.
    fn into_detached(self, generation: i64) -> Detached {
        self.state.release_maps();
        Detached::new(self.state, self.mailbox, self.status, generation)
    }

    /// Takes what comes in quick succession.
    fn gather(&mut self, inbox: &Receiver<Input>) {
        let end = Instant::now() + BURST;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match inbox.recv_timeout(left.min(QUIET)) {
                Ok(input) => self.take(input),
                Err(_) => return,
            }
            if left.is_zero() {
                return;
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Source(Event::Decisions(decisions)) => {
                debug!(revision = decisions.revision, "new decisions");
                self.decisions = Some(decisions);
                self.decisions_changed = true;
            }
            Input::Source(Event::Node(node)) => {
                info!(role = ?node.spec.role, interfaces = ?node.spec.interfaces, "this node's spec");
                let mode = |node: &NodeSpec| node.spec.xdp_mode;
                if self.node.as_ref().map(mode) != Some(mode(&node)) {
                    self.attachments.reconsider();
                }
                self.node = Some(node);
                self.refused = None;
                self.dirty.links = true;
                self.dirty.gateways = true;
            }
            Input::Source(Event::NodeRefused(message)) => self.refused = Some(message),
            Input::Source(Event::Held(reason)) => self.held = reason,
            Input::Source(Event::Detach { generation }) => self.detach = Some(generation),
            Input::Source(Event::Peers(peers)) => self.peers = peers,
            Input::Netlink(message) => match self.table.apply(&message) {
                Some(Change::Link) => {
                    self.dirty.links = true;
                    self.dirty.routes = true;
                }
                Some(Change::Address | Change::Route) => {
                    self.dirty.routes = true;
                    self.dirty.gateways = true;
                }
                Some(Change::Neighbour) | None => {}
            },
            Input::NetlinkLost => {
                self.state
                    .counts
                    .netlink_drops
                    .fetch_add(1, Ordering::Relaxed);
                self.dirty.network = true;
            }
        }
    }

    /// When the next turn is due without any news.
    fn deadline(&self, now: Instant) -> Instant {
        let report = self.last_report.map_or(now + TURN, |last| last + HEARTBEAT);
        let network = self
            .network_retry
            .until()
            .or_else(|| self.resolver.deadline(&self.table, now));
        let others = [
            network,
            self.apply_retry.until(),
            self.detach_retry.until(),
            self.attachments.retry_at(),
        ];
        others.into_iter().flatten().fold(report, Instant::min)
    }

    fn turn(&mut self, now: Instant) {
        self.observe(now);
        if let Some(node) = self.node.clone() {
            // The tables come first: no packet finds them half full.
            self.plan_and_apply(now);
            let bridges = self.bridges();
            let mut links = std::mem::take(&mut self.dirty.links);
            links |= self.attachments.look(&self.table, &mut self.requests, now);
            self.attachments
                .reconcile(&self.table, &node.spec, &bridges, links, now);
        }
        self.report(now);
    }

    /// Brings what is known of the network up to date.
    fn observe(&mut self, now: Instant) {
        if !self.network_retry.is_over(now) {
            return;
        }
        match self.ask(now) {
            Ok(()) => self.network_retry.succeed(),
            Err(error) => {
                if !self.network_retry.is_failing() {
                    warn!("cannot look at the network: {error}");
                }
                self.network_retry.fail(now);
            }
        }
    }

    fn ask(&mut self, now: Instant) -> Result<(), netlink::Error> {
        if self.dirty.network {
            self.table = self.requests.table()?;
            self.dirty = Dirty {
                network: false,
                routes: true,
                gateways: true,
                links: true,
            };
        }
        let gateways_rested = self.gateways_read.is_none_or(|at| now >= at + GATEWAYS);
        if self.dirty.gateways && (gateways_rested || self.gateways.is_empty()) {
            self.gateways = self.requests.default_gateways()?.into_iter().collect();
            self.gateways_read = Some(now);
            self.dirty.gateways = false;
        }
        let requests = &mut self.requests;
        let addresses = view::addresses_to_reach(self.decisions.as_ref(), &self.peers);
        let followed = self
            .resolver
            .follow(&addresses, self.dirty.routes, |to| requests.route(to));
        self.dirty.routes = followed.is_err();
        self.track(now);
        followed
    }

    fn track(&mut self, now: Instant) {
        let uplinks = self.uplinks();
        let gateways = self
            .gateways
            .iter()
            .filter(|(ifindex, _)| uplinks.contains(ifindex));
        let around = Surroundings {
            table: &self.table,
            uplinks: &uplinks,
        };
        let mut released = self
            .resolver
            .track(around, &gateways.copied().collect(), now);
        if !self.released_stale && self.node.is_some() && self.decisions.is_some() {
            // What an earlier agent registered and this one does not need.
            self.released_stale = true;
            released.extend(self.resolver.not_tracked(self.table.registered()));
        }
        for (ifindex, address) in released {
            let entry = self.table.neighbour_at(ifindex, address);
            if entry.is_some_and(|entry| entry.ours)
                && let Err(error) = self.requests.release_neighbour(ifindex, address)
            {
                debug!(%error, %address, "a neighbour was not released");
            }
        }
        for (ifindex, address) in self.resolver.due(&self.table, now) {
            if let Err(error) = self.requests.keep_neighbour(ifindex, address) {
                debug!(%error, %address, "a neighbour was not registered");
            }
        }
    }

    /// Indices of the interfaces that carry XDP.
    fn uplinks(&self) -> BTreeSet<u32> {
        let names = self.node.iter().flat_map(|node| &node.spec.interfaces);
        names
            .filter_map(|name| self.table.link_by_name(name))
            .map(|(ifindex, _)| ifindex)
            .collect()
    }

    fn plan_and_apply(&mut self, now: Instant) {
        let (Some(decisions), Some(node)) = (&self.decisions, &self.node) else {
            return;
        };
        let uplinks = self.uplinks();
        let around = Surroundings {
            table: &self.table,
            uplinks: &uplinks,
        };
        let view = view::node_view(
            &self.state.node,
            &node.spec,
            around,
            &self.resolver,
            &self.peers,
            now,
        );
        if self.applied.is_some() && !self.decisions_changed && view == self.view
            || !self.apply_retry.is_over(now)
        {
            return;
        }
        let revisions = Revisions {
            virtual_servers: decisions.revision,
            pools: decisions.pool_revision,
        };
        self.config = node_config(&decisions.snapshot, &view);
        self.view = view;
        self.decisions_changed = false;
        match &mut self.applied {
            Some(applied) if applied.config == self.config => applied.revisions = revisions,
            _ => self.bring_about(revisions, now),
        }
        self.summary = self.summarize();
    }

    /// Applies the configuration, or sees to it that this is tried again.
    fn bring_about(&mut self, revisions: Revisions, now: Instant) {
        match self.apply() {
            Ok(()) => {
                self.applied = Some(Applied {
                    revisions,
                    config: self.config.clone(),
                });
                self.failure = None;
                self.apply_retry.succeed();
            }
            Err(error) => {
                // Logged once: the retries are in the metrics.
                if self.failure.is_none() {
                    error!("cannot bring the maps to what was decided: {error}");
                }
                self.failure = Some(error.to_string());
                self.actual = None;
                self.applied = None;
                self.apply_retry.fail(now);
                let failures = &self.state.counts.apply_failures;
                failures.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn apply(&mut self) -> Result<(), maps::Error> {
        let start = Instant::now();
        let mut actual = if let Some(image) = self.actual.take() {
            image
        } else {
            // Packets may still hold what the last words of an earlier sequence led to.
            self.maps.grace();
            Arc::new(self.maps.image()?)
        };
        let was_full = !self.limit_problems.is_empty();
        // What there was no room for may fit once the first plan has freed its part.
        for _ in 0..2 {
            let Plan { desired, problems } =
                plan_with(&self.config, &actual, &self.limits, &mut self.rings);
            let operations = diff(&actual, &desired);
            self.intended = Arc::new(desired);
            self.limit_problems = problems;
            self.write(&operations)?;
            actual = Arc::clone(&self.intended);
            if self.limit_problems.is_empty() || operations.is_empty() {
                break;
            }
        }
        if let Some(first) = self.limit_problems.first().filter(|_| !was_full) {
            let count = self.limit_problems.len();
            warn!("not everything fits into the maps, see status: {first} (1 of {count})");
        }
        self.actual = Some(actual);
        self.state.apply_seconds.observe(start.elapsed());
        self.state.counts.applies.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn write(&self, operations: &[MapOp]) -> Result<(), maps::Error> {
        let start = Instant::now();
        let counter = &self.state.counts.operations;
        for operation in operations {
            self.maps.apply(operation)?;
            counter.fetch_add(1, Ordering::Relaxed);
        }
        if !operations.is_empty() {
            let milliseconds = start.elapsed().as_millis();
            info!(
                operations = operations.len(),
                milliseconds, "changed the maps"
            );
        }
        Ok(())
    }

    /// Interfaces other than uplinks behind which servers are.
    fn bridges(&self) -> BTreeSet<u32> {
        let records = self.actual.iter().flat_map(|image| {
            let words = image.servers.values();
            words
                .filter(|word| word.present() && word.path() == sluice_abi::Path::Tc)
                .filter_map(|word| image.records.get(&word.slot()))
        });
        records.map(|record| record.ifindex).collect()
    }
}

/// Takes programs, maps and pins off the node, then the neighbours that were kept for them.
fn take_everything_off(
    attachments: &mut Attachments,
    requests: &mut Requests,
) -> Result<Vec<String>, DetachError> {
    let removed = attachments.detach_all(requests)?;
    requests.release_registered()?;
    Ok(removed)
}

/// Why the node could not be left clean.
#[derive(thiserror::Error, Debug)]
enum DetachError {
    #[error(transparent)]
    Maps(#[from] maps::Error),
    #[error("cannot release neighbours: {0}")]
    Neighbours(#[from] netlink::Error),
}
