//! A network namespace and how threads and processes enter it.

use std::fs::{self, File};
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use super::command::{command, output};

/// A namespace of a [`super::Run`], removed with it.
#[derive(Clone, Debug)]
pub struct Namespace {
    label: String,
    name: String,
    path: PathBuf,
    logs: PathBuf,
}

impl Namespace {
    pub(super) fn create(run: &str, label: &str, logs: &Path) -> Result<Self> {
        let name = format!("{run}-{label}");
        command(&format!("ip netns add {name}"))?;
        let namespace = Self {
            label: label.to_owned(),
            path: Path::new("/run/netns").join(&name),
            name,
            logs: logs.to_owned(),
        };
        // Addresses are usable at once: nobody else can have them.
        for scope in ["all", "default"] {
            namespace.sysctl(&format!("net.ipv6.conf.{scope}.accept_dad"), "0")?;
            namespace.sysctl(&format!("net.ipv6.conf.{scope}.accept_ra"), "0")?;
        }
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The name within the run.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The name that `ip netns` knows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where processes of this namespace log.
    pub(super) fn log_path(&self, process: &str) -> PathBuf {
        self.logs.join(format!("{}-{process}.log", self.label))
    }

    /// Runs `ip` with these arguments, separated by spaces, in the namespace.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        command(&format!("ip -n {} {arguments}", self.name))
    }

    /// Runs a command line, split at spaces, in the namespace, and returns what it wrote.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        output(self.command(program).args(words))
    }

    /// Feeds `rules` to `nft` in the namespace.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let file = self.log_path("nft");
        fs::write(&file, rules)?;
        output(self.command("nft").arg("-f").arg(&file)).with_context(|| rules.to_owned())?;
        Ok(())
    }

    /// Sets a sysctl below `net.`, in the notation with dots. Interface names must not contain dots.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.within(|| fs::write(&path, value))?
            .with_context(|| format!("set {key} to {value} in {}", self.label))
    }

    /// A command that will run in the namespace and is killed when the thread that started it ends.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path.display()))
            .args(["setpriv", "--pdeathsig", "KILL", "--"])
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    /// Runs `f` in a thread inside the namespace and waits for it.
    pub fn within<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                Ok(f())
            });
            thread
                .join()
                .unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }

    /// Starts a thread inside the namespace.
    pub fn spawn<T, F>(&self, name: &str, f: F) -> Result<JoinHandle<T>>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let file = self.open()?;
        let label = self.label.clone();
        let builder = thread::Builder::new().name(name.to_owned());
        let thread = builder.spawn(move || {
            // Going on would send test traffic into the machine's own network.
            setns(file, CloneFlags::CLONE_NEWNET)
                .unwrap_or_else(|error| unreachable!("enter namespace {label}: {error}"));
            f()
        })?;
        Ok(thread)
    }

    fn open(&self) -> Result<File> {
        File::open(&self.path).with_context(|| format!("open namespace {}", self.label))
    }

    /// Moves the calling thread.
    fn enter(&self) -> Result<()> {
        if let Err(error) = setns(self.open()?, CloneFlags::CLONE_NEWNET) {
            bail!("enter namespace {}: {error}", self.label);
        }
        Ok(())
    }
}
