//! From decisions and observations to a node's maps, without I/O, clock or randomness.
//!
//! ```text
//! Snapshot (what was decided) ─┐
//! NodeView (what a node sees) ─┴► node_config() ─► NodeConfig ─┐
//! Image (what the maps hold) ──────────────────────────────────┴► plan() ─► Plan ─► diff() ─► [MapOp]
//! ```
#![forbid(unsafe_code)]

mod config;
mod image;
mod input;
mod op;
mod problem;
mod view;

pub use config::{NodeConfig, PoolConfig, Reach, ServerConfig, Service};
pub use image::{ByFamily, Endpoint, Image, Local, Ring};
pub use input::{
    ForwardingMode, ObjectName, Pool, PoolSelection, PoolShare, Port, Protocol, Server, Snapshot,
    TargetPort, VirtualServer,
};
pub use op::{Limits, MapOp, Plan};
pub use problem::{ObjectKind, Problem, Reason};
pub use view::{Hop, Mac, NextHop, NodeView, Role, Via};
