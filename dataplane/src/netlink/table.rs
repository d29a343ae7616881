//! Links, addresses and neighbours as last heard of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourMessage,
    NeighbourState as Nud,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use sluice_planner::Mac;

use super::requests::NEIGHBOUR_PROTOCOL;
use crate::maps::Mode;

/// A network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its Ethernet address; `None` where there is none.
    pub mac: Option<Mac>,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Whether it is up and has a carrier.
    pub up: bool,
    /// Whether it is a loopback interface.
    pub loopback: bool,
    /// Whether it is a bridge.
    pub bridge: bool,
    /// How an XDP program is attached, if one is.
    pub xdp: Option<Mode>,
}

/// What is known of a neighbour's link-layer address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NeighbourState {
    /// Known.
    Valid,
    /// Asked for.
    Incomplete,
    /// The neighbour does not answer.
    Failed,
}

/// An entry of the kernel's neighbour tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Neighbour {
    /// What is known of it.
    pub state: NeighbourState,
    /// Its Ethernet address, where it is known.
    pub mac: Option<Mac>,
    /// Whether the kernel keeps it fresh by itself.
    pub managed: bool,
    /// Whether somebody else has set it for good.
    pub fixed: bool,
    /// Whether an agent registered it.
    pub ours: bool,
}

/// What a message changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// An interface.
    Link,
    /// An own address.
    Address,
    /// A neighbour.
    Neighbour,
    /// A route or routing rule.
    Route,
}

/// Links, addresses and neighbours.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Table {
    links: BTreeMap<u32, Link>,
    addresses: BTreeSet<(u32, IpAddr)>,
    neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
}

impl Table {
    /// Takes in a message, of a dump or of a change. Returns what it changed, if anything.
    pub fn apply(&mut self, message: &RouteNetlinkMessage) -> Option<Change> {
        match message {
            RouteNetlinkMessage::NewLink(message) => self.link(message, true),
            RouteNetlinkMessage::DelLink(message) => self.link(message, false),
            RouteNetlinkMessage::NewAddress(message) => self.address(message, true),
            RouteNetlinkMessage::DelAddress(message) => self.address(message, false),
            RouteNetlinkMessage::NewNeighbour(message) => self.neighbour(message, true),
            RouteNetlinkMessage::DelNeighbour(message) => self.neighbour(message, false),
            RouteNetlinkMessage::NewRoute(_)
            | RouteNetlinkMessage::DelRoute(_)
            | RouteNetlinkMessage::NewRule(_)
            | RouteNetlinkMessage::DelRule(_) => Some(Change::Route),
            _ => None,
        }
    }

    /// The interface with this index.
    pub fn link_by_index(&self, ifindex: u32) -> Option<&Link> {
        self.links.get(&ifindex)
    }

    /// The interface with this name, and its index.
    pub fn link_by_name(&self, name: &str) -> Option<(u32, &Link)> {
        self.links
            .iter()
            .find(|(_, link)| link.name == name)
            .map(|(&ifindex, link)| (ifindex, link))
    }

    /// Own addresses, those of loopback interfaces left out unless they are global.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.addresses
            .iter()
            .map(|&(_, address)| address)
            .filter(|address| !address.is_loopback())
            .collect()
    }

    /// The neighbour at an address beyond an interface.
    pub fn neighbour_at(&self, ifindex: u32, address: IpAddr) -> Option<&Neighbour> {
        self.neighbours.get(&(ifindex, address))
    }

    /// Neighbours that an agent registered.
    pub fn registered(&self) -> impl Iterator<Item = (u32, IpAddr)> {
        let ours = self.neighbours.iter().filter(|(_, entry)| entry.ours);
        ours.map(|(&key, _)| key)
    }

    fn link(&mut self, message: &LinkMessage, present: bool) -> Option<Change> {
        // Bridges tell of their ports in messages of their own family.
        if message.header.interface_family != AddressFamily::Unspec {
            return None;
        }
        let ifindex = message.header.index;
        if !present {
            self.addresses.retain(|&(index, _)| index != ifindex);
            self.neighbours.retain(|&(index, _), _| index != ifindex);
            return self.links.remove(&ifindex).map(|_| Change::Link);
        }
        let mut link = Link {
            name: String::new(),
            mac: None,
            mtu: 0,
            up: message
                .header
                .flags
                .contains(LinkFlags::Up | LinkFlags::LowerUp),
            loopback: message.header.flags.contains(LinkFlags::Loopback),
            bridge: false,
            xdp: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(bytes) => link.mac = mac(bytes),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::LinkInfo(info) => {
                    link.bridge = info.contains(&LinkInfo::Kind(InfoKind::Bridge));
                }
                LinkAttribute::Xdp(xdp) => link.xdp = xdp.iter().find_map(xdp_mode),
                _ => {}
            }
        }
        let before = self.links.insert(ifindex, link);
        (before.as_ref() != self.links.get(&ifindex)).then_some(Change::Link)
    }

    fn address(&mut self, message: &AddressMessage, present: bool) -> Option<Change> {
        // With a peer, `Address` is the peer's and `Local` ours.
        let local = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
        let address = local.or_else(|| {
            message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                })
        })?;
        let key = (message.header.index, address);
        let changed = if present {
            self.addresses.insert(key)
        } else {
            self.addresses.remove(&key)
        };
        changed.then_some(Change::Address)
    }

    fn neighbour(&mut self, message: &NeighbourMessage, present: bool) -> Option<Change> {
        let family = message.header.family;
        if family != AddressFamily::Inet && family != AddressFamily::Inet6 {
            return None;
        }
        let address = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                    Some(IpAddr::from(*address))
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                    Some(IpAddr::from(*address))
                }
                _ => None,
            })?;
        let key = (message.header.ifindex, address);
        if !present {
            return self.neighbours.remove(&key).map(|_| Change::Neighbour);
        }
        let entry = neighbour(message);
        (self.neighbours.insert(key, entry) != Some(entry)).then_some(Change::Neighbour)
    }
}

