//! The maps and the constants that the loader sets. Sizes are defaults: the agent chooses them when it loads the object,
//! together with the masks.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, LpmTrie, PerCpuArray},
    macros::btf_map,
};
use sluice_abi::{
    AnnouncedKey, AnnouncedWord, CONFIG_WORDS, GROUP_WORDS, Head, LocalKey, MAC_WORDS, MAX_GROUPS,
    MOST_DROP_REASONS, MOST_STATS, MacKey, NEW_FLOW_WORDS, NEXT_HOP_WORDS, PortKey, RingWord,
    SAMPLE_SLOTS, SAMPLE_WORDS, ServerCounters, ServerRecord, ServerWord, Source, VipWord,
};

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

/// Four entries of IPv4 flows, or a claim of an IPv4 port: one cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Bucket4(pub [u64; 8]);

/// What is seen of a connection that begins: one cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Sample(pub [u64; SAMPLE_WORDS]);

/// Four entries of IPv6 flows, or a claim of an IPv6 port: two cache lines.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Bucket6(pub [u64; 16]);

#[btf_map]
pub static CONFIG: Array<u64, { CONFIG_WORDS as usize }> = Array::new();

#[btf_map]
pub static VIPS4: HashMap<PortKey<4>, VipWord, 4096, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static VIPS6: HashMap<PortKey<16>, VipWord, 4096, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static REPLIES4: HashMap<PortKey<4>, u32, 16384, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static REPLIES6: HashMap<PortKey<16>, u32, 16384, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static LOCALS4: HashMap<LocalKey<4>, u32, 16384, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static LOCALS6: HashMap<LocalKey<16>, u32, 16384, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static PEERS: HashMap<MacKey, u32, 1024, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static MACS: Array<[u64; MAC_WORDS as usize], 1, MMAPABLE> = Array::new();
#[btf_map]
pub static PEER_NETS4: LpmTrie<[u8; 4], u32, 8192> = LpmTrie::new();
#[btf_map]
pub static PEER_NETS6: LpmTrie<[u8; 16], u32, 8192> = LpmTrie::new();

#[btf_map]
pub static SOURCES4: LpmTrie<Source<4>, u32, 65536> = LpmTrie::new();
#[btf_map]
pub static SOURCES6: LpmTrie<Source<16>, u32, 65536> = LpmTrie::new();

#[btf_map]
pub static NEXT_HOPS: Array<u64, { NEXT_HOP_WORDS as usize }> = Array::new();

#[btf_map]
pub static HEADS: Array<Head, 16384, MMAPABLE> = Array::new();
#[btf_map]
pub static RINGS: Array<RingWord, 8192> = Array::new();
#[btf_map]
pub static RING_SLOTS: Array<[u32; 2], 2_097_152, MMAPABLE> = Array::new();
#[btf_map]
pub static SERVERS: Array<ServerWord, 65536> = Array::new();
#[btf_map]
pub static RECORDS: Array<ServerRecord, 131_072, MMAPABLE> = Array::new();

#[btf_map]
pub static FLOWS4: Array<Bucket4, 65536, MMAPABLE> = Array::new();
#[btf_map]
pub static FLOWS6: Array<Bucket6, 65536, MMAPABLE> = Array::new();
#[btf_map]
pub static HALF4: Array<Bucket4, 16384, MMAPABLE> = Array::new();
#[btf_map]
pub static HALF6: Array<Bucket6, 16384, MMAPABLE> = Array::new();
#[btf_map]
pub static FULLNAT4: Array<Bucket4, 131_072, MMAPABLE> = Array::new();
#[btf_map]
pub static FULLNAT6: Array<Bucket6, 131_072, MMAPABLE> = Array::new();
#[btf_map]
pub static NEW_FLOWS: Array<u64, { NEW_FLOW_WORDS as usize }> = Array::new();

#[btf_map]
pub static ANNOUNCED4: HashMap<AnnouncedKey<4>, AnnouncedWord, 4096, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static ANNOUNCED6: HashMap<AnnouncedKey<16>, AnnouncedWord, 4096, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static GROUPS: Array<[u64; GROUP_WORDS], { MAX_GROUPS as usize }, MMAPABLE> = Array::new();

#[btf_map]
pub static SAMPLES: Array<Sample, { SAMPLE_SLOTS as usize }, MMAPABLE> = Array::new();

#[btf_map]
pub static COUNTERS: PerCpuArray<ServerCounters, 65536> = PerCpuArray::new();
#[btf_map]
pub static DROPS: PerCpuArray<u64, { MOST_DROP_REASONS as usize }> = PerCpuArray::new();
#[btf_map]
pub static STATS: PerCpuArray<u64, { MOST_STATS as usize }> = PerCpuArray::new();

/// A route that tests put in the place of the kernel's answer.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TestRoute {
    /// 0 = none, 1 = no neighbour, 2 = resolved.
    pub kind: u32,
    pub ifindex: u32,
    pub source_mac: [u8; 6],
    pub next_hop_mac: [u8; 6],
    pub pad: [u8; 4],
}

/// Routes by destination; read only when [`TEST_HOOKS`] is set.
#[btf_map]
pub static TEST_ROUTES: HashMap<[u8; 16], TestRoute, 256, NO_PREALLOC> = HashMap::new();

/// Number of buckets of each flow table less one; set by the loader together with the tables' sizes.
#[unsafe(no_mangle)]
pub static FLOWS4_MASK: u32 = 65535;
#[unsafe(no_mangle)]
pub static FLOWS6_MASK: u32 = 65535;
#[unsafe(no_mangle)]
pub static HALF4_MASK: u32 = 16383;
#[unsafe(no_mangle)]
pub static HALF6_MASK: u32 = 16383;
/// Slots of the claims' tables less one, alike.
#[unsafe(no_mangle)]
pub static FULLNAT4_MASK: u32 = 131_071;
#[unsafe(no_mangle)]
pub static FULLNAT6_MASK: u32 = 131_071;

/// Slots of samples less one. Tests have fewer.
#[unsafe(no_mangle)]
pub static SAMPLES_MASK: u32 = SAMPLE_SLOTS - 1;

/// Not 0 in tests: clock, chance and routes come from maps. The verifier removes that code when it is 0.
#[unsafe(no_mangle)]
pub static TEST_HOOKS: u32 = 0;

/// The flow tables' secret seed, as in `CONFIG`: a constant spares each packet a look-up.
#[unsafe(no_mangle)]
pub static FLOW_SEED: u64 = 0;

/// Nanoseconds between two ticks; 0: jiffies are not used.
#[unsafe(no_mangle)]
pub static TICK_NS: u64 = 0;
/// The monotonic clock when jiffies were 0, in nanoseconds modulo 2^64.
#[unsafe(no_mangle)]
pub static TICK_OFFSET: u64 = 0;

/// Offsets of `aux` in the kernel's `struct bpf_prog` and of `id` in its `struct bpf_prog_aux`.
#[unsafe(no_mangle)]
pub static BPF_PROG_AUX: u32 = 0;
#[unsafe(no_mangle)]
pub static BPF_PROG_AUX_ID: u32 = 0;

/// A constant that the loader may have set.
#[inline(always)]
pub fn constant<T: Copy>(value: &'static T) -> T {
    // SAFETY: a valid reference; volatile, because the compiler must not assume the value it sees here.
    unsafe { core::ptr::read_volatile(value) }
}
