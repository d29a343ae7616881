//! Map names and the words of `CONFIG`.

/// The maps, by the name under which the object declares and the agent pins them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum MapName {
    /// Array of `u64` by [`ConfigWord`].
    Config,
    /// Hash [`crate::PortKey<4>`] → [`crate::VipWord`].
    Vips4,
    /// Hash [`crate::PortKey<16>`] → [`crate::VipWord`].
    Vips6,
    /// Hash [`crate::PortKey<4>`] → `u32` index of the real server's port that replies come from.
    Replies4,
    /// Hash [`crate::PortKey<16>`] → `u32` index of the real server's port that replies come from.
    Replies6,
    /// Hash [`crate::LocalKey<4>`] → `u32` server id.
    Locals4,
    /// Hash [`crate::LocalKey<16>`] → `u32` server id.
    Locals6,
    /// Hash [`crate::MacKey`] → `u32`.
    Peers,
    /// Array of `u64`: own addresses, and a filter of the other directors'; see [`crate::own_mac`].
    Macs,
    /// Longest prefix [`crate::PrefixKey<4>`] → `u32`.
    PeerNets4,
    /// Longest prefix [`crate::PrefixKey<16>`] → `u32`.
    PeerNets6,
    /// Longest prefix [`crate::SourceKey<4>`] → `u32`.
    Sources4,
    /// Longest prefix [`crate::SourceKey<16>`] → `u32`.
    Sources6,
    /// Array of [`crate::NextHopWord`].
    NextHops,
    /// Array of [`crate::Head`].
    Heads,
    /// Array of [`crate::RingWord`].
    Rings,
    /// Array of `[u32; 2]`: the server ids of two neighbouring slots.
    RingSlots,
    /// Array of [`crate::ServerWord`].
    Servers,
    /// Array of [`crate::ServerRecord`].
    Records,
    /// Array of IPv4 buckets of established flows.
    Flows4,
    /// Array of IPv6 buckets of established flows.
    Flows6,
    /// Array of IPv4 buckets of half-open flows.
    Half4,
    /// Array of IPv6 buckets of half-open flows.
    Half6,
    /// Array of [`crate::claim_words`] words: claims of IPv4 ports.
    FullNat4,
    /// Array of [`crate::claim_words`] words: claims of IPv6 ports.
    FullNat6,
    /// Array of `u64` by the lowest 16 bits of a VIP port's index: when its new FullNAT flows have used up their share of the ports,
    /// in nanoseconds of the monotonic clock.
    NewFlows,
    /// Hash [`crate::AnnouncedKey<4>`] → [`crate::AnnouncedWord`].
    Announced4,
    /// Hash [`crate::AnnouncedKey<16>`] → [`crate::AnnouncedWord`].
    Announced6,
    /// Array of [`crate::GROUP_WORDS`] words by the index of a VIP group.
    Groups,
    /// Array of slots of [`crate::SAMPLE_WORDS`] words.
    Samples,
    /// Per-CPU array of [`crate::ServerCounters`] by server id.
    Counters,
    /// Per-CPU array of `u64` by [`crate::DropReason`].
    Drops,
    /// Per-CPU array of `u64` by [`crate::Stat`].
    Stats,
}

impl MapName {
    /// All of them.
    pub const ALL: [Self; 33] = [
        Self::Config,
        Self::Vips4,
        Self::Vips6,
        Self::Replies4,
        Self::Replies6,
        Self::Locals4,
        Self::Locals6,
        Self::Peers,
        Self::Macs,
        Self::PeerNets4,
        Self::PeerNets6,
        Self::Sources4,
        Self::Sources6,
        Self::NextHops,
        Self::Heads,
        Self::Rings,
        Self::RingSlots,
        Self::Servers,
        Self::Records,
        Self::Flows4,
        Self::Flows6,
        Self::Half4,
        Self::Half6,
        Self::FullNat4,
        Self::FullNat6,
        Self::NewFlows,
        Self::Announced4,
        Self::Announced6,
        Self::Groups,
        Self::Samples,
        Self::Counters,
        Self::Drops,
        Self::Stats,
    ];

    /// The name in the object and under the pin directory; at most 15 bytes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "CONFIG",
            Self::Vips4 => "VIPS4",
            Self::Vips6 => "VIPS6",
            Self::Replies4 => "REPLIES4",
            Self::Replies6 => "REPLIES6",
            Self::Locals4 => "LOCALS4",
            Self::Locals6 => "LOCALS6",
            Self::Peers => "PEERS",
            Self::Macs => "MACS",
            Self::PeerNets4 => "PEER_NETS4",
            Self::PeerNets6 => "PEER_NETS6",
            Self::Sources4 => "SOURCES4",
            Self::Sources6 => "SOURCES6",
            Self::NextHops => "NEXT_HOPS",
            Self::Heads => "HEADS",
            Self::Rings => "RINGS",
            Self::RingSlots => "RING_SLOTS",
            Self::Servers => "SERVERS",
            Self::Records => "RECORDS",
            Self::Flows4 => "FLOWS4",
            Self::Flows6 => "FLOWS6",
            Self::Half4 => "HALF4",
            Self::Half6 => "HALF6",
            Self::FullNat4 => "FULLNAT4",
            Self::FullNat6 => "FULLNAT6",
            Self::NewFlows => "NEW_FLOWS",
            Self::Announced4 => "ANNOUNCED4",
            Self::Announced6 => "ANNOUNCED6",
            Self::Groups => "GROUPS",
            Self::Samples => "SAMPLES",
            Self::Counters => "COUNTERS",
            Self::Drops => "DROPS",
            Self::Stats => "STATS",
        }
    }
}

/// Index into `CONFIG`: words that the agent sets before it attaches, unless noted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum ConfigWord {
    /// [`crate::ABI_VERSION`] of whoever made the maps.
    AbiVersion = 0,
    /// Secret seed of the flow tables' bucket hash; stays as long as the tables do.
    FlowSeed = 1,
    /// Nanoseconds between the new flows of a VIP port that may claim FullNAT ports in the long run; a flow that is confirmed
    /// does not count.
    NewFlowInterval = 2,
    /// Always 0; see `Packet::unknown_zero` of sluice-packet.
    Zero = 4,
    /// Clock in nanoseconds, for tests (`TEST_HOOKS`).
    TestClock = 5,
    /// Random number, for tests (`TEST_HOOKS`).
    TestRandom = 6,
    /// [`crate::Timeouts`] of the states 0 to 3.
    HalfOpenTimeouts = 7,
    /// [`crate::Timeouts`] of the states 4 to 7.
    EstablishedTimeouts = 8,
    /// Age, in the units of [`crate::NextHopWord::age`], at which the stack sends the next reply to a next hop; 0 = never.
    NextHopRefresh = 9,
    /// The kernel's id of the XDP program whose refused redirects are counted.
    XdpProgram = 10,
}

/// Number of words in `CONFIG`. Those that no [`ConfigWord`] names are 0 and room for more.
pub const CONFIG_WORDS: u32 = 32;
