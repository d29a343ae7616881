//! How long everything takes.

use std::time::Duration;

/// The first ranks probe the holder all the time, for fast suspicion; others look every
/// [`Settings::candidate_broadcast`], so that probes do not grow with the number of directors.
pub const PROBING_RANKS: usize = 3;
/// Answers of the witness, or of another peer, during a silence of the holder before the silence counts. One answer
/// could be from just before a burst of loss that silenced everybody.
pub const WITNESS_ANSWERS: u32 = 3;
/// Probe paths (announcing interface × address family) that an elector looks at; those beyond are not probed.
pub const MAX_PATHS: usize = 64;

/// Who decides which director holds a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Coordination {
    /// A Lease of the API server; directors that cannot reach it agree by probes until they can.
    Lease,
    /// Probes alone: standalone mode.
    Peers,
}

/// Whether a group returns to a better-ranked director.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GiveBack {
    /// By handover, once that director's path was whole for the stable time without a pause.
    AfterStableTime,
    /// Not while the holder lives and is a candidate.
    Never,
}

/// Whether candidates test the path that clients use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Probing {
    /// A silent holder is suspected within [`Settings::suspicion`].
    On,
    /// A holder is replaced when its Lease has expired, and nobody holds a group without the API server. Without Leases
    /// ([`Coordination::Peers`]) probes are sent all the same: there is nothing else to go by.
    Off,
}

/// Whether someone beside the directors answers on every path, so that a silent peer can be told from a dead own port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Witness {
    /// The gateway, or what else the caller asks for [`crate::Target::Witness`].
    Asked,
    /// None: of two directors neither can suspect the other by probes. Without an API server it replaces a silent one
    /// after the Lease's duration.
    Absent,
}

/// Times and choices of an elector, the same on all directors of a group. The numbers are Sluice's own design; that a
/// better rank waits less is VRRP's skew time (RFC 5798 section 6.1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Who decides.
    pub coordination: Coordination,
    /// When a better-ranked director gets the group back.
    pub give_back: GiveBack,
    /// Whether candidates probe.
    pub probing: Probing,
    /// Whether there is a witness.
    pub witness: Witness,
    /// How long a Lease is valid after its last change.
    pub lease_duration: Duration,
    /// Time between a holder's renewals, and between a candidate's reads.
    pub renew_interval: Duration,
    /// How long the caller waits for the answer to a read or a write. If nothing answers for so long, the API server is
    /// out of reach.
    pub request_timeout: Duration,
    /// A holder stops this much before its Lease expires: it bounds how far the clocks of two hosts may run apart in
    /// the Lease's duration.
    pub margin: Duration,
    /// How long a path is to be whole before its node is trusted again.
    pub stable_time: Duration,
    /// Time between probes of a holder that answers.
    pub probe_interval: Duration,
    /// Time between probes after a miss; an answer that takes longer is a miss.
    pub retry_interval: Duration,
    /// Time between a candidate's probes by broadcast or multicast, as clients ask.
    pub candidate_broadcast: Duration,
    /// Time between a holder's probes of its own VIPs by broadcast or multicast.
    pub holder_broadcast: Duration,
    /// How long a holder is silent before it is suspected; a candidate's first patience.
    pub suspicion: Duration,
    /// Probes without an answer before a holder is suspected.
    pub suspicion_probes: u32,
    /// A candidate waits this long for each better rank before it swaps the Lease.
    pub swap_step: Duration,
    /// A candidate waits this long for each better rank before it claims without a Lease.
    pub claim_step: Duration,
    /// How far a holder without a Lease extends its deadline at a time.
    pub peers_extension: Duration,
    /// A holder that hands over stops at the latest this long after its write.
    pub handover_limit: Duration,
    /// A candidate that suspected wrongly is less patient again after this long without another wrong suspicion.
    pub calm: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            coordination: Coordination::Lease,
            give_back: GiveBack::AfterStableTime,
            probing: Probing::On,
            witness: Witness::Asked,
            lease_duration: Duration::from_secs(4),
            renew_interval: Duration::from_secs(1),
            request_timeout: Duration::from_secs(1),
            margin: Duration::from_millis(500),
            stable_time: Duration::from_mins(1),
            probe_interval: Duration::from_millis(60),
            retry_interval: Duration::from_millis(20),
            candidate_broadcast: Duration::from_secs(5),
            holder_broadcast: Duration::from_secs(1),
            suspicion: Duration::from_millis(300),
            suspicion_probes: 15,
            swap_step: Duration::from_millis(20),
            claim_step: Duration::from_millis(100),
            peers_extension: Duration::from_secs(1),
            handover_limit: Duration::from_secs(1),
            calm: Duration::from_mins(10),
        }
    }
}

impl Settings {
    /// Whether probes are sent.
    pub fn probes(&self) -> bool {
        self.probing == Probing::On || self.coordination == Coordination::Peers
    }
}
