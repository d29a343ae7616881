//! The operator's core: from all objects and their status to their new status. No I/O, no clock.
//!
//! ```text
//! World ─► pools ──┐ accept: what is new, unless it breaks what is served
//!          admit ──┤ virtual servers against pools, nodes and each other
//!          rollout ┤ one step further, if every live node acknowledged the last
//!          decide ─┘ weights and revisions ─► Outcome: the status of every object
//! ```
//!
//! Whatever is refused keeps its last decision; a condition says why.

mod admission;
mod claims;
mod decide;
mod nodes;
mod policies;
mod pools;
mod reconcile;
mod status;
#[cfg(test)]
mod tests;
mod world;

pub use nodes::Liveness;
pub use reconcile::reconcile;
pub use world::{Cluster, Node, Outcome, World};
