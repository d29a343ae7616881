//! What an elector is told, what it asks for, and what it says of itself.

use std::time::Duration;

use crate::{Time, Witness};

/// A director that may hold the group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Name of its node.
    pub name: String,
    /// Its path was whole for the stable time without a pause, so that the group may return to it.
    pub steady: bool,
}

/// State of this node's own data path for the group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// Link up, program attached, the group's tables in force, responder ready.
    Whole,
    /// Any of these is missing: a holder hands over or releases, and nothing is claimed.
    Broken,
}

/// The group's Lease as somebody read it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseView {
    /// `metadata.resourceVersion`. If two are decimal numbers, the lower is older news (Kubernetes KEP-5504).
    pub version: String,
    /// `spec.holderIdentity`; an empty one is none.
    pub holder: Option<String>,
    /// `spec.renewTime` as text: it differs after each renewal, and is never compared with a clock.
    pub renewed: String,
    /// `spec.leaseDurationSeconds`. The elector waits for the longer of this and its own setting.
    pub duration: Duration,
}

/// Number of a write, unique within an elector.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct WriteId(pub u64);

/// What came of a write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Written: the Lease as it stands now.
    Ok(LeaseView),
    /// Not written: the Lease has another version.
    Conflict,
    /// Refused or failed; it may have been written all the same.
    Failed,
    /// No answer within the request timeout; it may have been written, or will be.
    TimedOut,
}

/// Who answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A director, known by the MAC address in its record: it answers for a VIP of this group, or announces one.
    Peer(String),
    /// Proof that this path works: the witness, or a director that answered for anything but this group's VIPs.
    Witness,
    /// An unknown MAC address claims a VIP. The elector ignores it; the announcer defends the address.
    Stranger,
}

/// Whom a probe asks.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Target {
    /// This director, by unicast, for a VIP of the group.
    Peer(String),
    /// Everybody, by broadcast or multicast, for a VIP of the group.
    Broadcast,
    /// The witness. The caller may ask others of whom it knows that they live, and may send one such probe for many
    /// groups if it tells all of them of the answer.
    Witness,
}

/// News for an elector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// All directors that may hold the group, this node included if it may, in any order. Until the first such event
    /// the elector does nothing.
    Candidates(Vec<Candidate>),
    /// Number of probe paths: announcing interfaces × address families. They are 0, 1, … in the caller's order; a changed
    /// number forgets what was heard.
    Paths(usize),
    /// This node's own data path. Until the first such event nothing is claimed.
    Health(Health),
    /// Whether there is anybody to ask beside the holder, in the place of [`crate::Settings::witness`].
    Witness(Witness),
    /// The Lease was read, or a watch told of it.
    LeaseRead(LeaseView),
    /// A read failed or timed out.
    LeaseUnreachable,
    /// A former process found the API server out of reach ([`State::lacks_server`]): it counts as such until a request succeeds.
    ServerLost,
    /// A write was answered, or will not be.
    Written {
        /// Which one.
        id: WriteId,
        /// What came of it.
        outcome: Outcome,
    },
    /// An answer or announcement was heard.
    Answer {
        /// On this path.
        path: usize,
        /// From whom.
        from: Source,
    },
    /// This node is to hold nothing (true), or may again (false).
    Drain(bool),
    /// The process is about to end: hand over or release, then [`State::is_finished`].
    Shutdown,
}

/// What the caller is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Read the Lease: answered by [`Event::LeaseRead`] or [`Event::LeaseUnreachable`] within the request timeout.
    ReadLease,
    /// Compare and swap the Lease: answered by [`Event::Written`] within the request timeout. One is under way at most.
    WriteLease {
        /// Number of this write.
        id: WriteId,
        /// The `resourceVersion` that the Lease must have.
        version: String,
        /// This node to take or renew, another to hand over (only by the holder), none to release.
        holder: Option<String>,
    },
    /// The kernel answers for the group until then. Later calls replace earlier ones, also by an earlier moment.
    Arm {
        /// End of the answers.
        until: Time,
    },
    /// The kernel stops to answer at once.
    Disarm,
    /// Begin the burst of gratuitous ARP and unsolicited advertisements.
    Announce,
    /// Send a probe.
    Probe {
        /// On this path.
        path: usize,
        /// To whom.
        target: Target,
    },
}

/// This node's part in the group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The kernel answers for the group.
    Holder,
    /// It may hold the group.
    Candidate,
    /// It may not, for the reason in [`State::hindrance`].
    Bystander,
}

/// By what right a holder holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Authority {
    /// Its name in the Lease.
    Lease,
    /// No peer answers, and the API server is out of reach or there is none.
    Peers,
}

/// Why a node claims nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hindrance {
    /// Candidates or health are not known yet.
    Unknown,
    /// It is none of the candidates.
    NotListed,
    /// It is drained.
    Drained,
    /// It shuts down.
    ShuttingDown,
    /// Its data path is broken.
    Broken,
    /// It lost the group by suspicion, and its path has not been whole for the stable time since.
    Suspected,
}

/// What may keep every director from taking a group over, as far as this node can tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Obstacle {
    /// No director may hold it.
    NoCandidate,
    /// The API server does not take what this node writes into the Lease.
    LeaseRefused,
    /// Nobody else answers on any path: this node cannot tell a silent holder from an own dead port.
    NoWitness,
}

/// An elector, for status and metrics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    /// This node's part.
    pub role: Role,
    /// Its place in the order of candidates, 0 = the best; none if it is no candidate.
    pub rank: Option<usize>,
    /// By what right it holds; none unless it holds.
    pub authority: Option<Authority>,
    /// Until when the kernel answers; none unless it holds.
    pub until: Option<Time>,
    /// Who holds as far as is known here: this node if armed, else who was heard, else whom the Lease names.
    pub holder: Option<String>,
    /// Why it claims nothing.
    pub hindrance: Option<Hindrance>,
    /// When another director was last heard to answer for a VIP of the group.
    pub heard: Option<Time>,
    /// Whether requests to the API server have failed since the last that succeeded.
    pub lacks_server: bool,
    /// After [`Event::Shutdown`]: nothing is armed and no write is under way.
    pub is_finished: bool,
}
