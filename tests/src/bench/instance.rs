//! A load of the data plane's object with one virtual server, unpinned.

use super::{
    case::{Family, Protocol, VirtualServer},
    frame::{Addresses, DIRECTOR_MAC, ROUTER_MAC, VIP_PORT},
    sys::Raw,
};
use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, Map, MapData, PerCpuArray},
    programs::{ProgramFd, Xdp},
};
use nix::time::{ClockId, clock_getres};
use sluice_abi::{
    ABI_VERSION, BUCKET_ENTRIES, ConfigWord, DropReason, EVERYBODY, FIRST_REPLY_INDEX, FarEnd,
    ForwardingMode, Head, HeadPool, MAC_WORDS, MAX_POOLS, MapName, Path as ServerPath, PortKey,
    RingWord, SHARE_WHOLE, Scheduler, ServerCounters, ServerFacts, ServerRecord, ServerWord, Stat,
    Timeouts, VipWord, mac_number, own_bucket, own_mac,
};
use std::{collections::BTreeMap, path::Path, time::Duration};

/// Real servers of the virtual server. Enough that each has FullNAT ports for its part of a million flows.
pub const SERVERS: u32 = 256;

const INDEX: u32 = 1;
const HEAD: u32 = 1;
const RING: u32 = 1;
const RING_LOG2: u8 = 16;
const EPOCH: u8 = 1;
const FLOW_SEED: u64 = 0x5f3c_96e1_b7d2_084b;
const SERVER_PORT: u16 = 8080;
/// BPF_PROG_TEST_RUN's packets come by the loopback device, so the way back through it is XDP_TX.
const IFINDEX: u32 = 1;
const MTU: u16 = 1600;
/// Few flows must not crowd: by chance more of them than a bucket holds would share one. Also the half-open table's size in
/// the object.
const FEWEST_BUCKETS: u32 = 1 << 14;
/// Entries of a bucket.
#[expect(clippy::cast_possible_truncation, reason = "a handful")]
const ENTRIES: u32 = BUCKET_ENTRIES as u32;

/// Flow tables of an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tables {
    /// So many flows fill half of them.
    Of(u32),
    /// None: every look-up and insertion fails, as in a flood that overruns the tables.
    Absent,
}

/// A loaded object.
pub struct Instance {
    object: Ebpf,
    virtual_server: VirtualServer,
}

/// Counts of the data plane since its load.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Packets that were sent to servers.
    pub packets: u64,
    /// New flows that were given to servers.
    pub flows: u64,
    /// Half-open entries that were made.
    pub half_open: u64,
    /// Flows that were confirmed.
    pub promoted: u64,
    /// Live entries that gave way, in both tables.
    pub evicted: u64,
    /// Packets that the ring alone served.
    pub stateless: u64,
    /// Drops by reason.
    pub drops: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// The counts after `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut drops = self.drops.clone();
        for (reason, count) in &before.drops {
            *drops.entry(reason).or_default() -= count;
        }
        drops.retain(|_, count| *count != 0);
        Self {
            packets: self.packets - before.packets,
            flows: self.flows - before.flows,
            half_open: self.half_open - before.half_open,
            promoted: self.promoted - before.promoted,
            evicted: self.evicted - before.evicted,
            stateless: self.stateless - before.stateless,
            drops,
        }
    }
}

/// Nanoseconds between two ticks of this machine's kernel: the coarse clock's resolution.
fn tick_ns() -> Result<u64> {
    let tick = Duration::from(clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)?);
    Ok(u64::try_from(tick.as_nanos())?)
}

impl Instance {
    /// Loads the object at `path` and configures `virtual_server`.
    pub fn load(path: &Path, virtual_server: VirtualServer, tables: Tables) -> Result<Self> {
        ensure!(
            path.exists(),
            "{} is missing: run `cargo xtask build-bpf`",
            path.display()
        );
        let sizes = Sizes::of(virtual_server, tables);
        let mut loader = EbpfLoader::new();
        for (map, entries) in &sizes.entries {
            loader.map_max_entries(map.as_str(), *entries);
        }
        let tick_ns = tick_ns()?;
        loader.override_global("FLOW_SEED", &FLOW_SEED, true);
        loader.override_global("TICK_NS", &tick_ns, true);
        for (global, mask) in &sizes.masks {
            loader.override_global(global, mask, true);
        }
        let object = loader
            .load_file(path)
            .with_context(|| format!("cannot load {}", path.display()))?;
        let mut instance = Self {
            object,
            virtual_server,
        };
        match virtual_server.family {
            Family::Ipv4 => instance.fill::<4>(Addresses::VIP4.octets(), server4)?,
            Family::Ipv6 => instance.fill::<16>(Addresses::VIP6.octets(), server6)?,
        }
        let program = instance.xdp()?;
        program
            .load()
            .context("the kernel refuses the data plane's XDP program")?;
        Ok(instance)
    }

