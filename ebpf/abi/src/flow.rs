//! The flow tables' entries, and FullNAT's port claims.
//!
//! `FLOWS4`/`FLOWS6` hold established flows, `HALF4`/`HALF6` half-open ones, in the same shape: an array of buckets of
//! [`BUCKET_ENTRIES`] entries; a flow may be in either of two buckets. An entry is its key followed by one [`FlowData`]:
//!
//! | family | words | key |
//! |---|---|---|
//! | IPv4 | 2 | `client address:32 \| client port:16 \| index:16` |
//! | IPv6 | 4 | `check:32 \| client port:16 \| index:16`, then the client address as two words |
//!
//! The *index* is the service index of the virtual server's endpoint or, for the way back, of the backend's endpoint, so
//! it stands for address, port and protocol of the other side. `check` is a hash of the address. Key word 0 means a free
//! slot ([`SLOT_FREE`]), 1 a slot being written ([`SLOT_BUSY`]); neither can be a key since indices are not 0 and sit in the high bits.

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

/// Flow times count units of 2^29 ns (0.537 s) of the monotonic clock, modulo 2^16: 9.8 hours.
pub const TIME_SHIFT: u32 = 29;

/// First port that FullNAT claims; the range ends below the NodePort range (30000–32767) and the ephemeral range
/// (32768–60999).
pub const FULLNAT_PORT_MIN: u16 = 4096;
/// Last port that FullNAT claims.
pub const FULLNAT_PORT_MAX: u16 = 29_999;

/// What is known of a flow. Stored in three bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum FlowState {
    /// Half-open: a TCP SYN was seen.
    Syn = 1,
    /// Half-open: a packet of a flow without an entry was seen, UDP or the middle of a TCP connection.
    Unconfirmed = 2,
    /// Established TCP.
    Established = 3,
    /// TCP after a FIN.
    Closing = 4,
    /// TCP after a RST.
    Closed = 5,
    /// Confirmed UDP.
    Udp = 6,
}

impl FlowState {
    /// The state stored as `value`.
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Syn),
            2 => Some(Self::Unconfirmed),
            3 => Some(Self::Established),
            4 => Some(Self::Closing),
            5 => Some(Self::Closed),
            6 => Some(Self::Udp),
            _ => None,
        }
    }

    /// Whether flows in this state are in the half-open table.
    pub const fn is_half_open(self) -> bool {
        matches!(self, Self::Syn | Self::Unconfirmed)
    }

    /// Idle time, in time units, after which an entry in this state is no entry: 34 s half-open, 73 minutes established,
    /// 69 s closing, 8.6 s closed, 275 s UDP. Powers of two, because programs compute them without a branch.
    #[inline(always)]
    pub const fn timeout_units(self) -> u16 {
        const EXPONENTS: u32 = (6 << 4) | (6 << 8) | (13 << 12) | (7 << 16) | (4 << 20) | (9 << 24);
        1 << ((EXPONENTS >> (self as u32 * 4)) & 15)
    }
}

/// Last word of a flow entry: `server id:20 | epoch:8 | state:3 | spare:1 | time:16 | port:16`, low bits first.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FlowData(pub u64);

impl FlowData {
    /// `server` is a server id below 2^20; `time` in time units; `port` is the claimed source port (FullNAT), else 0.
    pub const fn new(server: u32, epoch: u8, state: FlowState, time: u16, port: u16) -> Self {
        Self(
            (server as u64 & 0xf_ffff)
                | ((epoch as u64) << 20)
                | ((state as u64) << 28)
                | ((time as u64) << 32)
                | ((port as u64) << 48),
        )
    }
    /// The server id.
    pub const fn server(self) -> u32 {
        self.0 as u32 & 0xf_ffff
    }
    /// The epoch of the server id when the flow was made.
    pub const fn epoch(self) -> u8 {
        (self.0 >> 20) as u8
    }
    /// The state; `None` if no known state is stored.
    pub const fn state(self) -> Option<FlowState> {
        FlowState::from_u8((self.0 >> 28) as u8 & 7)
    }
    /// When the flow was last seen (established) or first seen (half-open).
    pub const fn time(self) -> u16 {
        (self.0 >> 32) as u16
    }
    /// FullNAT's claimed source port in host order.
    pub const fn port(self) -> u16 {
        (self.0 >> 48) as u16
    }
    /// Time units from when the entry was written to `now`, and one more: the CPU that wrote it may have been a tick ahead.
    #[inline(always)]
    pub const fn age(self, now: u16) -> u16 {
        now.wrapping_sub(self.time()).wrapping_add(1)
    }
    /// Whether an entry in this state, its own, has not expired.
    #[inline(always)]
    pub const fn is_live(self, state: FlowState, now: u16) -> bool {
        self.age(now) <= state.timeout_units() + 1
    }
}

/// Key of `FULLNAT*`: the 4-tuple that replies carry, from the server's side. Aligned, because programs build it on the
/// stack in 8-byte steps.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FullNatKey<const A: usize> {
    /// The server's address.
    pub server: [u8; A],
    /// The director's own address.
    pub own: [u8; A],
    /// The server's port, network byte order.
    pub server_port: [u8; 2],
    /// The claimed port, network byte order.
    pub own_port: [u8; 2],
    /// [`crate::TCP`] or [`crate::UDP`].
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}
const _: () = assert!(size_of::<FullNatKey<4>>() == 16 && size_of::<FullNatKey<16>>() == 40);

/// Value of `FULLNAT*`: whose flow has claimed the port. Written once; `data` alone changes afterwards, as one word.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FullNatValue<const A: usize> {
    /// State and time of the flow; `port` repeats the claimed port.
    pub data: FlowData,
    /// The client's address.
    pub client: [u8; A],
    /// The VIP the client connected to.
    pub vip: [u8; A],
    /// The client's port, network byte order.
    pub client_port: [u8; 2],
    /// The virtual server's port, network byte order.
    pub vip_port: [u8; 2],
    /// Zero.
    pub pad: [u8; 4],
}
const _: () = assert!(size_of::<FullNatValue<4>>() == 24 && size_of::<FullNatValue<16>>() == 48);
