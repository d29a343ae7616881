//! Writing and reading the maps.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::{
        Array, HashMap, MapData, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
};
use sluice_abi::{PrefixKey, SourceKey};

use super::{
    layout,
    machine::FamilyState,
    setup::{Family, sizes},
};

pub(super) type Hash<const K: usize, const V: usize> = HashMap<MapData, [u8; K], [u8; V]>;
pub(super) type Contents<const K: usize, const V: usize> = BTreeMap<[u8; K], [u8; V]>;

/// The maps of one family; the parameters are sizes of addresses, keys, and buckets of flows or slots of claims.
pub(super) struct KernelFamily<const A: usize, const E: usize, const B: usize> {
    vips: Hash<E, 8>,
    replies: Hash<E, 4>,
    locals: Hash<E, 4>,
    announced: Hash<E, 8>,
    peer_nets: LpmTrie<MapData, [u8; A], u32>,
    sources: LpmTrie<MapData, [u8; E], u32>,
    claims: Array<MapData, [u8; B]>,
    flows: Array<MapData, [u8; B]>,
    half_open: Array<MapData, [u8; B]>,
}

pub(super) fn hash<const K: usize, const V: usize>(
    ebpf: &mut Ebpf,
    name: &str,
) -> Result<Hash<K, V>> {
    let map = ebpf
        .take_map(name)
        .with_context(|| format!("no map {name}"))?;
    HashMap::try_from(map).with_context(|| format!("layout of map {name}"))
}

fn trie<const K: usize>(ebpf: &mut Ebpf, name: &str) -> Result<LpmTrie<MapData, [u8; K], u32>> {
    let map = ebpf
        .take_map(name)
        .with_context(|| format!("no map {name}"))?;
    LpmTrie::try_from(map).with_context(|| format!("layout of map {name}"))
}

pub(super) fn map_array<V: aya::Pod>(ebpf: &mut Ebpf, name: &str) -> Result<Array<MapData, V>> {
    let map = ebpf
        .take_map(name)
        .with_context(|| format!("no map {name}"))?;
    Array::try_from(map).with_context(|| format!("layout of map {name}"))
}

pub(super) fn per_cpu<V: aya::Pod>(ebpf: &mut Ebpf, name: &str) -> Result<PerCpuArray<MapData, V>> {
    let map = ebpf
        .take_map(name)
        .with_context(|| format!("no map {name}"))?;
    PerCpuArray::try_from(map).with_context(|| format!("layout of map {name}"))
}

impl<const A: usize, const E: usize, const B: usize> KernelFamily<A, E, B> {
    pub(super) fn take(ebpf: &mut Ebpf, version: u8) -> Result<Self> {
        let name = |map: &str| format!("{map}{version}");
        Ok(Self {
            vips: hash(ebpf, &name("VIPS"))?,
            replies: hash(ebpf, &name("REPLIES"))?,
            locals: hash(ebpf, &name("LOCALS"))?,
            announced: hash(ebpf, &name("ANNOUNCED"))?,
            peer_nets: trie(ebpf, &name("PEER_NETS"))?,
            sources: trie(ebpf, &name("SOURCES"))?,
            claims: map_array(ebpf, &name("FULLNAT"))?,
            flows: map_array(ebpf, &name("FLOWS"))?,
            half_open: map_array(ebpf, &name("HALF"))?,
        })
    }

