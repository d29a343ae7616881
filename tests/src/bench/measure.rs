//! All cases in interleaved rounds, and the proof that each run did what its case says.

use super::{
    case::{Case, Family, Protocol, Traffic, VirtualServer},
    instance::{Counts, Instance, Tables},
    wrapper::{Order, Plan, Run, Target, Wrapper, XDP_PASS, XDP_TX},
};
use anyhow::{Context as _, Result, ensure};
use sluice_abi::ForwardingMode;
use std::{collections::BTreeMap, path::PathBuf, thread::sleep, time::Duration};

/// A UDP flow is confirmed by a packet about a second after the first; flow times have a resolution of half a second.
const UDP_CONFIRMATION: Duration = Duration::from_millis(2200);

/// Share of the packets of a hit case that may belong to a flow that another one has evicted.
const MOST_MISSES: f64 = 0.005;

/// Objects to run and sizes of the runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data plane's object.
    pub object: PathBuf,
    /// The wrapper's object.
    pub wrapper: PathBuf,
    /// Packets of a run.
    pub repeat: u32,
    /// Numbers of established flows, powers of two; the largest one sizes the flow tables.
    pub flows: Vec<u32>,
}

/// The programs under measurement, ready to run.
pub struct Bench {
    options: Options,
    wrapper: Wrapper,
    floors: BTreeMap<Family, (Target, Target)>,
    hits: BTreeMap<VirtualServer, (Instance, Target)>,
    rings: BTreeMap<VirtualServer, (Instance, Target)>,
}

impl Bench {
    /// Loads what `cases` need and establishes the flows of the hit cases.
    pub fn prepare(options: Options, cases: &[Case]) -> Result<Self> {
        let wrapper = Wrapper::load(&options.wrapper)?;
        let mut bench = Self {
            options,
            wrapper,
            floors: BTreeMap::new(),
            hits: BTreeMap::new(),
            rings: BTreeMap::new(),
        };
        for family in Family::ALL {
            bench.floors.insert(family, bench.wrapper.floors(family)?);
        }
        for case in cases {
            if let Case::Sluice(virtual_server, traffic) = *case {
                bench
                    .prepare_case(virtual_server, traffic)
                    .with_context(|| case.to_string())?;
            }
        }
        bench.establish()?;
        Ok(bench)
    }

    fn prepare_case(&mut self, virtual_server: VirtualServer, traffic: Traffic) -> Result<()> {
        match traffic {
            Traffic::Hit(_) | Traffic::NotAVip if !self.hits.contains_key(&virtual_server) => {
                let instance = self.load(virtual_server, Tables::Of(self.most_flows()))?;
                let target = Target::new(instance.program()?);
                self.hits.insert(virtual_server, (instance, target));
            }
            Traffic::PureHash if !self.rings.contains_key(&virtual_server) => {
                let instance = self.load(virtual_server, Tables::Absent)?;
                let target = Target::new(instance.program()?);
                self.rings.insert(virtual_server, (instance, target));
            }
            _ => {}
        }
        Ok(())
    }

    fn load(&self, virtual_server: VirtualServer, tables: Tables) -> Result<Instance> {
        Instance::load(&self.options.object, virtual_server, tables)
    }

    fn most_flows(&self) -> u32 {
        self.options.flows.iter().copied().max().unwrap_or(1)
    }

    /// Sends the packets that make the flows of the hit cases.
    fn establish(&mut self) -> Result<()> {
        let virtual_servers: Vec<VirtualServer> = self.hits.keys().copied().collect();
        for &virtual_server in &virtual_servers {
            self.begin_flows(virtual_server)?;
        }
        if virtual_servers
            .iter()
            .any(|virtual_server| virtual_server.protocol == Protocol::Udp)
        {
            sleep(UDP_CONFIRMATION);
        }
        let flows = self.most_flows();
        for virtual_server in virtual_servers {
            let (instance, target) = self.hits.get(&virtual_server).context("not prepared")?;
            if virtual_server.protocol == Protocol::Udp {
                let run = self
                    .wrapper
                    .run(target, &plan(virtual_server, Order::Once, flows))?;
                expect(&run, XDP_TX, flows).context("confirming flows")?;
            }
            let established = instance.established()?;
            ensure!(
                few(u64::from(flows).abs_diff(established), flows),
                "{established} of {flows} flows have an entry: {:?}",
                instance.counts()?
            );
        }
        Ok(())
    }

