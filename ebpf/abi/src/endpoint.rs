//! Keys that name one transport endpoint, and what a virtual server's endpoint leads to.

/// An address, protocol and port; `A` is 4 or 16 bytes. Key of `VIPS*` (where clients connect) and of `BACKENDS*` (where
/// replies come from).
///
/// In `VIPS*` the key with port 0 and protocol 0 marks the address itself as a VIP, so that packets to it which are no
/// virtual server's can be dropped by name instead of travelling on to a router that sends them back.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EndpointKey<const A: usize> {
    /// Network byte order.
    pub addr: [u8; A],
    /// Network byte order.
    pub port: [u8; 2],
    /// [`crate::TCP`] or [`crate::UDP`].
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}
const _: () = assert!(size_of::<EndpointKey<4>>() == 8 && size_of::<EndpointKey<16>>() == 20);

/// Key of `LOCALS*`: a server of a service by the outer destination of a tunnel. The value is the server id as a `u32`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LocalKey<const A: usize> {
    /// The server's own address, network byte order.
    pub addr: [u8; A],
    /// Service index, see [`VipWord::service`].
    pub service: u32,
}
const _: () = assert!(size_of::<LocalKey<4>>() == 8 && size_of::<LocalKey<16>>() == 20);

/// Key of `PEERS`: the MAC address of another director. The value is 1.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MacKey {
    /// The Ethernet address.
    pub mac: [u8; 6],
    /// Zero.
    pub pad: [u8; 2],
}
const _: () = assert!(size_of::<MacKey>() == 8);

/// First service index of backends; those below are virtual servers' endpoints.
pub const FIRST_BACKEND: u32 = 1 << 19;
/// Service indices are below this.
pub const MOST_INDICES: u32 = 1 << 20;

/// Value of `VIPS*`: `service:20 | head slot:22 | RS-side head slot:22`, low bits first.
///
/// The *service index* is a node-local number of this endpoint and part of every flow key (see [`crate::FarEnd`]). Indices below
/// [`FIRST_BACKEND`] are virtual servers' endpoints, others are backends (see `BACKENDS*`); 0 is none.
/// Head slot 0 means none: an endpoint without a director head is not balanced here, one without an RS-side head has no
/// server on this node.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct VipWord(pub u64);

impl VipWord {
    /// Head slots are below this.
    pub const MOST_HEADS: u32 = 1 << 22;

    /// `head` and `rs_head` are slots of `HEADS` below [`Self::MOST_HEADS`].
    pub const fn new(service: u32, head: u32, rs_head: u32) -> Self {
        const HEAD: u64 = VipWord::MOST_HEADS as u64 - 1;
        Self(
            (service as u64 & (MOST_INDICES as u64 - 1))
                | ((head as u64 & HEAD) << 20)
                | ((rs_head as u64 & HEAD) << 42),
        )
    }
    /// The service index.
    pub const fn service(self) -> u32 {
        self.0 as u32 & (MOST_INDICES - 1)
    }
    /// Slot of the head by which a director balances; 0 = none.
    pub const fn head(self) -> u32 {
        (self.0 >> 20) as u32 & (Self::MOST_HEADS - 1)
    }
    /// Slot of the head that names this node's own servers for packets another director sent here; 0 = none.
    pub const fn rs_head(self) -> u32 {
        (self.0 >> 42) as u32
    }
}
