//! FullNAT's claims: which flow a port of the director's own belongs to.
//!
//! `FULLNAT4`/`FULLNAT6` are arrays of slots of [`claim_words`] words. A server, an own address, their ports and the protocol lead to
//! exactly one slot, by a hash of sluice-packet, so who holds the slot holds the port. Packets take over the slots of claims
//! that are over; nobody else frees any.
//!
//! | word | IPv4 | IPv6 |
//! |---|---|---|
//! | 0 | [`ClaimKey`] | the same |
//! | 1 | [`ClaimData`] | the same |
//! | then | `server:32 \| own:32`, `client:32 \| VIP:32` | server, own, client and VIP, two words each |
//! | last in use | `client's port:16 \| VIP's port:16` | the same |
//!
//! Addresses are words of their bytes, the first the lowest; ports are numbers.

use crate::{FlowClock, FlowData, FlowState, SLOT_BUSY, SLOT_FREE, Timeouts, UDP};

/// First port that FullNAT claims; the range ends below the NodePort range (30000–32767) and the ephemeral range
/// (32768–60999).
pub const FULLNAT_PORT_MIN: u16 = 4096;
/// Last port that FullNAT claims.
pub const FULLNAT_PORT_MAX: u16 = 29_999;

/// Words of a slot, two of them unused in IPv4 and five in IPv6; `A` is the length of the family's addresses.
pub const fn claim_words<const A: usize>() -> usize {
    if A == 4 { 8 } else { 16 }
}

/// Longest time that a half-open flow holds a port which another flow wants, in nanoseconds: as long as [`ClaimData::worth`]
/// says, 4.3 to 5.4 s. In so long a virtual server's share of the ports is filled up once.
pub const HALF_OPEN_NS: u64 = 5_000_000_000;

/// Words of `NEW_FLOWS`, a power of two: as many as VIP ports, at most, have indices.
pub const NEW_FLOW_WORDS: u32 = 1 << 16;

/// First word of a slot: `own port:16 | server's port:16 | protocol:8 | generation:16 | 0:7 | 1`, low bits first; [`SLOT_FREE`] or
/// [`SLOT_BUSY`] without a claim. Each claim of a slot has another generation, so that who reads the same key before and after
/// the other words has read one claim.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClaimKey(pub u64);

impl ClaimKey {
    const GENERATION: u64 = 0xffff << 40;
    const CLAIMED: u64 = 1 << 63;

    /// A claim of the first generation; ports in network byte order.
    #[inline(always)]
    pub const fn new(own_port: [u8; 2], server_port: [u8; 2], protocol: u8) -> Self {
        Self(
            u16::from_be_bytes(own_port) as u64
                | (u16::from_be_bytes(server_port) as u64) << 16
                | (protocol as u64) << 32
                | Self::CLAIMED,
        )
    }
    /// The same claim, to be made where a slot has the word `old`.
    #[must_use]
    #[inline(always)]
    pub const fn after(self, old: u64) -> Self {
        Self(self.0 | (old.wrapping_add(1 << 40) & Self::GENERATION))
    }
    /// The same claim, of another own port than 0.
    #[must_use]
    #[inline(always)]
    pub const fn with_own_port(self, own_port: [u8; 2]) -> Self {
        Self(self.0 | u16::from_be_bytes(own_port) as u64)
    }
    /// Whether a slot with this word has the claim, in any generation.
    #[inline(always)]
    pub const fn is_in(self, word: u64) -> bool {
        (self.0 ^ word) & !Self::GENERATION == 0
    }
    /// Whether a slot with this word has a claim at all.
    pub const fn is_claimed(word: u64) -> bool {
        word > SLOT_BUSY
    }
    /// The own port, network byte order.
    pub const fn own_port(self) -> [u8; 2] {
        (self.0 as u16).to_be_bytes()
    }
    /// The server's port, network byte order.
    pub const fn server_port(self) -> [u8; 2] {
        ((self.0 >> 16) as u16).to_be_bytes()
    }
    /// [`crate::TCP`] or [`crate::UDP`].
    pub const fn protocol(self) -> u8 {
        (self.0 >> 32) as u8
    }
}
const _: () = assert!(SLOT_FREE == 0 && SLOT_BUSY == 1);

/// State of a claim. Stored in four bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum ClaimState {
    /// Only the client's first packet was seen, or nothing that confirms it.
    HalfOpen = 1,
    /// Established TCP.
    Established = 2,
    /// TCP after a FIN of the client alone.
    ClientEnded = 3,
    /// TCP after a FIN of the server alone.
    ServerEnded = 4,
    /// TCP after both FINs, the client's first: the client waits (TIME-WAIT, RFC 9293), and the server if the FINs crossed.
    OverForServer = 5,
    /// TCP after both FINs, the server's first: the server waits.
    ServerWaits = 6,
    /// TCP after a RST. Packets may follow: who sent it may have forged it.
    Reset = 7,
    /// Confirmed UDP.
    Udp = 8,
    /// Established TCP whose beginning is being sampled.
    Young = 9,
}

