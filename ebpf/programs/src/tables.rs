//! The maps, clock and routes as `sluice_packet` sees them.

use crate::maps::{self, constant};
use aya_ebpf::{
    bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup},
    btf_maps::lpm_trie::Key,
    cty::c_void,
    helpers::{
        bpf_fib_lookup, bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_coarse_ns,
        bpf_ktime_get_ns,
    },
};
use sluice_abi::{
    AnnouncedKey, AnnouncedWord, ConfigWord, FlowClock, FlowData, GROUP_DEADLINE, Head, LocalKey,
    MAC_WORDS, MacKey, NEW_FLOW_WORDS, NextHopWord, PortKey, RingWord, SAMPLE_WORDS, ServerRecord,
    ServerWord, Source, SourceKey, Stat, VipWord,
};
use sluice_packet::{
    AlignedMac, FamilyTables, Route, SharedWords, Tables, change_words, claim_worth, copy,
    find_words, insert_words, sample_words,
};

/// Address families of the kernel's `bpf_fib_lookup`.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// `N` words in a map, such as a bucket of a flow table.
pub struct Words<const N: usize>(*mut u64);

impl<const N: usize> Words<N> {
    #[inline(always)]
    fn at(&self, word: usize) -> *mut u64 {
        // SAFETY: `N` is a power of two, so the index is below it.
        unsafe { self.0.add(word & (N - 1)) }
    }
}

impl<const N: usize> SharedWords for Words<N> {
    #[inline(always)]
    fn load(&self, word: usize) -> u64 {
        // SAFETY: inside the value; aligned 8-byte reads are single instructions.
        unsafe { core::ptr::read_volatile(self.at(word)) }
    }

    #[inline(always)]
    fn store(&self, word: usize, value: u64) {
        // SAFETY: inside the value.
        unsafe { core::ptr::write_volatile(self.at(word), value) }
    }

    #[inline(always)]
    fn compare_exchange(&self, word: usize, old: u64, new: u64) -> u64 {
        // SAFETY: inside the value.
        unsafe { compare_exchange(self.at(word), old, new) }
    }
}

/// Writes `new` to an aligned word of a map if it is `old`; returns what it was. rustc's BPF target has no compare-exchange
/// of its own.
#[inline(always)]
unsafe fn compare_exchange(target: *mut u64, old: u64, new: u64) -> u64 {
    let was: u64;
    // SAFETY: the caller's.
    unsafe {
        core::arch::asm!(
            "r0 = cmpxchg_64({target} + 0, r0, {new})",
            target = in(reg) target,
            new = in(reg) new,
            inout("r0") old => was,
        );
    }
    was
}

/// The maps of this object, and the context that the routing helper asks for.
pub struct Maps {
    context: *mut c_void,
}

impl Maps {
    /// `context` is the program's own.
    #[inline(always)]
    pub fn new(context: *mut c_void) -> Self {
        Self { context }
    }

    #[inline(always)]
    fn testing() -> bool {
        constant(&maps::TEST_HOOKS) != 0
    }
}

/// The same number, as one that is used: a caller would leave an argument undefined that the function ignores.
#[inline(always)]
fn used(mut argument: u64) -> u64 {
    // SAFETY: changes nothing.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) argument) };
    argument
}

