//! Asking the kernel, and registering neighbours.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteType, RouteVia,
};
use netlink_packet_route::tc::{TcHandle, TcMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::table::NEIGHBOUR_PROTOCOL;
use super::{Error, Medium, Table};
use crate::maps::Filter;

/// Dumps that changed while they were read are read again, this often at most.
const DUMP_ATTEMPTS: usize = 5;

/// The kernel's route to an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// The address is this node's own.
    Local,
    /// Through an interface.
    Out {
        /// The interface.
        ifindex: u32,
        /// The next hop, unless the address itself is on the link.
        gateway: Option<IpAddr>,
        /// The source address that packets of this node would have.
        source: Option<IpAddr>,
        /// Largest IP packet, in bytes, if the route says so.
        mtu: Option<u32>,
    },
    /// There is none, or one that forbids.
    None,
}

/// A socket for requests. Each call waits for the kernel's answer, which comes at once.
#[derive(Debug)]
pub struct Requests {
    socket: Socket,
    sequence: u32,
}

impl Requests {
    /// Opens a socket in the network namespace of this thread.
    pub fn open() -> Result<Self, Error> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(|source| Error::Socket {
            action: "open a socket",
            source,
        })?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// All links, addresses and neighbours.
    pub fn table(&mut self) -> Result<Table, Error> {
        let mut table = Table::default();
        let requests = [
            RouteNetlinkMessage::GetLink(LinkMessage::default()),
            RouteNetlinkMessage::GetAddress(AddressMessage::default()),
            RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()),
        ];
        for request in requests {
            for message in self.dump("list links, addresses and neighbours", &request)? {
                table.apply(&message);
            }
        }
        table.begin();
        Ok(table)
    }

    /// The route to an address.
    pub fn route(&mut self, to: IpAddr) -> Result<Route, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(to);
        message.header.destination_prefix_length = if to.is_ipv4() { 32 } else { 128 };
        message
            .attributes
            .push(RouteAttribute::Destination(RouteAddress::from(to)));
        let request = RouteNetlinkMessage::GetRoute(message);
        match self.request("find a route", request, 0) {
            Ok(answers) => Ok(answers
                .iter()
                .find_map(|answer| match answer {
                    RouteNetlinkMessage::NewRoute(route) => Some(read_route(route)),
                    _ => None,
                })
                .unwrap_or(Route::None)),
            Err(Error::Refused { source, .. }) if is_no_route(&source) => Ok(Route::None),
            Err(error) => Err(error),
        }
    }

    /// Gateways of the default routes, with their interfaces.
    pub fn default_gateways(&mut self) -> Result<Vec<(u32, IpAddr)>, Error> {
        let mut gateways = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let request = RouteNetlinkMessage::GetRoute(message);
            for answer in self.dump("list routes", &request)? {
                if let RouteNetlinkMessage::NewRoute(route) = answer
                    && route.header.destination_prefix_length == 0
                    && route.header.kind == RouteType::Unicast
                {
                    gateways.extend(gateways_of(&route));
                }
            }
        }
        gateways.sort();
        gateways.dedup();
        Ok(gateways)
    }

    /// Names of the interfaces of the default routes of both families, in order.
    pub fn default_interfaces(&mut self) -> Result<Vec<String>, Error> {
        let mut indices = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let request = RouteNetlinkMessage::GetRoute(message);
            for answer in self.dump("list routes", &request)? {
                if let RouteNetlinkMessage::NewRoute(route) = answer {
                    indices.extend(default_interfaces_of(&route));
                }
            }
        }
        let table = self.table()?;
        let mut names: Vec<String> = indices
            .into_iter()
            .filter_map(|ifindex| table.link_by_index(ifindex))
            .filter(|link| link.medium != Medium::Loopback)
            .map(|link| link.name.clone())
            .collect();
        names.sort();
        Ok(names)
    }

    /// Releases every neighbour that an agent registered.
    pub fn release_registered(&mut self) -> Result<(), Error> {
        let table = self.table()?;
        for (ifindex, address) in table.registered() {
            self.release_neighbour(ifindex, address)?;
        }
        Ok(())
    }

    /// Asks the kernel to resolve a neighbour now, and to keep it fresh from then on where it can.
    pub fn keep_neighbour(&mut self, ifindex: u32, address: IpAddr) -> Result<(), Error> {
        let mut message = neighbour(ifindex, address);
        message.header.flags = NeighbourFlags::Use;
        message
            .attributes
            .push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        message
            .attributes
            .push(NeighbourAttribute::Protocol(RouteProtocol::from(
                NEIGHBOUR_PROTOCOL,
            )));
        let request = RouteNetlinkMessage::NewNeighbour(message);
        self.request("keep a neighbour", request, NLM_F_ACK | NLM_F_CREATE)
            .map(drop)
    }

    /// Removes a neighbour's entry; whoever needs it makes the kernel resolve it anew.
    pub fn release_neighbour(&mut self, ifindex: u32, address: IpAddr) -> Result<(), Error> {
        let request = RouteNetlinkMessage::DelNeighbour(neighbour(ifindex, address));
        match self.request("release a neighbour", request, NLM_F_ACK) {
            Err(Error::Refused { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(())
            }
            result => result.map(drop),
        }
    }

    /// Removes the clsact qdisc of an interface if no filter is left on it. Returns whether it did.
    pub fn remove_idle_clsact(&mut self, interface: &str) -> Result<bool, Error> {
        let Some((ifindex, _)) = self
            .table()?
            .link_by_name(interface)
            .map(|(ifindex, link)| (ifindex, link.clone()))
        else {
            return Ok(false);
        };
        for egress in [false, true] {
            if !self.filters(ifindex, egress)?.is_empty() {
                return Ok(false);
            }
        }
        let mut qdisc = tc(ifindex, TcHandle::CLSACT);
        qdisc.header.handle = TcHandle {
            major: u16::MAX,
            minor: 0,
        };
        let request = RouteNetlinkMessage::DelQueueDiscipline(qdisc);
        self.request("remove a clsact qdisc", request, NLM_F_ACK)
            .map(|_| true)
    }

    /// Whether the clsact qdisc of an interface has this filter.
    pub fn has_filter(&mut self, ifindex: u32, filter: Filter) -> Result<bool, Error> {
        let found = self.filters(ifindex, filter.egress)?;
        Ok(found.iter().any(|message| match message {
            RouteNetlinkMessage::NewTrafficFilter(found) => {
                let header = &found.header;
                u32::from(header.handle) == filter.handle
                    && header.info >> 16 == u32::from(filter.priority)
            }
            _ => false,
        }))
    }

    /// Filters of one direction on the clsact qdisc of an interface.
    fn filters(&mut self, ifindex: u32, egress: bool) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let minor = if egress {
            TcHandle::MIN_EGRESS
        } else {
            TcHandle::MIN_INGRESS
        };
        let parent = TcHandle {
            major: u16::MAX,
            minor,
        };
        let request = RouteNetlinkMessage::GetTrafficFilter(tc(ifindex, parent));
        self.dump("list tc filters", &request)
    }

    pub(super) fn dump(
        &mut self,
        action: &'static str,
        request: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let mut last = Ok(Vec::new());
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.send(action, request.clone(), NLM_F_DUMP)?;
            match self.receive(action, sequence, true) {
                Ok((answers, false)) => return Ok(answers),
                Ok((answers, true)) => last = Ok(answers),
                Err(error) => last = Err(error),
            }
        }
        // The answers of a dump that never stood still are the best there are; changes are told by the monitor.
        last
    }

    pub(super) fn request(
        &mut self,
        action: &'static str,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let sequence = self.send(action, request, flags)?;
        self.receive(action, sequence, false)
            .map(|(answers, _)| answers)
    }

    fn send(
        &mut self,
        action: &'static str,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<u32, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        self.socket
            .send(&buffer, 0)
            .map_err(|source| Error::Socket { action, source })?;
        Ok(self.sequence)
    }

    /// Collects the answers to a request, and whether a dump changed while it was read.
    fn receive(
        &mut self,
        action: &'static str,
        sequence: u32,
        dump: bool,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), Error> {
        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            let (buffer, _) = self
                .socket
                .recv_from_full()
                .map_err(|source| Error::Socket { action, source })?;
            for bytes in frames(&buffer) {
                // A message of a kind that is not understood says nothing of what was asked.
                let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) else {
                    continue;
                };
                if message.header.sequence_number != sequence {
                    continue;
                }
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => {
                        answers.push(inner);
                        if !dump {
                            return Ok((answers, false));
                        }
                    }
                    NetlinkPayload::Done(_) => return Ok((answers, interrupted)),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok((answers, interrupted)),
                            Some(_) => Err(Error::Refused {
                                action,
                                source: error.to_io(),
                            }),
                        };
                    }
                    NetlinkPayload::Overrun(_) => {
                        return Err(Error::Answer {
                            action,
                            message: "data was lost".to_owned(),
                        });
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The messages in a datagram.
pub(super) fn frames(mut buffer: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*buffer.first_chunk()?) as usize;
        if length < 16 || length > buffer.len() {
            return None;
        }
        let (frame, _) = buffer.split_at(length);
        // Messages begin at multiples of 4.
        buffer = buffer.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(frame)
    })
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn neighbour(ifindex: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = ifindex;
    message
        .attributes
        .push(NeighbourAttribute::Destination(match address {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        }));
    message
}

