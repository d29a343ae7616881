//! The bench's only unsafe code: structs of the ABI as bytes for aya.
#![allow(unsafe_code)]

use aya::Pod;
use sluice_abi::{
    Head, PortKey, RingWord, ServerCounters, ServerRecord, ServerWord, VipWord, bench::BenchControl,
};

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
    PortKey<4>,
    PortKey<16>,
    VipWord,
    Head,
    RingWord,
    ServerWord,
    ServerRecord,
    ServerCounters,
    BenchControl,
);
