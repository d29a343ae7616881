//! A director with an agent, a server beyond its uplink, and the decisions between them as files.

use std::fs;
use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use sluice_api::{
    AttachMode, DecidedPool, DecidedPort, DecidedRealServerPool, DecidedServer, DecidedSources,
    DecidedVirtualServer, Decision, ExternalTrafficPolicy, ForwardingMode, Kind,
    LoadBalancerNodeStatus, ObjectKey, PoolDecision, PoolSelection, Protocol, RealServerPoolStatus,
    ServerSelection, Time, VirtualServerStatus, WhenAllDown,
};
use sluice_directory::{Directory, Inventory, Names, StatusFile};
use sluice_tests::net::{Namespace, Process, Run, Veth, object_path, until};

/// How long a change may take. Most take a fraction of a second, but the verifier may be slow.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);

/// The director's uplink.
pub(crate) const UPLINK: &str = "eth0";
/// The server's address.
pub(crate) const SERVER: &str = "10.0.0.2";

/// Capabilities that the agent needs, as setpriv takes them.
const CAPABILITIES: &str = "-all,+bpf,+net_admin,+perfmon,+net_raw";

/// Drop it last: it removes all that tests made.
pub(crate) struct Node {
    agent: Option<Process>,
    /// The last heartbeat of an earlier agent.
    before: Option<Time>,
    pub(crate) director: Namespace,
    pub(crate) server: Namespace,
    pub(crate) pins: PathBuf,
    directory: PathBuf,
    socket: PathBuf,
    run: Run,
}

impl Node {
    /// Builds the namespaces and the link between them, and writes the node's manifest.
    pub(crate) fn build() -> Result<Self> {
        let object = object_path("sluice.o");
        if !object.exists() {
            bail!(
                "{} is missing: run `cargo xtask build-bpf`",
                object.display()
            );
        }
        let run = Run::start()?;
        let directory = run.directory().join("manifests");
        fs::create_dir(&directory)?;
        let node = Self {
            agent: None,
            before: None,
            director: run.namespace("director")?,
            server: run.namespace("server")?,
            pins: run.pin_directory("director"),
            socket: run.directory().join("agent.sock"),
            directory,
            run,
        };
        node.connect()?;
        node.write_spec("Auto")?;
        Ok(node)
    }

    /// Makes the link, also after it was removed.
    pub(crate) fn connect(&self) -> Result<()> {
        let (near, far) = (self.director.port(UPLINK), self.server.port("eth0"));
        Veth::between(near, far).create()?;
        self.director.ip("address add 10.0.0.1/24 dev eth0")?;
        self.server
            .ip(&format!("address add {SERVER}/24 dev eth0"))?;
        Ok(())
    }

    /// Gives agents that start from now on pins of their own, and returns those of the ones before.
    pub(crate) fn take_other_pins(&mut self) -> PathBuf {
        let others = self.run.pin_directory("other");
        std::mem::replace(&mut self.pins, others)
    }

    /// Makes a second link, `eth1`, to a namespace whose address is 10.0.1.2 and which has no XDP program.
    pub(crate) fn second_link(&self) -> Result<Namespace> {
        let far = self.run.namespace("far")?;
        Veth::between(self.director.port("eth1"), far.port("eth0")).create()?;
        self.director.ip("address add 10.0.1.1/24 dev eth1")?;
        far.ip("address add 10.0.1.2/24 dev eth0")?;
        Ok(far)
    }

    /// Waits until all next hops are known.
    pub(crate) fn await_neighbours(&self) -> Result<()> {
        until("the neighbour to be known", LIMIT, || {
            self.metric("sluice_neighbours{state=\"unresolved\"}")
                .is_ok_and(|n| n == 0.0)
        })
    }

    /// Sends a SYN to the virtual server, which nobody answers.
    pub(crate) fn knock(&self) -> Result<()> {
        self.server.ip("route add 203.0.113.1 via 10.0.0.1")?;
        let vip = "203.0.113.1:80".parse()?;
        let limit = Duration::from_millis(100);
        let connected = self
            .server
            .within(|| TcpStream::connect_timeout(&vip, limit))?;
        assert!(connected.is_err());
        Ok(())
    }

    pub(crate) fn write_spec(&self, mode: &str) -> Result<()> {
        self.write_spec_of(mode, UPLINK)
    }

