//! Signals: how the servers of pools met the connections of clients, as nodes saw it and tell the operator. Pure.
//!
//! A node counts *voices*: of all connections of a client to a pool that were judged within a second one speaks for the client, so that
//! a client with many connections weighs no more than one with few. Its seconds go to the operator in [`Report`]s, and [`Intake`] adds up what
//! all nodes tell.
#![forbid(unsafe_code)]

mod intake;
mod outcome;
mod report;
mod tally;
mod times;

pub use intake::Intake;
pub use outcome::Outcome;
pub use report::{MAX_POOLS, MAX_SECONDS, PoolTally, Recorder, Report, Second};
pub use tally::{Tally, Voice};
pub use times::{TIME_CLASSES, Times, class_bound, class_of};
