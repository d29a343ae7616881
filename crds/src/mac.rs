//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The MAC address of an interface. Its text is that of Linux: `02:00:00:00:00:01`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct MacAddress(pub [u8; 6]);

/// The text is no MAC address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoMacAddress;

impl fmt::Display for NoMacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("must be a MAC address such as 02:00:00:00:00:01")
    }
}

impl std::error::Error for NoMacAddress {}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, octet) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { ":" };
            write!(f, "{separator}{octet:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for MacAddress {
    type Err = NoMacAddress;

    fn from_str(text: &str) -> Result<Self, NoMacAddress> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or(NoMacAddress)?;
            let is_hex = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            *octet = u8::from_str_radix(part, 16)
                .ok()
                .filter(|_| is_hex)
                .ok_or(NoMacAddress)?;
        }
        if parts.next().is_some() {
            return Err(NoMacAddress);
        }
        Ok(Self(octets))
    }
}

impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_address_is_written_as_linux_writes_it() {
        let mac = MacAddress([0x02, 0, 0xab, 0xcd, 0xef, 0x10]);
        assert_eq!(mac.to_string(), "02:00:ab:cd:ef:10");
        assert_eq!("02:00:AB:cd:ef:10".parse(), Ok(mac));
        for text in [
            "",
            "02:00:ab:cd:ef",
            "02:00:ab:cd:ef:10:11",
            "2:00:ab:cd:ef:10",
            "+2:00:ab:cd:ef:10",
            "02-00-ab-cd-ef-10",
        ] {
            assert_eq!(text.parse::<MacAddress>(), Err(NoMacAddress), "{text:?}");
        }
    }
}