    fn xdp(&mut self) -> Result<&mut Xdp> {
        let program = self.object.program_mut("sluice_xdp");
        Ok(program.context("no program sluice_xdp")?.try_into()?)
    }

    /// The XDP program, to be called.
    pub fn program(&self) -> Result<ProgramFd> {
        let program = self.object.program("sluice_xdp");
        let program: &Xdp = program.context("no program sluice_xdp")?.try_into()?;
        Ok(program.fd()?.try_clone()?)
    }

    /// Its virtual server.
    pub fn virtual_server(&self) -> VirtualServer {
        self.virtual_server
    }

    /// Its counts so far.
    pub fn counts(&self) -> Result<Counts> {
        let counters: PerCpuArray<_, Raw<ServerCounters>> = self.map(MapName::Counters)?;
        let mut counts = Counts::default();
        for id in 1..=SERVERS {
            for cpu in counters.get(&id, 0)?.iter() {
                counts.packets += cpu.0.packets;
                counts.flows += cpu.0.flows;
            }
        }
        let stats: PerCpuArray<_, u64> = self.map(MapName::Stats)?;
        let stat = |stat: Stat| -> Result<u64> { Ok(stats.get(&(stat as u32), 0)?.iter().sum()) };
        counts.half_open = stat(Stat::HalfOpen)?;
        counts.promoted = stat(Stat::Promoted)?;
        counts.evicted = stat(Stat::HalfOpenEvicted)? + stat(Stat::FlowEvicted)?;
        counts.stateless = stat(Stat::Stateless)?;
        let drops: PerCpuArray<_, u64> = self.map(MapName::Drops)?;
        for &reason in DropReason::ALL {
            let count: u64 = drops.get(&(reason as u32), 0)?.iter().sum();
            if count != 0 {
                counts.drops.insert(reason.name(), count);
            }
        }
        Ok(counts)
    }

    /// Number of entries of the virtual server's flows in the table of established flows.
    pub fn established(&self) -> Result<u64> {
        let (name, words) = match self.virtual_server.family {
            Family::Ipv4 => (MapName::Flows4, 2),
            Family::Ipv6 => (MapName::Flows6, 4),
        };
        match words {
            2 => self.count_keys::<{ 2 * BUCKET_ENTRIES }>(name, words),
            _ => self.count_keys::<{ 4 * BUCKET_ENTRIES }>(name, words),
        }
    }

    fn count_keys<const N: usize>(&self, name: MapName, words: usize) -> Result<u64> {
        let table: Array<_, [u64; N]> = self.map(name)?;
        let far = FarEnd {
            index: INDEX,
            port: VIP_PORT.to_be_bytes(),
        };
        let (mut found, tag) = (0, u64::from(far.tag()));
        for bucket in table.iter() {
            let bucket = bucket?;
            let keys = bucket.iter().step_by(words);
            found += keys.filter(|key| **key >> 48 == tag).count() as u64;
        }
        Ok(found)
    }

