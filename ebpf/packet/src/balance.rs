//! The way of a packet to a VIP: its flow's server, or a server for a new flow.

use crate::flow::{self, Table};
use crate::headers::{ETHERNET, Ip, Tuple, same_address};
use crate::{FamilyTables, Hook, Outcome, Packet, Tables, deliver, hash};
use sluice_abi::{
    ConfigWord, DropReason, EndpointKey, FULLNAT_PORT_MAX, FULLNAT_PORT_MIN, FlowData, FlowState,
    ForwardingMode, FullNatKey, FullNatValue, Head, MAX_POOLS, MacKey, POOL_BY_CLIENT_ADDRESS,
    Path, RingWord, ServerRecord, ServerWord, Stat, TCP, UDP, VipWord,
};

/// Servers that a new flow tries when its client's port is in use towards the first ones.
const CANDIDATES: u32 = 4;
/// FullNAT ports that a new flow tries: when half the ports towards a server are in use, one flow of 2^32 finds none.
const PORT_TRIES: u32 = 32;

/// A server and what is known of it.
pub(crate) struct Server<'a> {
    pub(crate) id: u32,
    pub(crate) word: ServerWord,
    pub(crate) record: &'a ServerRecord,
}

impl Server<'_> {
    #[inline(always)]
    pub(crate) fn is_fullnat(&self) -> bool {
        self.record.mode == ForwardingMode::FullNat as u8
            && !matches!(self.word.path(), Path::Local)
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

/// What becomes of a packet that is neither TCP nor UDP, or a fragment.
#[inline(always)]
pub(crate) fn not_transport<const A: usize, P: Packet, T: FamilyTables<A>>(
    packet: &P,
    tables: &T,
    ip: &Ip<A>,
) -> Result<Outcome, DropReason> {
    match not_a_service(packet, tables, ip) {
        Err(_) if ip.fragment => Err(DropReason::Fragment),
        Err(_) if ip.protocol == TCP || ip.protocol == UDP => Err(DropReason::Truncated),
        other => other,
    }
}

/// What becomes of a packet that is for no virtual server: a VIP's is dropped, since a router would send it back here
/// until its TTL ends; any other passes.
#[inline(always)]
pub(crate) fn not_a_service<const A: usize, P: Packet, T: FamilyTables<A>>(
    packet: &P,
    tables: &T,
    ip: &Ip<A>,
) -> Result<Outcome, DropReason> {
    let Some(addr) = ip.destination(packet) else {
        return Ok(Outcome::PASS);
    };
    let marker = EndpointKey {
        addr,
        port: [0; 2],
        protocol: 0,
        pad: 0,
    };
    if tables.vip(&marker).is_some() {
        Err(DropReason::NoService)
    } else {
        Ok(Outcome::PASS)
    }
}

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
    let key = flow::key(tables, &tuple.source, tuple.source_port, vip.service());
    let current = flow::find_current(tables, &key, tuple, now)
        .and_then(|data| {
            Some(Chosen {
                server: server_of(tables, data)?,
                port: data.port(),
                new_flow: false,
            })
        })
        .filter(|chosen| is_for(chosen.server.word.path(), hook));
    let chosen = if let Some(chosen) = current {
        chosen
    } else {
        tuple.forget_constants(tables);
        match choose(packet, tables, hook, tuple, vip, now)? {
            Some(chosen) => chosen,
            None => return Ok(Outcome::PASS),
        }
    };
    deliver::deliver(packet, tables, hook, ip, tuple, &chosen)
}

/// The server that a packet goes to.
pub(crate) struct Chosen<'a> {
    pub(crate) server: Server<'a>,
    /// FullNAT's claimed port, else 0.
    pub(crate) port: u16,
    pub(crate) new_flow: bool,
}

/// The server of a flow that is new, or whose entry this packet changes. `None`: another hook delivers.
#[inline(always)]
fn choose<'a, const A: usize, P: Packet, T: Tables + FamilyTables<A>>(
    packet: &P,
    tables: &'a T,
    hook: Hook,
    tuple: &Tuple<A>,
    vip: VipWord,
    now: u16,
) -> Result<Option<Chosen<'a>>, DropReason> {
    let mut choice = Choice {
        news: FlowData::default(),
        head: 0,
        server: 0,
        service: vip.service(),
        now,
        port: 0,
        hook,
        was_in: Table::Established,
        new_flow: false,
    };
    follow(tables, tuple, &mut choice)?;
    if choice.news != FlowData::default() {
        accompany(tables, tuple, &choice);
        touch_claim(tables, tuple, &mut choice);
    }
    if choice.new_flow {
        choice.head = head_slot(packet, tables, vip);
        if choice.head == 0 {
            return Err(DropReason::NotMyServer);
        }
        assign(tables, tuple, &mut choice)?;
        if choice.server != 0 {
            claim(tables, tuple, &mut choice)?;
            record(tables, tuple, &choice)?;
        }
    }
    if choice.server == 0 {
        return Ok(None);
    }
    Ok(Some(Chosen {
        server: server(tables, choice.server).ok_or(DropReason::ServerGone)?,
        port: choice.port,
        new_flow: choice.new_flow,
    }))
}