    /// Sends the packets that begin and, except for UDP, confirm the flows of a virtual server.
    fn begin_flows(&mut self, virtual_server: VirtualServer) -> Result<()> {
        let flows = self.most_flows();
        let (_, target) = self.hits.get(&virtual_server).context("not prepared")?;
        let (order, packets) = match virtual_server.protocol {
            Protocol::Tcp => (Order::Opening, 2 * flows),
            Protocol::Udp => (Order::Once, flows),
        };
        let run = self
            .wrapper
            .run(target, &plan(virtual_server, order, packets))?;
        // In FullNAT a flow in a million finds every port taken that it tries.
        let lost = u64::from(packets) - run.verdicts[XDP_TX];
        ensure!(few(lost, packets), "{lost} packets of new flows were lost");
        Ok(())
    }

    /// Runs one case once: processor time per packet, in nanoseconds.
    pub fn sample(&mut self, case: Case) -> Result<f64> {
        let measured = match case {
            Case::FloorTx(family) => self.floor(family, |floors| &floors.0),
            Case::FloorEncapsulation(family) => self.floor(family, |floors| &floors.1),
            Case::Sluice(virtual_server, Traffic::NewFlow) => self.new_flows(virtual_server),
            Case::Sluice(virtual_server, Traffic::Hit(flows)) => self.hit(virtual_server, flows),
            Case::Sluice(virtual_server, Traffic::PureHash) => self.pure_hash(virtual_server),
            Case::Sluice(virtual_server, Traffic::NotAVip) => self.not_a_vip(virtual_server),
        };
        measured.with_context(|| format!("{case} does not do what it says"))
    }

    fn floor(&mut self, family: Family, which: fn(&(Target, Target)) -> &Target) -> Result<f64> {
        let target = which(self.floors.get(&family).context("no floors")?);
        let plan = Plan {
            family,
            protocol: Protocol::Tcp,
            stray: false,
            order: Order::Random(1),
            packets: self.options.repeat,
        };
        let run = self.wrapper.run(target, &plan)?;
        expect(&run, XDP_TX, plan.packets)?;
        Ok(run.ns)
    }

    fn hit(&mut self, virtual_server: VirtualServer, flows: u32) -> Result<f64> {
        let packets = self.options.repeat;
        let (instance, target) = self.hits.get(&virtual_server).context("not prepared")?;
        // Steady traffic: every flow's last packet is a moment ago, as on a link that is busy with these flows.
        let before = instance.counts()?;
        let all = plan(virtual_server, Order::Once, flows);
        self.wrapper.run(target, &all)?;
        let plan = plan(virtual_server, Order::Random(flows), packets);
        let run = self.wrapper.run(target, &plan)?;
        let counts = instance.counts()?.since(&before);
        // A flow whose entry gave way to another one begins anew, but not in FullNAT: an ACK claims no port.
        let lost = counts.drops.values().sum();
        if virtual_server.mode == ForwardingMode::FullNat {
            let sent = packets.saturating_add(flows);
            ensure!(few(lost, sent), "{lost} packets were lost: {counts:?}");
        } else {
            expect(&run, XDP_TX, packets)?;
        }
        ensure!(
            counts.packets + lost == u64::from(packets) + u64::from(flows)
                && few(counts.half_open, packets)
                && counts.stateless == 0
                && (lost == 0 || virtual_server.mode == ForwardingMode::FullNat),
            "not every packet hit the flow table: {counts:?}"
        );
        Ok(run.ns)
    }

