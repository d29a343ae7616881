//! The cases that are measured.

use sluice_abi::{ForwardingMode, TCP, UDP};
use std::fmt;

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}

/// A transport protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// The virtual server of an instance.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct VirtualServer {
    /// How packets reach the servers.
    pub mode: ForwardingMode,
    /// Family of the VIP and of the servers.
    pub family: Family,
    /// Protocol of the VIP's port.
    pub protocol: Protocol,
}

impl VirtualServer {
    /// Every virtual server that is measured: TCP in each mode and family, UDP in TUN.
    pub fn all() -> Vec<Self> {
        let modes = [
            (ForwardingMode::Tun, Protocol::Tcp),
            (ForwardingMode::Tun, Protocol::Udp),
            (ForwardingMode::Dr, Protocol::Tcp),
            (ForwardingMode::Nat, Protocol::Tcp),
            (ForwardingMode::FullNat, Protocol::Tcp),
        ];
        let virtual_server = |family, (mode, protocol)| Self {
            mode,
            family,
            protocol,
        };
        Family::ALL
            .into_iter()
            .flat_map(|family| modes.map(|mode| virtual_server(family, mode)))
            .collect()
    }
}

/// The mode as the API spells it.
pub fn mode_name(mode: ForwardingMode) -> &'static str {
    match mode {
        ForwardingMode::Nat => "NAT",
        ForwardingMode::FullNat => "FullNAT",
        ForwardingMode::Dr => "DR",
        ForwardingMode::Tun => "TUN",
    }
}

/// Traffic of a case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Traffic {
    /// Packets of so many established flows (a power of two), each chosen at random.
    Hit(u32),
    /// Of each flow its SYN and the first ACK, once; the figure is their mean.
    NewFlow,
    /// No flow table at all: the ring decides on every packet.
    PureHash,
    /// A destination that is no VIP: the packet passes.
    NotAVip,
}

/// One line of the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Case {
    /// A program that only sends the frame back.
    FloorTx(Family),
    /// A program that adds a constant outer header.
    FloorEncapsulation(Family),
    /// The data plane.
    Sluice(VirtualServer, Traffic),
}

impl Case {
    /// Every case, each family's floors first; `hits` are the numbers of established flows.
    pub fn all(hits: &[u32]) -> Vec<Self> {
        let mut cases = Vec::new();
        for family in Family::ALL {
            cases.extend([Self::FloorTx(family), Self::FloorEncapsulation(family)]);
            for virtual_server in VirtualServer::all()
                .into_iter()
                .filter(|s| s.family == family)
            {
                let hits = hits.iter().map(|&flows| Traffic::Hit(flows));
                let traffic = hits.chain([Traffic::NewFlow, Traffic::PureHash, Traffic::NotAVip]);
                cases.extend(
                    traffic
                        .filter(|&traffic| Self::exists(virtual_server, traffic))
                        .map(|traffic| Self::Sluice(virtual_server, traffic)),
                );
            }
        }
        cases
    }

    /// FullNAT cannot do without a flow table, since a flow's replies need the port that it has claimed. UDP has no first
    /// ACK: its flows are confirmed by time.
    fn exists(virtual_server: VirtualServer, traffic: Traffic) -> bool {
        match traffic {
            Traffic::PureHash => virtual_server.mode != ForwardingMode::FullNat,
            Traffic::NewFlow => virtual_server.protocol == Protocol::Tcp,
            Traffic::Hit(_) | Traffic::NotAVip => true,
        }
    }

    /// The family of its frames.
    pub fn family(self) -> Family {
        match self {
            Self::FloorTx(family) | Self::FloorEncapsulation(family) => family,
            Self::Sluice(virtual_server, _) => virtual_server.family,
        }
    }

    /// The protocol of its frames.
    pub fn protocol(self) -> Protocol {
        match self {
            Self::FloorTx(_) | Self::FloorEncapsulation(_) => Protocol::Tcp,
            Self::Sluice(virtual_server, _) => virtual_server.protocol,
        }
    }

    /// Whether ratios are made of it.
    pub fn is_floor(self) -> bool {
        !matches!(self, Self::Sluice(..))
    }

    /// The name of its kind in the table and the JSON.
    pub fn kind(self) -> &'static str {
        match self {
            Self::FloorTx(_) => "floor_xdp_tx",
            Self::FloorEncapsulation(_) => "floor_encapsulation",
            Self::Sluice(_, Traffic::Hit(_)) => "hit",
            Self::Sluice(_, Traffic::NewFlow) => "new_flow",
            Self::Sluice(_, Traffic::PureHash) => "pure_hash",
            Self::Sluice(_, Traffic::NotAVip) => "not_a_vip",
        }
    }

    /// The forwarding mode; the floors have none.
    pub fn mode(self) -> &'static str {
        match self {
            Self::FloorTx(_) | Self::FloorEncapsulation(_) => "none",
            Self::Sluice(virtual_server, _) => mode_name(virtual_server.mode),
        }
    }
}

/// `kind/mode/family/protocol`, and the number of flows of a hit.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}/{}/{}",
            self.kind(),
            self.mode(),
            self.family(),
            self.protocol()
        )?;
        match self {
            Self::Sluice(_, Traffic::Hit(flows)) => write!(f, "/{flows}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_mode_and_family_has_its_cases() {
        let cases: Vec<String> = Case::all(&[1, 65_536])
            .iter()
            .map(Case::to_string)
            .collect();
        for mode in ["TUN", "DR", "NAT", "FullNAT"] {
            for family in Family::ALL {
                for case in ["hit", "new_flow", "not_a_vip"] {
                    let name = format!("{case}/{mode}/{family}/TCP");
                    assert!(cases.iter().any(|case| case.starts_with(&name)), "{name}");
                }
            }
        }
        assert!(cases.contains(&"hit/TUN/IPv6/UDP/65536".to_owned()));
        assert!(cases.contains(&"pure_hash/NAT/IPv4/TCP".to_owned()));
        assert!(cases.contains(&"floor_encapsulation/none/IPv6/TCP".to_owned()));
    }

    #[test]
    fn names_are_unique() {
        let cases = Case::all(&[1, 65_536, 1 << 20]);
        let names: BTreeSet<String> = cases.iter().map(Case::to_string).collect();
        assert_eq!(names.len(), cases.len());
    }
}
