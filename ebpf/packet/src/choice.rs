//! The question which server a packet goes to, as the steps that answer it hand it on.

use crate::Hook;
use crate::flow::Key;
use crate::server::Server;
use sluice_abi::{FlowClock, FlowData, Path, ServerRecord, ServerWord};

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
pub(crate) struct Choice<'a, const A: usize> {
    record: Option<&'a ServerRecord>,
    word: ServerWord,
    id: u32,
    /// Slot of the head that a new flow asks.
    pub(crate) head: u32,
    /// Of a known flow the new data of its entry, 0 if nothing changed: the other direction's entry must say the same. Of a
    /// new flow the data of the entry that an earlier one left where its way back goes, 0 if there is none.
    pub(crate) news: FlowData,
    /// The data of a known flow's entry.
    pub(crate) was: FlowData,
    /// The flow's key, as the client's packets have it.
    pub(crate) key: Key<A>,
    /// Index of the VIP port.
    pub(crate) index: u32,
    pub(crate) now: FlowClock,
    /// FullNAT's claimed port, else 0.
    pub(crate) port: u16,
    pub(crate) hook: Hook,
    pub(crate) new_flow: bool,
}

impl<'a, const A: usize> Choice<'a, A> {
    /// Of the flow with this `key`, about which nothing is known yet. `zero` is [`crate::Packet::unknown_zero`]: a constant
    /// would be written by a loop over its bytes, which costs a new flow a tenth of its time.
    #[inline(always)]
    pub(crate) fn of(key: Key<A>, index: u32, now: FlowClock, hook: Hook, zero: u32) -> Self {
        Self {
            record: None,
            word: ServerWord(u64::from(zero)),
            id: zero,
            head: zero,
            news: FlowData(u64::from(zero)),
            was: FlowData(u64::from(zero)),
            key,
            index,
            now,
            port: zero as u16,
            hook,
            new_flow: false,
        }
    }

    /// The chosen server; `None`: another hook delivers.
    #[inline(always)]
    pub(crate) fn server(&self) -> Option<Server<'a>> {
        Some(Server {
            id: self.id,
            word: self.word,
            record: self.record?,
        })
    }

    /// Chooses a server, or none.
    #[inline(always)]
    pub(crate) fn set_server(&mut self, server: Option<Server<'a>>) {
        self.record = None;
        if let Some(server) = server {
            self.id = server.id;
            self.word = server.word;
            self.record = Some(server.record);
        }
    }
}
