//! The wrapper program and the floors: `bench.o`.

use super::{
    case::{Family, Protocol},
    frame,
    sys::Raw,
};
use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, ProgramArray},
    programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp},
};
use nix::time::{ClockId, clock_gettime};
use sluice_abi::bench::{BENCH_WORDS, BenchControl};
use std::{path::Path, time::Duration};

/// A TCP segment that opens a connection, and one that belongs to it.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// `XDP_DROP`, `XDP_PASS` and `XDP_TX`: indices into [`Run::verdicts`].
pub const XDP_DROP: usize = 1;
/// See [`XDP_DROP`].
pub const XDP_PASS: usize = 2;
/// See [`XDP_DROP`].
pub const XDP_TX: usize = 3;

/// A program to be measured.
pub struct Target(ProgramFd);

impl Target {
    /// `program` is a loaded XDP program without fragments, as the wrapper is.
    pub fn new(program: ProgramFd) -> Self {
        Self(program)
    }
}

/// Which packets to send.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Family of the frames.
    pub family: Family,
    /// Their protocol.
    pub protocol: Protocol,
    /// To an address that is no VIP.
    pub stray: bool,
    /// The flow of each packet.
    pub order: Order,
    /// How many packets.
    pub packets: u32,
}

/// How the packets' flows follow each other. Numbers of flows are powers of two.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// Each flow at random among so many, none a connection attempt.
    Random(u32),
    /// One packet of each flow, none a connection attempt, from flow 0 on.
    Once,
    /// Of each flow a connection attempt and the packet after it, from flow 0 on.
    Opening,
}

/// Result of a run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Processor time per packet, in nanoseconds.
    pub ns: f64,
    /// Number of packets by verdict of the measured program (`xdp_action`); the last one counts what is none.
    pub verdicts: [u64; 8],
}

/// The loaded `bench.o`.
pub struct Wrapper {
    object: Ebpf,
    target: ProgramArray<MapData>,
    /// Where random orders begin: no two runs send the same sequence.
    random: u64,
}

impl Wrapper {
    /// Loads the object at `path`.
    pub fn load(path: &Path) -> Result<Self> {
        ensure!(
            path.exists(),
            "{} is missing: run `cargo xtask build-bpf`",
            path.display()
        );
        let mut object = EbpfLoader::new()
            .load_file(path)
            .with_context(|| format!("cannot load {}", path.display()))?;
        let names: Vec<String> = object.programs().map(|(name, _)| name.to_owned()).collect();
        for name in names {
            let program: &mut Xdp = object
                .program_mut(&name)
                .context("a program vanished")?
                .try_into()?;
            program
                .load()
                .with_context(|| format!("the kernel refuses {name}"))?;
        }
        let target = object.take_map("TARGET").context("no map TARGET")?;
        Ok(Self {
            object,
            target: ProgramArray::try_from(target)?,
            random: 0,
        })
    }

    /// The floor that only sends the frame back, and the one that adds a constant outer header.
    pub fn floors(&self, family: Family) -> Result<(Target, Target)> {
        let encapsulation = match family {
            Family::Ipv4 => "floor_encap4",
            Family::Ipv6 => "floor_encap6",
        };
        let floor = |name: &str| -> Result<Target> {
            let program: &Xdp = self.object.program(name).context("no floor")?.try_into()?;
            Ok(Target::new(program.fd()?.try_clone()?))
        };
        Ok((floor("floor_tx")?, floor(encapsulation)?))
    }

    /// Sends packets to `target`.
    pub fn run(&mut self, target: &Target, plan: &Plan) -> Result<Run> {
        self.target
            .set(0, &target.0, 0)
            .context("the wrapper cannot call the program")?;
        let first = self.control(plan);
        let data = frame::rendered(&first, plan.family, plan.protocol, first.packet);
        let begun = BenchControl {
            packet: first.packet + 1,
            ..first
        };
        self.controls()?.set(0, Raw(begun), 0)?;
        let program = match (plan.family, plan.protocol) {
            (Family::Ipv4, Protocol::Tcp) => "bench_tcp4",
            (Family::Ipv4, Protocol::Udp) => "bench_udp4",
            (Family::Ipv6, Protocol::Tcp) => "bench_tcp6",
            (Family::Ipv6, Protocol::Udp) => "bench_udp6",
        };
        let wrapper: &Xdp = self
            .object
            .program(program)
            .context("no such wrapper")?
            .try_into()?;
        let options = TestRunOptions {
            data_in: Some(&data),
            repeat: plan.packets,
            ..TestRunOptions::new()
        };
        // The kernel gives the mean in whole nanoseconds; the thread's processor time is finer and leaves out preemption
        // as well.
        let before = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
        wrapper.test_run(options).context("BPF_PROG_TEST_RUN")?;
        let elapsed = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)? - before;
        let control = self.controls()?.get(&0, 0)?.0;
        let sent = control.packet.wrapping_sub(begun.packet);
        if sent != u64::from(plan.packets) {
            bail!("the wrapper sent {sent} of {} packets", plan.packets);
        }
        let elapsed = Duration::from(elapsed).as_secs_f64();
        Ok(Run {
            ns: elapsed * 1e9 / f64::from(plan.packets),
            verdicts: control.verdicts,
        })
    }

    fn control(&mut self, plan: &Plan) -> BenchControl {
        let frame: [u64; BENCH_WORDS] = frame::template(plan.family, plan.protocol, plan.stray);
        let all = BenchControl {
            frame,
            flags: [ACK; 2],
            mask: u32::MAX,
            ..BenchControl::default()
        };
        match plan.order {
            Order::Random(flows) => {
                let packet = self.random;
                self.random += u64::from(plan.packets);
                BenchControl {
                    packet,
                    random: 1,
                    mask: flows - 1,
                    ..all
                }
            }
            Order::Once => all,
            Order::Opening => BenchControl {
                shift: 1,
                flags: [SYN, ACK],
                ..all
            },
        }
    }

    fn controls(&mut self) -> Result<Array<&mut MapData, Raw<BenchControl>>> {
        let map = self.object.map_mut("CONTROL").context("no map CONTROL")?;
        Ok(Array::try_from(map)?)
    }
}