macro_rules! family {
    (
        address: $a:literal,
        bucket_words: $words:literal,
        vips: $vips:ident,
        replies: $replies:ident,
        locals: $locals:ident,
        peer_nets: $peer_nets:ident,
        sources: $sources:ident,
        announced: $announced:ident,
        flows: $flows:ident masked by $flows_mask:ident,
        half_open: $half:ident masked by $half_mask:ident,
        claims: $fullnat:ident masked by $fullnat_mask:ident,
        route: $route:ident,
        find: $find:ident,
        change: $change:ident,
        insert: $insert:ident,
        sample: $sample:ident,
        worth: $worth:ident $(,)?
    ) => {
        // Global functions: the verifier checks them once, for any arguments.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $find(first: u64, second: u64, third: u64, now: u64) -> u64 {
            let maps = Maps::new(core::ptr::null_mut());
            let words = [first, used(second), used(third)];
            find_words::<$a, _>(&maps, words, FlowClock(now as u32)).0
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $change(
            first: u64,
            second: u64,
            third: u64,
            found: u64,
            data: u64,
        ) -> u32 {
            let maps = Maps::new(core::ptr::null_mut());
            let words = [first, used(second), used(third)];
            change_words::<$a, _>(&maps, words, FlowData(found), FlowData(data));
            0
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $insert(first: u64, second: u64, third: u64, data: u64, now: u64) -> u32 {
            let maps = Maps::new(core::ptr::null_mut());
            let words = [first, used(second), used(third)];
            u32::from(insert_words::<$a, _>(
                &maps,
                words,
                FlowData(data),
                FlowClock(now as u32),
                // No caller sets these bits, but neither compiler nor verifier knows.
                (now >> 32) as u32,
            ))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $sample(first: u64, second: u64, what: u64, numbers: u64) -> u32 {
            let maps = Maps::new(core::ptr::null_mut());
            let client = [first, used(second)];
            u32::from(sample_words::<$a, _>(&maps, client, what, numbers))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $worth(hash: u64, now: u64) -> u32 {
            let maps = Maps::new(core::ptr::null_mut());
            claim_worth::<$a, _>(&maps, hash as u32, FlowClock(now as u32))
        }

        impl FamilyTables<$a> for Maps {
            type Bucket<'a> = Words<$words>;

            #[inline(always)]
            fn vip(&self, key: &PortKey<$a>) -> Option<VipWord> {
                // SAFETY: one 8-byte word, replaced as a whole.
                unsafe { maps::$vips.get(key) }.copied()
            }
            #[inline(always)]
            fn reply_index(&self, key: &PortKey<$a>) -> Option<u32> {
                // SAFETY: one word.
                unsafe { maps::$replies.get(key) }.copied()
            }
            #[inline(always)]
            fn local(&self, key: &LocalKey<$a>) -> Option<u32> {
                // SAFETY: one word.
                unsafe { maps::$locals.get(key) }.copied()
            }
            #[inline(always)]
            fn announced(&self, key: &AnnouncedKey<$a>) -> Option<AnnouncedWord> {
                // SAFETY: one word, replaced as a whole.
                unsafe { maps::$announced.get(key) }.copied()
            }
            #[inline(always)]
            fn peer_net(&self, address: &[u8; $a]) -> u32 {
                let key = Key::new(8 * $a, *address);
                maps::$peer_nets.get(&key).copied().unwrap_or_default()
            }
            #[inline(always)]
            fn has_source(&self, set: u32, address: &[u8; $a]) -> bool {
                let mut addr = [0; $a];
                copy(&mut addr, address);
                let length = SourceKey::<$a>::SET_BITS + 8 * $a;
                let key = Key::new(length, Source { set, addr });
                maps::$sources.get(&key).is_some()
            }
            #[inline(always)]
            fn flows(&self, hash: u32) -> Option<Words<$words>> {
                maps::$flows
                    .get_ptr_mut(hash & constant(&maps::$flows_mask))
                    .map(|bucket| Words(bucket.cast()))
            }
            #[inline(always)]
            fn half_open(&self, hash: u32) -> Option<Words<$words>> {
                maps::$half
                    .get_ptr_mut(hash & constant(&maps::$half_mask))
                    .map(|bucket| Words(bucket.cast()))
            }
            #[inline(always)]
            fn claims(&self, hash: u32) -> Option<Words<$words>> {
                maps::$fullnat
                    .get_ptr_mut(hash & constant(&maps::$fullnat_mask))
                    .map(|slot| Words(slot.cast()))
            }
            #[inline(always)]
            fn claim_worth(&self, hash: u32, now: FlowClock) -> u32 {
                $worth(u64::from(hash), u64::from(now.0))
            }
            #[inline(always)]
            fn find_flow(&self, words: [u64; 3], now: FlowClock) -> FlowData {
                FlowData($find(words[0], words[1], words[2], u64::from(now.0)))
            }
            #[inline(always)]
            fn change_flow(&self, words: [u64; 3], found: FlowData, data: FlowData) {
                $change(words[0], words[1], words[2], found.0, data.0);
            }
            #[inline(always)]
            fn insert_flow(&self, words: [u64; 3], data: FlowData, now: FlowClock) -> bool {
                $insert(words[0], words[1], words[2], data.0, u64::from(now.0)) != 0
            }
            #[inline(always)]
            fn sample(&self, client: [u64; 2], what: u64, numbers: u64) -> bool {
                $sample(client[0], client[1], what, numbers) != 0
            }
            #[inline(always)]
            fn route(&self, ifindex: u32, source: &[u8; $a], destination: &[u8; $a]) -> Route {
                if Self::testing() {
                    return test_route(destination);
                }
                $route(self.context, ifindex, source, destination)
            }
        }
    };
}
family! {
    address: 4,
    bucket_words: 8,
    vips: VIPS4,
    replies: REPLIES4,
    locals: LOCALS4,
    peer_nets: PEER_NETS4,
    sources: SOURCES4,
    announced: ANNOUNCED4,
    flows: FLOWS4 masked by FLOWS4_MASK,
    half_open: HALF4 masked by HALF4_MASK,
    claims: FULLNAT4 masked by FULLNAT4_MASK,
    route: route_ipv4,
    find: find_flow4,
    change: change_flow4,
    insert: insert_flow4,
    sample: sample4,
    worth: claim_worth4,
}
family! {
    address: 16,
    bucket_words: 16,
    vips: VIPS6,
    replies: REPLIES6,
    locals: LOCALS6,
    peer_nets: PEER_NETS6,
    sources: SOURCES6,
    announced: ANNOUNCED6,
    flows: FLOWS6 masked by FLOWS6_MASK,
    half_open: HALF6 masked by HALF6_MASK,
    claims: FULLNAT6 masked by FULLNAT6_MASK,
    route: route_ipv6,
    find: find_flow6,
    change: change_flow6,
    insert: insert_flow6,
    sample: sample6,
    worth: claim_worth6,
}

impl Tables for Maps {
    type Macs<'a> = Words<{ MAC_WORDS as usize }>;
    type Word<'a> = Words<1>;
    type Sample<'a> = Words<SAMPLE_WORDS>;

    #[inline(always)]
    fn config(&self, word: ConfigWord) -> u64 {
        // SAFETY: one word.
        maps::CONFIG
            .get_ptr(word as u32)
            .map_or(0, |value| unsafe { core::ptr::read_volatile(value) })
    }
    #[inline(always)]
    fn flow_seed(&self) -> u64 {
        if Self::testing() {
            return self.config(ConfigWord::FlowSeed);
        }
        constant(&maps::FLOW_SEED)
    }
    #[inline(always)]
    fn head(&self, slot: u32) -> Option<&Head> {
        maps::HEADS.get(slot)
    }
    #[inline(always)]
    fn ring(&self, ring: u32) -> Option<RingWord> {
        maps::RINGS.get(ring).copied()
    }
    #[inline(always)]
    fn ring_slot(&self, index: u32) -> Option<u32> {
        let pair = maps::RING_SLOTS.get(index >> 1)?;
        Some(pair[(index & 1) as usize])
    }
    #[inline(always)]
    fn server(&self, id: u32) -> Option<ServerWord> {
        // SAFETY: one word; volatile, so that it is read once.
        maps::SERVERS
            .get_ptr(id)
            .map(|word| unsafe { core::ptr::read_volatile(word) })
    }
    #[inline(always)]
    fn record(&self, slot: u32) -> Option<&ServerRecord> {
        maps::RECORDS.get(slot)
    }
    #[inline(always)]
    fn macs(&self) -> Option<Self::Macs<'_>> {
        maps::MACS.get_ptr_mut(0).map(|words| Words(words.cast()))
    }
    #[inline(always)]
    fn mac_number(&self, mac: &[u8; 6]) -> u64 {
        let mut number = 0;
        let mut i = 0;
        while i < 6 {
            // SAFETY: a valid reference; volatile, so that bytes are not read together.
            let byte = unsafe { core::ptr::read_volatile(&raw const mac[i]) };
            number |= u64::from(byte) << (8 * i);
            i += 1;
        }
        number
    }
    #[inline(always)]
    fn new_flows(&self, index: u32) -> Option<Self::Word<'_>> {
        maps::NEW_FLOWS
            .get_ptr_mut(index & (NEW_FLOW_WORDS - 1))
            .map(Words)
    }
    #[inline(always)]
    fn sample_slot(&self, hash: u32) -> Option<Self::Sample<'_>> {
        maps::SAMPLES
            .get_ptr_mut(hash & constant(&maps::SAMPLES_MASK))
            .map(|slot| Words(slot.cast()))
    }
    #[inline(always)]
    fn next_hop(&self, index: u32) -> NextHopWord {
        // SAFETY: one word; volatile, so that it is read once.
        NextHopWord(
            maps::NEXT_HOPS
                .get_ptr(index)
                .map_or(0, |word| unsafe { core::ptr::read_volatile(word) }),
        )
    }
    #[inline(always)]
    fn change_next_hop(&self, index: u32, old: NextHopWord, new: NextHopWord) -> bool {
        // SAFETY: an aligned word of the map.
        maps::NEXT_HOPS
            .get_ptr_mut(index)
            .is_some_and(|word| unsafe { compare_exchange(word, old.0, new.0) == old.0 })
    }
    #[inline(always)]
    fn is_peer(&self, mac: &MacKey) -> bool {
        maps::PEERS.get_ptr(mac).is_some()
    }
    #[inline(always)]
    fn group_deadline(&self, group: u32) -> u64 {
        // SAFETY: a word of the value; volatile, so that it is read once.
        maps::GROUPS.get_ptr(group).map_or(0, |words| unsafe {
            core::ptr::read_volatile(words.cast::<u64>().add(GROUP_DEADLINE))
        })
    }
    #[inline(always)]
    fn now_ns(&self) -> u64 {
        if Self::testing() {
            return self.config(ConfigWord::TestClock);
        }
        let tick_ns = constant(&maps::TICK_NS);
        if tick_ns == 0 {
            // SAFETY: a helper without arguments (Linux 5.11).
            return unsafe { bpf_ktime_get_coarse_ns() };
        }
        // A tick's resolution is enough, and jiffies are one load (Linux 5.6 inlines the helper on 64-bit machines).
        // SAFETY: a helper without arguments.
        unsafe { bpf_jiffies64() }
            .wrapping_mul(tick_ns)
            .wrapping_add(constant(&maps::TICK_OFFSET))
    }
    #[inline(always)]
    fn exact_ns(&self) -> u64 {
        if Self::testing() {
            return self.config(ConfigWord::TestClock);
        }
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_ns() }
    }
    #[inline(always)]
    fn random(&self) -> u32 {
        if Self::testing() {
            return self.config(ConfigWord::TestRandom) as u32;
        }
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }
    #[inline(always)]
    fn count(&self, server: u32, bytes: u32, new_flow: bool) {
        if let Some(counters) = maps::COUNTERS.get_ptr_mut(server) {
            // SAFETY: a per-CPU value.
            unsafe {
                (*counters).packets += 1;
                (*counters).bytes += u64::from(bytes);
                (*counters).flows += u64::from(new_flow);
            }
        }
    }
    #[inline(always)]
    fn count_reply(&self, server: u32, bytes: u32) {
        if let Some(counters) = maps::COUNTERS.get_ptr_mut(server) {
            // SAFETY: a per-CPU value.
            unsafe {
                (*counters).reply_packets += 1;
                (*counters).reply_bytes += u64::from(bytes);
            }
        }
    }
    #[inline(always)]
    fn stat(&self, stat: Stat) {
        if let Some(counter) = maps::STATS.get_ptr_mut(stat as u32) {
            // SAFETY: a per-CPU value.
            unsafe { *counter += 1 }
        }
    }
}

