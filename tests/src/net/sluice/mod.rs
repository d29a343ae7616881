//! Sluice's daemons in a [`Fabric`]: one operator, an agent on each node, and what is between them and the user: a
//! directory, or the API of a real Kubernetes.

mod source;

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_api::{
    AttachMode, DecidedPool, Kind, LoadBalancerNodeStatus, RealServerPoolStatus,
    RolloutPolicyStatus, VirtualServerStatus,
};

use super::fabric::Fabric;
use super::manifest;
use super::namespace::Namespace;
use super::process::{Complaints, Process};
use super::suite::Stage;
use super::wait;
use super::xdp::object_path;
use crate::kube::ControlPlane;
use source::Source;

/// How long a change may take until every node has it. Most take a fraction of a second.
const CONVERGENCE: Duration = Duration::from_secs(20);

/// How long agents may take to load their programs: the kernel verifies them again for each agent.
const LOADING: Duration = Duration::from_mins(2);

/// Where an agent answers, in its own namespace.
const ADMIN: &str = "127.0.0.1:9200";

/// Variables of agents' environments.
type Settings = BTreeMap<&'static str, &'static str>;

#[derive(Debug)]
struct Agent {
    namespace: Namespace,
    pins: PathBuf,
    process: Process,
}

/// The running daemons. Drop it before its [`Fabric`].
#[derive(Debug)]
pub struct Sluice {
    control: Namespace,
    operator: Option<Process>,
    agents: BTreeMap<String, Agent>,
    /// What agents are told by the environment beside what all tests tell them.
    agent_settings: Settings,
    complaints: Complaints,
    /// Last, since the daemons complain when it goes.
    source: Source,
}

/// A stage of tests on which Sluice's daemons run: one that ends or complains fails the check.
pub trait Daemons {
    /// The daemons.
    fn sluice(&mut self) -> &mut Sluice;

    /// The network in which they are.
    fn fabric(&self) -> &Fabric;
}

impl<S: Daemons> Stage for S {
    fn after_check(&mut self) -> Result<()> {
        self.sluice().expect_running()?;
        self.sluice().expect_no_complaints()
    }

    fn evidence(&mut self) -> String {
        self.sluice().evidence()
    }

    fn run_name(&self) -> String {
        self.fabric().run().name().to_owned()
    }
}

impl Sluice {
    /// Starts an agent on each of `nodes`, which `manifest` describes, waits until every one is attached, and starts the
    /// operator. Manifests are files of a directory.
    pub fn start(fabric: &Fabric, nodes: &[&str], manifest: &str) -> Result<Self> {
        Self::start_with(Source::directory(fabric)?, fabric, nodes, manifest)
    }

    /// The same with a real API server, to which manifests are applied by kubectl.
    pub fn start_in_cluster(fabric: &Fabric, nodes: &[&str], manifest: &str) -> Result<Self> {
        Self::start_with(Source::cluster(fabric)?, fabric, nodes, manifest)
    }

    /// The same with the accounts and roles of the chart. `manifest` may be empty: agents make their own nodes.
    pub fn start_by_chart(fabric: &Fabric, nodes: &[&str], manifest: &str) -> Result<Self> {
        Self::start_with(Source::chart(fabric, nodes)?, fabric, nodes, manifest)
    }

    fn start_with(source: Source, fabric: &Fabric, nodes: &[&str], manifest: &str) -> Result<Self> {
        let control = match source.control() {
            Some(control) => control.namespace().clone(),
            None => fabric.run().namespace("control")?,
        };
        let mut sluice = Self {
            operator: None,
            source,
            control,
            agents: BTreeMap::new(),
            agent_settings: Settings::new(),
            complaints: Complaints::default(),
        };
        if !manifest.is_empty() {
            sluice.apply_text("nodes", manifest)?;
        }
        for name in nodes {
            let namespace = fabric.node(name)?.namespace.clone();
            let pins = fabric.run().pin_directory(name);
            let settings = &sluice.agent_settings;
            let process = start_agent(&namespace, name, &sluice.source, &pins, settings)?;
            let agent = Agent {
                namespace,
                pins,
                process,
            };
            sluice.agents.insert((*name).to_owned(), agent);
        }
        sluice.await_attached()?;
        // Last, since it takes an agent for dead that does not report in time, and many agents on few processors load their
        // programs slowly.
        sluice.restart_operator()?;
        Ok(sluice)
    }

