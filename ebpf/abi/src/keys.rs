//! Keys that name one transport port of one address, and the word that a VIP port leads to.

/// An address, protocol and port; `A` is 4 or 16 bytes. Key of `VIPS*` (where clients connect) and of `REPLIES*` (where
/// replies come from).
///
/// In `VIPS*` the key with port 0 and protocol 0 marks the address itself as a VIP, so that packets to it which are no
/// virtual server's can be dropped by name instead of travelling on to a router that sends them back.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortKey<const A: usize> {
    /// Network byte order.
    pub addr: [u8; A],
    /// Network byte order.
    pub port: [u8; 2],
    /// [`crate::TCP`] or [`crate::UDP`].
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}
const _: () = assert!(size_of::<PortKey<4>>() == 8 && size_of::<PortKey<16>>() == 20);

/// Key of `LOCALS*`: a real server of a VIP port by the outer destination of a tunnel. The value is the server id as a `u32`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LocalKey<const A: usize> {
    /// The server's own address, network byte order.
    pub addr: [u8; A],
    /// Index of the VIP port, see [`VipWord::index`].
    pub index: u32,
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

/// Flag of a value of `PEER_NETS*`: what comes from these addresses, a director sends on its own behalf. They are its own
/// and those of pods behind it.
pub const NET_SENDS: u32 = 1;
/// Flag of a value of `PEER_NETS*`: a tunnel from these addresses may begin a flow. They are directors' own, or all.
pub const NET_TUNNELS: u32 = 2;

/// Key of `PEER_NETS*`, by longest prefix. The value is made of [`NET_SENDS`] and [`NET_TUNNELS`]. The layout is the kernel's
/// (`struct bpf_lpm_trie_key`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PrefixKey<const A: usize> {
    /// How many bits of `addr` count.
    pub length: u32,
    /// Network byte order.
    pub addr: [u8; A],
}
const _: () = assert!(size_of::<PrefixKey<4>>() == 8 && size_of::<PrefixKey<16>>() == 20);

/// A client's address and the source set that it is looked for in; of [`SourceKey`] what its length counts the bits of.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Source<const A: usize> {
    /// The set, as in [`crate::Head::source_set`].
    pub set: u32,
    /// Network byte order.
    pub addr: [u8; A],
}

/// Key of `SOURCES*`, by longest prefix: a block of clients' addresses that a set has. The value is 1. The layout is the kernel's
/// (`struct bpf_lpm_trie_key`). A set never changes: another list is another set.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SourceKey<const A: usize> {
    /// How many bits of `source` count: all of the set's, and those of the block's addresses.
    pub length: u32,
    /// The set, and one of the addresses.
    pub source: Source<A>,
}
const _: () = assert!(size_of::<SourceKey<4>>() == 12 && size_of::<SourceKey<16>>() == 24);

impl<const A: usize> SourceKey<A> {
    /// Bits of a set's id.
    pub const SET_BITS: u32 = u32::BITS;

    /// The block of a set that these addresses' first `length` bits make.
    pub const fn new(set: u32, addr: [u8; A], length: u32) -> Self {
        Self {
            length: Self::SET_BITS + length,
            source: Source { set, addr },
        }
    }
}

/// First index of real servers' ports in `REPLIES*`; those below are VIP ports.
pub const FIRST_REPLY_INDEX: u32 = 1 << 19;
/// Indices of VIP ports and of real servers' ports are below this.
pub const MOST_INDICES: u32 = 1 << 20;

/// Value of `VIPS*`: `index:20 | head slot:22 | RS-side head slot:22`, low bits first.
///
/// The *index* is a node-local number of this VIP port and part of every flow key (see [`crate::FarEnd`]). Indices below
/// [`FIRST_REPLY_INDEX`] are VIP ports, others are real servers' ports that replies come from (see `REPLIES*`); 0 is none.
/// Head slot 0 means none: a VIP port without a director head is not balanced here, one without an RS-side head has no
/// server on this node.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct VipWord(pub u64);

impl VipWord {
    /// Head slots are below this.
    pub const MOST_HEADS: u32 = 1 << 22;

    /// `head` and `rs_head` are slots of `HEADS` below [`Self::MOST_HEADS`].
    pub const fn new(index: u32, head: u32, rs_head: u32) -> Self {
        const HEAD: u64 = VipWord::MOST_HEADS as u64 - 1;
        Self(
            (index as u64 & (MOST_INDICES as u64 - 1))
                | ((head as u64 & HEAD) << 20)
                | ((rs_head as u64 & HEAD) << 42),
        )
    }
    /// The index of the VIP port.
    pub const fn index(self) -> u32 {
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
