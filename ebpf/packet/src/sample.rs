//! Samples of TCP connections: how a server answers the first packets.
//!
//! ```text
//! client's SYN        SYN-ACK           client's ACK     client's data       server's data
//!   Opening ──────────► Answered ──────────► Open ──────────► Asked ─────────► Replied
//!      │ RST                │ client's RST     │ RST, FIN       │ RST     FIN
//!      ▼                    ▼                  ▼                ▼          ▼
//!   Refused                Left          Reset, Left          Reset     Closed
//! ```
//!
//! Whatever a host can send that sees neither side's packets changes nothing: an answer must acknowledge the client's SYN, the client the
//! server's, and what the server sends then must have the number that it is to have. A client that leaves, or never ends its handshake, is no
//! fault of the server's. What does not come at all is noticed by the agent.

use crate::flow::Key;
use crate::headers::{ACK, ETHERNET, FIN, Ip, RST, SYN, Tuple};
use crate::server::{Server, server};
use crate::{FamilyTables, Packet, SharedWords, Tables};
use sluice_abi::{
    FarEnd, SAMPLE_ASKED, SAMPLE_BEGUN, SAMPLE_DATA, SAMPLE_KEY, SAMPLE_NUMBERS, SAMPLE_STALE_NS,
    SAMPLE_TIME_SHIFT, SAMPLE_TIMES, SLOT_BUSY, SLOT_FREE, SampleData, SampleState, TCP,
};

/// What a TCP segment is to a sample, in two words.
#[derive(Clone, Copy)]
struct Segment {
    /// `server id:20 | epoch:8 | flags:8 | from server:1 | client's port:16`, low bits first.
    what: u64,
    /// As [`numbers`] gives it.
    numbers: u64,
}

const FLAGS_SHIFT: u32 = 28;
const FROM_SERVER: u64 = 1 << 36;
const PORT_SHIFT: u32 = 37;
const HAS_DATA: u64 = 1 << 63;
/// The bits of an acknowledgement that there is room for.
const ACKNOWLEDGED: u32 = 0x7fff_ffff;

/// The numbers of a TCP segment: `sequence number:32 | acknowledgement's lower bits:31 | has data:1`, low bits first. Of anything else 0.
#[inline(always)]
pub(crate) fn numbers<const A: usize, P: Packet>(packet: &P, ip: &Ip<A>) -> u64 {
    // No constant, or the verifier would look at what follows once more.
    let none = u64::from(packet.unknown_zero());
    if ip.protocol != TCP {
        return none;
    }
    let Some(header) = packet.get::<14>(ip.payload) else {
        return none;
    };
    let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    let acknowledged = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
    let headers = (ip.payload - ip.at) as u64 + u64::from(header[12] >> 4) * 4;
    // Negative if there is data.
    let data = headers.wrapping_sub(u64::from(ip.length)) & HAS_DATA;
    u64::from(sequence) | u64::from(acknowledged & ACKNOWLEDGED) << 32 | data
}

/// Those of a packet that is in no tunnel. A function of its own, so that its variables do not share the caller's stack frame.
#[inline(never)]
pub(crate) fn numbers_of<const A: usize, P: Packet>(packet: &mut P) -> u64 {
    packet.hold();
    Ip::<A>::parse(packet, ETHERNET).map_or(0, |ip| numbers(packet, &ip))
}

impl Segment {
    #[inline(always)]
    fn flags(self) -> u8 {
        (self.what >> FLAGS_SHIFT) as u8
    }

    #[inline(always)]
    fn has(self, flags: u8) -> bool {
        self.flags() & flags != 0
    }

    #[inline(always)]
    fn has_data(self) -> bool {
        self.numbers & HAS_DATA != 0
    }

    #[inline(always)]
    fn sequence(self) -> u32 {
        self.numbers as u32
    }

    #[inline(always)]
    fn acknowledges(self, next: u32) -> bool {
        self.has(ACK) && (self.numbers >> 32) as u32 & ACKNOWLEDGED == next & ACKNOWLEDGED
    }
}

