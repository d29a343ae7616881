//! The question which server a packet goes to, as the steps that answer it hand it on.

use crate::Hook;
use crate::flow::Table;
use crate::headers::Tuple;
use crate::server::Server;
use sluice_abi::{FarEnd, FlowClock, FlowData, Path};

/// The server that a packet goes to.
pub(crate) struct Chosen<'a> {
    pub(crate) server: Server<'a>,
    /// FullNAT's claimed port, else 0.
    pub(crate) port: u16,
    pub(crate) new_flow: bool,
}

/// Whether a hook delivers by this path itself.
#[inline(always)]
pub(crate) fn is_for(path: Path, hook: Hook) -> bool {
    match path {
        Path::Xdp | Path::Local => true,
        Path::Tc => matches!(hook, Hook::Tc),
        Path::Unresolved => false,
    }
}

/// The question which server a packet goes to, and the answer. Aligned and ordered as [`crate::headers::Tuple`].
#[repr(C, align(8))]
pub(crate) struct Choice {
    /// What changed in a known flow's entry, 0 if nothing did: the other direction's entry must say the same.
    pub(crate) news: FlowData,
    pub(crate) head: u32,
    /// The chosen server; 0: another hook delivers.
    pub(crate) server: u32,
    /// Service index of the virtual server's endpoint.
    pub(crate) service: u32,
    pub(crate) now: FlowClock,
    /// FullNAT's claimed port, else 0.
    pub(crate) port: u16,
    pub(crate) hook: Hook,
    /// Which table the flow's entry was in.
    pub(crate) was_in: Table,
    pub(crate) new_flow: bool,
}

impl Choice {
    /// The virtual server's end of the flow.
    #[inline(always)]
    pub(crate) fn far<const A: usize>(&self, tuple: &Tuple<A>) -> FarEnd {
        FarEnd {
            index: self.service,
            port: tuple.destination_port,
        }
    }
}
