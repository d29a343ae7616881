//! Node-local numbers: what the maps hold already keeps its number, new things get free ones.
//!
//! *Free* means: not in use in the maps as they are. What a plan gives up is not reused by the same plan, so nothing that
//! packets may still hold is overwritten.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sluice_abi::{SERVER_IPV6, ServerRecord, ServerWord};
use sluice_api::ForwardingMode;

use crate::record::mode_number;
use crate::{Endpoint, Image, Limits, head};

/// What makes a server of a service the same server: a server with another key gets another id, and thus flows of its own.
///
/// The backend is part of it: it is the index under which replies find the flow, and an index that is free again must not
/// lead to flows of a server that is still there. So is FullNAT: flows made in another mode have claimed no port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ServerKey {
    pub(crate) service: u16,
    pub(crate) tag: u32,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) backend: u16,
    pub(crate) full_nat: bool,
}

/// Which of a service's two heads a ring belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Side {
    Director,
    RealServer,
}

/// What makes a ring the same ring.
pub(crate) type RingOwner = (u16, Side, u32);

/// First service index of backends.
const FIRST_BACKEND: u32 = 1 << 15;
/// Service indices of backends end before this.
const END_BACKEND: u32 = 1 << 16;

/// What the maps hold, by identity.
pub(crate) struct Known {
    pub(crate) servers: BTreeMap<ServerKey, u32>,
    pub(crate) rings: BTreeMap<RingOwner, u32>,
    pub(crate) backends: BTreeMap<Endpoint, u16>,
}

impl Known {
    pub(crate) fn new(actual: &Image) -> Self {
        let mut servers = BTreeMap::new();
        for (&id, word) in actual.servers.iter().filter(|(_, word)| word.present()) {
            if let Some(record) = actual.records.get(&word.slot()) {
                servers.entry(key_of(record)).or_insert(id);
            }
        }
        let mut rings = BTreeMap::new();
        for word in actual.vips.values() {
            for (side, slot) in [
                (Side::Director, word.head()),
                (Side::RealServer, word.rs_head()),
            ] {
                for pool in actual.heads.get(&slot).into_iter().flat_map(head::pools) {
                    if actual.rings.contains_key(&pool.ring) {
                        rings
                            .entry((word.service(), side, pool.tag))
                            .or_insert(pool.ring);
                    }
                }
            }
        }
        let mut taken = BTreeSet::new();
        let backends = actual.backends.iter();
        let backends = backends
            .map(|(&endpoint, &index)| (endpoint, index))
            .filter(|&(_, index)| u32::from(index) >= FIRST_BACKEND && taken.insert(index))
            .collect();
        Self {
            servers,
            rings,
            backends,
        }
    }
}

/// The server's address in a record.
pub(crate) fn address_of(record: &ServerRecord) -> IpAddr {
    address_from(record.addr, record.flags & SERVER_IPV6 != 0)
}

/// An address as records hold it: an IPv4 address fills the first four bytes.
pub(crate) fn address_from(octets: [u8; 16], is_ipv6: bool) -> IpAddr {
    if is_ipv6 {
        return Ipv6Addr::from(octets).into();
    }
    let [a, b, c, d, ..] = octets;
    Ipv4Addr::new(a, b, c, d).into()
}

fn key_of(record: &ServerRecord) -> ServerKey {
    ServerKey {
        service: record.service,
        tag: record.tag,
        address: address_of(record),
        port: u16::from_be_bytes(record.port),
        backend: record.backend,
        full_nat: record.mode == mode_number(ForwardingMode::FullNat),
    }
}

/// Free numbers of a range, lowest first.
pub(crate) struct Numbers {
    used: BTreeSet<u32>,
    next: u32,
    end: u32,
}

impl Numbers {
    fn new(start: u32, end: u32, used: impl IntoIterator<Item = u32>) -> Self {
        Self {
            used: used.into_iter().collect(),
            next: start,
            end,
        }
    }

