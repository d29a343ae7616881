//! Why packets are dropped, and what else the data plane counts.

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[doc = $description:literal])* $variant:ident = $value:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u32)]
        pub enum $name { $($(#[doc = $description])* $variant = $value,)* }

        impl $name {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name used in metrics and documentation.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            /// Its meaning in a sentence: the variant's documentation.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => concat!($($description),*).trim_ascii()),* }
            }
        }
    };
}

/// Entries of `DROPS`: more than there are reasons, so that a new one changes no map.
pub const MOST_DROP_REASONS: u32 = 64;
/// Entries of `STATS`, alike.
pub const MOST_STATS: u32 = 64;

const _: () = {
    let mut i = 0;
    while i < DropReason::ALL.len() {
        assert!((DropReason::ALL[i] as u32) < MOST_DROP_REASONS);
        i += 1;
    }
    let mut i = 0;
    while i < Stat::ALL.len() {
        assert!((Stat::ALL[i] as u32) < MOST_STATS);
        i += 1;
    }
};

counters! {
    /// Why a packet was dropped; index into `DROPS`.
    DropReason {
        /// The frame ends before the headers do.
        Truncated = 1, "truncated";
        /// A fragment to a virtual server: fragments carry no ports.
        Fragment = 3, "fragment";
        /// TTL or hop limit would reach 0.
        TtlExceeded = 4, "ttl_exceeded";
        /// No pool of the virtual server has a server that takes new flows.
        NoServer = 5, "no_server";
        /// A ring or flow named a server id that is not in use.
        ServerGone = 6, "server_gone";
        /// The next hop towards the chosen server is not known.
        NextHopUnresolved = 7, "next_hop_unresolved";
        /// No room before the frame for the outer header.
        NoHeadroom = 8, "no_headroom";
        /// The packet with its outer header exceeds the MTU of the way to the server.
        TooBig = 9, "too_big";
        /// NAT: the client's port is in use towards every candidate server through another virtual server.
        PortInUse = 10, "port_in_use";
        /// FullNAT: no free source port was found.
        NoPort = 11, "no_port";
        /// FullNAT: half-open flows hold the virtual server's whole share of the ports.
        HalfOpenLimit = 12, "half_open_limit";
        /// A packet to a virtual server came by a tunnel or from another director, but no server of it is on this node.
        NotMyServer = 13, "not_my_server";
        /// The tables contradict the packet, such as servers of the other address family.
        BadTable = 14, "bad_table";
        /// There is no route back to the client.
        NoRoute = 15, "no_route";
        /// A packet to a VIP at a port or protocol that no virtual server has.
        NoVirtualServer = 16, "no_service";
        /// A tunnel marked congestion on a packet whose ends do not understand the mark (RFC 6040).
        NotEcnCapable = 17, "not_ecn_capable";
        /// FullNAT: a TCP packet that opens no connection, and of none that is known.
        NoFlow = 18, "no_flow";
        /// The device out does not take the packet from XDP, or is down. Counted while an agent runs.
        RedirectRefused = 19, "redirect_refused";
        /// A tunnel to a server of this node from an address that is no director's, with a packet of no known flow.
        TunnelSource = 20, "tunnel_source";
        /// An ARP request or a neighbour solicitation for an address whose VIP group another node holds, or none.
        VipNotArmed = 21, "vip_not_armed";
        /// This node's stack sent ARP or neighbour discovery in the name of an address whose VIP group it does not hold.
        AnnouncementNotArmed = 22, "announcement_not_armed";
        /// A packet of no known flow from a client that the virtual server takes no flows of.
        SourceNotAllowed = 23, "source_not_allowed";
    }
}

counters! {
    /// Events that the data plane counts beside drops; index into `STATS`.
    Stat {
        /// A half-open entry was made.
        HalfOpen = 0, "half_open";
        /// A half-open flow was confirmed and moved into the flow table.
        Promoted = 1, "promoted";
        /// A live half-open entry gave way to a newer one.
        HalfOpenEvicted = 2, "half_open_evicted";
        /// A live flow table entry gave way to a newer one.
        FlowEvicted = 3, "flow_evicted";
        /// No entry could be made: the ring alone served the packet.
        Stateless = 4, "stateless";
        /// A FullNAT port was claimed.
        PortClaimed = 5, "port_claimed";
        /// A packet to or from a virtual server was handed to the stack for delivery.
        ToStack = 6, "to_stack";
        /// A tunnelled packet was unwrapped.
        Unwrapped = 7, "unwrapped";
        /// An ARP request or a neighbour solicitation for a VIP was answered.
        Answered = 8, "answered";
        /// A client was told that no server takes its flow, or takes it any more.
        Refused = 9, "refused";
    }
}
