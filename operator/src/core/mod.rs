//! The operator's core: from all objects and their status to their new status. No I/O, no clock.
//!
//! ```text
//! World ─► pools ──┐ accept: what is new, unless it breaks what is served
//!          admit ──┤ virtual servers against pools, nodes and each other
//!          rollout ┤ one step further, if every live node acknowledged the last
//!          decide ─┘ weights and revisions ─► Outcome: the status of every object
//! ```
//!
//! Whatever is refused keeps its last decision, unless that cannot be served any more either; a condition says why.
//!
//! [`reconcile`] looks at a whole world. [`reconcile_parts`] gives the same for the objects that may have changed, of which
//! [`Links`] tells what is linked to them.

mod address_pools;
mod addresses;
mod admission;
mod analyses;
mod claims;
mod conditions;
mod decide;
mod ledger;
mod links;
mod nodes;
mod parts;
mod policies;
mod pools;
mod reconcile;
mod servers;
mod status;
#[cfg(test)]
mod tests;
mod timers;
mod vips;
mod world;

pub use address_pools::address_pool_status;
pub use addresses::{Addresses, Holder, HolderKind, RefusedServers};
pub use analyses::{Analysed, Analyses};
pub use ledger::{
    Assignment, BadText, Ledger, Named, PoolState, REST_MS, SHARDS, Usable, WithoutPools,
};
pub use links::{Links, Object};
pub use nodes::Liveness;
pub use parts::{Dirty, reconcile_parts};
pub use reconcile::reconcile;
pub use timers::{Stood, Timers};
pub use world::{Cluster, Node, Outcome, Standing, Taken, Trust, World};
