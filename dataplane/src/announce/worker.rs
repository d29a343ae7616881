//! The announcer's worker: gives electors their news and carries out what they decide.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use sluice_election::{Action, Event, Obstacle, Settings, Target, Time};
use sluice_planner::Mac;
use tracing::{debug, info, warn};

use super::announcer::{GroupState, Groups, INBOX, Message, Told, Tools};
use super::bursts::Bursts;
use super::first_use::FirstUse;
use super::frame::{self, To};
use super::joins::Joins;
use super::leases::{Leases, News, Request};
use super::memory::Keeper;
use super::plan::{Path, Plan, Uplink};
use super::seats::Seat;
use super::strangers::{Stranger, Strangers};
use super::sys::{Gets, PacketSocket};
use super::unheld::{Cause, Unheld, Watch};
use super::witness::Witnesses;
use crate::maps::Maps;
use crate::state::AnnounceCounts;

/// Longest time without a turn of the loop.
const TURN: Duration = Duration::from_millis(500);
/// How long groups are handed over at the end of the process.
pub(super) const FAREWELL: Duration = Duration::from_millis(2_500);

/// Tells the core; says whether it was heard.
pub(super) type Tell = Box<dyn Fn(Told) -> bool + Send>;

/// The present by the clock that deadlines are in: CLOCK_MONOTONIC, as `bpf_ktime_get_ns`.
pub(super) fn now() -> Time {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    Time::from_nanos(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

pub(super) struct Worker {
    pub(super) node: String,
    pub(super) settings: Settings,
    pub(super) maps: Arc<Maps>,
    pub(super) counts: Arc<AnnounceCounts>,
    leases: Option<Leases>,
    socket: PacketSocket,
    pub(super) plan: Plan,
    pub(super) electors: BTreeMap<String, Seat>,
    /// The group of each VIP.
    pub(super) group_of: BTreeMap<IpAddr, String>,
    /// The other directors by Ethernet address.
    pub(super) node_of: BTreeMap<Mac, String>,
    pub(super) witnesses: Witnesses,
    pub(super) first_use: FirstUse,
    pub(super) strangers: Strangers,
    pub(super) watch: Watch,
    pub(super) bursts: Bursts,
    pub(super) joins: Joins,
    keeper: Option<Keeper>,
    /// Whether an earlier agent found the API server out of reach, and no request has succeeded since.
    pub(super) is_server_lost: bool,
    told: Option<Told>,
    tell: Tell,
    /// Whoever listens for it sees by this that it has ended.
    _life: Arc<()>,
}

impl Worker {
    /// `life` ends with it.
    pub(super) fn new(
        tools: Tools,
        leases: Option<Leases>,
        tell: Tell,
        life: Arc<()>,
    ) -> io::Result<Self> {
        Ok(Self {
            node: tools.node,
            settings: tools.settings,
            maps: tools.maps,
            counts: tools.counts,
            leases,
            socket: PacketSocket::open(Gets::Nothing, Duration::ZERO)?,
            plan: Plan::default(),
            electors: BTreeMap::new(),
            group_of: BTreeMap::new(),
            node_of: BTreeMap::new(),
            witnesses: Witnesses::default(),
            first_use: FirstUse::default(),
            strangers: Strangers::default(),
            watch: Watch::default(),
            bursts: Bursts::default(),
            joins: Joins::open()?,
            keeper: tools.memory.map(Keeper::start).transpose()?,
            is_server_lost: tools.is_server_lost,
            told: None,
            tell,
            _life: life,
        })
    }

    /// Goes round until it is shut down.
    pub(super) fn run(mut self, inbox: &Receiver<Message>) {
        loop {
            let first = match inbox.recv_timeout(self.wait()) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                // Nobody is left who could ask for a shutdown.
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // What waits already is taken in before anybody decides, and not for ever where more comes all the time.
            for message in first.into_iter().chain(inbox.try_iter().take(INBOX)) {
                if let Message::Shutdown(done) = message {
                    self.shut_down(inbox);
                    let _ = done.send(());
                    return;
                }
                self.take(message);
            }
            self.turn();
        }
    }

    /// Hands over what is held. The process ends after it.
    fn shut_down(&mut self, inbox: &Receiver<Message>) {
        for seat in self.electors.values_mut() {
            seat.elector.on(Event::Shutdown, now());
        }
        self.turn();
        let end = Instant::now() + FAREWELL;
        let mut electors = self.electors.values();
        while !electors.all(|seat| seat.elector.state().is_finished) && Instant::now() < end {
            match inbox.recv_timeout(self.wait()) {
                Ok(Message::Lease(news)) => self.take(Message::Lease(news)),
                Ok(Message::Heard { ifindex, claim }) => self.hear(ifindex, claim),
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.turn();
            electors = self.electors.values();
        }
        info!("VIP groups are handed over or let go");
    }

    /// Time until the next turn.
    fn wait(&self) -> Duration {
        let electors = self.electors.values();
        let electors = electors.filter_map(|seat| seat.elector.next_deadline());
        let due = electors.chain(self.bursts.deadline());
        let due = due.chain(self.strangers.deadline());
        let due = due.chain(self.first_use.deadline()).min();
        due.map_or(TURN, |due| due.since(now()).min(TURN))
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Plan(plan) => {
                self.set_plan(*plan);
                if let Some(keeper) = &mut self.keeper {
                    keeper.plan_changed();
                }
            }
            Message::Heard { ifindex, claim } => self.hear(ifindex, claim),
            Message::Lease(News::Seen { group, lease }) => {
                self.is_server_lost = false;
                self.on(&group, Event::LeaseRead(lease));
            }
            Message::Lease(News::Unreadable { group }) => {
                self.on(&group, Event::LeaseUnreachable);
            }
            Message::Lease(News::Written { group, id, outcome }) => {
                debug!(group, ?id, ?outcome, "the write of the Lease ended");
                self.on(&group, Event::Written { id, outcome });
            }
            // The loop has taken it.
            Message::Shutdown(_) => {}
        }
    }

    fn on(&mut self, group: &str, event: Event) {
        if let Some(seat) = self.electors.get_mut(group) {
            seat.elector.on(event, now());
        }
    }

    /// Does what is due.
    fn turn(&mut self) {
        let due = self.electors.iter().filter(|(_, seat)| seat.is_due(now()));
        let due: Vec<String> = due.map(|(group, _)| group.clone()).collect();
        for group in due {
            while let Some(actions) = self.tick(&group) {
                for action in actions {
                    self.carry_out(&group, action);
                }
            }
        }
        while let Some((group, vip)) = self.bursts.take_due(now()) {
            self.announce(&group, vip);
        }
        self.joins.turn();
        self.probe_new();
        self.forget_strangers();
        self.watch_groups();
        self.report();
    }

    /// What an elector wants now, if its time has come.
    fn tick(&mut self, group: &str) -> Option<Vec<Action>> {
        let time = now();
        let seat = self.electors.get_mut(group)?;
        seat.is_due(time).then(|| seat.elector.tick(time))
    }

    fn carry_out(&mut self, group: &str, action: Action) {
        let Some(seat) = self.electors.get(group) else {
            return;
        };
        match action {
            Action::Arm { until } => {
                let armed = self
                    .maps
                    .arm(seat.index.into(), seat.hash, until.as_nanos());
                if let Err(error) = armed {
                    warn!(group, "cannot arm the VIP group: {error}");
                }
            }
            Action::Disarm => {
                self.bursts.end(group);
                if let Err(error) = self.maps.disarm(seat.index.into()) {
                    warn!(group, "cannot disarm the VIP group: {error}");
                }
            }
            Action::Announce => {
                if let Some(planned) = self.plan.groups.get(group) {
                    self.bursts.begin(group, &planned.answered(), now());
                }
            }
            Action::Probe { path, target } => {
                let path = seat.paths.get(path).copied();
                if let Some(path) = path {
                    self.probe(path, &target);
                }
            }
            Action::ReadLease => {
                let group = group.to_owned();
                self.ask(Request::Read { group });
            }
            Action::WriteLease {
                id,
                version,
                holder,
            } => {
                debug!(group, ?id, holder, "writing the Lease");
                let group = group.to_owned();
                self.ask(Request::Write {
                    group,
                    id,
                    version,
                    holder,
                });
            }
        }
    }

    /// A question that nobody answers counts as unanswered by the elector's own clock.
    fn ask(&self, request: Request) {
        AnnounceCounts::count(&self.counts.lease_requests);
        if let Some(leases) = &self.leases
            && !leases.ask(request)
        {
            AnnounceCounts::count(&self.counts.lease_drops);
        }
    }

    fn probe(&mut self, path: Path, target: &Target) {
        let Some(uplink) = self.plan.uplinks.get(&path.ifindex) else {
            return;
        };
        let questions = match target {
            Target::Broadcast => vec![(path.vip, To::All)],
            Target::Peer(name) => {
                let peer = self.plan.peers.get(name);
                let mac = peer.and_then(|peer| peer.macs.get(&uplink.name));
                mac.map(|mac| (path.vip, To::Host(*mac)))
                    .into_iter()
                    .collect()
            }
            Target::Witness => self.witnesses.questions(path, now()),
        };
        for (address, to) in questions {
            if let Some(frame) = frame::question(&uplink.sender, address, to) {
                AnnounceCounts::count(&self.counts.probes);
                self.send(path.ifindex, &frame);
            }
        }
    }

    /// Tells every link of the group that a VIP of it is here, and asks who else says so.
    fn announce(&self, group: &str, vip: IpAddr) {
        if !self.plan.groups.contains_key(group) {
            return;
        }
        for (ifindex, uplink) in self.plan.links(group, vip) {
            self.announce_on((ifindex, uplink), group, vip);
            if let Some(question) = frame::question(&uplink.sender, vip, To::All) {
                self.send(ifindex, &question);
            }
        }
        AnnounceCounts::count(&self.counts.announcements);
    }

    /// Tells a link that a VIP is here.
    pub(super) fn announce_on(&self, (ifindex, uplink): (u32, &Uplink), group: &str, vip: IpAddr) {
        let sender = &uplink.sender;
        let group = self.plan.groups.get(group);
        let is_gateway = group.is_some_and(|group| group.gateways.contains(&vip));
        for frame in frame::announcements(sender, vip, is_gateway) {
            self.send(ifindex, &frame);
        }
        if let IpAddr::V4(vip) = vip {
            for gateway in &uplink.gateways {
                if let IpAddr::V4(gateway) = gateway {
                    self.send(ifindex, &frame::refresh_gateway(sender, vip, *gateway));
                }
            }
        }
    }

    pub(super) fn send(&self, ifindex: u32, frame: &[u8]) {
        if let Err(error) = self.socket.send(ifindex, frame) {
            AnnounceCounts::count(&self.counts.unsent);
            debug!(%error, ifindex, "a frame was not sent");
        }
    }

    /// Tells the core what is new.
    fn report(&mut self) {
        let mut lacks_server = self.is_server_lost;
        let states = self.electors.iter().map(|(name, seat)| {
            let state = seat.elector.state();
            lacks_server |= state.lacks_server;
            let state = match (state.authority, state.hindrance) {
                (Some(authority), _) => GroupState::Holder(authority),
                (None, Some(hindrance)) => GroupState::Bystander(hindrance),
                (None, None) => GroupState::Candidate,
            };
            (name.clone(), state)
        });
        let groups = states.collect();
        if let Some(keeper) = &mut self.keeper {
            keeper.turn(&self.plan, lacks_server);
        }
        let told = Told {
            groups,
            strangers: self.claimed(),
            free: self.first_use.free().clone(),
            unheld: self.watch.unheld(),
        };
        if self.told.as_ref() == Some(&told) || !(self.tell)(told.clone()) {
            return;
        }
        let before = self.told.replace(told.clone()).unwrap_or_default();
        log_groups(&before.groups, &told.groups);
        log_unheld(&before.unheld, &told.unheld);
        let strangers = told.strangers.keys();
        for stranger in strangers.filter(|it| !before.strangers.contains_key(it)) {
            let Stranger {
                address,
                uplink,
                mac,
            } = stranger;
            warn!(vip = %address, uplink, %mac, "a host that is no director claims a VIP");
        }
    }
}

fn log_groups(before: &Groups, after: &Groups) {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for name in names {
        if before.get(name) != after.get(name) {
            info!(group = name, state = ?after.get(name), "VIP group");
        }
    }
}

fn log_unheld(before: &BTreeMap<String, Unheld>, after: &BTreeMap<String, Unheld>) {
    for (group, Unheld { cause, .. }) in after {
        match cause {
            _ if before.contains_key(group) => {}
            // Others may hear the holder.
            Some(Cause::Obstacle(Obstacle::NoWitness)) => {
                info!(
                    group,
                    "this node hears nobody, the holder of the VIP group included"
                );
            }
            cause => warn!(group, ?cause, "nobody holds the VIP group"),
        }
    }
}
