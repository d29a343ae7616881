//! Map keys and values as bytes: the layout that `sluice_abi` documents, written down a second time.

use std::net::{IpAddr, SocketAddr};

use sluice_abi::{
    AnnouncedKey, ClaimData, FarEnd, ForwardingMode, Head, LocalKey, MacKey, PortKey, ServerRecord,
    Source,
};
use sluice_packet::{Route, hash};

use super::setup::{Claim, address_field};

/// `bytes` as an array of their length.
pub fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes
        .try_into()
        .expect("the layout has the size of the map's keys or values")
}

/// Key of `VIPS*` and `REPLIES*`.
pub fn port_key<const A: usize, const N: usize>(key: &PortKey<A>) -> [u8; N] {
    array(&[&key.addr[..], &key.port, &[key.protocol, 0]].concat())
}

/// Key of `LOCALS*`.
pub fn local<const A: usize, const N: usize>(key: &LocalKey<A>) -> [u8; N] {
    array(&[&key.addr[..], &key.index.to_le_bytes()].concat())
}

/// Key of `ANNOUNCED*`.
pub fn announced<const A: usize, const N: usize>(key: &AnnouncedKey<A>) -> [u8; N] {
    array(&[&key.addr[..], &key.ifindex.to_le_bytes()].concat())
}

/// Key of `SOURCES*` behind the length.
pub fn source<const A: usize, const N: usize>(source: &Source<A>) -> [u8; N] {
    array(&[&source.set.to_le_bytes()[..], &source.addr].concat())
}

/// Value of `ANNOUNCED*`.
pub fn announced_word(mac: [u8; 6], group: u16, router: bool) -> u64 {
    let group = group + if router { 1 << 15 } else { 0 };
    u64::from_le_bytes(array(&[&mac[..], &group.to_le_bytes()].concat()))
}

/// Key of `PEERS`.
pub fn mac(key: &MacKey) -> [u8; 8] {
    array(&[&key.mac[..], &[0, 0]].concat())
}

/// Slot of `HEADS`.
pub fn head(head: &Head) -> [u8; 128] {
    let mut bytes = head.seed.to_le_bytes().to_vec();
    bytes.extend(head.index.to_le_bytes());
    bytes.extend([head.pool_count, head.flags, head.scheduler, 0]);
    bytes.extend(head.source_set.to_le_bytes());
    bytes.extend([0; 16]);
    for pool in head.pools {
        bytes.extend(pool.threshold.to_le_bytes());
        bytes.extend(pool.ring.to_le_bytes());
        bytes.extend(pool.tag.to_le_bytes());
    }
    array(&bytes)
}

/// Slot of `RECORDS`.
pub fn record(record: &ServerRecord) -> [u8; 64] {
    array(
        &[
            &record.addr[..],
            &record.alt,
            &record.next_hop_mac,
            &record.source_mac,
            &record.ifindex.to_le_bytes(),
            &record.port,
            &record.vip_port,
            &record.tag.to_le_bytes(),
            &facts(record).to_le_bytes(),
        ]
        .concat(),
    )
}

/// The last word of a record.
fn facts(record: &ServerRecord) -> u64 {
    let facts = record.facts;
    let mode = match facts.mode() {
        Some(ForwardingMode::Nat) => 1,
        Some(ForwardingMode::FullNat) => 2,
        Some(ForwardingMode::Dr) => 3,
        Some(ForwardingMode::Tun) => 4,
        None => 9,
    };
    let indices = u64::from(facts.index()) + u64::from(facts.reply_index()) * (1 << 20);
    indices
        + mode * (1 << 40)
        + u64::from(facts.is_ipv6()) * (1 << 44)
        + u64::from(facts.mtu()) * (1 << 48)
}

/// The part of a flow key that stands for the end which is not the client.
pub fn tag(far: FarEnd) -> u16 {
    let port = u128::from(u16::from_be_bytes(far.port));
    let product = (u128::from(far.index) + port * (1 << 20)) * 0x9e37_79b9_7f4a_7c15;
    let [.., low, high] = u64::try_from(product % (1 << 64))
        .unwrap_or(0)
        .to_le_bytes();
    u16::from_le_bytes([low, high | 0x80])
}

/// Two slots of `RING_SLOTS`.
pub fn ring_pair(pair: &[u32; 2]) -> [u8; 8] {
    let [first, second] = pair.map(u32::to_le_bytes);
    array(&[first, second].concat())
}

/// A slot of `FULLNAT*` with a claim of the first generation, and the hash that leads there.
pub fn claim<const A: usize>(claim: &Claim, seed: u64) -> (u32, Vec<u64>) {
    let pair = |first: SocketAddr, second: SocketAddr| -> Vec<u64> {
        let bytes = [first, second].map(|end| address_field(end.ip())[..A].to_vec());
        let bytes = bytes.concat();
        let words = bytes.chunks(8);
        words.map(|word| u64::from_le_bytes(array(word))).collect()
    };
    let ports = |low: SocketAddr, high: SocketAddr| {
        u64::from(low.port()) + u64::from(high.port()) * (1 << 16)
    };
    let protocol = u64::from(claim.protocol) * (1 << 32);
    let key = ports(claim.own, claim.server) + protocol + (1 << 63);
    let ends = pair(claim.server, claim.own);
    let mut four = [0; 4];
    four[..ends.len()].copy_from_slice(&ends);
    let hash = hash::claim(hash::claim_ends(&four, A == 4, seed), key);
    let mut words = [
        vec![key, claim.data.0],
        ends,
        pair(claim.client, claim.vip),
        vec![ports(claim.client, claim.vip)],
    ]
    .concat();
    words.resize(if A == 4 { 8 } else { 16 }, 0);
    (hash, words)
}

/// The claim in a slot of `FULLNAT*`; `A` is the length of the family's addresses.
pub fn to_claim<const A: usize>(words: &[u64]) -> Claim {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let port = |at: usize| u16::from_le_bytes(array(&bytes[at..at + 2]));
    let end = |number: usize, port| {
        let at = 16 + number * A;
        let address = &bytes[at..at + A];
        let ip = if A == 4 {
            IpAddr::from(array::<4>(address))
        } else {
            IpAddr::from(array::<16>(address))
        };
        SocketAddr::new(ip, port)
    };
    let last = 16 + 4 * A;
    Claim {
        server: end(0, port(2)),
        own: end(1, port(0)),
        client: end(2, port(last)),
        vip: end(3, port(last + 2)),
        protocol: bytes[4],
        data: ClaimData(words[1]),
    }
}

/// Key of `TEST_ROUTES`.
pub fn route_key<const A: usize>(destination: &[u8; A]) -> [u8; 16] {
    let mut key = [0; 16];
    key[..A].copy_from_slice(destination);
    key
}

/// Value of `TEST_ROUTES`.
pub fn route(route: &Route) -> [u8; 24] {
    let (kind, ifindex, source_mac, next_hop_mac) = match *route {
        Route::None => (0_u32, 0_u32, [0; 6], [0; 6]),
        Route::NoNeighbour { ifindex } => (1, ifindex, [0; 6], [0; 6]),
        Route::Resolved {
            ifindex,
            source_mac,
            next_hop_mac,
        } => (2, ifindex, source_mac.0, next_hop_mac.0),
    };
    array(
        &[
            &kind.to_le_bytes()[..],
            &ifindex.to_le_bytes(),
            &source_mac,
            &next_hop_mac,
            &[0; 4],
        ]
        .concat(),
    )
}
