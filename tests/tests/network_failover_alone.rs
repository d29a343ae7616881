//! VIPs that nobody routes, in standalone mode: three directors of a directory agree by asking each other who announces them.

use std::process::ExitCode;

use anyhow::Result;
use sluice_tests::net::failover::{AFTER, Between, Failover, SERVED, expect_short};
use sluice_tests::net::sluice::Sluice;
use sluice_tests::net::suite::Suite;
use sluice_tests::net::{gateway, stranger};

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.check("every VIP is answered", answered);
    suite.check("an agent that ends hands over and nobody notices", ended);
    suite.check("a silent director is replaced", silent);
    suite.check("NAT's gateway moves with the VIPs", gateway::moves);
    suite.check("a killed agent is replaced", killed);
    suite.check(
        "a VIP that a host has is announced when it is free",
        stranger::in_use,
    );
    suite.check(
        "a VIP that a stranger claims is defended",
        stranger::defended,
    );
    suite.main(|| Failover::build(Between::Directory))
}

fn answered(stage: &mut Failover) -> Result<()> {
    SERVED.iter().try_for_each(|(name, ..)| stage.ask(name))
}

fn ended(stage: &mut Failover) -> Result<()> {
    let reports = stage.end_agent("dr", Sluice::stop_agent, AFTER)?;
    expect_short(&reports)?;
    stage.settle()
}

fn silent(stage: &mut Failover) -> Result<()> {
    let reports = stage.silence("tun")?;
    expect_short(&reports)?;
    stage.settle()
}

fn killed(stage: &mut Failover) -> Result<()> {
    let reports = stage.end_agent("dr", Sluice::kill_agent, AFTER)?;
    expect_short(&reports)?;
    stage.settle()
}
