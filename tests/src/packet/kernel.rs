//! The real programs over real maps, by `BPF_PROG_TEST_RUN`.
//!
//! Maps are private to the value that loaded them: nothing is pinned or attached. The object is loaded with its test
//! hooks on, so that clock, chance and routes come from maps.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, PerCpuArray, PerCpuValues},
    programs::{RawTracePoint, SchedClassifier, TestRun, TestRunOptions, Xdp},
    util::nr_cpus,
};
use sluice_abi::{ConfigWord, DropReason, GROUP_WORDS, MAC_WORDS, SAMPLE_WORDS, Stat};

use super::{
    layout,
    machine::{Action, Input, Machine, Output, Program, State},
    maps::{Contents, Hash, KernelFamily, hash, map_array, per_cpu, write_array, write_hash},
    setup::{Setup, sizes},
};

/// Return values of XDP programs (`enum xdp_action`).
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;
/// Return values of tc programs.
const TC_ACT_OK: u32 = 0;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;

/// The headroom of a test run is zero, that of a driver is not. Metadata stands right before the frame and moves with
/// its beginning, so what a program finds there is this. Linux 6.1 takes up to 32 bytes, newer ones up to 216, but for
/// that an outer IPv6 header is 40 long.
const POISON: u8 = 0xa5;
const POISON_LENGTHS: [usize; 2] = [48, 32];
/// So much metadata leaves no room for an outer header.
const FULL_LENGTH: usize = 216;

/// Longest frame that comes out.
const FRAME_MAX: usize = 4096;

/// The object with its maps.
pub struct Kernel {
    ebpf: Ebpf,
    config: Array<MapData, u64>,
    v4: KernelFamily<4, 8, 64>,
    v6: KernelFamily<16, 20, 128>,
    peers: Hash<8, 4>,
    macs: Array<MapData, [u64; MAC_WORDS as usize]>,
    groups: Array<MapData, [u64; GROUP_WORDS]>,
    next_hops: Array<MapData, u64>,
    new_flows: Array<MapData, u64>,
    samples: Array<MapData, [u64; SAMPLE_WORDS]>,
    heads: Array<MapData, [u8; 128]>,
    rings: Array<MapData, u64>,
    ring_slots: Array<MapData, [u8; 8]>,
    servers: Array<MapData, u64>,
    records: Array<MapData, [u8; 64]>,
    counters: PerCpuArray<MapData, [u64; 5]>,
    drops: PerCpuArray<MapData, u64>,
    stats: PerCpuArray<MapData, u64>,
    routes: Hash<16, 24>,
    /// Content of the agent's maps now.
    current: Setup,
    /// Drops counted so far.
    dropped: BTreeMap<DropReason, u64>,
    poison: usize,
    fills_headroom: bool,
    output: Vec<u8>,
}

/// Where the build puts the object.
pub fn object_path() -> PathBuf {
    std::env::var_os("SLUICE_OBJECT").map_or_else(
        || {
            PathBuf::from(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../target/bpf/sluice.o"
            ))
        },
        PathBuf::from,
    )
}

/// Sizes of the tables that grow with the flows, powers of two.
#[derive(Clone, Copy, Debug)]
pub struct FlowSizes {
    /// Buckets of each flow table.
    pub flows: u32,
    /// Buckets of each half-open table.
    pub half_open: u32,
    /// Slots of each FullNAT table.
    pub claims: u32,
}

impl FlowSizes {
    const DEFAULT: Self = Self {
        flows: sizes::FLOWS,
        half_open: sizes::HALF_OPEN,
        claims: sizes::CLAIMS,
    };
}

/// How the programs get time, chance and routes.
#[derive(Clone, Copy, Debug)]
enum Hooks {
    /// From maps.
    Test,
    /// From the kernel, where a tick has so many nanoseconds; 0: the time is not taken from ticks.
    Kernel(u64),
}

