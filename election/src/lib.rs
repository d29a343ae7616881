//! Which director announces a VIP group, and until when. Pure: no I/O, no clock, no randomness.
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
    Action, Authority, Candidate, Event, Health, Hindrance, LeaseView, Outcome, Role, Source,
    State, Target, WriteId,
};
pub use rank::ranked;
pub use settings::{
    Coordination, GiveBack, MAX_PATHS, PROBING_RANKS, Probing, Settings, WITNESS_ANSWERS, Witness,
};
pub use time::Time;
