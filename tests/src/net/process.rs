//! Child processes: short commands, and daemons with captured logs.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::namespace::Namespace;
use super::wait;

/// Lines of a log that are shown when a test fails.
const TAIL_LINES: usize = 40;

/// A daemon in a namespace; killed when dropped, after its log's end was shown if a test is failing.
///
/// Start it from a thread that outlives it: the kernel kills it with that thread, so that nothing survives a killed test.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, made by [`Namespace::command`] of `namespace`. Its output goes to a log that a later process of
    /// this name continues.
    pub fn start(namespace: &Namespace, name: &str, mut command: Command) -> Result<Self> {
        let log = namespace.log_path(name);
        let out = File::options().create(true).append(true).open(&log)?;
        // Out of the terminal's process group: Ctrl-C reaches the test alone, which then ends its daemons in order.
        let child = command
            .process_group(0)
            .stdout(Stdio::from(out.try_clone()?))
            .stderr(Stdio::from(out))
            .spawn()
            .with_context(|| format!("start {name} in {}", namespace.label()))?;
        Ok(Self {
            name: format!("{} {name}", namespace.label()),
            child,
            log,
        })
    }

    /// Namespace and name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The output of this process and of earlier ones of the same name.
    pub fn log(&self) -> String {
        fs::read(&self.log).map_or_else(
            |error| format!("no log: {error}"),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        tail(&self.log())
    }

    /// Its name and the last lines of its log.
    pub fn evidence(&self) -> String {
        format!("--- end of the log of {}\n{}\n", self.name, self.log_tail())
    }

    /// Where it logs.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Fails if the process has ended, with the end of its log.
    pub fn expect_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}:\n{}", self.name, tail(&self.log())),
        }
    }

    /// Ends it at once, as a crash would, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child
            .kill()
            .with_context(|| format!("kill {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }

    /// Kills what it started and waits until it has ended of that: for `unshare`, which ends with its child, and whose
    /// child takes a whole process namespace with it.
    pub fn kill_children(&mut self, limit: Duration) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let id = self.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
        for child in children.split_whitespace() {
            // It may have ended by itself since.
            let _ = kill(Pid::from_raw(child.parse()?), Signal::SIGKILL);
        }
        let (name, child) = (&self.name, &mut self.child);
        wait::until_even_if_interrupted(&format!("{name} to end"), limit, || {
            child.try_wait().is_ok_and(|status| status.is_some())
        })
    }

    /// Asks it to end (SIGTERM) and waits until it has. Fails if it takes longer than `limit` or reports failure.
    pub fn stop(&mut self, limit: Duration) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.id())?), Signal::SIGTERM)?;
        let mut status = None;
        let (name, child) = (&self.name, &mut self.child);
        wait::until(&format!("{name} to end"), limit, || {
            status = child.try_wait().ok().flatten();
            status.is_some()
        })?;
        match status {
            Some(status) if !status.success() => bail!("{name} ended with {status}"),
            _ => Ok(()),
        }
    }

    /// Lines of level WARN or ERROR that contain none of the `expected` texts.
    pub fn complaints(&self, expected: &[&str]) -> Vec<String> {
        complaints(&self.log(), expected)
            .map(|line| format!("{}: {line}", self.name))
            .collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprint!("{}", self.evidence());
        }
    }
}

/// Warnings and errors in the logs of daemons: the texts of expected ones, and the lines that were reported already.
#[derive(Debug, Default)]
pub struct Complaints {
    expected: RefCell<Vec<String>>,
    reported: RefCell<BTreeSet<String>>,
}

impl Complaints {
    /// Lines of level WARN or ERROR that contain `text` are right from now on.
    pub fn expect(&self, text: &str) {
        self.expected.borrow_mut().push(text.to_owned());
    }

    /// Fails if one of the processes has complained of something unexpected since the last call.
    pub fn expect_none<'a>(&self, processes: impl IntoIterator<Item = &'a Process>) -> Result<()> {
        let expected = self.expected.borrow();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        let mut reported = self.reported.borrow_mut();
        let mut found = Vec::new();
        for process in processes {
            let lines = process.complaints(&expected).into_iter();
            found.extend(lines.filter(|line| reported.insert(line.clone())));
        }
        if found.is_empty() {
            return Ok(());
        }
        bail!("unexpected complaints:\n{}", found.join("\n"))
    }
}

fn complaints<'a>(log: &'a str, expected: &'a [&str]) -> impl Iterator<Item = &'a str> {
    log.lines().filter(move |line| {
        let bad = line
            .split(|c: char| !c.is_ascii_alphanumeric())
            .any(|word| matches!(word, "WARN" | "ERROR" | "panicked"));
        bad && !expected.iter().any(|text| line.contains(text))
    })
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_found_in_text_and_json() {
        let log = "1 INFO a: fine\n2  WARN a: odd\n{\"level\":\"ERROR\",\"m\":\"x\"}\n3 WARN expected thing\nthread panicked at";
        let found: Vec<&str> = complaints(log, &["expected thing"]).collect();
        assert_eq!(found.len(), 3, "{found:?}");
    }
}
