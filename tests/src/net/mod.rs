//! Networks made of namespaces, and the servers, clients and daemons in them.
//!
//! A [`Run`] owns everything that outlives a function call: namespaces, pin directories, logs. All of it carries the
//! run's name, which contains the process id, so that whatever a killed run left is found and removed by the next one.
//! Threads enter a namespace for as long as they live, child processes by `nsenter --net`: `ip netns exec` would hide
//! the BPF file system from them.
//!
//! ```text
//! Run ── Namespace ── Port (veth end, bridge) ── addresses, routes, counters
//!            ├─ Process     a daemon with a captured log, killed when dropped
//!            ├─ Web, Echo   real servers: nginx over TCP, a numbered echo over UDP; both answer with their name
//!            └─ clients     connection makers, kept connections, UDP flows and streams; none of them retries
//! ```
//!
//! Everything here works without Sluice; `tests/network_harness.rs` proves it on plain kernel routing.

mod address;
mod ask;
mod cgroup;
mod command;
mod counter;
pub mod fabric;
pub mod failover;
mod fault;
pub mod faulty;
pub mod gateway;
pub mod lab;
mod link;
pub mod manifest;
mod namespace;
mod outage;
mod process;
pub mod random;
mod run;
pub(crate) mod segment;
pub mod sluice;
mod sources;
mod spread;
pub mod stranger;
pub mod suite;
mod tcp;
mod udp;
mod wait;
pub mod web;
mod xdp;

pub use address::{Cidr, Dual, Family};
pub use ask::{Answer, Connection, Protocol};
pub use command::output;
pub use counter::{Counters, Direction};
pub use link::{Port, Route, Veth};
pub use namespace::Namespace;
pub use outage::{Outage, OutageReport};
pub use process::{Complaints, Process};
pub use run::{Run, expect_no_remains, remains, sweep};
pub use spread::{Share, Spread};
pub use tcp::{
    ConnectionMaker, KeptConnections, MakerReport, expect_no_retransmissions,
    retransmitted_segments,
};
pub use udp::{Echo, StreamReport, UdpStream};
pub use wait::{interrupt, interrupted, listen_for_ctrl_c, until};
pub use web::{CLOSING, RESETTING, WELL, Web};
pub use xdp::{PassProgram, object_path};
