//! A long run under traffic in which everything happens that may happen: manifests are edited, daemons are killed, links go
//! down, a director loses what it knew. One number chooses all of it.
//!
//! ```text
//! seed ─► plan (pure) ─► drive: edits, kills, cuts ─► history: what was disturbed from when to when
//!    └──► clients: kept and short connections, streams ─► ledger: what befell them ─┴─► verdict
//! ```
//!
//! Every connection to a server that stays in its virtual server lives, whatever the names around it. A connection that is
//! lost is excused by what was done to its server, its port, its director or its link while it was open, and by nothing
//! else: see [`verdict`].

mod clients;
mod drive;
mod history;
mod in_force;
mod ledger;
mod plan;
mod service;
mod strays;
mod verdict;

pub use drive::{Settings, build, run};