    pub(super) fn configure(&mut self, old: &Family<A>, new: &Family<A>) -> Result<()> {
        let vips = |family: &Family<A>| -> Contents<E, 8> {
            let vips = family.vips.iter();
            vips.map(|(key, word)| (layout::port_key(key), word.0.to_le_bytes()))
                .collect()
        };
        write_hash(&mut self.vips, &vips(old), &vips(new))?;
        let replies = |family: &Family<A>| -> Contents<E, 4> {
            let replies = family.replies.iter();
            replies
                .map(|(key, index)| (layout::port_key(key), index.to_le_bytes()))
                .collect()
        };
        write_hash(&mut self.replies, &replies(old), &replies(new))?;
        let locals = |family: &Family<A>| -> Contents<E, 4> {
            let locals = family.locals.iter();
            locals
                .map(|(key, id)| (layout::local(key), id.to_le_bytes()))
                .collect()
        };
        write_hash(&mut self.locals, &locals(old), &locals(new))?;
        let announced = |family: &Family<A>| -> Contents<E, 8> {
            let announced = family.announced.iter();
            announced
                .map(|(key, word)| (layout::announced(key), word.0.to_le_bytes()))
                .collect()
        };
        write_hash(&mut self.announced, &announced(old), &announced(new))?;
        let key = |prefix: &PrefixKey<A>| Key::new(prefix.length, prefix.addr);
        for gone in old.peer_nets.keys() {
            if !new.peer_nets.contains_key(gone) {
                self.peer_nets.remove(&key(gone))?;
            }
        }
        for (net, flags) in &new.peer_nets {
            if old.peer_nets.get(net) != Some(flags) {
                self.peer_nets.insert(&key(net), flags, 0)?;
            }
        }
        let key = |source: &SourceKey<A>| Key::new(source.length, layout::source(&source.source));
        for gone in old.sources.difference(&new.sources) {
            self.sources.remove(&key(gone))?;
        }
        for source in new.sources.difference(&old.sources) {
            self.sources.insert(&key(source), 1, 0)?;
        }
        Ok(())
    }

    /// Empties the flow tables, and puts the first claims in.
    pub(super) fn begin(&mut self, setup: &Family<A>, seed: u64) -> Result<()> {
        for (table, size) in [
            (&mut self.flows, sizes::FLOWS),
            (&mut self.half_open, sizes::HALF_OPEN),
            (&mut self.claims, sizes::CLAIMS),
        ] {
            for bucket in 0..size.min(table.len()) {
                table.set(bucket, [0; B], 0)?;
            }
        }
        for claim in &setup.claims {
            let (hash, words) = layout::claim::<A>(claim, seed);
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let slot = hash % sizes::CLAIMS;
            self.claims.set(slot, layout::array::<B>(&bytes), 0)?;
        }
        Ok(())
    }

    /// What packets have written; the slots of claims only if there may be any.
    pub(super) fn state(&self, has_claims: bool) -> Result<FamilyState> {
        let words = |table: &Array<MapData, [u8; B]>| -> Result<Vec<Vec<u64>>> {
            let mut buckets = Vec::new();
            for bucket in table.iter() {
                let bucket = bucket?;
                let words = bucket.chunks(8);
                buckets.push(
                    words
                        .map(|word| u64::from_le_bytes(layout::array(word)))
                        .collect(),
                );
            }
            Ok(buckets)
        };
        let slots = if has_claims {
            words(&self.claims)?
        } else {
            Vec::new()
        };
        let claims = (0..).zip(slots);
        Ok(FamilyState {
            flows: words(&self.flows)?,
            half_open: words(&self.half_open)?,
            claims: claims.filter(|(_, slot)| slot[0] != 0).collect(),
        })
    }
}

/// Turns what `map` holds, `old`, into `new`.
pub(super) fn write_hash<const K: usize, const V: usize>(
    map: &mut Hash<K, V>,
    old: &Contents<K, V>,
    new: &Contents<K, V>,
) -> Result<()> {
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        map.remove(key)?;
    }
    for (key, value) in new {
        if old.get(key) != Some(value) {
            map.insert(key, value, 0)?;
        }
    }
    Ok(())
}

/// Turns what `map` holds, `old`, into `new`. Elements beyond the map's end are what packets may ask for in vain.
pub(super) fn write_array<T: PartialEq + Default, V: aya::Pod>(
    map: &mut Array<MapData, V>,
    old: &BTreeMap<u32, T>,
    new: &BTreeMap<u32, T>,
    encode: impl Fn(&T) -> V,
) -> Result<()> {
    let size = map.len();
    for key in old
        .keys()
        .filter(|key| !new.contains_key(*key) && **key < size)
    {
        map.set(*key, encode(&T::default()), 0)?;
    }
    for (key, value) in new {
        if *key < size && old.get(key) != Some(value) {
            map.set(*key, encode(value), 0)?;
        }
    }
    Ok(())
}
