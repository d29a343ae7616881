//! The flow tables' entries.
//!
//! `FLOWS4`/`FLOWS6` hold established flows, `HALF4`/`HALF6` half-open ones, in the same shape: an array of buckets of
//! [`BUCKET_ENTRIES`] entries; a flow may be in either of two buckets. An entry is its key followed by one [`FlowData`]:
//!
//! | family | words | key |
//! |---|---|---|
//! | IPv4 | 2 | `client address:32 \| client port:16 \| tag:16` |
//! | IPv6 | 4 | `check:32 \| client port:16 \| tag:16`, then the client address as two words |
//!
//! The end of a flow that is not the client is a [`FarEnd`]: an index and a port. The index is that of the VIP
//! port or, for the way back, of the real server's port that replies come from, so it stands for address and protocol; the
//! port tells apart the ports of a virtual server that has several. A key has room for a [`FarEnd::tag`] only. So who finds an
//! entry compares the index with the one in the record of the entry's server, which a packet reads in any case: two flows
//! of one client address and port whose tags are equal are taken for one only if their buckets are equal too, and then one
//! of them replaces the other. `check` is a hash of the address and the far end.
//!
//! Key word 0 means a free slot ([`SLOT_FREE`]), 1 a slot being written ([`SLOT_BUSY`]); neither can be a key since a tag's
//! highest bit is set.

use crate::MIXER;

/// Entries of a bucket.
pub const BUCKET_ENTRIES: usize = 4;

/// First key word of a free slot.
pub const SLOT_FREE: u64 = 0;
/// First key word of a slot that is being written.
pub const SLOT_BUSY: u64 = 1;

/// Words of an entry, the last of which is its [`FlowData`]; `A` is the length of the family's addresses.
pub const fn entry_words<const A: usize>() -> usize {
    if A == 4 { 2 } else { 4 }
}

/// Flow times of half-open flows count units of 2^29 ns (0.537 s) of the monotonic clock, modulo 2^16: 9.8 hours.
pub const HALF_OPEN_SHIFT: u32 = 29;
/// Those of established flows count units of 2^33 ns (8.59 s), modulo 2^16: 6.5 days.
pub const ESTABLISHED_SHIFT: u32 = 33;

/// The end of a flow that is not the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FarEnd {
    /// Index of the VIP port or of the real server's port, see [`crate::VipWord::index`]; not 0.
    pub index: u32,
    /// Its port, network byte order.
    pub port: [u8; 2],
}

impl FarEnd {
    /// Both in one number that looks random in its upper half.
    #[inline(always)]
    pub const fn mixed(self) -> u64 {
        let port = u16::from_be_bytes(self.port) as u64;
        (self.index as u64 | port << 20).wrapping_mul(MIXER)
    }
    /// The part of it that a key holds: the highest bits of [`Self::mixed`], with the highest one set.
    #[inline(always)]
    pub const fn tag(self) -> u16 {
        (self.mixed() >> 48) as u16 | 0x8000
    }
}

/// State of a flow. Stored in four bits; those below 4 are half-open. Values that are not used are room for more,
/// such as a client that stays with a member of a pool whatever the port: the server id is the member's then.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum FlowState {
    /// Half-open: a TCP SYN was seen.
    Syn = 1,
    /// Half-open: a packet of a flow without an entry was seen, UDP or the middle of a TCP connection.
    Unconfirmed = 2,
    /// Established TCP.
    Established = 4,
    /// TCP after a FIN.
    Closing = 5,
    /// TCP after a RST.
    Closed = 6,
    /// Confirmed UDP.
    Udp = 7,
    /// Established TCP whose beginning is being sampled. Its idle time is that of [`Self::Established`].
    Young = 12,
}

impl FlowState {
    /// The state stored as `value`.
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Syn),
            2 => Some(Self::Unconfirmed),
            4 => Some(Self::Established),
            5 => Some(Self::Closing),
            6 => Some(Self::Closed),
            7 => Some(Self::Udp),
            12 => Some(Self::Young),
            _ => None,
        }
    }

    /// Whether a sample may wait for packets of such a flow: one that begins, or ends before it was answered. Anybody can send a segment
    /// that ends a flow, so that the sample must not end with it.
    #[inline(always)]
    pub const fn may_be_sampled(self) -> bool {
        matches!(self, Self::Syn | Self::Young | Self::Closing | Self::Closed)
    }

    /// Whether flows in this state are in the half-open table.
    #[inline(always)]
    pub const fn is_half_open(self) -> bool {
        (self as u8) < 4
    }
}