/// Takes in a client's segment to a server that is sampled. Whether the sample goes on. `numbers` are those of [`numbers`].
#[inline(always)]
pub(crate) fn from_client<const A: usize, T: FamilyTables<A>>(
    tables: &T,
    tuple: &Tuple<A>,
    server: &Server<'_>,
    numbers: u64,
) -> bool {
    let client = (&tuple.source, tuple.source_port);
    look(tables, client, server, tuple.flags, (0, numbers))
}

/// Takes in a segment with these flags to a client of a server that is sampled.
#[inline(always)]
pub(crate) fn from_server<const A: usize, T: FamilyTables<A>>(
    tables: &T,
    client: (&[u8; A], [u8; 2]),
    server: &Server<'_>,
    flags: u8,
    numbers: u64,
) {
    look(tables, client, server, flags, (FROM_SERVER, numbers));
}

#[inline(always)]
fn look<const A: usize, T: FamilyTables<A>>(
    tables: &T,
    (client, port): (&[u8; A], [u8; 2]),
    server: &Server<'_>,
    flags: u8,
    (from, numbers): (u64, u64),
) -> bool {
    let server = u64::from(server.id & 0xf_ffff) | u64::from(server.word.epoch()) << 20;
    let port = u64::from(u16::from_be_bytes(port)) << PORT_SHIFT;
    let what = server | u64::from(flags) << FLAGS_SHIFT | from | port;
    FamilyTables::<A>::sample(tables, Key::client(client), what, numbers)
}

/// The key by which packets of both directions find a connection: FullNAT's replies know the virtual server's port, others the server's.
/// `None`: this node does not see what the server answers.
#[inline(always)]
fn key<const A: usize, T: Tables>(tables: &T, client: [u64; 2], what: u64) -> Option<Key<A>> {
    let server = server(tables, what as u32 & 0xf_ffff)?;
    if server.word.epoch() != (what >> 20) as u8 {
        return None;
    }
    let record = server.record;
    let far = if server.is_fullnat() {
        FarEnd {
            index: record.facts.index(),
            port: record.vip_port,
        }
    } else {
        server.reply_end()
    };
    if far.index == 0 {
        return None;
    }
    let port = ((what >> PORT_SHIFT) as u16).to_be_bytes();
    Some(Key::of_words(tables, client, port, far))
}

/// Body of [`FamilyTables::sample`]: takes in a segment of a client's connection, whose address is in these words. Whether its sample goes
/// on.
#[inline(always)]
pub fn sample_words<const A: usize, T: Tables + FamilyTables<A>>(
    tables: &T,
    client: [u64; 2],
    what: u64,
    numbers: u64,
) -> bool {
    let segment = Segment { what, numbers };
    let Some(key) = key::<A, T>(tables, client, what) else {
        return false;
    };
    let [hash, _] = key.buckets(tables);
    let Some(slot) = tables.sample_slot(hash) else {
        return false;
    };
    let stored = if A == 4 {
        [key.words[0], 0, 0]
    } else {
        key.words
    };
    let data = SampleData(slot.load(SAMPLE_DATA));
    let is_own = slot.load(SAMPLE_KEY) == stored[0]
        && slot.load(SAMPLE_KEY + 1) == stored[1]
        && slot.load(SAMPLE_KEY + 2) == stored[2]
        && data.is_of(what)
        && slot.load(SAMPLE_KEY) == stored[0];
    let state = if is_own { data.state() } else { None };
    let now = tables.exact_ns();
    if what & FROM_SERVER == 0 && segment.flags() & (SYN | ACK | RST) == SYN {
        let next = segment.sequence().wrapping_add(1);
        let is_again =
            matches!(state, Some(SampleState::Opening)) && slot.load(SAMPLE_NUMBERS) as u32 == next;
        return is_again || begin::<A>(&slot, &stored, what, next, now);
    }
    let Some(state) = state else {
        return false;
    };
    if state.has_ended() {
        return false;
    }
    let after = if what & FROM_SERVER == 0 {
        after_client(&slot, state, segment, now)
    } else {
        after_server(&slot, state, segment, now)
    };
    if after as u8 != state as u8 {
        slot.compare_exchange(SAMPLE_DATA, data.0, data.in_state(after).0);
    }
    !after.has_ended()
}

