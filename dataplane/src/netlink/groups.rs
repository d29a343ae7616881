//! Multicast groups that an interface is in though no socket of a process joined them.
//!
//! An IPv6 VIP is on no interface, so the kernel does not listen for its solicitations, and NICs and switches that snoop on MLD keep
//! them away. A multicast address with the flag `autojoin` (Linux 4.2) makes the kernel join the group, report it and answer
//! queries for as long as the address is there, whatever becomes of the process that made it.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::table::NEIGHBOUR_PROTOCOL;
use super::{Error, Requests};

impl Requests {
    /// The groups that agents joined, with their interfaces. Kernels before 5.18 do not keep who made an address, and tell of none.
    pub fn joined_groups(&mut self) -> Result<BTreeSet<(u32, Ipv6Addr)>, Error> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet6;
        let request = RouteNetlinkMessage::GetAddress(message);
        let answers = self.dump("list addresses", &request)?;
        Ok(answers.iter().filter_map(own_group).collect())
    }

    /// Joins a group, if it is not joined yet.
    pub fn join_group(&mut self, ifindex: u32, group: Ipv6Addr) -> Result<(), Error> {
        let request = RouteNetlinkMessage::NewAddress(group_address(ifindex, group));
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        match self.request("join a multicast group", request, flags) {
            Err(Error::Refused { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                Ok(())
            }
            result => result.map(drop),
        }
    }

    /// Leaves a group. One that is not joined, or whose interface is gone, is left already.
    pub fn leave_group(&mut self, ifindex: u32, group: Ipv6Addr) -> Result<(), Error> {
        let request = RouteNetlinkMessage::DelAddress(group_address(ifindex, group));
        match self.request("leave a multicast group", request, NLM_F_ACK) {
            Err(Error::Refused { source, .. }) if is_absent(&source) => Ok(()),
            result => result.map(drop),
        }
    }

    /// Leaves every group that an agent joined.
    pub fn leave_groups(&mut self) -> Result<(), Error> {
        for (ifindex, group) in self.joined_groups()? {
            self.leave_group(ifindex, group)?;
        }
        Ok(())
    }
}

fn group_address(ifindex: u32, group: Ipv6Addr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.prefix_len = 128;
    message.header.index = ifindex;
    let flags = AddressFlags::Mcautojoin | AddressFlags::Nodad | AddressFlags::Noprefixroute;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V6(group)),
        AddressAttribute::Address(IpAddr::V6(group)),
        AddressAttribute::Flags(flags),
        AddressAttribute::Protocol(AddressProtocol::Other(NEIGHBOUR_PROTOCOL)),
    ];
    message
}

/// The group of an address that an agent made.
fn own_group(message: &RouteNetlinkMessage) -> Option<(u32, Ipv6Addr)> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    let ours = AddressAttribute::Protocol(AddressProtocol::Other(NEIGHBOUR_PROTOCOL));
    let mut attributes = message.attributes.iter();
    let group = attributes.find_map(|attribute| match attribute {
        AddressAttribute::Address(IpAddr::V6(address)) if address.is_multicast() => Some(*address),
        _ => None,
    })?;
    message
        .attributes
        .contains(&ours)
        .then_some((message.header.index, group))
}

fn is_absent(error: &io::Error) -> bool {
    let absent = [libc::EADDRNOTAVAIL, libc::ENODEV, libc::ENXIO];
    error
        .raw_os_error()
        .is_some_and(|code| absent.contains(&code))
}
