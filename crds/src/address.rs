//! Addresses in objects.

use std::net::IpAddr;

/// An address as the API takes it: no prefix length, no zone, no IPv4-mapped IPv6.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    match text.parse().ok()? {
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => None,
        address => Some(address),
    }
}
