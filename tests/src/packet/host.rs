//! The decision on the host, over ordinary collections.
//!
//! [`HostTables`] can be shared between threads as the maps are between CPUs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU64, Ordering},
};

use sluice_abi::{
    AnnouncedKey, AnnouncedWord, CONFIG_WORDS, ConfigWord, DropReason, FlowClock, FlowData, Head,
    LocalKey, MAC_WORDS, MAX_GROUPS, MacKey, NEXT_HOP_WORDS, NextHopWord, PortKey, RingWord,
    SAMPLE_WORDS, ServerRecord, ServerWord, SourceKey, Stat, VipWord,
};
use sluice_packet::{FamilyTables, Hook, Packet, Route, SharedWords, Tables, Verdict};

use super::{
    layout,
    machine::{FamilyState, Input, Machine, Output, Program, State},
    setup::{Family, IFINDEX, Setup, sizes},
};

/// Bytes before a frame in the kernel: `XDP_PACKET_HEADROOM` less its own `struct xdp_frame`.
const HEADROOM: usize = 216;
/// The content of those bytes: nothing that a program may rely on.
const GARBAGE: u8 = 0xa5;
/// Numbers of drop reasons are below this.
const REASONS: usize = sluice_abi::MOST_DROP_REASONS as usize;

/// A frame in memory, handled as the kernel does at a hook.
pub struct HostFrame {
    buffer: Vec<u8>,
    start: usize,
    ifindex: u32,
    is_skb: bool,
}

impl HostFrame {
    /// `frame` as `program` gets it, with `headroom` bytes before it.
    pub fn new(program: Program, frame: &[u8], headroom: usize) -> Self {
        let mut buffer = vec![GARBAGE; headroom];
        buffer.extend(frame);
        Self {
            buffer,
            start: headroom,
            ifindex: IFINDEX,
            is_skb: program != Program::Xdp,
        }
    }

    /// The frame's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }
}

impl Packet for HostFrame {
    fn length(&self) -> usize {
        self.buffer.len() - self.start
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn get<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        self.bytes().get(offset..)?.first_chunk()
    }

    fn set<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        let window = self
            .buffer
            .get_mut(self.start + offset..)?
            .first_chunk_mut()?;
        *window = *bytes;
        Some(())
    }

    /// The tc programs do not wrap packets.
    fn grow_front(&mut self, n: usize) -> Option<()> {
        if self.is_skb {
            return None;
        }
        self.start = self.start.checked_sub(n)?;
        Some(())
    }

    fn shrink_front(&mut self, n: usize) -> Option<()> {
        // The kernel keeps an Ethernet header's worth of bytes.
        if self.is_skb || self.length() < n + 14 {
            return None;
        }
        self.start += n;
        Some(())
    }

    fn fix_checksum(
        &mut self,
        offset: usize,
        addresses: u16,
        ports: u16,
        zero_is_none: bool,
    ) -> Option<()> {
        let mut field = *self.get::<2>(offset)?;
        if self.is_skb {
            field = l4_csum_replace(field, addresses, zero_is_none);
            field = l4_csum_replace(field, ports, zero_is_none);
        } else {
            field = sluice_packet::update_transport(field, addresses, ports, zero_is_none);
        }
        self.set(offset, &field)
    }
}

/// Adds a difference to a checksum as the kernel's `bpf_l4_csum_replace` does (Linux 6.1, `csum_replace_by_diff`): by a 32-bit
/// sum that is never 0, so its result can be 0 where RFC 1624's is 0xffff.
fn l4_csum_replace(field: [u8; 2], difference: u16, mark_mangled_0: bool) -> [u8; 2] {
    if mark_mangled_0 && field == [0, 0] {
        return field;
    }
    let (sum, carry) =
        (!u32::from(u16::from_be_bytes(field))).overflowing_add(u32::from(difference));
    let sum = sum + u32::from(carry);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let [_, _, high, low] = (!sum).to_be_bytes();
    if mark_mangled_0 && [high, low] == [0, 0] {
        [0xff, 0xff]
    } else {
        [high, low]
    }
}

/// A bucket: shared words.
pub struct HostWords<'a> {
    words: &'a [AtomicU64],
    dawdles: bool,
}