    /// With these uplinks, separated by commas.
    pub(crate) fn write_spec_of(&self, mode: &str, uplinks: &str) -> Result<()> {
        let text = format!(
            "apiVersion: sluice.dev/v1alpha1\nkind: LoadBalancerNode\nmetadata: {{name: d1}}\n\
             spec: {{role: Director, interfaces: [{uplinks}], xdpMode: {mode}}}\n"
        );
        let hidden = self.directory.join(".node");
        fs::write(&hidden, text)?;
        fs::rename(hidden, self.directory.join("node.yaml"))?;
        Ok(())
    }

    /// Where manifests and status are.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes the decisions: one virtual server over one pool of these servers.
    pub(crate) fn decide(&self, revision: u64, servers: &[&str]) -> Result<()> {
        self.decide_from(revision, servers, None)
    }

    /// The same, for clients of these blocks alone.
    pub(crate) fn decide_from(
        &self,
        revision: u64,
        servers: &[&str],
        sources: Option<&[&str]>,
    ) -> Result<()> {
        let sources = sources.map(|blocks| -> Result<DecidedSources> {
            let allow = blocks.iter().map(|block| Ok(block.parse()?));
            let allow = allow.collect::<Result<_>>()?;
            Ok(DecidedSources { allow })
        });
        let sources = sources.transpose()?;
        let directory = Directory::new(&self.directory);
        let servers = servers.iter().enumerate().map(|(i, address)| {
            Ok(DecidedServer {
                name: format!("s{i}"),
                address: address.parse::<IpAddr>()?,
                weight: 1,
                target_ports: Vec::new(),
            })
        });
        let pool = RealServerPoolStatus {
            decision: Some(PoolDecision {
                revision: revision - 1,
                complete_revision: revision - 1,
                generation: 1,
                content: DecidedRealServerPool {
                    servers: servers.collect::<Result<_>>()?,
                    ..DecidedRealServerPool::default()
                },
            }),
            ..RealServerPoolStatus::default()
        };
        let key = ObjectKey::new("default", "pool");
        let file = StatusFile::new(Kind::RealServerPool, &key, pool);
        directory.write_status(Kind::RealServerPool, &file)?;
        let web = VirtualServerStatus {
            decision: Some(Decision {
                revision,
                complete_revision: revision,
                generation: 1,
                content: DecidedVirtualServer {
                    addresses: vec!["203.0.113.1".parse()?],
                    ports: vec![DecidedPort {
                        name: "http".to_owned(),
                        protocol: Protocol::Tcp,
                        port: 80,
                    }],
                    mode: ForwardingMode::FullNat,
                    pool_selection: PoolSelection::Flow,
                    server_selection: ServerSelection::Flow,
                    external_traffic_policy: ExternalTrafficPolicy::Cluster,
                    when_all_down: WhenAllDown::LastKnown,
                    fallback: None,
                    sources,
                    pools: vec![DecidedPool {
                        name: "pool".to_owned(),
                        weight: 1,
                        spec_weight: 1,
                    }],
                    groups: Vec::new(),
                },
            }),
            ..VirtualServerStatus::default()
        };
        let key = ObjectKey::new("default", "web");
        let file = StatusFile::new(Kind::VirtualServer, &key, web);
        directory.write_status(Kind::VirtualServer, &file)?;
        let pool = ObjectKey::new("default", "pool");
        directory.write_inventory(&Inventory {
            virtual_servers: Names::of([&key].into_iter()),
            pools: Names::of([&pool].into_iter()),
        })?;
        Ok(())
    }

    /// Starts the agent, with no more capabilities than it needs.
    pub(crate) fn start(&mut self, options: &[&str]) -> Result<()> {
        self.before = self.status().and_then(|status| status.heartbeat_time);
        let mut command = self.director.command("setpriv");
        command
            .args([
                "--bounding-set",
                CAPABILITIES,
                "--inh-caps",
                CAPABILITIES,
                "--",
            ])
            .arg(env!("CARGO_BIN_EXE_sluice-agent"))
            .args(["run", "--node", "d1", "--dir"])
            .arg(&self.directory)
            .arg("--pin-dir")
            .arg(&self.pins)
            .arg("--socket")
            .arg(&self.socket)
            .arg("--object")
            .arg(object_path("sluice.o"))
            .args(options);
        self.agent = Some(Process::start(&self.director, "agent", command)?);
        Ok(())
    }

