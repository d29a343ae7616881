//! Which director announces a VIP group, and until when. Pure: no I/O, no clock, no randomness.
//!
//! An [`Elector`] stands for one group on one node. A holder does not hold by believing so: it gives its kernel a deadline
//! ([`Action::Arm`]), on this host's monotonic clock, after which the answers stop whatever became of the process. The right to
//! move the deadline is the group's Lease, compared and swapped by `resourceVersion`; without an API server it is that no other
//! director answers for the group ([`Authority`]). What others wrote is never compared with a clock: a Lease expires when this
//! node has observed no change of it for its duration.
//!
//! A candidate probes the holder where clients would ask it ([`Action::Probe`]), and suspects a silence only if somebody else
//! answers meanwhile: it is then not its own port that died. It takes over by a swap after its rank's wait, as VRRP's skew time
//! lets the better router go first (RFC 5798 section 6.1); the numbers are Sluice's own ([`Settings`]).
//!
//! Bounds, held up by the simulation in `tests/sim`:
//!
//! - Two holders: never because a Lease expired; at most 1 s in a handover; at most 2 s after the suspicion of a living holder; a
//!   partition of the segment until 2 s after it is healed. A stopped process and a resumed machine answer until the deadline.
//! - No holder, while a trusted candidate is connected: 0.6 s after a holder that was heard dies; otherwise the Lease's duration
//!   and two requests (6.5 s), and 9 s where requests get lost all the time. A holder whose port is dead and that renews its Lease
//!   is suspected by those who heard it since it took the group: who started later cannot tell it from one that is out of earshot.
#![forbid(unsafe_code)]

mod contest;
mod elector;
mod event;
mod hold;
mod lease;
mod path;
mod patience;
mod rank;
mod seek;
mod settings;
#[cfg(test)]
mod tests;
mod time;

pub use elector::Elector;
pub use event::{
    Action, Authority, Candidate, Event, Health, Hindrance, LeaseView, Obstacle, Outcome, Role,
    Source, State, Target, WriteId,
};
pub use rank::ranked;
pub use settings::{
    Coordination, GiveBack, MAX_PATHS, PROBING_RANKS, Probing, Settings, WITNESS_ANSWERS, Witness,
};
pub use time::Time;
