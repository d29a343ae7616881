//! The tables as packets meet them, whatever the numbers are that a node gave.

use std::collections::{BTreeMap, BTreeSet};

use sluice_abi::{EVERYBODY, Path, ServerFacts, ServerRecord, VipWord};
use sluice_planner::{Prefix, Socket};

use super::maps::Maps;

/// Heads as packets see them, the directors' or the others: thresholds, and each slot's server as it is known everywhere.
pub type Owners = BTreeMap<Socket, Vec<(u32, Vec<([u8; 16], [u8; 2])>)>>;

pub fn owners(maps: &Maps, slot: fn(VipWord) -> u32) -> Owners {
    let image = maps.image();
    let owner = |id: &u32| {
        let record = image.records[&image.servers[id].slot()];
        let by_address = matches!(
            record.facts.mode(),
            Some(sluice_abi::ForwardingMode::Dr | sluice_abi::ForwardingMode::Tun)
        );
        (record.addr, if by_address { [0; 2] } else { record.port })
    };
    let pools = |slot| {
        image
            .heads
            .get(&slot)
            .into_iter()
            .flat_map(|head| head.pools)
    };
    let ring = |ring| {
        let ring = image.rings.get(&ring);
        let slots = ring.and_then(|ring| maps.slots(ring.word));
        slots.map_or(vec![], |slots| slots.iter().map(owner).collect())
    };
    let index = |(socket, word): (&Socket, &VipWord)| {
        let pools = pools(slot(*word));
        (
            *socket,
            pools
                .map(|pool| (pool.threshold, ring(pool.ring)))
                .collect(),
        )
    };
    image
        .vips
        .iter()
        .filter(|(socket, _)| !socket.is_marker())
        .map(index)
        .collect()
}

/// The blocks whose clients may begin flows, as each head of the word has them; `None`: everybody may.
pub fn admitted(maps: &Maps, word: VipWord) -> Option<Vec<Vec<Prefix>>> {
    let image = maps.image();
    let heads = [word.head(), word.rs_head()];
    let heads = heads.iter().filter_map(|slot| image.heads.get(slot));
    let sets: BTreeSet<u32> = heads.map(|head| head.source_set).collect();
    let sets = sets
        .into_iter()
        .map(|set| (set != EVERYBODY).then(|| maps.blocks(set)));
    sets.collect()
}

/// All that packets meet: beside [`owners`], each server's way and state, and which server a tunnel leads to.
pub type Met = ([Owners; 2], BTreeMap<Socket, BTreeSet<String>>);

pub fn met(maps: &Maps) -> Met {
    let image = maps.image();
    let mut servers: BTreeMap<Socket, BTreeSet<String>> = BTreeMap::new();
    for (vip_port, word) in image.vips.iter().filter(|(socket, _)| !socket.is_marker()) {
        let present = image.servers.iter().filter(|(_, word)| word.present());
        let of_port = present.filter_map(|(_, server)| {
            let record = image.records[&server.slot()];
            let facts = record.facts;
            let at = facts.index() == word.index();
            let mode = facts.mode().expect("a record has a mode");
            // Indices are the node's own; whether there is one for replies is not.
            let nameless = ServerFacts::new(
                0,
                u32::from(facts.reply_index() != 0),
                mode,
                facts.is_ipv6(),
            );
            // To a packet the pool does not matter, which may have more ids than one for a server.
            let mut record = ServerRecord {
                tag: 0,
                facts: nameless.with_mtu(facts.mtu()),
                ..record
            };
            if server.path() == Path::Unresolved {
                // It may keep the way by which it was reached before.
                record = ServerRecord {
                    alt: [0; 16],
                    next_hop_mac: [0; 6],
                    source_mac: [0; 6],
                    ifindex: 0,
                    facts: nameless,
                    ..record
                };
            }
            at.then(|| {
                let (path, draining) = (server.path(), server.draining());
                format!("{path:?} {draining} {record:?}")
            })
        });
        let locals = image.locals.keys();
        let locals = locals.filter(|local| local.index == word.index());
        let locals = locals.map(|local| format!("by tunnel at {}", local.address));
        let from =
            admitted(maps, *word).map_or_else(|| "from all".into(), |b| format!("from {b:?}"));
        let all = of_port.chain(locals).chain([from]);
        servers.insert(*vip_port, all.collect());
    }
    let heads = [VipWord::head, VipWord::rs_head].map(|slot| owners(maps, slot));
    (heads, servers)
}
