//! The way to the announcer, and its threads: the worker ([`super::worker`]), and one for each kind of claim that is listened to.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use sluice_election::{Authority, Hindrance, Settings};
use tracing::debug;

use super::frame::Claim;
use super::leases::{Leases, News, Place};
use super::plan::Plan;
use super::strangers::{Claimed, Stranger};
use super::sys::{FRAME, Gets, PacketSocket};
use super::unheld::Unheld;
use super::worker::{FAREWELL, Worker};
use crate::maps::Maps;
use crate::state::AnnounceCounts;

/// Messages that wait for the announcer.
pub(super) const INBOX: usize = 4096;
/// A socket's reader looks so often whether somebody listens.
const PATIENCE: Duration = Duration::from_secs(1);

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
    /// Where it is written down what a restarted agent needs without an API server; `None`: nothing is.
    pub memory: Option<PathBuf>,
    /// Whether an earlier agent found the API server out of reach: it counts as such until a request succeeds.
    pub is_server_lost: bool,
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
    /// It may not hold the group.
    Bystander(Hindrance),
}

/// What the announcer tells the core.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Told {
    /// This node's part in VIP groups.
    pub groups: Groups,
    /// The claims of VIPs by hosts that are no directors.
    pub strangers: BTreeMap<Stranger, Claimed>,
    /// The VIPs of the plan that are new and that no other host has: they are to be answered for.
    pub free: BTreeSet<IpAddr>,
    /// The groups that nobody holds, among those that this node watches.
    pub unheld: BTreeMap<String, Unheld>,
}

/// The way to the announcer, which runs until it is shut down.
#[derive(Clone, Debug)]
pub struct Announcer(SyncSender<Message>);

/// What the worker is told.
#[derive(Debug)]
pub(super) enum Message {
    Plan(Box<Plan>),
    Heard { ifindex: u32, claim: Claim },
    Lease(News),
    Shutdown(SyncSender<()>),
}

impl Announcer {
    /// Starts the thread and its helpers. `tell` is called whenever there is something else to tell, and says
    /// whether it was heard.
    pub fn start(
        mut tools: Tools,
        tell: impl Fn(Told) -> bool + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, inbox) = sync_channel(INBOX);
        let leases = tools.leases.take().map(|place| {
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
        let worker = Worker::new(tools, leases, Box::new(tell), life)?;
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