    /// Where manifests lie in standalone mode.
    pub fn directory(&self) -> Result<&Path> {
        self.source.path().context("there is no directory")
    }

    /// The control plane of Kubernetes.
    pub fn control_plane(&self) -> Result<&ControlPlane> {
        self.source.control().context("there is no Kubernetes")
    }

    /// The same, to do something to it.
    pub fn control_plane_mut(&mut self) -> Result<&mut ControlPlane> {
        self.source.control_mut().context("there is no Kubernetes")
    }

    /// The process of the operator.
    pub fn operator(&self) -> Result<&Process> {
        self.operator.as_ref().context("no operator runs")
    }

    /// The process of a node's agent.
    pub fn agent_process(&self, node: &str) -> Result<&Process> {
        let agent = self.agents.get(node);
        Ok(&agent
            .with_context(|| format!("no agent runs on {node}"))?
            .process)
    }

    /// Whether a node's agent says that what was decided is in its maps.
    pub fn is_ready(&self, node: &str) -> bool {
        let ask = format!("curl --silent --fail --max-time 5 http://{ADMIN}/readyz");
        self.agents
            .get(node)
            .is_some_and(|agent| agent.namespace.run(&ask).is_ok())
    }

    /// Writes `objects` as the manifest `file` (without extension), as a whole and at once.
    pub fn apply(&self, file: &str, objects: &[Value]) -> Result<()> {
        self.apply_text(file, &manifest::documents(objects))
    }

    /// The same with any text.
    pub fn apply_text(&self, file: &str, text: &str) -> Result<()> {
        self.source.apply(file, text)
    }

    /// Removes a manifest.
    pub fn remove(&self, file: &str) -> Result<()> {
        self.source.remove(file)
    }

    /// Status of a virtual server; `None` until the operator has written one.
    pub fn virtual_server(&self, name: &str) -> Option<VirtualServerStatus> {
        self.source.status(Kind::VirtualServer, name)
    }

    /// Status of a pool.
    pub fn pool(&self, name: &str) -> Option<RealServerPoolStatus> {
        self.source.status(Kind::RealServerPool, name)
    }

    /// Status of a rollout policy.
    pub fn rollout(&self, name: &str) -> Option<RolloutPolicyStatus> {
        self.source.status(Kind::RolloutPolicy, name)
    }

    /// Status of a node.
    pub fn node(&self, name: &str) -> Option<LoadBalancerNodeStatus> {
        self.source.status(Kind::LoadBalancerNode, name)
    }

    /// Waits until every live node forwards `name` by pools in these proportions.
    pub fn await_weights(&mut self, name: &str, pools: &[(&str, u32)]) -> Result<()> {
        let shares = pools
            .iter()
            .map(|(pool, weight)| (*pool, *weight))
            .collect();
        let mut last = None;
        let result = wait::until(&format!("every node to serve {name}"), CONVERGENCE, || {
            last = self.virtual_server(name);
            last.as_ref().is_some_and(|status| {
                status.acknowledged.as_ref().is_some_and(|acknowledged| {
                    let decided = status.decision.as_ref().map(|decision| decision.revision);
                    let has = |node: &String| {
                        let status = self.node(node);
                        status.map(|status| status.acknowledged_revision) >= decided
                    };
                    decided == Some(acknowledged.revision)
                        && self.agents.keys().all(has)
                        && same_shares(&acknowledged.pools, &shares)
                })
            })
        });
        result.with_context(|| format!("the status of {name} is {last:#?}"))?;
        self.expect_running()
    }

    /// Waits until a policy is gone: a removal counts when the directory has been still for a while.
    pub fn await_no_rollout(&self, name: &str) -> Result<()> {
        wait::until(&format!("policy {name} to be gone"), CONVERGENCE, || {
            self.rollout(name).is_none()
        })
    }

