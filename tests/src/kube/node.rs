//! A node: kubelet, containerd and kube-proxy with file systems, processes and a network of their own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::control::ControlPlane;
use super::node_files;
use super::programs::{image, program};
use super::spec::Place;
use crate::net::{Dual, Namespace, Process, Run, output, until};

const SCRIPT: &str = include_str!("node.sh");

/// Name of the file that `node.sh` makes in the node's directory once the file systems are mounted.
const READY: &str = "ready";

/// How long a daemon of a node may take to come up on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);

/// A node of a cluster. Dropping it, or killing it, is pulling its plug.
#[derive(Debug)]
pub struct Node {
    // Process 1 goes last: with it goes all that the daemons have left.
    daemons: Vec<Process>,
    init: Process,
    name: String,
    place: Place,
    directory: PathBuf,
    control_group: String,
}

impl Node {
    /// Makes the namespaces in which the node will be, around a network that is ready. Its daemons do not run yet. If there
    /// was a node of this name before, it has that one's disk.
    pub(super) fn boot(run: &Run, place: Place) -> Result<Self> {
        let namespace = &place.namespace;
        let name = namespace.label().to_owned();
        let directory = run.directory().join(&name);
        for path in [&directory, &directory.join("cni")] {
            fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
        }
        let ready = directory.join(READY);
        if ready.exists() {
            fs::remove_file(ready)?;
        }
        let script = directory.join("node.sh");
        fs::write(&script, SCRIPT)?;
        let mut command = namespace.command("unshare");
        command
            .args(["--mount", "--uts", "--ipc", "--pid", "--fork"])
            .args(["--kill-child", "bash"])
            .arg(script)
            .env("NODE_NAME", &name)
            .env("NODE_DIRECTORY", &directory);
        let init = Process::start(namespace, "init", command)?;
        Ok(Self {
            daemons: Vec::new(),
            control_group: run.control_group(&name)?,
            init,
            name,
            place,
            directory,
        })
    }

    /// Starts containerd as soon as the file systems are mounted.
    pub(super) fn start_runtime(&mut self) -> Result<()> {
        let ready = self.directory.join(READY);
        until_running(&mut self.init, "its file systems", || ready.exists())?;
        let plugins = node_files::cni(self.place.pods);
        fs::write(self.directory.join("cni/10-bridge.conflist"), plugins)?;
        let config = self.directory.join("containerd.toml");
        fs::write(&config, node_files::containerd(&self.directory)?)?;
        let mut command = self.command("containerd");
        command.arg("--config").arg(config);
        self.start("containerd", command)
    }

    /// Loads container images, such as `web`, from the build directory.
    pub(super) fn load_images(&mut self, images: &[&str]) -> Result<()> {
        let mut version = self.command("ctr");
        version.arg("version");
        let containerd = self.daemons.last_mut().context("containerd runs first")?;
        until_running(containerd, "containerd", || {
            version.output().is_ok_and(|output| output.status.success())
        })?;
        for name in images {
            let archive = image(name)?;
            let mut command = self.command("ctr");
            command.args(["--namespace", "k8s.io", "images", "import"]);
            output(command.arg(archive))
                .with_context(|| format!("load the image {name} on {}", self.name))?;
        }
        Ok(())
    }

    /// Starts the kubelet, which registers the node, and kube-proxy if wanted.
    pub(super) fn start_kubelet(&mut self, control: &ControlPlane, proxy: bool) -> Result<()> {
        let user = format!("system:node:{}", self.name);
        let account = control.user(&user, Some("system:nodes"))?;
        let config = self.directory.join("kubelet.json");
        let authority = control.pki().file("ca.crt");
        fs::write(
            &config,
            node_files::kubelet(&authority, &self.control_group),
        )?;
        let Dual { v4, v6 } = self.place.address;
        let mut command = self.command(program("kubelet")?);
        command
            .arg(format!("--config={}", config.display()))
            .arg(format!(
                "--kubeconfig={}",
                account.kubeconfig().path().display()
            ))
            .arg(format!("--hostname-override={}", self.name))
            .arg(format!("--node-ip={v4},{v6}"));
        self.start("kubelet", command)?;
        if proxy {
            let account = control.user("system:kube-proxy", None)?;
            let config = self.directory.join("kube-proxy.json");
            let kubeconfig = account.kubeconfig().path();
            fs::write(&config, node_files::kube_proxy(&self.name, kubeconfig))?;
            let mut command = self.command(program("kube-proxy")?);
            command.arg(format!("--config={}", config.display()));
            self.start("kube-proxy", command)?;
        }
        Ok(())
    }

    pub(super) const fn place(&self) -> &Place {
        &self.place
    }

    /// Its name, also in the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network.
    pub const fn namespace(&self) -> &Namespace {
        &self.place.namespace
    }

    /// Its addresses.
    pub const fn address(&self) -> Dual {
        self.place.address
    }

    /// The network of its pods.
    pub const fn pods(&self) -> Dual {
        self.place.pods
    }

    /// A command that will run in the node as its own daemons do: with its network, its /sys/fs/bpf, its processes.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let namespaces = format!("/proc/{}/ns", self.init.id());
        let mut command = self.place.namespace.command("nsenter");
        command
            .arg(format!("--mount={namespaces}/mnt"))
            .arg(format!("--uts={namespaces}/uts"))
            .arg(format!("--ipc={namespaces}/ipc"))
            .arg(format!("--pid={namespaces}/pid_for_children"))
            // nsenter starts it as a child, in the old root directory.
            .args(["--", "env", "--chdir=/"])
            .args(["setpriv", "--pdeathsig", "KILL", "--"])
            .arg(program);
        command
    }

    /// Runs a command line, split at spaces, in the node, and returns what it wrote.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        output(self.command(program).args(words))
    }

    /// Fails if a daemon has ended.
    pub fn expect_running(&mut self) -> Result<()> {
        self.daemons
            .iter_mut()
            .try_for_each(Process::expect_running)
    }

    /// The ends of its daemons' logs.
    pub fn evidence(&self) -> String {
        let daemons = self.daemons.iter().chain([&self.init]);
        daemons.map(Process::evidence).collect()
    }

    fn start(&mut self, name: &str, command: Command) -> Result<()> {
        let process = Process::start(&self.place.namespace, name, command)?;
        self.daemons.push(process);
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Dropping `init` would leave the kernel to kill the rest in its own time: wait for it.
        if let Err(error) = self.init.kill_children(LIMIT) {
            eprintln!("end of node {}: {error:#}", self.name);
        }
    }
}

fn until_running(process: &mut Process, what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let mut state = Ok(());
    until(&format!("{what} on a node"), LIMIT, || {
        state = process.expect_running();
        state.is_err() || holds()
    })
    .with_context(|| process.log_tail())?;
    state
}