#[inline(always)]
fn test_route<const A: usize>(destination: &[u8; A]) -> Route {
    let mut key = [0u8; 16];
    let mut i = 0;
    while i < A && i < 16 {
        // SAFETY: a valid reference; volatile, because joined loads would be misaligned stack accesses.
        key[i] = unsafe { core::ptr::read_volatile(&raw const destination[i]) };
        i += 1;
    }
    // SAFETY: written before the test runs.
    match unsafe { maps::TEST_ROUTES.get(key) } {
        Some(route) if route.kind == 2 => Route::Resolved {
            ifindex: route.ifindex,
            source_mac: AlignedMac(route.source_mac),
            next_hop_mac: AlignedMac(route.next_hop_mac),
        },
        Some(route) if route.kind == 1 => Route::NoNeighbour {
            ifindex: route.ifindex,
        },
        _ => Route::None,
    }
}

#[inline(never)]
fn route_ipv4(
    context: *mut c_void,
    ifindex: u32,
    source: &[u8; 4],
    destination: &[u8; 4],
) -> Route {
    let mut query = empty_query(AF_INET, ifindex);
    query.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(*source);
    query.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(*destination);
    lookup(context, &mut query)
}

#[inline(never)]
fn route_ipv6(
    context: *mut c_void,
    ifindex: u32,
    source: &[u8; 16],
    destination: &[u8; 16],
) -> Route {
    let mut query = empty_query(AF_INET6, ifindex);
    query.__bindgen_anon_3.ipv6_src = words(source);
    query.__bindgen_anon_4.ipv6_dst = words(destination);
    lookup(context, &mut query)
}

