//! The announcer's thread: gives electors their news and carries out what they decide.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use sluice_election::{
    Action, Authority, Elector, Event, Role, Settings, Source, Target, Time, Witness,
};
use sluice_planner::Mac;
use tracing::{debug, info, warn};

use super::bursts::Bursts;
use super::frame::{self, Claim, To};
use super::joins::Joins;
use super::leases::{Leases, News, Place, Request};
use super::plan::{Group, Path, Plan};
use super::sys::{FRAME, Gets, PacketSocket};
use super::witness::Witnesses;
use crate::maps::Maps;
use crate::state::AnnounceCounts;

/// Messages that wait for the announcer.
const INBOX: usize = 4096;
/// Longest time without a turn of the loop.
const TURN: Duration = Duration::from_millis(500);
/// A socket's reader looks so often whether somebody listens.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long groups are handed over at the end of the process.
const FAREWELL: Duration = Duration::from_millis(2_500);

/// What the announcer works with.
#[derive(Debug)]
pub struct Tools {
    /// Name of this node.
    pub node: String,
    /// The maps that hold the deadlines.
    pub maps: Arc<Maps>,
    /// Times and choices of the electors.
    pub settings: Settings,
    /// Where the groups' Leases are; `None`: there are none, and directors agree by probes.
    pub leases: Option<Place>,
    /// Counters.
    pub counts: Arc<AnnounceCounts>,
}

/// This node's part in VIP groups, by their names.
pub type Groups = BTreeMap<String, GroupState>;

/// This node's part in a VIP group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GroupState {
    /// It may hold the group.
    Candidate,
    /// It holds the group, by this right.
    Holder(Authority),
}

/// The way to the announcer, which runs until it is shut down.
#[derive(Clone, Debug)]
pub struct Announcer(SyncSender<Message>);

#[derive(Debug)]
enum Message {
    Plan(Box<Plan>),
    Heard { ifindex: u32, claim: Claim },
    Lease(News),
    Shutdown(SyncSender<()>),
}

impl Announcer {
    /// Starts the thread and its helpers. `tell` is called with this node's part in all groups whenever it has changed,
    /// and says whether it was heard.
    pub fn start(tools: Tools, tell: impl Fn(Groups) -> bool + Send + 'static) -> io::Result<Self> {
        let (sender, inbox) = sync_channel(INBOX);
        let leases = tools.leases.map(|place| {
            let sender = sender.clone();
            // A message that finds no room is as good as an answer that did not come.
            let sink = Box::new(move |news| drop(sender.try_send(Message::Lease(news))));
            Leases::start(place, sink)
        });
        let leases = leases.transpose()?;
        let life = Arc::new(());
        for (name, gets) in [("arp", Gets::ArpClaims), ("nd", Gets::Advertisements)] {
            let socket = PacketSocket::open(gets, PATIENCE)?;
            let (sender, counts) = (sender.clone(), Arc::clone(&tools.counts));
            let life = Arc::downgrade(&life);
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || hear(&socket, &sender, &life, &counts))?;
        }
        let worker = Worker {
            node: tools.node,
            settings: tools.settings,
            maps: tools.maps,
            counts: tools.counts,
            leases,
            socket: PacketSocket::open(Gets::Nothing, PATIENCE)?,
            plan: Plan::default(),
            electors: BTreeMap::new(),
            group_of: BTreeMap::new(),
            node_of: BTreeMap::new(),
            witnesses: Witnesses::default(),
            bursts: Bursts::default(),
            joins: Joins::open()?,
            told: None,
            tell: Box::new(tell),
            _life: life,
        };
        thread::Builder::new()
            .name("announcer".to_owned())
            .spawn(move || worker.run(&inbox))?;
        Ok(Self(sender))
    }

    /// Replaces the plan.
    pub fn plan(&self, plan: Plan) {
        // One that was shut down needs none.
        let _ = self.0.send(Message::Plan(Box::new(plan)));
    }

    /// Hands all groups over, or lets them go. Returns when that is done, or after a few seconds.
    pub fn shut_down(&self) {
        let (done, finished) = sync_channel(1);
        if self.0.send(Message::Shutdown(done)).is_ok() {
            let _ = finished.recv_timeout(FAREWELL + Duration::from_secs(1));
        }
    }
}