impl HostWords<'_> {
    fn dawdle(&self) {
        if self.dawdles {
            std::thread::yield_now();
        }
    }
}

impl SharedWords for HostWords<'_> {
    fn load(&self, word: usize) -> u64 {
        self.words[word].load(Ordering::Acquire)
    }
    fn store(&self, word: usize, value: u64) {
        self.dawdle();
        self.words[word].store(value, Ordering::Release);
    }
    fn compare_exchange(&self, word: usize, old: u64, new: u64) -> u64 {
        self.dawdle();
        match self.words[word].compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(was) | Err(was) => was,
        }
    }
}

/// Whether the first `length` bits are the same.
fn in_prefix<const A: usize>(address: &[u8; A], net: &[u8; A], length: u32) -> bool {
    let bit = |bytes: &[u8; A], n: usize| bytes[n / 8] >> (7 - n % 8) & 1;
    (0..length as usize).all(|n| bit(address, n) == bit(net, n))
}

struct HostFamily<const A: usize> {
    setup: Family<A>,
    flows: Vec<Vec<AtomicU64>>,
    half_open: Vec<Vec<AtomicU64>>,
    claims: Vec<Vec<AtomicU64>>,
}

fn atomics(n: usize) -> Vec<AtomicU64> {
    (0..n).map(|_| AtomicU64::new(0)).collect()
}

fn values(atomics: &[AtomicU64]) -> Vec<u64> {
    atomics
        .iter()
        .map(|value| value.load(Ordering::SeqCst))
        .collect()
}

/// Words other than 0, by index.
fn in_use(words: &[AtomicU64]) -> BTreeMap<u32, u64> {
    (0..)
        .zip(values(words))
        .filter(|(_, word)| *word != 0)
        .collect()
}

impl<const A: usize> HostFamily<A> {
    fn new(setup: &Family<A>, seed: u64) -> Self {
        let words = if A == 4 { 8 } else { 16 };
        let buckets = |n: u32| -> Vec<Vec<AtomicU64>> { (0..n).map(|_| atomics(words)).collect() };
        let claims = buckets(sizes::CLAIMS);
        for claim in &setup.claims {
            let (hash, words) = layout::claim::<A>(claim, seed);
            let slot = &claims[hash as usize % claims.len()];
            for (word, value) in slot.iter().zip(words) {
                word.store(value, Ordering::SeqCst);
            }
        }
        Self {
            flows: buckets(sizes::FLOWS),
            half_open: buckets(sizes::HALF_OPEN),
            claims,
            setup: setup.clone(),
        }
    }

    fn bucket(table: &[Vec<AtomicU64>], hash: u32, dawdles: bool) -> Option<HostWords<'_>> {
        let mask = table.len() - 1;
        let words = table.get(hash as usize & mask)?;
        Some(HostWords { words, dawdles })
    }

    fn state(&self) -> FamilyState {
        let words = |table: &[Vec<AtomicU64>]| -> Vec<Vec<u64>> {
            table.iter().map(|bucket| values(bucket)).collect()
        };
        FamilyState {
            flows: words(&self.flows),
            half_open: words(&self.half_open),
            claims: (0..)
                .zip(words(&self.claims))
                .filter(|(_, slot): &(u32, Vec<u64>)| slot[0] != 0)
                .collect(),
        }
    }
}

/// All tables. Array maps have the sizes of [`sizes`]; what a [`Setup`] does not name is zero in them.
pub struct HostTables {
    v4: HostFamily<4>,
    v6: HostFamily<16>,
    config: Vec<AtomicU64>,
    peers: BTreeSet<MacKey>,
    macs: Vec<AtomicU64>,
    groups: Vec<u64>,
    next_hops: Vec<AtomicU64>,
    new_flows: Vec<AtomicU64>,
    samples: Vec<Vec<AtomicU64>>,
    heads: Vec<Head>,
    rings: Vec<RingWord>,
    ring_slots: Vec<u32>,
    servers: Vec<ServerWord>,
    records: Vec<ServerRecord>,
    counters: Vec<[AtomicU64; 5]>,
    drops: Vec<AtomicU64>,
    stats: Vec<AtomicU64>,
    dawdles: bool,
}

