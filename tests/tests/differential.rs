//! The programs in the kernel against the decision on the host.

use anyhow::Result;
use sluice_abi::{HALF_OPEN_SHIFT, SampleState, ServerRecord, Stat};
use sluice_tests::packet::{
    differential::{Coverage, compare},
    host::Host,
    kernel::Kernel,
    machine::{Action, Input, Machine, Output, State},
    random::Rng,
    setup::Setup,
    suite::timed,
};

/// Packets at least.
const PACKETS: u64 = 100_000;
/// Packets at most, should a combination be rare in this run's worlds.
const PACKETS_MOST: u64 = 800_000;
/// Each possible combination of mode, family, protocol and verdict happens so often, and each of these chooses servers by the client's
/// address so often.
const EACH: u64 = 100;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    let digits = text.strip_prefix("0x").unwrap_or(&text);
    Some(u64::from_str_radix(digits, 16).expect("a hexadecimal number"))
}

#[test]
fn kernel_and_host_agree() {
    let mut kernel = Kernel::load().unwrap();
    let mut host = Host::new();
    let mut coverage = Coverage::default();
    if let Some(world) = number("SLUICE_WORLD") {
        compare(&mut host, &mut kernel, world, &mut coverage).unwrap();
        return;
    }
    let seed = number("SLUICE_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now();
        now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
    });
    println!("SLUICE_SEED={seed:#x} repeats this run");
    let mut rng = Rng::new(seed);
    let is_rare = |coverage: &Coverage| {
        !coverage.missing(EACH).is_empty() || !coverage.rarely_by_client_address(EACH).is_empty()
    };
    let (result, took) = timed(|| -> Result<()> {
        while coverage.packets < PACKETS || is_rare(&coverage) && coverage.packets < PACKETS_MOST {
            compare(&mut host, &mut kernel, rng.bits(), &mut coverage)?;
        }
        Ok(())
    });
    println!("{}", coverage.table());
    println!(
        "{} packets, {} to a VIP, in {took:.1?}",
        coverage.packets, coverage.to_vip
    );
    if let Err(error) = result {
        panic!("SLUICE_SEED={seed:#x}: {error:?}");
    }
    assert!(coverage.to_vip * 100 >= coverage.packets * 40);
    assert_eq!(coverage.missing(EACH), [], "too rare");
    assert_eq!(coverage.rarely_by_client_address(EACH), [], "too rare");
    assert_eq!(coverage.miracles(), [], "held to be impossible");
    // One packet at a time always gets its slot; two CPUs at one slot are in tests/races.rs.
    for stat in Stat::ALL.iter().filter(|stat| **stat != Stat::Stateless) {
        assert!(coverage.stats.contains_key(stat), "{stat:?} never happened");
    }
    // How they go on is in the packet tables.
    for state in [SampleState::Opening, SampleState::Answered] {
        let happened = coverage.samples.contains_key(&state);
        assert!(happened, "no sample was {state:?}: {:?}", coverage.samples);
    }
}

/// The mistake of a [`Faulty`] host.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    /// One server's port in its tables.
    Port,
    /// One bit of one frame in a hundred.
    Bit,
    /// The action for one frame in a hundred.
    Verdict,
    /// The time in flow entries.
    Clock,
    /// One packet in the counters.
    Counter,
}

/// A host that is not the same as the kernel.
struct Faulty {
    host: Host,
    fault: Fault,
    frames: u32,
}

impl Machine for Faulty {
    fn fills_headroom(&self) -> bool {
        self.host.fills_headroom()
    }

    fn reset(&mut self, setup: &Setup) -> Result<()> {
        self.configure(setup)?;
        self.host.reset(&self.spoiled(setup))
    }

    fn configure(&mut self, setup: &Setup) -> Result<()> {
        self.host.configure(&self.spoiled(setup))
    }

    fn run(&mut self, input: &Input<'_>) -> Result<Output> {
        let skew = if self.fault == Fault::Clock {
            2 << HALF_OPEN_SHIFT
        } else {
            0
        };
        let mut output = self.host.run(&Input {
            now_ns: input.now_ns + skew,
            ..*input
        })?;
        if output.frame.is_empty() {
            return Ok(output);
        }
        self.frames += 1;
        if self.frames.is_multiple_of(100) {
            match self.fault {
                Fault::Bit => output
                    .frame
                    .iter_mut()
                    .rev()
                    .take(1)
                    .for_each(|byte| *byte ^= 1),
                Fault::Verdict if output.action == Action::Pass => output.action = Action::Tx,
                Fault::Verdict => output.action = Action::Pass,
                _ => {}
            }
        }
        Ok(output)
    }

    fn state(&mut self) -> Result<State> {
        let mut state = self.host.state()?;
        if self.fault == Fault::Counter
            && let Some(mut counters) = state.counters.first_entry()
        {
            counters.get_mut()[0] += 1;
        }
        Ok(state)
    }
}

impl Faulty {
    fn spoiled(&self, setup: &Setup) -> Setup {
        let mut setup = setup.clone();
        if self.fault == Fault::Port {
            let rewritten = |record: &&mut ServerRecord| record.facts.reply_index() != 0;
            for record in setup.records.values_mut().filter(rewritten).take(1) {
                record.port[1] ^= 1;
            }
        }
        setup
    }
}

#[test]
fn a_fault_is_noticed() {
    let mut kernel = Kernel::load().unwrap();
    let run = |host: &mut dyn Machine, kernel: &mut Kernel| -> Result<()> {
        let mut rng = Rng::new(1);
        for _ in 0..10 {
            compare(host, kernel, rng.bits(), &mut Coverage::default())?;
        }
        Ok(())
    };
    run(&mut Host::new(), &mut kernel).unwrap();
    for fault in [
        Fault::Port,
        Fault::Bit,
        Fault::Verdict,
        Fault::Clock,
        Fault::Counter,
    ] {
        let mut faulty = Faulty {
            host: Host::new(),
            fault,
            frames: 0,
        };
        let noticed = run(&mut faulty, &mut kernel);
        assert!(noticed.is_err(), "{fault:?} was not noticed");
    }
}