/// Whether a hook delivers by this path itself.
#[inline(always)]
fn is_for(path: Path, hook: Hook) -> bool {
    match path {
        Path::Xdp | Path::Local => true,
        Path::Tc => matches!(hook, Hook::Tc),
        Path::Unresolved => false,
    }
}

/// The question which server a packet goes to, and the answer. Aligned and ordered as [`Tuple`].
#[repr(C, align(8))]
struct Choice {
    /// What changed in a known flow's entry, 0 if nothing did: the other direction's entry must say the same.
    news: FlowData,
    head: u32,
    /// The chosen server; 0: another hook delivers.
    server: u32,
    service: u16,
    now: u16,
    /// FullNAT's claimed port, else 0.
    port: u16,
    hook: Hook,
    /// Which table the flow's entry was in.
    was_in: Table,
    new_flow: bool,
}

/// Finds the server of a known flow and brings the tables up to date; sets `new_flow` if there is none. A function of its
/// own, without the packet, so that its variables do not share the caller's stack frame; [`assign`] and [`record`] alike.
#[inline(never)]
fn follow<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    tuple: &Tuple<A>,
    choice: &mut Choice,
) -> Result<(), DropReason> {
    let key = flow::key(tables, &tuple.source, tuple.source_port, choice.service);
    if let Some(found) = flow::find(tables, &key, choice.now) {
        if let Some(server) = server_of(tables, found.data) {
            if matches!(server.word.path(), Path::Unresolved) {
                return Err(DropReason::NextHopUnresolved);
            }
            if !is_for(server.word.path(), choice.hook) {
                return Ok(());
            }
            let again = tuple.opens() && (flow::is_over(found.state) || server.word.draining());
            if !again {
                let news = flow::follow(
                    tables,
                    &key,
                    &found,
                    tuple.protocol,
                    tuple.flags,
                    choice.now,
                );
                choice.news = news.unwrap_or_default();
                choice.was_in = found.table;
                choice.server = server.id;
                choice.port = found.data.port();
                return Ok(());
            }
        }
        // What is over, or was a server's that is gone, would hide the new flow's entry, which begins in the half-open table.
        flow::remove::<A, T>(tables, &found, &key);
    }
    choice.new_flow = true;
    Ok(())
}

/// Makes the entry of the way back say what the client's packet changed.
#[inline(never)]
fn accompany<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    tuple: &Tuple<A>,
    choice: &Choice,
) {
    if let Some(server) = server_of(tables, choice.news)
        && server.record.backend != 0
        && !server.is_fullnat()
    {
        let back = flow::key(
            tables,
            &tuple.source,
            tuple.source_port,
            server.record.backend,
        );
        flow::accompany(tables, &back, choice.news, choice.now);
    }
}

/// Brings the claimed port of a FullNAT flow up to date. If the claim has expired the flow is a new one.
#[inline(never)]
fn touch_claim<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    tuple: &Tuple<A>,
    choice: &mut Choice,
) {
    let Some(server) = server_of(tables, choice.news) else {
        return;
    };
    if !server.is_fullnat() {
        return;
    }
    let key = claim_key::<A>(server.record, tuple.protocol, choice.port);
    if let Some(claim) = tables.fullnat(&key)
        && same_address(&claim.client, &tuple.source)
        && claim.client_port == tuple.source_port
    {
        tables.fullnat_touch(&key, choice.news);
        if matches!(choice.was_in, Table::HalfOpen) {
            tables.add_half_open_ports(-1);
        }
        return;
    }
    let key = flow::key(tables, &tuple.source, tuple.source_port, choice.service);
    flow::forget(tables, &key, choice.now);
    choice.server = 0;
    choice.port = 0;
    choice.new_flow = true;
}

#[inline(always)]
fn claim_key<const A: usize>(record: &ServerRecord, protocol: u8, port: u16) -> FullNatKey<A> {
    FullNatKey {
        server: *address(&record.addr),
        own: *address(&record.alt),
        server_port: record.port,
        own_port: port.to_be_bytes(),
        protocol,
        pad: [0; 3],
    }
}

