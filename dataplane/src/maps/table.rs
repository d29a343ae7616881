//! Maps with the types of their keys and values.

use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::sys::{Memory, Plain, RawMap, bytes_of, read_plain};

fn check_size<T>(what: &str, found: usize) -> io::Result<()> {
    if size_of::<T>() == found {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "the {what} has {found} bytes instead of {}",
        size_of::<T>()
    )))
}

fn short() -> io::Error {
    io::Error::from(io::ErrorKind::UnexpectedEof)
}

/// A hash map, or one by longest prefix.
#[derive(Debug)]
pub(super) struct Hash<K, V> {
    raw: RawMap,
    types: PhantomData<(K, V)>,
}

impl<K: Plain, V: Plain> Hash<K, V> {
    pub(super) fn new(raw: RawMap) -> io::Result<Self> {
        check_size::<K>("key", raw.info().key_size as usize)?;
        check_size::<V>("value", raw.info().value_size as usize)?;
        Ok(Self {
            raw,
            types: PhantomData,
        })
    }

    pub(super) fn max_entries(&self) -> u32 {
        self.raw.info().max_entries
    }

    pub(super) fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = vec![0; size_of::<V>()];
        if !self.raw.lookup(bytes_of(key), &mut value)? {
            return Ok(None);
        }
        read_plain(&value).map(Some).ok_or_else(short)
    }

    pub(super) fn set(&self, key: &K, value: &V) -> io::Result<()> {
        self.raw.update(bytes_of(key), bytes_of(value))
    }

    /// Removes a key; one that is not there is no error.
    pub(super) fn remove(&self, key: &K) -> io::Result<()> {
        self.raw.delete(bytes_of(key)).map(drop)
    }

    /// All entries one by one. For maps that only this process writes.
    pub(super) fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        let mut key = vec![0; size_of::<K>()];
        let mut more = self.raw.next_key(None, &mut key)?;
        while more && entries.len() < self.max_entries() as usize {
            let typed: K = read_plain(&key).ok_or_else(short)?;
            if let Some(value) = self.get(&typed)? {
                entries.push((typed, value));
            }
            more = self.raw.next_key(Some(bytes_of(&typed)), &mut key)?;
        }
        Ok(entries)
    }
}

/// An array of words.
#[derive(Debug)]
pub(super) struct Array<V> {
    raw: RawMap,
    types: PhantomData<V>,
}

impl<V: Plain> Array<V> {
    pub(super) fn new(raw: RawMap) -> io::Result<Self> {
        check_size::<u32>("key", raw.info().key_size as usize)?;
        check_size::<V>("value", raw.info().value_size as usize)?;
        Ok(Self {
            raw,
            types: PhantomData,
        })
    }

    pub(super) fn max_entries(&self) -> u32 {
        self.raw.info().max_entries
    }

    pub(super) fn get(&self, index: u32) -> io::Result<V> {
        let mut value = vec![0; size_of::<V>()];
        if !self.raw.lookup(bytes_of(&index), &mut value)? {
            return Err(io::Error::other(format!("no index {index}")));
        }
        read_plain(&value).ok_or_else(short)
    }

    pub(super) fn set(&self, index: u32, value: &V) -> io::Result<()> {
        self.raw.update(bytes_of(&index), bytes_of(value))
    }
}

/// A per-CPU array.
#[derive(Debug)]
pub(super) struct PerCpu<V> {
    raw: RawMap,
    types: PhantomData<V>,
}

impl<V: Plain> PerCpu<V> {
    pub(super) fn new(raw: RawMap) -> io::Result<Self> {
        check_size::<u32>("key", raw.info().key_size as usize)?;
        check_size::<V>("value", raw.info().value_size as usize)?;
        Ok(Self {
            raw,
            types: PhantomData,
        })
    }

    pub(super) fn max_entries(&self) -> u32 {
        self.raw.info().max_entries
    }

    /// The values of all CPUs.
    pub(super) fn get(&self, index: u32) -> io::Result<Vec<V>> {
        let mut values = vec![0; self.raw.lookup_size()];
        if !self.raw.lookup(bytes_of(&index), &mut values)? {
            return Err(io::Error::other(format!("no index {index}")));
        }
        values
            .chunks_exact(size_of::<V>().next_multiple_of(8))
            .map(|value| read_plain(value).ok_or_else(short))
            .collect()
    }

    /// Sets the values of all CPUs to zero bytes.
    pub(super) fn clear(&self, index: u32) -> io::Result<()> {
        self.raw
            .update(bytes_of(&index), &vec![0; self.raw.lookup_size()])
    }
}

/// An array in shared memory.
#[derive(Debug)]
pub(super) struct Shared<V> {
    memory: Memory,
    max_entries: u32,
    types: PhantomData<V>,
}

impl<V> Shared<V> {
    /// `V` stands for the size of the value alone where it is a bucket.
    pub(super) fn new(raw: &RawMap, value_size: usize) -> io::Result<Self> {
        if raw.info().value_size as usize != value_size {
            return Err(io::Error::other(format!(
                "the value has {} bytes instead of {value_size}",
                raw.info().value_size
            )));
        }
        Ok(Self {
            memory: raw.memory()?,
            max_entries: raw.info().max_entries,
            types: PhantomData,
        })
    }

    pub(super) fn max_entries(&self) -> u32 {
        self.max_entries
    }

    /// The words of the whole array.
    pub(super) fn words(&self) -> &[AtomicU64] {
        self.memory.words()
    }

    /// Replaces a word of the array, which packets may read meanwhile.
    pub(super) fn set_word(&self, index: u32, word: u64) -> io::Result<()> {
        let slot = self.words().get(index as usize);
        slot.ok_or_else(|| Self::no_index(index))?
            .store(word, Ordering::Release);
        Ok(())
    }

    fn no_index(index: u32) -> io::Error {
        io::Error::other(format!("no index {index}"))
    }
}

impl<V: Plain> Shared<V> {
    /// A value whose size is a multiple of 8.
    pub(super) fn get(&self, index: u32) -> io::Result<V> {
        let bytes: Vec<u8> = self
            .slot(index)?
            .iter()
            .flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes())
            .collect();
        read_plain(&bytes).ok_or_else(short)
    }

    /// Writes a slot that no word refers to. The system call that flips the word orders these writes before it.
    pub(super) fn set(&self, index: u32, value: &V) -> io::Result<()> {
        let words = bytes_of(value).chunks_exact(8);
        for (slot, bytes) in self.slot(index)?.iter().zip(words) {
            let mut word = [0; 8];
            word.copy_from_slice(bytes);
            slot.store(u64::from_ne_bytes(word), Ordering::Relaxed);
        }
        Ok(())
    }

    fn slot(&self, index: u32) -> io::Result<&[AtomicU64]> {
        let words = self.memory.stride() / 8;
        let start = index as usize * words;
        self.words()
            .get(start..start + words)
            .ok_or_else(|| Self::no_index(index))
    }
}

impl Shared<[u32; 2]> {
    /// The halves of the pairs, from half `offset` on, `count` of them.
    pub(super) fn halves(&self, offset: u32, count: usize) -> io::Result<&[AtomicU32]> {
        let start = offset as usize;
        self.memory
            .half_words()
            .get(start..start + count)
            .ok_or_else(|| Self::no_index(offset))
    }
}
