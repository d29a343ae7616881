//! Ranges of addresses, as an AddressPool names them.

use std::fmt;
use std::net::IpAddr;

use crate::address::{parse_block, parse_ip};
use crate::rules::ADDRESS_RANGES;

/// Addresses of one family that follow each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AddressRange {
    /// The first one.
    pub first: IpAddr,
    /// The last one, of the same family and not before the first.
    pub last: IpAddr,
    /// Whether it was written as a block whose first address, and in IPv4 the last one too, is no host's.
    is_subnet: bool,
}

impl AddressRange {
    /// Reads an address, a block (`203.0.113.0/28`), or a range (`203.0.113.10-203.0.113.20`). The error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if let Some((first, last)) = text.split_once('-') {
            let (Some(first), Some(last)) = (parse_ip(first), parse_ip(last)) else {
                return Err(ADDRESS_RANGES);
            };
            if first.is_ipv4() != last.is_ipv4() || first > last {
                return Err(
                    "must begin with the lower address and end with the higher one, of the same family",
                );
            }
            return Ok(Self {
                first,
                last,
                is_subnet: false,
            });
        }
        if let Some(address) = parse_ip(text) {
            return Ok(Self {
                first: address,
                last: address,
                is_subnet: false,
            });
        }
        let block = parse_block(text).ok_or(ADDRESS_RANGES)?;
        if block.trunc() != block {
            return Err("must begin with the block's first address: its lower bits are not 0");
        }
        let most = if block.addr().is_ipv4() { 30 } else { 126 };
        Ok(Self {
            first: block.network(),
            last: block.broadcast(),
            is_subnet: block.prefix_len() <= most,
        })
    }

    /// Whether it has this address.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && (self.first..=self.last).contains(&address)
    }

    /// Whether both have an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    /// What is given to whoever asks for no certain address: of a block of IPv4 neither the first nor the last address (network
    /// and broadcast, RFC 919), of one of IPv6 not the first (the routers' anycast address, RFC 4291, section 2.6.1).
    pub fn assignable(&self) -> (IpAddr, IpAddr) {
        if !self.is_subnet {
            return (self.first, self.last);
        }
        let first = next(self.first).unwrap_or(self.first);
        let last = if self.first.is_ipv4() {
            previous(self.last).unwrap_or(self.last)
        } else {
            self.last
        };
        (first, last)
    }

    /// How many addresses [`Self::assignable`] has, in 64 bits of precision.
    pub fn size(&self) -> u128 {
        let (first, last) = self.assignable();
        (number(last) - number(first)).saturating_add(1)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return self.first.fmt(f);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// The address after this one; `None` after the last of its family.
pub fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => Some(IpAddr::V4(v4.to_bits().checked_add(1)?.into())),
        IpAddr::V6(v6) => Some(IpAddr::V6(v6.to_bits().checked_add(1)?.into())),
    }
}

fn previous(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => Some(IpAddr::V4(v4.to_bits().checked_sub(1)?.into())),
        IpAddr::V6(v6) => Some(IpAddr::V6(v6.to_bits().checked_sub(1)?.into())),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> AddressRange {
        AddressRange::parse(text).expect("a range")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn every_form_is_read() {
        for (text, first, last, size) in [
            ("203.0.113.7", "203.0.113.7", "203.0.113.7", 1),
            ("203.0.113.0/28", "203.0.113.1", "203.0.113.14", 14),
            ("203.0.113.4/31", "203.0.113.4", "203.0.113.5", 2),
            ("203.0.113.4/32", "203.0.113.4", "203.0.113.4", 1),
            (
                "203.0.113.0-203.0.113.255",
                "203.0.113.0",
                "203.0.113.255",
                256,
            ),
            (
                "2001:db8::/64",
                "2001:db8::1",
                "2001:db8::ffff:ffff:ffff:ffff",
                u64::MAX.into(),
            ),
            ("2001:db8::2/127", "2001:db8::2", "2001:db8::3", 2),
            (
                "::/0",
                "::1",
                "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
                u128::MAX,
            ),
        ] {
            let range = range(text);
            assert_eq!(range.assignable(), (ip(first), ip(last)), "{text}");
            assert_eq!(range.size(), size, "{text}");
        }
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for (text, part) in [
            ("", "must be an address"),
            ("203.0.113.0/33", "must be an address"),
            ("203.0.113.1-", "must be an address"),
            ("203.0.113.0/28-203.0.113.20", "must be an address"),
            ("::ffff:203.0.113.1", "must be an address"),
            ("::ffff:203.0.113.0/120", "must be an address"),
            ("203.0.113.9-203.0.113.8", "lower address"),
            ("203.0.113.9-2001:db8::1", "lower address"),
            ("203.0.113.1/28", "lower bits"),
        ] {
            let error = AddressRange::parse(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn ranges_of_one_family_overlap() {
        let (a, b, c) = (
            range("203.0.113.0/28"),
            range("203.0.113.15-203.0.113.20"),
            range("203.0.113.16/28"),
        );
        assert!(a.overlaps(&b) && b.overlaps(&a) && b.overlaps(&c));
        assert!(!a.overlaps(&c) && !range("::/0").overlaps(&range("0.0.0.0/0")));
        assert!(a.contains(ip("203.0.113.15")) && !a.contains(ip("203.0.113.16")));
        assert!(!range("::/0").contains(ip("203.0.113.16")));
    }
}