fn load_object(sizes: FlowSizes, hooks: Hooks) -> Result<Ebpf> {
    let path = object_path();
    let (hooks, tick_ns) = match hooks {
        Hooks::Test => (1_u32, 0),
        Hooks::Kernel(tick_ns) => (0, tick_ns),
    };
    let (flows, half_open) = (sizes.flows - 1, sizes.half_open - 1);
    let claims = sizes.claims - 1;
    let mut loader = EbpfLoader::new();
    loader
        .override_global("TEST_HOOKS", &hooks, true)
        .override_global("TICK_NS", &tick_ns, true)
        .override_global("FLOWS4_MASK", &flows, true)
        .override_global("FLOWS6_MASK", &flows, true)
        .override_global("HALF4_MASK", &half_open, true)
        .override_global("HALF6_MASK", &half_open, true)
        .override_global("FULLNAT4_MASK", &claims, true)
        .override_global("FULLNAT6_MASK", &claims, true)
        .override_global("SAMPLES_MASK", &(sizes::SAMPLES - 1), true);
    for (names, size) in [
        (&["FLOWS4", "FLOWS6"][..], sizes.flows),
        (&["HALF4", "HALF6"], sizes.half_open),
        (&["HEADS"], sizes::HEADS),
        (&["RINGS"], sizes::RINGS),
        (&["RING_SLOTS"], sizes::RING_SLOTS / 2),
        (&["SERVERS", "COUNTERS"], sizes::SERVERS),
        (&["RECORDS"], sizes::RECORDS),
        (&["SAMPLES"], sizes::SAMPLES),
        (&["FULLNAT4", "FULLNAT6"], sizes.claims),
        (
            &[
                "VIPS4",
                "VIPS6",
                "REPLIES4",
                "REPLIES6",
                "LOCALS4",
                "LOCALS6",
                "ANNOUNCED4",
                "ANNOUNCED6",
                "SOURCES4",
                "SOURCES6",
                "PEERS",
            ],
            sizes::HASHES,
        ),
    ] {
        for name in names {
            loader.map_max_entries(name, size);
        }
    }
    loader.load_file(&path).with_context(|| {
        format!(
            "cannot load {}: `cargo xtask build-bpf` makes it, and loading needs root",
            path.display()
        )
    })
}

fn load_programs(ebpf: &mut Ebpf) -> Result<()> {
    let program: &mut Xdp = ebpf
        .program_mut("sluice_xdp")
        .context("no program sluice_xdp")?
        .try_into()?;
    program.load().context("the verifier refuses sluice_xdp")?;
    for name in ["sluice_ingress", "sluice_egress"] {
        let program: &mut SchedClassifier = ebpf
            .program_mut(name)
            .with_context(|| format!("no program {name}"))?
            .try_into()?;
        program
            .load()
            .with_context(|| format!("the verifier refuses {name}"))?;
    }
    Ok(())
}

impl Kernel {
    /// Loads the object and its three programs.
    pub fn load() -> Result<Self> {
        Self::load_sized(FlowSizes::DEFAULT)
    }

    /// Whether the verifier takes the programs as an agent loads them, whose code is not that of tests: with and without the
    /// length of a tick.
    pub fn accepts_agents_programs() -> Result<()> {
        for tick_ns in [0, 4_000_000] {
            let mut ebpf = load_object(FlowSizes::DEFAULT, Hooks::Kernel(tick_ns))?;
            load_programs(&mut ebpf).with_context(|| format!("with ticks of {tick_ns} ns"))?;
            let xdp: &Xdp = ebpf
                .program("sluice_xdp")
                .context("no program sluice_xdp")?
                .try_into()?;
            let verified = xdp.info()?.verified_instruction_count();
            println!("sluice_xdp: {verified:?} instructions of 1,000,000 verified");
            let program: &mut RawTracePoint = ebpf
                .program_mut("sluice_redirect_refused")
                .context("no program sluice_redirect_refused")?
                .try_into()?;
            program
                .load()
                .context("the verifier refuses sluice_redirect_refused")?;
        }
        Ok(())
    }

