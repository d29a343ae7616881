//! Random packets on random tables through two machines that must agree on everything: verdict, bytes, and what is
//! written to the tables.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use sluice_abi::{
    DropReason, ForwardingMode, SAMPLE_DATA, SampleData, SampleState, Stat, TCP, UDP,
};
use sluice_packet::Verdict;

use super::{
    case::hex,
    machine::{Machine, State},
    random::{Rng, Shot, Target, Traffic, World},
};

/// Packets on the same tables.
const PACKETS_PER_WORLD: u32 = 600;
/// Packets between two changes of the tables.
const PACKETS_PER_CHANGE: u32 = 60;

/// Fates of a packet, without the numbers of interfaces.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// [`Verdict::Pass`].
    Pass,
    /// [`Verdict::Up`].
    Up,
    /// [`Verdict::Tx`].
    Tx,
    /// [`Verdict::Redirect`].
    Redirect,
    /// [`Verdict::Neigh`].
    Neigh,
    /// [`Verdict::Drop`].
    Drop(DropReason),
}

impl Kind {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Pass, Self::Up, Self::Tx, Self::Redirect, Self::Neigh];
        all.extend(DropReason::ALL.iter().map(|reason| Self::Drop(*reason)));
        all
    }
}

impl From<Verdict> for Kind {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Pass => Self::Pass,
            Verdict::Up => Self::Up,
            Verdict::Tx => Self::Tx,
            Verdict::Redirect(_) => Self::Redirect,
            Verdict::Neigh(_) => Self::Neigh,
            Verdict::Drop(reason) => Self::Drop(reason),
        }
    }
}

/// Why no packet of such a virtual server can end so; `None` if one can.
pub fn impossible(target: Target, kind: Kind) -> Option<&'static str> {
    use ForwardingMode::{Dr, FullNat, Tun};
    let mode = target.mode;
    match kind {
        Kind::Neigh if mode == Tun => Some("packets are wrapped at XDP only"),
        Kind::Drop(reason) => match reason {
            DropReason::RedirectRefused => Some("the device refuses after the verdict"),
            DropReason::NoHeadroom if mode != Tun => Some("only TUN makes a frame longer"),
            DropReason::NotEcnCapable | DropReason::TunnelSource if mode != Tun => {
                Some("only tunnels have an outer header")
            }
            DropReason::NoPort | DropReason::HalfOpenLimit | DropReason::NoFlow
                if mode != FullNat =>
            {
                Some("only FullNAT claims ports")
            }
            DropReason::NoFlow if target.protocol == UDP => Some("UDP opens no connections"),
            DropReason::NoRoute if matches!(mode, Dr | Tun) => {
                Some("replies do not pass the director")
            }
            _ => None,
        },
        _ => None,
    }
}

/// How often packets ended in each way.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// Packets run.
    pub packets: u64,
    /// Those to a VIP.
    pub to_vip: u64,
    /// Counts of the host beside drops.
    pub stats: BTreeMap<Stat, u64>,
    /// Samples by their state when a world ended.
    pub samples: BTreeMap<SampleState, u64>,
    /// Flows that got a server by the client's address alone.
    by_client_address: BTreeMap<Target, u64>,
    counts: BTreeMap<(Target, Kind), u64>,
}

impl Coverage {
    /// The possible combinations that happened fewer than `least` times, with how often they did.
    pub fn missing(&self, least: u64) -> Vec<(Target, Kind, u64)> {
        let mut missing = Vec::new();
        for target in Target::all() {
            for kind in Kind::all() {
                let count = self.count(target, kind);
                if count < least && impossible(target, kind).is_none() {
                    missing.push((target, kind, count));
                }
            }
        }
        missing
    }

    /// The kinds of virtual servers of which fewer than `least` flows got a server by the client's address alone, with their number.
    pub fn rarely_by_client_address(&self, least: u64) -> Vec<(Target, u64)> {
        let flows = |target: &Target| self.by_client_address.get(target).copied().unwrap_or(0);
        let all = Target::all().into_iter();
        all.map(|target| (target, flows(&target)))
            .filter(|(_, flows)| *flows < least)
            .collect()
    }

    /// Combinations that happened although they are held to be impossible.
    pub fn miracles(&self) -> Vec<(Target, Kind, u64)> {
        self.counts
            .iter()
            .filter(|((target, kind), _)| impossible(*target, *kind).is_some())
            .map(|((target, kind), count)| (*target, *kind, *count))
            .collect()
    }

