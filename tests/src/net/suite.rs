//! Runs many checks on one topology, one after the other: building a network costs more than most checks.
//!
//! The binary's target has `harness = false`. Output and arguments are those of Rust's own harness as far as needed: words
//! filter by name, `--list` lists.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, anyhow};

use super::run::expect_no_remains;
use super::wait::{interrupted, listen_for_ctrl_c};

/// The environment that the checks of a suite share, such as a network with daemons.
pub trait Stage {
    /// Called after each check: fails if something is wrong that the check did not look at, such as a complaint in a log.
    fn after_check(&mut self) -> Result<()>;

    /// Text that helps to understand a failed check, such as the ends of the daemons' logs.
    fn evidence(&mut self) -> String;

    /// Name of the [`super::Run`] that owns everything: nothing of it may be left once the stage is dropped.
    fn run_name(&self) -> String;
}

type Run<S> = Box<dyn FnOnce(&mut S) -> Result<()>>;

/// Named checks on a stage.
pub struct Suite<S> {
    checks: Vec<(String, Run<S>)>,
}

impl<S: Stage> Suite<S> {
    /// A suite without checks.
    pub const fn new() -> Self {
        Self { checks: Vec::new() }
    }

    /// Adds a check. They run in the order in which they are added.
    pub fn check(
        &mut self,
        name: impl Into<String>,
        run: impl FnOnce(&mut S) -> Result<()> + 'static,
    ) {
        self.checks.push((name.into(), Box::new(run)));
    }

    /// Builds the stage and runs the checks that the arguments ask for.
    pub fn main(mut self, build: impl FnOnce() -> Result<S>) -> ExitCode {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let wanted: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
        let all = self.checks.len();
        self.checks.retain(|(name, _)| {
            wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()))
        });
        if arguments.iter().any(|a| a == "--list") {
            for (name, _) in &self.checks {
                println!("{name}: test");
            }
            return ExitCode::SUCCESS;
        }
        let filtered = all - self.checks.len();
        let start = Instant::now();
        let (passed, failed) = if self.checks.is_empty() {
            (0, 0)
        } else {
            // One more looks at what is left at the end.
            println!("\nrunning {} tests", self.checks.len() + 1);
            self.run(build)
        };
        let verdict = if failed == 0 { "ok" } else { "FAILED" };
        println!(
            "\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {filtered} filtered out; \
             finished in {:.2}s\n",
            start.elapsed().as_secs_f64()
        );
        if failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    /// Passed and failed.
    fn run(self, build: impl FnOnce() -> Result<S>) -> (usize, usize) {
        let all = self.checks.len() + 1;
        let start = Instant::now();
        let mut stage = match guard(|| listen_for_ctrl_c().and_then(|()| build())) {
            Ok(stage) => stage,
            Err(error) => {
                tell("the stage", start, &Err(error));
                return (0, all);
            }
        };
        let (mut failed, mut left) = (0, self.checks.len());
        for (name, run) in self.checks {
            left -= 1;
            let start = Instant::now();
            let result = guard(|| run(&mut stage).and_then(|()| stage.after_check()));
            if !tell(&name, start, &result) {
                failed += 1;
                let evidence = guard(|| Ok(stage.evidence()));
                println!("{}", evidence.unwrap_or_else(|error| format!("{error:#}")));
            }
            if interrupted() {
                println!("interrupted: {left} tests were not run");
                failed += left;
                break;
            }
        }
        let start = Instant::now();
        let run = stage.run_name();
        drop(stage);
        if !tell("nothing is left behind", start, &expect_no_remains(&run)) {
            failed += 1;
        }
        (all - failed, failed)
    }
}

/// Prints the result of a check, and returns whether it passed.
fn tell(name: &str, start: Instant, result: &Result<()>) -> bool {
    let seconds = start.elapsed().as_secs_f64();
    match result {
        Ok(()) => println!("test {name} ... ok ({seconds:.1} s)"),
        Err(error) => println!("test {name} ... FAILED ({seconds:.1} s)\n{error:#}\n"),
    }
    result.is_ok()
}

impl<S: Stage> Default for Suite<S> {
    fn default() -> Self {
        Self::new()
    }
}

fn guard<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(anyhow!("{}", words(&*panic))))
}

fn words(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words")
}
