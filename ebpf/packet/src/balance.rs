//! The way of a packet to a virtual server: its flow's server, or a server for a new flow.

use crate::choice::{Choice, Chosen, is_for};
use crate::flow::{self, Key};
use crate::headers::{ETHERNET, Ip, RST, Tuple};
use crate::sample;
use crate::server::server_of;
use crate::{FamilyTables, Hook, Outcome, Packet, Tables, deliver, fullnat, schedule};
use sluice_abi::{DropReason, FarEnd, FlowData, Path, REFUSES, ServerWord, TCP, VipWord};

/// Sends a packet to a VIP on its way.
#[inline(always)]
pub(crate) fn balance<const A: usize, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    hook: Hook,
    ip: &Ip<A>,
    tuple: &mut Tuple<A>,
    vip: VipWord,
) -> Result<Outcome, DropReason> {
    if ETHERNET + usize::from(ip.length) > packet.length() {
        return Err(DropReason::Truncated);
    }
    let now = flow::now(tables);
    let far = FarEnd {
        index: vip.index(),
        port: tuple.destination_port,
    };
    let key = Key::new(tables, &tuple.source, tuple.source_port, far);
    let current = flow::find_current(tables, &key, tuple, now)
        .and_then(|data| {
            Some(Chosen {
                server: server_of(tables, data)?,
                port: data.port(),
                new_flow: false,
            })
        })
        .filter(|chosen| {
            let word = chosen.server.word;
            chosen.server.serves(vip.index())
                && is_for(word.path(), hook)
                && (!tuple.balanced || matches!(word.path(), Path::Local))
                && !word.resets()
        });
    let chosen = if let Some(chosen) = current {
        chosen
    } else {
        let zero = packet.unknown_zero();
        tuple.forget_constants(zero);
        let mut choice = Choice::of(key, vip.index(), now, hook, zero);
        choice.head = head_slot(vip, tuple.balanced);
        match choose(packet, tables, tuple, &mut choice) {
            Ok(Some(chosen)) if !chosen.new_flow && is_reset(tuple, chosen.server.word) => {
                return match hook {
                    Hook::Xdp => Ok(Outcome::REFUSE),
                    Hook::Tc => Err(DropReason::NoServer),
                };
            }
            Ok(Some(chosen)) => chosen,
            Ok(None) => return Ok(Outcome::PASS),
            Err(DropReason::NoServer) if refuses(tables, hook, vip, tuple.balanced) => {
                return Ok(Outcome::REFUSE);
            }
            Err(reason) => return Err(reason),
        }
    };
    deliver::deliver(packet, tables, hook, ip, tuple, &chosen)
}

/// Whether a client is told that no server takes its flow. Whoever balanced the packet first would have told it.
#[inline(always)]
fn refuses<T: Tables>(tables: &T, hook: Hook, vip: VipWord, balanced: bool) -> bool {
    let head = tables.head(vip.head());
    let refuses = head.is_some_and(|head| head.flags & REFUSES != 0);
    matches!(hook, Hook::Xdp) && !balanced && refuses
}

/// Whether a packet of a flow that is known is answered by a reset. What the client itself resets its server is to hear of.
#[inline(always)]
fn is_reset<const A: usize>(tuple: &Tuple<A>, word: ServerWord) -> bool {
    let of_connection = tuple.protocol == TCP && !tuple.opens() && tuple.flags & RST == 0;
    word.resets() && !tuple.balanced && of_connection
}

/// The server of a flow that is new, or whose entry this packet changes. `None`: another hook delivers.
#[inline(always)]
fn choose<'a, const A: usize, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    tables: &'a T,
    tuple: &Tuple<A>,
    choice: &mut Choice<'a, A>,
) -> Result<Option<Chosen<'a>>, DropReason> {
    follow(packet, tables, tuple, choice)?;
    if let Some(server) = choice.server() {
        if server.is_fullnat() {
            fullnat::touch_claim(tables, tuple, choice);
        } else if choice.news != FlowData::default() && server.reply_end().index != 0 {
            accompany(tables, tuple, choice);
        }
    }
    if choice.new_flow {
        if choice.head == 0 {
            return Err(DropReason::NotMyServer);
        }
        schedule::schedule(tables, tuple, choice)?;
        if let Some(server) = choice.server() {
            if server.is_fullnat() {
                fullnat::claim(tables, tuple, choice)?;
            }
            record(tables, tuple, choice);
            begin_sample(packet, tables, tuple, choice);
        }
    }
    Ok(choice.server().map(|server| Chosen {
        server,
        port: choice.port,
        new_flow: choice.new_flow,
    }))
}