fn array<T: Copy + Default>(size: u32, entries: &BTreeMap<u32, T>) -> Vec<T> {
    let mut array = vec![T::default(); size as usize];
    for (index, value) in entries {
        if let Some(slot) = array.get_mut(*index as usize) {
            *slot = *value;
        }
    }
    array
}

impl HostTables {
    /// Tables with these contents, empty flow tables and counters at 0.
    pub fn new(setup: &Setup) -> Self {
        let tables = Self {
            v4: HostFamily::new(&setup.v4, setup.seed()),
            v6: HostFamily::new(&setup.v6, setup.seed()),
            config: atomics(CONFIG_WORDS as usize),
            peers: setup.peers.clone(),
            macs: array(MAC_WORDS, &setup.macs)
                .into_iter()
                .map(AtomicU64::new)
                .collect(),
            groups: array(MAX_GROUPS, &setup.groups),
            next_hops: atomics(NEXT_HOP_WORDS as usize),
            new_flows: atomics(sizes::NEW_FLOWS as usize),
            samples: (0..sizes::SAMPLES).map(|_| atomics(SAMPLE_WORDS)).collect(),
            heads: array(sizes::HEADS, &setup.heads),
            rings: array(sizes::RINGS, &setup.rings),
            ring_slots: array(sizes::RING_SLOTS, &setup.ring_slots),
            servers: array(sizes::SERVERS, &setup.servers),
            records: array(sizes::RECORDS, &setup.records),
            counters: (0..sizes::SERVERS)
                .map(|_| std::array::from_fn(|_| AtomicU64::new(0)))
                .collect(),
            drops: atomics(REASONS),
            stats: atomics(Stat::ALL.len()),
            dawdles: false,
        };
        for (word, value) in &setup.config {
            tables.config[*word as usize].store(*value, Ordering::SeqCst);
        }
        tables
    }

    /// Changes what the agent writes; flows, claims and counters stay.
    pub fn configure(&mut self, setup: &Setup) {
        let old = std::mem::replace(self, Self::new(setup));
        self.v4.flows = old.v4.flows;
        self.v4.half_open = old.v4.half_open;
        self.v4.claims = old.v4.claims;
        self.v6.flows = old.v6.flows;
        self.v6.half_open = old.v6.half_open;
        self.v6.claims = old.v6.claims;
        self.counters = old.counters;
        self.drops = old.drops;
        self.stats = old.stats;
        self.next_hops = old.next_hops;
        self.new_flows = old.new_flows;
        self.samples = old.samples;
    }

    /// From now on a thread lets others run before each write to a flow table: whatever can come between two writes does.
    pub fn dawdle(&mut self) {
        self.dawdles = true;
    }

    /// Sets the clock.
    pub fn set_clock(&self, now_ns: u64) {
        self.config[ConfigWord::TestClock as usize].store(now_ns, Ordering::SeqCst);
    }

    /// Sets what the next random number is.
    pub fn set_random(&self, random: u32) {
        self.config[ConfigWord::TestRandom as usize].store(u64::from(random), Ordering::SeqCst);
    }

    /// Runs one packet; `headroom` as in [`Input`].
    pub fn decide(&self, program: Program, bytes: &[u8], headroom: bool) -> Output {
        let room = if headroom { HEADROOM } else { 0 };
        let mut frame = HostFrame::new(program, bytes, room);
        let verdict = match program {
            Program::Xdp => sluice_packet::ingress(&mut frame, self, Hook::Xdp),
            Program::Ingress => sluice_packet::ingress(&mut frame, self, Hook::Tc),
            Program::Egress => sluice_packet::egress(&mut frame, self),
        };
        let dropped = if let Verdict::Drop(reason) = verdict {
            self.drops[reason as usize].fetch_add(1, Ordering::Relaxed);
            true
        } else {
            false
        };
        Output {
            action: verdict.into(),
            verdict: Some(verdict),
            frame: if dropped {
                Vec::new()
            } else {
                frame.bytes().to_vec()
            },
        }
    }

