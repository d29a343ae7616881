//! From decisions and observations to a node's maps, without I/O, clock or randomness.
//!
//! ```text
//! Snapshot (what was decided) ─┐
//! NodeView (what a node sees) ─┴► node_config() ─► NodeConfig ─┐
//! Image (what the maps hold) ──────────────────────────────────┴► plan() ─► Plan ─► diff() ─► [MapOp]
//! ```
#![forbid(unsafe_code)]

mod config;
mod diff;
mod dump;
mod endpoints;
mod hash;
mod head;
mod ids;
mod image;
mod live;
mod members;
mod op;
mod plan;
mod problem;
mod record;
mod resolve;
pub mod ring;
mod server;
mod share;
mod snapshot;
mod view;

pub use config::{NodeConfig, PoolConfig, Reach, ServerConfig, VipPortConfig};
pub use diff::diff;
pub use endpoints::{Slice, SliceEndpoint, SliceOwner, Slices};
pub use image::{ByFamily, Endpoint, Image, Local, Ring};
pub use live::live;
pub use members::RingCache;
pub use op::{Limits, MapOp, Plan};
pub use plan::{plan, plan_with};
pub use problem::{ObjectKind, Problem, Reason};
pub use resolve::node_config;
pub use server::{Server, ServerPorts};
pub use snapshot::Snapshot;
pub use view::{Hop, Mac, NextHop, NodeView, Role, Via};
