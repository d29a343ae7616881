//! Killing and restarting the daemons under traffic.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use sluice_tests::net::fabric::{DIRECTORS, client_sources};
use sluice_tests::net::lab::{Lab, Mode};
use sluice_tests::net::suite::Suite;
use sluice_tests::net::{
    ConnectionMaker, Family, KeptConnections, Protocol, Share, UdpStream,
    expect_no_retransmissions, retransmitted_segments,
};

/// How long traffic flows without an agent.
const WITHOUT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.check(
        "agents are killed and restarted under traffic",
        |lab: &mut Lab| under_traffic(lab, Lab::kill_all),
    );
    suite.check("agents end and are started again under traffic", |lab| {
        under_traffic(lab, Lab::stop_all)
    });
    suite.check(
        "an agent takes up what changed while it was away",
        changed_meanwhile,
    );
    suite.check("the operator is killed and restarted", operator_restart);
    suite.main(|| Lab::build(&Mode::ALL, &[], &[]))
}

/// Every node that runs an agent.
fn agents() -> Vec<&'static str> {
    let mut nodes = DIRECTORS.to_vec();
    nodes.extend(Mode::Dr.servers());
    nodes.extend(Mode::Tun.servers());
    nodes
}

trait All {
    fn kill_all(&mut self) -> Result<()>;
    fn stop_all(&mut self) -> Result<()>;
    fn restart_all(&mut self) -> Result<()>;
}

impl All for Lab {
    fn kill_all(&mut self) -> Result<()> {
        agents()
            .into_iter()
            .try_for_each(|node| self.sluice.kill_agent(node))
    }
    fn stop_all(&mut self) -> Result<()> {
        agents()
            .into_iter()
            .try_for_each(|node| self.sluice.stop_agent(node))
    }
    fn restart_all(&mut self) -> Result<()> {
        agents()
            .into_iter()
            .try_for_each(|node| self.sluice.restart_agent(node))?;
        self.sluice.await_ready()
    }
}

/// Streams, kept connections and new ones in every mode and family, while all agents go and come back.
fn under_traffic(lab: &mut Lab, end: impl FnOnce(&mut Lab) -> Result<()>) -> Result<()> {
    let client = lab.fabric.client().clone();
    let targets: Vec<SocketAddr> = Mode::ALL
        .iter()
        .flat_map(|mode| Family::BOTH.map(|family| mode.target(family)))
        .collect();
    let retransmitted = retransmitted_segments(&client)?;
    let streams = targets
        .iter()
        .map(|&target| UdpStream::start(&client, target, Duration::from_millis(2)))
        .collect::<Result<Vec<_>>>()?;
    let kept = KeptConnections::open(&client, &targets, 80, Duration::from_millis(20))?;
    // From now on the ring leads elsewhere: only the flow table knows where the old flows belong.
    for mode in Mode::ALL {
        lab.set_shares(mode, 0, 100)?;
    }
    let maker = ConnectionMaker::start(&client, &targets, 2, Duration::ZERO)?;
    let before = lab.counters()?;
    end(lab)?;
    thread::sleep(WITHOUT);
    maker.take_report().expect_none_failed()?;
    lab.restart_all()?;
    let after = lab.counters()?;
    for (counter, value) in &before {
        let now = after.get(counter).copied();
        ensure!(
            now.is_some_and(|now| now >= *value),
            "{counter} went from {value} to {now:?}"
        );
    }
    for mode in Mode::ALL {
        lab.await_shares(mode, 0, 100)?;
    }
    thread::sleep(WITHOUT);

    let report = maker.stop();
    report.expect_none_failed()?;
    let candidates = Mode::ALL.map(|mode| mode.servers()[2]);
    ensure!(
        report
            .spread
            .servers()
            .iter()
            .all(|server| candidates.contains(server)),
        "new connections went to the old pool: {}",
        report.spread
    );
    ensure!(kept.close()? > 1, "the kept connections were not used");
    for stream in streams {
        stream.finish()?.expect_whole()?;
    }
    expect_no_retransmissions(&client, retransmitted)?;
    for mode in Mode::ALL {
        lab.set_shares(mode, 100, 0)?;
    }
    Ok(())
}

fn changed_meanwhile(lab: &mut Lab) -> Result<()> {
    let mode = Mode::Nat;
    lab.sluice.kill_agent(DIRECTORS[0])?;
    lab.sluice
        .apply(mode.virtual_server(), &[mode.manifest(0, 100)])?;
    let sources = client_sources(Family::V4, 61, 100);
    let target = mode.target(Family::V4);
    let spread = Protocol::Udp.ask_from_each(lab.fabric.client(), &sources, target)?;
    ensure!(
        spread.of(mode.servers()[2]) == 0,
        "who told the data plane? {spread}"
    );
    lab.sluice.restart_agent(DIRECTORS[0])?;
    lab.await_shares(mode, 0, 100)?;
    let sources = client_sources(Family::V4, 62, 100);
    let spread = Protocol::Udp.ask_from_each(lab.fabric.client(), &sources, target)?;
    spread.expect(&[Share::new(mode.servers()[2], 1.0)], 3.0)?;
    lab.set_shares(mode, 100, 0)
}

fn operator_restart(lab: &mut Lab) -> Result<()> {
    let revision = |lab: &Lab| {
        let status = lab.sluice.virtual_server(Mode::Tun.virtual_server());
        status.and_then(|status| Some(status.decision?.revision))
    };
    let before = revision(lab);
    lab.sluice.kill_operator()?;
    let sources = client_sources(Family::V6, 63, 100);
    let target = Mode::Tun.target(Family::V6);
    let spread = Protocol::Tcp.ask_from_each(lab.fabric.client(), &sources, target)?;
    ensure!(spread.total() == 100, "{spread}");
    lab.sluice.restart_operator()?;
    ensure!(
        revision(lab) == before,
        "an unchanged decision got another revision"
    );
    lab.set_shares(Mode::Tun, 30, 70)?;
    ensure!(revision(lab) > before, "the revision did not rise");
    lab.set_shares(Mode::Tun, 100, 0)
}

trait Counted {
    /// Packets and flows by server, as every agent exports them.
    fn counters(&self) -> Result<BTreeMap<String, f64>>;
}

impl Counted for Lab {
    fn counters(&self) -> Result<BTreeMap<String, f64>> {
        let mut all = BTreeMap::new();
        for node in agents() {
            for (name, value) in self.sluice.metrics(node)? {
                if name.contains("_total") && name.contains("server") {
                    all.insert(format!("{node} {name}"), value);
                }
            }
        }
        ensure!(!all.is_empty(), "no agent exports counters");
        Ok(all)
    }
}