    pub(crate) fn agent(&mut self) -> Result<&mut Process> {
        self.agent.as_mut().context("no agent was started")
    }

    /// Waits until the agent has ended by itself, and returns its log.
    pub(crate) fn await_end(&mut self) -> Result<String> {
        let agent = self.agent()?;
        until("the agent to end", LIMIT, || {
            agent.expect_running().is_err()
        })?;
        Ok(agent.log())
    }

    /// Runs a subcommand that asks or replaces a running agent.
    pub(crate) fn subcommand(&self, name: &str) -> Result<String> {
        let mut command: Command = self.director.command(env!("CARGO_BIN_EXE_sluice-agent"));
        command.arg(name).arg("--pin-dir").arg(&self.pins);
        command.arg("--socket").arg(&self.socket);
        let output = command.output()?;
        if !output.status.success() {
            bail!("{name}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    pub(crate) fn status(&self) -> Option<LoadBalancerNodeStatus> {
        let key = ObjectKey::new("", "d1");
        let file = Directory::new(&self.directory).read_status(Kind::LoadBalancerNode, &key);
        file.ok().flatten().map(|file| file.status)
    }

    /// Waits for a status of the agent that runs now.
    pub(crate) fn await_status(
        &mut self,
        what: &str,
        is_right: impl Fn(&LoadBalancerNodeStatus) -> bool,
    ) -> Result<LoadBalancerNodeStatus> {
        let mut last = None;
        let mut ended = Ok(());
        until(what, LIMIT, || {
            last = self.status();
            ended = self.agent().and_then(Process::expect_running);
            let mut new = last.iter().filter(|s| s.heartbeat_time != self.before);
            ended.is_err() || new.any(&is_right)
        })
        .with_context(|| format!("the status is {last:#?}"))?;
        ended?;
        last.context("no status")
    }

    /// Waits until a revision is acknowledged without exceptions, and the uplink attached.
    pub(crate) fn await_live(&mut self, revision: u64) -> Result<LoadBalancerNodeStatus> {
        self.await_status(&format!("revision {revision} to be live"), |status| {
            status.acknowledged_revision == revision
                && status.exceptions.is_empty()
                && attach_mode(status) == Some(AttachMode::Native)
        })
    }

    /// Waits until the maps in the kernel have a line with all these words, and equal the intended ones.
    pub(crate) fn await_maps(&self, words: &[&str]) -> Result<()> {
        let mut last = String::new();
        until(&format!("{words:?} in the maps"), LIMIT, || {
            last = self.subcommand("dump").unwrap_or_default();
            let Ok(dump) = serde_json::from_str::<Value>(&last) else {
                return false;
            };
            let none = |key: &str| dump[key].as_array().is_some_and(Vec::is_empty);
            let lines = dump["actual"].as_array().into_iter().flatten();
            let mut lines = lines.filter_map(Value::as_str);
            none("missing")
                && none("unexpected")
                && lines.any(|line| words.iter().all(|word| line.contains(word)))
        })
        .with_context(|| format!("the maps are {last}"))
    }

    /// A sample of the agent's metrics.
    pub(crate) fn metric(&self, series: &str) -> Result<f64> {
        let text = self
            .director
            .run("curl --silent --fail http://127.0.0.1:9200/metrics")?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
            .with_context(|| format!("no {series} in {text}"))?;
        Ok(value.parse()?)
    }

    /// Names of the pins.
    pub(crate) fn pinned(&self) -> Vec<String> {
        let names = |path: &Path| -> Vec<String> {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            let mut names: Vec<String> = entries
                .filter_map(|entry| entry.file_name().into_string().ok())
                .collect();
            names.sort();
            names
        };
        let mut all = names(&self.pins);
        all.extend(names(&self.pins.join("links")));
        all
    }

    /// The name of the run, for messages.
    pub(crate) fn name(&self) -> &str {
        self.run.name()
    }
}

/// How the uplink is attached.
pub(crate) fn attach_mode(status: &LoadBalancerNodeStatus) -> Option<AttachMode> {
    let uplink = status.interfaces.iter().find(|i| i.name == UPLINK);
    uplink.map(|uplink| uplink.attach_mode)
}
