//! The server of a new flow, by the scheduler of its virtual server: today the pool by its share, then the pool's ring.

use crate::choice::{Choice, is_for};
use crate::flow::{self, Key};
use crate::headers::Tuple;
use crate::server::{Server, server, server_of};
use crate::{FamilyTables, Tables, hash};
use sluice_abi::{
    DropReason, EVERYBODY, FlowData, Head, MAX_POOLS, POOL_BY_CLIENT_ADDRESS, Path, RingWord,
    SERVER_BY_CLIENT_ADDRESS, Scheduler,
};

/// Servers that a new flow tries when its client's port is in use towards the first ones.
const CANDIDATES: u32 = 4;

/// Chooses a server for a new flow. None if another hook delivers.
#[inline(never)]
pub(crate) fn schedule<'a, const A: usize, T: Tables + FamilyTables<A>>(
    tables: &'a T,
    tuple: &Tuple<A>,
    choice: &mut Choice<'a, A>,
) -> Result<(), DropReason> {
    let head = tables.head(choice.head).ok_or(DropReason::BadTable)?;
    if !admits(tables, head, tuple) {
        return Err(DropReason::SourceNotAllowed);
    }
    match Scheduler::from_u8(head.scheduler).ok_or(DropReason::BadTable)? {
        Scheduler::Ring => by_ring(tables, head, tuple, choice),
    }
}

/// Whether the client may begin a flow. Whoever balanced the packet first has looked already.
#[inline(always)]
fn admits<const A: usize, T: FamilyTables<A>>(tables: &T, head: &Head, tuple: &Tuple<A>) -> bool {
    head.source_set == EVERYBODY
        || tuple.balanced
        || tables.has_source(head.source_set, &tuple.source)
}

/// The pool by its share, then a server from the pool's ring.
#[inline(always)]
fn by_ring<'a, const A: usize, T: Tables + FamilyTables<A>>(
    tables: &'a T,
    head: &Head,
    tuple: &Tuple<A>,
    choice: &mut Choice<'a, A>,
) -> Result<(), DropReason> {
    // What they have in common is computed once.
    let by_flow = hash::flow(&tuple.source, tuple.source_port, head.seed);
    let by_client = hash::client(&tuple.source, head.seed);
    let hash_for = |flag| match head.flags & flag {
        0 => by_flow,
        _ => by_client,
    };
    let ring = pool_ring(tables, head, hash_for(POOL_BY_CLIENT_ADDRESS))?;
    let mut hash = hash_for(SERVER_BY_CLIENT_ADDRESS);
    let mut candidate = 0;
    while candidate < CANDIDATES {
        let slot = ring
            .offset()
            .wrapping_add(hash as u32 & ring.slots().wrapping_sub(1));
        let id = tables
            .ring_slot(slot)
            .filter(|&id| id != 0)
            .ok_or(DropReason::NoServer)?;
        let server = server(tables, id).ok_or(DropReason::ServerGone)?;
        if matches!(server.word.path(), Path::Unresolved) {
            return Err(DropReason::NextHopUnresolved);
        }
        if !is_for(server.word.path(), choice.hook) {
            return Ok(());
        }
        if server.reply_end().index == 0 || way_back_is_free(tables, &server, tuple, choice) {
            choice.set_server(Some(server));
            return Ok(());
        }
        hash = hash::next(hash);
        candidate += 1;
    }
    Err(DropReason::PortInUse)
}

#[inline(always)]
fn pool_ring<T: Tables>(tables: &T, head: &Head, hash: u64) -> Result<RingWord, DropReason> {
    let share = hash::pool(hash);
    let mut i = 0;
    while i < MAX_POOLS {
        let pool = &head.pools[i];
        if share < pool.threshold {
            return tables
                .ring(pool.ring)
                .filter(|ring| ring.present())
                .ok_or(DropReason::NoServer);
        }
        i += 1;
    }
    Err(DropReason::NoServer)
}

/// Whether replies of this server to this client's port would belong to this flow alone. A connection attempt takes the
/// place of a flow that is over, and any flow that of one of the same VIP port or whose server is gone.
#[inline(always)]
fn way_back_is_free<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    server: &Server<'_>,
    tuple: &Tuple<A>,
    choice: &mut Choice<'_, A>,
) -> bool {
    let back = Key::new(tables, &tuple.source, tuple.source_port, server.reply_end());
    choice.news = FlowData::default();
    let Some(found) = flow::find(tables, &back, choice.now) else {
        return true;
    };
    let holder = server_of(tables, found.data);
    let own = found.data.same_server(server.id, server.word.epoch());
    let free = own
        || tuple.opens() && flow::is_over(found.state)
        || holder.is_none_or(|holder| holder.serves(choice.index));
    if free && (tuple.opens() || !own) {
        choice.news = found.data;
    }
    free
}
