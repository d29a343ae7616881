//! Faults of maps: what no plan would write.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::select;
use sluice_abi::{AnnouncedWord, FIRST_REPLY_INDEX, Path, RingWord, ServerWord, VipWord};
use sluice_api::Protocol;
use sluice_planner::{AnnouncedAt, Image, Prefix, Ring, RingContent, Socket};

use super::ip;

/// Something wrong in the maps.
#[derive(Clone, Debug)]
pub enum Damage {
    Vip(Socket, u64),
    Server(u32, u64),
    Ring(u32, u32, u8),
    NoRecord(u32),
    NoHead(u32),
    Reply(u8, u32),
    Announced(IpAddr, u64),
    Source(u32, Prefix),
    NoSource(u32),
    Set(u32, u32),
}

impl Damage {
    pub fn apply(self, image: &mut Image) {
        match self {
            Self::Vip(socket, word) => {
                image.vips.insert(socket, VipWord(word));
            }
            Self::Server(id, word) => {
                image.servers.insert(id, ServerWord(word));
            }
            Self::Ring(ring, offset, log2_slots) => {
                let word = RingWord::new(offset, log2_slots);
                let content = RingContent::of(&vec![1; word.slots() as usize]);
                let content = Arc::new(content);
                image.rings.insert(ring, Ring { word, content });
            }
            Self::NoRecord(slot) => {
                image.records.remove(&slot);
            }
            Self::NoHead(slot) => {
                image.heads.remove(&slot);
            }
            Self::Reply(last, index) => {
                let socket = Socket::new([10, 0, 0, last].into(), Protocol::Tcp, 80);
                image.replies.insert(socket, index);
            }
            Self::Announced(address, word) => {
                let at = AnnouncedAt {
                    address,
                    ifindex: 2,
                };
                image.announced.insert(at, AnnouncedWord(word));
            }
            Self::Source(set, block) => {
                let blocks = image.sources.entry(set).or_insert_with(|| [].into());
                let mut all: BTreeSet<Prefix> = blocks.iter().copied().collect();
                all.insert(block);
                *blocks = all.into_iter().collect();
            }
            Self::NoSource(set) => {
                image.sources.remove(&set);
            }
            Self::Set(slot, set) => {
                if let Some(head) = image.heads.get_mut(&slot) {
                    head.source_set = set;
                }
            }
        }
    }
}

pub fn damages(vips: &[&'static str]) -> impl Strategy<Value = Vec<Damage>> {
    let socket = (select(vips.to_vec()), select(vec![0, 80, 443]));
    let socket = socket.prop_map(|(vip, port)| match port {
        0 => Socket::marker(ip(vip)),
        port => Socket::new(ip(vip), Protocol::Tcp, port),
    });
    let near_or_any = prop_oneof![0_u64..8, any::<u64>()];
    let server = prop_oneof![
        any::<u64>(),
        (0_u32..8, any::<u8>())
            .prop_map(|(slot, epoch)| { ServerWord::new(slot, epoch, Path::Xdp, false).0 })
    ];
    let reply = prop_oneof![FIRST_REPLY_INDEX - 2..FIRST_REPLY_INDEX + 4, any::<u32>()];
    let set = || prop_oneof![4 => 0_u32..6, 1 => any::<u32>()];
    let damage = prop_oneof![
        (socket, near_or_any).prop_map(|(socket, word)| Damage::Vip(socket, word)),
        (0_u32..12, server).prop_map(|(id, word)| Damage::Server(id, word)),
        (0_u32..8, 0_u32..20_000, 0_u8..14)
            .prop_map(|(r, offset, log2)| Damage::Ring(r, offset, log2)),
        (1_u32..8).prop_map(Damage::NoRecord),
        (1_u32..8).prop_map(Damage::NoHead),
        (1_u8..5, reply).prop_map(|(last, index)| Damage::Reply(last, index)),
        (select(vips.to_vec()), any::<u64>())
            .prop_map(|(vip, word)| Damage::Announced(ip(vip), word)),
        (set(), select(vips.to_vec()))
            .prop_map(|(set, vip)| Damage::Source(set, Prefix::host(ip(vip)))),
        set().prop_map(Damage::NoSource),
        (1_u32..8, set()).prop_map(|(slot, set)| Damage::Set(slot, set)),
    ];
    prop::collection::vec(damage, 1..6)
}
