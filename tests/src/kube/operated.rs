//! An API server with Sluice's operator and no nodes: for tests of what the operator makes of objects.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::account::Account;
use super::control::ControlPlane;
use super::played::PlayedAgent;
use crate::net::manifest::{self, Role};
use crate::net::sluice::binary;
use crate::net::suite::Stage;
use crate::net::{Complaints, Process, Run, until};

/// How long a change may take on a busy machine.
pub const CHANGE_TIMEOUT: Duration = Duration::from_secs(20);

/// Log fields of warnings about an object that names a pool or virtual server which is not known, or not yet.
const LATE: [&str; 2] = [
    "reason=\"PoolNotFound\"",
    "reason=\"VirtualServerNotFound\"",
];

/// The first operator's port for health and metrics.
const FIRST_PORT: u16 = 9201;

#[derive(Debug)]
struct Operator {
    process: Process,
    port: u16,
}

/// The control plane, operators by name, and agents that are played.
#[derive(Debug)]
pub struct Operated {
    operators: BTreeMap<String, Operator>,
    agents: BTreeMap<String, PlayedAgent>,
    complaints: Complaints,
    started: u16,
    /// The control plane.
    pub control: ControlPlane,
    run: Run,
}

impl Operated {
    /// Starts etcd and API server, defines Sluice's kinds, and lets everybody have every address; there is no operator yet.
    pub fn start() -> Result<Self> {
        let started = Self::without_address_pools()?;
        started.admin().allow_every_address()?;
        Ok(started)
    }

    /// The same, and the audit log has the requests of everybody.
    pub fn audited() -> Result<Self> {
        let started = Self::over(ControlPlane::audited)?;
        started.admin().define_kinds()?;
        started.admin().allow_every_address()?;
        Ok(started)
    }

    /// The same as [`Self::start`], and nobody has an address.
    pub fn without_address_pools() -> Result<Self> {
        let started = Self::over(ControlPlane::api)?;
        started.admin().define_kinds()?;
        Ok(started)
    }

    fn over(control: fn(&Run, &str) -> Result<ControlPlane>) -> Result<Self> {
        let run = Run::start()?;
        let control = control(&run, "control")?;
        // Pods cannot be made without it, and no controller makes it.
        let account = ["create", "serviceaccount", "default"];
        control.admin().kubectl(account)?;
        let complaints = Complaints::default();
        // Kinds are watched apart: what an object names may be heard of after the object.
        for text in LATE {
            complaints.expect(text);
        }
        Ok(Self {
            operators: BTreeMap::new(),
            agents: BTreeMap::new(),
            complaints,
            started: 0,
            control,
            run,
        })
    }

    /// Who may do everything.
    pub const fn admin(&self) -> &Account {
        self.control.admin()
    }

    /// Starts an operator that may do everything and looks for Leases in the namespace `default`, and waits until it has
    /// read what there is.
    pub fn start_operator(&mut self, name: &str) -> Result<()> {
        let admin = self.admin().clone();
        self.start_operator_as(name, &admin, "default")?;
        self.await_operator(name)
    }

    /// Starts an operator with this account, which looks for Leases in `namespace`.
    pub fn start_operator_as(
        &mut self,
        name: &str,
        account: &Account,
        namespace: &str,
    ) -> Result<()> {
        let port = FIRST_PORT + self.started;
        self.started += 1;
        let home = self.control.namespace();
        let mut command = home.command(binary("sluice-operator")?);
        command
            .arg("--kubeconfig")
            .arg(account.kubeconfig().path())
            .args(["--namespace", namespace])
            .args(["--admin", &format!("127.0.0.1:{port}")]);
        let process = Process::start(home, &format!("operator-{name}"), command)?;
        let operator = Operator { process, port };
        self.operators.insert(name.to_owned(), operator);
        Ok(())
    }

    /// Waits until an operator has read what there is.
    pub fn await_operator(&self, name: &str) -> Result<()> {
        until("the operator to be ready", CHANGE_TIMEOUT, || {
            self.ask(name, "readyz").is_ok()
        })
        .with_context(|| self.operators[name].process.log_tail())
    }

    /// The process of an operator.
    pub fn operator(&mut self, name: &str) -> Result<&mut Process> {
        let operator = self.operators.get_mut(name);
        Ok(&mut operator.context("no such operator")?.process)
    }