/// Chooses a server for a new flow: the pool by its share, then a server from the pool's ring. `server` stays 0 if
/// another hook delivers.
#[inline(never)]
fn assign<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    tuple: &Tuple<A>,
    choice: &mut Choice,
) -> Result<(), DropReason> {
    let head = tables.head(choice.head).ok_or(DropReason::BadTable)?;
    let mut hash = hash::flow(&tuple.source, tuple.source_port, head.seed);
    let ring = pool_ring(tables, head, tuple, hash)?;
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
        if server.record.backend == 0 || way_back_is_free(tables, &server, tuple, choice.now) {
            choice.server = id;
            return Ok(());
        }
        hash = hash::next(hash);
        candidate += 1;
    }
    Err(DropReason::PortInUse)
}

/// Which head a new flow asks; 0: none. A frame from another director is for this node's own servers and is never
/// balanced again.
#[inline(always)]
fn head_slot<P: Packet, T: Tables>(packet: &P, tables: &T, vip: VipWord) -> u32 {
    let from_peer = packet.get::<6>(6).is_some_and(|mac| {
        tables.is_peer(&MacKey {
            mac: *mac,
            pad: [0; 2],
        })
    });
    if from_peer || vip.head() == 0 {
        vip.rs_head()
    } else {
        vip.head()
    }
}

#[inline(always)]
fn pool_ring<const A: usize, T: Tables>(
    tables: &T,
    head: &Head,
    tuple: &Tuple<A>,
    hash: u64,
) -> Result<RingWord, DropReason> {
    let share = if head.flags & POOL_BY_CLIENT_ADDRESS != 0 {
        hash::client(&tuple.source, head.seed)
    } else {
        hash::pool(hash)
    };
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

/// Whether replies of this server to this client's port would belong to this flow alone.
#[inline(always)]
fn way_back_is_free<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    server: &Server<'_>,
    tuple: &Tuple<A>,
    now: u16,
) -> bool {
    let back = flow::key(
        tables,
        &tuple.source,
        tuple.source_port,
        server.record.backend,
    );
    flow::find(tables, &back, now).is_none_or(|found| {
        found.data.server() == server.id || server_of(tables, found.data).is_none()
    })
}

/// Makes the entries of a new flow.
#[inline(never)]
fn record<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    tuple: &Tuple<A>,
    choice: &Choice,
) -> Result<(), DropReason> {
    let server = server(tables, choice.server).ok_or(DropReason::ServerGone)?;
    let data = FlowData::new(
        server.id,
        server.word.epoch(),
        first_state(tuple),
        choice.now,
        choice.port,
    );
    let key = flow::key(tables, &tuple.source, tuple.source_port, choice.service);
    flow::begin(tables, &key, data, choice.now);
    if server.record.backend != 0 {
        let back = flow::key(
            tables,
            &tuple.source,
            tuple.source_port,
            server.record.backend,
        );
        flow::begin(tables, &back, data, choice.now);
    }
    Ok(())
}

/// State of a flow that begins with this packet.
#[inline(always)]
fn first_state<const A: usize>(tuple: &Tuple<A>) -> FlowState {
    if tuple.opens() {
        FlowState::Syn
    } else {
        FlowState::Unconfirmed
    }
}

/// Claims a source port towards the chosen server, if it is one of FullNAT.
#[inline(never)]
fn claim<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    tuple: &Tuple<A>,
    choice: &mut Choice,
) -> Result<(), DropReason> {
    const RANGE: u32 = (FULLNAT_PORT_MAX - FULLNAT_PORT_MIN) as u32 + 1;
    let server = server(tables, choice.server).ok_or(DropReason::ServerGone)?;
    if !server.is_fullnat() {
        return Ok(());
    }
    if tables.config(ConfigWord::HalfOpenPorts).cast_signed()
        >= tables.config(ConfigWord::HalfOpenPortLimit).cast_signed()
    {
        return Err(DropReason::HalfOpenLimit);
    }
    let mut key = claim_key(server.record, tuple.protocol, 0);
    let mut value = FullNatValue {
        data: FlowData::default(),
        client: tuple.source,
        vip: tuple.destination,
        client_port: tuple.source_port,
        vip_port: tuple.destination_port,
        pad: [0; 4],
    };
    let random = tables.random();
    let mut attempt = 0;
    while attempt < PORT_TRIES {
        // An odd stride from the same random number spreads the tries over the range.
        let offset = ((random.wrapping_add(attempt.wrapping_mul((random >> 16) | 1)) & 0xffff)
            * RANGE)
            >> 16;
        let port = FULLNAT_PORT_MIN + offset as u16;
        key.own_port = port.to_be_bytes();
        value.data = FlowData::new(
            server.id,
            server.word.epoch(),
            first_state(tuple),
            choice.now,
            port,
        );
        if tables.fullnat_claim(&key, &value) {
            tables.add_half_open_ports(1);
            tables.stat(Stat::PortClaimed);
            choice.port = port;
            return Ok(());
        }
        attempt += 1;
    }
    Err(DropReason::NoPort)
}
