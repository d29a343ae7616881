//! Links, addresses and neighbours as last heard of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourMessage,
    NeighbourState as Nud,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use sluice_planner::Mac;

use super::prefix::Prefix;
use crate::maps::Mode;

/// Marks neighbours and multicast addresses as made by an agent, so that a later one finds those that are not needed any more. An
/// unassigned number of `rtm_protocol` and of IFA_PROTO.
pub(super) const NEIGHBOUR_PROTOCOL: u8 = 0x5c;

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
    /// The packets that it carries.
    pub medium: Medium,
    /// Whether it is a bridge.
    pub bridge: bool,
    /// The interface of this node that it is on top of: it gets the frames to its own Ethernet address from there.
    pub lower: Option<u32>,
    /// The bridge or bond that it is a port of.
    pub master: Option<u32>,
    /// How an XDP program is attached, if one is.
    pub xdp: Option<Mode>,
}

/// The packets that an interface carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Medium {
    /// Those of the node to itself.
    Loopback,
    /// Ethernet frames.
    Ethernet,
    /// Packets without Ethernet headers, as tunnels do.
    Other,
}

/// The state of a neighbour's link-layer address.
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
    /// The state of its link-layer address.
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

/// The change that a message tells of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// An interface. Of routes, those through it may have gone with it.
    Link(u32),
    /// An interface that was up before is up again: routes through it that were passed over are taken again, and the kernel
    /// tells of none.
    LinkBack,
    /// A link-local address of an interface.
    LinkAddress(u32),
    /// An own address. It may be the source of any route.
    Address,
    /// A neighbour beyond an interface.
    Neighbour(u32, IpAddr),
    /// A route to the addresses within a prefix.
    Route(Prefix),
    /// A routing rule, or a route that cannot be read.
    Routes,
}

/// Links, addresses and neighbours.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Table {
    links: BTreeMap<u32, Link>,
    /// Interfaces that have been up, as far as is known.
    once_up: BTreeSet<u32>,
    /// Own addresses by interface, each with the length of its subnet's prefix.
    addresses: BTreeMap<(u32, IpAddr), u8>,
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
            RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) => {
                Some(prefix(message).map_or(Change::Routes, Change::Route))
            }
            RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => {
                Some(Change::Routes)
            }
            _ => None,
        }
    }

    /// Notes that nothing is known of the time before: any of the interfaces may have been up.
    pub(super) fn begin(&mut self) {
        self.once_up = self.links.keys().copied().collect();
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

    /// The Ethernet addresses by which frames that come by an interface are for this node: its own, and those of interfaces
    /// on top of it and of the bridge or bond that it is a port of.
    pub fn macs_of(&self, ifindex: u32) -> BTreeSet<Mac> {
        let stack = self.stacked_on([ifindex]);
        let links = stack.iter().filter_map(|ifindex| self.links.get(ifindex));
        links.filter_map(|link| link.mac).collect()
    }

    /// Addresses of these interfaces, 127.0.0.0/8 and ::1 left out.
    pub fn addresses(&self, interfaces: &BTreeSet<u32>) -> BTreeSet<IpAddr> {
        let addresses = self.addresses.keys();
        addresses
            .filter(|(ifindex, address)| interfaces.contains(ifindex) && !address.is_loopback())
            .map(|&(_, address)| address)
            .collect()
    }

    /// The subnets of these interfaces, link-local ones left out.
    pub fn subnets(&self, interfaces: &BTreeSet<u32>) -> Vec<Prefix> {
        let addresses = self.addresses.iter();
        addresses
            .filter(|((ifindex, address), _)| {
                interfaces.contains(ifindex) && !is_link_local(*address)
            })
            .map(|(&(_, address), &length)| Prefix::new(address, length))
            .collect()
    }

    /// These interfaces, those on top of them, and the bridges and bonds that they are ports of.
    pub fn stacked_on(&self, interfaces: impl IntoIterator<Item = u32>) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        let mut next: Vec<u32> = interfaces.into_iter().collect();
        while let Some(ifindex) = next.pop() {
            let Some(link) = self.links.get(&ifindex) else {
                continue;
            };
            if !found.insert(ifindex) {
                continue;
            }
            next.extend(link.master);
            let above = self.links.iter();
            let above = above.filter(|(_, link)| link.lower == Some(ifindex));
            next.extend(above.map(|(&ifindex, _)| ifindex));
        }
        found
    }

    /// The loopback interfaces.
    pub fn loopbacks(&self) -> impl Iterator<Item = u32> {
        let loopbacks = self.links.iter();
        let loopbacks = loopbacks.filter(|(_, link)| link.medium == Medium::Loopback);
        loopbacks.map(|(&ifindex, _)| ifindex)
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
            self.addresses.retain(|&(index, _), _| index != ifindex);
            self.neighbours.retain(|&(index, _), _| index != ifindex);
            self.once_up.remove(&ifindex);
            let gone = self.links.remove(&ifindex);
            return gone.map(|_| Change::Link(ifindex));
        }
        let mut link = Link {
            name: String::new(),
            mac: None,
            mtu: 0,
            up: message
                .header
                .flags
                .contains(LinkFlags::Up | LinkFlags::LowerUp),
            medium: medium(message),
            bridge: false,
            lower: None,
            master: None,
            xdp: None,
        };
        let mut below = None;
        let mut stacked = false;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(bytes) => link.mac = mac(bytes),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::LinkInfo(info) => {
                    link.bridge = info.contains(&LinkInfo::Kind(InfoKind::Bridge));
                    stacked = info.iter().any(is_stacked);
                }
                LinkAttribute::Link(ifindex) => below = Some(*ifindex),
                LinkAttribute::Controller(ifindex) => link.master = Some(*ifindex),
                LinkAttribute::Xdp(xdp) => link.xdp = xdp.iter().find_map(xdp_mode),
                _ => {}
            }
        }
        // Of a veth it is the other end, of a tunnel the interface below.
        link.lower = below.filter(|_| stacked);
        let up = link.up;
        let before = self.links.insert(ifindex, link);
        if before.as_ref() == self.links.get(&ifindex) {
            return None;
        }
        let was_up = before.is_some_and(|link| link.up);
        // Routes through an interface are made while it is up, and the kernel tells of each.
        let first_time = up && self.once_up.insert(ifindex);
        if up && !was_up && !first_time {
            return Some(Change::LinkBack);
        }
        Some(Change::Link(ifindex))
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
        // A group that is joined is nobody's own address.
        if address.is_multicast() {
            return None;
        }
        let ifindex = message.header.index;
        let changed = if present {
            let length = message.header.prefix_len;
            self.addresses.insert((ifindex, address), length) != Some(length)
        } else {
            self.addresses.remove(&(ifindex, address)).is_some()
        };
        let change = if is_link_local(address) {
            Change::LinkAddress(ifindex)
        } else {
            Change::Address
        };
        changed.then_some(change)
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
            let gone = self.neighbours.remove(&key);
            return gone.map(|_| Change::Neighbour(key.0, key.1));
        }
        let entry = neighbour(message);
        let before = self.neighbours.insert(key, entry);
        (before != Some(entry)).then_some(Change::Neighbour(key.0, key.1))
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn medium(message: &LinkMessage) -> Medium {
    if message.header.flags.contains(LinkFlags::Loopback) {
        Medium::Loopback
    } else if message.header.link_layer_type == LinkLayerType::Ether {
        Medium::Ethernet
    } else {
        Medium::Other
    }
}