/// The clock as flows' times have it: nanoseconds of the monotonic clock >> [`HALF_OPEN_SHIFT`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowClock(pub u32);

impl FlowClock {
    /// `ns` of the monotonic clock.
    #[inline(always)]
    pub const fn from_ns(ns: u64) -> Self {
        Self((ns >> HALF_OPEN_SHIFT) as u32)
    }
    /// The time that an entry in this state is written with.
    #[inline(always)]
    pub const fn time(self, state: FlowState) -> u16 {
        if state.is_half_open() {
            self.0 as u16
        } else {
            (self.0 >> (ESTABLISHED_SHIFT - HALF_OPEN_SHIFT)) as u16
        }
    }
}

/// Idle times after which entries are no entries, of four states: word of `CONFIG`, 16 bits for each state, in the units of
/// its times.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts(pub u64);

impl Timeouts {
    /// Of the half-open states: 34 s.
    pub const HALF_OPEN: Self = Self(64 << 16 | 64 << 32);
    /// Of the others: 73 minutes established, 69 s closing, 8.6 s closed, 275 s UDP.
    pub const ESTABLISHED: Self = Self(512 | 8 << 16 | 1 << 32 | 32 << 48);

    /// Of a state of this word.
    #[inline(always)]
    pub const fn of(self, state: FlowState) -> u16 {
        (self.0 >> ((state as u32 & 3) * 16)) as u16
    }
}

/// Last word of a flow entry: `server id:20 | epoch:8 | state:4 | time:16 | port:16`, low bits first.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FlowData(pub u64);

impl FlowData {
    /// `server` is a server id below 2^20; `port` is the claimed source port (FullNAT), else 0.
    #[inline(always)]
    pub const fn new(server: u32, epoch: u8, state: FlowState, now: FlowClock, port: u16) -> Self {
        Self(
            (server as u64 & 0xf_ffff)
                | ((epoch as u64) << 20)
                | ((state as u64) << 28)
                | ((now.time(state) as u64) << 32)
                | ((port as u64) << 48),
        )
    }
    /// The same flow, in this state now.
    #[must_use]
    #[inline(always)]
    pub const fn renewed(self, state: FlowState, now: FlowClock) -> Self {
        const KEPT: u64 = 0xffff_0000_0fff_ffff;
        Self((self.0 & KEPT) | ((state as u64) << 28) | ((now.time(state) as u64) << 32))
    }
    /// The server id.
    pub const fn server(self) -> u32 {
        self.0 as u32 & 0xf_ffff
    }
    /// The epoch of the server id when the flow was made.
    pub const fn epoch(self) -> u8 {
        (self.0 >> 20) as u8
    }
    /// Whether the flow is this server's, by the id and its epoch.
    #[inline(always)]
    pub const fn same_server(self, server: u32, epoch: u8) -> bool {
        self.server() == server && self.epoch() == epoch
    }
    /// The state; `None` if no known state is stored.
    pub const fn state(self) -> Option<FlowState> {
        FlowState::from_u8((self.0 >> 28) as u8 & 15)
    }
    /// Whether this state is stored.
    #[inline(always)]
    pub const fn is_in(self, state: FlowState) -> bool {
        (self.0 >> 28) as u8 & 15 == state as u8
    }
    /// When the flow was last seen (established) or first seen (half-open), in the units of its state.
    pub const fn time(self) -> u16 {
        (self.0 >> 32) as u16
    }
    /// FullNAT's claimed source port in host order.
    pub const fn port(self) -> u16 {
        (self.0 >> 48) as u16
    }
    /// Time units from when an entry in this state, its own, was written to `now`, and one more: the CPU that wrote it may
    /// have been a tick ahead.
    #[inline(always)]
    pub const fn age(self, state: FlowState, now: FlowClock) -> u16 {
        now.time(state).wrapping_sub(self.time()).wrapping_add(1)
    }
    /// Whether an entry in this state, its own, has not expired.
    #[inline(always)]
    pub const fn is_live(self, state: FlowState, now: FlowClock, timeouts: Timeouts) -> bool {
        self.age(state, now) as u32 <= timeouts.of(state) as u32 + 1
    }
}
