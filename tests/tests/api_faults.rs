//! The API server fails in every way while clients connect: agents forward by what they know, and afterwards all goes on
//! where it was. Agents and packets are real.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sluice_tests::kube::Part;
use sluice_tests::net::fabric::{DIRECTORS, Fabric, ServerSpec, UPLINK, vip_of_one};
use sluice_tests::net::manifest::{self, Role};
use sluice_tests::net::sluice::{Daemons, Sluice};
use sluice_tests::net::suite::Suite;
use sluice_tests::net::{ConnectionMaker, Dual, Family, until};

const WEB: &str = "web";
const VIP: Dual = vip_of_one(20);
const SERVERS: [&str; 2] = ["s1", "s2"];
const NODE: &str = DIRECTORS[0];
/// How long daemons may take to notice, or to be back: they give an answer 5 to 10 s, and try again within seconds.
const LIMIT: Duration = Duration::from_mins(1);
/// Connections that a check waits for while something is away.
const SOME: u64 = 200;

struct Faults {
    /// Daemons go first.
    sluice: Sluice,
    clients: ConnectionMaker,
    fabric: Fabric,
    weights: [u32; 2],
}

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.check("an API server that is killed and started", restarted);
    suite.check("manifests that change while it restarts", changed_meanwhile);
    suite.check("etcd that is killed and started", etcd);
    suite.check("an API server that hangs", hangs);
    suite.check("an agent that starts without an API server", agent_alone);
    suite.check("a decision that the agent cannot read", unreadable);
    suite.check("an API server that has lost everything", lost);
    suite.check(
        "a node that lost its maps says so before it lives",
        rebooted,
    );
    suite.main(Faults::build)
}

impl Faults {
    fn build() -> Result<Self> {
        let fabric = Fabric::build(&SERVERS.map(ServerSpec::new))?;
        let node = manifest::node(NODE, Role::Director, &[UPLINK]);
        let nodes = manifest::documents(&[node]);
        let mut sluice = Sluice::start_in_cluster(&fabric, &[NODE], &nodes)?;
        // Kinds are watched apart: a pool may be heard of after the virtual server that names it.
        sluice.expect_complaint("reason=\"PoolNotFound\"");
        // That the API server is away is news, also where it is away several times in a row.
        sluice.expect_complaint("going on with what is known");
        sluice.expect_complaint("the watch is lost; tries again");
        sluice.expect_complaint("cannot be written now; tries again");
        // Events follow decisions after a while, when the API server may be gone already.
        sluice.expect_complaint("an event could not be written");
        for server in SERVERS {
            let members = [(server, fabric.address(server)?, 1)];
            sluice.apply(server, &[manifest::pool(server, &members, Some(8080))])?;
        }
        apply_weights(&sluice, [1, 0])?;
        sluice.await_weights(WEB, &[(SERVERS[0], 1), (SERVERS[1], 0)])?;
        sluice.await_ready()?;
        Ok(Self {
            sluice,
            clients: start_clients(&fabric)?,
            fabric,
            weights: [1, 0],
        })
    }

    /// New connections are made and none fails; they go where the weights say.
    fn expect_traffic(&self) -> Result<()> {
        // Connections that were under way when the weights changed may have followed the old ones: only their failures count.
        self.clients.take_report().expect_none_failed()?;
        let made = self.clients.made();
        until("new connections", LIMIT, || {
            self.clients.made() >= made + SOME
        })?;
        let report = self.clients.take_report();
        report.expect_none_failed()?;
        for (server, weight) in SERVERS.into_iter().zip(self.weights) {
            let count = report.spread.of(server);
            // Two connections may have begun before.
            ensure!(
                (weight > 0) == (count > 2),
                "{server} of weight {weight} was given {count}: {}",
                report.spread
            );
        }
        Ok(())
    }

    /// A change is decided, acknowledged and in force.
    fn expect_change(&mut self) -> Result<()> {
        let [first, second] = self.weights;
        self.weights = [second, first];
        apply_weights(&self.sluice, self.weights)?;
        self.await_weights()
    }

    fn await_weights(&mut self) -> Result<()> {
        let [first, second] = self.weights;
        let (sluice, pools) = (
            &mut self.sluice,
            [(SERVERS[0], first), (SERVERS[1], second)],
        );
        // Daemons that were refused wait up to ten seconds before they try again.
        sluice
            .await_weights(WEB, &pools)
            .or_else(|_| sluice.await_weights(WEB, &pools))?;
        self.expect_traffic()
    }

    fn metric(&self, name: &str) -> f64 {
        let metrics = self.sluice.metrics(NODE).unwrap_or_default().into_iter();
        metrics
            .filter(|(series, _)| series.starts_with(name))
            .map(|(_, value)| value)
            .sum()
    }