    pub(crate) fn take(&mut self) -> Option<u32> {
        while self.next < self.end {
            let number = self.next;
            self.next += 1;
            if !self.used.contains(&number) {
                return Some(number);
            }
        }
        None
    }
}

/// Free server ids with the epochs they begin: never used ones first, then those with the lowest epoch, so that an epoch
/// comes back as late as possible.
pub(crate) struct ServerIds {
    fresh: Numbers,
    reusable: std::vec::IntoIter<(u8, u32)>,
}

impl ServerIds {
    fn new(actual: &Image, end: u32) -> Self {
        let mut reusable: Vec<(u8, u32)> = actual
            .servers
            .iter()
            .filter(|&(&id, word)| !word.present() && (1..end).contains(&id))
            .map(|(&id, word)| (word.epoch(), id))
            .collect();
        reusable.sort_unstable();
        Self {
            fresh: Numbers::new(1, end, actual.servers.keys().copied()),
            reusable: reusable.into_iter(),
        }
    }

    /// An id and its new epoch.
    pub(crate) fn take(&mut self) -> Option<(u32, u8)> {
        // A word of 0 says "never used" or "last used in epoch 0": either way epoch 1 differs from the last.
        if let Some(id) = self.fresh.take() {
            return Some((id, 1));
        }
        let (epoch, id) = self.reusable.next()?;
        Some((id, epoch.wrapping_add(1)))
    }
}

/// Free stretches of `RING_SLOTS`: the first that fits, at a multiple of its length, which is a power of two.
pub(crate) struct Arena {
    /// Start → end of the stretches in use, merged where they touch.
    used: BTreeMap<u64, u64>,
    end: u64,
}

impl Arena {
    fn new(actual: &Image, end: u32) -> Self {
        let mut arena = Self {
            used: BTreeMap::new(),
            end: u64::from(end),
        };
        for ring in actual.rings.values() {
            let start = u64::from(ring.word.offset());
            arena.occupy(start, start + u64::from(ring.word.slots()));
        }
        arena
    }

    fn occupy(&mut self, mut start: u64, mut end: u64) {
        if let Some((&before, &before_end)) = self.used.range(..=start).next_back()
            && before_end >= start
        {
            start = before;
            end = end.max(before_end);
        }
        while let Some((&next, &next_end)) = self.used.range(start..=end).next() {
            end = end.max(next_end);
            self.used.remove(&next);
        }
        self.used.insert(start, end);
    }

    pub(crate) fn take(&mut self, slots: u32) -> Option<u32> {
        let length = u64::from(slots);
        let mut start = 0;
        for (&used, &used_end) in &self.used {
            if start + length <= used {
                break;
            }
            start = used_end.next_multiple_of(length);
        }
        if start + length > self.end {
            return None;
        }
        self.occupy(start, start + length);
        u32::try_from(start).ok()
    }
}

/// Everything a plan hands out.
pub(crate) struct Free {
    pub(crate) services: Numbers,
    pub(crate) backends: Numbers,
    pub(crate) heads: Numbers,
    pub(crate) rings: Numbers,
    pub(crate) records: Numbers,
    pub(crate) servers: ServerIds,
    pub(crate) arena: Arena,
}

