//! Where clients come from, repeatably.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::address::{Dual, Family};

/// Addresses that the client may use as sources beside its own: an IPv4 prefix of 16 bits and an IPv6 one of 64.
pub(super) const CLIENT_SOURCES: Dual = Dual {
    v4: Ipv4Addr::new(198, 18, 0, 0),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 0),
};

/// `count` different sources of clients, by a fixed seed: addresses of the client's range with unprivileged ports.
pub fn client_sources(family: Family, seed: u64, count: usize) -> Vec<SocketAddr> {
    let mut state = seed;
    let mut sources = BTreeSet::new();
    let mut order = Vec::with_capacity(count);
    while order.len() < count {
        let draw = split_mix(&mut state).to_be_bytes();
        let host = u16::from_be_bytes([draw[0], draw[1]]);
        let port = 1024 | u16::from_be_bytes([draw[2], draw[3]]);
        let source = SocketAddr::new(client_source(family, host), port);
        if sources.insert(source) {
            order.push(source);
        }
    }
    order
}

fn client_source(family: Family, host: u16) -> IpAddr {
    let [high, low] = host.to_be_bytes();
    match family {
        Family::V4 => {
            let [a, b, ..] = CLIENT_SOURCES.v4.octets();
            Ipv4Addr::new(a, b, high, low).into()
        }
        Family::V6 => {
            let mut segments = CLIENT_SOURCES.v6.segments();
            segments[7] = host;
            Ipv6Addr::from(segments).into()
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
const fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_repeatable_and_distinct() {
        let sources = client_sources(Family::V6, 7, 1000);
        assert_eq!(sources, client_sources(Family::V6, 7, 1000));
        assert_ne!(sources, client_sources(Family::V6, 8, 1000));
        let distinct: BTreeSet<_> = sources.iter().collect();
        assert_eq!(distinct.len(), 1000);
    }
}