    /// As [`Self::load`], with larger tables of flows.
    pub fn load_sized(sizes: FlowSizes) -> Result<Self> {
        let mut ebpf = load_object(sizes, Hooks::Test)?;
        load_programs(&mut ebpf)?;
        let mut kernel = Self {
            config: map_array(&mut ebpf, "CONFIG")?,
            v4: KernelFamily::take(&mut ebpf, 4)?,
            v6: KernelFamily::take(&mut ebpf, 6)?,
            peers: hash(&mut ebpf, "PEERS")?,
            macs: map_array(&mut ebpf, "MACS")?,
            groups: map_array(&mut ebpf, "GROUPS")?,
            next_hops: map_array(&mut ebpf, "NEXT_HOPS")?,
            new_flows: map_array(&mut ebpf, "NEW_FLOWS")?,
            samples: map_array(&mut ebpf, "SAMPLES")?,
            heads: map_array(&mut ebpf, "HEADS")?,
            rings: map_array(&mut ebpf, "RINGS")?,
            ring_slots: map_array(&mut ebpf, "RING_SLOTS")?,
            servers: map_array(&mut ebpf, "SERVERS")?,
            records: map_array(&mut ebpf, "RECORDS")?,
            counters: per_cpu(&mut ebpf, "COUNTERS")?,
            drops: per_cpu(&mut ebpf, "DROPS")?,
            stats: per_cpu(&mut ebpf, "STATS")?,
            routes: hash(&mut ebpf, "TEST_ROUTES")?,
            current: Setup::empty(),
            dropped: BTreeMap::new(),
            poison: 0,
            fills_headroom: false,
            output: vec![0; FRAME_MAX],
            ebpf,
        };
        kernel.poison = kernel.longest_poison()?;
        kernel.fills_headroom = kernel.run_xdp(&[0; 64], FULL_LENGTH).is_ok();
        Ok(kernel)
    }

    /// The most metadata that this kernel takes, of what is useful here.
    fn longest_poison(&mut self) -> Result<usize> {
        let frame = [0; 64];
        for length in POISON_LENGTHS {
            if self.run_xdp(&frame, length).is_ok() {
                return Ok(length);
            }
        }
        bail!("the kernel takes no metadata in a test run: headroom cannot be poisoned")
    }

    /// Runs the XDP program on `frame` behind `metadata` bytes of poison.
    fn run_xdp(&mut self, frame: &[u8], metadata: usize) -> Result<(u32, Vec<u8>)> {
        let program: &Xdp = self
            .ebpf
            .program("sluice_xdp")
            .context("no program sluice_xdp")?
            .try_into()?;
        run_xdp(program, frame, metadata, &mut self.output)
    }

    /// Runs the XDP program once, from any thread; returns the frame that comes out.
    pub fn run_shared(&self, frame: &[u8]) -> Result<Vec<u8>> {
        let program: &Xdp = self
            .ebpf
            .program("sluice_xdp")
            .context("no program sluice_xdp")?
            .try_into()?;
        let (_, frame) = run_xdp(program, frame, self.poison, &mut [0; FRAME_MAX])?;
        Ok(frame)
    }

    /// Sets the clock for [`Self::run_shared`].
    pub fn set_clock(&mut self, now_ns: u64) -> Result<()> {
        Ok(self.config.set(ConfigWord::TestClock as u32, now_ns, 0)?)
    }

    fn run_tc(&mut self, name: &str, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
        let program: &SchedClassifier = self
            .ebpf
            .program(name)
            .with_context(|| format!("no program {name}"))?
            .try_into()?;
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut self.output),
                ..TestRunOptions::default()
            })
            .with_context(|| format!("test run of {name} on {} bytes", frame.len()))?;
        let frame = self.output[..result.data_size_out as usize].to_vec();
        Ok((result.return_value, frame))
    }

    /// The reason of the drop that was counted since this was last asked.
    fn drop_reason(&mut self) -> Result<DropReason> {
        for reason in DropReason::ALL {
            let count = sum(&self.drops.get(&(*reason as u32), 0)?);
            let before = self.dropped.insert(*reason, count).unwrap_or(0);
            if count != before {
                ensure!(count == before + 1, "one packet was dropped more than once");
                return Ok(*reason);
            }
        }
        bail!("a packet was dropped for no reason")
    }

    fn write_config(&mut self, setup: &Setup) -> Result<()> {
        for word in 0..sluice_abi::CONFIG_WORDS {
            let value = setup.config.get(&word).copied().unwrap_or(0);
            self.config.set(word, value, 0)?;
        }
        Ok(())
    }
}

