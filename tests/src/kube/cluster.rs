//! A cluster with nodes, and a client outside of it.
//!
//! ```text
//!                               ┌── control   etcd, API server, controllers, scheduler
//!  client ── router ── switch ──┼── n1 ─(cni0)── pods
//!                               ├── n2 ─(cni0)── pods
//!                               └── n3 ─(cni0)── pods
//! ```
//!
//! Every box is a namespace and speaks IPv4 and IPv6. Everybody but the client has routes to the pods of each node, as
//! in a cluster whose network plug-in routes; the client sends everything to the router. Nodes' links end in ports
//! that are prepared for XDP, as those of directors are in a [`Fabric`](crate::net::fabric::Fabric).

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::account::{Account, has_condition, items};
use super::control::{ControlPlane, Part};
use super::node::Node;
use super::spec::{CONTROL, ClusterSpec, Place, ROUTER};
use crate::net::segment::{
    BRIDGE, FABRIC_MTU, UPLINK, connect_client, plug_in, prepare_far_end, use_gateway,
};
use crate::net::suite::Stage;
use crate::net::{
    Cidr, Counters, Direction, Dual, Family, Namespace, PassProgram, Port, Route, Run,
};

/// How long nodes may take to be ready on a busy machine whose files are not in memory.
const READY_LIMIT: Duration = Duration::from_mins(3);

/// The built cluster.
#[derive(Debug)]
pub struct Cluster {
    nodes: BTreeMap<String, Node>,
    killed: BTreeMap<String, Place>,
    spec: ClusterSpec,
    control: ControlPlane,
    client: Namespace,
    router: Namespace,
    switch: Namespace,
    pass: PassProgram,
    run: Run,
}

