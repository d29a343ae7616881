//! One real server as a packet meets it.

/// How packets reach the real servers of a virtual server. Stored as `u8`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum ForwardingMode {
    /// Destination address and port rewritten; replies come back through the director.
    Nat = 1,
    /// Both rewritten; replies come back to the director's own address.
    FullNat = 2,
    /// Both MAC addresses rewritten, nothing above.
    Dr = 3,
    /// IP in IP.
    Tun = 4,
}

impl ForwardingMode {
    /// The mode stored as `value`.
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Nat),
            2 => Some(Self::FullNat),
            3 => Some(Self::Dr),
            4 => Some(Self::Tun),
            _ => None,
        }
    }
}

/// Which hook delivers to a server. Stored in two bits of [`ServerWord`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Path {
    /// XDP sends the frame with the record's MAC addresses.
    Xdp = 0,
    /// XDP passes the packet unchanged; tc ingress rewrites it and lets the stack's neighbour table deliver
    /// (`bpf_redirect_neigh`): servers behind a bridge or overlay.
    Tc = 1,
    /// The server's address is this node's own: the destination is rewritten and the packet passed up; tc egress
    /// restores the VIP in replies.
    Local = 2,
    /// The next hop is not known: packets are dropped by name until it is.
    Unresolved = 3,
}

/// Value of `SERVERS` by server id: `record slot:24 | epoch:8 | path:2 | draining:1 | present:1 | resets:1 | sampled:1`, low bits
/// first. Id 0 is never used.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ServerWord(pub u64);

impl ServerWord {
    const DRAINING: u64 = 1 << 34;
    const PRESENT: u64 = 1 << 35;
    const RESETS: u64 = 1 << 36;
    const SAMPLED: u64 = 1 << 37;

    /// A present server. `slot` is an index into `RECORDS` below 2^24.
    pub const fn new(slot: u32, epoch: u8, path: Path, draining: bool) -> Self {
        let drain = if draining { Self::DRAINING } else { 0 };
        Self(
            (slot as u64 & 0xff_ffff)
                | ((epoch as u64) << 24)
                | ((path as u64) << 32)
                | drain
                | Self::PRESENT,
        )
    }
    /// This word, of a server whose TCP connections are reset, or not.
    #[must_use]
    pub const fn resetting(self, resets: bool) -> Self {
        self.with(Self::RESETS, resets)
    }
    /// This word, of a server to which connections are sampled, or not.
    #[must_use]
    pub const fn sampling(self, sampled: bool) -> Self {
        self.with(Self::SAMPLED, sampled)
    }
    const fn with(self, bit: u64, is_set: bool) -> Self {
        Self(if is_set { self.0 | bit } else { self.0 & !bit })
    }
    /// The word of an id that is free and was last used in `epoch`.
    pub const fn absent(epoch: u8) -> Self {
        Self((epoch as u64) << 24)
    }
    /// Index into `RECORDS`.
    pub const fn slot(self) -> u32 {
        self.0 as u32 & 0xff_ffff
    }
    /// Reuse counter of this id: a flow entry with another epoch belongs to an earlier server.
    pub const fn epoch(self) -> u8 {
        (self.0 >> 24) as u8
    }
    /// Which hook delivers.
    pub const fn path(self) -> Path {
        match (self.0 >> 32) & 3 {
            0 => Path::Xdp,
            1 => Path::Tc,
            2 => Path::Local,
            _ => Path::Unresolved,
        }
    }
    /// Whether a connection attempt on an old flow entry chooses anew.
    pub const fn draining(self) -> bool {
        self.0 & Self::DRAINING != 0
    }
    /// Whether a client's next packet of a TCP connection is answered by a reset.
    pub const fn resets(self) -> bool {
        self.0 & Self::RESETS != 0
    }
    /// Whether connections to it are sampled where its answers are seen.
    pub const fn is_sampled(self) -> bool {
        self.0 & Self::SAMPLED != 0
    }
    /// Whether the id is in use.
    pub const fn present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }
}

/// Slot of `RECORDS`: one real server as one virtual server reaches it, one cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct ServerRecord {
    /// The server's address; an IPv4 address fills the first 4 bytes, the rest is zero.
    pub addr: [u8; 16],
    /// By mode: the VIP (NAT, and every mode with [`Path::Local`]), the director's own address that replies come to
    /// (FullNAT), the outer source (TUN); zero for DR.
    pub alt: [u8; 16],
    /// Destination MAC address of the next hop ([`Path::Xdp`]).
    pub next_hop_mac: [u8; 6],
    /// MAC address of the interface that leads there.
    pub source_mac: [u8; 6],
    /// Interface that leads there.
    pub ifindex: u32,
    /// Port on the server, network byte order; the virtual server's own port for DR and TUN between nodes.
    pub port: [u8; 2],
    /// Port of the virtual server, network byte order.
    pub vip_port: [u8; 2],
    /// Hash of the pool's name: tells the agent after a restart whose record this is. Packets do not read it.
    pub tag: u32,
    /// Everything else, in one word.
    pub facts: ServerFacts,
}
const _: () = assert!(size_of::<ServerRecord>() == 64 && align_of::<ServerRecord>() == 64);

/// The numbers of a [`ServerRecord`]: `index:20 | reply index:20 | mode:4 | IPv6:1 | spare:3 | mtu:16`, low bits first.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ServerFacts(pub u64);

impl ServerFacts {
    const IPV6: u64 = 1 << 44;

    /// See the methods of the same names.
    pub const fn new(index: u32, reply_index: u32, mode: ForwardingMode, is_ipv6: bool) -> Self {
        const MASK: u64 = crate::MOST_INDICES as u64 - 1;
        Self(
            (index as u64 & MASK)
                | ((reply_index as u64 & MASK) << 20)
                | ((mode as u64) << 40)
                | if is_ipv6 { Self::IPV6 } else { 0 },
        )
    }
    /// The same with this [`Self::mtu`].
    #[must_use]
    pub const fn with_mtu(self, mtu: u16) -> Self {
        Self((self.0 & 0xffff_ffff_ffff) | ((mtu as u64) << 48))
    }
    /// Index of the VIP port.
    pub const fn index(self) -> u32 {
        self.0 as u32 & (crate::MOST_INDICES - 1)
    }
    /// Index of the server's own port in `REPLIES*` where replies must be rewritten (NAT and [`Path::Local`]);
    /// 0 = none.
    pub const fn reply_index(self) -> u32 {
        (self.0 >> 20) as u32 & (crate::MOST_INDICES - 1)
    }
    /// How packets reach the server; `None` if no known mode is stored.
    pub const fn mode(self) -> Option<ForwardingMode> {
        ForwardingMode::from_u8((self.0 >> 40) as u8 & 15)
    }
    /// Whether the server's address is IPv6.
    pub const fn is_ipv6(self) -> bool {
        self.0 & Self::IPV6 != 0
    }
    /// Largest IP packet, in bytes, that the way to the next hop carries.
    pub const fn mtu(self) -> u16 {
        (self.0 >> 48) as u16
    }
}

/// Value of `COUNTERS` by server id, per CPU.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ServerCounters {
    /// Packets from clients that were sent to the server.
    pub packets: u64,
    /// IP bytes of those packets as they came from the client.
    pub bytes: u64,
    /// New flows that were given to the server.
    pub flows: u64,
    /// Packets from the server whose source was restored to the VIP.
    pub reply_packets: u64,
    /// IP bytes of those packets.
    pub reply_bytes: u64,
}
const _: () = assert!(size_of::<ServerCounters>() == 40);
