//! Node-local numbers: what the maps hold already keeps its number, new things get free ones.
//!
//! *Free* means: not in use in the maps as they are. What a plan gives up is not reused by the same plan, so nothing that
//! packets may still hold is overwritten.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sluice_abi::{
    FIRST_REPLY_INDEX, FIRST_SOURCE_SET, MOST_INDICES, ServerRecord, ServerWord, VipWord,
};
use sluice_api::ForwardingMode;

use crate::config::abi_mode;
use crate::{Image, Limits, sources};

/// What a server id stands for: a server of a VIP port as one pool names it. To flows the pool does not matter
/// ([`ServerKey::without_pool`]): a server that another pool names takes its id with it.
///
/// The reply is part of it: it is the index under which replies find the flow, and an index that is free again must not
/// lead to flows of a server that is still there. So is FullNAT: flows made in another mode have claimed no port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ServerKey {
    pub(crate) index: u32,
    pub(crate) tag: u32,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) reply: u32,
    pub(crate) full_nat: bool,
}

impl ServerKey {
    /// The server whatever pool names it: what its flows depend on.
    pub(crate) fn without_pool(self) -> Self {
        Self { tag: 0, ..self }
    }
}

/// Which of a VIP port's two heads a ring belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Side {
    Director,
    RealServer,
}

/// The identity of a ring: index of the VIP port, side and the pool's tag.
pub(crate) type RingOwner = (u32, Side, u32);

/// The server's address in a record.
pub(crate) fn address_of(record: &ServerRecord) -> IpAddr {
    address_from(record.addr, record.facts.is_ipv6())
}

/// An address as records hold it: an IPv4 address fills the first four bytes.
pub(crate) fn address_from(octets: [u8; 16], is_ipv6: bool) -> IpAddr {
    if is_ipv6 {
        return Ipv6Addr::from(octets).into();
    }
    let [a, b, c, d, ..] = octets;
    Ipv4Addr::new(a, b, c, d).into()
}

pub(crate) fn key_of(record: &ServerRecord) -> ServerKey {
    ServerKey {
        index: record.facts.index(),
        tag: record.tag,
        address: address_of(record),
        port: u16::from_be_bytes(record.port),
        reply: record.facts.reply_index(),
        full_nat: record.facts.mode() == Some(abi_mode(ForwardingMode::FullNat)),
    }
}

/// Free numbers of a range, lowest first.
///
/// A number that was taken is lent until [`Numbers::settle`] says whether it is used; one given back is free at once.
#[derive(Debug)]
pub(crate) struct Numbers {
    /// Free ones below `next`.
    returned: BTreeSet<u32>,
    next: u32,
    end: u32,
    lent: Vec<u32>,
}

impl Numbers {
    /// The numbers from `start` to before `end` that are not in use.
    pub(crate) fn new(start: u32, end: u32, used: impl IntoIterator<Item = u32>) -> Self {
        let used: BTreeSet<u32> = used
            .into_iter()
            .filter(|n| (start..end).contains(n))
            .collect();
        let next = used.last().map_or(start, |last| last + 1);
        Self {
            returned: (start..next).filter(|n| !used.contains(n)).collect(),
            next,
            end,
            lent: Vec::new(),
        }
    }

    pub(crate) fn take(&mut self) -> Option<u32> {
        let number = self.returned.pop_first().or_else(|| {
            let number = self.next;
            (number < self.end).then(|| {
                self.next += 1;
                number
            })
        })?;
        self.lent.push(number);
        Some(number)
    }

    pub(crate) fn give_back(&mut self, number: u32) {
        self.returned.insert(number);
    }

    /// Gives back what was taken since the last time and is not used.
    pub(crate) fn settle(&mut self, is_used: impl Fn(u32) -> bool) {
        let lent = std::mem::take(&mut self.lent);
        self.returned
            .extend(lent.into_iter().filter(|&number| !is_used(number)));
    }
}

/// Free server ids with the epochs they begin: never used ones first, then those with the lowest epoch, so that an epoch
/// comes back as late as possible.
#[derive(Debug)]
pub(crate) struct ServerIds {
    fresh: Numbers,
    reusable: BTreeSet<(u8, u32)>,
    lent: Vec<(u8, u32)>,
}

impl ServerIds {
    pub(crate) fn new(actual: &Image, end: u32) -> Self {
        let absent = actual.servers.iter().filter(|(_, word)| !word.present());
        let absent = absent.filter(|&(&id, _)| (1..end).contains(&id));
        Self {
            fresh: Numbers::new(1, end, actual.servers.keys().copied()),
            reusable: absent.map(|(&id, word)| (word.epoch(), id)).collect(),
            lent: Vec::new(),
        }
    }

    /// An id and its new epoch.
    pub(crate) fn take(&mut self) -> Option<(u32, u8)> {
        // A word of 0 says "never used" or "last used in epoch 0": either way epoch 1 differs from the last.
        if let Some(id) = self.fresh.take() {
            return Some((id, 1));
        }
        let (epoch, id) = self.reusable.pop_first()?;
        self.lent.push((epoch, id));
        Some((id, epoch.wrapping_add(1)))
    }

