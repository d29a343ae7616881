//! The words of `MACS`: this node's own addresses, and the filter of the other directors'.

use std::collections::{BTreeMap, BTreeSet};

use sluice_abi::{OWN_BUCKET, OWN_MAC_WORDS, mac_number, own_bucket, own_mac, peer_bit};

use crate::Mac;

/// The words as they shall be.
#[derive(Debug, Default)]
pub(crate) struct Macs {
    /// Those that are not 0.
    pub(crate) words: BTreeMap<u32, u64>,
    /// Own addresses whose bucket is full, with their interfaces.
    pub(crate) left_out: Vec<(u32, Mac)>,
}

impl Macs {
    /// Own addresses stay where `current` has them, so that writing the words one by one never takes one away.
    pub(crate) fn new(
        current: &BTreeMap<u32, u64>,
        own: &BTreeSet<(u32, Mac)>,
        peers: &BTreeSet<Mac>,
    ) -> Self {
        let mut macs = Self::default();
        let mut new = Vec::new();
        for &(ifindex, mac) in own {
            let word = own_mac(mac_number(&mac.0), ifindex);
            let place = bucket(word).find(|index| current.get(index) == Some(&word));
            match place {
                Some(index) => drop(macs.words.insert(index, word)),
                None => new.push((ifindex, mac, word)),
            }
        }
        for (ifindex, mac, word) in new {
            match bucket(word).find(|index| !macs.words.contains_key(index)) {
                Some(index) => drop(macs.words.insert(index, word)),
                None => macs.left_out.push((ifindex, mac)),
            }
        }
        for mac in peers {
            let (index, bit) = peer_bit(mac_number(&mac.0));
            *macs.words.entry(index).or_default() |= bit;
        }
        macs
    }
}

/// The words that may hold this one.
fn bucket(word: u64) -> std::ops::Range<u32> {
    let first = own_bucket(word);
    debug_assert!(
        first + OWN_BUCKET <= OWN_MAC_WORDS,
        "own addresses come first"
    );
    first..first + OWN_BUCKET
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(last: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, last])
    }

    /// Whether packets would find it.
    fn has(words: &BTreeMap<u32, u64>, ifindex: u32, mac: Mac) -> bool {
        let word = own_mac(mac_number(&mac.0), ifindex);
        bucket(word).any(|index| words.get(&index) == Some(&word))
    }

    #[test]
    fn own_addresses_are_found_by_their_interfaces() {
        let own = [(2, mac(1)), (3, mac(1)), (3, mac(2))].into();
        let macs = Macs::new(&BTreeMap::new(), &own, &[mac(9)].into());
        assert!(macs.left_out.is_empty());
        for &(ifindex, mac) in &own {
            assert!(has(&macs.words, ifindex, mac));
        }
        assert!(!has(&macs.words, 2, mac(2)));
        assert_eq!(macs.words.len(), 4, "and a word of the filter");
        let (index, bit) = peer_bit(mac_number(&mac(9).0));
        assert_eq!(macs.words[&index], bit);
    }

    #[test]
    fn addresses_keep_their_places() {
        let mut own: BTreeSet<(u32, Mac)> = (0..100).map(|n| (2, mac(n))).collect();
        let before = Macs::new(&BTreeMap::new(), &own, &BTreeSet::new());
        own.retain(|(_, mac)| mac.0[5] % 2 == 0);
        own.extend((100..150).map(|n| (2, mac(n))));
        let after = Macs::new(&before.words, &own, &BTreeSet::new());
        // One word after the other, in any order: who is in both is found all the time.
        let both = own.iter().filter(|(_, mac)| mac.0[5] < 100);
        for &(ifindex, mac) in both.filter(|own| !before.left_out.contains(own)) {
            let word = own_mac(mac_number(&mac.0), ifindex);
            let place = bucket(word).find(|index| before.words.get(index) == Some(&word));
            let place = place.expect("it was there");
            assert_eq!(after.words.get(&place), Some(&word), "{mac}");
        }
    }

    #[test]
    fn addresses_without_room_are_named() {
        let own: BTreeSet<(u32, Mac)> = (0..2_000_u32)
            .map(|n| {
                (
                    n % 7,
                    Mac([2, 0, 0, 0, n.to_le_bytes()[1], n.to_le_bytes()[0]]),
                )
            })
            .collect();
        let macs = Macs::new(&BTreeMap::new(), &own, &BTreeSet::new());
        let found = own
            .iter()
            .filter(|&&(ifindex, mac)| has(&macs.words, ifindex, mac));
        assert_eq!(found.count() + macs.left_out.len(), own.len());
        assert!(!macs.left_out.is_empty());
    }
}