    /// Tables that packets have written.
    pub fn state(&self) -> State {
        let mut state = State {
            v4: self.v4.state(),
            v6: self.v6.state(),
            counters: BTreeMap::new(),
            drops: BTreeMap::new(),
            stats: BTreeMap::new(),
            next_hops: in_use(&self.next_hops),
            new_flows: in_use(&self.new_flows),
            samples: (0..)
                .zip(&self.samples)
                .map(|(index, slot)| (index, values(slot)))
                .filter(|(_, slot): &(u32, Vec<u64>)| slot[0] != 0)
                .collect(),
        };
        for (id, counters) in (0..).zip(&self.counters) {
            let counters = std::array::from_fn(|i| counters[i].load(Ordering::SeqCst));
            if counters != [0; 5] {
                state.counters.insert(id, counters);
            }
        }
        let drops = values(&self.drops);
        for reason in DropReason::ALL {
            if drops[*reason as usize] > 0 {
                state.drops.insert(*reason, drops[*reason as usize]);
            }
        }
        let events = values(&self.stats);
        for stat in Stat::ALL {
            if events[*stat as usize] > 0 {
                state.stats.insert(*stat, events[*stat as usize]);
            }
        }
        state
    }

    fn add(&self, server: u32, counter: usize, n: u64) {
        if let Some(counters) = self.counters.get(server as usize) {
            counters[counter].fetch_add(n, Ordering::Relaxed);
        }
    }
}

macro_rules! family {
    ($a:literal, $family:ident) => {
        impl FamilyTables<$a> for HostTables {
            type Bucket<'a> = HostWords<'a>;

            fn vip(&self, key: &PortKey<$a>) -> Option<VipWord> {
                self.$family.setup.vips.get(key).copied()
            }
            fn reply_index(&self, key: &PortKey<$a>) -> Option<u32> {
                self.$family.setup.replies.get(key).copied()
            }
            fn local(&self, key: &LocalKey<$a>) -> Option<u32> {
                self.$family.setup.locals.get(key).copied()
            }
            fn announced(&self, key: &AnnouncedKey<$a>) -> Option<AnnouncedWord> {
                self.$family.setup.announced.get(key).copied()
            }
            fn peer_net(&self, address: &[u8; $a]) -> u32 {
                let nets = self.$family.setup.peer_nets.iter();
                let nets = nets.filter(|(net, _)| in_prefix(address, &net.addr, net.length));
                let longest = nets.max_by_key(|(net, _)| net.length);
                longest.map_or(0, |(_, flags)| *flags)
            }
            fn has_source(&self, set: u32, address: &[u8; $a]) -> bool {
                let mut blocks = self.$family.setup.sources.iter();
                blocks.any(|block| {
                    let length = block.length - SourceKey::<$a>::SET_BITS;
                    block.source.set == set && in_prefix(address, &block.source.addr, length)
                })
            }
            fn flows(&self, hash: u32) -> Option<HostWords<'_>> {
                HostFamily::<$a>::bucket(&self.$family.flows, hash, self.dawdles)
            }
            fn half_open(&self, hash: u32) -> Option<HostWords<'_>> {
                HostFamily::<$a>::bucket(&self.$family.half_open, hash, self.dawdles)
            }
            fn claims(&self, hash: u32) -> Option<HostWords<'_>> {
                HostFamily::<$a>::bucket(&self.$family.claims, hash, self.dawdles)
            }
            fn claim_worth(&self, hash: u32, now: FlowClock) -> u32 {
                sluice_packet::claim_worth::<$a, _>(self, hash, now)
            }
            fn find_flow(&self, words: [u64; 3], now: FlowClock) -> FlowData {
                sluice_packet::find_words::<$a, _>(self, words, now)
            }
            fn change_flow(&self, words: [u64; 3], found: FlowData, data: FlowData) {
                sluice_packet::change_words::<$a, _>(self, words, found, data);
            }
            fn insert_flow(&self, words: [u64; 3], data: FlowData, now: FlowClock) -> bool {
                sluice_packet::insert_words::<$a, _>(self, words, data, now, 0)
            }
            fn sample(&self, client: [u64; 2], what: u64, numbers: u64) -> bool {
                sluice_packet::sample_words::<$a, _>(self, client, what, numbers)
            }
            fn route(&self, _: u32, _: &[u8; $a], destination: &[u8; $a]) -> Route {
                let routes = &self.$family.setup.routes;
                routes.get(destination).copied().unwrap_or(Route::None)
            }
        }
    };
}
family!(4, v4);
family!(16, v6);

