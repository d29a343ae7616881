//! Directors with clocks of their own, kernels that answer until a deadline, segments that lose packets, and an API server
//! with one Lease, all from one seed.
//!
//! The check looks at true time, after each thing that happens:
//!
//! - *Two holders.* Never by expiry alone; at most 1 s in a handover; at most 2 s after a suspicion of a living holder; a
//!   partition until it is healed and 2 s more. A stopped agent's and a resumed machine's kernel answers until its deadline.
//! - *No holder.* While a director is whole, connected and trusted, not longer than a bound after the last change of the
//!   world.
//! - *The end.* When faults have stopped there is one holder, the best-ranked if groups are given back.

mod check;
mod clock;
mod faults;
mod rng;
mod runs;
mod segment;
mod server;
mod world;

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000 * MS;