    fn new_flows(&mut self, virtual_server: VirtualServer) -> Result<f64> {
        let packets = self.options.repeat & !1;
        let flows = packets / 2;
        // Flows are new once.
        let room = self.most_flows().max(flows.next_power_of_two());
        let instance = self.load(virtual_server, Tables::Of(room))?;
        let target = Target::new(instance.program()?);
        let run = self
            .wrapper
            .run(&target, &plan(virtual_server, Order::Opening, packets))?;
        let counts = instance.counts()?;
        expect(&run, XDP_TX, packets)?;
        // In NAT a flow has an entry for each direction.
        let entries = if virtual_server.mode == ForwardingMode::Nat {
            2 * flows
        } else {
            flows
        };
        ensure!(
            counts.packets == u64::from(packets)
                && counts.flows == u64::from(flows)
                && counts.half_open == u64::from(entries)
                && counts.promoted == u64::from(entries)
                && counts.stateless == 0,
            "not every SYN made a flow that its ACK confirmed: {counts:?}"
        );
        Ok(run.ns)
    }

    fn pure_hash(&mut self, virtual_server: VirtualServer) -> Result<f64> {
        let packets = self.options.repeat;
        let flows = self.most_flows();
        let (instance, target) = self.rings.get(&virtual_server).context("not prepared")?;
        let before = instance.counts()?;
        let run = self
            .wrapper
            .run(target, &plan(virtual_server, Order::Random(flows), packets))?;
        expect(&run, XDP_TX, packets)?;
        let counts = instance.counts()?.since(&before);
        ensure!(
            counts.packets == u64::from(packets)
                && counts.stateless >= u64::from(packets)
                && counts.half_open == 0,
            "not every packet was served by the ring alone: {counts:?}"
        );
        Ok(run.ns)
    }

    fn not_a_vip(&mut self, virtual_server: VirtualServer) -> Result<f64> {
        let packets = self.options.repeat;
        let (instance, target) = self.hits.get(&virtual_server).context("not prepared")?;
        let before = instance.counts()?;
        let plan = Plan {
            stray: true,
            ..plan(virtual_server, Order::Random(1), packets)
        };
        let run = self.wrapper.run(target, &plan)?;
        expect(&run, XDP_PASS, packets)?;
        let counts = instance.counts()?.since(&before);
        ensure!(counts == Counts::default(), "counted {counts:?}");
        Ok(run.ns)
    }
}

/// All cases, `rounds` times: the samples of each.
pub fn rounds(
    bench: &mut Bench,
    cases: &[Case],
    rounds: usize,
    mut progress: impl FnMut(usize),
) -> Result<Vec<Vec<f64>>> {
    let mut samples = vec![Vec::with_capacity(rounds); cases.len()];
    for round in 0..rounds {
        progress(round);
        for (case, samples) in cases.iter().zip(&mut samples) {
            samples.push(bench.sample(*case)?);
        }
    }
    Ok(samples)
}

fn plan(virtual_server: VirtualServer, order: Order, packets: u32) -> Plan {
    Plan {
        family: virtual_server.family,
        protocol: virtual_server.protocol,
        stray: false,
        order,
        packets,
    }
}

fn expect(run: &Run, verdict: usize, packets: u32) -> Result<()> {
    ensure!(
        run.verdicts.get(verdict) == Some(&u64::from(packets)),
        "{packets} packets, but the verdicts (by xdp_action) are {:?}",
        run.verdicts
    );
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts of packets")]
fn few(misses: u64, packets: u32) -> bool {
    misses as f64 <= MOST_MISSES * f64::from(packets)
}

/// Keeps the calling thread on one processor: the one it is on.
pub fn pin() -> Result<usize> {
    let cpu = nix::sched::sched_getcpu()?;
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
    Ok(cpu)
}