fn tc(ifindex: u32, parent: TcHandle) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = ifindex.cast_signed();
    message.header.parent = parent;
    message
}

fn is_no_route(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL | libc::ENOENT)
    )
}

fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn read_route(message: &RouteMessage) -> Route {
    match message.header.kind {
        RouteType::Local => return Route::Local,
        RouteType::Unicast => {}
        _ => return Route::None,
    }
    let (mut out, mut gateway, mut source, mut mtu) = (None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => out = Some(*ifindex),
            RouteAttribute::Gateway(address) => gateway = address_of(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some((*address).into()),
            RouteAttribute::PrefSource(address) => source = address_of(address),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    match out {
        Some(ifindex) => Route::Out {
            ifindex,
            gateway,
            source,
            mtu,
        },
        None => Route::None,
    }
}

/// Interfaces of a default route that may send packets out; none of any other route.
fn default_interfaces_of(route: &RouteMessage) -> Vec<u32> {
    if route.header.destination_prefix_length != 0 || route.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let interfaces = route
        .attributes
        .iter()
        .flat_map(|attribute| match attribute {
            RouteAttribute::Oif(ifindex) => vec![*ifindex],
            RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
            _ => Vec::new(),
        });
    interfaces.collect()
}

/// The gateways of a route, which may have several.
fn gateways_of(route: &RouteMessage) -> Vec<(u32, IpAddr)> {
    if let Route::Out {
        ifindex,
        gateway: Some(gateway),
        ..
    } = read_route(route)
    {
        return vec![(ifindex, gateway)];
    }
    let mut gateways = Vec::new();
    for attribute in &route.attributes {
        let RouteAttribute::MultiPath(hops) = attribute else {
            continue;
        };
        for hop in hops {
            let gateway = hop.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Gateway(address) => address_of(address),
                RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
                RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
                _ => None,
            });
            gateways.extend(gateway.map(|gateway| (hop.interface_index, gateway)));
        }
    }
    gateways
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::RouteNextHop;

    use super::*;

    #[test]
    fn interfaces_of_default_routes_alone_are_uplinks() {
        let mut route = RouteMessage::default();
        route.header.kind = RouteType::Unicast;
        route.attributes = vec![RouteAttribute::Oif(2)];
        assert_eq!(default_interfaces_of(&route), [2]);
        let hop = |interface_index| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = interface_index;
            hop
        };
        route.attributes = vec![RouteAttribute::MultiPath(vec![hop(3), hop(4)])];
        assert_eq!(default_interfaces_of(&route), [3, 4]);
        route.header.kind = RouteType::BlackHole;
        assert_eq!(default_interfaces_of(&route), [0; 0]);
        route.header.kind = RouteType::Unicast;
        route.header.destination_prefix_length = 8;
        assert_eq!(default_interfaces_of(&route), [0; 0]);
    }

    #[test]
    fn datagrams_are_split_at_message_lengths() {
        let mut buffer = vec![0_u8; 16 + 4 + 18];
        buffer[0] = 18;
        buffer[20] = 18;
        let lengths: Vec<usize> = frames(&buffer).map(<[u8]>::len).collect();
        assert_eq!(lengths, [18, 18]);
    }

    #[test]
    fn broken_lengths_end_a_datagram() {
        for length in [0_u32, 15, 100] {
            let mut buffer = vec![0_u8; 32];
            buffer[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(frames(&buffer).count(), 0);
        }
        assert_eq!(frames(&[1, 2]).count(), 0);
    }

    #[test]
    fn a_route_without_permission_to_forward_is_none() {
        let mut message = RouteMessage::default();
        message.header.kind = RouteType::Unreachable;
        assert_eq!(read_route(&message), Route::None);
        message.header.kind = RouteType::Local;
        assert_eq!(read_route(&message), Route::Local);
    }
}