impl Machine for Kernel {
    fn fills_headroom(&self) -> bool {
        self.fills_headroom
    }

    fn reset(&mut self, setup: &Setup) -> Result<()> {
        self.configure(setup)?;
        let seed = setup.seed();
        self.v4.begin(&setup.v4, seed)?;
        self.v6.begin(&setup.v6, seed)?;
        for index in 0..sizes::NEW_FLOWS {
            self.new_flows.set(index, 0, 0)?;
        }
        for index in 0..self.samples.len() {
            self.samples.set(index, [0; SAMPLE_WORDS], 0)?;
        }
        let cpus = nr_cpus().map_err(|(_, error)| error)?;
        for id in 0..sizes::SERVERS {
            let zero = PerCpuValues::try_from(vec![[0; 5]; cpus])?;
            self.counters.set(id, zero, 0)?;
        }
        for index in 0..self.next_hops.len() {
            self.next_hops.set(index, 0, 0)?;
        }
        for reason in DropReason::ALL {
            let zero = PerCpuValues::try_from(vec![0; cpus])?;
            self.drops.set(*reason as u32, zero, 0)?;
        }
        for stat in Stat::ALL {
            let zero = PerCpuValues::try_from(vec![0; cpus])?;
            self.stats.set(*stat as u32, zero, 0)?;
        }
        self.dropped.clear();
        Ok(())
    }

    fn configure(&mut self, setup: &Setup) -> Result<()> {
        let old = std::mem::replace(&mut self.current, setup.clone());
        self.write_config(setup)?;
        self.v4.configure(&old.v4, &setup.v4)?;
        self.v6.configure(&old.v6, &setup.v6)?;
        let peers = |setup: &Setup| -> Contents<8, 4> {
            let peers = setup.peers.iter();
            peers.map(|key| (layout::mac(key), [1, 0, 0, 0])).collect()
        };
        write_hash(&mut self.peers, &peers(&old), &peers(setup))?;
        let mut macs = [0; MAC_WORDS as usize];
        for (index, word) in &setup.macs {
            macs[*index as usize] = *word;
        }
        self.macs.set(0, macs, 0)?;
        write_array(&mut self.groups, &old.groups, &setup.groups, |deadline| {
            // The name, which packets do not read.
            [*deadline, u64::MAX]
        })?;
        write_hash(&mut self.routes, &routes(&old), &routes(setup))?;
        write_array(&mut self.heads, &old.heads, &setup.heads, layout::head)?;
        write_array(&mut self.rings, &old.rings, &setup.rings, |word| word.0)?;
        let slots = (ring_pairs(&old), ring_pairs(setup));
        write_array(&mut self.ring_slots, &slots.0, &slots.1, layout::ring_pair)?;
        write_array(
            &mut self.records,
            &old.records,
            &setup.records,
            layout::record,
        )?;
        write_array(&mut self.servers, &old.servers, &setup.servers, |word| {
            word.0
        })
    }

    fn run(&mut self, input: &Input<'_>) -> Result<Output> {
        self.config
            .set(ConfigWord::TestClock as u32, input.now_ns, 0)?;
        self.config
            .set(ConfigWord::TestRandom as u32, u64::from(input.random), 0)?;
        let metadata = if input.headroom {
            self.poison
        } else {
            FULL_LENGTH
        };
        let (returned, frame) = match input.program {
            Program::Xdp => self.run_xdp(input.frame, metadata)?,
            Program::Ingress => self.run_tc("sluice_ingress", input.frame)?,
            Program::Egress => self.run_tc("sluice_egress", input.frame)?,
        };
        let action = match (input.program, returned) {
            (Program::Xdp, XDP_PASS) | (Program::Ingress | Program::Egress, TC_ACT_OK) => {
                Action::Pass
            }
            (Program::Xdp, XDP_TX) => Action::Tx,
            (Program::Xdp, XDP_REDIRECT)
            | (Program::Ingress | Program::Egress, TC_ACT_REDIRECT) => Action::Redirect,
            (Program::Xdp, XDP_DROP) | (Program::Ingress | Program::Egress, TC_ACT_SHOT) => {
                Action::Drop(self.drop_reason()?)
            }
            (program, other) => bail!("{program:?} returned {other}"),
        };
        let dropped = matches!(action, Action::Drop(_));
        Ok(Output {
            action,
            verdict: None,
            frame: if dropped { Vec::new() } else { frame },
        })
    }