/// The present by the clock that deadlines are in: CLOCK_MONOTONIC, as `bpf_ktime_get_ns`.
fn now() -> Time {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    Time::from_nanos(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// Reads claims while the announcer lives.
fn hear(
    socket: &PacketSocket,
    sender: &SyncSender<Message>,
    life: &Weak<()>,
    counts: &AnnounceCounts,
) {
    let mut frame = [0; FRAME];
    while life.strong_count() > 0 {
        let (ifindex, length) = match socket.receive(&mut frame) {
            Ok(Some(received)) => received,
            Ok(None) => continue,
            Err(error) => {
                // As when the last interface goes down (packet(7): ENETDOWN).
                debug!(%error, "a packet socket cannot be read");
                thread::sleep(PATIENCE);
                continue;
            }
        };
        let Some(claim) = Claim::read(&frame[..length.min(FRAME)]) else {
            continue;
        };
        let message = Message::Heard { ifindex, claim };
        if let Err(TrySendError::Full(_)) = sender.try_send(message) {
            AnnounceCounts::count(&counts.unheard);
        }
    }
}

/// An elector and what it is asked for by.
struct Seat {
    elector: Elector,
    paths: Vec<Path>,
    /// Whether there is somebody to ask, as the elector knows.
    witness: Option<Witness>,
    index: u16,
    hash: u64,
}

impl Seat {
    fn is_due(&self, time: Time) -> bool {
        let due = self.elector.next_deadline();
        due.is_some_and(|due| due <= time)
    }

    /// Takes in that an address was claimed on an uplink.
    fn answered(&mut self, ifindex: u32, address: IpAddr, from: &Source) {
        let on_it =
            |path: &Path| path.ifindex == ifindex && path.vip.is_ipv4() == address.is_ipv4();
        if let Some(path) = self.paths.iter().position(on_it) {
            let from = from.clone();
            self.elector.on(Event::Answer { path, from }, now());
        }
    }
}

struct Worker {
    node: String,
    settings: Settings,
    maps: Arc<Maps>,
    counts: Arc<AnnounceCounts>,
    leases: Option<Leases>,
    socket: PacketSocket,
    plan: Plan,
    electors: BTreeMap<String, Seat>,
    /// The group of each VIP.
    group_of: BTreeMap<IpAddr, String>,
    /// The other directors by uplink's name and Ethernet address.
    node_of: BTreeMap<(String, Mac), String>,
    witnesses: Witnesses,
    bursts: Bursts,
    joins: Joins,
    told: Option<Groups>,
    tell: Box<dyn Fn(Groups) -> bool + Send>,
    /// Whoever listens for it sees by this that it has ended.
    _life: Arc<()>,
}

impl Worker {
    fn run(mut self, inbox: &Receiver<Message>) {
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
        let due = electors.chain(self.bursts.deadline()).min();
        due.map_or(TURN, |due| due.since(now()).min(TURN))
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Plan(plan) => self.set_plan(*plan),
            Message::Heard { ifindex, claim } => self.hear(ifindex, claim),
            Message::Lease(News::Seen { group, lease }) => {
                self.on(&group, Event::LeaseRead(lease));
            }
            Message::Lease(News::Unreadable { group }) => {
                self.on(&group, Event::LeaseUnreachable);
            }
            Message::Lease(News::Written { group, id, outcome }) => {
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
                    self.bursts.begin(group, &planned.vips, now());
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

    /// Tells every link of the group that a VIP of it is here.
    fn announce(&self, group: &str, vip: IpAddr) {
        let Some(planned) = self.plan.groups.get(group) else {
            return;
        };
        for ifindex in &planned.uplinks {
            let uplink = self.plan.uplinks.get(ifindex);
            let Some(uplink) = uplink.filter(|uplink| uplink.up && planned.announces(vip, uplink))
            else {
                continue;
            };
            let sender = &uplink.sender;
            for frame in frame::announcements(sender, vip, false) {
                self.send(*ifindex, &frame);
            }
            let IpAddr::V4(vip) = vip else { continue };
            for gateway in &uplink.gateways {
                if let IpAddr::V4(gateway) = gateway {
                    self.send(*ifindex, &frame::refresh_gateway(sender, vip, *gateway));
                }
            }
        }
        AnnounceCounts::count(&self.counts.announcements);
    }

    fn send(&self, ifindex: u32, frame: &[u8]) {
        if let Err(error) = self.socket.send(ifindex, frame) {
            AnnounceCounts::count(&self.counts.unsent);
            debug!(%error, ifindex, "a frame was not sent");
        }
    }

    /// Takes in that somebody says that an address is its own.
    fn hear(&mut self, ifindex: u32, claim: Claim) {
        let Some(uplink) = self.plan.uplinks.get(&ifindex) else {
            return;
        };
        if claim.mac == uplink.sender.mac {
            return;
        }
        let peer = self.node_of.get(&(uplink.name.clone(), claim.mac)).cloned();
        let group = self.group_of.get(&claim.address).cloned();
        if let Some(group) = &group {
            let from = if let Some(name) = &peer {
                Source::Peer(name.clone())
            } else {
                AnnounceCounts::count(&self.counts.strangers);
                debug!(vip = %claim.address, mac = %claim.mac, "somebody else claims a VIP");
                Source::Stranger
            };
            if let Some(seat) = self.electors.get_mut(group) {
                seat.answered(ifindex, claim.address, &from);
            }
        }
        if peer.is_none() && !self.witnesses.heard(ifindex, claim) {
            return;
        }
        // Whoever lives on this link proves the way to it, for every group but the one that it claims.
        for (name, seat) in &mut self.electors {
            if Some(name) != group.as_ref() {
                seat.answered(ifindex, claim.address, &Source::Witness);
            }
        }
    }

    fn set_plan(&mut self, plan: Plan) {
        let before = std::mem::replace(&mut self.plan, plan);
        let time = now();
        let gone: Vec<String> = self
            .electors
            .keys()
            .filter(|group| !self.plan.groups.contains_key(*group))
            .cloned()
            .collect();
        for group in gone {
            self.leave(&group, before.groups.get(&group));
        }
        if !Arc::ptr_eq(&before.peers, &self.plan.peers) {
            self.node_of = self.nodes();
        }
        if before.uplinks != self.plan.uplinks || !Arc::ptr_eq(&before.peers, &self.plan.peers) {
            self.witnesses.set(&self.plan);
        }
        // IPv6 solicitations must reach the node before it is armed.
        self.joins.set(&self.plan);
        let witness = self.plan.witness();
        let groups: Vec<String> = self.plan.groups.keys().cloned().collect();
        for name in groups {
            self.seat(&name, before.groups.get(&name), witness, time);
        }
        let is_back = |(ifindex, uplink): (&u32, &super::Uplink)| {
            let known = before.uplinks.get(ifindex);
            uplink.up && known.is_some_and(|known| !known.up)
        };
        if self.plan.uplinks.iter().any(is_back) {
            self.bursts.begin_again(time);
        }
    }

    /// Has an elector for a group, and tells it what is new.
    fn seat(&mut self, name: &str, before: Option<&Group>, witness: Witness, time: Time) {
        let Some(group) = self.plan.groups.get(name) else {
            return;
        };
        if !before.is_some_and(|before| Arc::ptr_eq(&before.vips, &group.vips)) {
            forget_vips(&mut self.group_of, name, before);
            let vips = group.vips.iter().map(|vip| (*vip, name.to_owned()));
            self.group_of.extend(vips);
            self.bursts.keep(name, &group.vips, time);
        }
        let paths = self.plan.paths(group);
        let (node, settings) = (&self.node, &self.settings);
        let is_new = !self.electors.contains_key(name);
        let seat = self
            .electors
            .entry(name.to_owned())
            .or_insert_with(|| Seat {
                elector: Elector::new(name, node, settings.clone(), time),
                paths: Vec::new(),
                witness: None,
                index: group.index,
                hash: sluice_abi::group_hash(name),
            });
        if is_new || seat.paths != paths {
            seat.elector.on(Event::Paths(paths.len()), time);
            seat.paths = paths;
        }
        if seat.witness != Some(witness) {
            seat.witness = Some(witness);
            seat.elector.on(Event::Witness(witness), time);
        }
        let known = before.filter(|_| !is_new);
        if known.is_none_or(|known| known.candidates != group.candidates) {
            let candidates = group.candidates.as_ref().clone();
            seat.elector.on(Event::Candidates(candidates), time);
        }
        if known.is_none_or(|known| known.health != group.health) {
            seat.elector.on(Event::Health(group.health), time);
        }
    }

    /// A group is none of this node's any more: nobody is asked for it, so its Lease expires by itself.
    fn leave(&mut self, group: &str, before: Option<&Group>) {
        self.bursts.end(group);
        if let Some(seat) = self.electors.remove(group)
            && let Err(error) = self.maps.forget_group(seat.index.into())
        {
            warn!(group, "cannot forget the VIP group: {error}");
        }
        forget_vips(&mut self.group_of, group, before);
    }

    fn nodes(&self) -> BTreeMap<(String, Mac), String> {
        let peers = self.plan.peers.iter();
        let macs = peers.flat_map(|(node, peer)| {
            let macs = peer.macs.iter();
            macs.map(move |(uplink, mac)| ((uplink.clone(), *mac), node.clone()))
        });
        macs.collect()
    }

    /// Tells this node's part in the groups, if it is another one.
    fn report(&mut self) {
        let states = self.electors.iter().filter_map(|(name, seat)| {
            let state = seat.elector.state();
            let state = match (state.role, state.authority) {
                (Role::Holder, Some(authority)) => GroupState::Holder(authority),
                (Role::Candidate, _) => GroupState::Candidate,
                _ => return None,
            };
            Some((name.clone(), state))
        });
        let states: Groups = states.collect();
        if self.told.as_ref() == Some(&states) {
            return;
        }
        if !(self.tell)(states.clone()) {
            return;
        }
        let before = self.told.replace(states.clone()).unwrap_or_default();
        let names: BTreeSet<&String> = before.keys().chain(states.keys()).collect();
        for name in names {
            if before.get(name) != states.get(name) {
                info!(group = name, state = ?states.get(name), "VIP group");
            }
        }
    }
}

/// Takes a group's VIPs, as they were planned before, off the index of groups, unless another group has them now.
fn forget_vips(group_of: &mut BTreeMap<IpAddr, String>, name: &str, before: Option<&Group>) {
    for vip in before.iter().flat_map(|before| before.vips.iter()) {
        if group_of.get(vip).is_some_and(|of| of == name) {
            group_of.remove(vip);
        }
    }
}
