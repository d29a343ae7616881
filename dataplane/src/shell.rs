//! Runs the core: gives it news, carries its effects out, and gives it their outcomes.
//!
//! One thread does all of it. It waits for nobody but the kernel, and for looks at the planner: status is written by another
//! thread. Bursts of news are gathered for a few milliseconds, so that they make one turn.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use sluice_api::jiff::Timestamp;
use sluice_planner::{Image, MapOp};
use tracing::{debug, info};

use crate::announce::Announcer;
use crate::core::{Attachment, Core, Effect, Input, LeaveError, Now, Place, Wanted};
use crate::health::Checker;
use crate::maps::{Attached, Attacher, Error, Hook, Maps};
use crate::netlink::{Requests, Settings};
use crate::report::Mailbox;
use crate::state::State;

/// Quiet time that ends a burst of news.
const QUIET: Duration = Duration::from_millis(3);
/// Longest time that a burst is gathered.
const BURST: Duration = Duration::from_millis(30);
/// Longest time without a turn of the loop.
const TURN: Duration = Duration::from_secs(1);

/// Carries out what a core wants done.
#[derive(Debug)]
pub struct Shell {
    state: Arc<State>,
    mailbox: Mailbox,
    /// `None` on a node that is detached, whose core wants nothing of them.
    tools: Option<Tools>,
    /// Whether the source knew the newest of everything when the core was last told.
    synced: Option<bool>,
    /// Where the admin endpoint could not listen when the core was last told.
    closed_doors: Vec<String>,
}

/// Handles to the maps, the programs and the kernel's network, with which effects are carried out.
#[derive(Debug)]
pub struct Tools {
    /// The maps.
    pub maps: Arc<Maps>,
    /// Attaches the programs.
    pub attacher: Attacher,
    /// Asks the kernel.
    pub requests: Requests,
    /// Announces VIPs; `None`: it cannot.
    pub announcer: Option<Announcer>,
    /// Checks servers; `None`: it cannot.
    pub checker: Option<Checker>,
}

impl Shell {
    /// `tools` are `None` on a node that is detached.
    pub fn new(state: Arc<State>, mailbox: Mailbox, tools: Option<Tools>) -> Self {
        Self {
            state,
            mailbox,
            tools,
            synced: None,
            closed_doors: Vec::new(),
        }
    }

    /// Goes round until all senders of `inbox` are gone.
    pub fn run(mut self, mut core: Core, inbox: &Receiver<Input>) {
        loop {
            let now = Instant::now();
            let deadline = core.next_deadline(now).unwrap_or(now + TURN);
            let pause = deadline.saturating_duration_since(now).min(TURN);
            match inbox.recv_timeout(pause) {
                Ok(input) => {
                    self.tell(&mut core, input);
                    self.gather(&mut core, inbox);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.turn(&mut core);
            self.state.turn();
        }
    }

    /// Takes what comes in quick succession.
    fn gather(&mut self, core: &mut Core, inbox: &Receiver<Input>) {
        let end = Instant::now() + BURST;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match inbox.recv_timeout(left.min(QUIET)) {
                Ok(input) => self.tell(core, input),
                Err(_) => return,
            }
            if left.is_zero() {
                return;
            }
        }
    }

    fn turn(&mut self, core: &mut Core) {
        let synced = self.state.source.unsynced().is_zero();
        if self.synced.replace(synced) != Some(synced) {
            self.tell(core, Input::SourceSynced(synced));
        }
        let closed: Vec<String> = self.state.closed_doors().into_values().collect();
        if self.closed_doors != closed {
            self.closed_doors.clone_from(&closed);
            self.tell(core, Input::DoorsClosed(closed));
        }
        self.tell(core, Input::Turn);
    }

    /// Gives the core an input, carries out what follows from it, and so on until nothing does.
    fn tell(&mut self, core: &mut Core, input: Input) {
        if matches!(input, Input::NetlinkLost) {
            self.state
                .counts
                .netlink_drops
                .fetch_add(1, Ordering::Relaxed);
        }
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let start = Instant::now();
            let now = Now {
                instant: start,
                time: Timestamp::now(),
            };
            for effect in core.on(input, now) {
                inputs.extend(self.carry_out(effect, start));
            }
        }
    }

    /// Carries out an effect. Returns its outcome, if it has one. `start` is when the core began to decide.
    fn carry_out(&mut self, effect: Effect, start: Instant) -> Option<Input> {
        match effect {
            Effect::Publish(published) => self.state.publish(*published),
            Effect::WriteStatus(status) => self.mailbox.put(*status),
            effect => {
                let tools = self.tools.as_mut()?;
                let outcome = tools.carry_out(effect, &self.state, start)?;
                if let Input::NodeLeft(Ok(_)) = outcome {
                    self.let_go();
                }
                return Some(outcome);
            }
        }
        None
    }

    /// Gives up programs and maps: the kernel frees them when the last one that uses them is done.
    fn let_go(&mut self) {
        self.state.release_maps();
        self.tools = None;
    }
}