    fn state(&mut self) -> Result<State> {
        // Reading the slots takes longest, and most tests claim nothing.
        let has_claims = sum(&self.stats.get(&(Stat::PortClaimed as u32), 0)?) > 0;
        let mut state = State {
            v4: self
                .v4
                .state(has_claims || !self.current.v4.claims.is_empty())?,
            v6: self
                .v6
                .state(has_claims || !self.current.v6.claims.is_empty())?,
            counters: BTreeMap::new(),
            drops: BTreeMap::new(),
            stats: BTreeMap::new(),
            next_hops: BTreeMap::new(),
            new_flows: BTreeMap::new(),
            samples: BTreeMap::new(),
        };
        for id in 0..sizes::SERVERS {
            let mut total = [0; 5];
            for counters in self.counters.get(&id, 0)?.iter() {
                for (sum, counter) in total.iter_mut().zip(counters) {
                    *sum += counter;
                }
            }
            if total != [0; 5] {
                state.counters.insert(id, total);
            }
        }
        for index in 0..sizes::NEW_FLOWS {
            let word = self.new_flows.get(&index, 0)?;
            if word != 0 {
                state.new_flows.insert(index, word);
            }
        }
        for (index, slot) in (0..).zip(self.samples.iter()) {
            let slot = slot?;
            if slot[0] != 0 {
                state.samples.insert(index, slot.to_vec());
            }
        }
        for (index, word) in (0..).zip(self.next_hops.iter()) {
            let word = word?;
            if word != 0 {
                state.next_hops.insert(index, word);
            }
        }
        for reason in DropReason::ALL {
            let count = sum(&self.drops.get(&(*reason as u32), 0)?);
            if count > 0 {
                state.drops.insert(*reason, count);
            }
        }
        for stat in Stat::ALL {
            let count = sum(&self.stats.get(&(*stat as u32), 0)?);
            if count > 0 {
                state.stats.insert(*stat, count);
            }
        }
        Ok(state)
    }
}

fn sum(values: &PerCpuValues<u64>) -> u64 {
    values.iter().sum()
}

/// `RING_SLOTS` two by two.
fn ring_pairs(setup: &Setup) -> BTreeMap<u32, [u32; 2]> {
    let mut pairs: BTreeMap<u32, [u32; 2]> = BTreeMap::new();
    for (slot, id) in &setup.ring_slots {
        pairs.entry(slot / 2).or_default()[*slot as usize % 2] = *id;
    }
    pairs
}

fn routes(setup: &Setup) -> Contents<16, 24> {
    let v4 = setup.v4.routes.iter();
    let v6 = setup.v6.routes.iter();
    v4.map(|(key, value)| (layout::route_key(key), layout::route(value)))
        .chain(v6.map(|(key, value)| (layout::route_key(key), layout::route(value))))
        .collect()
}

fn run_xdp(
    program: &Xdp,
    frame: &[u8],
    metadata: usize,
    output: &mut [u8],
) -> Result<(u32, Vec<u8>)> {
    let mut input = vec![POISON; metadata];
    input.extend(frame);
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [metadata, input.len(), 0, 0, 0, 0].map(u32::try_from);
    let mut bytes = Vec::new();
    for field in context {
        bytes.extend(field?.to_ne_bytes());
    }
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(&input),
            data_out: Some(output),
            ctx_in: Some(&bytes),
            ..TestRunOptions::default()
        })
        .with_context(|| format!("test run of sluice_xdp on {} bytes", frame.len()))?;
    let output = &output[..result.data_size_out as usize];
    let frame = output.get(metadata..).context("no frame came out")?;
    Ok((result.return_value, frame.to_vec()))
}
