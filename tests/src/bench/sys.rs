//! The bench's only unsafe code: structs of the ABI as bytes for aya, and maps as memory.
#![allow(unsafe_code)]

use anyhow::{Context as _, Result};
use aya::Pod;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use sluice_abi::{
    EndpointKey, FullNatKey, FullNatValue, Head, RingWord, ServerCounters, ServerRecord,
    ServerWord, VipWord, bench::BenchControl,
};
use std::{num::NonZeroUsize, os::fd::AsFd};

/// Fills an array map that was created with BPF_F_MMAPABLE with zeros; `bytes` is its size, and no program uses it now.
pub(crate) fn zero(map: impl AsFd, bytes: NonZeroUsize) -> Result<()> {
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping that nothing else refers to; the kernel refuses more than the map's size, rounded up to pages.
    // It is written as bytes only and unmapped before anyone could keep a pointer.
    unsafe {
        let memory = mmap(None, bytes, protection, MapFlags::MAP_SHARED, map, 0)
            .context("cannot map a BPF map")?;
        memory.write_bytes(0, bytes.get());
        munmap(memory, bytes.get()).context("cannot unmap a BPF map")
    }
}

/// A map key or value of the ABI. aya's [`Pod`] cannot be implemented for types of another crate.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw<T>(pub(crate) T);

macro_rules! pod {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: the ABI's structs are `repr(C)` integers and byte arrays without implicit padding, as its size
            // assertions show; every bit pattern is valid.
            unsafe impl Pod for Raw<$type> {}
        )+
    };
}

pod!(
    EndpointKey<4>,
    EndpointKey<16>,
    VipWord,
    Head,
    RingWord,
    ServerWord,
    ServerRecord,
    ServerCounters,
    BenchControl,
    FullNatKey<4>,
    FullNatKey<16>,
    FullNatValue<4>,
    FullNatValue<16>,
);