    /// Ends an operator and forgets it.
    pub fn stop_operator(&mut self, name: &str) -> Result<()> {
        self.operator(name)?.stop(CHANGE_TIMEOUT)?;
        self.expect_no_complaints()?;
        self.operators.remove(name);
        Ok(())
    }

    /// Sends an operator a signal, such as SIGSTOP.
    pub fn signal_operator(&mut self, name: &str, signal: Signal) -> Result<()> {
        let id = self.operator(name)?.id();
        kill(Pid::from_raw(i32::try_from(id)?), signal)?;
        Ok(())
    }

    /// An operator's metrics: values by series, labels included.
    pub fn metrics(&self, name: &str) -> Result<BTreeMap<String, f64>> {
        let text = self.ask(name, "metrics")?;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| {
                let (series, value) = line.rsplit_once(' ').context("not a metric")?;
                Ok((series.to_owned(), value.parse()?))
            })
            .collect()
    }

    /// The sum of an operator's writes with this result, such as `stale`.
    pub fn writes(&self, name: &str, result: &str) -> Result<f64> {
        let label = format!("result=\"{result}\"");
        let metrics = self.metrics(name)?.into_iter();
        let writes = metrics.filter(|(series, _)| {
            series.starts_with("sluice_operator_writes") && series.contains(&label)
        });
        // A sum of no floats is -0.
        Ok(writes.fold(0.0, |sum, (_, value)| sum + value))
    }

    fn ask(&self, name: &str, path: &str) -> Result<String> {
        let port = self.operators.get(name).context("no such operator")?.port;
        let url = format!("http://127.0.0.1:{port}/{path}");
        let home = self.control.namespace();
        home.run(&format!("curl --silent --fail --max-time 5 {url}"))
    }

    /// Makes a LoadBalancerNode and plays its agent, which acknowledges all decisions.
    pub fn play_agent(&mut self, node: &str, addresses: &[IpAddr]) -> Result<()> {
        let object = manifest::node(node, Role::Director, &["eth0"]);
        self.admin().apply(&object.to_string())?;
        let agent = PlayedAgent::start(self.admin(), "default", node, addresses)?;
        self.agents.insert(node.to_owned(), agent);
        Ok(())
    }

    /// Ends a played agent, whose node falls silent.
    pub fn end_agent(&mut self, node: &str) -> Result<()> {
        self.agents.remove(node).context("no such agent")?;
        Ok(())
    }

    /// A played agent.
    pub fn agent(&self, node: &str) -> Result<&PlayedAgent> {
        self.agents.get(node).context("no such agent")
    }

    /// Applies objects by kubectl, as users do.
    pub fn apply(&self, objects: &[Value]) -> Result<String> {
        self.admin().apply(&manifest::documents(objects))
    }

    /// An object of the namespace `default`.
    pub fn get(&self, kind: &str, name: &str) -> Result<Value> {
        self.admin().json(["get", kind, name])
    }

    /// Waits until an object of the namespace `default` is as wanted, and returns it.
    pub fn await_object(
        &self,
        kind: &str,
        name: &str,
        holds: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        self.admin()
            .until(&["get", kind, name], CHANGE_TIMEOUT, holds)
    }

    /// Waits until the newest spec of an object is in force on every node.
    pub fn await_ready(&self, kind: &str, name: &str) -> Result<Value> {
        self.await_object(kind, name, |object| {
            let ready = condition(object, "Ready");
            ready["status"] == "True"
                && ready["observedGeneration"] == object["metadata"]["generation"]
        })
    }

    /// Lines of level WARN or ERROR that contain `text` are right from now on.
    pub fn expect_complaint(&self, text: &str) {
        self.complaints.expect(text);
    }

    /// Fails if an operator has complained of something unexpected since the last call.
    pub fn expect_no_complaints(&self) -> Result<()> {
        self.complaints
            .expect_none(self.operators.values().map(|operator| &operator.process))
    }
}

impl Stage for Operated {
    fn after_check(&mut self) -> Result<()> {
        for operator in self.operators.values_mut() {
            operator.process.expect_running()?;
        }
        self.expect_no_complaints()
    }

    fn evidence(&mut self) -> String {
        let operators = self.operators.values();
        operators
            .map(|operator| operator.process.evidence())
            .collect()
    }

    fn run_name(&self) -> String {
        self.run.name().to_owned()
    }
}

/// A condition in an object's status; null if it is not there.
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions
        .find(|condition| condition["type"] == kind)
        .unwrap_or(&Value::Null)
}
