//! VIPs that nobody routes, in standalone mode: three directors of a directory agree by asking each other who announces them.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use sluice_tests::net::failover::{Between, Failover, SERVED, target};
use sluice_tests::net::suite::Suite;
use sluice_tests::net::{Family, OutageReport, Protocol};

/// An outage up to this is a takeover by suspicion. This machine may be busy.
const BY_SUSPICION: Duration = Duration::from_secs(3);

/// How long clients go on after a director was ended.
const AFTER: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.check("every VIP is answered", answered);
    suite.check("an agent that ends hands over and nobody notices", ended);
    suite.check("a silent director is replaced", silent);
    suite.check("a killed agent is replaced", killed);
    suite.main(|| Failover::build(Between::Directory))
}

fn expect_short(reports: &[OutageReport]) -> Result<()> {
    let longest = reports.iter().map(|report| report.longest).max();
    ensure!(
        longest <= Some(BY_SUSPICION),
        "nobody answered for too long: {reports:?}"
    );
    Ok(())
}

fn answered(stage: &mut Failover) -> Result<()> {
    for (name, ..) in SERVED {
        for family in Family::BOTH {
            let target = target(name, family);
            for client in [&stage.neighbour, stage.fabric.client()] {
                client.within(|| Protocol::Tcp.ask(None, target))??;
                client.within(|| Protocol::Udp.ask(None, target))??;
            }
        }
    }
    Ok(())
}

fn ended(stage: &mut Failover) -> Result<()> {
    let end = |stage: &mut Failover, holder: &str| stage.sluice.stop_agent(holder);
    let (holder, reports) = stage.disturb("dr", end, AFTER)?;
    stage.sluice.restart_agent(&holder)?;
    stage.sluice.await_ready()?;
    expect_short(&reports)?;
    stage.settle()
}

fn silent(stage: &mut Failover) -> Result<()> {
    let silence = |stage: &mut Failover, holder: &str| stage.fabric.silence(holder);
    let (holder, reports) = stage.disturb("tun", silence, AFTER)?;
    stage.fabric.unsilence(&holder)?;
    expect_short(&reports)?;
    stage.settle()
}

fn killed(stage: &mut Failover) -> Result<()> {
    let kill = |stage: &mut Failover, holder: &str| stage.sluice.kill_agent(holder);
    let (holder, reports) = stage.disturb("dr", kill, AFTER)?;
    stage.sluice.restart_agent(&holder)?;
    stage.sluice.await_ready()?;
    expect_short(&reports)?;
    stage.settle()
}