fn neighbour(message: &NeighbourMessage) -> Neighbour {
    let mut entry = Neighbour {
        state: match message.header.state {
            Nud::Reachable | Nud::Stale | Nud::Delay | Nud::Probe | Nud::Noarp | Nud::Permanent => {
                NeighbourState::Valid
            }
            Nud::Failed => NeighbourState::Failed,
            _ => NeighbourState::Incomplete,
        },
        mac: None,
        managed: false,
        fixed: matches!(message.header.state, Nud::Noarp | Nud::Permanent),
        ours: false,
    };
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => entry.mac = mac(bytes),
            NeighbourAttribute::ExtFlags(flags) => {
                entry.managed = flags.contains(NeighbourExtFlags::Managed);
            }
            NeighbourAttribute::Protocol(protocol) => {
                entry.ours = u8::from(*protocol) == NEIGHBOUR_PROTOCOL;
            }
            _ => {}
        }
    }
    entry
}

fn xdp_mode(xdp: &LinkXdp) -> Option<Mode> {
    match xdp {
        // Several programs at once are one in the driver beside one in the hardware.
        LinkXdp::Attached(XdpAttached::Driver | XdpAttached::Multiple) => Some(Mode::Native),
        LinkXdp::Attached(XdpAttached::SocketBuffer) => Some(Mode::Generic),
        _ => None,
    }
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    let mac = Mac(bytes.try_into().ok()?);
    (mac != Mac::default()).then_some(mac)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);

    fn link(ifindex: u32, name: &str, family: AddressFamily) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        message.header.interface_family = family;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
            LinkAttribute::Mtu(1500),
        ];
        message
    }

    fn neighbour(state: Nud) -> RouteNetlinkMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = 2;
        message.header.state = state;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(SERVER)),
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 7]),
        ];
        RouteNetlinkMessage::NewNeighbour(message)
    }

    #[test]
    fn a_port_that_leaves_its_bridge_is_not_gone() {
        let mut table = Table::default();
        let new = RouteNetlinkMessage::NewLink(link(2, "eth0", AddressFamily::Unspec));
        assert_eq!(table.apply(&new), Some(Change::Link));
        assert_eq!(table.apply(&new), None);
        let left = RouteNetlinkMessage::DelLink(link(2, "eth0", AddressFamily::Bridge));
        assert_eq!(table.apply(&left), None);
        assert!(table.link_by_name("eth0").is_some());
    }

    #[test]
    fn what_is_beyond_a_link_goes_with_it() {
        let mut table = Table::default();
        table.apply(&RouteNetlinkMessage::NewLink(link(
            2,
            "eth0",
            AddressFamily::Unspec,
        )));
        table.apply(&neighbour(Nud::Reachable));
        assert!(table.neighbour_at(2, SERVER.into()).is_some());
        let gone = RouteNetlinkMessage::DelLink(link(2, "eth0", AddressFamily::Unspec));
        assert_eq!(table.apply(&gone), Some(Change::Link));
        assert!(table.neighbour_at(2, SERVER.into()).is_none());
    }

    #[test]
    fn neighbours_are_valid_in_every_state_with_an_address() {
        let mut table = Table::default();
        for (nud, state) in [
            (Nud::Reachable, NeighbourState::Valid),
            (Nud::Stale, NeighbourState::Valid),
            (Nud::Probe, NeighbourState::Valid),
            (Nud::Incomplete, NeighbourState::Incomplete),
            (Nud::None, NeighbourState::Incomplete),
            (Nud::Failed, NeighbourState::Failed),
        ] {
            table.apply(&neighbour(nud));
            let entry = table.neighbour_at(2, SERVER.into()).unwrap();
            assert_eq!(entry.state, state, "{nud}");
        }
    }
}