/// Takes a slot for a connection that begins.
#[inline(always)]
fn begin<const A: usize>(
    slot: &impl SharedWords,
    key: &[u64; 3],
    server: u64,
    next: u32,
    now: u64,
) -> bool {
    let old = slot.load(SAMPLE_KEY);
    let begun = slot.load(SAMPLE_BEGUN);
    let gives_way = old == SLOT_FREE || old == key[0] || now.wrapping_sub(begun) > SAMPLE_STALE_NS;
    if old == SLOT_BUSY || !gives_way {
        return false;
    }
    if slot.compare_exchange(SAMPLE_KEY, old, SLOT_BUSY) != old {
        return false;
    }
    slot.store(SAMPLE_KEY + 1, key[1]);
    slot.store(SAMPLE_KEY + 2, key[2]);
    slot.store(SAMPLE_DATA, SampleData::new(server, A != 4, now).0);
    slot.store(SAMPLE_BEGUN, now);
    slot.store(SAMPLE_NUMBERS, u64::from(next));
    slot.store(SAMPLE_TIMES, 0);
    slot.store(SAMPLE_ASKED, 0);
    slot.compare_exchange(SAMPLE_KEY, SLOT_BUSY, key[0]);
    true
}

/// State after a client's segment.
#[inline(always)]
fn after_client(
    slot: &impl SharedWords,
    state: SampleState,
    segment: Segment,
    now: u64,
) -> SampleState {
    if segment.has(RST) {
        return SampleState::Left;
    }
    let is_confirmed = match state {
        SampleState::Answered => segment.acknowledges((slot.load(SAMPLE_NUMBERS) >> 32) as u32),
        SampleState::Open => true,
        _ => return state,
    };
    if !is_confirmed {
        return state;
    }
    if segment.has_data() {
        slot.store(SAMPLE_ASKED, now);
        return SampleState::Asked;
    }
    if segment.has(FIN) {
        return SampleState::Left;
    }
    SampleState::Open
}

/// State after a server's segment.
#[inline(always)]
fn after_server(
    slot: &impl SharedWords,
    state: SampleState,
    segment: Segment,
    now: u64,
) -> SampleState {
    let numbers = slot.load(SAMPLE_NUMBERS);
    if matches!(state, SampleState::Opening) {
        if !segment.acknowledges(numbers as u32) {
            return state;
        }
        if segment.has(RST) {
            return SampleState::Refused;
        }
        if !segment.has(SYN) {
            return state;
        }
        let next = segment.sequence().wrapping_add(1);
        slot.store(
            SAMPLE_NUMBERS,
            numbers & 0xffff_ffff | u64::from(next) << 32,
        );
        slot.store(SAMPLE_TIMES, since(slot.load(SAMPLE_BEGUN), now));
        return SampleState::Answered;
    }
    if segment.has(SYN) || segment.sequence() != (numbers >> 32) as u32 {
        return state;
    }
    let is_asked = matches!(state, SampleState::Asked);
    if segment.has(RST) {
        // A client that has not confirmed anything may have been made up, and its host refuses what it never asked for.
        return match state {
            SampleState::Answered => SampleState::Left,
            _ => SampleState::Reset,
        };
    }
    if segment.has_data() {
        if is_asked {
            let handshake = slot.load(SAMPLE_TIMES) & 0xffff_ffff;
            let first_byte = since(slot.load(SAMPLE_ASKED), now);
            slot.store(SAMPLE_TIMES, handshake | first_byte << 32);
        }
        return SampleState::Replied;
    }
    match segment.has(FIN) {
        true if is_asked => SampleState::Closed,
        true => SampleState::Left,
        false => state,
    }
}

/// A time that was measured, at least 1.
#[inline(always)]
fn since(begun: u64, now: u64) -> u64 {
    let units = now.wrapping_sub(begun) >> SAMPLE_TIME_SHIFT;
    if units == 0 || units > 0xffff_ffff {
        1
    } else {
        units
    }
}