impl ClaimState {
    /// The state stored as `value`.
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::HalfOpen),
            2 => Some(Self::Established),
            3 => Some(Self::ClientEnded),
            4 => Some(Self::ServerEnded),
            5 => Some(Self::OverForServer),
            6 => Some(Self::ServerWaits),
            7 => Some(Self::Reset),
            8 => Some(Self::Udp),
            9 => Some(Self::Young),
            _ => None,
        }
    }

    /// The state of the flow's entry.
    #[inline(always)]
    pub const fn flow(self) -> FlowState {
        match self {
            Self::HalfOpen => FlowState::Syn,
            Self::Established => FlowState::Established,
            Self::ClientEnded | Self::ServerEnded | Self::OverForServer | Self::ServerWaits => {
                FlowState::Closing
            }
            Self::Reset => FlowState::Closed,
            Self::Udp => FlowState::Udp,
            Self::Young => FlowState::Young,
        }
    }

    /// As [`FlowState::may_be_sampled`].
    #[inline(always)]
    pub const fn may_be_sampled(self) -> bool {
        !matches!(self, Self::Established | Self::Udp)
    }

    /// State after a packet of a confirmed flow. `fin` and `rst` are its flags.
    #[inline(always)]
    #[must_use]
    pub const fn after(self, protocol: u8, fin: bool, rst: bool, from_client: bool) -> Self {
        if protocol == UDP {
            return Self::Udp;
        }
        if rst || matches!(self, Self::Reset) {
            return Self::Reset;
        }
        match (self, fin, from_client) {
            (Self::HalfOpen | Self::Established | Self::Young, true, true) => Self::ClientEnded,
            (Self::HalfOpen | Self::Established | Self::Young, true, false) => Self::ServerEnded,
            (Self::HalfOpen, false, _) => Self::Established,
            (Self::ClientEnded, true, false) => Self::OverForServer,
            (Self::ServerEnded, true, true) => Self::ServerWaits,
            (state, ..) => state,
        }
    }
}

/// Second word of a slot: `server id:20 | epoch:8 | state:4 | time:32`, low bits first. The time is the [`FlowClock`] of the
/// last packet that changed the word; it does not come again in 73 years.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ClaimData(pub u64);

impl ClaimData {
    /// Worth of a slot whose claim goes on.
    pub const HELD: u32 = u32::MAX;
    /// Time units after which a half-open flow gives way.
    const HALF_OPEN_UNITS: u32 = 9;
    /// Time units after both FINs: 1.1 to 2.1 s, for the last ACK and for a FIN that is sent again.
    const OVER_UNITS: u32 = 3;
    /// Time units in which a server may remember a connection (Linux: TIME-WAIT 60 s, SYN-RECEIVED 63 s).
    const REMEMBERED_UNITS: u32 = 128;
    /// Time units of half-open flows in one of established flows.
    const UNITS: u32 = 1 << (crate::ESTABLISHED_SHIFT - crate::HALF_OPEN_SHIFT);

    /// `server` is a server id below 2^20.
    #[inline(always)]
    pub const fn new(server: u32, epoch: u8, state: ClaimState, now: FlowClock) -> Self {
        Self(
            (server as u64 & 0xf_ffff)
                | (epoch as u64) << 20
                | (state as u64) << 28
                | (now.0 as u64) << 32,
        )
    }
    /// The same claim, in this state now.
    #[must_use]
    #[inline(always)]
    pub const fn renewed(self, state: ClaimState, now: FlowClock) -> Self {
        Self((self.0 & 0x0fff_ffff) | (state as u64) << 28 | (now.0 as u64) << 32)
    }
    /// The server id.
    pub const fn server(self) -> u32 {
        self.0 as u32 & 0xf_ffff
    }
    /// The epoch of the server id when the claim was made.
    pub const fn epoch(self) -> u8 {
        (self.0 >> 20) as u8
    }
    /// The state; `None` if no known state is stored.
    pub const fn state(self) -> Option<ClaimState> {
        ClaimState::from_u8((self.0 >> 28) as u8 & 15)
    }
    /// What the flow's entry says; `own_port` in network byte order.
    #[inline(always)]
    pub const fn flow(self, own_port: [u8; 2]) -> Option<FlowData> {
        let Some(state) = self.state() else {
            return None;
        };
        let written = FlowClock((self.0 >> 32) as u32);
        let port = u16::from_be_bytes(own_port);
        Some(FlowData::new(
            self.server(),
            self.epoch(),
            state.flow(),
            written,
            port,
        ))
    }
    /// Time units since it was written; 0 if another CPU wrote it that was a tick ahead.
    #[inline(always)]
    pub const fn age(self, now: FlowClock) -> u32 {
        let age = now.0.wrapping_sub((self.0 >> 32) as u32);
        if age > u32::MAX / 2 { 0 } else { age }
    }
    /// What the slot is worth to its claim, and so which one a new flow takes: the least. 0: nothing. Then those whose
    /// server may remember the last connection from this port, and answer a new one late: if FINs crossed, and last where the
    /// server waits. Of either kind the one that ended first comes first. [`Self::HELD`]: the claim goes on. `established` are the flow table's timeouts: a
    /// claim of an idle flow is held for two units longer than the flow's entry, which packets may use without a look here.
    #[inline(always)]
    pub fn worth(self, now: FlowClock, established: Timeouts) -> u32 {
        let age = self.age(now);
        let idle = |state: FlowState| (u32::from(established.of(state)) + 2) * Self::UNITS;
        let Some(state) = self.state() else {
            return 0;
        };
        let (limit, rank) = match state {
            ClaimState::HalfOpen => (Self::HALF_OPEN_UNITS, 2),
            ClaimState::ServerWaits => (Self::OVER_UNITS, 2),
            ClaimState::OverForServer => (Self::OVER_UNITS, 1),
            ClaimState::Reset => (
                u32::from(established.of(FlowState::Closed)) * Self::UNITS + 1,
                0,
            ),
            ClaimState::ClientEnded | ClaimState::ServerEnded => (idle(FlowState::Closing), 0),
            ClaimState::Established | ClaimState::Young => (idle(FlowState::Established), 0),
            ClaimState::Udp => (idle(FlowState::Udp), 0),
        };
        if age < limit {
            Self::HELD
        } else if rank > 0 && age < Self::REMEMBERED_UNITS {
            rank * Self::REMEMBERED_UNITS - age
        } else {
            0
        }
    }
}