/// Whether an interface of this kind takes frames to its own Ethernet address from the one below.
fn is_stacked(info: &LinkInfo) -> bool {
    use InfoKind::{MacVlan, MacVtap, Vlan};
    matches!(info, LinkInfo::Kind(Vlan | MacVlan | MacVtap))
}

/// The addresses that a route is for.
fn prefix(message: &RouteMessage) -> Option<Prefix> {
    let length = message.header.destination_prefix_length;
    let mut attributes = message.attributes.iter();
    let given = attributes.find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some((*address).into()),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some((*address).into()),
        _ => None,
    });
    match (given, message.header.address_family) {
        (Some(address), _) => Some(Prefix::new(address, length)),
        (None, AddressFamily::Inet) => Some(Prefix::new(Ipv4Addr::UNSPECIFIED.into(), 0)),
        (None, AddressFamily::Inet6) => Some(Prefix::new(Ipv6Addr::UNSPECIFIED.into(), 0)),
        (None, _) => None,
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
        assert_eq!(table.apply(&new), Some(Change::Link(2)));
        assert_eq!(table.apply(&new), None);
        let left = RouteNetlinkMessage::DelLink(link(2, "eth0", AddressFamily::Bridge));
        assert_eq!(table.apply(&left), None);
        assert!(table.link_by_name("eth0").is_some());
    }

    /// eth0 is a port of a bond, which has a VLAN device with a macvlan on top; a veth names its other end likewise.
    #[test]
    fn frames_to_upper_devices_come_by_the_lowest() {
        let mut table = Table::default();
        let device = |ifindex: u32, kind, below, master| {
            let mut message = link(ifindex, &format!("dev{ifindex}"), AddressFamily::Unspec);
            let mac = u8::try_from(ifindex).unwrap();
            message.attributes[1] = LinkAttribute::Address(vec![2, 0, 0, 0, 0, mac]);
            message.attributes.extend([
                LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]),
                LinkAttribute::Link(below),
                LinkAttribute::Controller(master),
            ]);
            RouteNetlinkMessage::NewLink(message)
        };
        for message in [
            device(2, InfoKind::Other("physical".into()), 0, 3),
            device(3, InfoKind::Bond, 0, 0),
            device(4, InfoKind::Vlan, 3, 0),
            device(5, InfoKind::MacVlan, 4, 0),
            device(6, InfoKind::Veth, 2, 0),
            device(7, InfoKind::Vxlan, 2, 0),
        ] {
            table.apply(&message);
        }
        let macs = |table: &Table, ifindex| {
            let macs = table.macs_of(ifindex).into_iter();
            macs.map(|mac| mac.0[5]).collect::<Vec<_>>()
        };
        assert_eq!(macs(&table, 2), [2, 3, 4, 5]);
        assert_eq!(macs(&table, 4), [4, 5]);
        assert_eq!(macs(&table, 6), [6]);
        table.apply(&device(4, InfoKind::Vlan, 2, 0));
        assert_eq!(macs(&table, 3), [3], "the VLAN device went elsewhere");
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
        assert_eq!(table.apply(&gone), Some(Change::Link(2)));
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

    #[test]
    fn an_interface_is_back_only_when_it_was_up_before() {
        let state = |up: bool| {
            let mut message = link(2, "eth0", AddressFamily::Unspec);
            if up {
                message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
            }
            RouteNetlinkMessage::NewLink(message)
        };
        let mut table = Table::default();
        let changes = [false, true, false, true].map(|up| table.apply(&state(up)));
        let first = Some(Change::Link(2));
        assert_eq!(changes, [first, first, first, Some(Change::LinkBack)]);
        // Of an interface that is there already nobody knows what it has been.
        let mut table = Table::default();
        table.apply(&state(false));
        table.begin();
        assert_eq!(table.apply(&state(true)), Some(Change::LinkBack));
    }
}