    fn map<'a, M>(&'a self, name: MapName) -> Result<M>
    where
        M: TryFrom<&'a Map, Error = aya::maps::MapError>,
    {
        let map = self.object.map(name.as_str());
        let map = map.with_context(|| format!("no map {}", name.as_str()))?;
        M::try_from(map).with_context(|| format!("map {}", name.as_str()))
    }

    fn array<V: Pod>(&mut self, name: MapName) -> Result<Array<&mut MapData, V>> {
        let map = self.object.map_mut(name.as_str());
        let map = map.with_context(|| format!("no map {}", name.as_str()))?;
        Array::try_from(map).with_context(|| format!("map {}", name.as_str()))
    }

    fn hash<K: Pod, V: Pod>(&mut self, name: MapName) -> Result<HashMap<&mut MapData, K, V>> {
        let map = self.object.map_mut(name.as_str());
        let map = map.with_context(|| format!("no map {}", name.as_str()))?;
        HashMap::try_from(map).with_context(|| format!("map {}", name.as_str()))
    }

    fn fill<const A: usize>(&mut self, vip: [u8; A], server: fn(u32) -> [u8; A]) -> Result<()>
    where
        Raw<PortKey<A>>: Pod,
    {
        self.fill_config()?;
        let virtual_server = self.virtual_server;
        let (vips, replies) = match virtual_server.family {
            Family::Ipv4 => (MapName::Vips4, MapName::Replies4),
            Family::Ipv6 => (MapName::Vips6, MapName::Replies6),
        };
        let key_of = |addr, port: u16, protocol| {
            Raw(PortKey {
                addr,
                port: port.to_be_bytes(),
                protocol,
                pad: 0,
            })
        };
        let protocol = virtual_server.protocol.number();
        let mut map = self.hash(vips)?;
        map.insert(
            key_of(vip, VIP_PORT, protocol),
            Raw(VipWord::new(INDEX, HEAD, 0)),
            0,
        )?;
        map.insert(key_of(vip, 0, 0), Raw(VipWord(0)), 0)?;

        let mut records = self.array(MapName::Records)?;
        for id in 1..=SERVERS {
            records.set(id, Raw(record(virtual_server, id, &server(id), &vip)), 0)?;
        }
        if virtual_server.mode == ForwardingMode::Nat {
            let mut map = self.hash(replies)?;
            for id in 1..=SERVERS {
                let key = key_of(server(id), SERVER_PORT, protocol);
                map.insert(key, reply_index(id), 0)?;
            }
        }
        Ok(())
    }

    fn fill_config(&mut self) -> Result<()> {
        let mut config = self.array::<u64>(MapName::Config)?;
        let words = [
            (ConfigWord::AbiVersion, ABI_VERSION),
            (ConfigWord::FlowSeed, FLOW_SEED),
            (ConfigWord::HalfOpenTimeouts, Timeouts::HALF_OPEN.0),
            (ConfigWord::EstablishedTimeouts, Timeouts::ESTABLISHED.0),
        ];
        for (word, value) in words {
            config.set(word as u32, value, 0)?;
        }
        let mut macs = [0; MAC_WORDS as usize];
        // Test runs come by the loopback device.
        let own = own_mac(mac_number(&DIRECTOR_MAC), 1);
        macs[own_bucket(own) as usize] = own;
        let mut map = self.array::<[u64; MAC_WORDS as usize]>(MapName::Macs)?;
        map.set(0, macs, 0)?;
        let mut servers = self.array(MapName::Servers)?;
        for id in 1..=SERVERS {
            let word = ServerWord::new(id, EPOCH, ServerPath::Xdp, false);
            servers.set(id, Raw(word), 0)?;
        }
        let mut pairs = self.array::<[u32; 2]>(MapName::RingSlots)?;
        for pair in 0..1 << (RING_LOG2 - 1) {
            let ids = [2 * pair, 2 * pair + 1].map(|slot| slot % SERVERS + 1);
            pairs.set(pair, ids, 0)?;
        }
        let mut rings = self.array(MapName::Rings)?;
        rings.set(RING, Raw(RingWord::new(0, RING_LOG2)), 0)?;
        let pool = HeadPool {
            threshold: SHARE_WHOLE,
            ring: RING,
            tag: 1,
        };
        let head = Head {
            seed: 0x2545_f491,
            index: INDEX,
            pool_count: 1,
            flags: 0,
            scheduler: Scheduler::Ring as u8,
            pad: 0,
            source_set: EVERYBODY,
            reserved: [0; 16],
            pools: [pool; MAX_POOLS],
        };
        let mut heads = self.array(MapName::Heads)?;
        heads.set(HEAD, Raw(head), 0)?;
        Ok(())
    }
}