impl Tools {
    /// Carries out an effect on the kernel.
    fn carry_out(&mut self, effect: Effect, state: &State, start: Instant) -> Option<Input> {
        let counts = &state.counts;
        Some(match effect {
            // They are no matter of the kernel.
            Effect::Publish(_) | Effect::WriteStatus(_) => return None,
            Effect::Announce(plan) => {
                if let Some(announcer) = &self.announcer {
                    announcer.plan(*plan);
                }
                return None;
            }
            Effect::Check(changes) => {
                if let Some(checker) = &self.checker {
                    checker.plan(changes);
                }
                return None;
            }
            Effect::KeepNeighbour(ifindex, address) => {
                if let Err(error) = self.requests.keep_neighbour(ifindex, address) {
                    debug!(%error, %address, "a neighbour was not registered");
                }
                return None;
            }
            Effect::ReleaseNeighbour(ifindex, address) => {
                if let Err(error) = self.requests.release_neighbour(ifindex, address) {
                    debug!(%error, %address, "a neighbour was not released");
                }
                return None;
            }
            Effect::ReadTable => Input::TableRead(self.requests.table()),
            Effect::ReadGateways => Input::GatewaysRead(self.requests.default_gateways()),
            Effect::FindRoutes(addresses) => {
                let find = |to| (to, self.requests.route(to));
                Input::RoutesFound(addresses.into_iter().map(find).collect())
            }
            Effect::ReadSettings(uplinks) => {
                let read = |name: String| {
                    let settings = Settings::read(&name);
                    (name, settings)
                };
                Input::SettingsRead(uplinks.into_iter().map(read).collect())
            }
            Effect::ReadImage => Input::ImageRead(counts.failed(self.image())),
            Effect::Apply(operations) => {
                let applied = counts.failed(self.apply(state, &operations));
                if applied.is_ok() {
                    state.apply_seconds.observe(start.elapsed());
                    counts.applies.fetch_add(1, Ordering::Relaxed);
                }
                Input::Applied(applied)
            }
            Effect::LookForPrograms(places) => Input::ProgramsGone(self.gone(places)),
            Effect::Attach(attachment) => Input::Attached {
                outcome: self.attach(&attachment),
                attachment,
            },
            Effect::ListAttached => Input::AttachedListed(self.attacher.attached()),
            Effect::Detach(programs) => Input::Detached(self.detach(programs)),
            Effect::LeaveNode => Input::NodeLeft(self.leave()),
        })
    }

    fn image(&self) -> Result<Image, Error> {
        // Packets may still hold what the last words of an earlier sequence led to.
        self.maps.grace();
        self.maps.image()
    }

    fn apply(&self, state: &State, operations: &[MapOp]) -> Result<(), Error> {
        let start = Instant::now();
        for operation in operations {
            self.maps.apply(operation)?;
            state.counts.operations.fetch_add(1, Ordering::Relaxed);
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

    fn attach(&mut self, attachment: &Attachment) -> Result<Attached, Error> {
        let (name, ifindex) = (&attachment.interface, attachment.ifindex);
        match attachment.programs {
            Wanted::Uplink { choice, found } => {
                self.attacher.attach_uplink(name, ifindex, choice, found)
            }
            Wanted::Bridge => self.attacher.attach_bridge(name, ifindex),
        }
    }

    fn detach(&mut self, programs: Vec<(Hook, String)>) -> Result<(), Error> {
        for (hook, interface) in programs {
            self.attacher.detach(hook, &interface)?;
        }
        Ok(())
    }

    /// Those of these places where a program is no more.
    fn gone(&mut self, places: Vec<Place>) -> Vec<Place> {
        let mut gone: Vec<Place> = Vec::new();
        for place in places {
            let (hook, ifindex) = (place.hook, place.ifindex);
            let has_filter = |filter| {
                let found = self.requests.has_filter(ifindex, filter);
                found.map_err(io::Error::other)
            };
            let in_place = self
                .attacher
                .is_in_place(hook, &place.interface, ifindex, has_filter);
            match in_place {
                Ok(true) => {}
                Ok(false) => gone.push(place),
                Err(error) => debug!("{error}"),
            }
        }
        if gone.is_empty() {
            return gone;
        }
        // A program that went with its interface is not reported; the core may not have heard of the interface yet.
        match self.requests.table() {
            Ok(table) => gone.retain(|place| {
                let found = table.link_by_name(&place.interface);
                found.is_some_and(|(ifindex, _)| ifindex == place.ifindex)
            }),
            Err(error) => {
                debug!(%error, "cannot look at the network");
                gone.clear();
            }
        }
        gone
    }

    /// Hands VIP groups over, then takes programs, maps and pins off the node, and the neighbours and multicast groups that were kept
    /// for them.
    fn leave(&mut self) -> Result<Vec<String>, LeaveError> {
        if let Some(announcer) = self.announcer.take() {
            announcer.shut_down();
        }
        let requests = &mut self.requests;
        let removed = self.attacher.detach_all(|interface| {
            let removed = requests.remove_idle_clsact(interface);
            removed.map_err(io::Error::other)
        })?;
        requests.release_registered()?;
        requests.leave_groups()?;
        Ok(removed)
    }
}
