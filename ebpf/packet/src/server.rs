//! A server by its id: the word and the record.

use crate::Tables;
use sluice_abi::{FarEnd, FlowData, ForwardingMode, Path, ServerRecord, ServerWord};

/// A server and what is known of it.
pub(crate) struct Server<'a> {
    pub(crate) id: u32,
    pub(crate) word: ServerWord,
    pub(crate) record: &'a ServerRecord,
}

impl Server<'_> {
    #[inline(always)]
    pub(crate) fn is_fullnat(&self) -> bool {
        matches!(self.record.facts.mode(), Some(ForwardingMode::FullNat))
            && !matches!(self.word.path(), Path::Local)
    }

    /// The server's own port, where replies come from; index 0: they are not rewritten.
    #[inline(always)]
    pub(crate) fn reply_end(&self) -> FarEnd {
        FarEnd {
            index: self.record.facts.reply_index(),
            port: self.record.port,
        }
    }

    /// Whether it serves the VIP port with this index.
    #[inline(always)]
    pub(crate) fn serves(&self, index: u32) -> bool {
        self.record.facts.index() == index
    }
}

/// The server with this id; `None` if the id is not in use.
#[inline(always)]
pub(crate) fn server<T: Tables>(tables: &T, id: u32) -> Option<Server<'_>> {
    let word = tables.server(id)?;
    if !word.present() {
        return None;
    }
    Some(Server {
        id,
        word,
        record: tables.record(word.slot())?,
    })
}

/// The server that a flow entry names; `None` if the id has been given to another server since.
#[inline(always)]
pub(crate) fn server_of<T: Tables>(tables: &T, data: FlowData) -> Option<Server<'_>> {
    server(tables, data.server()).filter(|server| server.word.epoch() == data.epoch())
}

/// The first `A` bytes of an address field.
#[inline(always)]
pub(crate) fn address<const A: usize>(field: &[u8; 16]) -> &[u8; A] {
    field.first_chunk::<A>().unwrap_or(&[0; A])
}
