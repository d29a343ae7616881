//! Blocks of addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The addresses that begin with the same bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// The addresses that share `length` bits with `address`.
    pub const fn new(address: IpAddr, length: u8) -> Self {
        Self { address, length }
    }

    /// The lowest address.
    pub fn first(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & !self.rest4()).into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !self.rest6()).into(),
        }
    }

    /// The highest address.
    pub fn last(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() | self.rest4()).into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() | self.rest6()).into(),
        }
    }

    /// Whether it has an address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let same_family = self.address.is_ipv4() == address.is_ipv4();
        same_family && (self.first()..=self.last()).contains(&address)
    }

    /// Whether it has every address of its family.
    pub const fn is_all(&self) -> bool {
        self.length == 0
    }

    fn rest4(self) -> u32 {
        u32::MAX.checked_shr(self.length.into()).unwrap_or(0)
    }

    fn rest6(self) -> u128 {
        u128::MAX.checked_shr(self.length.into()).unwrap_or(0)
    }
}

/// Whether an address is in one of these.
pub fn is_within(address: IpAddr, prefixes: &[Prefix]) -> bool {
    prefixes.iter().any(|prefix| prefix.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_the_addresses_of_its_family() {
        let prefix = |text: &str, length| Prefix::new(text.parse().unwrap(), length);
        let has = |prefix: Prefix, address: &str| prefix.contains(address.parse().unwrap());
        assert!(has(prefix("192.0.2.7", 24), "192.0.2.200"));
        assert!(!has(prefix("192.0.2.7", 24), "192.0.3.1"));
        assert!(has(prefix("2001:db8::7", 64), "2001:db8::ffff:1"));
        assert!(!has(prefix("0.0.0.0", 0), "::1"));
    }

    #[test]
    fn a_prefix_reaches_from_its_first_to_its_last_address() {
        for (address, length, first, last) in [
            ("10.1.2.3", 8, "10.0.0.0", "10.255.255.255"),
            ("10.1.2.3", 32, "10.1.2.3", "10.1.2.3"),
            ("10.1.2.3", 0, "0.0.0.0", "255.255.255.255"),
            ("fd00::7", 127, "fd00::6", "fd00::7"),
            ("fd00::7", 128, "fd00::7", "fd00::7"),
        ] {
            let prefix = Prefix::new(address.parse().unwrap(), length);
            let ends = (prefix.first().to_string(), prefix.last().to_string());
            assert_eq!(
                ends,
                (first.to_owned(), last.to_owned()),
                "{address}/{length}"
            );
        }
    }
}