    fn log(&self) -> Result<String> {
        Ok(self.sluice.agent_process(NODE)?.log())
    }
}

fn start_clients(fabric: &Fabric) -> Result<ConnectionMaker> {
    let targets: [SocketAddr; 2] = Family::BOTH.map(|family| VIP.socket(family, 80));
    ConnectionMaker::start(fabric.client(), &targets, 2, Duration::from_millis(2))
}

fn apply_weights(sluice: &Sluice, [first, second]: [u32; 2]) -> Result<()> {
    let pools = [(SERVERS[0], first), (SERVERS[1], second)];
    sluice.apply(
        WEB,
        &[manifest::virtual_server(WEB, "FullNAT", VIP, &pools)],
    )
}

impl Daemons for Faults {
    fn sluice(&mut self) -> &mut Sluice {
        &mut self.sluice
    }

    fn fabric(&self) -> &Fabric {
        &self.fabric
    }
}

fn restarted(stage: &mut Faults) -> Result<()> {
    let control = stage.sluice.control_plane_mut()?;
    control.kill(Part::ApiServer)?;
    stage.expect_traffic()?;
    stage
        .sluice
        .control_plane_mut()?
        .start_part(Part::ApiServer)?;
    stage.expect_change()
}

/// The API server ends as soon as it has taken the manifest.
fn changed_meanwhile(stage: &mut Faults) -> Result<()> {
    for _ in 0..3 {
        stage.weights.reverse();
        apply_weights(&stage.sluice, stage.weights)?;
        stage.sluice.control_plane_mut()?.restart(Part::ApiServer)?;
        stage.await_weights()?;
    }
    Ok(())
}

fn etcd(stage: &mut Faults) -> Result<()> {
    stage.sluice.expect_complaint("etcd");
    stage.sluice.control_plane_mut()?.kill(Part::Etcd)?;
    stage.expect_traffic()?;
    stage.sluice.control_plane_mut()?.start_part(Part::Etcd)?;
    stage.expect_change()
}

/// It takes connections and says nothing.
fn hangs(stage: &mut Faults) -> Result<()> {
    stage
        .sluice
        .expect_complaint("cannot renew this node's Lease");
    stage.sluice.expect_complaint("no answer within");
    let before = stage.metric("sluice_lease_failures");
    let control = stage.sluice.control_plane_mut()?;
    control.signal(Part::ApiServer, Signal::SIGSTOP)?;
    let noticed = until("the agent to notice", LIMIT, || {
        stage.metric("sluice_lease_failures") > before
    });
    let traffic = stage.expect_traffic();
    let control = stage.sluice.control_plane_mut()?;
    control.signal(Part::ApiServer, Signal::SIGCONT)?;
    noticed.and(traffic)?;
    stage.expect_change()?;
    until("the agent to be in step again", LIMIT, || {
        stage.metric("sluice_source_unsynced_seconds") == 0.0
    })
}

/// Its maps are pinned: it takes them over and waits.
fn agent_alone(stage: &mut Faults) -> Result<()> {
    stage.sluice.expect_complaint("API server");
    stage.sluice.control_plane_mut()?.kill(Part::ApiServer)?;
    stage.sluice.kill_agent(NODE)?;
    stage.expect_traffic()?;
    stage.sluice.restart_agent(NODE)?;
    let admin = "curl --silent --fail --max-time 5 http://127.0.0.1:9200/healthz";
    let node = stage.fabric.node(NODE)?.namespace.clone();
    until("the agent to run", LIMIT, || node.run(admin).is_ok())?;
    ensure!(
        !stage.sluice.is_ready(NODE),
        "it is ready without knowing anything"
    );
    stage.expect_traffic()?;
    stage
        .sluice
        .control_plane_mut()?
        .start_part(Part::ApiServer)?;
    stage.sluice.await_ready()?;
    stage.expect_change()
}

