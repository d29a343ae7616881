//! Addresses in objects.

use std::net::IpAddr;

use ipnet::IpNet;

/// An address as the API takes it: no prefix length, no zone, no IPv4-mapped IPv6.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    match text.parse().ok()? {
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => None,
        address => Some(address),
    }
}

/// A block of addresses as the API takes it, such as `203.0.113.0/28`: no IPv4-mapped IPv6, no leading zeros. Its lower bits may be
/// any.
pub(crate) fn parse_block(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let address = parse_ip(address)?;
    let is_number = length == "0" || !length.starts_with(['0', '+']);
    let length = length.parse().ok().filter(|_| is_number)?;
    IpNet::new(address, length).ok()
}
