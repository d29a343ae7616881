//! Records of servers.

use std::net::IpAddr;

use sluice_abi::{Path, ServerFacts, ServerRecord};
use sluice_api::{ForwardingMode, VipPort};

use crate::config::{Reach, abi_mode};
use crate::ids::ServerKey;
use crate::{Hop, Via};

/// Path and record of a server, given those in the maps.
///
/// A server whose way is not known keeps the record: a flip of the word suffices to drop its packets, and a later
/// one to send them again. One whose way is not known *yet* keeps path and record, so an agent that starts anew disturbs
/// nothing.
pub(crate) fn wanted_record(
    vip_port: VipPort,
    mode: ForwardingMode,
    key: ServerKey,
    reach: Reach,
    old: Option<(Path, ServerRecord)>,
) -> (Path, ServerRecord) {
    let base = base_record(vip_port, mode, key);
    let vip = octets(vip_port.address);
    match reach {
        Reach::Local => {
            let record = ServerRecord {
                alt: vip,
                facts: base.facts.with_mtu(u16::MAX),
                ..base
            };
            (Path::Local, record)
        }
        Reach::Hop(hop) => hop_record(base, mode, &hop),
        Reach::Unresolved | Reach::Pending => {
            let same = old.filter(|(_, record)| without_hop(record, mode) == base);
            match same {
                None => (Path::Unresolved, base),
                Some((path, record)) if reach == Reach::Pending && path != Path::Local => {
                    (path, record)
                }
                Some((_, record)) => (Path::Unresolved, record),
            }
        }
    }
}

fn base_record(vip_port: VipPort, mode: ForwardingMode, key: ServerKey) -> ServerRecord {
    ServerRecord {
        addr: octets(key.address),
        alt: if mode == ForwardingMode::Nat {
            octets(vip_port.address)
        } else {
            [0; 16]
        },
        port: key.port.to_be_bytes(),
        vip_port: vip_port.port.to_be_bytes(),
        tag: key.tag,
        facts: ServerFacts::new(key.index, key.reply, abi_mode(mode), key.address.is_ipv6()),
        ..ServerRecord::default()
    }
}

fn without_hop(record: &ServerRecord, mode: ForwardingMode) -> ServerRecord {
    ServerRecord {
        alt: if mode == ForwardingMode::Nat {
            record.alt
        } else {
            [0; 16]
        },
        next_hop_mac: [0; 6],
        source_mac: [0; 6],
        ifindex: 0,
        facts: record.facts.with_mtu(0),
        ..*record
    }
}

fn hop_record(base: ServerRecord, mode: ForwardingMode, hop: &Hop) -> (Path, ServerRecord) {
    let mut record = ServerRecord {
        ifindex: hop.ifindex,
        facts: base
            .facts
            .with_mtu(u16::try_from(hop.mtu).unwrap_or(u16::MAX)),
        ..base
    };
    if matches!(mode, ForwardingMode::FullNat | ForwardingMode::Tun) {
        record.alt = octets(hop.source);
    }
    if hop.via == Via::Bridge {
        return (Path::Tc, record);
    }
    record.next_hop_mac = hop.next_hop_mac.0;
    record.source_mac = hop.source_mac.0;
    (Path::Xdp, record)
}

/// An IPv4 address fills the first four bytes.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(a) => {
            let [a, b, c, d] = a.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(a) => a.octets(),
    }
}