/// Finds the server of a known flow and brings the tables up to date; sets `new_flow` if there is none. A function of its
/// own, so that its variables do not share the caller's stack frame; the other steps alike.
#[inline(never)]
fn follow<'a, const A: usize, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    tables: &'a T,
    tuple: &Tuple<A>,
    choice: &mut Choice<'a, A>,
) -> Result<(), DropReason> {
    let found = if tuple.opens() {
        flow::find(tables, &choice.key, choice.now)
    } else {
        flow::find_ongoing(tables, &choice.key, choice.now)
    };
    if let Some(found) = found {
        let server = server_of(tables, found.data).filter(|server| server.serves(choice.index));
        if let Some(server) = server {
            // Two directors that disagree about a flow would send it to and fro until its TTL ends.
            let refused = tuple.balanced && !matches!(server.word.path(), Path::Local);
            if refused && choice.head == 0 {
                return Err(DropReason::NotMyServer);
            }
            let goes_on = !refused && !is_reset(tuple, server.word);
            if goes_on && matches!(server.word.path(), Path::Unresolved) {
                return Err(DropReason::NextHopUnresolved);
            }
            if goes_on && !is_for(server.word.path(), choice.hook) {
                return Ok(());
            }
            let again = tuple.opens() && (flow::is_over(found.state) || server.word.draining());
            if !again && !refused {
                choice.was = found.data;
                choice.port = found.data.port();
                let is_fullnat = server.is_fullnat();
                let sampled = found.state.may_be_sampled() && server.word.is_sampled() && {
                    let numbers = sample::numbers_of::<A, P>(packet);
                    sample::from_client(tables, tuple, &server, numbers)
                };
                choice.set_server(Some(server));
                if let Some(news) = flow::news(&found, tuple, sampled, choice.now) {
                    choice.news = news;
                    if !is_fullnat {
                        flow::follow(tables, &choice.key, &found, news, choice.now);
                    }
                }
                return Ok(());
            }
        }
        // The entry's flow is over, its server is gone or not for this packet, or it is another flow's whose key looks the
        // same. It would hide the new flow's entry, which begins in the half-open table.
        flow::remove::<A, T>(tables, found.data, &choice.key);
    }
    choice.new_flow = true;
    Ok(())
}

/// Makes the entry of the way back say what the client's packet changed.
#[inline(never)]
fn accompany<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    tuple: &Tuple<A>,
    choice: &Choice<'_, A>,
) {
    if let Some(server) = choice.server() {
        let back = Key::new(tables, &tuple.source, tuple.source_port, server.reply_end());
        flow::accompany(tables, &back, choice.news, choice.now);
    }
}

/// Which head a new flow asks; 0: none. A packet that another director has balanced is for this node's own servers.
#[inline(always)]
fn head_slot(vip: VipWord, balanced: bool) -> u32 {
    if balanced || vip.head() == 0 {
        vip.rs_head()
    } else {
        vip.head()
    }
}

/// Begins a sample of a new connection. Returns whether it did: what a function returns that returns nothing, the verifier may take for a
/// pointer to the stack.
#[inline(never)]
fn begin_sample<const A: usize, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    tuple: &Tuple<A>,
    choice: &Choice<'_, A>,
) -> bool {
    let server = choice.server().filter(|_| tuple.opens());
    server.is_some_and(|server| {
        let numbers = sample::numbers_of::<A, P>(packet);
        server.word.is_sampled() && sample::from_client(tables, tuple, &server, numbers)
    })
}

/// Makes the entries of a new flow.
#[inline(never)]
fn record<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    tuple: &Tuple<A>,
    choice: &Choice<'_, A>,
) {
    let Some(server) = choice.server() else {
        return;
    };
    let data = FlowData::new(
        server.id,
        server.word.epoch(),
        flow::first_state(tuple),
        choice.now,
        choice.port,
    );
    flow::begin(tables, &choice.key, data, choice.now);
    if server.reply_end().index != 0 {
        let back = Key::new(tables, &tuple.source, tuple.source_port, server.reply_end());
        if choice.news != FlowData::default() {
            flow::remove(tables, choice.news, &back);
        }
        flow::begin(tables, &back, data, choice.now);
    }
}
