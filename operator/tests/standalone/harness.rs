//! A directory, the operator's process, and an agent that acknowledges what it is told to.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sluice_api::jiff::Timestamp;
use sluice_api::{
    Condition, ConditionType, Kind, LoadBalancerNodeStatus, ObjectKey, RealServerPoolStatus,
    RolloutPolicyStatus, Time, VirtualServerStatus, find_condition,
};
use sluice_directory::{
    DecisionReader, Decisions, Directory, FileReport, StatusFile, write_atomically,
};

/// Longest time for a condition to come true.
const CONDITION_TIMEOUT: Duration = Duration::from_secs(30);

/// A directory with an operator.
pub(crate) struct Standalone {
    pub(crate) path: PathBuf,
    pub(crate) directory: Directory,
    child: Option<Child>,
    /// Nodes that acknowledge all decisions whenever the test waits.
    agents: Vec<Agent>,
}

struct Agent {
    name: String,
    reader: DecisionReader,
    status: LoadBalancerNodeStatus,
    beats: i64,
}

impl Standalone {
    /// An empty directory, no operator yet.
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("sluice-operator-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("temporary directory");
        Self {
            directory: Directory::new(&path),
            path,
            child: None,
            agents: Vec::new(),
        }
    }

    /// With these files and a running operator.
    pub(crate) fn started(files: &[(&str, &str)]) -> Self {
        let mut standalone = Self::new();
        for (name, text) in files {
            standalone.write(name, text);
        }
        standalone.start();
        standalone
    }