/// Sizes of the maps that grow with the flows.
struct Sizes {
    entries: Vec<(MapName, u32)>,
    masks: Vec<(&'static str, u32)>,
}

impl Sizes {
    fn of(virtual_server: VirtualServer, tables: Tables) -> Self {
        let names = |family| match family {
            Family::Ipv4 => (MapName::Flows4, MapName::Half4, MapName::FullNat4),
            Family::Ipv6 => (MapName::Flows6, MapName::Half6, MapName::FullNat6),
        };
        let masks = |family| match family {
            Family::Ipv4 => ("FLOWS4_MASK", "HALF4_MASK", "FULLNAT4_MASK"),
            Family::Ipv6 => ("FLOWS6_MASK", "HALF6_MASK", "FULLNAT6_MASK"),
        };
        let mut sizes = Self {
            entries: Vec::new(),
            masks: Vec::new(),
        };
        for family in Family::ALL {
            let (flows, half, fullnat) = names(family);
            let (flows_mask, half_mask, fullnat_mask) = masks(family);
            let used = family == virtual_server.family;
            let (buckets, mask) = match tables {
                // NAT has two entries for each flow, one for either direction.
                Tables::Of(flows) if used => {
                    let directions = if virtual_server.mode == ForwardingMode::Nat {
                        2
                    } else {
                        1
                    };
                    let buckets = (flows * directions * 2).div_ceil(ENTRIES);
                    let buckets = buckets.next_power_of_two().max(FEWEST_BUCKETS);
                    (buckets, buckets - 1)
                }
                Tables::Of(_) => (1, 0),
                Tables::Absent => (1, u32::MAX),
            };
            let claims = match tables {
                Tables::Of(flows) if used && virtual_server.mode == ForwardingMode::FullNat => {
                    (2 * flows).next_power_of_two()
                }
                _ => 1,
            };
            // A TCP flow is half-open between two packets of the benchmark, a UDP flow until all have begun.
            let (half_buckets, half_mask_value) = match virtual_server.protocol {
                Protocol::Tcp if used && matches!(tables, Tables::Of(_)) => {
                    (FEWEST_BUCKETS, FEWEST_BUCKETS - 1)
                }
                _ => (buckets, mask),
            };
            sizes
                .entries
                .extend([(flows, buckets), (half, half_buckets), (fullnat, claims)]);
            sizes.masks.extend([
                (flows_mask, mask),
                (half_mask, half_mask_value),
                (fullnat_mask, claims - 1),
            ]);
        }
        sizes
    }
}

fn server4(id: u32) -> [u8; 4] {
    let [_, _, high, low] = id.to_be_bytes();
    [10, 1, high, low]
}

fn server6(id: u32) -> [u8; 16] {
    let mut address = [0; 16];
    address[..4].copy_from_slice(&[0xfd, 0, 0, 1]);
    address[12..].copy_from_slice(&id.to_be_bytes());
    address
}

fn reply_index(id: u32) -> u32 {
    FIRST_REPLY_INDEX + id
}

fn record<const A: usize>(
    virtual_server: VirtualServer,
    id: u32,
    server: &[u8; A],
    vip: &[u8; A],
) -> ServerRecord {
    let wide = |address: &[u8]| {
        let mut field = [0; 16];
        field[..address.len()].copy_from_slice(address);
        field
    };
    let mut own = *server;
    own[A - 3] ^= 0x80;
    let alt = match virtual_server.mode {
        ForwardingMode::Nat => wide(vip),
        ForwardingMode::FullNat | ForwardingMode::Tun => wide(&own),
        ForwardingMode::Dr => [0; 16],
    };
    let translated = matches!(
        virtual_server.mode,
        ForwardingMode::Nat | ForwardingMode::FullNat
    );
    ServerRecord {
        addr: wide(server),
        alt,
        next_hop_mac: ROUTER_MAC,
        source_mac: DIRECTOR_MAC,
        ifindex: IFINDEX,
        port: if translated { SERVER_PORT } else { VIP_PORT }.to_be_bytes(),
        vip_port: VIP_PORT.to_be_bytes(),
        tag: 1,
        facts: ServerFacts::new(
            INDEX,
            if virtual_server.mode == ForwardingMode::Nat {
                reply_index(id)
            } else {
                0
            },
            virtual_server.mode,
            virtual_server.family == Family::Ipv6,
        )
        .with_mtu(MTU),
    }
}
