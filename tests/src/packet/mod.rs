//! Packets in, packets out: one description of tables and frames, run by the real programs in the kernel and by the same
//! decision on the host.
//!
//! ```text
//! Setup (tables) ─┬─► Kernel: maps of target/bpf/sluice.o, BPF_PROG_TEST_RUN ─┐
//! Frame (bytes)  ─┤                                                          ├─► Output, State
//!                 └─► Host: HostTables, sluice_packet::ingress ──────────────┘
//! ```
//!
//! The frames that come out are compared with frames built by [`frame`], whose checksums are computed from scratch by [`checksum`],
//! and between the two machines.

pub mod case;
pub mod cases;
pub mod checksum;
pub mod cpus;
pub mod differential;
pub mod frame;
pub mod guest;
pub mod host;
pub mod kernel;
pub mod layout;
pub mod machine;
mod maps;
pub mod neighbour;
pub mod random;
pub mod setup;
pub mod suite;
