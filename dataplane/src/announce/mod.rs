//! Announcing VIPs: who holds each VIP group, and telling the segment.
//!
//! ```text
//! core ─ Plan ─────────────┐                    ┌─► deadline of the group, in the map that the XDP program reads
//! Leases (a thread) ─ News ┼─► announcer ───────┼─► questions for VIPs, announcements (raw sockets)
//! sockets ─ claims heard ──┘   (electors,       ├─► Leases: reads and writes
//!                              a thread)        └─► core: which groups this node holds, who else claims VIPs, and more
//! ```
//!
//! Answering ARP and neighbour discovery is the XDP program's, for as long as the deadline of the VIP's group has not passed. The
//! announcer moves that deadline, by what its electors decide (crate `sluice-election`): one for each group. It has a thread of its own
//! that waits for nothing but its inbox, so neither a long plan of the core nor the API server delays a renewal or a probe.

mod announcer;
mod bursts;
mod claims;
mod first_use;
mod frame;
mod joins;
mod leases;
mod memory;
mod plan;
mod seats;
mod strangers;
mod sys;
mod unheld;
mod witness;
mod worker;

pub use announcer::{Announcer, GroupState, Groups, Told, Tools};
pub use frame::Sender;
pub use leases::Place;
pub use memory::Memory;
pub use plan::{Group, Path, Peer, Peers, Plan, Uplink};
pub use strangers::{Claimed, Stranger};
pub use unheld::{Cause, Unheld};
