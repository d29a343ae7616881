//! The packet tables. Expected frames are written down by what the RFCs and the forwarding modes demand, and their
//! checksums are computed from scratch: nothing here asks the code under test.

mod announce;
mod checksums;
mod drops;
mod flows;
mod frames;
mod fullnat;
mod modes;
mod paths;
mod refused;
mod samples;
mod sources;
mod tags;
mod ways_back;

use std::net::{IpAddr, SocketAddr};

use sluice_abi::{FULLNAT_PORT_MIN, ForwardingMode, TCP, UDP};

use super::{
    case::Case,
    frame::{DIRECTOR_MAC, Frame, SERVER_MAC, SYN, tcp, udp},
};

pub use announce::cases as announce;
pub use checksums::cases as checksums;
pub use drops::cases as drops;
pub use flows::cases as flows;
pub use frames::cases as frames;
pub use fullnat::cases as fullnat;
pub use modes::cases as modes;
pub use paths::cases as paths;
pub use refused::cases as refused;
pub use samples::cases as samples;
pub use sources::cases as sources;
pub use tags::cases as tags;
pub use ways_back::cases as ways_back;

/// All packet tables.
pub fn all() -> Vec<Case> {
    let tables = [
        modes(),
        checksums(),
        drops(),
        flows(),
        frames(),
        fullnat(),
        paths(),
        refused(),
        samples(),
        sources(),
        tags(),
        ways_back(),
        announce(),
    ];
    tables.into_iter().flatten().collect()
}

/// The addresses of one family's cases.
#[derive(Clone, Copy)]
struct Net {
    family: &'static str,
    client: SocketAddr,
    other_client: SocketAddr,
    vip: SocketAddr,
    /// A second virtual server.
    other_vip: SocketAddr,
    server: SocketAddr,
    other_server: SocketAddr,
    /// The director's own address.
    own: IpAddr,
}

/// Both families.
fn nets() -> [Net; 2] {
    let address = |text: &str| -> SocketAddr { text.parse().expect("a literal address") };
    [
        Net {
            family: "IPv4",
            client: address("198.51.100.7:40001"),
            other_client: address("198.51.100.8:40002"),
            vip: address("203.0.113.10:80"),
            other_vip: address("203.0.113.11:80"),
            server: address("10.0.0.5:8080"),
            other_server: address("10.0.0.6:8081"),
            own: address("10.0.0.1:0").ip(),
        },
        Net {
            family: "IPv6",
            client: address("[2001:db8:1::7]:40001"),
            other_client: address("[2001:db8:1::8]:40002"),
            vip: address("[2001:db8:2::10]:80"),
            other_vip: address("[2001:db8:2::11]:80"),
            server: address("[fd00::5]:8080"),
            other_server: address("[fd00::6]:8081"),
            own: address("[fd00::1]:0").ip(),
        },
    ]
}

/// The transport protocols with their names.
const PROTOCOLS: [(u8, &str); 2] = [(TCP, "TCP"), (UDP, "UDP")];

/// The forwarding modes.
const MODES: [ForwardingMode; 4] = [
    ForwardingMode::Nat,
    ForwardingMode::FullNat,
    ForwardingMode::Dr,
    ForwardingMode::Tun,
];

/// The first packet of a flow from `client`.
fn first(client: SocketAddr, vip: SocketAddr, protocol: u8) -> Frame {
    if protocol == TCP {
        tcp(client, vip, SYN)
    } else {
        udp(client, vip)
    }
}

/// As the director sends a forwarded packet: its own MAC address as source, TTL one less.
fn forwarded(frame: &Frame) -> Frame {
    let ttl = frame.ip.ttl - 1;
    frame.clone().macs(DIRECTOR_MAC, SERVER_MAC).ttl(ttl)
}

/// A client's packet as the server gets it, checksums computed anew.
fn at_server(net: &Net, mode: ForwardingMode, frame: &Frame) -> Frame {
    let forwarded = forwarded(frame);
    match mode {
        ForwardingMode::Nat => forwarded.to(net.server),
        ForwardingMode::FullNat => {
            // A random number of 0 chooses the first port of the range.
            let own = SocketAddr::new(net.own, FULLNAT_PORT_MIN);
            forwarded.to(net.server).from(own)
        }
        ForwardingMode::Dr => forwarded,
        ForwardingMode::Tun => forwarded.wrapped(net.own, net.server.ip()),
    }
}
