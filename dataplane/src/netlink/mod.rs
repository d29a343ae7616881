//! The network around this node as the kernel knows it, over rtnetlink.
//!
//! [`Monitor`] tells of changes as they happen, [`Requests`] asks, and [`Table`] keeps the answers. Messages that were lost
//! are made up for by asking for everything again.
//!
//! XDP sends frames without the stack's help, so nothing would keep the neighbours that it needs fresh. They are
//! registered as managed ones (Linux 5.16), which the kernel resolves and probes by itself; older kernels are asked to
//! use them again and again.

mod groups;
mod monitor;
mod prefix;
mod requests;
mod settings;
mod table;

use std::io;

pub use monitor::Monitor;
pub use prefix::{Prefix, is_within};
pub use requests::{Requests, Route};
pub use settings::Settings;
pub use table::{Change, Link, Medium, Neighbour, NeighbourState, Table};

/// Errors of rtnetlink.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// A socket could not be set up or used.
    #[error("rtnetlink: cannot {action}: {source}")]
    Socket {
        /// The action that was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("rtnetlink: the kernel refuses to {action}: {source}")]
    Refused {
        /// The action that was asked for.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel's answer cannot be read.
    #[error("rtnetlink: cannot read the answer when asked to {action}: {message}")]
    Answer {
        /// The action that was asked for.
        action: &'static str,
        /// The fault in the answer.
        message: String,
    },
}