impl Free {
    pub(crate) fn new(actual: &Image, limits: &Limits) -> Self {
        let records_in_use = || {
            let present = |word: &&ServerWord| word.present();
            actual
                .servers
                .values()
                .filter(present)
                .map(|word| word.slot())
        };
        // A service whose VIP entry was not written when a plan was cut short still owns servers.
        let services = actual.vips.values().map(|word| word.service());
        let services = services
            .chain(actual.records.values().map(|record| record.service))
            .chain(actual.locals.keys().map(|local| local.service));
        let backends = actual.backends.values().copied();
        let backends = backends.chain(actual.records.values().map(|record| record.backend));
        let heads = actual
            .vips
            .values()
            .flat_map(|word| [word.head(), word.rs_head()]);
        Self {
            services: Numbers::new(1, FIRST_BACKEND, services.map(u32::from)),
            backends: Numbers::new(FIRST_BACKEND, END_BACKEND, backends.map(u32::from)),
            heads: Numbers::new(1, limits.heads.min(1 << 24), heads),
            rings: Numbers::new(1, limits.rings, actual.rings.keys().copied()),
            records: Numbers::new(1, limits.records.min(1 << 24), records_in_use()),
            servers: ServerIds::new(actual, limits.servers.min(1 << 20)),
            arena: Arena::new(actual, limits.ring_slots),
        }
    }
}

/// How many entries of one family a keyed map may still get.
pub(crate) struct Room {
    left: [u64; 2],
}

impl Room {
    /// Room beside `kept` of a map with `limit` entries a family.
    pub(crate) fn new(limit: u32, kept: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut left = [u64::from(limit); 2];
        for address in kept {
            let family = &mut left[usize::from(address.is_ipv6())];
            *family = family.saturating_sub(1);
        }
        Self { left }
    }

    /// Takes `entries` if there is room for all of them.
    pub(crate) fn take(&mut self, address: IpAddr, entries: u64) -> bool {
        let family = &mut self.left[usize::from(address.is_ipv6())];
        match family.checked_sub(entries) {
            Some(left) => {
                *family = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sluice_abi::RingWord;

    use super::*;
    use crate::Ring;

    fn image_with_rings(rings: &[(u32, u8)]) -> Image {
        let ring = |(id, &(offset, log2_slots)): (u32, &(u32, u8))| {
            let word = RingWord::new(offset, log2_slots);
            (
                id,
                Ring {
                    word,
                    slots: [].into(),
                },
            )
        };
        Image {
            rings: (1..).zip(rings).map(ring).collect(),
            ..Image::default()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn stretches_are_free_and_aligned(
            rings in prop::collection::vec((0_u32..200, 0_u8..6), 0..10),
            sizes in prop::collection::vec(0_u8..6, 0..30),
        ) {
            let image = image_with_rings(&rings);
            let mut arena = Arena::new(&image, 256);
            let mut taken = [false; 512];
            for &(offset, log2_slots) in &rings {
                taken[offset as usize..(offset + (1 << log2_slots)) as usize].fill(true);
            }
            for slots in sizes.into_iter().map(|log2_slots| 1_u32 << log2_slots) {
                let stretch = |start: u32| start as usize..(start + slots) as usize;
                let fits = |start: &u32| !taken[stretch(*start)].contains(&true);
                let first = (0..=256 - slots).step_by(slots as usize).find(fits);
                prop_assert_eq!(arena.take(slots), first);
                if let Some(start) = first {
                    taken[stretch(start)].fill(true);
                }
            }
        }
    }

    #[test]
    fn ids_come_back_late_and_in_a_new_epoch() {
        let words = [
            (1, ServerWord::absent(9)),
            (2, ServerWord::new(0, 1, sluice_abi::Path::Xdp, false)),
        ];
        let words = words
            .into_iter()
            .chain([(3, ServerWord::absent(255)), (4, ServerWord::absent(7))]);
        let image = Image {
            servers: words.collect(),
            ..Image::default()
        };
        let mut ids = ServerIds::new(&image, 6);
        let taken: Vec<_> = std::iter::from_fn(|| ids.take()).collect();
        assert_eq!(taken, [(5, 1), (4, 8), (1, 10), (3, 0)]);
    }

    #[test]
    fn room_is_counted_by_family() {
        let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
        let mut room = Room::new(2, [v4]);
        assert!(!room.take(v4, 2));
        assert!(room.take(v4, 1));
        assert!(!room.take(v4, 1));
        assert!(room.take(v6, 2));
    }
}
