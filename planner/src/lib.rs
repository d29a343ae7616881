//! From decisions and observations to a node's maps, without I/O, clock or randomness.
//!
//! ```text
//! virtual servers, servers of pools ─┐
//! what the node sees, next hops ─────┴► Planner: VIP ports concerned ─► what they shall be ─► their part of the maps ─► [MapOp]
//! Image (what the maps hold) ──────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! [`Planner`] says how an agent calls it.
#![forbid(unsafe_code)]

mod adopt;
mod announce;
mod config;
mod diff;
mod dump;
mod endpoints;
mod hash;
mod head;
mod ids;
mod image;
mod known;
mod live;
mod macs;
mod members;
mod op;
mod plan;
mod planner;
mod problem;
mod record;
mod resolve;
pub mod ring;
mod server;
mod share;
mod sources;
mod surroundings;
mod tables;
mod view;

pub use announce::{Announced, AnnouncedAt};
pub use endpoints::{Slice, SliceEndpoint, SliceOwner, Slices, pool_of};
pub use image::{ByFamily, Image, Local, Ring, RingContent, Socket};
pub use members::RingLayout;
pub use op::{Limits, MapOp};
pub use planner::{Planner, ServerInfo};
pub use problem::{ObjectKind, Problem, Reason};
pub use server::{Resets, Server, ServerPorts, Tenths};
pub use sources::{Blocks, Source};
pub use tables::Usage;
pub use view::{Hop, Mac, NextHop, NodeView, Prefix, Role, Via};
