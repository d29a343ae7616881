//! What the kernel knows of the network around this node, over rtnetlink.
//!
//! [`Monitor`] tells of changes as they happen, [`Requests`] asks, and [`Table`] keeps the answers. Messages that were lost
//! are made up for by asking for everything again.
//!
//! XDP sends frames without the stack's help, so nothing would keep the neighbours that it needs fresh. They are
//! registered as managed ones (Linux 5.16), which the kernel resolves and probes by itself; older kernels are asked to
//! use them again and again.

mod monitor;
mod requests;
mod table;

use std::io;

pub use monitor::Monitor;
pub use requests::{Requests, Route};
pub use table::{Change, Link, Neighbour, NeighbourState, Prefix, Table};

/// What went wrong with rtnetlink.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// A socket could not be set up or used.
    #[error("rtnetlink: cannot {action}: {source}")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("rtnetlink: the kernel refuses to {action}: {source}")]
    Refused {
        /// What was asked.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel's answer cannot be read.
    #[error("rtnetlink: cannot read the answer when asked to {action}: {message}")]
    Answer {
        /// What was asked.
        action: &'static str,
        /// What is wrong with it.
        message: String,
    },
}