    /// Waits until every live node has a pool with so many static servers, each with an address of either family.
    pub fn await_pool(&mut self, name: &str, servers: usize) -> Result<()> {
        let mut last = None;
        let result = wait::until(&format!("every node to have {name}"), CONVERGENCE, || {
            last = self.pool(name);
            let decision = last.as_ref().and_then(|status| status.decision.as_ref());
            decision.is_some_and(|decision| {
                let has = |node: &String| {
                    let status = self.node(node);
                    status.is_some_and(|status| {
                        status.acknowledged_pool_revision >= decision.revision
                    })
                };
                decision.content.servers.len() == 2 * servers && self.agents.keys().all(has)
            })
        });
        result.with_context(|| format!("the status of {name} is {last:#?}"))?;
        self.expect_running()
    }

    /// Waits until every agent reports its programs attached in the driver.
    pub fn await_attached(&mut self) -> Result<()> {
        let names: Vec<String> = self.agents.keys().cloned().collect();
        for name in names {
            let mut running = Ok(());
            wait::until(&format!("the agent of {name} to attach"), LOADING, || {
                running = self.expect_running();
                let status = self.node(&name);
                running.is_err()
                    || status.is_some_and(|status| {
                        let mut interfaces = status.interfaces.iter();
                        interfaces.len() > 0
                            && interfaces.all(|i| i.attach_mode == AttachMode::Native)
                    })
            })
            .with_context(|| format!("the status of {name} is {:#?}", self.node(&name)))?;
            running?;
        }
        Ok(())
    }

    /// Waits until every agent says that what was decided is in its maps.
    pub fn await_ready(&mut self) -> Result<()> {
        let ask = format!("curl --silent --fail http://{ADMIN}/readyz");
        for (node, agent) in &self.agents {
            let what = format!("the agent of {node} to be ready");
            wait::until(&what, LOADING, || agent.namespace.run(&ask).is_ok())?;
        }
        self.expect_running()
    }

    /// Kills a node's agent as a crash would. What it programmed stays.
    pub fn kill_agent(&mut self, node: &str) -> Result<()> {
        self.agent(node)?.process.kill()
    }

    /// Asks a node's agent to end, as an upgrade would.
    pub fn stop_agent(&mut self, node: &str) -> Result<()> {
        self.agent(node)?.process.stop(Duration::from_secs(10))
    }

    /// Takes all that a killed agent left off its node, as a reboot does.
    pub fn lose_maps(&self, node: &str) -> Result<()> {
        let agent = self.agents.get(node);
        let agent = agent.with_context(|| format!("no agent runs on {node}"))?;
        let mut command = agent.namespace.command(binary("sluice-agent")?);
        command.arg("detach").arg("--pin-dir").arg(&agent.pins);
        command.arg("--socket").arg(socket(&agent.namespace));
        let status = command.stdout(Stdio::null()).status()?;
        ensure!(status.success(), "detach: {status}");
        Ok(())
    }

    /// Starts a node's agent again, after it was killed or stopped.
    pub fn restart_agent(&mut self, node: &str) -> Result<()> {
        let agent = self.agents.get_mut(node);
        let agent = agent.with_context(|| format!("no agent runs on {node}"))?;
        agent.process = start_agent(
            &agent.namespace,
            node,
            &self.source,
            &agent.pins,
            &self.agent_settings,
        )?;
        Ok(())
    }

    /// Agents that are started from now on find this in their environment.
    pub fn set_agents(&mut self, name: &'static str, value: &'static str) {
        self.agent_settings.insert(name, value);
    }