    /// How often a combination happened.
    pub fn count(&self, target: Target, kind: Kind) -> u64 {
        self.counts.get(&(target, kind)).copied().unwrap_or(0)
    }

    /// The table: a line per verdict and reason, a column per mode, family and protocol.
    pub fn table(&self) -> String {
        let title = |target: &Target| {
            let protocol = if target.protocol == TCP { "TCP" } else { "UDP" };
            let mode = format!("{:?}", target.mode);
            format!(" {mode:.4}{:?}{protocol}", target.family)
        };
        let titles: String = Target::all().iter().map(title).collect();
        let mut lines = vec![format!("{:24}{titles}", "")];
        for kind in Kind::all() {
            let cell =
                |target: &Target| match (self.count(*target, kind), impossible(*target, kind)) {
                    (0, Some(_)) => format!("{:>1$}", "-", title(target).len()),
                    (count, _) => format!("{count:>0$}", title(target).len()),
                };
            let cells: String = Target::all().iter().map(cell).collect();
            lines.push(format!("{:24}{cells}", format!("{kind:?}")));
        }
        lines.join("\n")
    }

    fn add(&mut self, shot: &Shot, kind: Kind) {
        self.packets += 1;
        self.to_vip += u64::from(shot.to_vip);
        if let Some(target) = shot.target {
            *self.counts.entry((target, kind)).or_default() += 1;
        }
    }
}

/// Compares `host` and `kernel` on one world out of `seed` and counts what happened. The error says what differs.
pub fn compare(
    host: &mut dyn Machine,
    kernel: &mut dyn Machine,
    seed: u64,
    coverage: &mut Coverage,
) -> Result<()> {
    let mut counted = coverage.clone();
    if let Err(error) = world(host, kernel, seed, &mut counted, false) {
        // Once more, and look at the tables after each packet: the first difference is closer to its cause.
        let closer = world(host, kernel, seed, &mut counted, true).err();
        return Err(closer.unwrap_or(error)).with_context(|| {
            format!("world {seed:#018x} (SLUICE_WORLD={seed:#018x} runs it alone)")
        });
    }
    *coverage = counted;
    Ok(())
}

fn world(
    host: &mut dyn Machine,
    kernel: &mut dyn Machine,
    seed: u64,
    coverage: &mut Coverage,
    closely: bool,
) -> Result<()> {
    let mut rng = Rng::new(seed);
    let mut world = World::new(&mut rng);
    let mut traffic = Traffic::new(&mut rng);
    host.reset(&world.setup)?;
    kernel.reset(&world.setup)?;
    for number in 0..PACKETS_PER_WORLD {
        if number % PACKETS_PER_CHANGE == PACKETS_PER_CHANGE - 1 {
            world.change(&mut rng);
            host.configure(&world.setup)?;
            kernel.configure(&world.setup)?;
            traffic.look(&host.state()?, &world);
        }
        let mut shot = traffic.next(&mut rng, &world);
        shot.headroom |= !kernel.fills_headroom();
        let expected = host.run(&shot.input())?;
        let got = kernel.run(&shot.input())?;
        ensure!(
            expected.action == got.action && expected.frame == got.frame,
            "packet {number}, {:?}\n      in {}\nexpected {:?} {:?}\n         {}\n     got {:?}\n         {}",
            shot.program,
            hex(&shot.frame),
            expected.action,
            expected.verdict,
            hex(&expected.frame),
            got.action,
            hex(&got.frame)
        );
        coverage.add(
            &shot,
            expected.verdict.context("the host has a verdict")?.into(),
        );
        if closely {
            same_state(host, kernel).with_context(|| {
                format!(
                    "after packet {number}, {:?}, {}",
                    shot.program,
                    hex(&shot.frame)
                )
            })?;
        }
    }
    let state = same_state(host, kernel)?;
    for (target, flows) in world.flows_by_client_address(&state) {
        *coverage.by_client_address.entry(target).or_default() += flows;
    }
    let samples = state.samples.values();
    for sample in samples.filter_map(|slot| SampleData(slot[SAMPLE_DATA]).state()) {
        *coverage.samples.entry(sample).or_default() += 1;
    }
    for (stat, count) in state.stats {
        *coverage.stats.entry(stat).or_default() += count;
    }
    Ok(())
}

fn same_state(host: &mut dyn Machine, kernel: &mut dyn Machine) -> Result<State> {
    let (expected, got) = (host.state()?, kernel.state()?);
    ensure!(
        expected == got,
        "the tables differ\nexpected {expected:#?}\n     got {got:#?}"
    );
    Ok(expected)
}
