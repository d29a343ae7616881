//! Table-driven packet tests: tables, then packets with what must become of them.

use anyhow::{Context, Result, ensure};
use sluice_abi::DropReason;
use sluice_packet::Verdict;

use super::{
    frame::Frame,
    machine::{Input, Machine, Output, Program, State},
    setup::Setup,
};

/// The clock of the first packet: far from 0 and from where flow times wrap round.
const START_NS: u64 = 1_000_000_000_000;

/// One test: a machine is reset to `setup` and does the steps in their order.
pub struct Case {
    name: String,
    setup: Setup,
    steps: Vec<Step>,
    now_ns: u64,
    random: u32,
    /// The tables as of the last step.
    configured: Setup,
}

enum Step {
    Packet(Box<Packet>),
    Configure(Box<Setup>),
    Check(&'static str, Check),
}

type Check = Box<dyn Fn(&State) -> bool>;

struct Packet {
    program: Program,
    now_ns: u64,
    random: u32,
    headroom: bool,
    frame: Vec<u8>,
    verdict: Verdict,
    /// Empty if the packet is to be dropped.
    expected: Vec<u8>,
}

/// Something that becomes a frame.
pub trait ToBytes {
    /// Its bytes.
    fn to_bytes(&self) -> Vec<u8>;
}

impl ToBytes for Frame {
    fn to_bytes(&self) -> Vec<u8> {
        self.bytes()
    }
}

impl ToBytes for Vec<u8> {
    fn to_bytes(&self) -> Vec<u8> {
        self.clone()
    }
}

impl Case {
    /// A case without steps.
    pub fn new(name: impl Into<String>, setup: Setup) -> Self {
        Self {
            name: name.into(),
            configured: setup.clone(),
            setup,
            steps: Vec::new(),
            now_ns: START_NS,
            random: 0,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lets time pass.
    #[must_use]
    pub fn after_seconds(mut self, seconds: u64) -> Self {
        self.now_ns += seconds * 1_000_000_000;
        self
    }

    /// The next packets run on a CPU whose clock has not ticked yet.
    #[must_use]
    pub fn one_tick_back(mut self) -> Self {
        self.now_ns -= 1 << sluice_abi::HALF_OPEN_SHIFT;
        self
    }

    /// From now on random numbers are this.
    #[must_use]
    pub fn random(mut self, random: u32) -> Self {
        self.random = random;
        self
    }

    /// The agent changes the tables.
    #[must_use]
    pub fn then(mut self, change: impl FnOnce(&mut Setup)) -> Self {
        change(&mut self.configured);
        let setup = Box::new(self.configured.clone());
        self.steps.push(Step::Configure(setup));
        self
    }

    /// The tables that packets have written so far fulfil `check`; `what` says it in words.
    #[must_use]
    pub fn check(mut self, what: &'static str, check: impl Fn(&State) -> bool + 'static) -> Self {
        self.steps.push(Step::Check(what, Box::new(check)));
        self
    }

    /// A packet at `program` gets `verdict` and becomes `expected`.
    #[must_use]
    pub fn run(
        mut self,
        program: Program,
        frame: &impl ToBytes,
        verdict: Verdict,
        expected: &impl ToBytes,
    ) -> Self {
        self.push(program, frame, verdict, expected.to_bytes());
        self
    }

    /// A frame at XDP gets `verdict` and becomes `expected`.
    #[must_use]
    pub fn xdp(self, frame: &impl ToBytes, verdict: Verdict, expected: &impl ToBytes) -> Self {
        self.run(Program::Xdp, frame, verdict, expected)
    }

    /// A packet passes `program` unchanged.
    #[must_use]
    pub fn passes(self, program: Program, frame: &impl ToBytes) -> Self {
        self.run(program, frame, Verdict::Pass, frame)
    }

    /// A packet is dropped at `program`.
    #[must_use]
    pub fn drops(mut self, program: Program, frame: &impl ToBytes, reason: DropReason) -> Self {
        self.push(program, frame, Verdict::Drop(reason), Vec::new());
        self.check("drop is counted", move |state| {
            state.drops.contains_key(&reason)
        })
    }

    /// As [`Self::drops`] at XDP, where there is no room before the frame.
    #[must_use]
    pub fn drops_without_headroom(mut self, frame: &impl ToBytes, reason: DropReason) -> Self {
        self.push(Program::Xdp, frame, Verdict::Drop(reason), Vec::new());
        if let Some(Step::Packet(packet)) = self.steps.last_mut() {
            packet.headroom = false;
        }
        self
    }

    fn push(
        &mut self,
        program: Program,
        frame: &impl ToBytes,
        verdict: Verdict,
        expected: Vec<u8>,
    ) {
        self.steps.push(Step::Packet(Box::new(Packet {
            program,
            now_ns: self.now_ns,
            random: self.random,
            headroom: true,
            frame: frame.to_bytes(),
            verdict,
            expected,
        })));
    }

    /// Whether a packet finds no headroom.
    pub fn needs_full_headroom(&self) -> bool {
        self.steps
            .iter()
            .any(|step| matches!(step, Step::Packet(packet) if !packet.headroom))
    }

    /// Does it all on `machine` and returns what is there at the end.
    pub fn play(&self, machine: &mut dyn Machine) -> Result<State> {
        machine.reset(&self.setup)?;
        for (number, step) in (1..).zip(&self.steps) {
            step.play(machine)
                .with_context(|| format!("{}: step {number}", self.name))?;
        }
        machine.state()
    }
}

impl Step {
    fn play(&self, machine: &mut dyn Machine) -> Result<()> {
        match self {
            Self::Configure(setup) => machine.configure(setup),
            Self::Check(what, check) => {
                let state = machine.state()?;
                ensure!(
                    check(&state),
                    "not so: {what}\nflows: {:#?}\n{:?} {:?} {:?}\nclaims: {:?}\nnew flows: {:?}",
                    state.flows(),
                    state.stats,
                    state.drops,
                    state.counters,
                    state.claims(),
                    state.new_flows,
                );
                Ok(())
            }
            Self::Packet(packet) => {
                let output = machine.run(&Input {
                    program: packet.program,
                    now_ns: packet.now_ns,
                    random: packet.random,
                    frame: &packet.frame,
                    headroom: packet.headroom,
                })?;
                packet.compare(&output)
            }
        }
    }
}

impl Packet {
    fn compare(&self, output: &Output) -> Result<()> {
        let wrong = || {
            format!(
                "{:?}\n      in {}\nexpected {:?}\n         {}\n     got {:?} {:?}\n         {}",
                self.program,
                hex(&self.frame),
                self.verdict,
                hex(&self.expected),
                output.action,
                output.verdict,
                hex(&output.frame)
            )
        };
        ensure!(output.action == self.verdict.into(), wrong());
        ensure!(
            output.verdict.is_none_or(|verdict| verdict == self.verdict),
            wrong()
        );
        ensure!(output.frame == self.expected, wrong());
        Ok(())
    }
}

/// Bytes as text, headers apart.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    let mut text = String::new();
    for (index, byte) in bytes.iter().enumerate() {
        let gap = if matches!(index, 14 | 34 | 54 | 74 | 94) {
            " "
        } else {
            ""
        };
        write!(text, "{gap}{byte:02x}").expect("a string takes everything");
    }
    text
}