    /// The metrics of a node's agent: values by series, labels included.
    pub fn metrics(&self, node: &str) -> Result<BTreeMap<String, f64>> {
        let agent = self.agents.get(node);
        let namespace = &agent
            .with_context(|| format!("no agent runs on {node}"))?
            .namespace;
        let text = namespace.run(&format!("curl --silent --fail http://{ADMIN}/metrics"))?;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| {
                let (series, value) = line.rsplit_once(' ').context("not a metric")?;
                Ok((series.to_owned(), value.parse()?))
            })
            .collect()
    }

    /// Kills the operator as a crash would.
    pub fn kill_operator(&mut self) -> Result<()> {
        match &mut self.operator {
            Some(operator) => operator.kill(),
            None => Ok(()),
        }
    }

    /// Starts the operator again, after it was killed.
    pub fn restart_operator(&mut self) -> Result<()> {
        self.operator = Some(start_operator(&self.control, &self.source)?);
        Ok(())
    }

    /// Fails if a daemon has ended by itself.
    pub fn expect_running(&mut self) -> Result<()> {
        if let Some(operator) = &mut self.operator {
            operator.expect_running()?;
        }
        self.agents
            .values_mut()
            .try_for_each(|agent| agent.process.expect_running())
    }

    /// Lines of level WARN or ERROR that contain `text` are right from now on.
    pub fn expect_complaint(&self, text: &str) {
        self.complaints.expect(text);
    }

    /// Fails if a daemon has complained of something unexpected since the last call.
    pub fn expect_no_complaints(&self) -> Result<()> {
        self.complaints.expect_none(self.processes())
    }

    /// Packets that the agents' data planes have dropped, by node and reason.
    pub fn drops(&self) -> Vec<String> {
        let mut drops = Vec::new();
        for node in self.agents.keys() {
            let metrics = self.metrics(node).unwrap_or_default().into_iter();
            let dropped = metrics
                .filter(|(name, value)| name.starts_with("sluice_dropped_packets") && *value > 0.0);
            drops.extend(dropped.map(|(name, value)| format!("{node} {name} {value}")));
        }
        drops
    }

    /// Ends of all logs, and what was dropped.
    pub fn evidence(&self) -> String {
        let logs = self.processes().map(|process| {
            let log = process.log();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(5)..].join("\n");
            format!("--- {}\n{end}", process.name())
        });
        let logs: Vec<String> = logs.collect();
        format!(
            "{}\n--- drops\n{}",
            logs.join("\n"),
            self.drops().join("\n")
        )
    }

    fn processes(&self) -> impl Iterator<Item = &Process> {
        let agents = self.agents.values().map(|agent| &agent.process);
        self.operator.iter().chain(agents)
    }

    fn agent(&mut self, node: &str) -> Result<&mut Agent> {
        self.agents
            .get_mut(node)
            .with_context(|| format!("no agent runs on {node}"))
    }
}

/// Whether decided weights have the proportions of `shares`.
fn same_shares(decided: &[DecidedPool], shares: &BTreeMap<&str, u32>) -> bool {
    let whole: u64 = shares.values().map(|&weight| u64::from(weight)).sum();
    let decided_whole: u64 = decided.iter().map(|pool| u64::from(pool.weight)).sum();
    decided.len() == shares.len()
        && decided.iter().all(|pool| {
            shares.get(pool.name.as_str()).is_some_and(|&weight| {
                u64::from(weight) * decided_whole == u64::from(pool.weight) * whole
            })
        })
}

fn start_operator(namespace: &Namespace, source: &Source) -> Result<Process> {
    let mut command = namespace.command(binary("sluice-operator")?);
    source.tell(&mut command, None);
    Process::start(namespace, "operator", command)
}

fn start_agent(
    namespace: &Namespace,
    node: &str,
    source: &Source,
    pins: &Path,
    settings: &Settings,
) -> Result<Process> {
    let mut command = namespace.command(binary("sluice-agent")?);
    source.tell(&mut command, Some(node));
    // Groups return soon, so that tests see it.
    command.env("SLUICE_FAILBACK_SECONDS", "3");
    command.envs(settings);
    command
        .args(["--node", node])
        .arg("--pin-dir")
        .arg(pins)
        .arg("--socket")
        .arg(socket(namespace))
        .arg("--object")
        .arg(object_path("sluice.o"));
    Process::start(namespace, "agent", command)
}

/// Where an agent answers local questions.
fn socket(namespace: &Namespace) -> PathBuf {
    namespace.log_path("agent").with_extension("sock")
}

/// A binary of the workspace, from the directory of the running one or, for a test, the one above.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = env::current_exe()?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .find(|path| path.exists())
        .with_context(|| format!("{name} is not built: run `cargo build --workspace --bins`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_compared_by_proportion() {
        let pool = |name: &str, weight| DecidedPool {
            name: name.to_owned(),
            weight,
            spec_weight: 0,
        };
        let decided = [pool("a", 9000), pool("b", 1000)];
        assert!(same_shares(&decided, &[("a", 90), ("b", 10)].into()));
        assert!(!same_shares(&decided, &[("a", 90), ("b", 11)].into()));
        assert!(!same_shares(&decided, &[("a", 90)].into()));
    }
}