#[inline(always)]
fn words(a: &[u8; 16]) -> [u32; 4] {
    [
        u32::from_ne_bytes([a[0], a[1], a[2], a[3]]),
        u32::from_ne_bytes([a[4], a[5], a[6], a[7]]),
        u32::from_ne_bytes([a[8], a[9], a[10], a[11]]),
        u32::from_ne_bytes([a[12], a[13], a[14], a[15]]),
    ]
}

#[inline(always)]
fn empty_query(family: u8, ifindex: u32) -> FibLookup {
    // SAFETY: plain integers, for which zero is valid.
    let mut query: FibLookup = unsafe { core::mem::zeroed() };
    query.family = family;
    query.ifindex = ifindex;
    query
}

/// Copies byte by byte: joined loads would be misaligned stack accesses.
#[inline(always)]
fn mac(bytes: &[u8; 6]) -> AlignedMac {
    // SAFETY: a valid reference; volatile, so that the loads are not joined.
    AlignedMac(core::array::from_fn(|i| unsafe {
        core::ptr::read_volatile(&raw const bytes[i])
    }))
}

#[inline(always)]
fn lookup(context: *mut c_void, query: &mut FibLookup) -> Route {
    // SAFETY: the program's context and a whole query.
    let result = unsafe { bpf_fib_lookup(context, query, size_of::<FibLookup>() as i32, 0) };
    if result == BPF_FIB_LKUP_RET_SUCCESS as i64 {
        Route::Resolved {
            ifindex: query.ifindex,
            source_mac: mac(&query.smac),
            next_hop_mac: mac(&query.dmac),
        }
    } else if result == BPF_FIB_LKUP_RET_NO_NEIGH as i64 {
        Route::NoNeighbour {
            ifindex: query.ifindex,
        }
    } else {
        Route::None
    }
}
