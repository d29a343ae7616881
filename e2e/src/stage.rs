//! A cluster with Sluice on it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_tests::kube::{Account, BpfObjects, Cluster, ClusterSpec, finish};
use sluice_tests::net::Dual;
use sluice_tests::net::fabric::vip_of_one;
use sluice_tests::net::sluice::binary;
use sluice_tests::net::suite::Stage;

use crate::quick_start::{self, Block};

/// The VIP of `examples/kubernetes/web.yaml`.
pub const WEB: Dual = vip_of_one(10);
/// The namespace of the chart's release.
pub const SYSTEM: &str = "sluice-system";
/// The namespace of the example.
pub const SHOP: &str = "shop";
/// The nodes.
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// How long what nodes do may take on a busy machine.
pub const CHANGE_TIMEOUT: Duration = Duration::from_mins(2);

/// The cluster and what the kernel held before Sluice was on it.
#[derive(Debug)]
pub struct Sluice {
    /// The cluster.
    pub cluster: Cluster,
    /// The BPF objects that the machine's kernel held before Sluice was installed.
    pub before: BpfObjects,
}

impl Sluice {
    /// Builds the cluster; Sluice is not installed yet.
    pub fn build() -> Result<Self> {
        let nodes = u8::try_from(NODES.len())?;
        let cluster = Cluster::build(&ClusterSpec::new(nodes).image("sluice"))?;
        Ok(Self {
            before: BpfObjects::now()?,
            cluster,
        })
    }

    /// Runs the commands of a section of the quick start. Returns what they wrote.
    pub fn quick_start(&self, section: &str) -> Result<String> {
        let sections = quick_start::sections()?;
        let blocks = sections.get(section).context("no such section")?;
        let mut written = String::new();
        for block in blocks {
            let output = self
                .run(block)
                .with_context(|| format!("{section}:\n{}", block.script))?;
            println!("{}\n{output}", block.script);
            written += &output;
        }
        Ok(written)
    }

    fn run(&self, block: &Block) -> Result<String> {
        if block.on_client {
            let client = self.cluster.client();
            let arguments = ["-euo", "pipefail", "-c", &block.script];
            return finish(client.command("bash").args(arguments), "");
        }
        shell(self.cluster.admin(), &block.script)
    }

    /// Runs kubectl with words separated by spaces.
    pub fn kubectl(&self, words: &str) -> Result<String> {
        self.cluster.admin().kubectl(words.split(' '))
    }

    /// Runs `kubectl sluice` with words separated by spaces.
    pub fn plugin(&self, words: &str) -> Result<String> {
        plugin(self.cluster.admin(), words)
    }

    /// Applies a manifest of `examples/kubernetes`.
    pub fn apply_example(&self, name: &str) -> Result<String> {
        self.cluster
            .admin()
            .kubectl(["apply", "-f", &Self::example(name)?])
    }

    /// The path of a manifest of `examples/kubernetes`.
    pub fn example(name: &str) -> Result<String> {
        let path = quick_start::root().join(format!("examples/kubernetes/{name}.yaml"));
        Ok(path.to_str().context("a path")?.to_owned())
    }

    /// Runs a verb of helm on the release, from the chart of this source tree, and waits until all of it is ready.
    pub fn helm(&self, verb: &str, more: &[&str]) -> Result<String> {
        let chart = quick_start::root().join("charts/sluice");
        let chart = chart.to_str().context("a path")?;
        let mut arguments = vec![verb, "sluice", chart, "--namespace", SYSTEM, "--wait"];
        arguments.extend(["--set", "image.repository=localhost/sluice,image.tag=dev"]);
        arguments.extend(more);
        self.cluster.admin().helm(arguments)
    }

    /// Waits until a virtual server of the shop is in force on every node.
    pub fn await_ready(&self, name: &str) -> Result<()> {
        let words = format!(
            "wait --namespace {SHOP} --for=condition=Ready virtualserver/{name} --timeout={}s",
            CHANGE_TIMEOUT.as_secs()
        );
        self.kubectl(&words)?;
        Ok(())
    }

    /// Waits until an object of the shop is as `holds` says.
    pub fn until(
        &self,
        object: &str,
        limit: Duration,
        holds: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let arguments = ["get", "--namespace", SHOP, object];
        self.cluster.admin().until(&arguments, limit, holds)
    }

    /// The user's part of each virtual server, pool and policy of the shop: spec, labels, annotations, and the generation,
    /// which counts specs.
    pub fn owned_by_user(&self) -> Result<Vec<Value>> {
        let kinds = "virtualservers,realserverpools,rolloutpolicies";
        let arguments = ["get", "--namespace", SHOP, kinds];
        let list = self.cluster.admin().json(arguments)?;
        let items = list["items"].as_array().context("a list")?;
        ensure!(!items.is_empty(), "no objects in {SHOP}");
        let owned = items.iter().map(|object| {
            let meta = &object["metadata"];
            serde_json::json!({
                "name": meta["name"],
                "kind": object["kind"],
                "generation": meta["generation"],
                "labels": meta["labels"],
                "annotations": meta["annotations"],
                "spec": object["spec"],
            })
        });
        Ok(owned.collect())
    }

    /// The logs of the release's pods on all nodes, for failures.
    fn logs(&self) -> String {
        let mut text = String::new();
        for component in ["operator", "agent"] {
            let words = format!(
                "logs --namespace {SYSTEM} --selector app.kubernetes.io/component={component} --prefix --tail 30 \
                 --request-timeout 10s"
            );
            let logs = self
                .kubectl(&words)
                .unwrap_or_else(|error| format!("{error:#}\n"));
            text.extend(["--- ", component, "\n", &logs]);
        }
        let objects = "get vsrv,rsp,rop,lbnode --all-namespaces -o yaml";
        text + &self.kubectl(objects).unwrap_or_default()
    }
}

impl Stage for Sluice {
    fn after_check(&mut self) -> Result<()> {
        self.cluster.after_check()
    }

    fn evidence(&mut self) -> String {
        let logs = self.logs();
        self.cluster.evidence() + &logs
    }

    fn run_name(&self) -> String {
        self.cluster.run_name()
    }
}

/// Runs `kubectl sluice` with words separated by spaces, and what else a shell takes, as this user.
pub fn plugin(account: &Account, words: &str) -> Result<String> {
    shell(account, &format!("kubectl sluice {words}"))
}

/// Runs a script as this user, with the plugin in the path, in the root of the source tree.
fn shell(account: &Account, script: &str) -> Result<String> {
    let plugin = binary("kubectl-sluice")?;
    let directory = plugin.parent().context("a program has a directory")?;
    let mut shell = account.shell(script, &[directory])?;
    finish(shell.current_dir(quick_start::root()), "")
}