    /// Takes back an id that was last used in this epoch.
    pub(crate) fn give_back(&mut self, id: u32, epoch: u8) {
        if ServerWord::absent(epoch) == ServerWord(0) {
            self.fresh.give_back(id);
        } else {
            self.reusable.insert((epoch, id));
        }
    }

    pub(crate) fn settle(&mut self, is_used: impl Fn(u32) -> bool) {
        self.fresh.settle(&is_used);
        let lent = std::mem::take(&mut self.lent);
        self.reusable
            .extend(lent.into_iter().filter(|&(_, id)| !is_used(id)));
    }
}

/// Free stretches of `RING_SLOTS`: the first that fits, at a multiple of its length, which is a power of two.
#[derive(Debug)]
pub(crate) struct Arena {
    /// Start → end of the stretches in use, merged where they touch.
    used: BTreeMap<u64, u64>,
    end: u64,
    lent: Vec<(u32, u32)>,
}

impl Arena {
    pub(crate) fn new(actual: &Image, end: u32) -> Self {
        let mut arena = Self {
            used: BTreeMap::new(),
            end: u64::from(end),
            lent: Vec::new(),
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
        let start = u32::try_from(start).ok()?;
        self.lent.push((start, slots));
        Some(start)
    }

    /// Takes back a stretch, all of which is in use.
    pub(crate) fn give_back(&mut self, start: u32, slots: u32) {
        let (start, end) = (u64::from(start), u64::from(start) + u64::from(slots));
        let Some((&around, &around_end)) = self.used.range(..=start).next_back() else {
            return;
        };
        self.used.remove(&around);
        if around < start {
            self.used.insert(around, start);
        }
        if end < around_end {
            self.used.insert(end, around_end);
        }
    }

    /// Gives back what was taken since the last time and is not used.
    pub(crate) fn settle(&mut self, is_used: impl Fn(u32) -> bool) {
        for (start, slots) in std::mem::take(&mut self.lent) {
            if !is_used(start) {
                self.give_back(start, slots);
            }
        }
    }
}

/// Everything that plans hand out.
#[derive(Debug)]
pub(crate) struct Free {
    pub(crate) indices: Numbers,
    pub(crate) replies: Numbers,
    pub(crate) heads: Numbers,
    /// Source sets: as many as there are heads to name them.
    pub(crate) sets: Numbers,
    pub(crate) rings: Numbers,
    pub(crate) records: Numbers,
    pub(crate) servers: ServerIds,
    pub(crate) arena: Arena,
}

impl Free {
    /// The numbers and ring slots that these maps leave free.
    pub(crate) fn new(actual: &Image, limits: &Limits) -> Self {
        let vips = || actual.vips.values();
        let indices = vips().map(|word| word.index());
        let replies = actual.replies.values().copied();
        let heads = vips().flat_map(|word| [word.head(), word.rs_head()]);
        let named = actual.heads.values().filter_map(sources::set_of);
        Self {
            indices: Numbers::new(1, FIRST_REPLY_INDEX, indices),
            replies: Numbers::new(FIRST_REPLY_INDEX, MOST_INDICES, replies),
            heads: Numbers::new(1, limits.heads.min(VipWord::MOST_HEADS), heads),
            sets: Numbers::new(
                FIRST_SOURCE_SET,
                FIRST_SOURCE_SET + limits.heads.min(VipWord::MOST_HEADS),
                actual.sources.keys().copied().chain(named),
            ),
            rings: Numbers::new(1, limits.rings, actual.rings.keys().copied()),
            records: Numbers::new(
                1,
                limits.records.min(1 << 24),
                actual.records.keys().copied(),
            ),
            servers: ServerIds::new(actual, limits.servers.min(1 << 20)),
            arena: Arena::new(actual, limits.ring_slots),
        }
    }
}

/// How many entries of either family a keyed map may still get.
pub(crate) struct Room {
    left: [u32; 2],
}

impl Room {
    /// So many of IPv4, and so many of IPv6.
    pub(crate) fn new(left: [u32; 2]) -> Self {
        Self { left }
    }

    /// Makes room for one entry more.
    pub(crate) fn add(&mut self, address: IpAddr) {
        self.left[usize::from(address.is_ipv6())] += 1;
    }

    /// Takes `entries` if there is room for all of them.
    pub(crate) fn take(&mut self, address: IpAddr, entries: u32) -> bool {
        let family = &mut self.left[usize::from(address.is_ipv6())];
        let left = family.checked_sub(entries);
        *family = left.unwrap_or(*family);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use sluice_abi::RingWord;

    use super::*;
    use crate::{Ring, RingContent};

    fn image_with_rings(rings: &[(u32, u8)]) -> Image {
        let ring = |(id, &(offset, log2_slots)): (u32, &(u32, u8))| {
            let word = RingWord::new(offset, log2_slots);
            (
                id,
                Ring {
                    word,
                    content: Arc::new(RingContent::of(&[])),
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
}
