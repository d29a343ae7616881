//! Map keys and values as bytes: the layout that `sluice_abi` documents, written down a second time.

use sluice_abi::{
    FarEnd, FlowData, ForwardingMode, FullNatKey, FullNatValue, Head, LocalKey, MacKey, PortKey,
    ServerRecord,
};
use sluice_packet::Route;

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

/// Key of `PEERS`.
pub fn mac(key: &MacKey) -> [u8; 8] {
    array(&[&key.mac[..], &[0, 0]].concat())
}

/// Slot of `HEADS`.
pub fn head(head: &Head) -> [u8; 128] {
    let mut bytes = head.seed.to_le_bytes().to_vec();
    bytes.extend(head.index.to_le_bytes());
    bytes.extend([head.pool_count, head.flags, head.scheduler]);
    bytes.extend([0; 21]);
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

/// Key of `FULLNAT*`.
pub fn claim_key<const A: usize, const N: usize>(key: &FullNatKey<A>) -> [u8; N] {
    array(
        &[
            &key.server[..],
            &key.own,
            &key.server_port,
            &key.own_port,
            &[key.protocol, 0, 0, 0],
        ]
        .concat(),
    )
}

/// [`claim_key`] undone.
pub fn to_claim_key<const A: usize>(bytes: &[u8]) -> FullNatKey<A> {
    FullNatKey {
        server: array(&bytes[..A]),
        own: array(&bytes[A..2 * A]),
        server_port: array(&bytes[2 * A..2 * A + 2]),
        own_port: array(&bytes[2 * A + 2..2 * A + 4]),
        protocol: bytes[2 * A + 4],
        pad: array(&bytes[2 * A + 5..]),
    }
}

/// Value of `FULLNAT*`.
pub fn claim_value<const A: usize, const N: usize>(value: &FullNatValue<A>) -> [u8; N] {
    array(
        &[
            &value.data.0.to_le_bytes()[..],
            &value.client,
            &value.vip,
            &value.client_port,
            &value.vip_port,
            &value.pad,
        ]
        .concat(),
    )
}

/// [`claim_value`] undone.
pub fn to_claim_value<const A: usize>(bytes: &[u8]) -> FullNatValue<A> {
    let (data, rest) = bytes.split_at(8);
    FullNatValue {
        data: FlowData(u64::from_le_bytes(array(data))),
        client: array(&rest[..A]),
        vip: array(&rest[A..2 * A]),
        client_port: array(&rest[2 * A..2 * A + 2]),
        vip_port: array(&rest[2 * A + 2..2 * A + 4]),
        pad: array(&rest[2 * A + 4..]),
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
        } => (2, ifindex, source_mac, next_hop_mac),
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
