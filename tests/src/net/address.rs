//! Addresses in both families.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The option of `ip` that chooses the family.
    pub const fn option(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// One address per family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dual {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Dual {
    /// `v4` with its last byte, and `v6` with its last 16 bits, replaced by `host`. The IPv6 address shows the decimal
    /// digits of the IPv4 one: 10.1.0.21 goes with …::21.
    #[must_use]
    pub const fn host(self, host: u8) -> Self {
        let digits = host as u16;
        let digits = ((digits / 100) << 8) | ((digits / 10 % 10) << 4) | (digits % 10);
        let [a, b, c, _] = self.v4.octets();
        let [s0, s1, s2, s3, s4, s5, s6, _] = self.v6.segments();
        Self {
            v4: Ipv4Addr::new(a, b, c, host),
            v6: Ipv6Addr::new(s0, s1, s2, s3, s4, s5, s6, digits),
        }
    }

    /// The address of `family`.
    pub const fn of(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::V4(self.v4),
            Family::V6 => IpAddr::V6(self.v6),
        }
    }

    /// The address of `family` with a port.
    pub const fn socket(self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.of(family), port)
    }

    /// Both as prefixes of `v4_length` and `v6_length` bits.
    pub const fn prefixes(self, v4_length: u8, v6_length: u8) -> [Cidr; 2] {
        [
            Cidr::new(IpAddr::V4(self.v4), v4_length),
            Cidr::new(IpAddr::V6(self.v6), v6_length),
        ]
    }
}

/// An address with the length of its prefix in bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cidr {
    /// The address; bits after the prefix need not be zero.
    pub address: IpAddr,
    /// Bits of the prefix.
    pub length: u8,
}

impl Cidr {
    /// `address/length`.
    pub const fn new(address: IpAddr, length: u8) -> Self {
        Self { address, length }
    }

    /// The prefix that holds this address alone.
    pub const fn single(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::new(address, 32),
            IpAddr::V6(_) => Self::new(address, 128),
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_the_same_digits_in_both_families() {
        let net = Dual {
            v4: Ipv4Addr::new(10, 1, 0, 0),
            v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0),
        };
        let host = net.host(121);
        assert_eq!(host.v4.to_string(), "10.1.0.121");
        assert_eq!(host.v6.to_string(), "2001:db8::121");
    }
}