impl Tables for HostTables {
    type Macs<'a> = HostWords<'a>;
    type Word<'a> = HostWords<'a>;
    type Sample<'a> = HostWords<'a>;

    fn config(&self, word: ConfigWord) -> u64 {
        self.config[word as usize].load(Ordering::SeqCst)
    }
    fn flow_seed(&self) -> u64 {
        self.config(ConfigWord::FlowSeed)
    }
    fn head(&self, slot: u32) -> Option<&Head> {
        self.heads.get(slot as usize)
    }
    fn ring(&self, ring: u32) -> Option<RingWord> {
        self.rings.get(ring as usize).copied()
    }
    fn ring_slot(&self, index: u32) -> Option<u32> {
        self.ring_slots.get(index as usize).copied()
    }
    fn server(&self, id: u32) -> Option<ServerWord> {
        self.servers.get(id as usize).copied()
    }
    fn record(&self, slot: u32) -> Option<&ServerRecord> {
        self.records.get(slot as usize)
    }
    fn macs(&self) -> Option<HostWords<'_>> {
        Some(HostWords {
            words: &self.macs,
            dawdles: false,
        })
    }
    fn new_flows(&self, index: u32) -> Option<HostWords<'_>> {
        let word = self.new_flows.get(index as usize)?;
        Some(HostWords {
            words: std::slice::from_ref(word),
            dawdles: self.dawdles,
        })
    }
    fn sample_slot(&self, hash: u32) -> Option<HostWords<'_>> {
        let mask = self.samples.len() - 1;
        Some(HostWords {
            words: &self.samples[hash as usize & mask],
            dawdles: self.dawdles,
        })
    }
    fn next_hop(&self, index: u32) -> NextHopWord {
        let word = self.next_hops.get(index as usize);
        NextHopWord(word.map_or(0, |word| word.load(Ordering::SeqCst)))
    }
    fn change_next_hop(&self, index: u32, old: NextHopWord, new: NextHopWord) -> bool {
        self.next_hops.get(index as usize).is_some_and(|word| {
            word.compare_exchange(old.0, new.0, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        })
    }
    fn is_peer(&self, mac: &MacKey) -> bool {
        self.peers.contains(mac)
    }
    fn group_deadline(&self, group: u32) -> u64 {
        self.groups.get(group as usize).copied().unwrap_or(0)
    }
    fn now_ns(&self) -> u64 {
        self.config(ConfigWord::TestClock)
    }
    fn exact_ns(&self) -> u64 {
        self.now_ns()
    }
    fn random(&self) -> u32 {
        u32::try_from(self.config(ConfigWord::TestRandom)).unwrap_or(0)
    }
    fn count(&self, server: u32, bytes: u32, new_flow: bool) {
        self.add(server, 0, 1);
        self.add(server, 1, u64::from(bytes));
        self.add(server, 2, u64::from(new_flow));
    }
    fn count_reply(&self, server: u32, bytes: u32) {
        self.add(server, 3, 1);
        self.add(server, 4, u64::from(bytes));
    }
    fn stat(&self, stat: Stat) {
        self.stats[stat as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// [`HostTables`] as a [`Machine`].
pub struct Host(HostTables);

impl Host {
    /// With empty tables.
    pub fn new() -> Self {
        Self(HostTables::new(&Setup::default()))
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine for Host {
    fn fills_headroom(&self) -> bool {
        true
    }

    fn reset(&mut self, setup: &Setup) -> anyhow::Result<()> {
        self.0 = HostTables::new(setup);
        Ok(())
    }

    fn configure(&mut self, setup: &Setup) -> anyhow::Result<()> {
        self.0.configure(setup);
        Ok(())
    }

    fn run(&mut self, input: &Input<'_>) -> anyhow::Result<Output> {
        self.0.set_clock(input.now_ns);
        self.0.set_random(input.random);
        Ok(self.0.decide(input.program, input.frame, input.headroom))
    }

    fn state(&mut self) -> anyhow::Result<State> {
        Ok(self.0.state())
    }
}