    pub(crate) fn command(path: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-operator"));
        command
            .arg("--dir")
            .arg(path)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "runs already");
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("log file");
        let child = Self::command(&self.path)
            .stderr(log)
            .spawn()
            .expect("operator starts");
        self.child = Some(child);
    }

    /// SIGTERM.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("runs");
        let pid = child.id().to_string();
        let sent = Command::new("sh")
            .args(["-c", &format!("kill -TERM {pid}")])
            .status();
        assert!(sent.expect("sh").success());
        child.wait().expect("exit status")
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("runs");
        child.kill().expect("kill");
        child.wait().expect("exit status");
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        write_atomically(&self.path.join(name), text.as_bytes()).expect("manifest");
    }

    fn log_path(&self) -> PathBuf {
        self.path.join("operator.log")
    }

    pub(crate) fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = fs::File::open(self.log_path()) {
            file.read_to_string(&mut text).expect("log");
        }
        text
    }

    /// Nothing went wrong that the test does not know of.
    pub(crate) fn assert_quiet_log(&self) {
        let log = self.log();
        let loud = log
            .lines()
            .find(|line| line.contains(" WARN ") || line.contains("ERROR"));
        assert_eq!(loud, None);
    }

    /// Adds a node that acknowledges everything.
    pub(crate) fn agent(&mut self, name: &str, addresses: &[&str]) {
        self.agents.push(Agent {
            name: name.to_owned(),
            reader: DecisionReader::new(self.directory.clone()),
            status: LoadBalancerNodeStatus {
                addresses: addresses
                    .iter()
                    .map(|a| a.parse().expect("address"))
                    .collect(),
                ..LoadBalancerNodeStatus::default()
            },
            beats: 0,
        });
        self.beat();
    }

    /// Lets a node stop acknowledging; it goes on being live.
    pub(crate) fn freeze(&mut self, name: &str) {
        self.agents.retain(|agent| agent.name != name);
    }

    fn beat(&mut self) {
        for agent in &mut self.agents {
            agent.beat(&self.directory);
        }
    }

    /// Waits until `get` gives something.
    pub(crate) fn wait<T>(&mut self, what: &str, get: impl Fn(&Self) -> Option<T>) -> T {
        let end = Instant::now() + CONDITION_TIMEOUT;
        loop {
            self.beat();
            if let Some(value) = get(self) {
                return value;
            }
            assert!(
                Instant::now() < end,
                "{what} did not come; log:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Lets the operator look at the directory a few times.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.beat();
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn virtual_server(&self, name: &str) -> Option<StatusFile<VirtualServerStatus>> {
        self.directory
            .read_status(Kind::VirtualServer, &key(name))
            .expect("no torn file")
    }

    pub(crate) fn pool(&self, name: &str) -> Option<StatusFile<RealServerPoolStatus>> {
        self.directory
            .read_status(Kind::RealServerPool, &key(name))
            .expect("no torn file")
    }

    pub(crate) fn policy(&self, name: &str) -> Option<StatusFile<RolloutPolicyStatus>> {
        self.directory
            .read_status(Kind::RolloutPolicy, &key(name))
            .expect("no torn file")
    }

    pub(crate) fn report(&self, file: &str) -> Option<FileReport> {
        let text = fs::read_to_string(self.directory.report_path(file)).ok()?;
        Some(serde_saphyr::from_str(&text).expect("no torn file"))
    }

    /// All decisions.
    pub(crate) fn decisions(&self) -> Decisions {
        loop {
            if let Some(decisions) = self.try_decisions() {
                return decisions;
            }
        }
    }

    /// All decisions; `None` while they change.
    pub(crate) fn try_decisions(&self) -> Option<Decisions> {
        let mut reader = DecisionReader::new(self.directory.clone());
        reader.poll().expect("no torn file")
    }

    pub(crate) fn weights(&self, name: &str) -> Option<Vec<u32>> {
        let decision = self.virtual_server(name)?.status.decision?;
        Some(
            decision
                .content
                .pools
                .iter()
                .map(|pool| pool.weight)
                .collect(),
        )
    }

    /// Waits until the virtual server is in force on all nodes.
    pub(crate) fn wait_live(&mut self, name: &str) {
        self.wait(&format!("{name} in force"), |s| {
            let status = s.virtual_server(name)?.status;
            (reason(&status.conditions)? == "Live").then_some(())
        });
    }

    /// Waits until the virtual server's newest spec is refused; returns the message.
    pub(crate) fn wait_refused(&mut self, name: &str, why: &str) -> String {
        self.wait(&format!("{name} refused: {why}"), |s| {
            refusal(&s.virtual_server(name)?.status.conditions, why)
        })
    }

    pub(crate) fn wait_pool_refused(&mut self, name: &str, why: &str) -> String {
        self.wait(&format!("pool {name} refused: {why}"), |s| {
            refusal(&s.pool(name)?.status.conditions, why)
        })
    }

    pub(crate) fn wait_policy_refused(&mut self, name: &str, why: &str) -> String {
        self.wait(&format!("policy {name} refused: {why}"), |s| {
            refusal(&s.policy(name)?.status.conditions, why)
        })
    }
}

impl Drop for Standalone {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Agent {
    fn beat(&mut self, directory: &Directory) {
        let decisions = self.reader.poll().expect("no torn file");
        if decisions.is_none() && self.beats > 0 {
            return;
        }
        self.beats += 1;
        if let Some(decisions) = decisions.filter(|decisions| decisions.is_whole) {
            self.status.acknowledged_revision = decisions.revision;
            self.status.acknowledged_pool_revision = decisions.revision;
        }
        let heartbeat = Timestamp::from_second(self.beats).expect("time");
        self.status.heartbeat_time = Some(Time(heartbeat));
        let key = ObjectKey::new("", &self.name);
        let file = StatusFile::new(Kind::LoadBalancerNode, &key, self.status.clone());
        directory
            .write_status(Kind::LoadBalancerNode, &file)
            .expect("report");
    }
}

pub(crate) fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

fn reason(conditions: &[Condition]) -> Option<String> {
    find_condition(conditions, ConditionType::Ready).map(|ready| ready.reason.clone())
}

fn refusal(conditions: &[Condition], why: &str) -> Option<String> {
    let stalled = find_condition(conditions, ConditionType::Stalled)?;
    let ready = find_condition(conditions, ConditionType::Ready)?;
    let refused = stalled.status == "True" && ready.status == "False" && stalled.reason == why;
    refused.then(|| stalled.message.clone())
}

/// Whether a manifest's text holds all of these.
pub(crate) fn assert_parts(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

/// One virtual server on 203.0.113.10:80 by NAT with pools v1 and v2.
pub(crate) const WEB: &str = "\
apiVersion: sluice.dev/v1alpha1
kind: VirtualServer
metadata: {name: web}
spec:
  addresses: [{ip: 203.0.113.10}]
  ports: [{name: http, protocol: TCP, port: 80}]
  forwarding: {mode: NAT}
  pools: [{name: v1, weight: 100}, {name: v2, weight: 0}]
";

/// Its pools.
pub(crate) const POOLS: &str = "\
apiVersion: sluice.dev/v1alpha1
kind: RealServerPool
metadata: {name: v1}
spec: {servers: {static: [{name: a, address: 10.0.0.1}]}, targetPorts: [{name: http, port: 8080}]}
---
apiVersion: sluice.dev/v1alpha1
kind: RealServerPool
metadata: {name: v2}
spec: {servers: {static: [{name: b, address: 10.0.0.2}]}}
";

/// Another virtual server, for what must not be touched.
pub(crate) const OTHER: &str = "\
apiVersion: sluice.dev/v1alpha1
kind: VirtualServer
metadata: {name: other}
spec:
  addresses: [{ip: 203.0.113.99}]
  ports: [{name: dns, protocol: UDP, port: 53}]
  forwarding: {mode: FullNAT}
  pools: [{name: v2, weight: 1}]
";

/// Moves web from v1 to v2.
pub(crate) const POLICY: &str = "\
apiVersion: sluice.dev/v1alpha1
kind: RolloutPolicy
metadata: {name: roll}
spec:
  virtualServerName: web
  stablePoolName: v1
  candidatePoolName: v2
  strategy: {canary: {steps: [{weight: 10, gate: Manual}, {weight: 50, pauseSeconds: 2}, {weight: 75, gate: Manual}]}}
";
