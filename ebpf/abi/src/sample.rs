//! Samples: what is seen of single TCP connections while they begin. Agents tell from them how servers do.
//!
//! `SAMPLES` is an array of slots of [`SAMPLE_WORDS`] words. A connection has one possible slot; if another one has that, it is not sampled.
//! Packets begin and end samples, and the agent takes out those that have ended, or wait in vain.
//!
//! | word | content |
//! |---|---|
//! | 0 | first word of the flow's key; [`crate::SLOT_FREE`], or [`crate::SLOT_BUSY`] while it is written |
//! | 1, 2 | the client's IPv6 address; 0 for IPv4, whose address is in the key |
//! | 3 | [`SampleData`] |
//! | 4 | when the client's SYN came, in nanoseconds of the monotonic clock |
//! | 5 | `client's next:32 \| server's next:32`, low bits first: sequence numbers that the other side is to acknowledge |
//! | 6 | `handshake:32 \| first byte:32`, low bits first, in [`SAMPLE_TIME_NS`] |
//! | 7 | when the client's first data came, alike; 0 = it has sent none |

/// Words of a slot.
pub const SAMPLE_WORDS: usize = 8;
/// Index of the key's first word. The others of an IPv6 key follow.
pub const SAMPLE_KEY: usize = 0;
/// Index of [`SampleData`].
pub const SAMPLE_DATA: usize = 3;
/// Index of the time of the SYN.
pub const SAMPLE_BEGUN: usize = 4;
/// Index of the sequence numbers.
pub const SAMPLE_NUMBERS: usize = 5;
/// Index of the times that were measured.
pub const SAMPLE_TIMES: usize = 6;
/// Index of the time of the client's first data.
pub const SAMPLE_ASKED: usize = 7;

/// Slots of `SAMPLES`, a power of two.
pub const SAMPLE_SLOTS: u32 = 1 << 16;

/// Unit of the times that a sample holds, in nanoseconds.
pub const SAMPLE_TIME_NS: u64 = 1 << SAMPLE_TIME_SHIFT;
/// Its logarithm to base 2.
pub const SAMPLE_TIME_SHIFT: u32 = 10;

/// A sample that is older gives way to a new one, in nanoseconds: no agent has taken it out.
pub const SAMPLE_STALE_NS: u64 = 60_000_000_000;

/// How far a sample is. Stored in four bits; those from 8 on have ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum SampleState {
    /// The client's SYN was forwarded.
    Opening = 1,
    /// The server has answered it.
    Answered = 2,
    /// The client has acknowledged that, so its address is not forged.
    Open = 3,
    /// The client has sent data.
    Asked = 4,
    /// The server has sent data.
    Replied = 8,
    /// The server has answered the SYN by a reset.
    Refused = 9,
    /// The server has reset the connection before it sent data.
    Reset = 10,
    /// The server has ended the connection before it sent data, though it was asked.
    Closed = 11,
    /// The client has left, or the server has ended what nobody asked anything by.
    Left = 12,
}

impl SampleState {
    /// The state stored as `value`.
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Opening),
            2 => Some(Self::Answered),
            3 => Some(Self::Open),
            4 => Some(Self::Asked),
            8 => Some(Self::Replied),
            9 => Some(Self::Refused),
            10 => Some(Self::Reset),
            11 => Some(Self::Closed),
            12 => Some(Self::Left),
            _ => None,
        }
    }

    /// Whether nothing more is to be seen.
    #[inline(always)]
    pub const fn has_ended(self) -> bool {
        self as u8 >= 8
    }
}

/// Word 3 of a slot: `server id:20 | epoch:8 | state:4 | IPv6:1 | begun:31`, low bits first. The time tells two samples of a slot apart.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SampleData(pub u64);

impl SampleData {
    /// Bits of the server's id and epoch, as [`crate::FlowData`] has them.
    pub const SERVER: u64 = 0x0fff_ffff;
    const IPV6: u64 = 1 << 32;

    /// A sample that begins now. Of `server` the bits of [`Self::SERVER`] count.
    #[inline(always)]
    pub const fn new(server: u64, is_ipv6: bool, now_ns: u64) -> Self {
        let family = if is_ipv6 { Self::IPV6 } else { 0 };
        let begun = (now_ns >> 20) << 33;
        Self(server & Self::SERVER | (SampleState::Opening as u64) << 28 | family | begun)
    }
    /// The same sample in this state.
    #[must_use]
    #[inline(always)]
    pub const fn in_state(self, state: SampleState) -> Self {
        Self(self.0 & !(15 << 28) | (state as u64) << 28)
    }
    /// The state; `None` if no known state is stored.
    #[inline(always)]
    pub const fn state(self) -> Option<SampleState> {
        SampleState::from_u8((self.0 >> 28) as u8 & 15)
    }
    /// Whether it is a sample of the server with these bits of id and epoch.
    #[inline(always)]
    pub const fn is_of(self, server: u64) -> bool {
        (self.0 ^ server) & Self::SERVER == 0
    }
    /// The server id.
    pub const fn server(self) -> u32 {
        self.0 as u32 & 0xf_ffff
    }
    /// The epoch of the server id.
    pub const fn epoch(self) -> u8 {
        (self.0 >> 20) as u8
    }
    /// Whether the client's address is IPv6.
    pub const fn is_ipv6(self) -> bool {
        self.0 & Self::IPV6 != 0
    }
}
