//! One virtual server as a new flow meets it: the head, and the rings of its pools.

/// The most pools of one virtual server.
pub const MAX_POOLS: usize = 8;

/// The threshold of the last pool with a share: every 31-bit hash is below it.
pub const SHARE_WHOLE: u32 = 1 << 31;

/// Flag of [`Head::flags`]: the pool is chosen by the client's address alone, not by the flow.
pub const POOL_BY_CLIENT_ADDRESS: u8 = 1;
/// Flag of [`Head::flags`]: the server of the pool is chosen by the client's address alone, not by the flow.
pub const SERVER_BY_CLIENT_ADDRESS: u8 = 2;
/// Flag of [`Head::flags`]: a client whose flow no server takes is told.
pub const REFUSES: u8 = 4;

/// [`Head::source_set`] of a virtual server that takes flows of everybody.
pub const EVERYBODY: u32 = 0;
/// [`Head::source_set`] of a virtual server that takes flows of nobody: `SOURCES*` have no block of this set.
pub const NOBODY: u32 = 1;
/// Sets that `SOURCES*` may have blocks of have this id or a higher one.
pub const FIRST_SOURCE_SET: u32 = 2;

/// How a new flow gets its server. Stored as `u8`; packets drop a flow whose scheduler they do not know.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Scheduler {
    /// By the ring of its pool.
    Ring = 0,
}

impl Scheduler {
    /// The scheduler stored as `value`.
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::Ring),
            _ => None,
        }
    }
}

/// Slot of `HEADS`, two cache lines: replaced as a whole by writing another slot and flipping the [`crate::VipWord`].
///
/// A 31-bit hash `h` of the flow or client chooses the first pool `k` with `h < pools[k].threshold`: thresholds are
/// cumulative shares of [`SHARE_WHOLE`], and a pool without a share repeats its predecessor's.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Head {
    /// Seed of the pool and ring hashes, from names: equal on every director.
    pub seed: u32,
    /// Index of the VIP port, as in the [`crate::VipWord`] that leads here.
    pub index: u32,
    /// Number of `pools` in use, at most [`MAX_POOLS`].
    pub pool_count: u8,
    /// [`POOL_BY_CLIENT_ADDRESS`], [`SERVER_BY_CLIENT_ADDRESS`], [`REFUSES`].
    pub flags: u8,
    /// [`Scheduler`].
    pub scheduler: u8,
    /// Zero.
    pub pad: u8,
    /// The clients that may begin flows: [`EVERYBODY`], [`NOBODY`], or whose addresses are in a block of this set in `SOURCES*`.
    pub source_set: u32,
    /// Zero. Room for what else a new flow may need of a virtual server, such as its VIP group.
    pub reserved: [u8; 16],
    /// Shares in the order of the virtual server's pools.
    pub pools: [HeadPool; MAX_POOLS],
}
const _: () = assert!(size_of::<Head>() == 128);

/// One pool's share.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct HeadPool {
    /// Exclusive upper bound of the hashes that choose this pool or one before it.
    pub threshold: u32,
    /// Index into `RINGS`.
    pub ring: u32,
    /// Hash of the pool's name: tells the agent after a restart which pool this is. Packets do not read it.
    pub tag: u32,
}
const _: () = assert!(size_of::<HeadPool>() == 12);

/// Value of `RINGS`: `offset:32 | log2 of the slots:8 | present:1`, low bits first. The ring occupies
/// `RING_SLOTS[offset .. offset + slots]`; slot `h & (slots - 1)` holds a server id, 0 = no server. A value of `RING_SLOTS` is a
/// pair of slots, because the kernel rounds values of arrays up to 8 bytes.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct RingWord(pub u64);

impl RingWord {
    /// A ring of `1 << log2_slots` slots from `offset`.
    pub const fn new(offset: u32, log2_slots: u8) -> Self {
        Self(offset as u64 | ((log2_slots as u64) << 32) | (1 << 40))
    }
    /// Index of the first slot in `RING_SLOTS`.
    pub const fn offset(self) -> u32 {
        self.0 as u32
    }
    /// log2 of the number of slots.
    pub const fn log2_slots(self) -> u8 {
        (self.0 >> 32) as u8
    }
    /// Number of slots.
    pub const fn slots(self) -> u32 {
        1 << (self.log2_slots() & 31)
    }
    /// Whether there is a ring at all.
    pub const fn present(self) -> bool {
        self.0 >> 40 & 1 == 1
    }
}