/// An operator newer than the agent decided: what the agent knew goes on, also where it does not know any more what that was.
fn unreadable(stage: &mut Faults) -> Result<()> {
    stage.sluice.expect_complaint("cannot be read");
    // It would decide anew.
    stage.sluice.kill_operator()?;
    let mode = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/decision/properties/mode/enum/-";
    let patch = format!(r#"[{{"op": "add", "path": "{mode}", "value": "Newer"}}]"#);
    patch_definition(stage, "virtualservers", &patch)?;
    until("the API server to take it", LIMIT, || {
        decide_mode(stage, "Newer").is_ok()
    })?;
    until("the node to name it", LIMIT, || {
        let status = stage.sluice.node(NODE).unwrap_or_default();
        let mut exceptions = status.exceptions.iter();
        exceptions.any(|e| e.name == WEB && e.reason == "Unreadable")
    })?;
    stage.expect_traffic()?;

    stage.sluice.kill_agent(NODE)?;
    stage.sluice.restart_agent(NODE)?;
    until("the agent to withhold what it reads", LIMIT, || {
        stage.metric("sluice_source_held") > 0.0
    })?;
    until("the node to acknowledge nothing", LIMIT, || {
        let status = stage.sluice.node(NODE).unwrap_or_default();
        status.acknowledged_revision == 0 && status.acknowledged_pool_revision == 0
    })?;
    ensure!(!stage.sluice.is_ready(NODE), "it is ready");
    stage.expect_traffic()?;

    decide_mode(stage, "FullNAT")?;
    stage.sluice.restart_operator()?;
    stage.sluice.await_ready()?;
    stage.expect_change()
}

fn decide_mode(stage: &Faults, mode: &str) -> Result<()> {
    let patch = format!(r#"{{"status": {{"decision": {{"mode": "{mode}"}}}}}}"#);
    let arguments = [
        "patch",
        "virtualserver",
        WEB,
        "--subresource=status",
        "--type=merge",
        "--patch",
        &patch,
    ];
    stage.sluice.control_plane()?.admin().kubectl(arguments)?;
    Ok(())
}

fn patch_definition(stage: &Faults, plural: &str, patch: &str) -> Result<()> {
    let name = format!("{plural}.sluice.dev");
    let arguments = ["patch", "crd", &name, "--type=json", "--patch", patch];
    stage.sluice.control_plane()?.admin().kubectl(arguments)?;
    Ok(())
}

/// A fresh etcd behind the same address: what it says is not what anybody wants.
fn lost(stage: &mut Faults) -> Result<()> {
    for complaint in ["API server", "cannot", "404", "not found"] {
        stage.sluice.expect_complaint(complaint);
    }
    let control = stage.sluice.control_plane_mut()?;
    control.lose_everything()?;
    stage.expect_traffic()?;
    let control = stage.sluice.control_plane()?;
    control.admin().define_kinds()?;
    // Lists are complete now, and empty.
    until("the agent to doubt", LIMIT, || {
        stage.metric("sluice_source_held") > 0.0
    })
    .with_context(|| stage.log().unwrap_or_default())?;
    stage.expect_traffic()?;
    ensure!(!stage.sluice.is_ready(NODE), "it is ready");
    let log = stage.log()?;
    let told = log
        .lines()
        .any(|line| line.contains("WARN") && line.contains("wiped"));
    ensure!(told, "the log does not say why nothing changes");

    // Everything is applied again, as whoever keeps the manifests would.
    let node = manifest::node(NODE, Role::Director, &[UPLINK]);
    stage
        .sluice
        .apply_text("nodes", &manifest::documents(&[node]))?;
    let control = stage.sluice.control_plane()?;
    control.admin().allow_every_address()?;
    for server in SERVERS {
        let members = [(server, stage.fabric.address(server)?, 1)];
        let pool = manifest::pool(server, &members, Some(8080));
        stage.sluice.apply(server, &[pool])?;
        stage.expect_traffic()?;
    }
    apply_weights(&stage.sluice, stage.weights)?;
    stage.await_weights()?;
    ensure!(stage.metric("sluice_source_held") == 0.0, "it still doubts");
    stage.sluice.await_ready()?;
    stage.expect_change()
}

/// Its status of before acknowledges what was in the maps, and stands until the agent knows everything again.
fn rebooted(stage: &mut Faults) -> Result<()> {
    stage.sluice.kill_agent(NODE)?;
    stage.sluice.lose_maps(NODE)?;
    serve_pools(stage, false)?;
    stage.sluice.restart_agent(NODE)?;
    until("the agent to miss a list", LIMIT, || {
        stage.metric("sluice_source_errors_total{kind=\"RealServerPool\"}") > 2.0
    })?;
    let status = stage.sluice.node(NODE).context("no status")?;
    ensure!(status.acknowledged_revision > 0, "nothing was acknowledged");
    ensure!(
        stage.metric("sluice_lease_renewals_total") == 0.0,
        "a node without maps lives and acknowledges"
    );

    serve_pools(stage, true)?;
    stage.sluice.await_ready()?;
    until("the node to live", LIMIT, || {
        stage.metric("sluice_lease_renewals_total") > 0.0
    })?;
    // Connections that were open are lost.
    let clients = start_clients(&stage.fabric)?;
    std::mem::replace(&mut stage.clients, clients).stop();
    stage.expect_change()
}

/// Whether the API server serves pools. It keeps them.
fn serve_pools(stage: &Faults, served: bool) -> Result<()> {
    let patch =
        format!(r#"[{{"op": "replace", "path": "/spec/versions/0/served", "value": {served}}}]"#);
    patch_definition(stage, "realserverpools", &patch)
}