impl Cluster {
    /// Builds it and waits until all nodes are ready.
    pub fn build(spec: &ClusterSpec) -> Result<Self> {
        if !(1..=9).contains(&spec.nodes) {
            bail!("a cluster has 1 to 9 nodes, not {}", spec.nodes);
        }
        let run = Run::start()?;
        let [client, router, switch, control] =
            ["client", "router", "switch", "control"].map(|label| run.namespace(label));
        let (client, router, switch, control) = (client?, router?, switch?, control?);
        switch.bridge(BRIDGE, FABRIC_MTU)?;
        connect_client(&client, &router)?;
        plug_in(router.port(UPLINK), &switch, "router", ROUTER)?;
        router.enable_forwarding()?;
        router.hash_flows_by_port()?;
        router.filter_reverse_path()?;
        plug_in(control.port(UPLINK), &switch, "control", CONTROL)?;
        use_gateway(&control, ROUTER)?;
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            killed: BTreeMap::new(),
            spec: spec.clone(),
            control: ControlPlane::start(&run, &control, CONTROL, &Part::ALL)?,
            client,
            router,
            switch,
            pass: PassProgram::load()?,
            run,
        };
        cluster.add_nodes()?;
        Ok(cluster)
    }

    /// The owner of the namespaces.
    pub const fn run(&self) -> &Run {
        &self.run
    }

    /// Where the clients are: outside the cluster.
    pub const fn client(&self) -> &Namespace {
        &self.client
    }

    /// The namespace between clients and nodes.
    pub const fn router(&self) -> &Namespace {
        &self.router
    }

    /// The control plane.
    pub const fn control(&self) -> &ControlPlane {
        &self.control
    }

    /// The control plane, to stop and start its parts.
    pub const fn control_mut(&mut self) -> &mut ControlPlane {
        &mut self.control
    }

    /// Who may do everything.
    pub const fn admin(&self) -> &Account {
        self.control.admin()
    }

    /// The nodes that run.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// A node that runs.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .get(name)
            .with_context(|| format!("no node is called {name}"))
    }

    /// The switch's port to a node.
    pub fn far_end<'a>(&'a self, node: &'a str) -> Port<'a> {
        self.switch.port(node)
    }

    /// Counts on the far end of a node's link.
    pub fn count_beyond<'a>(
        &'a self,
        node: &'a str,
        rules: &[(&str, Direction, &str)],
    ) -> Result<Counters<'a>> {
        Counters::install(self.far_end(node), rules)
    }

    /// Lets the router send `destination` to these nodes, in equal shares by flow, instead of where it went before.
    pub fn route(&self, destination: Cidr, nodes: &[&str]) -> Result<()> {
        let family = Family::of(destination.address);
        let gateways: Result<Vec<_>> = nodes
            .iter()
            .map(|name| Ok(self.node(name)?.address().of(family)))
            .collect();
        self.router.route(&Route::to(destination, gateways?))
    }

    /// The same for both addresses of a VIP.
    pub fn route_vip(&self, vip: Dual, nodes: &[&str]) -> Result<()> {
        vip.prefixes(32, 128)
            .into_iter()
            .try_for_each(|destination| self.route(destination, nodes))
    }

    /// Pulls the cable of a node's uplink.
    pub fn cut(&self, node: &str) -> Result<()> {
        self.switch.ip(&format!("link set {node} down"))?;
        Ok(())
    }

    /// Plugs it in again.
    pub fn restore(&self, node: &str) -> Result<()> {
        self.switch.ip(&format!("link set {node} up"))?;
        Ok(())
    }

    /// Ends a node with everything on it at once, as a power cut would. Its network is unplugged: a dead machine does not
    /// answer.
    pub fn kill_node(&mut self, name: &str) -> Result<()> {
        let node = self
            .nodes
            .remove(name)
            .with_context(|| format!("no node is called {name}"))?;
        self.cut(name)?;
        self.killed.insert(name.to_owned(), node.place().clone());
        Ok(())
    }

    /// Starts a killed node again, with its disk, and waits until it is ready. All that was in its memory is gone: BPF
    /// objects, the bridge of its pods, rules of nftables.
    pub fn boot_node(&mut self, name: &str) -> Result<()> {
        let place = self
            .killed
            .remove(name)
            .with_context(|| format!("no node called {name} was killed"))?;
        place.namespace.run("nft flush ruleset")?;
        if place.namespace.ip("link show dev cni0").is_ok() {
            place.namespace.ip("link delete cni0")?;
        }
        self.restore(name)?;
        let mut node = Node::boot(&self.run, place)?;
        node.start_runtime()?;
        node.load_images(&self.spec.images)?;
        node.start_kubelet(&self.control, self.spec.kube_proxy)?;
        self.nodes.insert(name.to_owned(), node);
        self.route_pods()?;
        self.await_ready()
    }

    /// Waits until all nodes that run say that they are ready.
    pub fn await_ready(&self) -> Result<()> {
        let ready = |value: &Value| {
            self.nodes.keys().all(|name| {
                items(value).any(|node| {
                    node["metadata"]["name"] == name.as_str() && has_condition(node, "Ready")
                })
            })
        };
        self.admin().until(&["get", "nodes"], READY_LIMIT, ready)?;
        Ok(())
    }

    fn add_nodes(&mut self) -> Result<()> {
        for number in 1..=self.spec.nodes {
            let name = format!("n{number}");
            let place = Place::new(self.run.namespace(&name)?, number);
            let uplink = place.namespace.port(UPLINK);
            plug_in(uplink, &self.switch, &name, place.address)?;
            prepare_far_end(&mut self.pass, self.switch.port(&name))?;
            place.namespace.enable_forwarding()?;
            use_gateway(&place.namespace, ROUTER)?;
            self.nodes.insert(name, Node::boot(&self.run, place)?);
        }
        self.route_pods()?;
        // One step on all nodes before the next: what a step starts comes up while others do the same.
        for node in self.nodes.values_mut() {
            node.start_runtime()?;
        }
        for node in self.nodes.values_mut() {
            node.load_images(&self.spec.images)?;
            node.start_kubelet(&self.control, self.spec.kube_proxy)?;
        }
        self.await_ready()
    }

    /// Tells everybody behind which node its pods are.
    fn route_pods(&self) -> Result<()> {
        for node in self.nodes.values() {
            let others = self
                .nodes
                .values()
                .filter(|other| other.name() != node.name());
            let hosts = others
                .map(Node::namespace)
                .chain([&self.router, self.control.namespace()]);
            for host in hosts {
                for (family, pods) in Family::BOTH.into_iter().zip(node.pods().prefixes(24, 64)) {
                    host.route(&Route::to(pods, [node.address().of(family)]))?;
                }
            }
        }
        Ok(())
    }
}

impl Stage for Cluster {
    fn after_check(&mut self) -> Result<()> {
        self.nodes.values_mut().try_for_each(Node::expect_running)
    }

    fn evidence(&mut self) -> String {
        let mut text = self.control.evidence();
        for node in self.nodes.values() {
            text += &node.evidence();
        }
        for what in ["nodes,pods", "events"] {
            let arguments = ["get", what, "--all-namespaces", "-o", "wide"];
            let answer = self.admin().kubectl(arguments);
            let answer = answer.unwrap_or_else(|error| format!("{error:#}\n"));
            text.extend(["--- ", what, "\n", &answer]);
        }
        text
    }

    fn run_name(&self) -> String {
        self.run.name().to_owned()
    }
}
