//! Sluice's agent: brings decisions into the data plane of one node.
//!
//! | module | does |
//! |---|---|
//! | [`source`] | reads decisions, and what this node is to be |
//! | [`netlink`] | follows links, routes and neighbours |
//! | [`core`] | decides what to write, attach and report, without I/O |
//! | [`announce`] | announces VIPs and takes part in the election of who does |
//! | [`shell`] | runs the core and carries out what it wants done |
//! | [`maps`] | calls bpf(2) |
//! | [`sweeper`] | forgets and counts flows |
//! | [`report`] | has this node's status written |
//! | [`admin`] | answers questions: health, metrics, the maps |
#![deny(unsafe_code)]

pub mod admin;
pub mod announce;
pub mod core;
#[cfg(test)]
mod fixtures;
pub mod health;
mod keeper;
pub mod maps;
pub mod netlink;
pub mod report;
pub mod shell;
pub mod signals;
pub mod source;
pub mod state;
pub mod sweeper;
